"""Stages and links of versions, locations of experiments, models that runs read."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    for table, name, default in (
        ("experiments", "location", ""),
        ("model_versions", "stage", "None"),
        ("model_versions", "run_link", ""),
    ):
        op.add_column(table, sa.Column(name, sa.Text, nullable=False, server_default=default))
    op.create_table(
        "run_model_inputs",
        sa.Column("run_pk", sa.BigInteger, sa.ForeignKey("runs.pk"), primary_key=True),
        sa.Column("model_id", sa.Text, primary_key=True),
    )
