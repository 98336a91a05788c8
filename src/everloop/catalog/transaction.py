"""Transactions whose statements SQLAlchemy puts together, and the engines that they need."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    and_,
    collate,
    create_engine,
    event,
    make_url,
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

from everloop.catalog.direct import BUSY_MS, Direct, prepare_sqlite
from everloop.core.time import Clock
from everloop.errors import BackendError, EverloopError, InvalidInput, MissingExtra

__all__ = ["Engines", "Transaction", "make_engines", "told_of"]


class Transaction(Direct):
    """A transaction. Everything within it, events included, happens or does not."""

    def __init__(self, connection: Connection, clock: Clock, actor: str) -> None:
        super().__init__(None, connection.dialect.name, clock, actor)
        self._connection = connection

    @property
    def cursor(self) -> Any:
        """The driver's cursor."""
        if self._cursor is None:
            self._cursor = self._connection.connection.cursor()
        return self._cursor

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

    @property
    def connection(self) -> Connection:
        """The connection itself, for the few statements that need it."""
        return self._connection


class Engines(NamedTuple):
    """The pools of a catalog; one and the same for PostgreSQL."""

    reader: Engine
    writer: Engine


def make_engines(url: str, *, shared_memory: bool) -> Engines:
    """The engines for a catalog at `url`.

    Raises:
        InvalidInput: If there is no such kind of catalog.
        MissingExtra: If PostgreSQL is asked for without its driver.
    """
    parsed = make_url(url)
    try:
        if parsed.get_backend_name() != "sqlite":
            engine = create_engine(parsed, pool_pre_ping=True, pool_size=8, max_overflow=24)
            return Engines(engine, engine)
    except ModuleNotFoundError as error:
        raise MissingExtra.of("postgres", "a catalog on PostgreSQL") from error
    except NoSuchModuleError as error:
        raise InvalidInput(
            f"unknown kind of catalog {parsed.drivername!r}",
            hint="use sqlite:///path or postgresql://user@host/database",
        ) from error
    return Engines(*(_sqlite_engine(parsed, begin, shared_memory) for begin in _BEGIN))


_BEGIN = ("BEGIN", "BEGIN IMMEDIATE")


def _sqlite_engine(url: Any, begin: str, shared_memory: bool) -> Engine:
    engine = create_engine(
        url, connect_args={"timeout": BUSY_MS / 1000}, pool_size=8, max_overflow=24
    )

    @event.listens_for(engine, "connect")
    def _prepare(raw: Any, _record: Any) -> None:
        prepare_sqlite(raw, shared_memory=shared_memory)

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def told_of(error: Exception) -> Exception | None:
    """What to say of an error of SQLAlchemy's: the driver's own, one of ours, or nothing."""
    if isinstance(error, IntegrityError):
        return None  # a caller that races for a name knows what it means
    if isinstance(error, DBAPIError):
        return error.orig if isinstance(error.orig, Exception) else error
    if isinstance(error, TimeoutError):
        return BackendError(
            "the catalog is busy: all its connections are in use, and none became free",
            hint="it can be tried again; fewer callers at once will not wait",
        )
    if isinstance(error, StatementError) and isinstance(error.orig, EverloopError):
        return error.orig  # a value that our own types refused
    return None


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
