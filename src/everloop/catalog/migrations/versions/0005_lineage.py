"""Datasets, jobs and runs of systems outside, for the lineage graph."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_INSTANT = sa.BigInteger


def upgrade() -> None:
    op.create_table(
        "externals",
        sa.Column("ref", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("namespace", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("facets", sa.Text, nullable=False),
        sa.Column("facet_times", sa.Text, nullable=False),
        sa.Column("at", _INSTANT, nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
    )
    op.create_index("externals_kind", "externals", ["kind", "ref"])
