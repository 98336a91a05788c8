"""Decider: what of all that happened and of all times that came fires what.

A look costs the new events and the schedules that are due, however many triggers there are: what is
declared is kept by topic, and each schedule with its next time. Everything here can be forgotten;
what counts is in the catalog: the place up to which events were read, and a row for each firing,
unique by name and key.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import msgspec
from sqlalchemy import func, select

from everloop.automation.matching import KINDS, fits, topics_of
from everloop.automation.policy import Obstacle, Past, free_at, obstacle, own_depth
from everloop.automation.schedule import due_ticks, next_tick
from everloop.catalog import automations as queue
from everloop.catalog import loops as statements
from everloop.catalog import tables
from everloop.catalog.edges import link
from everloop.catalog.transaction import Transaction
from everloop.core.events import Event
from everloop.core.ids import new_id
from everloop.core.policy import Automation, Firing, LoopSpec, Notify, Trigger
from everloop.monitoring import ledger

__all__ = ["Decider", "Due", "Plan", "insert_firing", "past_of"]

_CURSOR = "automation"
_FIRST = "first"
_FIRST_RETRY_S = 60.0
#: Times of a schedule that fire at once at most, where all that were missed do.
_AT_ONCE = 100
#: Events that nobody is about are read again after a restart, up to so many.
_UNREAD = 5_000
_MOST_EVENTS = 100
_REST = timedelta(seconds=1)
_NEVER = datetime.max.replace(tzinfo=UTC)
_NO_TIME: datetime | None = None

_Spec = LoopSpec | Automation


class Due(msgspec.Struct, frozen=True):
    """Something that a trigger of a loop or an automation matched."""

    key: str
    trigger: Trigger
    cause: str
    scheduled_for: datetime
    # Where the event stands in the log; 0 where there is none or it may fire again.
    seq: int = 0
    # A waiting alert is no new fact: it fires when it may, and is not recorded as skipped again.
    is_waiting: bool = False


class _Schedule(msgspec.Struct):
    """A trigger by time, up to when it is settled, and when it is next."""

    name: str
    trigger: Trigger
    settled: datetime
    next_at: datetime


class Plan(msgspec.Struct, frozen=True):
    """What a look found: what is due, by name, and the place up to which events were read."""

    due: list[tuple[str, Due]]
    read_to: int


class Decider:
    """Matches triggers; safe to use from many threads, one after the other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._generation = -1
        self._specs: dict[str, _Spec] = {}
        # By topic: whose trigger it is, and since which place in the event log.
        self._topics: dict[tuple[str, str], list[tuple[str, Trigger, int]]] = {}
        self._schedules: dict[tuple[str, str], _Schedule] = {}
        self._read_to = 0
        self._rested, self._rested_at, self._next_at = -1, _NO_TIME, _NEVER

    def is_settled(self, newest: int, now: datetime) -> bool:
        """Whether a look at `now` can find nothing: no event since the last one, and no time came.

        What else depends on the time (an alert that cools down, a first model that failed) is
        looked at every second.
        """
        with self._lock:
            at = self._rested_at
            return (
                newest == self._rested
                and at is not None
                and at <= now < min(at + _REST, self._next_at)
            )

    def rest(self, newest: int, now: datetime) -> None:
        """Remember that a look found nothing."""
        with self._lock:
            times = (known.next_at for known in self._schedules.values())
            self._next_at = min(times, default=_NEVER)
            self._rested, self._rested_at = newest, now

    def plan(self, tx: Transaction) -> Plan | None:
        """What is due now; None if nothing is."""
        with self._lock:
            self._refresh(tx)
            due = [*self._first_due(tx), *self._alerts_due(tx), *self._schedules_due(tx)]
            newest = int(tx.scalar(select(func.max(tables.events.c.seq))) or 0)
            durable = ledger.cursors(tx, _CURSOR)[0]
            after = max(durable, self._read_to)
            if newest > after:
                due += self._events_due(tx, after)
            if not due and newest - durable < _UNREAD:
                self._read_to = max(after, newest)
                return None
            return Plan(due, newest)

    def fire(self, tx: Transaction, plan: Plan) -> list[Firing]:
        """Write what a plan found, each as one firing; those that are new."""
        read_to = ledger.cursors(tx, _CURSOR)[0]
        made: list[Firing] = []
        for name, due in plan.due:
            # Another decider may have read the event meanwhile, or the declaration have changed.
            spec = _spec_of(tx, name) if due.seq == 0 or due.seq > read_to else None
            if isinstance(spec, LoopSpec):
                made += _fire_loop(tx, spec, due)
            elif spec is not None:
                made += _fire_automation(tx, spec, due)
        if plan.read_to > read_to:
            ledger.put_cursors(tx, {_CURSOR: plan.read_to})
        return made

    def settle(self, fired: list[Firing], plan: Plan) -> None:
        """Remember that a plan was written."""
        with self._lock:
            self._read_to = max(self._read_to, plan.read_to)
            for name, due in plan.due:
                known = self._schedules.get((name, _prefix(due.trigger)))
                if known is not None and due.scheduled_for > known.settled:
                    known.settled = due.scheduled_for
                    known.next_at = _next(known.trigger, known.settled)

    # --- what is declared --------------------------------------------------------------------

    def _refresh(self, tx: Transaction) -> None:
        generation = queue.generation(tx)
        if generation == self._generation:
            return
        specs: list[_Spec] = [*statements.loops(tx), *queue.automations(tx)]
        self._specs = {spec.name: spec for spec in specs}
        since = queue.declared_at(tx)
        self._topics = {}
        schedules = {}
        for spec in specs:
            for trigger in spec.triggers:
                if trigger.on == "schedule":
                    place = (spec.name, _prefix(trigger))
                    known = self._schedules.get(place)
                    if known is None or known.trigger != trigger:
                        known = _schedule_of(tx, spec, trigger)
                    schedules[place] = known
                elif trigger.on != "alert" or isinstance(spec, Automation):
                    key = queue.trigger_key(trigger) if isinstance(spec, Automation) else ""
                    entry = (spec.name, trigger, since.get((spec.name, key), 0))
                    self._topics.setdefault((trigger.on, trigger.value), []).append(entry)
        self._schedules = schedules
        self._generation = generation

    # --- what is due -------------------------------------------------------------------------

    def _loops(self) -> list[LoopSpec]:
        return [spec for spec in self._specs.values() if isinstance(spec, LoopSpec)]

    def _first_due(self, tx: Transaction) -> Iterator[tuple[str, Due]]:
        """A loop that serves nothing yet trains its first model; if that fails, again and again."""
        loops = [spec for spec in self._loops() if not spec.paused]
        if not loops:
            return
        served = {row.name for row in tx.all(select(tables.deployments.c.name))}
        for spec in loops:
            if spec.name in served:
                continue
            earlier = statements.firings(tx, spec.name, key_prefix=_FIRST)
            trigger = Trigger(on="first", value="model")
            if not earlier:
                yield spec.name, Due(_FIRST, trigger, "", tx.now)
            elif earlier[0].outcome in ("done", "failed"):
                wait = min(_FIRST_RETRY_S * 2 ** min(len(earlier), 32), spec.cooldown_s)
                if tx.now >= earlier[0].updated_at + timedelta(seconds=wait):
                    yield spec.name, Due(f"{_FIRST}+{len(earlier)}", trigger, "", tx.now)

    def _alerts_due(self, tx: Transaction) -> Iterator[tuple[str, Due]]:
        """Open alerts that no retraining has settled."""
        watching = [spec for spec in self._loops() if any(t.on == "alert" for t in spec.triggers)]
        if not watching:
            return
        table = tables.alerts
        rows = tx.all(
            select(table.c.id, table.c.deployment, table.c.monitor)
            .where(table.c.state == "firing")
            .order_by(table.c.opened_at, table.c.id)
        )
        for spec in watching:
            for row in rows:
                trigger = _alerted(spec, row.deployment, row.monitor)
                due = None if trigger is None else _alert_due(tx, spec, trigger, row.id)
                if due is not None:
                    yield spec.name, due

    def _schedules_due(self, tx: Transaction) -> Iterator[tuple[str, Due]]:
        for known in self._schedules.values():
            if known.next_at > tx.now:
                continue
            trigger = known.trigger
            found = due_ticks(
                trigger.value,
                known.settled,
                tx.now,
                zone=trigger.zone,
                missed=trigger.missed,
                most=_AT_ONCE,
            )
            if not found:  # missed, and not to be caught up with
                known.settled = tx.now
                known.next_at = _next(trigger, tx.now)
            for tick in found:
                key = f"{_prefix(trigger)}{tick:%Y-%m-%dT%H:%M}"
                yield known.name, Due(key, trigger, "", tick)

    def _events_due(self, tx: Transaction, after: int) -> list[tuple[str, Due]]:
        table = tables.events
        query = select(table).where(table.c.seq > after, table.c.kind.in_(KINDS))
        found: list[tuple[str, Due]] = []
        for row in tx.all(query.order_by(table.c.seq)):
            event = Event(**row._asdict())
            for topic in topics_of(event):
                for name, trigger, since in self._topics.get(topic, ()):
                    if event.seq > since and fits(trigger, event):
                        found.append((name, Due(event.id, trigger, event.id, event.at, event.seq)))
            if event.kind == "alert.Fired":
                found += self._alert_fired(tx, event)
        return found

    def _alert_fired(self, tx: Transaction, event: Event) -> Iterator[tuple[str, Due]]:
        """For loops: an alert that fired and was cleared before anybody looked counts too."""
        identifier = event.subject.partition(":")[2]
        for spec in self._loops():
            trigger = _alerted(spec, event.body.get("deployment"), event.body.get("monitor"))
            if trigger is None or not fits(trigger, event):
                continue
            if not statements.firings(tx, spec.name, key_prefix=identifier, limit=1):
                yield spec.name, Due(identifier, trigger, event.id, tx.now)


