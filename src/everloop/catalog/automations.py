"""Statements over automations, and over firings as a queue with leases and fences."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec
from sqlalchemy import bindparam, func, select, text, update

from everloop.catalog import tables
from everloop.catalog.transaction import Transaction
from everloop.core.policy import Automation, Firing, FiringAction, Trigger
from everloop.errors import NotFound

__all__ = [
    "automation",
    "automations",
    "claim",
    "declared_at",
    "drop_automation",
    "find_automation",
    "generation",
    "pending",
    "put_automation",
    "renew",
    "taken_name",
    "trigger_key",
]

_F = tables.firings
_TABLE = tables.automations
#: Held by whoever claims, on PostgreSQL, so that two never count the same open firings.
_CLAIM_LOCK = 0x6576_6C51
#: Events after which what is declared is read anew.
_DECLARING = (
    "loop.Declared", "loop.Paused", "loop.Resumed", "charter.Set", "automation.Declared",
    "automation.Removed", "automation.Paused", "automation.Resumed",
)  # fmt: skip

_OPEN = _F.alias("open_firings")
_FULL = (
    select(_OPEN.c.loop)
    .where(_OPEN.c.outcome.in_(("running", "waiting")))
    .group_by(_OPEN.c.loop)
    .having(func.count() >= func.min(_OPEN.c.slots))
)
_QUEUED = _F.alias("queued_firings")
_NEXT = (
    select(_QUEUED.c.id)
    .where(
        _QUEUED.c.outcome == "queued",
        _QUEUED.c.due_at <= bindparam("now"),
        _QUEUED.c.action.in_(bindparam("actions", expanding=True)),
        _QUEUED.c.loop.not_in(_FULL),
    )
    .order_by(_QUEUED.c.due_at, _QUEUED.c.id)
    .limit(1)
    .with_for_update(skip_locked=True, of=_QUEUED)
)
_CLAIM = (
    update(_F)
    .where(_F.c.id == _NEXT.scalar_subquery())
    .values(
        outcome="running",
        holder=bindparam("by"),
        lease_until=bindparam("until"),
        fence=_F.c.fence + 1,
        attempts=_F.c.attempts + 1,
        updated_at=bindparam("now"),
    )
    .returning(*_F.c)
)


def automations(tx: Transaction) -> list[Automation]:
    """All automations, by name."""
    rows = tx.all(select(_TABLE.c.spec).order_by(_TABLE.c.name))
    return [msgspec.convert(row.spec, Automation) for row in rows]


def find_automation(tx: Transaction, name: str) -> Automation | None:
    """One automation, or None."""
    spec = tx.scalar(select(_TABLE.c.spec).where(_TABLE.c.name == name))
    return None if spec is None else msgspec.convert(spec, Automation)


def automation(tx: Transaction, name: str) -> Automation:
    """One automation.

    Raises:
        NotFound: If there is none of that name; with the nearest ones.
    """
    found = find_automation(tx, name)
    if found is None:
        raise NotFound.named("automation", name, [r.name for r in tx.all(select(_TABLE.c.name))])
    return found


def put_automation(tx: Transaction, spec: Automation, seq: int) -> None:
    """Store an automation in place of the one of that name.

    A trigger that it did not have yet is there since place `seq` in the event log.
    """
    known = _TABLE.c.name == spec.name
    before = tx.scalar(select(_TABLE.c.since).where(known)) or {}
    since = {key: before.get(key, seq) for key in map(trigger_key, spec.triggers)}
    times = {"created_at": spec.created_at, "updated_at": spec.updated_at}
    row = {"name": spec.name, "spec": spec, "since": since, **times}
    tx.upsert(_TABLE, row, ["name"])


def trigger_key(trigger: Trigger) -> str:
    """A trigger as text: equal triggers have the same."""
    return msgspec.json.encode(trigger, order="sorted").decode()


def drop_automation(tx: Transaction, name: str) -> None:
    """Forget an automation; its firings stay."""
    tx.execute(_TABLE.delete().where(_TABLE.c.name == name))


def taken_name(tx: Transaction, name: str, *, by_loop: bool) -> bool:
    """Whether a loop (or, without `by_loop`, an automation) has that name."""
    table = tables.loops if by_loop else _TABLE
    return tx.first(select(table.c.name).where(table.c.name == name)) is not None


def generation(tx: Transaction) -> int:
    """Grows with each change of what is declared."""
    log = tables.events
    # One look into the index for each kind; a maximum over all of them would read every event.
    newest = (
        select(func.max(log.c.seq)).where(log.c.kind == kind).scalar_subquery()
        for kind in _DECLARING
    )
    row = tx.first(select(*newest))
    return max((seq or 0 for seq in row or ()), default=0)


def declared_at(tx: Transaction) -> dict[tuple[str, str], int]:
    """Since which place in the event log triggers are there, by name and `trigger_key`.

    Those of a loop are there since the loop is, and have an empty key.
    """
    log = tables.events
    first = (
        select(log.c.subject, func.min(log.c.seq).label("seq"))
        .where(log.c.kind == "loop.Declared")
        .group_by(log.c.subject)
    )
    found = {(row.subject.partition(":")[2], ""): int(row.seq) for row in tx.all(first)}
    for row in tx.all(select(_TABLE.c.name, _TABLE.c.since)):
        found |= {(row.name, key): int(seq) for key, seq in row.since.items()}
    return found


def pending(tx: Transaction, name: str) -> Firing | None:
    """The firing of an automation that waits for its time, or None."""
    query = select(_F).where(_F.c.loop == name, _F.c.outcome == "queued", _F.c.due_at > tx.now)
    row = tx.first(query.order_by(_F.c.due_at).limit(1))
    return None if row is None else Firing(**row._asdict())


def claim(
    tx: Transaction, actions: Sequence[FiringAction], holder: str, until: datetime | None
) -> Firing | None:
    """Take up the queued firing that is due first, of a name that has a slot free."""
    if tx.dialect != "sqlite":
        tx.execute(text(f"SELECT pg_advisory_xact_lock({_CLAIM_LOCK})"))
    given = {"now": tx.now, "actions": list(actions), "by": holder, "until": until}
    row = tx.connection.execute(_CLAIM, given).first()
    return None if row is None else Firing(**row._asdict())


def renew(tx: Transaction, identifiers: Sequence[str], holder: str, until: datetime) -> list[str]:
    """Say that the holder of running firings lives; those of them that are still its own."""
    mine = (_F.c.id.in_(identifiers), _F.c.holder == holder, _F.c.outcome == "running")
    change = update(_F).where(*mine).values(lease_until=until).returning(_F.c.id)
    return [row.id for row in tx.connection.execute(change)]
