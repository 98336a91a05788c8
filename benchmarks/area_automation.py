"""Automation: what a verdict on a candidate costs."""

from __future__ import annotations

from benchmarks.evaluation_rows import bootstrap_rows
from benchmarks.harness import Context, Row, bench


@bench
def paired_bootstrap(context: Context) -> list[Row]:
    return bootstrap_rows(context)
