"""Catalog: opens SQLite or PostgreSQL, runs transactions, and appends events within them.

SQLAlchemy is imported by the first transaction that asks for it (``read``, ``write``); those on the
driver's own cursor (``direct``, ``hot``) do without it on SQLite.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from everloop.catalog.claims import Claims, FileClaims
from everloop.catalog.direct import BUSY_MS, Direct, connect_sqlite
from everloop.catalog.network import network_type
from everloop.catalog.revisions import HEAD
from everloop.core.events import Event
from everloop.core.time import Clock, SystemClock
from everloop.errors import BackendError, EverloopError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from everloop.catalog.transaction import Engines, Transaction

__all__ = ["Catalog"]

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")

# One writer at a time, as SQLite has it anyway: it keeps the event log gapless in order of commit,
# so that a reader with a cursor can never miss an event that was numbered early and committed late.
_WRITE_LOCK = 0x65766C70

_FORK_S = 5.0
#: Connections that are kept for the driver's own cursor; more are closed after their use.
_KEPT = 8


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
        self.clock = clock or SystemClock()
        self.actor = actor
        #: The file of a catalog on SQLite.
        self.file = _file_of(url)
        self._sqlite = self.file is not None
        self.url = url if self._sqlite else _psycopg_url(url)
        self._network = network_type(self.file.parent) if self.file else ""
        self._closed = threading.Event()
        self._writing = threading.Lock()
        self._opening = threading.Lock()
        self._claims: Claims | None = None
        self._ends: list[Callable[[], None]] = []
        self._driver_error: type[Exception] = sqlite3.Error
        # One that nobody closed gives its connections back when nobody holds it any more.
        self._kept: list[Any] = []
        self._engines: list[Engines] = []
        weakref.finalize(self, _dispose, self._kept, self._engines)
        _engines_over_fork.add(self)
        try:
            with self._using():
                if not self._is_current():
                    self._migrate(upgrade)
        except EverloopError:
            self.close()
            raise
        if self._network:
            _log.warning(
                "the catalog %s lies on a network file system (%s): it is kept without a log shared"
                " in memory, which is slower and safe only where file locks work; for several"
                " machines run `everloop server`, or use PostgreSQL",
                self.file,
                self._network,
            )

    def _is_current(self) -> bool:
        """Whether a catalog on SQLite has the tables of today, by one query of the driver's own."""
        if not self._sqlite:
            return False
        with self._raw() as raw:
            try:
                row = raw.execute("SELECT version_num FROM alembic_version").fetchone()
            except sqlite3.OperationalError as error:
                if "no such table" not in str(error):
                    raise
                row = None
        return row is not None and row[0] == HEAD

    def _migrate(self, upgrade: bool) -> None:
        from everloop.catalog import migrate

        if upgrade:
            migrate.upgrade(self._writer, self._write_begin)
        else:
            migrate.require(self._writer)

    @property
    def dialect(self) -> str:
        """``sqlite`` or ``postgresql``."""
        return "sqlite" if self._sqlite else "postgresql"

    @property
    def _reader(self) -> Engine:
        return self._made().reader

    @property
    def _writer(self) -> Engine:
        return self._made().writer

    def _made(self) -> Engines:
        """The engines, made when they are first asked for."""
        if not self._engines:
            from everloop.catalog.transaction import make_engines

            with self._opening:
                if not self._engines:
                    made = make_engines(self.url, shared_memory=not self._network)
                    driver = made.writer.dialect.dbapi
                    assert driver is not None
                    self._driver_error = driver.Error
                    self._engines.append(made)
        return self._engines[0]

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """A transaction that only reads; sees one state of the whole catalog."""
        from sqlalchemy import text

        from everloop.catalog.transaction import Transaction

        with self._using(), self._reader.connect() as connection, connection.begin():
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
        from everloop.catalog.transaction import Transaction

        with (
            self._using(),
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
        with self._using(), self._writer.connect() as connection:
            yield connection.execution_options(isolation_level="AUTOCOMMIT")

    @contextmanager
    def direct(self, *, write: bool, ordered: bool = True) -> Iterator[Direct]:
        """The driver's own cursor, for statements that are written out.

        With `write` it is one transaction, as :meth:`write`; without, single reads.
        """
        turn = self._turn() if write else nullcontext()
        with self._using(), turn, self._raw() as raw:
            cursor = raw.cursor()
            if write and self._sqlite:
                cursor.execute("BEGIN IMMEDIATE")
            elif write and ordered:
                cursor.execute(f"SELECT pg_advisory_xact_lock({_WRITE_LOCK})")
            yield Direct(cursor, self.dialect, self.clock, self.actor)
            # An error never comes here: what was not committed is rolled back.
            raw.commit()
            cursor.close()

    @contextmanager
    def _raw(self) -> Iterator[Any]:
        """A connection of the driver's; it takes back what is not committed in the end."""
        if not self._sqlite:
            with closing(self._writer.raw_connection()) as connection:
                yield connection
            return
        raw = self._take()
        try:
            yield raw
        except BaseException:  # Ctrl-C too: half of a transaction must not stay open
            _give_up(raw)
            raise
        self._give_back(raw)

    def hot(self, work: Callable[[Any, str], _Result]) -> _Result:
        """Do `work` with the driver's cursor and the dialect's name, in one transaction.

        For what is written thousands of times a second, where the care that a pool takes of each
        use costs more than the work: the connection is kept from call to call. Whether it still
        stands shows at its next use, so `work` is done again on a new one if it broke, and must be
        safe to repeat. No ordered writer is waited for, as with ``write(ordered=False)``.
        """
        with self._using(), self._turn():
            while True:
                is_new = not self._kept
                raw = self._take()
                try:
                    cursor = raw.cursor()
                    if self._sqlite:
                        cursor.execute("BEGIN IMMEDIATE")
                    found = work(cursor, self.dialect)
                    raw.commit()
                    cursor.close()
                except self._driver_error as error:
                    is_lost = self._is_lost(error, raw)
                    _give_up(raw)
                    if is_new or not is_lost:
                        raise
                except BaseException:  # Ctrl-C too: half of a transaction must not stay open
                    _give_up(raw)
                    raise
                else:
                    self._give_back(raw)
                    return found

    def _is_lost(self, error: Any, raw: Any) -> bool:
        """Whether an error says that the connection is closed, at whichever end."""
        if self._sqlite:
            return "closed database" in str(error)
        return self._writer.dialect.is_disconnect(error, raw, None)

    def _take(self) -> Any:
        """One of the kept connections, or a new one."""
        with suppress(IndexError):
            return self._kept.pop()
        if self.file is not None:
            return connect_sqlite(self.file, shared_memory=not self._network)
        fairy = self._writer.raw_connection()
        raw = fairy.driver_connection
        fairy.detach()  # it is not the pool's any more, which may make another
        return raw

    def _give_back(self, raw: Any) -> None:
        if len(self._kept) < _KEPT:
            self._kept.append(raw)
        else:
            _give_up(raw)
        # `close` says that we are closed before it empties the list, and we look after we filled
        # it: one of the two finds the connection there.
        if self._closed.is_set():
            _close_all(self._kept)

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
        from sqlalchemy import select

        from everloop.catalog import tables

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
            if self.file is not None:
                self._claims = FileClaims(Path(f"{self.file}.claims"))
            else:
                from everloop.catalog.session_claims import SessionClaims

                claims = SessionClaims(self._writer, self._using)
                self._ends.append(claims.close)
                self._claims = claims
        return self._claims

    def close(self) -> None:
        """Close the connections; safe to call twice.

        A connection that another thread uses meanwhile is closed when that thread is done.
        """
        self._closed.set()
        _close_all(self._kept)
        for end in self._ends:
            end()
        _empty_pools(self._engines)

    def _write_begin(self, connection: Connection) -> None:
        if not self._sqlite:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITE_LOCK})")

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
        is_ours = writing.acquire(timeout=BUSY_MS / 1000)
        try:
            yield
        finally:
            if is_ours:
                writing.release()

    @contextmanager
    def _using(self) -> Iterator[None]:
        """Around each use: tells faults in our words; leaves nothing open in a closed catalog."""
        try:
            yield
        except EverloopError:
            raise  # it says enough, also one that is an OSError to Python (NotAllowed)
        except Exception as error:  # what is neither a driver's nor SQLAlchemy's goes on as it is
            told = self._told(error)
            if told is None:
                raise
            raise told from (None if told is getattr(error, "orig", None) else error)
        finally:
            # By now the connection is back in its pool. `close` says that we are closed before it
            # empties the pools, and we look after we filled one: one of the two finds it there.
            if self._closed.is_set():
                _empty_pools(self._engines)

    def _told(self, error: Exception) -> EverloopError | None:
        """The error to raise in the place of one of a driver's, or None."""
        cause: Exception | None = error
        if not isinstance(error, (self._driver_error, OSError)):
            # Whose errors they are has been imported by whoever raised them.
            if "sqlalchemy" not in sys.modules:
                return None
            from everloop.catalog.transaction import told_of

            cause = told_of(error)
        if cause is None or isinstance(cause, EverloopError):
            return cause
        return _explained(cause, self._place())

    def _place(self) -> str:
        if self.file is not None:
            return str(self.file)
        from sqlalchemy import make_url

        return make_url(self.url).render_as_string()


