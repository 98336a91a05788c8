"""AutomationService: loops, and the one place where a trigger becomes a firing.

Every firing is a row that is unique by (loop, key), written with its event in the transaction that
looked at cooldown, budget and what is going on: of any number of deciders one writes it.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import select

from everloop.access.policy import Authorizer
from everloop.access.service import Service, action
from everloop.automation.deciding import Decider, Due, insert_firing, past_of
from everloop.automation.triggers import automation_faults, trigger_faults
from everloop.automation.waiting import has_answers, settle_answers
from everloop.catalog import automations as queue
from everloop.catalog import loops as statements
from everloop.catalog import tables
from everloop.catalog.engine import Catalog
from everloop.catalog.transaction import Transaction
from everloop.core.ci import CiSummary
from everloop.core.context import current_actor
from everloop.core.events import CI_FINISHED, Event
from everloop.core.owner import is_dead
from everloop.core.policy import (
    Automation,
    Firing,
    FiringAction,
    FiringOutcome,
    LoopSpec,
    Trigger,
)
from everloop.core.time import to_micros
from everloop.errors import Conflict, Fault, InvalidInput, NotFound, StateError
from everloop.evaluation.gates import gate_faults
from everloop.monitoring import ledger
from everloop.monitoring.service import monitor_faults
from everloop.tracking.leases import lease_end

__all__ = ["AutomationService"]

_LEADER = "supervisor"
_TRIES = 3
_ANY_QUEUED = "SELECT 1 FROM firings WHERE outcome = 'queued' AND due_at <= ? LIMIT 1"
#: Paths that an event names; the others are only counted.
_MOST_PATHS = 1_000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
#: Everything that can be asked of a worker; one that trains in this process does it all.
_ACTIONS: tuple[FiringAction, ...] = ("train", "run", "notify", "resume")


class AutomationService(Service):
    """Declares loops and decides which of their triggers fire."""

    area = "automation"

    def __init__(self, catalog: Catalog, authorizer: Authorizer) -> None:
        self._catalog = catalog
        self._authorizer = authorizer
        self._decider = Decider()
        self._answered = -1

    @action("loop:write")
    def declare(self, spec: LoopSpec) -> LoopSpec:
        """Declare a loop with its monitors, or change it; the same again changes nothing.

        Monitors that it no longer lists are removed. Whether it is paused stays as it is, and so
        does its charter if the new one says nothing.

        Raises:
            InvalidInput: If a gate or a monitor makes no sense, or there is no gate, or a monitor
                is none of this loop's deployment.
        """
        faults = gate_faults(spec.gates)
        if not spec.gates:
            faults.append(Fault("gates", "must not be empty: no model goes live because it is new"))
        faults += [fault for monitor in spec.monitors for fault in monitor_faults(monitor)]
        faults += [
            Fault(f"{monitor.name}.deployment", f"is {monitor.deployment!r}, not {spec.name!r}")
            for monitor in spec.monitors
            if monitor.deployment != spec.name
        ]
        faults += trigger_faults(spec.triggers)
        if faults:
            raise InvalidInput(f"the loop {spec.name!r} is wrong", faults)
        with self._catalog.write() as tx:
            if queue.taken_name(tx, spec.name, by_loop=False):
                raise Conflict(
                    f"there is an automation {spec.name!r}", hint="give the loop another name"
                )
            before = _find(tx, spec.name)
            spec = _continued(spec, before, tx.now)
            if before is not None and _same(before, spec):
                return before
            statements.put_loop(tx, spec)
            _put_monitors(tx, spec, before)
            body = {"owner": spec.owner, "pipeline": spec.pipeline, "is_new": before is None}
            tx.append("loop.Declared", f"loop:{spec.name}", body)
        return spec

    @action("loop:read")
    def loops(self) -> list[LoopSpec]:
        """All loops, by name."""
        with self._catalog.read() as tx:
            return statements.loops(tx)

    @action("loop:read", on="name")
    def loop(self, name: str) -> LoopSpec:
        """One loop; NotFound with near names if there is none."""
        with self._catalog.read() as tx:
            return statements.loop(tx, name)

    @action("ci:record")
    def record_ci(self, summary: CiSummary) -> Event:
        """Keep that CI ran: ``ci.Finished`` about the code snapshot, or about the loop without one.

        It changes nothing else: no trigger looks at it.
        """
        subject = f"code:{summary.code}" if summary.code else f"loop:{summary.loop}"
        with self._catalog.write() as tx:
            return tx.append(CI_FINISHED, subject, msgspec.to_builtins(summary))

    @action("loop:read", on="loop")
    def firings(self, loop: str = "", limit: int = 1000) -> list[Firing]:
        """Firings, newest first; the ones that were held back too."""
        with self._catalog.read() as tx:
            return statements.firings(tx, loop, limit=limit)

    @action("loop:write")
    def automate(self, spec: Automation) -> Automation:
        """Declare an automation, or change it; the same again changes nothing.

        Whether it is paused stays as it is. Without an owner it belongs to who declares it.

        Raises:
            InvalidInput: With everything that is wrong with it.
            Conflict: If a loop has the name.
        """
        faults = [] if _NAME.fullmatch(spec.name) else [Fault("name", _NAME_TOLD)]
        faults += automation_faults(spec)
        if faults:
            raise InvalidInput(f"the automation {spec.name!r} is wrong", faults)
        with self._catalog.write() as tx:
            if queue.taken_name(tx, spec.name, by_loop=True):
                raise Conflict(
                    f"there is a loop {spec.name!r}", hint="give the automation another name="
                )
            before = queue.find_automation(tx, spec.name)
            spec = msgspec.structs.replace(
                spec,
                owner=spec.owner or (before.owner if before else current_actor() or tx.actor),
                paused=before.paused if before else spec.paused,
                created_at=before.created_at if before else tx.now,
                updated_at=before.updated_at if before else tx.now,
            )
            if spec == before:
                return spec
            spec = msgspec.structs.replace(spec, updated_at=tx.now)
            body = {"owner": spec.owner, "action": msgspec.to_builtins(spec.action)}
            body |= {"is_new": before is None}
            event = tx.append("automation.Declared", f"automation:{spec.name}", body)
            queue.put_automation(tx, spec, event.seq)
        return spec

    @action("loop:write", on="name")
    def remove(self, name: str, reason: str = "") -> None:
        """Remove an automation. What it has done stays; what waits to be done is not done any more.

        Raises:
            NotFound: If there is none.
        """
        with self._catalog.write() as tx:
            queue.automation(tx, name)
            queue.drop_automation(tx, name)
            for firing in statements.firings(tx, name, outcomes=("queued",)):
                statements.set_firing(tx, firing.id, "paused", reason="the automation was removed")
            tx.append("automation.Removed", f"automation:{name}", {"reason": reason})

    @action("loop:read")
    def automations(self) -> list[Automation]:
        """All automations, by name."""
        with self._catalog.read() as tx:
            return queue.automations(tx)

    @action("loop:read", on="name")
    def automation(self, name: str) -> Automation:
        """One automation; NotFound with near names if there is none."""
        with self._catalog.read() as tx:
            return queue.automation(tx, name)

    @action("loop:read", on="firing")
    def reasons(self, firing: str) -> list[Event]:
        """The events that a firing answers, oldest first; none for a schedule."""
        with self._catalog.read() as tx:
            found = statements.firing(tx, firing)
            ids = found.body.get("events") or ([found.cause] if found.cause else [])
            return [event for id_ in ids if (event := statements.event(tx, id_)) is not None]

    @action("loop:pause", on="name")
    def pause(self, name: str, paused: bool = True, reason: str = "") -> bool:
        """Stop a loop or an automation from acting, or let it again. What runs already goes on.

        Returns:
            Whether that changed anything.
        """
        with self._catalog.write() as tx:
            spec = _declared_as(tx, name)
            if spec.paused == paused:
                return False
            spec = msgspec.structs.replace(spec, paused=paused, updated_at=tx.now)
            noun = "loop" if isinstance(spec, LoopSpec) else "automation"
            event = tx.append(
                f"{noun}.{'Paused' if paused else 'Resumed'}", f"{noun}:{name}", {"reason": reason}
            )
            if isinstance(spec, LoopSpec):
                statements.put_loop(tx, spec)
            else:
                queue.put_automation(tx, spec, event.seq)
        return True

    @action("loop:decide")
    def note_files(self, pattern: str, files: dict[str, str]) -> bool:
        """Tell what matches a pattern now, as path and state of each file; whether it changed.

        The first time nothing is told of it: what is there then is where it begins.
        """
        table = tables.watched_files
        query = select(table.c.state).where(table.c.pattern == pattern)
        with self._catalog.read() as tx:
            if tx.scalar(query) == files:
                return False
        with self._catalog.write() as tx:
            before = tx.scalar(query)
            if before == files:
                return False
            row = {"pattern": pattern, "state": files, "updated_at": tx.now}
            tx.upsert(table, row, ["pattern"])
            if before is not None:
                tx.append("files.Changed", f"files:{pattern}", _changes(before, files))
        return before is not None

    @action("loop:decide")
    def decide(self) -> list[Firing]:
        """Match triggers with what happened since the last call, the schedules and open alerts.

        Each match gives one firing by its key, ``queued`` or held back with the reason. An alert
        that was held back, or whose retraining changed nothing, fires again as soon as it may, as
        long as it is open.

        Returns:
            The new firings, also the ones held back.
        """
        newest, now = self._newest_event(), self._catalog.clock.now()
        if self._decider.is_settled(newest, now):
            return []
        with self._catalog.read() as tx:
            plan = self._decider.plan(tx)
            answered = newest != self._answered and has_answers(tx)
            self._answered = newest
        if answered:
            with self._catalog.write() as tx:
                settle_answers(tx)
        if plan is None:
            if not answered:
                self._decider.rest(newest, now)
            return []
        with self._catalog.write() as tx:
            made = self._decider.fire(tx, plan)
        self._decider.settle(made, plan)
        return made

    def _newest_event(self) -> int:
        """The end of the event log: the one thing that is asked all the time."""
        with self._catalog.direct(write=False) as tx:
            return int(tx.run("SELECT max(seq) FROM events").fetchone()[0] or 0)

    @action("loop:run", on="name")
    def fire(self, name: str, reason: str = "") -> Firing:
        """Act now because a person says so: neither cooldown nor budget holds it back.

        Raises:
            NotFound: If there is no such loop or automation.
            Conflict: If it is a loop, and a firing is queued or running or a rollout is open.
        """
        with self._catalog.write() as tx:
            spec = _declared_as(tx, name)
            noun = "automation"
            if isinstance(spec, LoopSpec):
                past, noun = past_of(tx, spec), "loop"
                if past.working or past.rollout:
                    raise Conflict(
                        f"the loop {name!r} is busy",
                        hint="wait for it, or abort the rollout",
                        details={"winner": past.working or past.rollout},
                    )
            asked = tx.append(f"{noun}.Asked", f"{noun}:{name}", {"reason": reason})
            trigger = Trigger(on="hand", value=reason or current_actor() or "a person")
            return insert_firing(tx, spec, Due(asked.id, trigger, asked.id, tx.now), None)[0]

    @action("loop:run")
    def claim(
        self, actions: list[FiringAction] | None = None, holder: str = "", lease_s: float = 0
    ) -> Firing | None:
        """Take up the queued firing that is due first and whose name has a slot free, or None.

        Args:
            actions: What the caller can do; everything if not given.
            holder: The process that works on it, as :func:`everloop.core.owner.this_process` says.
            lease_s: Seconds until it counts as left behind without :meth:`renew`; 0 means that only
                the leader knows whether somebody works on it.
        """
        now = to_micros(self._catalog.clock.now())
        with self._catalog.direct(write=False) as look:
            if look.run(_ANY_QUEUED, (now,)).fetchone() is None:
                return None
        with self._catalog.write(ordered=False) as tx:
            until = lease_end(tx, lease_s) if lease_s else None
            return queue.claim(tx, actions or _ACTIONS, holder, until)

    @action("loop:run")
    def renew(self, firings: list[str], holder: str, lease_s: float = 30.0) -> list[str]:
        """Say that the holder of running firings lives; the ids of those that are still its own."""
        if not firings:
            return []
        with self._catalog.write(ordered=False) as tx:
            return queue.renew(tx, firings, holder, lease_end(tx, lease_s))

    @action("loop:run", on="firing")
    def finish(
        self,
        firing: str,
        outcome: FiringOutcome,
        reason: str = "",
        run_id: str = "",
        seconds: float | None = None,
        fence: int = 0,
    ) -> Firing:
        """Close a running firing as ``done`` or ``failed``, or as ``waiting`` for an approval.

        Args:
            firing: Its id.
            outcome: What it came to.
            reason: The sentence that says it.
            run_id: The run that it started.
            seconds: How long the training took by a watch, for the service levels.
            fence: As :meth:`claim` gave it; 0 asks for nothing.

        Raises:
            StateError: If it is not running: another supervisor took it over and closed it.
        """
        with self._catalog.write() as tx:
            now = None
            if outcome in ("done", "failed", "waiting"):
                now = statements.close_firing(tx, firing, fence, outcome, reason, run_id)
            if now is None:
                was = statements.firing(tx, firing)
                if was.outcome == "running":
                    _check_fence(was, fence)
                raise StateError(f"a firing that is {was.outcome} cannot become {outcome}")
            body: dict[str, Any] = {"loop": now.loop, "outcome": outcome, "reason": reason}
            body |= {"run": run_id}
            body |= {} if seconds is None else {"seconds": seconds}
            kind = "trigger.Waiting" if outcome == "waiting" else "trigger.Finished"
            tx.append(kind, f"firing:{firing}", body)
        return now

    @action("loop:run", on="firing")
    def give_back(
        self,
        firing: str,
        fence: int,
        reason: str,
        *,
        after_s: float = 0,
        counts: bool = True,
        tries: int = _TRIES,
    ) -> Firing:
        """Put a running firing back into the queue, as its work was cut off.

        Its run, if it has one, goes on where it was. After so many `tries` it is ``failed``.

        Args:
            firing: Its id.
            fence: As :meth:`claim` gave it.
            reason: What cut it off.
            after_s: How long to wait before the next try.
            counts: Whether it counts as a try.
            tries: How many there are.

        Raises:
            StateError: If it is not running, or somebody else took it over.
        """
        with self._catalog.write() as tx:
            was = statements.firing(tx, firing)
            if was.outcome != "running":
                raise StateError(f"a firing that is {was.outcome} cannot be given back")
            _check_fence(was, fence)
            return _requeue(tx, was, reason, after_s=after_s, counts=counts, tries=tries)

    @action("loop:run")
    def recover(self) -> list[Firing]:
        """Queue the firings that a dead supervisor left running, each with its run if it has one.

        A firing whose run still counts as running waits until its lease has run out, and so does
        one whose holder may be alive. Only the leader may call it, between its own firings.
        """
        with self._catalog.read() as tx:
            if not any(_is_left(tx, f) for f in statements.firings(tx, outcomes=("running",))):
                return []
        found = []
        with self._catalog.write() as tx:
            for firing in statements.firings(tx, outcomes=("running",)):
                if _is_left(tx, firing) and statements.run_of(tx, firing.id)[1] != "running":
                    found.append(_requeue(tx, firing, "its supervisor died", counts=False))
        return found

    @action("loop:run")
    def lead(self, holder: str, lease_s: float = 30.0) -> bool:
        """Become or stay the one supervisor that acts; False while another's lease is alive."""
        table = tables.leases
        with self._catalog.write() as tx:
            row = tx.first(select(table).where(table.c.name == _LEADER))
            if row is not None and row.holder != holder and row.until > tx.now:
                return False
            fence = 1 if row is None else row.fence + (row.holder != holder)
            until = lease_end(tx, lease_s)
            lease = {"name": _LEADER, "holder": holder, "fence": fence, "until": until}
            tx.upsert(table, lease, ["name"])
        return True

    @action("loop:run")
    def resign(self, holder: str) -> None:
        """Give the lead up at once, so that another supervisor need not wait for the lease."""
        table = tables.leases
        with self._catalog.write() as tx:
            mine = (table.c.name == _LEADER) & (table.c.holder == holder)
            tx.execute(table.update().where(mine).values(until=tx.now))


