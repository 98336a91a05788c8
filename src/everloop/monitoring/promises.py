"""Promises of charters: each is held against one fact, and alerts when that breaks it.

What is promised can be broken by what happens (a training took too long) and by what does not (no
new model for too long): a look is due after any event, and when the clock alone breaks one.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, Protocol

import msgspec
import pyarrow as pa
from sqlalchemy import func, select

from everloop.catalog import loops, tables
from everloop.catalog.edges import link
from everloop.catalog.engine import Catalog
from everloop.catalog.transaction import Transaction
from everloop.core.ids import new_id
from everloop.core.machines import decide_promise
from everloop.core.monitor import Alert
from everloop.core.policy import LevelName, LoopSpec, ServiceLevel
from everloop.errors import NotFound
from everloop.monitoring import ledger
from everloop.monitoring.levels import live_model, prediction_time

__all__ = ["Promises"]

#: The latency of the latest days is read this often at most, as that means reading their answers.
_LATENCY_EVERY = timedelta(hours=1)
#: A training that says how long it took is looked for among so many that ended.
_LATEST = 50
_NEVER = datetime.max.replace(tzinfo=UTC)


class PredictionReader(Protocol):
    """What is needed of the prediction log."""

    def read(
        self, deployment: str, *, since: datetime, until: datetime, columns: list[str] | None = None
    ) -> pa.Table:
        """Answers that are for ``[since, until)``."""
        ...


class _Fact(msgspec.Struct, frozen=True):
    """What a promise is held against now.

    Attributes:
        subject: What was measured, as events call it.
        seconds: How long that took, or has taken so far.
        cause: Id of the event that made it so; empty where only time passed.
        run_id: The run behind it, or empty.
    """

    subject: str
    seconds: float
    cause: str = ""
    run_id: str = ""


#: The fact, and when the clock alone will break the promise.
_Standing = tuple[_Fact | None, datetime]
_UNKNOWN: _Standing = (None, _NEVER)


class _Look(NamedTuple):
    """Nothing can have changed up to a place in the event log, from one instant to another."""

    seq: int
    at: datetime
    until: datetime


class Promises:
    """Judges the promises of loops. What it keeps in memory only spares it looks."""

    def __init__(self, catalog: Catalog, predictions: PredictionReader) -> None:
        self._catalog = catalog
        self._predictions = predictions
        self._looks: dict[str, _Look] = {}
        self._latencies: dict[str, tuple[datetime, _Fact]] = {}

    def judge(self, name: str) -> list[Alert]:
        """The alerts of a loop's promises that fired or cleared at the clock's now."""
        now = self._catalog.clock.now()
        with self._catalog.read() as tx:
            newest = int(tx.scalar(select(func.max(tables.events.c.seq))) or 0)
            look = self._looks.get(name)
            if look is not None and look.seq == newest and look.at <= now < look.until:
                return []
            spec = loops.loop(tx, name)
        latency = self._latency(spec, now)
        with self._catalog.read() as tx:
            standings = _standings(tx, spec, latency)
            acts = list(_acts(tx, spec, standings))
        made: list[Alert] = []
        if acts:
            # Another supervisor may have read the log later than this one.
            latency = self._latency(spec, now, fresh=True)
            with self._catalog.write() as tx:
                spec = loops.loop(tx, name)
                standings = _standings(tx, spec, latency)
                made = [_perform(tx, name, act) for act in list(_acts(tx, spec, standings))]
        until = min((breaks_at for _, breaks_at in standings.values()), default=_NEVER)
        self._looks[name] = _Look(newest, now, until)
        return made

    def _latency(self, spec: LoopSpec, now: datetime, *, fresh: bool = False) -> _Fact | None:
        if all(level.name != "prediction" for level in spec.charter.service_levels):
            return None
        known = self._latencies.get(spec.name)
        if known is not None and not fresh and known[0] <= now < known[0] + _LATENCY_EVERY:
            return known[1]
        segments = tables.prediction_segments
        query = select(segments.c.id, segments.c.to_at).where(segments.c.deployment == spec.name)
        with self._catalog.read() as tx:
            last = tx.first(query.order_by(segments.c.to_at.desc(), segments.c.id.desc()).limit(1))
        if last is None:
            return None

        def answers(since: datetime, until: datetime) -> pa.Table | None:
            columns = ["latency_us", "arm"]
            try:
                return self._predictions.read(spec.name, since=since, until=until, columns=columns)
            except NotFound:
                return None

        seconds, _ = prediction_time(min(last.to_at, now), answers)
        if seconds is None:
            return None
        found = _Fact(f"segment:{last.id}", seconds)
        self._latencies[spec.name] = (now, found)
        return found


# --- what a promise is held against --------------------------------------------------------------


def _standings(
    tx: Transaction, spec: LoopSpec, latency: _Fact | None
) -> dict[LevelName, _Standing]:
    reads = {"retraining": _retraining, "deployment": _deployment, "renewal": _renewal}
    found: dict[LevelName, _Standing] = {}
    for level in spec.charter.service_levels:
        if level.name == "prediction":
            found[level.name] = (latency, _NEVER)
        else:
            found[level.name] = reads[level.name](tx, spec, level)
    return found


def _retraining(tx: Transaction, spec: LoopSpec, level: ServiceLevel) -> _Standing:
    """The training that is on, once it has taken too long; else the latest that was finished."""
    firings, events = tables.firings, tables.events
    on = tx.first(
        select(firings.c.id, firings.c.run_id, firings.c.updated_at)
        .where(
            firings.c.loop == spec.name, firings.c.outcome == "running", firings.c.action == "train"
        )
        .limit(1)
    )
    breaks_at = _NEVER
    if on is not None:
        breaks_at = on.updated_at + timedelta(seconds=level.at_most_s)
        if tx.now > breaks_at:
            taken = (tx.now - on.updated_at).total_seconds()
            begun = loops.event_of(tx, f"firing:{on.id}", "trigger.Fired")
            run_id = on.run_id or loops.run_of(tx, on.id)[0]
            return _Fact(f"firing:{on.id}", taken, begun.id if begun else "", run_id), _NEVER
    ended = select("firing:" + firings.c.id).where(firings.c.loop == spec.name)
    query = select(events.c.id, events.c.subject, events.c.body).where(
        events.c.kind == "trigger.Finished", events.c.subject.in_(ended)
    )
    for row in tx.all(query.order_by(events.c.seq.desc()).limit(_LATEST)):
        if "seconds" in row.body:
            run_id = str(row.body.get("run", ""))
            return _Fact(row.subject, float(row.body["seconds"]), row.id, run_id), breaks_at
    return None, breaks_at


def _deployment(tx: Transaction, spec: LoopSpec, level: ServiceLevel) -> _Standing:
    """The rollout that is on, once it has taken too long; else the latest that was promoted."""
    table = tables.rollouts
    own = select(table).where(table.c.deployment == spec.name)
    breaks_at = _NEVER
    on = tx.first(own.where(table.c.open.is_(True)).limit(1))
    if on is not None:
        breaks_at = on.started_at + timedelta(seconds=level.at_most_s)
        if tx.now > breaks_at:
            return _rollout(tx, on.id, on.started_at, tx.now, "rollout.Started"), _NEVER
    for row in tx.all(own.where(table.c.open.is_(False)).order_by(table.c.updated_at.desc())):
        if row.state["stage"] == "promoted":
            found = _rollout(tx, row.id, row.started_at, row.updated_at, "rollout.Promoted")
            return found, breaks_at
    return None, breaks_at


def _rollout(
    tx: Transaction, identifier: str, since: datetime, until: datetime, kind: str
) -> _Fact:
    told = loops.event_of(tx, f"rollout:{identifier}", kind)
    seconds = (until - since).total_seconds()
    return _Fact(f"rollout:{identifier}", seconds, told.id if told else "")


def _renewal(tx: Transaction, spec: LoopSpec, level: ServiceLevel) -> _Standing:
    """The age of the live model, by the clock: nothing has to happen for it to grow too old."""
    live = live_model(tx, spec.name)
    if live is None:
        return _UNKNOWN
    subject, made = live
    breaks_at = made + timedelta(seconds=level.at_most_s)
    age = (tx.now - made).total_seconds()
    return _Fact(subject, age), breaks_at if tx.now <= breaks_at else _NEVER


# --- alerts --------------------------------------------------------------------------------------


class _Fire(NamedTuple):
    level: ServiceLevel
    fact: _Fact


class _Clear(NamedTuple):
    alert: Alert
    reason: str


def _acts(
    tx: Transaction, spec: LoopSpec, standings: dict[LevelName, _Standing]
) -> Iterator[_Fire | _Clear]:
    found = ledger.open_alerts(tx, spec.name)
    open_ = {alert.monitor: alert for alert in found if alert.monitor.startswith("sla:")}
    for level in spec.charter.service_levels:
        fact, _ = standings[level.name]
        alert = open_.pop(level.alert, None)
        before = alert.evidence if alert is not None else {}
        subject = fact.subject if fact is not None else ""
        _, act = decide_promise(
            "ok" if alert is None else "firing",
            None if fact is None else fact.seconds,
            level.at_most_s,
            is_new=(before.get("measured_on"), before.get("promised"))
            != (subject, level.at_most_s),
        )
        if act == "fire" and fact is not None:
            yield _Fire(level, fact)
        elif act == "clear" and alert is not None:
            told = f"kept again by {subject}" if subject else "nothing is left that breaks it"
            yield _Clear(alert, told)
    for alert in open_.values():
        yield _Clear(alert, "it is not promised any more")


def _perform(tx: Transaction, name: str, act: _Fire | _Clear) -> Alert:
    if isinstance(act, _Clear):
        return ledger.clear_alert(tx, *act)
    level, fact = act
    evidence = {
        "kind": "service_level",
        "metric": level.name,
        "value": fact.seconds,
        "promised": level.at_most_s,
        "measured_on": fact.subject,
    }
    fired = Alert(
        id=new_id(),
        deployment=name,
        monitor=level.alert,
        state="firing",
        opened_at=tx.now,
        evidence=evidence | ({"run": fact.run_id} if fact.run_id else {}),
    )
    ledger.fire_alert(tx, fired, cause=fact.cause)
    link(tx, fact.subject, f"alert:{fired.id}", "judged")
    return fired