def _alerted(spec: LoopSpec, deployment: object, monitor: object) -> Trigger | None:
    """The trigger of a loop that an alert is for: one of its own monitors."""
    if deployment != spec.name:
        return None
    return next((t for t in spec.triggers if t.on == "alert" and t.value == monitor), None)


def _alert_due(tx: Transaction, spec: LoopSpec, trigger: Trigger, identifier: str) -> Due | None:
    """An open alert: a new one fires, one that was held back or not settled fires when it may."""
    earlier = statements.firings(tx, spec.name, key_prefix=identifier)
    if earlier and obstacle(spec, past_of(tx, spec), tx.now) is not None:
        return None
    event = statements.event_of(tx, f"alert:{identifier}", "alert.Fired")
    if event is not None and not fits(trigger, event):
        return None
    cause = event.id if event is not None else ""
    if not earlier:
        return Due(identifier, trigger, cause, tx.now)
    return Due(f"{identifier}+{len(earlier)}", trigger, cause, tx.now, is_waiting=True)


def _prefix(trigger: Trigger) -> str:
    """What the keys of a schedule begin with."""
    zone = f"@{trigger.zone}" if trigger.zone not in ("", "UTC") else ""
    return f"cron{zone} {trigger.value} "


def _schedule_of(tx: Transaction, spec: _Spec, trigger: Trigger) -> _Schedule:
    # Whatever lies before a time that has fired is settled, also when the clock steps back; what
    # lies before the declaration was never asked for.
    table = tables.firings
    mine = (table.c.loop == spec.name, table.c.key.startswith(_prefix(trigger), autoescape=True))
    fired: datetime | None = tx.scalar(select(func.max(table.c.scheduled_for)).where(*mine))
    settled = fired or spec.updated_at
    return _Schedule(spec.name, trigger, settled, _next(trigger, settled))


