"""Automation: what a verdict on a candidate costs, and how quick the queue of triggers is."""

from __future__ import annotations

from benchmarks.automation_queue import queue_rows
from benchmarks.evaluation_rows import bootstrap_rows
from benchmarks.harness import Context, Row, bench


@bench
def paired_bootstrap(context: Context) -> list[Row]:
    return bootstrap_rows(context)


@bench
def queue(context: Context) -> list[Row]:
    return queue_rows(context)
