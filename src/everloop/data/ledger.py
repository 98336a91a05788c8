"""The row ledger's bytes: the rows that a rule dropped, set aside, changed or only warned of.

One Parquet object for each (commit or step, rule). A dropped row stands there whole, since no
version has it; of a row that was kept, its key and what the rule looked at.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import date, datetime
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from everloop.core.dataset import Block, RowAction, RowChange, RowChangeSummary, Value
from everloop.core.quality import MASKED
from everloop.core.schema import Schema
from everloop.core.time import parse_instant
from everloop.data.blocks import open_block, write_block
from everloop.data.by_key import places
from everloop.data.checks import BrokenRule, CheckReport
from everloop.data.repairs import Change
from everloop.errors import Fault, InvalidInput
from everloop.ports.blobs import BlobStore

__all__ = [
    "Entry",
    "Found",
    "entries_of",
    "entry",
    "equal_rows",
    "masked",
    "page_of",
    "plain",
    "repairs_of",
    "rows_of",
    "rows_of_keys",
    "store_entry",
]

_ACTIONS: dict[str, RowAction] = {"drop": "dropped", "warn": "warned", "quarantine": "quarantined"}
#: Rows of a row group: what is in memory when an entry is searched or paged through.
_GROUP = 65_536


class Entry(NamedTuple):
    """Rows for the ledger, stored but not yet told of by the catalog."""

    rule: str
    action: RowAction
    reason: str
    owner: str
    block: Block


def store_entry(blobs: BlobStore, rows: pa.Table) -> Block:
    """Store the rows of an entry so that it can be looked through part by part."""
    return write_block(blobs, rows, group=_GROUP)


def entry(
    blobs: BlobStore, rule: str, action: RowAction, reason: str, owner: str, rows: pa.Table
) -> Entry:
    """Store what was done to `rows`."""
    return Entry(rule, action, reason, owner, store_entry(blobs, rows))


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
            action = _ACTIONS[broken.on_fail]
            who = broken.owner or owner
            entries.append(entry(blobs, broken.rule, action, broken.reason, who, rows))
    return entries


def repairs_of(blobs: BlobStore, changes: Sequence[Change], owner: str) -> list[Entry]:
    """Store what repairs changed; `owner` where a rule names none."""
    return [
        entry(
            blobs,
            change.rule.rule,
            "changed",
            f"{change.rule.reason}; corrected by {change.rule.repair}",
            change.rule.owner or owner,
            change.rows,
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
    blobs: BlobStore,
    change: RowChangeSummary,
    where: Mapping[str, Any],
    limit: int,
    hidden: Collection[str] = (),
) -> Found:
    """The rows of one entry whose columns equal `where`; none if a column is not in it.

    They are sought row group by row group: first in the columns of `where` alone, then the rows
    that were found are read.

    Args:
        hidden: Columns of personal data, whose values are masked.

    Raises:
        InvalidInput: With every value of `where` that its column cannot hold.
    """
    with open_block(blobs, change.detail) as file:
        columns = file.schema_arrow.names
        if not set(where) <= set(columns):
            return Found(columns, [])
        found: list[RowChange] = []
        for part in _parts(file, where):
            rows = masked(part.slice(0, limit - len(found)), hidden)
            found += [_row(change, row) for row in plain(rows)]
            if len(found) >= limit:
                break
    return Found(columns, found)


def _parts(file: pq.ParquetFile, where: Mapping[str, Any]) -> Iterator[pa.Table]:
    """The rows that equal `where`, in parts of bounded size."""
    for group in range(file.num_row_groups):
        mask = None
        if where:
            mask = equal_rows(file.read_row_group(group, columns=list(where)), where)
            if not pc.any(mask).as_py():
                continue
        start = 0
        # An entry of an earlier release is one row group, of any size.
        for batch in file.iter_batches(_GROUP, row_groups=[group]):
            rows = pa.Table.from_batches([batch])
            if mask is not None:
                rows = rows.filter(mask.slice(start, len(batch)))
            start += len(batch)
            if rows.num_rows:
                yield rows


def rows_of_keys(
    blobs: BlobStore, change: RowChangeSummary, keys: pa.Table, hidden: Collection[str] = ()
) -> Iterator[tuple[int, RowChange]]:
    """The rows of one entry that have one of these keys, each with the number of the key.

    Only the key columns are read of an entry that has none.

    Args:
        keys: Key columns; an entry that lacks one of them has no such row.
        hidden: Columns of personal data, whose values are masked.
    """
    names = keys.column_names
    with open_block(blobs, change.detail) as file:
        if not set(names) <= set(file.schema_arrow.names):
            return
        for group in range(file.num_row_groups):
            there = file.read_row_group(group, columns=names)
            try:
                at = places(keys, there.select(names).cast(keys.schema))
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
                return  # of a time when the key was of another type
            hits = np.flatnonzero(at >= 0)
            if len(hits):
                rows = file.read_row_group(group).take(pa.array(hits))
                for n, row in zip(at[hits].tolist(), plain(masked(rows, hidden)), strict=True):
                    yield n, _row(change, row)


def page_of(blobs: BlobStore, detail: str, start: int, limit: int) -> pa.Table:
    """`limit` rows of an entry from row `start` on; only their row groups are read."""
    with open_block(blobs, detail) as file:
        parts, before = [], 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if before + rows > start and before < start + limit:
                first = max(start - before, 0)
                parts.append(
                    file.read_row_group(group).slice(first, start + limit - before - first)
                )
            before += rows
        return pa.concat_tables(parts) if parts else file.schema_arrow.empty_table()


def masked(rows: pa.Table, hidden: Collection[str]) -> pa.Table:
    """The rows with columns of personal data, also as new values, as texts that hide them."""
    for n, name in enumerate(rows.column_names):
        if name in hidden or name.removesuffix(".new") in hidden:
            there = rows.column(name).is_valid()
            texts = pc.if_else(there, pa.scalar(MASKED), pa.scalar(None, pa.string()))
            rows = rows.set_column(n, name, texts)
    return rows


def equal_rows(rows: pa.Table, where: Mapping[str, Any]) -> pa.ChunkedArray:
    """Which rows have these values; `where` is not empty, and its columns are there.

    Raises:
        InvalidInput: With every value that its column cannot hold.
    """
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