def _close_all(kept: list[Any]) -> None:
    while kept:
        _give_up(kept.pop())


def _give_up(raw: Any) -> None:
    # Of what broke already neither can be done, nor need be. Closing alone does not roll back in
    # SQLite while somebody, such as a traceback, holds a cursor.
    with suppress(Exception):
        raw.rollback()
    with suppress(Exception):
        raw.close()


def _empty_pools(engines: list[Engines]) -> None:
    for pair in engines:
        for engine in pair:
            engine.pool.dispose()


def _file_of(url: str) -> Path | None:
    """The file that the URL of a catalog on SQLite names, in a folder that is there."""
    if not url.startswith("sqlite:///"):
        return None
    file = Path(url.removeprefix("sqlite:///"))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BackendError(
            f"cannot make the folder {file.parent}: {error.strerror}",
            hint="choose another with --dir, or correct the rights",
        ) from error
    return file


def _psycopg_url(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"postgresql+psycopg://{rest}" if scheme in ("postgresql", "postgres") else url


def _explained(error: Exception, where: str) -> BackendError:
    cause = str(error).strip().splitlines()[0]
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


def _dispose(kept: list[Any], engines: list[Engines]) -> None:
    _close_all(kept)
    for pair in engines:
        for engine in pair:
            engine.dispose()


#: Connections of the process that forked: closing them here would end them there.
_never_closed: list[Any] = []
_engines_over_fork: weakref.WeakSet[Catalog] = weakref.WeakSet()


def _drop_connections_in_child() -> None:
    # A database connection must not be used on both sides of a fork.
    for catalog in list(_engines_over_fork):
        _never_closed.extend(catalog._kept)
        catalog._kept.clear()
        for pair in catalog._engines:
            for engine in pair:
                engine.dispose(close=False)
        # Whoever held them is in the parent.
        catalog._writing, catalog._opening = threading.Lock(), threading.Lock()
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
