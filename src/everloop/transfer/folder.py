"""Opens the folder of another workspace for a merge: a copy of its catalog, never the original."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from sqlalchemy import select

from everloop.catalog import tables
from everloop.catalog.engine import Catalog
from everloop.catalog.transaction import Transaction
from everloop.core.time import Clock
from everloop.errors import BackendError, InvalidInput, StateError

__all__ = ["catalog_copy"]

_OURS = {"alembic_version", "events", "runs", "objects"}


@contextmanager
def catalog_copy(folder: Path, home: Path, clock: Clock) -> Iterator[Catalog]:
    """A copy of the catalog in `folder`, as of one moment; removed at the end of the block.

    Args:
        folder: The workspace that is merged.
        home: The workspace that takes it in; the copy lies there while it is needed.
        clock: Tells whether a lease is still held.

    Raises:
        InvalidInput: If the folder is no workspace, or the same one.
        StateError: If something writes to it.
        BackendError: If it cannot be read, or was made by a newer Everloop.
    """
    original = folder / "catalog.sqlite"
    if not original.is_file():
        raise InvalidInput(
            f"{folder} is no workspace: there is no catalog.sqlite in it",
            hint="name the .everloop folder itself",
        )
    if home.exists() and os.path.samefile(folder, home):
        raise InvalidInput(f"{folder} is this workspace itself")
    home.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="merge-", dir=home) as temporary:
        copy = Path(temporary) / "catalog.sqlite"
        try:
            _refuse_writers(original)
            _copy(original, copy)
        except sqlite3.Error as error:
            raise BackendError(
                f"{original} cannot be read: {error}",
                hint="copy the whole folder again, with the files that end in -wal and -shm",
            ) from error
        with closing(_open(copy, folder, clock)) as catalog:
            with catalog.read() as tx:
                _refuse_leases(tx, folder, clock.now())
            yield catalog


def _refuse_writers(original: Path) -> None:
    with closing(sqlite3.connect(original, timeout=0, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise StateError(
                    f"{original.parent} is being written",
                    hint="merge it when what writes to it has ended",
                ) from error
            if "readonly" not in str(error):
                raise


def _copy(original: Path, copy: Path) -> None:
    address = f"{original.absolute().as_uri()}?mode=ro"
    with (
        closing(sqlite3.connect(address, uri=True)) as source,
        closing(sqlite3.connect(copy)) as target,
    ):
        names = {row[0] for row in source.execute("SELECT name FROM sqlite_master")}
        if not names >= _OURS:
            raise InvalidInput(f"{original} is no catalog of Everloop's")
        source.backup(target)


def _open(copy: Path, folder: Path, clock: Clock) -> Catalog:
    try:
        return Catalog(f"sqlite:///{copy}", clock=clock)
    except BackendError as error:
        said = error.message.replace("this catalog", f"the catalog of {folder}")
        raise BackendError(said, hint=error.hint) from error


def _refuse_leases(tx: Transaction, folder: Path, now: datetime) -> None:
    runs, leases = tables.runs, tables.leases
    held = [
        (f"run {row.id}", row.lease_until)
        for row in tx.all(
            select(runs.c.id, runs.c.lease_until).where(
                runs.c.state == "running", runs.c.lease_until > now
            )
        )
    ]
    held += [(row.name, row.until) for row in tx.all(select(leases).where(leases.c.until > now))]
    if held:
        what, until = max(held, key=lambda pair: pair[1])
        raise StateError(
            f"{folder} is being written: its {what} is held until {until:%Y-%m-%d %H:%M:%S} UTC",
            hint="end what writes to it, or merge after that time",
        )
