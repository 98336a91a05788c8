"""Whether rows to append repeat a key that earlier blocks hold.

The answer is exact: a block is passed over only where its statistics show that some key column
lies wholly below or above the new rows; of any other block the key columns are read. With a time
in the key and rows that arrive in its order, nothing is read but footers, and of each block once in
a process: whoever appends a thousand times does not open a million files.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from everloop.core.dataset import Block
from everloop.data.blocks import open_block
from everloop.ports.blobs import BlobStore

__all__ = ["repeated"]

_Ranges = dict[str, tuple[Any, Any]]

#: Of blocks and key columns, as far as footers tell; a block never changes under its digest.
_footers: dict[tuple[str, tuple[str, ...]], _Ranges] = {}
_MOST_FOOTERS = 65_536


def repeated(
    blobs: BlobStore,
    blocks: Iterable[tuple[Block, np.ndarray | None]],
    rows: pa.Table,
    key: Sequence[str],
) -> np.ndarray:
    """The rows, ascending, whose key stands in one of `blocks`.

    Args:
        blobs: Holds the blocks.
        blocks: Earlier rows, each block with the mask of those that count, or None for all; they
            have the key columns, in the types of `rows`.
        rows: New rows, without nulls in the key.
        key: Names of the key columns.
    """
    if not rows.num_rows:
        return np.empty(0, dtype=np.int64)
    ranges = {name: _range(rows.column(name)) for name in key}
    fresh = _frame(rows, key).with_row_index("__row")
    found = []
    for block, mask in blocks:
        if _apart(_told(blobs, block.digest, tuple(key)), ranges):
            continue
        with open_block(blobs, block.digest) as file:
            earlier = _frame(file.read(columns=list(key)), key)
        if mask is not None:
            earlier = earlier.filter(pl.Series(mask))
        found.append(fresh.join(earlier, on=list(key), how="semi")["__row"].to_numpy())
    if not found:
        return np.empty(0, dtype=np.int64)
    return np.unique(np.concatenate(found)).astype(np.int64)


def _frame(rows: pa.Table, key: Sequence[str]) -> pl.DataFrame:
    frame = pl.from_arrow(rows.select(list(key)))
    assert isinstance(frame, pl.DataFrame)
    return frame


def _range(column: pa.ChunkedArray) -> tuple[Any, Any]:
    found = pc.min_max(column)
    return found["min"].as_py(), found["max"].as_py()


def _told(blobs: BlobStore, digest: str, key: tuple[str, ...]) -> _Ranges:
    """What the footer of a block says of its key columns: the least and the greatest value."""
    found = _footers.get((digest, key))
    if found is None:
        with open_block(blobs, digest) as file:
            found = _ranges(file.metadata, key)
        while len(_footers) >= _MOST_FOOTERS:  # the oldest half; other threads may do so, too
            for old in list(itertools.islice(_footers, _MOST_FOOTERS // 2)):
                _footers.pop(old, None)
        _footers[digest, key] = found
    return found


def _ranges(metadata: pq.FileMetaData, key: tuple[str, ...]) -> _Ranges:
    group = metadata.row_group(0)  # a block is one row group
    found = {}
    for position in range(metadata.num_columns):
        column = group.column(position)
        if column.path_in_schema not in key or not column.is_stats_set:
            continue
        statistics = column.statistics
        if statistics is not None and statistics.has_min_max:
            found[column.path_in_schema] = _aware(statistics.min), _aware(statistics.max)
    return found


def _apart(told: _Ranges, ranges: _Ranges) -> bool:
    for name, (least, greatest) in told.items():
        low, high = ranges[name]
        if greatest < low or least > high:
            return True
    return False


def _aware(value: Any) -> Any:
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) and not value.tzinfo else value
