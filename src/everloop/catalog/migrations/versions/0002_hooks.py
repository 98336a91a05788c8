"""Traces with their spans and assessments; webhooks and what is to be delivered to them."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_INSTANT = sa.BigInteger
_JSON = sa.Text
# SQLite gives an alias of the row id only to INTEGER PRIMARY KEY, never to BIGINT.
_SERIAL = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    _traces()
    _webhooks()


def _traces() -> None:
    op.create_table(
        "traces",
        sa.Column("pk", _SERIAL, primary_key=True, autoincrement=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("experiment_pk", sa.BigInteger, sa.ForeignKey("experiments.pk"), nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("client_request_id", sa.Text, nullable=False),
        sa.Column("request_preview", sa.Text, nullable=False),
        sa.Column("response_preview", sa.Text, nullable=False),
        sa.Column("started_at", _INSTANT, nullable=False),
        sa.Column("duration_ms", sa.BigInteger),
        sa.Column("told", sa.Boolean, nullable=False),
    )
    op.create_index("traces_experiment", "traces", ["experiment_pk", "started_at"])
    op.create_table(
        "trace_notes",
        sa.Column("trace_pk", sa.BigInteger, sa.ForeignKey("traces.pk"), primary_key=True),
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
    op.create_table(
        "trace_spans",
        sa.Column("trace_pk", sa.BigInteger, sa.ForeignKey("traces.pk"), primary_key=True),
        sa.Column("span_id", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("started_ns", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("content", sa.Text, nullable=False),
    )
    op.create_table(
        "trace_runs",
        sa.Column("trace_pk", sa.BigInteger, sa.ForeignKey("traces.pk"), primary_key=True),
        sa.Column("run_id", sa.Text, primary_key=True),
    )
    op.create_index("trace_runs_run", "trace_runs", ["run_id"])
    op.create_table(
        "trace_assessments",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("trace_pk", sa.BigInteger, sa.ForeignKey("traces.pk"), nullable=False),
        sa.Column("span_id", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("body", _JSON, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("source_type", sa.Text, nullable=False),
        sa.Column("source_id", sa.Text, nullable=False),
        sa.Column("rationale", sa.Text, nullable=False),
        sa.Column("metadata", _JSON, nullable=False),
        sa.Column("overrides", sa.Text, nullable=False),
        sa.Column("valid", sa.Boolean, nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("updated_at", _INSTANT, nullable=False),
    )
    op.create_index("trace_assessments_trace", "trace_assessments", ["trace_pk"])


def _webhooks() -> None:
    op.create_table(
        "webhooks",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("topics", _JSON, nullable=False),
        sa.Column("secret", sa.Text, nullable=False),
        sa.Column("active", sa.Boolean, nullable=False),
        sa.Column("since", sa.BigInteger, nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("updated_at", _INSTANT, nullable=False),
    )
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("webhook_id", sa.Text, sa.ForeignKey("webhooks.id"), nullable=False),
        sa.Column("event_id", sa.Text, nullable=False),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("payload", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("due_at", _INSTANT, nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("updated_at", _INSTANT, nullable=False),
    )
    op.create_index("webhook_deliveries_due", "webhook_deliveries", ["state", "due_at"])
    op.create_index("webhook_deliveries_webhook", "webhook_deliveries", ["webhook_id"])
