"""Where tracking is measured: a fresh SQLite file or PostgreSQL database for each comparison.

Each place holds an empty workspace, the raw limit on tables of its own, and what MLflow is told to
keep its tables in: the same kind of database for all.
"""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from benchmarks.harness import Context, PeerEnv, Row
from benchmarks.sides import Server, everloop_server
from everloop.workspace import Workspace

__all__ = ["PEER", "Limit", "Place", "Steps", "measured", "peer_of", "places", "values"]

#: MLflow and its driver of PostgreSQL.
MLFLOW = ("mlflow==3.17.2", "psycopg2-binary==2.9.13")
PEER = "MLflow 3.17.2"
COLUMNS = (
    "run BIGINT, key BIGINT, step BIGINT, at BIGINT, value DOUBLE PRECISION, is_nan BOOLEAN, "
    "PRIMARY KEY (run, key"
)
POINT = "INSERT INTO point VALUES ({marks})"
LATEST = (
    "INSERT INTO latest VALUES ({marks}) ON CONFLICT (run, key) DO UPDATE "
    "SET step = excluded.step, at = excluded.at, value = excluded.value"
)
SERIES = "SELECT step, at, value, is_nan FROM point WHERE run = 1 AND key = 1"

#: A row of this area.
measured = partial(Row, area="tracking")


class Limit:
    """Tables of our own and statements by hand, on the driver, as durable as ours."""

    def __init__(self, place: str) -> None:
        self.is_sqlite = place.endswith(".sqlite")
        if self.is_sqlite:
            self.connection: Any = sqlite3.connect(place, isolation_level=None)
            self.connection.execute("PRAGMA journal_mode=WAL")
            self.connection.execute("PRAGMA synchronous=FULL")
        else:
            import psycopg

            self.connection = psycopg.connect(place, autocommit=True)
        tail = " WITHOUT ROWID" if self.is_sqlite else ""
        self.connection.execute(f"CREATE TABLE point ({COLUMNS}, step, at, value, is_nan)){tail}")
        self.connection.execute(f"CREATE TABLE latest ({COLUMNS})){tail}")
        marks = ", ".join(["?" if self.is_sqlite else "%s"] * 6)
        self.point, self.latest = POINT.format(marks=marks), LATEST.format(marks=marks)

    def log(self, steps: range) -> None:
        """One point for each step, and the latest of them, in one transaction."""
        rows = [(1, 1, s, s, s / 7, False) for s in steps]
        cursor = self.connection.cursor()
        cursor.execute("BEGIN IMMEDIATE" if self.is_sqlite else "BEGIN")
        if self.is_sqlite:
            cursor.executemany(self.point, rows)
        elif len(rows) == 1:
            cursor.execute(self.point, rows[0])
        else:
            with cursor.copy("COPY point FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)
        cursor.execute(self.latest, rows[-1])
        cursor.execute("COMMIT")

    def name(self, size: int) -> str:
        """What `log` does."""
        if self.is_sqlite:
            return "executemany and an upsert in one transaction (WAL, synchronous FULL)"
        put = "INSERT" if size == 1 else "COPY"
        return f"{put} and an upsert in one transaction (psycopg, synchronous commit)"

    def history(self) -> list[tuple[int, int, float, bool]]:
        """All points that were logged."""
        found: list[Any] = self.connection.execute(f"{SERIES} ORDER BY at, step").fetchall()
        return found

    def chart(self, steps: list[int]) -> list[tuple[int, int, float, bool]]:
        """The points at these steps."""
        wanted = ", ".join(map(str, steps))
        query = f"{SERIES} AND step IN ({wanted}) ORDER BY step"
        found: list[Any] = self.connection.execute(query).fetchall()
        return found


class Steps:
    """The next steps for each side, so that all sides log the same points."""

    def __init__(self) -> None:
        self._next: dict[str, int] = {}

    def take(self, side: str, size: int) -> range:
        """As many steps after the last one of this side."""
        first = self._next.get(side, 0)
        self._next[side] = first + size
        return range(first, first + size)

    def last(self, side: str) -> int:
        """The last step that this side took."""
        return self._next[side] - 1


@dataclass(frozen=True)
class Place:
    """A database that nobody used before, and a folder.

    Attributes:
        database: ``SQLite`` or ``PostgreSQL``.
        folder: For files; empty.
        url: Of the PostgreSQL database; empty for SQLite.
    """

    database: str
    folder: Path
    url: str = ""

    @property
    def store(self) -> str:
        """MLflow's name of the database."""
        if not self.url:
            return f"sqlite:///{self.folder}/mlflow.db"
        return "postgresql+psycopg2://" + self.url.partition("://")[2]

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Workspace]:
        """A workspace in this place."""
        location = self.url or str(self.folder / "ws")
        with Workspace(location, objects=str(self.folder / "objects")) as opened:
            yield opened

    @contextlib.contextmanager
    def limit(self) -> Iterator[Limit]:
        """The raw limit in this place."""
        made = Limit(self.url or str(self.folder / "limit.sqlite"))
        try:
            yield made
        finally:
            made.connection.close()

    def server(self) -> contextlib.AbstractContextManager[Server]:
        """`everloop server` on a workspace in this place; its objects are in `folder/objects`."""
        return everloop_server(self.folder, self.url)


@contextlib.contextmanager
def _place(context: Context, database: str) -> Iterator[Place]:
    with tempfile.TemporaryDirectory() as name:
        if database == "SQLite":
            yield Place(database, Path(name))
            return
        import psycopg

        made = f"everloop_bench_{secrets.token_hex(6)}"
        url = urlunsplit(urlsplit(context.postgres)._replace(path=f"/{made}"))
        with psycopg.connect(context.postgres, autocommit=True) as server:
            server.execute(f"CREATE DATABASE {made} TEMPLATE template0")
            try:
                yield Place(database, Path(name), url)
            finally:
                server.execute(f"DROP DATABASE {made} WITH (FORCE)")


def places(
    context: Context,
) -> Iterator[contextlib.AbstractContextManager[Place]]:
    """One place on each database that is to be measured."""
    for database in ["SQLite", "PostgreSQL"] if context.postgres else ["SQLite"]:
        yield _place(context, database)


def peer_of(context: Context) -> PeerEnv:
    """MLflow's environment."""
    return context.peer_env("mlflow", MLFLOW)


def values(points: list[Any]) -> list[tuple[int, float]]:
    """Step and value of each point, ours or the limit's."""
    return [
        (point[0], point[2]) if isinstance(point, tuple) else (point.step, point.value)
        for point in points
    ]
