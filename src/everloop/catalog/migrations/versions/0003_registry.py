"""Protected aliases, approvals, the trash of the registry, and when a run was deleted."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_INSTANT = sa.BigInteger


def upgrade() -> None:
    op.create_table(
        "alias_rules",
        sa.Column("name", sa.Text, sa.ForeignKey("models.name"), primary_key=True),
        sa.Column("alias", sa.Text, primary_key=True),
        sa.Column("gates", sa.Text, nullable=False),
        sa.Column("approvals", sa.Integer, nullable=False),
        sa.Column("four_eyes", sa.Boolean, nullable=False),
        sa.Column("rollback", sa.Boolean, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("updated_at", _INSTANT, nullable=False),
    )
    op.create_table(
        "approvals",
        sa.Column("name", sa.Text, sa.ForeignKey("models.name"), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("alias", sa.Text, primary_key=True),
        sa.Column("actor", sa.Text, primary_key=True),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("at", _INSTANT, nullable=False),
    )
    op.create_table(
        "trash",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("deleted_at", _INSTANT, nullable=False),
    )
    op.create_index("trash_name", "trash", ["name", "deleted_at"])
    op.add_column("runs", sa.Column("deleted_at", _INSTANT))
