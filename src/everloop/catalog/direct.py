"""Transactions on the driver's own cursor, with statements that are written out as text.

The life of a run and of its steps is written so: these statements run in every process, and to
import what puts statements together takes longer than a pipeline whose steps are all stored.
A :class:`~everloop.catalog.transaction.Transaction` is one of these too, so what is written here
serves both.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from everloop.catalog.regexp import add_regexp
from everloop.core.context import current_actor, current_cause
from everloop.core.events import Event
from everloop.core.ids import new_id
from everloop.core.time import Clock, from_micros, to_micros

__all__ = ["BUSY_MS", "Direct", "connect_sqlite", "from_json", "instant", "marks", "to_json"]

BUSY_MS = 30_000

_APPEND = (
    "INSERT INTO events (id, at, kind, subject, actor, cause, body) "
    "VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING seq"
)


class Direct:
    """A transaction. Everything within it, events included, happens or does not.

    Attributes:
        actor: Whom events name.
        now: The time of the transaction.
        dialect: ``sqlite`` or ``postgresql``.
    """

    def __init__(self, cursor: Any, dialect: str, clock: Clock, actor: str) -> None:
        self._cursor = cursor
        self.dialect = dialect
        self.actor = actor
        self.now: datetime = clock.now()

    @property
    def cursor(self) -> Any:
        """The driver's cursor."""
        return self._cursor

    def run(self, statement: str, values: Sequence[Any] = ()) -> Any:
        """Run a statement, with a ``?`` for each of `values`; the cursor, to fetch from."""
        cursor = self.cursor
        cursor.execute(_marked(statement, self.dialect), values)
        return cursor

    def run_all(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run a statement for each of `rows`."""
        self.cursor.executemany(_marked(statement, self.dialect), rows)

    def append(
        self, kind: str, subject: str, body: dict[str, Any] | None = None, *, cause: str = ""
    ) -> Event:
        """Append a fact to the event log, as part of this transaction.

        Args:
            kind: ``area.PastTense``.
            subject: What it is about, ``kind:name``.
            body: Further facts, JSON.
            cause: Id of the event that led here; the ambient cause if not given.
        """
        id_, body = new_id(), body or {}
        actor, cause = current_actor() or self.actor, cause or current_cause()
        row = (id_, to_micros(self.now), kind, subject, actor, cause, to_json(body))
        (seq,) = self.run(_APPEND, row).fetchone()
        return Event(
            seq=int(seq),
            id=id_,
            at=self.now,
            kind=kind,
            subject=subject,
            actor=actor,
            cause=cause,
            body=body,
        )


@lru_cache(maxsize=512)
def _marked(statement: str, dialect: str) -> str:
    return statement if dialect == "sqlite" else statement.replace("?", "%s")


def marks(count: int) -> str:
    """The inside of an IN list of so many values."""
    return ", ".join("?" * count)


def to_json(value: Any) -> str:
    """JSON text; NaN and infinities become null, as JSON has none."""
    return msgspec.json.encode(value).decode()


def from_json(text: str) -> Any:
    """What a column of JSON holds."""
    # Most are empty, and a search reads hundreds of them.
    return {} if text == "{}" else msgspec.json.decode(text)


def instant(micros: int | None) -> datetime | None:
    """The time in a column that may be empty."""
    return None if micros is None else from_micros(micros)


def connect_sqlite(path: str | Path, *, shared_memory: bool) -> sqlite3.Connection:
    """A connection to a catalog in a file, in autocommit until a transaction is begun.

    Args:
        path: The file, made if it is not there.
        shared_memory: Keep the write-ahead log, which needs memory shared by all processes.
    """
    connection = sqlite3.connect(path, timeout=BUSY_MS / 1000, check_same_thread=False)
    try:
        prepare_sqlite(connection, shared_memory=shared_memory)
    except BaseException:  # Ctrl-C too: nobody else would close it
        connection.close()
        raise
    return connection


def prepare_sqlite(connection: Any, *, shared_memory: bool) -> None:
    """Set up a connection to SQLite as the catalog wants it."""
    connection.isolation_level = None  # we begin transactions ourselves
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={BUSY_MS}")
    cursor.execute(f"PRAGMA journal_mode={'WAL' if shared_memory else 'DELETE'}")
    # FULL: an acknowledged commit survives a power cut, as promised.
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()
    add_regexp(connection)
