"""The store: what versions of data cost beside the least that such work can take, and the peers."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import store_rows, store_sources
from benchmarks.harness import Context, Row, bench
from benchmarks.store_files import large_file_rows, small_file_rows


@bench
def small_files(context: Context) -> list[Row]:
    return small_file_rows(context)


@bench
def large_file(context: Context) -> list[Row]:
    return large_file_rows(context)


@bench
def tables_saved_again(context: Context) -> Iterator[Row]:
    return store_rows.save_rows(context)


@bench
def tables_compared(context: Context) -> Iterator[Row]:
    return store_rows.diff_rows(context)


@bench
def table_pulled(context: Context) -> Iterator[Row]:
    return store_sources.pull_rows(context)


@bench
def a_subject_erased(context: Context) -> Iterator[Row]:
    return store_rows.erase_rows(context)
