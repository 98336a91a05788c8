"""Tracking, against the same work by hand and against MLflow with its defaults.

On SQLite, and with ``--postgres URL`` on PostgreSQL too, in databases made for it beside that one.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import (
    tracking_files,
    tracking_log,
    tracking_served,
    tracking_start,
    tracking_store,
)
from benchmarks.harness import Context, Row, bench


@bench
def log(context: Context) -> Iterator[Row]:
    yield from tracking_log.rows(context)


@bench
def search(context: Context) -> Iterator[Row]:
    yield from tracking_store.search_rows(context)


@bench
def series(context: Context) -> Iterator[Row]:
    yield from tracking_store.series_rows(context)


@bench
def served(context: Context) -> Iterator[Row]:
    yield from tracking_served.rows(context)


@bench
def files(context: Context) -> Iterator[Row]:
    yield from tracking_files.rows(context)


@bench
def start(context: Context) -> Iterator[Row]:
    yield from tracking_start.rows(context)
