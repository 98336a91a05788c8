"""Whether rows to append repeat a key that earlier blocks hold.

The answer is exact: a block is passed over only where its statistics show that some key column
lies wholly below or above the new rows; of any other block the key columns are read. With a time
in the key and rows that arrive in its order, nothing is read but footers.
"""

from __future__ import annotations

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
        with open_block(blobs, block.digest) as file:
            if _apart(file.metadata, ranges):
                continue
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


def _apart(metadata: pq.FileMetaData, ranges: _Ranges) -> bool:
    group = metadata.row_group(0)  # a block is one row group
    for position in range(metadata.num_columns):
        column = group.column(position)
        if column.path_in_schema not in ranges or not column.is_stats_set:
            continue
        statistics = column.statistics
        if statistics is None or not statistics.has_min_max:
            continue
        low, high = ranges[column.path_in_schema]
        if _aware(statistics.max) < low or _aware(statistics.min) > high:
            return True
    return False


def _aware(value: Any) -> Any:
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) and not value.tzinfo else value
