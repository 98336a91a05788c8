"""The row ledger's bytes: the rows that a rule dropped, set aside, changed or only warned of.

One Parquet object for each (commit or step, rule). A dropped row stands there whole, since no
version has it; of a row that was kept, its key and what the rule looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from everloop.core.dataset import Block, RowChange, RowChangeSummary, Value
from everloop.core.schema import Schema
from everloop.core.time import parse_instant
from everloop.data.blocks import open_block, write_block
from everloop.data.checks import BrokenRule, CheckReport
from everloop.data.repairs import Change
from everloop.errors import Fault, InvalidInput
from everloop.ports.blobs import BlobStore

__all__ = ["Entry", "Found", "entries_of", "plain", "repairs_of", "rows_of"]

Action = Literal["dropped", "changed", "warned", "quarantined"]
_ACTIONS: dict[str, Action] = {"drop": "dropped", "warn": "warned", "quarantine": "quarantined"}


class Entry(NamedTuple):
    """Rows for the ledger, stored but not yet told of by the catalog."""

    rule: str
    action: Action
    reason: str
    owner: str
    block: Block


def entries_of(blobs: BlobStore, report: CheckReport, schema: Schema, owner: str) -> list[Entry]:
    """Store what the rules of a commit left out or warned of; `owner` where a rule names none."""
    entries = []
    aside = [rule.rows for rule in report.broken if rule.on_fail == "quarantine"]
    waiting = np.concatenate(aside) if aside else np.empty(0, np.int64)
    for broken in report.broken:
        if broken.on_fail in _ACTIONS:
            at = broken.rows
            if broken.on_fail == "drop" and waiting.size:
                at = np.setdiff1d(at, waiting)  # it waits, and is not gone
                if not at.size:
                    continue
            rows = _shown(report.table, broken, schema).take(pa.array(at))
            block = write_block(blobs, rows)
            action = _ACTIONS[broken.on_fail]
            entries.append(Entry(broken.rule, action, broken.reason, broken.owner or owner, block))
    return entries


def repairs_of(blobs: BlobStore, changes: Sequence[Change], owner: str) -> list[Entry]:
    """Store what repairs changed; `owner` where a rule names none."""
    return [
        Entry(
            change.rule.rule,
            "changed",
            f"{change.rule.reason}; corrected by {change.rule.repair}",
            change.rule.owner or owner,
            write_block(blobs, change.rows),
        )
        for change in changes
    ]


def _shown(table: pa.Table, broken: BrokenRule, schema: Schema) -> pa.Table:
    if broken.on_fail in ("drop", "quarantine") or not schema.key or not broken.columns:
        return table
    wanted = {*schema.key, *broken.columns}
    return table.select([name for name in table.column_names if name in wanted])


class Found(NamedTuple):
    """What a search of one entry gave: the columns it has, and the rows."""

    columns: list[str]
    rows: list[RowChange]


def rows_of(
    blobs: BlobStore, change: RowChangeSummary, where: Mapping[str, Any], limit: int
) -> Found:
    """The rows of one entry whose columns equal `where`; none if a column is not in it.

    Raises:
        InvalidInput: With every value of `where` that its column cannot hold.
    """
    with open_block(blobs, change.detail) as file:
        columns = file.schema_arrow.names
        if not set(where) <= set(columns):
            return Found(columns, [])
        rows = file.read()
    rows = rows.filter(_mask(rows, where)) if where else rows
    return Found(columns, [_row(change, row) for row in plain(rows.slice(0, limit))])


def _mask(rows: pa.Table, where: Mapping[str, Any]) -> pa.ChunkedArray:
    mask: pa.ChunkedArray | None = None
    faults = []
    for name, value in where.items():
        column = rows.column(name)
        try:
            equal = _equal(column, value)
        except (pa.ArrowInvalid, pa.ArrowTypeError, InvalidInput, OverflowError, TypeError):
            faults.append(Fault(f"where.{name}", f"{value!r} is no {column.type}"))
            continue
        mask = equal if mask is None else pc.and_(mask, equal)
    if faults:
        raise InvalidInput("the rows cannot be sought like this", faults)
    return mask


def _equal(column: pa.ChunkedArray, value: Any) -> pa.ChunkedArray:
    if value is None:
        return pc.is_null(column, nan_is_null=True)
    kind = column.type
    if isinstance(value, bool) != pa.types.is_boolean(kind):
        raise TypeError("truth is no number")
    if isinstance(value, str) and pa.types.is_timestamp(kind):
        value = parse_instant(value)
    elif isinstance(value, str) and pa.types.is_date(kind):
        value = parse_instant(value).date()
    elif isinstance(value, str) and pa.types.is_binary(kind):
        value = value.encode()
    return pc.fill_null(pc.equal(column, pa.scalar(value, kind)), False)


def plain(rows: pa.Table) -> Iterator[dict[str, Value]]:
    """Each row as JSON has it: times as ISO 8601 text, bytes as hexadecimal digits."""
    for row in rows.to_pylist():
        yield {name: _value(value) for name, value in row.items()}


def _value(value: Any) -> Value:
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)


def _row(change: RowChangeSummary, row: dict[str, Any]) -> RowChange:
    return RowChange(
        scope=change.scope,
        dataset=change.dataset,
        rule=change.rule,
        action=change.action,
        reason=change.reason,
        owner=change.owner,
        row=row,
    )
