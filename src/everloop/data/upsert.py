"""Rows that come after a version: those that update it by key, and those that it has not yet."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from everloop.core.dataset import DatasetVersion
from everloop.core.schema import Schema
from everloop.data.arrow import arrow_type
from everloop.data.blocks import open_block
from everloop.data.by_key import places
from everloop.data.layout import Positions
from everloop.data.match import match
from everloop.data.replace import Plan, plan_updates, plan_whole
from everloop.data.rowhash import Hashes, row_hashes
from everloop.data.rows import counting, read_rows
from everloop.ports.blobs import BlobStore

__all__ = ["plan_upsert", "without_known"]

#: Delta blocks after which a version is put in order as a whole.
_MOST_DELTAS = 16


def plan_upsert(
    blobs: BlobStore, base: DatasetVersion, schema: Schema, rows: pa.Table, hashes: Hashes
) -> Plan:
    """Store what makes `base` a version in which `rows` stand for those of equal key.

    A row that is there keeps its place; new ones stand at the end, in their order. Only the key
    columns of `base` are read, except now and then, when the small blocks that updates leave are
    put together.
    """
    at_old = places(read_rows(blobs, base, list(schema.key)), rows.select(list(schema.key)))
    if sum(block.delta for block in base.blocks) >= _MOST_DELTAS:
        whole = _whole(read_rows(blobs, base, list(base.schema.names)), rows, at_old)
        return plan_whole(blobs, base, schema, whole, row_hashes(whole))
    return plan_updates(blobs, base, schema, rows, hashes, at_old)


def _whole(old: pa.Table, new: pa.Table, at_old: Positions) -> pa.Table:
    for field in new.schema:
        if field.name not in old.column_names:
            old = old.append_column(field.name, pa.nulls(old.num_rows, field.type))
    both = pa.concat_tables([old.select(new.column_names), new])
    order = np.arange(old.num_rows)
    there = at_old >= 0
    order[at_old[there]] = old.num_rows + np.flatnonzero(there)
    return both.take(pa.array(np.append(order, old.num_rows + np.flatnonzero(~there))))


def without_known(
    blobs: BlobStore,
    base: DatasetVersion,
    rows: pa.Table,
    schema: Schema,
    column: str = "",
    value: Any = None,
) -> pa.Table:
    """The rows that `base` has not: a row that it has once, and that comes twice, is new once.

    Args:
        rows: In the types of `schema`.
        column: Only rows of `base` count whose value in it is `value` or more, or null; blocks
            that have none are not read. Empty: all of them.
    """
    if not rows.num_rows:
        return rows
    known = []
    names = [name for name in schema.names if name in base.schema.names]
    wanted = pa.schema([pa.field(name, arrow_type(schema.field(name).type)) for name in names])
    for block, mask in counting(blobs, base):
        with open_block(blobs, block.digest) as file:
            have = [name for name in names if name in file.schema_arrow.names]
            if column and _all_below(file, column, value):
                continue
            part = file.read(columns=have)
        if mask is not None:
            part = part.filter(pa.array(mask))
        if column and column in have:
            late = pc.fill_null(
                pc.greater_equal(part[column], pa.scalar(value, part[column].type)), True
            )
            part = part.filter(late)
        known.append(row_hashes(part.cast(pa.schema([wanted.field(name) for name in have]))))
    there = match(row_hashes(rows), Hashes.concat(known))
    return rows if (there < 0).all() else rows.filter(pa.array(there < 0))


def _all_below(file: Any, column: str, value: Any) -> bool:
    names = file.schema_arrow.names
    if column not in names:
        return False
    at = names.index(column)
    for group in range(file.metadata.num_row_groups):
        statistics = file.metadata.row_group(group).column(at).statistics
        if statistics is None or not statistics.has_min_max or statistics.null_count:
            return False
        if statistics.max >= value:
            return False
    return True
