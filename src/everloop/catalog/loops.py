"""Statements over loops and their firings, for automation and for governance."""

from __future__ import annotations

from datetime import datetime, timedelta

import msgspec
from sqlalchemy import BigInteger, Text, and_, bindparam, case, func, or_, select, update

from everloop.catalog import tables
from everloop.catalog.transaction import Transaction
from everloop.core.events import Event
from everloop.core.policy import Firing, FiringOutcome, LoopSpec
from everloop.core.time import parse_instant
from everloop.errors import NotFound

__all__ = [
    "OPEN",
    "WORKED",
    "chain",
    "close_firing",
    "event",
    "event_of",
    "firing",
    "firings",
    "learned",
    "loop",
    "loops",
    "put_firing",
    "put_loop",
    "run_of",
    "set_firing",
    "setbacks",
    "work_times",
    "worked",
]

# Outcomes of firings that took or will take a retraining, and so count for cooldown and budget.
WORKED: tuple[FiringOutcome, ...] = ("queued", "running", "waiting", "done", "failed")
# Those of them that are not done yet.
OPEN: tuple[FiringOutcome, ...] = ("queued", "running", "waiting")
# A chain of causes that is longer than this is cut: no loop of ours has so many links.
_LONGEST_CHAIN = 1000

_F = tables.firings
_CLOSE = (
    update(_F)
    .where(
        _F.c.id == bindparam("of"),
        _F.c.outcome == "running",
        or_(
            bindparam("held", type_=BigInteger) == 0,
            _F.c.fence == bindparam("held", type_=BigInteger),
        ),
    )
    .values(
        outcome=bindparam("to"),
        reason=case(
            (bindparam("why", type_=Text) != "", bindparam("why", type_=Text)), else_=_F.c.reason
        ),
        run_id=case(
            (bindparam("by", type_=Text) != "", bindparam("by", type_=Text)), else_=_F.c.run_id
        ),
        updated_at=bindparam("at"),
    )
    .returning(*_F.c)
)


def loops(tx: Transaction) -> list[LoopSpec]:
    """All loops, by name."""
    rows = tx.all(select(tables.loops.c.spec).order_by(tables.loops.c.name))
    return [msgspec.convert(row.spec, LoopSpec) for row in rows]


def loop(tx: Transaction, name: str) -> LoopSpec:
    """One loop.

    Raises:
        NotFound: If there is none of that name; with the nearest ones.
    """
    spec = tx.scalar(select(tables.loops.c.spec).where(tables.loops.c.name == name))
    if spec is None:
        known = [row.name for row in tx.all(select(tables.loops.c.name))]
        raise NotFound.named("loop", name, known)
    return msgspec.convert(spec, LoopSpec)


def put_loop(tx: Transaction, spec: LoopSpec) -> None:
    """Store a loop, in place of the one of that name."""
    row = {
        "name": spec.name,
        "spec": spec,
        "created_at": spec.created_at,
        "updated_at": spec.updated_at,
    }
    tx.upsert(tables.loops, row, ["name"])


def firing(tx: Transaction, identifier: str) -> Firing:
    """One firing.

    Raises:
        NotFound: If there is none with that id.
    """
    row = tx.first(select(tables.firings).where(tables.firings.c.id == identifier))
    if row is None:
        raise NotFound.named("firing", identifier)
    return Firing(**row._asdict())


def firings(
    tx: Transaction,
    name: str = "",
    *,
    outcomes: tuple[FiringOutcome, ...] = (),
    key_prefix: str = "",
    limit: int = 1000,
) -> list[Firing]:
    """Firings, newest first."""
    table = tables.firings
    query = select(table).order_by(table.c.created_at.desc(), table.c.id.desc()).limit(limit)
    if name:
        query = query.where(table.c.loop == name)
    if outcomes:
        query = query.where(table.c.outcome.in_(outcomes))
    if key_prefix:
        query = query.where(table.c.key.startswith(key_prefix, autoescape=True))
    return [Firing(**row._asdict()) for row in tx.all(query)]


def put_firing(tx: Transaction, made: Firing) -> bool:
    """Store a firing; False where its loop has fired by that key already."""
    return tx.insert_new(tables.firings, msgspec.structs.asdict(made)) is not None


def set_firing(
    tx: Transaction, identifier: str, outcome: FiringOutcome, *, run_id: str = "", reason: str = ""
) -> Firing:
    """Move a firing on; an empty `run_id` or `reason` keeps what is there."""
    values: dict[str, object] = {"outcome": outcome, "updated_at": tx.now}
    values |= {"run_id": run_id} if run_id else {}
    values |= {"reason": reason} if reason else {}
    table = tables.firings
    change = table.update().where(table.c.id == identifier).values(values)
    row = tx.connection.execute(change.returning(*table.c)).first()
    if row is None:
        raise NotFound.named("firing", identifier)
    return Firing(**row._asdict())


