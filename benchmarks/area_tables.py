"""Keyed tables saved again as a whole, read and compared."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import store_rows
from benchmarks.harness import Context, Row, bench


@bench
def saves(context: Context) -> Iterator[Row]:
    return store_rows.save_rows(context)


@bench
def diffs(context: Context) -> Iterator[Row]:
    return store_rows.diff_rows(context)