_NAME_TOLD = "must be letters, digits, '.', '_' or '-', and no more than that"


def _declared_as(tx: Transaction, name: str) -> LoopSpec | Automation:
    found = queue.find_automation(tx, name) or _find(tx, name)
    if found is None:
        known = [spec.name for spec in statements.loops(tx)]
        known += [spec.name for spec in queue.automations(tx)]
        raise NotFound.named("loop or automation", name, known)
    return found


def _changes(before: dict[str, str], now: dict[str, str]) -> dict[str, Any]:
    return {
        "added": sorted(now.keys() - before.keys())[:_MOST_PATHS],
        "changed": sorted(p for p in now.keys() & before.keys() if now[p] != before[p])[
            :_MOST_PATHS
        ],
        "removed": sorted(before.keys() - now.keys())[:_MOST_PATHS],
        "files": len(now),
    }


def _check_fence(firing: Firing, fence: int) -> None:
    if fence and firing.fence != fence:
        raise StateError(
            f"firing {firing.id} was taken over by {firing.holder or 'another process'}",
            hint="stop this process; the other one carries on",
        )


def _is_left(tx: Transaction, firing: Firing) -> bool:
    """Whether nobody works on a running firing any more."""
    leased = firing.lease_until is not None and firing.lease_until > tx.now
    return not leased or is_dead(firing.holder)


