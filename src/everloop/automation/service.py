"""AutomationService: loops, and the one place where a trigger becomes a firing.

Every firing is a row that is unique by (loop, key), written with its event in the transaction that
looked at cooldown, budget and what is going on: of any number of deciders one writes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import select

from everloop.access.policy import Authorizer
from everloop.access.service import Service, action
from everloop.automation.policy import Obstacle, Past, latest_tick, obstacle, own_depth
from everloop.catalog import loops as statements
from everloop.catalog import tables
from everloop.catalog.engine import Catalog, Transaction
from everloop.catalog.lineage import link
from everloop.core.context import current_actor
from everloop.core.events import Event
from everloop.core.ids import new_id
from everloop.core.policy import Firing, FiringOutcome, LoopSpec, Trigger
from everloop.errors import Conflict, Fault, InvalidInput, StateError
from everloop.evaluation.gates import gate_faults
from everloop.monitoring import ledger
from everloop.monitoring.service import monitor_faults
from everloop.tracking.leases import lease_end

__all__ = ["AutomationService"]

_CURSOR = "automation"
_LEADER = "supervisor"
_FIRST = "first"
_FIRST_RETRY_S = 60.0


class _Due(msgspec.Struct, frozen=True):
    """Something that a trigger of a loop matched."""

    key: str
    trigger: Trigger
    cause: str
    scheduled_for: datetime
    # A waiting alert is no new fact: it fires when it may, and is not recorded as skipped again.
    is_waiting: bool = False


class AutomationService(Service):
    """Declares loops and decides which of their triggers fire."""

    area = "automation"

    def __init__(self, catalog: Catalog, authorizer: Authorizer) -> None:
        self._catalog = catalog
        self._authorizer = authorizer

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
        if faults:
            raise InvalidInput(f"the loop {spec.name!r} is wrong", faults)
        with self._catalog.write() as tx:
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

    @action("loop:read", on="loop")
    def firings(self, loop: str = "", limit: int = 1000) -> list[Firing]:
        """Firings, newest first; the ones that were held back too."""
        with self._catalog.read() as tx:
            return statements.firings(tx, loop, limit=limit)

    @action("loop:pause", on="name")
    def pause(self, name: str, paused: bool = True, reason: str = "") -> LoopSpec:
        """Stop a loop from retraining, or let it again. What runs already goes on."""
        with self._catalog.write() as tx:
            spec = statements.loop(tx, name)
            if spec.paused == paused:
                return spec
            spec = msgspec.structs.replace(spec, paused=paused, updated_at=tx.now)
            statements.put_loop(tx, spec)
            kind = "loop.Paused" if paused else "loop.Resumed"
            tx.append(kind, f"loop:{name}", {"reason": reason})
        return spec

    @action("loop:decide")
    def decide(self) -> list[Firing]:
        """Match triggers with what happened since the last call, the schedules and open alerts.

        Each match gives one firing by its key, ``queued`` or held back with the reason. An alert
        that was held back, or whose retraining changed nothing, fires again as soon as it may, as
        long as it is open.

        Returns:
            The new firings, also the ones held back.
        """
        with self._catalog.read() as tx:
            if not any(_due(tx, spec) for spec in statements.loops(tx)):
                return []
        made = []
        with self._catalog.write() as tx:
            for spec in statements.loops(tx):
                for due in _due(tx, spec):
                    firing = _fire(tx, spec, due)
                    if firing is not None:
                        made.append(firing)
            newest = select(tables.events.c.seq).order_by(tables.events.c.seq.desc()).limit(1)
            ledger.put_cursors(tx, {_CURSOR: int(tx.scalar(newest) or 0)})
        return made

    @action("loop:run", on="name")
    def fire(self, name: str, reason: str = "") -> Firing:
        """Retrain now because a person says so: neither cooldown nor budget holds it back.

        Raises:
            NotFound: If there is no such loop.
            Conflict: If a firing is queued or running, or a rollout is open.
        """
        with self._catalog.write() as tx:
            spec = statements.loop(tx, name)
            past = _past(tx, spec)
            if past.working or past.rollout:
                raise Conflict(
                    f"the loop {name!r} is busy",
                    hint="wait for it, or abort the rollout",
                    details={"winner": past.working or past.rollout},
                )
            asked = tx.append("loop.Asked", f"loop:{name}", {"reason": reason})
            trigger = Trigger(on="hand", value=reason or current_actor() or "a person")
            return _insert(tx, spec, _Due(asked.id, trigger, asked.id, tx.now), None)[0]

    @action("loop:run")
    def claim(self) -> Firing | None:
        """Take the oldest queued firing up; None if there is none."""
        with self._catalog.read() as tx:
            if not statements.firings(tx, outcomes=("queued",), limit=1):
                return None
        with self._catalog.write() as tx:
            queued = statements.firings(tx, outcomes=("queued",))
            return statements.set_firing(tx, queued[-1].id, "running") if queued else None

    @action("loop:run", on="firing")
    def finish(
        self,
        firing: str,
        outcome: FiringOutcome,
        reason: str = "",
        run_id: str = "",
        seconds: float | None = None,
    ) -> Firing:
        """Close a running firing as ``done`` or ``failed``.

        Args:
            firing: Its id.
            outcome: What it came to.
            reason: The sentence that says it.
            run_id: The run that trained.
            seconds: How long the training took by a watch, for the service levels.

        Raises:
            StateError: If it is not running: another supervisor took it over and closed it.
        """
        with self._catalog.write() as tx:
            was = statements.firing(tx, firing)
            if was.outcome != "running" or outcome not in ("done", "failed"):
                raise StateError(f"a firing that is {was.outcome} cannot become {outcome}")
            now = statements.set_firing(tx, firing, outcome, run_id=run_id, reason=reason)
            body: dict[str, Any] = {"loop": now.loop, "outcome": outcome, "reason": reason}
            body |= {"run": run_id}
            body |= {} if seconds is None else {"seconds": seconds}
            tx.append("trigger.Finished", f"firing:{firing}", body)
        return now

    @action("loop:run")
    def recover(self) -> list[Firing]:
        """Queue the firings that a dead supervisor left running, each with its run if it has one.

        A firing whose run still counts as running waits until its lease has run out. Only the
        leader may call it, between its own firings.
        """
        with self._catalog.read() as tx:
            if not statements.firings(tx, outcomes=("running",), limit=1):
                return []
        found = []
        with self._catalog.write() as tx:
            for firing in statements.firings(tx, outcomes=("running",)):
                run_id, state = statements.run_of(tx, firing.id)
                if state != "running":
                    resumed = run_id if state in ("lost", "killed", "finished") else ""
                    found.append(statements.set_firing(tx, firing.id, "queued", run_id=resumed))
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


def _due(tx: Transaction, spec: LoopSpec) -> list[_Due]:
    found = list(_due_first(tx, spec))
    if found:
        return found
    for trigger in spec.triggers:
        if trigger.on == "alert":
            found += _due_alerts(tx, spec, trigger)
        elif trigger.on == "data":
            found += _due_data(tx, spec, trigger)
        else:
            found += _due_schedule(tx, spec, trigger)
    return found


def _due_first(tx: Transaction, spec: LoopSpec) -> Iterator[_Due]:
    """A loop that serves nothing yet trains its first model; where that fails, again and again."""
    table = tables.deployments
    if spec.paused or tx.first(select(table.c.name).where(table.c.name == spec.name)) is not None:
        return
    earlier = statements.firings(tx, spec.name, key_prefix=_FIRST)
    if not earlier:
        yield _Due(_FIRST, Trigger(on="first", value="model"), "", tx.now)
    elif earlier[0].outcome in ("done", "failed"):
        wait = min(_FIRST_RETRY_S * 2 ** len(earlier), spec.cooldown_s)
        if tx.now >= earlier[0].updated_at + timedelta(seconds=wait):
            key = f"{_FIRST}+{len(earlier)}"
            yield _Due(key, Trigger(on="first", value="model"), "", tx.now)


def _due_alerts(tx: Transaction, spec: LoopSpec, trigger: Trigger) -> Iterator[_Due]:
    """New alerts; open ones too that no retraining has settled."""
    new = {
        event.subject.partition(":")[2]: event
        for event in _new_events(tx, "alert.Fired")
        if event.body.get("deployment") == spec.name and event.body.get("monitor") == trigger.value
    }
    still_open = {
        alert.id for alert in ledger.open_alerts(tx, spec.name) if alert.monitor == trigger.value
    }
    for identifier in sorted(new.keys() | still_open):
        earlier = statements.firings(tx, spec.name, key_prefix=identifier)
        event = new.get(identifier) or statements.event_of(tx, f"alert:{identifier}", "alert.Fired")
        cause = event.id if event is not None else ""
        if not earlier:
            yield _Due(identifier, trigger, cause, tx.now)
        elif identifier in still_open and obstacle(spec, _past(tx, spec), tx.now) is None:
            yield _Due(f"{identifier}+{len(earlier)}", trigger, cause, tx.now, is_waiting=True)


def _due_data(tx: Transaction, spec: LoopSpec, trigger: Trigger) -> Iterator[_Due]:
    declared = statements.event_of(tx, f"loop:{spec.name}", "loop.Declared")
    since = declared.seq if declared is not None else 0
    for event in _new_events(tx, "dataset.VersionCommitted"):
        name = event.subject.partition(":")[2].rpartition("@")[0]
        if name == trigger.value and event.seq > since:
            yield _Due(event.id, trigger, event.id, event.at)


def _due_schedule(tx: Transaction, spec: LoopSpec, trigger: Trigger) -> Iterator[_Due]:
    prefix = f"cron {trigger.value} "
    earlier = [f.scheduled_for for f in statements.firings(tx, spec.name, key_prefix=prefix)]
    # Whatever lies before a time that has fired is settled, also when the clock steps back.
    tick = latest_tick(trigger.value, max([spec.created_at, *earlier]), tx.now)
    if tick is not None:
        yield _Due(f"{prefix}{tick:%Y-%m-%dT%H:%M}", trigger, "", tick)


def _new_events(tx: Transaction, kind: str) -> Iterator[Event]:
    table = tables.events
    query = select(table).where(table.c.seq > ledger.cursors(tx, _CURSOR)[0], table.c.kind == kind)
    for row in tx.all(query.order_by(table.c.seq)):
        yield Event(**row._asdict())


def _fire(tx: Transaction, spec: LoopSpec, due: _Due) -> Firing | None:
    held = None if due.trigger.on == "first" else obstacle(spec, _past(tx, spec), tx.now)
    if own_depth(spec.name, statements.chain(tx, due.cause)):
        held = Obstacle("guarded", "the loop's own output led here")
    if held is not None and due.is_waiting:
        return None  # something else fired meanwhile; it goes on waiting
    firing, is_new = _insert(tx, spec, due, held)
    return firing if is_new else None


def _insert(
    tx: Transaction, spec: LoopSpec, due: _Due, held: Obstacle | None
) -> tuple[Firing, bool]:
    """Write a firing and its event; whether its key was free."""
    firing = Firing(
        id=new_id(),
        loop=spec.name,
        key=due.key,
        cause=due.cause,
        outcome="queued" if held is None else held.outcome,
        reason="" if held is None else held.reason,
        scheduled_for=due.scheduled_for,
        created_at=tx.now,
        updated_at=tx.now,
    )
    if not statements.put_firing(tx, firing):
        return firing, False
    told = {"loop": spec.name, "trigger": f"{due.trigger.on} {due.trigger.value}", "key": due.key}
    if held is None:
        about = tx.scalar(select(tables.events.c.subject).where(tables.events.c.id == due.cause))
        if about is not None:
            link(tx, about, f"firing:{firing.id}", "triggered")
        tx.append("trigger.Fired", f"firing:{firing.id}", told, cause=due.cause)
    else:
        told |= {"outcome": held.outcome, "reason": held.reason}
        tx.append("trigger.Skipped", f"firing:{firing.id}", told, cause=due.cause)
    return firing, True


def _past(tx: Transaction, spec: LoopSpec) -> Past:
    worked = statements.firings(tx, spec.name, outcomes=statements.WORKED, limit=1)
    busy = statements.firings(tx, spec.name, outcomes=("queued", "running"), limit=1)
    rollouts = tables.rollouts
    rollout = tx.scalar(
        select(rollouts.c.id).where(rollouts.c.deployment == spec.name, rollouts.c.open.is_(True))
    )
    trained_rows, new_labels = statements.learned(tx, spec)
    return Past(
        working=busy[0].id if busy else "",
        rollout=rollout or "",
        last_at=worked[0].created_at if worked else None,
        spent=statements.worked(tx, spec.name, tx.now - timedelta(seconds=spec.budget_s)),
        setbacks=statements.setbacks(tx, spec.name),
        new_labels=new_labels,
        trained_rows=trained_rows,
    )
