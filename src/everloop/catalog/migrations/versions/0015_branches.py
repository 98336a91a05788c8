"""Branches of datasets: lines of versions beside the main one, and versions with two parents."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    for column in (
        sa.Column("branch", sa.Text, nullable=False, server_default="main"),
        sa.Column("merged", sa.Integer, nullable=False, server_default="0"),
    ):
        op.add_column("dataset_versions", column)
    op.create_table(
        "dataset_branches",
        sa.Column("dataset", sa.Text, sa.ForeignKey("datasets.name"), primary_key=True),
        sa.Column("branch", sa.Text, primary_key=True),
        sa.Column("base", sa.Integer, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
    )