def _requeue(
    tx: Transaction,
    firing: Firing,
    reason: str,
    *,
    after_s: float = 0,
    counts: bool = True,
    tries: int = _TRIES,
) -> Firing:
    run_id, state = statements.run_of(tx, firing.id)
    resumed = run_id if state in ("running", "lost", "killed", "finished", "waiting") else ""
    if counts and firing.attempts >= tries:
        told = f"given up after {firing.attempts} tries: {reason}"
        body = {"loop": firing.loop, "outcome": "failed", "reason": told, "run": run_id}
        tx.append("trigger.Finished", f"firing:{firing.id}", body)
        return statements.set_firing(tx, firing.id, "failed", run_id=run_id, reason=told)
    table = tables.firings
    values: dict[str, Any] = {
        "due_at": tx.now + timedelta(seconds=after_s),
        "lease_until": None,
        "attempts": firing.attempts - (not counts),
    }
    tx.execute(table.update().where(table.c.id == firing.id).values(**values))
    return statements.set_firing(tx, firing.id, "queued", run_id=resumed, reason=reason)


def _find(tx: Transaction, name: str) -> LoopSpec | None:
    spec = tx.scalar(select(tables.loops.c.spec).where(tables.loops.c.name == name))
    return None if spec is None else msgspec.convert(spec, LoopSpec)


def _continued(spec: LoopSpec, before: LoopSpec | None, now: datetime) -> LoopSpec:
    if before is None:
        return msgspec.structs.replace(spec, created_at=now, updated_at=now)
    says_nothing = not (spec.charter.problem or spec.charter.value)
    return msgspec.structs.replace(
        spec,
        charter=before.charter if says_nothing else spec.charter,
        paused=before.paused,
        created_at=before.created_at,
        updated_at=now,
    )


def _same(before: LoopSpec, spec: LoopSpec) -> bool:
    return msgspec.structs.replace(spec, updated_at=before.updated_at) == before


def _put_monitors(tx: Transaction, spec: LoopSpec, before: LoopSpec | None) -> None:
    for monitor in spec.monitors:
        if ledger.put_monitor(tx, monitor):
            body = {"monitor": monitor.name, "kind": monitor.kind, "metric": monitor.metric}
            tx.append("monitor.Declared", f"deployment:{spec.name}", body)
    gone = {m.name for m in before.monitors} if before is not None else set()
    for name in sorted(gone - {monitor.name for monitor in spec.monitors}):
        ledger.drop_monitor(tx, spec.name, name)
