"""Rows of tables in a merge: read, compared by key, inserted where they are missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Table, func, select

from everloop.catalog.transaction import Transaction
from everloop.tracking.store import chunks

__all__ = ["copy_missing", "counts", "dicts", "fresh"]

_AT_ONCE = 1000


def dicts(tx: Transaction, query: Any) -> list[dict[str, Any]]:
    """Rows by the names of their columns, as plain text: the driver's own kind is none to all."""
    return [{str(key): value for key, value in row._mapping.items()} for row in tx.all(query)]


def copy_missing(here: Transaction, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Insert the rows whose keys are free."""
    for part in chunks(rows, _AT_ONCE):
        here.insert_missing(table, list(part))


def fresh(here: Transaction, table: Table, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows whose ``id`` is not here."""
    known: set[str] = set()
    for part in chunks([row["id"] for row in rows]):
        known |= {row.id for row in here.all(select(table.c.id).where(table.c.id.in_(part)))}
    return [row for row in rows if row["id"] not in known]


def counts(tx: Transaction, table: Table, owner: str, keys: Sequence[int]) -> dict[int, int]:
    """How many rows belong to each of these keys."""
    column = table.c[owner]
    query = select(column, func.count()).where(column.in_(keys)).group_by(column)
    return {int(key): int(count) for key, count in (tuple(row) for row in tx.all(query))}
