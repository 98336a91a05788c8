"""Paths of artifacts are sorted by their characters, in every database.

A folder is a range of paths only then. PostgreSQL sorts by the rules of the database's language, so
a listing of one folder read the whole table: 89 ms among 200,000 files, where it is 0.1 ms now.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        # The rows stay as they are; the index of the primary key is made anew.
        op.alter_column("artifacts", "path", type_=sa.Text(collation="C"), existing_nullable=False)
