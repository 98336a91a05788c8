"""Erasures of subjects, what must stay, and how long versions stay."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"

_INSTANT = sa.BigInteger


def upgrade() -> None:
    content = sa.Column("content", sa.Text, nullable=False, server_default="")
    op.add_column("dataset_versions", content)
    op.create_table(
        "erasures",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("dataset", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("work", sa.Text, nullable=False),
        sa.Column("receipt", sa.Text, nullable=False),
        sa.Column("asked_at", _INSTANT, nullable=False),
        sa.Column("done_at", _INSTANT),
    )
    op.create_index("erasures_state", "erasures", ["state", "asked_at"])
    op.create_table(
        "erased_objects",
        sa.Column("digest", sa.Text, primary_key=True),
        sa.Column("erasure", sa.Text, sa.ForeignKey("erasures.id"), nullable=False),
    )
    op.create_index("erased_objects_erasure", "erased_objects", ["erasure"])
    op.create_table(
        "holds",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("dataset", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
    )
    op.create_table(
        "retention_rules",
        sa.Column("dataset", sa.Text, sa.ForeignKey("datasets.name"), primary_key=True),
        sa.Column("keep_us", sa.BigInteger, nullable=False),
        sa.Column("keep_last", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("updated_at", _INSTANT, nullable=False),
    )
