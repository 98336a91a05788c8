"""Versions of directories and files, beside those of tables."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    for column in (
        sa.Column("kind", sa.Text, nullable=False, server_default="table"),
        sa.Column("root", sa.Text, nullable=False, server_default=""),
        sa.Column("files", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("size", sa.BigInteger, nullable=False, server_default="0"),
    ):
        op.add_column("dataset_versions", column)