def close_firing(
    tx: Transaction, identifier: str, fence: int, outcome: FiringOutcome, reason: str, run_id: str
) -> Firing | None:
    """Close a firing that is running, under its fence unless that is 0; None where it is not."""
    given = {"of": identifier, "to": outcome, "why": reason, "at": tx.now}
    row = tx.connection.execute(_CLOSE, {**given, "held": fence, "by": run_id}).first()
    return None if row is None else Firing(**row._asdict())


def worked(tx: Transaction, name: str, since: datetime) -> int:
    """How many firings that are due after `since` took work up."""
    table = tables.firings
    query = select(func.count()).where(
        table.c.loop == name, table.c.outcome.in_(WORKED), table.c.due_at > since
    )
    return int(tx.scalar(query) or 0)


def work_times(tx: Transaction, name: str, most: int) -> list[datetime]:
    """When the newest firings that took work up are due, newest first."""
    table = tables.firings
    query = select(table.c.due_at).where(table.c.loop == name, table.c.outcome.in_(WORKED))
    return [row.due_at for row in tx.all(query.order_by(table.c.due_at.desc()).limit(most))]


def setbacks(tx: Transaction, name: str) -> int:
    """Refused candidates, failed pipelines and aborted rollouts since the last promotion.

    Since is by place in the event log: a clock that was ahead at the promotion hides none of them.
    """
    rollouts, verdicts, table, log = tables.rollouts, tables.verdicts, tables.firings, tables.events
    rolled = select("rollout:" + rollouts.c.id).where(rollouts.c.deployment == name)
    # A first model that was refused (champion 0) says nothing of retrainings.
    refused = select("verdict:" + verdicts.c.id).where(
        verdicts.c.model == name, verdicts.c.passed.is_(False), verdicts.c.champion != 0
    )
    failed = select("firing:" + table.c.id).where(
        table.c.loop == name, table.c.outcome == "failed", table.c.key.not_like("first%")
    )
    promoted = (log.c.kind == "rollout.Promoted", log.c.subject.in_(rolled))
    since = tx.scalar(select(func.max(log.c.seq)).where(*promoted)) or 0
    told = or_(
        and_(log.c.kind == "rollout.Aborted", log.c.subject.in_(rolled)),
        and_(log.c.kind == "verdict.Given", log.c.subject.in_(refused)),
        and_(log.c.kind == "trigger.Finished", log.c.subject.in_(failed)),
    )
    count = select(func.count(log.c.subject.distinct())).where(log.c.seq > since, told)
    return int(tx.scalar(count) or 0)


def run_of(tx: Transaction, identifier: str) -> tuple[str, str]:
    """Id and state of the newest run that a firing started, or two empty texts."""
    table = tables.runs
    query = select(table.c.id, table.c.state).where(table.c.trigger == identifier)
    row = tx.first(query.order_by(table.c.pk.desc()).limit(1))
    return ("", "") if row is None else (row.id, row.state)


def event(tx: Transaction, identifier: str) -> Event | None:
    """The event with that id, or None."""
    row = tx.first(select(tables.events).where(tables.events.c.id == identifier))
    return None if row is None else Event(**row._asdict())


def event_of(tx: Transaction, subject: str, kind: str) -> Event | None:
    """The first event of `kind` about `subject`, or None."""
    table = tables.events
    query = select(table).where(table.c.subject == subject, table.c.kind == kind)
    row = tx.first(query.order_by(table.c.seq).limit(1))
    return None if row is None else Event(**row._asdict())


def chain(tx: Transaction, identifier: str) -> list[Event]:
    """The event and what led to it, root first."""
    found: list[Event] = []
    while identifier and len(found) < _LONGEST_CHAIN:
        link = event(tx, identifier)
        if link is None:
            break
        found.append(link)
        identifier = link.cause
    return found[::-1]


def learned(tx: Transaction, spec: LoopSpec) -> tuple[int, int]:
    """Rows the champion was trained on, and labels since then that are older than any hold-out.

    Labels count by batch: one that reaches into the hold-out does not count yet.
    """
    if not spec.new_share:
        return 0, 0  # nobody asks
    deployed = tables.deployments
    arms = tx.scalar(select(deployed.c.arms).where(deployed.c.name == spec.name))
    champion = next((arm["version"] for arm in arms or () if arm["name"] == "champion"), None)
    versions, batches = tables.model_versions, tables.label_batches
    manifest = tx.scalar(
        select(versions.c.manifest).where(
            versions.c.name == spec.name, versions.c.version == champion
        )
    )
    until = (manifest or {}).get("trained_until")
    if not until:
        return 0, 0
    days = max((gate.days for gate in spec.gates), default=0)
    count = tx.scalar(
        select(func.coalesce(func.sum(batches.c.rows), 0)).where(
            batches.c.deployment == spec.name,
            batches.c.from_at >= parse_instant(until),
            batches.c.to_at <= tx.now - timedelta(days=days),
        )
    )
    return int(manifest.get("rows", 0)), int(count)