def _next(trigger: Trigger, after: datetime) -> datetime:
    return next_tick(trigger.value, after, trigger.zone)


def _spec_of(tx: Transaction, name: str) -> _Spec | None:
    found = queue.find_automation(tx, name)
    if found is not None:
        return found
    spec = tx.scalar(select(tables.loops.c.spec).where(tables.loops.c.name == name))
    return None if spec is None else msgspec.convert(spec, LoopSpec)


# --- firing --------------------------------------------------------------------------------------


def _fire_loop(tx: Transaction, spec: LoopSpec, due: Due) -> Iterator[Firing]:
    held = None if due.trigger.on == "first" else obstacle(spec, past_of(tx, spec), tx.now)
    if own_depth(spec.name, statements.chain(tx, due.cause)):
        held = Obstacle("guarded", "the loop's own output led here")
    if held is not None and due.is_waiting:
        return  # something else fired meanwhile; it goes on waiting
    firing, is_new = insert_firing(tx, spec, due, held)
    if is_new:
        yield firing


def _fire_automation(tx: Transaction, spec: Automation, due: Due) -> Iterator[Firing]:
    held = Obstacle("paused", "it is paused") if spec.paused else None
    if due.cause and own_depth(spec.name, statements.chain(tx, due.cause)) >= spec.depth:
        held = Obstacle("guarded", "what it did itself led here")
    due_at = tx.now
    if held is None and (spec.debounce_s or spec.cooldown_s or spec.budget):
        waiting = queue.pending(tx, spec.name)
        if waiting is not None:
            _merge(tx, waiting, due)
            return
        times = statements.work_times(tx, spec.name, max(spec.budget, 1))
        due_at = free_at(spec, times, tx.now + timedelta(seconds=spec.debounce_s))
    firing, is_new = insert_firing(tx, spec, due, held, due_at)
    if is_new:
        yield firing


