"""A copy of the whole catalog as of one moment, as a SQLite file, while others write."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from sqlalchemy import select

from everloop.catalog import tables
from everloop.catalog.engine import Catalog
from everloop.errors import BackendError

__all__ = ["plain_file", "snapshot"]

#: Rows that are copied together.
_AT_ONCE = 1000


def snapshot(catalog: Catalog, file: Path) -> None:
    """Write the state of the catalog to a file that is not there yet, and wait for the disk.

    Of SQLite it is taken by its own backup, of PostgreSQL in one transaction that sees one state.

    Raises:
        BackendError: If it could not be read or written.
    """
    try:
        if catalog.dialect == "sqlite":
            source = sqlite3.connect(str(catalog.file), timeout=30)
            with closing(source), closing(sqlite3.connect(file)) as target:
                source.backup(target)
        else:
            _export(catalog, file)
        plain_file(file)
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except (sqlite3.Error, OSError) as error:
        raise BackendError(
            f"the catalog could not be copied to {file}: {error}",
            hint="check the rights of the folder and the space on the disk, then do it again",
        ) from error


def _export(catalog: Catalog, file: Path) -> None:
    copy = Catalog(f"sqlite:///{file}", clock=catalog.clock, actor=catalog.actor)
    with closing(copy), catalog.read() as tx, copy.write() as to:
        for table in tables.metadata.sorted_tables:
            to.execute(table.delete())  # what a new catalog begins with
            rows = tx.execute(select(table).execution_options(yield_per=_AT_ONCE))
            for part in rows.partitions(_AT_ONCE):
                to.execute(table.insert(), [dict(row._mapping) for row in part])


def plain_file(file: Path) -> None:
    """Have everything of a SQLite database in the one file, with no log beside it."""
    if not file.exists():
        return
    with closing(sqlite3.connect(file, timeout=30, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
