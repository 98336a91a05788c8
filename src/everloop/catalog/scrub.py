"""Gets what was deleted out of the catalog's files, where a database leaves it for a while."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable
from contextlib import closing

from sqlalchemy import text

from everloop.catalog.engine import Catalog
from everloop.errors import BackendError

__all__ = ["scrub"]

_PATIENCE_S = 10.0


def scrub(catalog: Catalog, tables: Iterable[str]) -> str:
    """Write tables anew without what was deleted from them.

    On SQLite the whole file is written anew and the write-ahead log is emptied, which waits for
    readers for a while; on PostgreSQL the tables are.

    Args:
        tables: Names; none is nothing to do.

    Returns:
        What is left to be done by somebody else, in words; empty if nothing is.

    Raises:
        BackendError: If the database refused.
    """
    names = sorted(set(tables))
    if not names:
        return ""
    if catalog.dialect == "sqlite":
        return _sqlite(str(catalog.file))
    with catalog.autocommit() as connection:
        for name in names:
            connection.execute(text(f'VACUUM FULL "{name}"'))
    return "the write-ahead log and its archive on the PostgreSQL server"


def _sqlite(file: str) -> str:
    try:
        with closing(sqlite3.connect(file, timeout=30, isolation_level=None)) as connection:
            connection.execute("PRAGMA secure_delete=ON")
            connection.execute("VACUUM")
            until = time.monotonic() + _PATIENCE_S
            while True:
                # Busy while somebody reads an older state; without a log it is never.
                busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                if not busy:
                    return ""
                if time.monotonic() > until:
                    break
                time.sleep(0.05)
    except sqlite3.Error as error:
        raise BackendError(
            f"the catalog {file} could not be written anew: {error}",
            hint="an erasure needs as much free space as the catalog takes; then do it again",
        ) from error
    return f"the write-ahead log {file}-wal, until those who read the catalog now are done"
