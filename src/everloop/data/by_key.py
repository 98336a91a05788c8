"""Rows of a version found by their keys: key columns are read whole, all else for those alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from everloop.core.dataset import DatasetVersion
from everloop.data.layout import Positions, positions
from everloop.data.rows import read_rows, rows_at
from everloop.ports.blobs import BlobStore

__all__ = ["ByKey", "places", "rows_by_key", "stand_in"]


class ByKey(NamedTuple):
    """Rows that were found by key.

    Attributes:
        there: For each key that was asked for whether there is a row of it.
        rows: One row for each of those, in their order.
    """

    there: np.ndarray
    rows: pa.Table


def places(old: pa.Table, new: pa.Table) -> Positions:
    """For each row of `new` the number of the row of `old` with these values, or -1.

    Both have the same columns, in the same types; in `old` no row stands twice, and a null equals
    nothing.
    """
    there, asked = _frame(old), _frame(new)
    found = asked.join(
        there.with_row_index("__at"), on=new.column_names, how="left", maintain_order="left"
    )
    at: Positions = found["__at"].cast(pl.Int64).fill_null(-1).to_numpy()
    return at


def stand_in(asked: pa.Table, there: pa.Table, key: Sequence[str]) -> np.ndarray:
    """Which rows of `asked` have a key that stands in `there`."""
    if not asked.num_rows or not there.num_rows:
        return np.zeros(asked.num_rows, bool)
    names = list(key)
    known = there.select(names)
    left = _frame(asked.select(names).cast(known.schema)).with_row_index("__at")
    found = np.zeros(asked.num_rows, bool)
    found[left.join(_frame(known), on=names, how="semi")["__at"].to_numpy()] = True
    return found


def rows_by_key(
    blobs: BlobStore, version: DatasetVersion, keys: pa.Table, columns: Sequence[str]
) -> ByKey:
    """`columns` of the rows of a version whose key columns are `keys`."""
    names = keys.column_names
    known = read_rows(blobs, version, names)
    at = places(known, keys.cast(known.schema))
    there = at >= 0
    wanted = positions(blobs, version)[at[there]] if there.any() else np.empty(0, np.int64)
    return ByKey(there, rows_at(blobs, version, wanted, columns))


def _frame(rows: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(rows)
    assert isinstance(frame, pl.DataFrame)
    return frame
