"""Brings the tables of a catalog to the newest revision: forward only, under a lock, from code.

An empty catalog gets the tables that `tables.py` declares, at once: to make each as it was at first
and then alter it takes several times as long, and a test keeps the two ways equal. Alembic is
imported only for an older catalog; an up-to-date one costs one query.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_mock_engine, inspect, text

from everloop.catalog import tables
from everloop.errors import BackendError

__all__ = ["HEAD", "REVISIONS", "require", "run", "upgrade"]

#: Every revision there is, oldest first; a test compares them with the files.
REVISIONS = tuple(f"{number:04}" for number in range(1, 14))
HEAD = REVISIONS[-1]

# As Alembic makes it.
_VERSION_TABLE = (
    "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL,"
    " CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"
)


def upgrade(engine: Engine, lock: Callable[[Connection], None]) -> None:
    """Migrate to ``HEAD``; `lock` keeps other processes out (SQLite's BEGIN IMMEDIATE does).

    Raises:
        BackendError: If the catalog was made by a newer Everloop.
    """
    with engine.connect() as connection, connection.begin():
        if _current(connection) == HEAD:
            return
    with engine.connect() as connection, connection.begin():
        lock(connection)
        found = _current(connection)  # somebody may have done it while we waited
        if found == HEAD:
            return
        if not found:
            _create(connection)
        elif found in REVISIONS:
            run(connection)
        else:
            raise BackendError(
                f"this catalog is at revision {found}, newer than this Everloop knows ({HEAD})",
                hint="upgrade Everloop: pip install --upgrade everloop",
            )


def require(engine: Engine) -> None:
    """Refuse a catalog that is not at ``HEAD``; nothing is changed.

    Raises:
        BackendError: If it would have to be migrated, or was made by a newer Everloop.
    """
    with engine.connect() as connection, connection.begin():
        found = _current(connection)
    if found != HEAD:
        raise BackendError(
            f"this catalog is at revision {found or 'none'}, this Everloop works at {HEAD}, and it"
            " is not to be changed here",
            hint="use the version of Everloop that is live there, or upgrade that one first",
        )


def run(connection: Connection, to: str = HEAD) -> None:
    """Run the migrations up to revision `to`, one by one, from where the catalog is."""
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    scripts = ScriptDirectory.from_config(config)
    with EnvironmentContext(
        config, scripts, fn=lambda revision, _: scripts._upgrade_revs(to, revision)
    ) as environment:
        environment.configure(connection=connection, transactional_ddl=False)
        environment.run_migrations()


def _current(connection: Connection) -> str:
    if not inspect(connection).has_table("alembic_version"):
        return ""
    return str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar() or "")


def _create(connection: Connection) -> None:
    """Make all tables as they are declared now, in the transaction of `connection`."""
    statements = [
        *_declared(connection.dialect.name),
        _VERSION_TABLE,
        f"INSERT INTO alembic_version VALUES ('{HEAD}')",
    ]
    cursor = connection.connection.cursor()
    if connection.dialect.name == "sqlite":  # takes no more than one at a time in a transaction
        for statement in statements:
            cursor.execute(statement)
    else:
        cursor.execute(";\n".join(statements))
    cursor.close()


@cache
def _declared(dialect: str) -> tuple[str, ...]:
    """The statements that make what `tables.py` declares, in the SQL of `dialect`."""
    statements: list[str] = []

    def note(statement: Any, *_: Any, **__: Any) -> None:
        statements.append(str(statement.compile(dialect=engine.dialect)))

    engine = create_mock_engine(f"{dialect}://", note)
    tables.metadata.create_all(engine, checkfirst=False)
    return tuple(statements)
