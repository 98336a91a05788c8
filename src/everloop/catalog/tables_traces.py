"""The tables of traces; ``tables.py`` has them too, as all others."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, ForeignKey, Index, Text

from everloop.catalog.define import Serial, table
from everloop.catalog.types import Instant, Json

traces = table(
    "traces",
    Column("pk", Serial, primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False, unique=True),
    Column("experiment_pk", BigInteger, ForeignKey("experiments.pk"), nullable=False),
    Column("state", Text, nullable=False),
    Column("client_request_id", Text, nullable=False),
    Column("request_preview", Text, nullable=False),
    Column("response_preview", Text, nullable=False),
    Column("started_at", Instant, nullable=False),
    Column("duration_ms", BigInteger),
    Column("told", Boolean, nullable=False),
    Index("traces_experiment", "experiment_pk", "started_at"),
)
trace_notes = table(
    "trace_notes",
    Column("trace_pk", BigInteger, ForeignKey("traces.pk"), primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
)
trace_spans = table(
    "trace_spans",
    Column("trace_pk", BigInteger, ForeignKey("traces.pk"), primary_key=True),
    Column("span_id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("started_ns", BigInteger, nullable=False),
    Column("digest", Text, nullable=False),
    Column("content", Text, nullable=False),
)
trace_runs = table(
    "trace_runs",
    Column("trace_pk", BigInteger, ForeignKey("traces.pk"), primary_key=True),
    Column("run_id", Text, primary_key=True),
    Index("trace_runs_run", "run_id"),
)
trace_assessments = table(
    "trace_assessments",
    Column("id", Text, primary_key=True),
    Column("trace_pk", BigInteger, ForeignKey("traces.pk"), nullable=False),
    Column("span_id", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("body", Json, nullable=False),
    Column("text", Text, nullable=False),
    Column("source_type", Text, nullable=False),
    Column("source_id", Text, nullable=False),
    Column("rationale", Text, nullable=False),
    Column("metadata", Json, nullable=False),
    Column("overrides", Text, nullable=False),
    Column("valid", Boolean, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    Index("trace_assessments_trace", "trace_pk"),
)
