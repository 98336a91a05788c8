"""Automations beside loops, firings as a queue with leases, approvals within runs, webhooks in."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

_INSTANT = sa.BigInteger


def upgrade() -> None:
    for column in (
        sa.Column("action", sa.Text, nullable=False, server_default="train"),
        sa.Column("due_at", _INSTANT, nullable=False, server_default="0"),
        sa.Column("slots", sa.Integer, nullable=False, server_default="1"),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("holder", sa.Text, nullable=False, server_default=""),
        sa.Column("fence", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("lease_until", _INSTANT),
        sa.Column("body", sa.Text, nullable=False, server_default="{}"),
    ):
        op.add_column("firings", column)
    op.execute("UPDATE firings SET due_at = created_at")
    op.create_index("firings_queue", "firings", ["outcome", "due_at", "id"])
    op.create_table(
        "automations",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("since", sa.Text, nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("updated_at", _INSTANT, nullable=False),
    )
    op.create_table(
        "watched_files",
        sa.Column("pattern", sa.Text, primary_key=True),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("updated_at", _INSTANT, nullable=False),
    )
    op.create_table(
        "run_approvals",
        sa.Column("run_id", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("question", sa.Text, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("four_eyes", sa.Boolean, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("asked_at", _INSTANT, nullable=False),
        sa.Column("expires_at", _INSTANT),
        sa.Column("at", _INSTANT),
    )
    op.create_index("run_approvals_state", "run_approvals", ["state", "expires_at"])
    op.create_table(
        "hook_deliveries",
        sa.Column("hook", sa.Text, primary_key=True),
        sa.Column("delivery", sa.Text, primary_key=True),
        sa.Column("at", _INSTANT, nullable=False),
    )
    op.create_index("hook_deliveries_at", "hook_deliveries", ["at"])
