"""Catalog: opens SQLite or PostgreSQL, runs transactions, and appends events within them."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import (
    URL,
    ColumnElement,
    Connection,
    Engine,
    and_,
    collate,
    create_engine,
    event,
    make_url,
    select,
    text,
)
from sqlalchemy.engine import CursorResult, Row
from sqlalchemy.exc import (
    DBAPIError,
    IntegrityError,
    NoSuchModuleError,
    StatementError,
    TimeoutError,
)
from sqlalchemy.sql.base import Executable

from everloop.catalog import migrate, tables
from everloop.catalog.claims import Claims, FileClaims, SessionClaims
from everloop.catalog.network import network_type
from everloop.core.context import current_actor, current_cause
from everloop.core.events import Event
from everloop.core.ids import new_id
from everloop.core.time import Clock, SystemClock
from everloop.errors import BackendError, EverloopError, InvalidInput, MissingExtra

__all__ = ["Catalog", "Transaction"]

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")

# One writer at a time, as SQLite has it anyway: it keeps the event log gapless in order of commit,
# so that a reader with a cursor can never miss an event that was numbered early and committed late.
_WRITE_LOCK = 0x65766C70

_BUSY_MS = 30_000
_FORK_S = 5.0


class Transaction:
    """A transaction. Everything within it, events included, happens or does not."""

    def __init__(self, connection: Connection, clock: Clock, actor: str) -> None:
        self._connection = connection
        self.actor = actor
        self.now: datetime = clock.now()

    def execute(self, statement: Executable, rows: Any = None) -> CursorResult[Any]:
        """Run a statement, for each of `rows` if given."""
        if rows is None:
            return self._connection.execute(statement)
        return self._connection.execute(statement, rows)

    def all(self, statement: Executable) -> Sequence[Row[Any]]:
        """All rows."""
        return self._connection.execute(statement).all()

    def first(self, statement: Executable) -> Row[Any] | None:
        """The first row, or None."""
        return self._connection.execute(statement).first()

    def scalar(self, statement: Executable) -> Any:
        """The first column of the first row, or None."""
        return self._connection.execute(statement).scalar()

    def within(self, column: Any, folder: str) -> ColumnElement[bool]:
        """Whether a path lies below a folder, as a range of the paths' index.

        PostgreSQL may sort text by the rules of a language, in which no folder is a range.
        """
        text_ = column if self.dialect == "sqlite" else collate(column, "C")
        return and_(text_ >= f"{folder}/", text_ < f"{folder}0")  # "0" is the sign after "/"

    def insert_new(self, table: Any, values: dict[str, Any]) -> Any:
        """Insert a row unless its key is taken; its key (the first column of it), or None."""
        return self.execute(_insert_new(self.dialect, table), values).scalar()

    def insert_missing(self, table: Any, rows: list[dict[str, Any]]) -> None:
        """Insert those of `rows` whose key is not taken, in one statement."""
        if rows:
            self.execute(_insert(self.dialect, table).on_conflict_do_nothing(), rows)

    def upsert(
        self, table: Any, rows: dict[str, Any] | list[dict[str, Any]], key: Sequence[str]
    ) -> None:
        """Insert rows, or update all other columns of those whose `key` columns are taken."""
        many = rows if isinstance(rows, list) else [rows]
        if not many:
            return
        statement = _upsert(self.dialect, table, tuple(many[0]), tuple(key))
        self.execute(statement, many)

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
        fact: dict[str, Any] = {
            "id": new_id(),
            "at": self.now,
            "kind": kind,
            "subject": subject,
            "actor": current_actor() or self.actor,
            "cause": cause or current_cause(),
            "body": body or {},
        }
        return Event(seq=int(self.execute(_APPEND, fact).scalar_one()), **fact)

    @property
    def dialect(self) -> str:
        return self._connection.dialect.name

    @property
    def connection(self) -> Connection:
        """The connection itself, for the few statements hot enough to need it."""
        return self._connection


class Catalog:
    """The catalog at `url`: ``sqlite:///path`` or ``postgresql://...``.

    Opening makes or migrates the tables under a lock, so any number of processes may start at
    once. A catalog may be used by many threads and is safe to keep over a fork. Without `upgrade`
    one that would have to be made or migrated is refused.

    Raises:
        BackendError: If it cannot be reached, is read-only, or was made by a newer Everloop.
        MissingExtra: If PostgreSQL is asked for without its driver.
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Clock | None = None,
        actor: str = "unknown",
        upgrade: bool = True,
    ) -> None:
        self.url = _normal(url)
        self.clock = clock or SystemClock()
        self.actor = actor
        self._sqlite = self.url.get_backend_name() == "sqlite"
        self._network = network_type(Path(self.url.database or "").parent) if self._sqlite else ""
        self._closed = threading.Event()
        self._writing = threading.Lock()
        self._claims: Claims | None = None
        self._reader = self._make_engine(immediate=False)
        self._writer = self._make_engine(immediate=True) if self._sqlite else self._reader
        driver = self._reader.dialect.dbapi
        assert driver is not None
        self._driver_error: type[Exception] = driver.Error
        _engines_over_fork.add(self)
        # One that nobody closed gives its connections back when nobody holds it any more.
        self._kept: list[Any] = []
        weakref.finalize(self, _dispose, self._kept, self._reader, self._writer)
        try:
            with self._using(self._writer):
                if upgrade:
                    migrate.upgrade(self._writer, self._write_begin)
                else:
                    migrate.require(self._writer)
        except EverloopError:
            self.close()
            raise
        if self._network:
            _log.warning(
                "the catalog %s lies on a network file system (%s): it is kept without a log shared"
                " in memory, which is slower and safe only where file locks work; for several"
                " machines run `everloop server`, or use PostgreSQL",
                self.url.database,
                self._network,
            )

    @property
    def dialect(self) -> str:
        """``sqlite`` or ``postgresql``."""
        return self._reader.dialect.name

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """A transaction that only reads; sees one state of the whole catalog."""
        with self._using(self._reader), self._reader.connect() as connection, connection.begin():
            if not self._sqlite:
                connection.execute(
                    text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
                )
            yield Transaction(connection, self.clock, self.actor)

    @contextmanager
    def write(self, *, ordered: bool = True) -> Iterator[Transaction]:
        """A transaction that writes; commits at the end of the block, or rolls back on an error.

        Args:
            ordered: Wait for other ordered writers. Only leave it off for transactions that append
                no event and touch rows of one run alone (metric points).
        """
        with (
            self._using(self._writer),
            self._turn(),
            self._writer.connect() as connection,
            connection.begin(),
        ):
            if ordered:
                self._write_begin(connection)
            yield Transaction(connection, self.clock, self.actor)

    @contextmanager
    def autocommit(self) -> Iterator[Connection]:
        """A connection outside of any transaction, for upkeep that the database does in none."""
        with self._using(self._writer), self._writer.connect() as connection:
            yield connection.execution_options(isolation_level="AUTOCOMMIT")

    @contextmanager
    def driver(self, *, write: bool, ordered: bool = True) -> Iterator[tuple[Any, str]]:
        """The driver's own cursor and the dialect's name, for the few hottest statements.

        With `write` it is one transaction, as :meth:`write`; without, single reads.
        """
        engine = self._writer if write else self._reader
        turn = self._turn() if write else nullcontext()
        with self._using(engine), turn, closing(engine.raw_connection()) as connection:
            cursor = connection.cursor()
            if write and self._sqlite:
                cursor.execute("BEGIN IMMEDIATE")
            elif write and ordered:
                cursor.execute(f"SELECT pg_advisory_xact_lock({_WRITE_LOCK})")
            yield cursor, engine.dialect.name
            # An error never comes here: closing rolls back.
            connection.commit()

    def hot(self, work: Callable[[Any, str], _Result]) -> _Result:
        """Do `work` with the driver's cursor and the dialect's name, in one transaction.

        For what is written thousands of times a second, where the care that a pool takes of each
        use costs more than the work: the connection is kept from call to call. Whether it still
        stands shows at its next use, so `work` is done again on a new one if it broke, and must be
        safe to repeat. No ordered writer is waited for, as with ``write(ordered=False)``.
        """
        with self._using(self._writer), self._turn():
            while True:
                is_new = not self._kept
                raw = self._new_kept() if is_new else self._kept.pop()
                try:
                    cursor = raw.cursor()
                    if self._sqlite:
                        cursor.execute("BEGIN IMMEDIATE")
                    found = work(cursor, self._writer.dialect.name)
                    raw.commit()
                    cursor.close()
                except self._driver_error as error:
                    is_lost = self._writer.dialect.is_disconnect(error, raw, None)  # type: ignore[arg-type]
                    _give_up(raw)
                    if is_new or not is_lost:
                        raise
                except BaseException:  # Ctrl-C too: half of a transaction must not stay open
                    _give_up(raw)
                    raise
                else:
                    self._kept.append(raw)
                    if self._closed.is_set():
                        _close_all(self._kept)
                    return found

    def _new_kept(self) -> Any:
        fairy = self._writer.raw_connection()
        raw = fairy.driver_connection
        fairy.detach()  # it is not the pool's any more, which may make another
        return raw

    def events(
        self,
        *,
        after: int = 0,
        kind: str = "",
        subject: str = "",
        limit: int = 1000,
        newest: bool = False,
    ) -> list[Event]:
        """Events after position `after`, oldest first (or the newest `limit`, newest first)."""
        table = tables.events
        query = select(table).where(table.c.seq > after).limit(limit)
        query = query.order_by(table.c.seq.desc() if newest else table.c.seq)
        if kind:
            query = query.where(table.c.kind == kind)
        if subject:
            query = query.where(table.c.subject == subject)
        with self.read() as tx:
            return [Event(**row._asdict()) for row in tx.all(query)]

    @property
    def claims(self) -> Claims:
        """Who computes what now."""
        if self._claims is None:
            if self._sqlite:
                self._claims = FileClaims(Path(f"{self.url.database}.claims"))
            else:
                self._claims = SessionClaims(self._writer, lambda: self._using(self._writer))
        return self._claims

    def close(self) -> None:
        """Close the connections; safe to call twice.

        A connection that another thread uses meanwhile is closed when that thread is done.
        """
        self._closed.set()
        _close_all(self._kept)
        if isinstance(self._claims, SessionClaims):
            self._claims.close()
        self._reader.pool.dispose()
        self._writer.pool.dispose()

    def _make_engine(self, *, immediate: bool) -> Engine:
        try:
            if not self._sqlite:
                return create_engine(self.url, pool_pre_ping=True, pool_size=8, max_overflow=24)
            engine = create_engine(
                self.url, connect_args={"timeout": _BUSY_MS / 1000}, pool_size=8, max_overflow=24
            )
        except ModuleNotFoundError as error:
            if self._sqlite:
                raise
            raise MissingExtra.of("postgres", "a catalog on PostgreSQL") from error
        except NoSuchModuleError as error:
            raise InvalidInput(
                f"unknown kind of catalog {self.url.drivername!r}",
                hint="use sqlite:///path or postgresql://user@host/database",
            ) from error
        begin = "BEGIN IMMEDIATE" if immediate else "BEGIN"
        journal = "DELETE" if self._network else "WAL"

        @event.listens_for(engine, "connect")
        def _prepare(raw: Any, _record: Any) -> None:
            raw.isolation_level = None  # we begin transactions ourselves
            cursor = raw.cursor()
            cursor.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
            cursor.execute(f"PRAGMA journal_mode={journal}")
            # FULL: an acknowledged commit survives a power cut, as promised.
            cursor.execute("PRAGMA synchronous=FULL")
            cursor.execute("PRAGMA foreign_keys=ON")
            cursor.close()

        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            connection.exec_driver_sql(begin)

        return engine

    def _write_begin(self, connection: Connection) -> None:
        if not self._sqlite:
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_WRITE_LOCK})"))

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Around each write on SQLite, which has one writer at a time.

        Left to SQLite, a thread that finds another writing sleeps, for up to a tenth of a second,
        and may find a third one writing then. Here it goes on as soon as it can. Who waited for as
        long as for another process goes on too, and SQLite says that the catalog is busy.
        """
        if not self._sqlite:
            yield
            return
        writing = self._writing
        is_ours = writing.acquire(timeout=_BUSY_MS / 1000)
        try:
            yield
        finally:
            if is_ours:
                writing.release()

    @contextmanager
    def _using(self, engine: Engine) -> Iterator[None]:
        """Around each use: tells faults in our words; leaves nothing open in a closed catalog."""
        try:
            yield
        except (IntegrityError, EverloopError):
            # A caller that races for a name knows what it means; and an error of ours says enough,
            # also one that is an OSError to Python (NotAllowed).
            raise
        except (DBAPIError, self._driver_error, OSError) as error:
            raise _explained(error, self.url) from error
        except TimeoutError as error:
            raise BackendError(
                "the catalog is busy: all its connections are in use, and none became free",
                hint="it can be tried again; fewer callers at once will not wait",
            ) from error
        except StatementError as error:
            if isinstance(error.orig, EverloopError):  # a value that our own types refused
                raise error.orig from None
            raise
        finally:
            # By now the connection is back in its pool. `close` says that we are closed before it
            # empties the pools, and we look after we filled one: one of the two finds it there.
            if self._closed.is_set():
                engine.pool.dispose()


def _close_all(kept: list[Any]) -> None:
    while kept:
        _give_up(kept.pop())


def _give_up(raw: Any) -> None:
    # Closing rolls back; what broke already cannot be closed, and need not be.
    with suppress(Exception):
        raw.close()


# To put a statement together takes longer than SQLite needs for it.
_APPEND = tables.events.insert().returning(tables.events.c.seq)


@cache
def _insert_new(dialect: str, table: Any) -> Any:
    key = next(iter(table.primary_key.columns))
    return _insert(dialect, table).on_conflict_do_nothing().returning(key)


@cache
def _upsert(dialect: str, table: Any, names: tuple[str, ...], key: tuple[str, ...]) -> Any:
    insert = _insert(dialect, table)
    rest = {name: insert.excluded[name] for name in names if name not in key}
    if rest:
        return insert.on_conflict_do_update(index_elements=list(key), set_=rest)
    return insert.on_conflict_do_nothing(index_elements=list(key))


def _insert(dialect: str, table: Any) -> Any:
    if dialect == "sqlite":
        from sqlalchemy.dialects.sqlite import insert
    else:
        from sqlalchemy.dialects.postgresql import insert  # type: ignore[assignment]
    return insert(table)


def _normal(url: str) -> URL:
    parsed = make_url(url)
    if parsed.drivername in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        folder = Path(parsed.database).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BackendError(
                f"cannot make the folder {folder}: {error.strerror}",
                hint="choose another with --dir, or correct the rights",
            ) from error
    return parsed


def _explained(error: Exception, url: URL) -> BackendError:
    where = url.database if url.get_backend_name() == "sqlite" else url.render_as_string()
    cause = str(getattr(error, "orig", error)).strip().splitlines()[0]
    hints = {
        "readonly": "the folder or file is read-only; choose another with --dir",
        "unable to open": "check that the folder exists and may be written",
        "disk is full": "free space, then do it again; nothing was half-written",
        "disk I/O": "the disk is full, over its quota or failing; correct it, then do it again",
        "locked": "another process holds the catalog for long; find it, then do it again",
        "not a database": "the file is not an Everloop catalog, or is damaged",
        "connection": "check that the server is up and the address is right; it can be tried again",
    }
    hint = next((text for word, text in hints.items() if word in cause), "")
    return BackendError(f"the catalog {where} failed: {cause}", hint=hint)


def _dispose(kept: list[Any], *engines: Engine) -> None:
    _close_all(kept)
    for engine in engines:
        engine.dispose()


#: Connections of the process that forked: closing them here would end them there.
_never_closed: list[Any] = []
_engines_over_fork: weakref.WeakSet[Catalog] = weakref.WeakSet()


def _drop_connections_in_child() -> None:
    # A database connection must not be used on both sides of a fork.
    for catalog in list(_engines_over_fork):
        _never_closed.extend(catalog._kept)
        catalog._kept.clear()
        catalog._reader.dispose(close=False)
        catalog._writer.dispose(close=False)
        # Whoever held it is in the parent.
        catalog._writing = threading.Lock()
    _held_over_fork.clear()


def _finish_writing() -> None:
    # What SQLite knows of its locks is copied into the child, which would hold one for ever that a
    # thread of ours holds now: for that thread is not copied. Not waited for without end: a fork in
    # the middle of a transaction would wait for itself.
    for catalog in list(_engines_over_fork):
        if catalog._writing.acquire(timeout=_FORK_S):
            _held_over_fork.append(catalog._writing)


def _go_on_writing() -> None:
    while _held_over_fork:
        _held_over_fork.pop().release()


_held_over_fork: list[threading.Lock] = []

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_finish_writing,
        after_in_parent=_go_on_writing,
        after_in_child=_drop_connections_in_child,
    )
