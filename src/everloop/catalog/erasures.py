"""Statements of erasures, of the objects that they removed, and of holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import delete, or_, select

from everloop.catalog.tables import erased_objects, erasures, events, holds
from everloop.catalog.transaction import Transaction
from everloop.core.erase import Hold, Receipt

__all__ = [
    "add_erasure",
    "add_hold",
    "all_holds",
    "drop_hold",
    "end_erasure",
    "find_erasure",
    "holds_of",
    "known_copies",
    "lift",
    "open_erasures",
    "receipts",
    "still_erased",
    "strike_erased",
]

# Values in one statement; far below what the databases take.
_AT_ONCE = 500


def add_erasure(tx: Transaction, receipt: Receipt, work: dict[str, Any]) -> None:
    """Insert an erasure whose changes of the catalog are in this transaction."""
    row = {
        "id": receipt.id,
        "dataset": receipt.dataset,
        "subject": receipt.subject,
        "state": "open",
        "actor": receipt.actor,
        "reason": receipt.reason,
        "work": work,
        "receipt": msgspec.to_builtins(receipt),
        "asked_at": receipt.asked_at,
        "done_at": None,
    }
    tx.execute(erasures.insert().values(row))
    gone = [{"digest": digest, "erasure": receipt.id} for digest in work["objects"]]
    tx.upsert(erased_objects, gone, ("digest",))


def end_erasure(tx: Transaction, receipt: Receipt) -> bool:
    """Write down that an erasure is done, with its signed receipt; False if another one did."""
    values = {
        "state": "done",
        "work": {},
        "receipt": msgspec.to_builtins(receipt),
        "done_at": receipt.done_at,
    }
    its = (erasures.c.id == receipt.id, erasures.c.state == "open")
    return tx.execute(erasures.update().where(*its).values(values)).rowcount > 0


def open_erasures(tx: Transaction) -> list[tuple[Receipt, dict[str, Any]]]:
    """Those that were not ended, oldest first, with what is to be done."""
    query = select(erasures).where(erasures.c.state == "open").order_by(erasures.c.asked_at)
    return [(_receipt(row.receipt), row.work) for row in tx.all(query)]


def receipts(tx: Transaction) -> list[Receipt]:
    """The receipts of what is done, newest first."""
    query = select(erasures.c.receipt).where(erasures.c.state == "done")
    order = (erasures.c.asked_at.desc(), erasures.c.id.desc())
    return [_receipt(row.receipt) for row in tx.all(query.order_by(*order))]


def find_erasure(tx: Transaction, id_: str) -> Receipt | None:
    """One receipt by its id."""
    row = tx.first(select(erasures.c.receipt).where(erasures.c.id == id_))
    return None if row is None else _receipt(row.receipt)


def _receipt(body: Any) -> Receipt:
    return msgspec.convert(body, Receipt)


def still_erased(tx: Transaction, digests: Sequence[str]) -> list[str]:
    """Those of the objects that nobody has stored and named again since they were erased."""
    found: list[str] = []
    for part in _chunks(digests):
        query = select(erased_objects.c.digest).where(erased_objects.c.digest.in_(part))
        found += [row.digest for row in tx.all(query)]
    return found


def lift(tx: Transaction, digests: Iterable[str], exists: Callable[[str], bool]) -> list[str]:
    """Say that objects are about to be named, some of which may have been erased.

    One that is in the store again is wanted again; in this transaction, so that no removal is in
    the middle of it.

    Returns:
        Those that were erased and are not there: they have to be stored again first.
    """
    erased = still_erased(tx, sorted(set(digests)))
    gone = [digest for digest in erased if not exists(digest)]
    for part in _chunks([digest for digest in erased if digest not in gone]):
        tx.execute(delete(erased_objects).where(erased_objects.c.digest.in_(part)))
    return gone


def strike_erased(tx: Transaction, before: datetime) -> None:
    """Forget which objects were erased before a time: nobody can be about to name them any more."""
    done = select(erasures.c.id).where(erasures.c.state == "done", erasures.c.done_at < before)
    tx.execute(delete(erased_objects).where(erased_objects.c.erasure.in_(done)))


def add_hold(tx: Transaction, hold: Hold) -> None:
    """Insert a hold, or change it."""
    tx.upsert(holds, msgspec.structs.asdict(hold), ("name",))


def drop_hold(tx: Transaction, name: str) -> bool:
    """Remove a hold; whether there was one."""
    return tx.execute(delete(holds).where(holds.c.name == name)).rowcount > 0


def all_holds(tx: Transaction) -> list[Hold]:
    """All holds, by name."""
    return [Hold(**row._asdict()) for row in tx.all(select(holds).order_by(holds.c.name))]


def holds_of(tx: Transaction, dataset: str) -> list[Hold]:
    """The holds that are on a dataset."""
    on = or_(holds.c.dataset == dataset, holds.c.dataset == "")
    rows = tx.all(select(holds).where(on).order_by(holds.c.name))
    return [Hold(**row._asdict()) for row in rows]


def known_copies(tx: Transaction) -> list[str]:
    """Where the events say that copies of data went: backups, packages, exports."""
    kinds = ("workspace.BackedUp", "workspace.Exported", "dataset.Exported", "package.Exported")
    query = select(events.c.kind, events.c.subject, events.c.at).where(events.c.kind.in_(kinds))
    latest: dict[tuple[str, str], datetime] = {}
    for row in tx.all(query.order_by(events.c.seq)):
        latest[row.kind, row.subject] = row.at
    what = {"workspace.BackedUp": "backup"}
    return [
        f"{what.get(kind, 'export')} {subject.partition(':')[2]}, last of "
        f"{at:%Y-%m-%d %H:%M:%S} UTC"
        for (kind, subject), at in latest.items()
    ]


def _chunks(items: Sequence[str]) -> Iterator[Sequence[str]]:
    return (items[start : start + _AT_ONCE] for start in range(0, len(items), _AT_ONCE))
