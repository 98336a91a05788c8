"""Packages of pipelines, and which one is in which environment."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"

_INSTANT = sa.BigInteger


def upgrade() -> None:
    op.create_table(
        "packages",
        sa.Column("digest", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("code", sa.Text, nullable=False),
        sa.Column("manifest", sa.Text, nullable=False),
        sa.Column("git", sa.Text, nullable=False),
        sa.Column("builder", sa.Text, nullable=False),
        sa.Column("built_at", _INSTANT, nullable=False),
        sa.Column("reached", sa.Text, nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
    )
    op.create_index("packages_name", "packages", ["name", "created_at"])
    op.create_table(
        "package_environments",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("environment", sa.Text, primary_key=True),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("ci", sa.Boolean, nullable=False),
        sa.Column("approvals", sa.Integer, nullable=False),
        sa.Column("updated_at", _INSTANT, nullable=False),
    )
