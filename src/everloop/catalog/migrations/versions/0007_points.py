"""Metric points without foreign keys of their own.

Points are the hottest rows by far, and on PostgreSQL checking both keys of each took four fifths of
the time of a batch. Whoever writes points writes their latest in the same transaction, and
`metric_latest` keeps its keys: a point of a run or a name that is not there fails there.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        for column in ("run_pk", "key_pk"):
            op.drop_constraint(f"metric_points_{column}_fkey", "metric_points")
        return
    # SQLite drops no constraint: the table is made anew.
    op.rename_table("metric_points", "metric_points_before")
    op.create_table(
        "metric_points",
        sa.Column("run_pk", sa.BigInteger, primary_key=True),
        sa.Column("key_pk", sa.BigInteger, primary_key=True),
        sa.Column("step", sa.BigInteger, primary_key=True),
        sa.Column("at_ms", sa.BigInteger, primary_key=True),
        sa.Column("value", sa.Double, primary_key=True),
        sa.Column("is_nan", sa.Boolean, primary_key=True),
        sqlite_with_rowid=False,
    )
    op.execute("INSERT INTO metric_points SELECT * FROM metric_points_before")
    op.drop_table("metric_points_before")
