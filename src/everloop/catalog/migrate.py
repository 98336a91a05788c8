"""Brings the tables of a catalog to the newest revision: forward only, under a lock, from code.

Alembic is imported only when there is something to do; an up-to-date catalog costs one query.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text

from everloop.errors import BackendError

__all__ = ["HEAD", "REVISIONS", "upgrade"]

#: Every revision there is, oldest first; a test compares them with the files.
REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006", "0007", "0009")
HEAD = REVISIONS[-1]


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
        if found and found not in REVISIONS:
            raise BackendError(
                f"this catalog is at revision {found}, newer than this Everloop knows ({HEAD})",
                hint="upgrade Everloop: pip install --upgrade everloop",
            )
        _run(connection)


def _current(connection: Connection) -> str:
    if not inspect(connection).has_table("alembic_version"):
        return ""
    return str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar() or "")


def _run(connection: Connection) -> None:
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    scripts = ScriptDirectory.from_config(config)
    with EnvironmentContext(
        config, scripts, fn=lambda revision, _: scripts._upgrade_revs(HEAD, revision)
    ) as environment:
        environment.configure(connection=connection, transactional_ddl=False)
        environment.run_migrations()