def _merge(tx: Transaction, waiting: Firing, due: Due) -> None:
    """Have a firing that waits for its time answer one more event; once for each."""
    events = [*waiting.body.get("events", ()), due.cause or due.key]
    if events[-1] in events[:-1] or waiting.key == due.key:
        return
    body = {
        **waiting.body,
        "merged": waiting.body.get("merged", 0) + 1,
        "events": events[:_MOST_EVENTS],
    }
    # For a schedule the newest time is what is wanted, as for one that was missed.
    later = max(waiting.scheduled_for, due.scheduled_for)
    values = {"body": body, "scheduled_for": later, "updated_at": tx.now}
    table = tables.firings
    tx.execute(table.update().where(table.c.id == waiting.id).values(**values))


def insert_firing(
    tx: Transaction,
    spec: _Spec,
    due: Due,
    held: Obstacle | None,
    due_at: datetime | None = None,
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
        due_at=due_at or tx.now,
        created_at=tx.now,
        updated_at=tx.now,
    )
    if isinstance(spec, Automation):
        firing = msgspec.structs.replace(
            firing,
            action="notify" if isinstance(spec.action, Notify) else "run",
            slots=spec.concurrency,
            body={"events": [due.cause]} if due.cause else {},
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


def past_of(tx: Transaction, spec: LoopSpec) -> Past:
    """What a loop has done so far."""
    last = statements.work_times(tx, spec.name, 1)
    busy = statements.firings(tx, spec.name, outcomes=statements.OPEN, limit=1)
    rollouts = tables.rollouts
    rollout = tx.scalar(
        select(rollouts.c.id).where(rollouts.c.deployment == spec.name, rollouts.c.open.is_(True))
    )
    trained_rows, new_labels = statements.learned(tx, spec)
    return Past(
        working=busy[0].id if busy else "",
        rollout=rollout or "",
        last_at=last[0] if last else None,
        spent=statements.worked(tx, spec.name, tx.now - timedelta(seconds=spec.budget_s)),
        setbacks=statements.setbacks(tx, spec.name),
        new_labels=new_labels,
        trained_rows=trained_rows,
    )
