"""PostgresServer: queries of PostgreSQL, by COPY in CSV, parsed by Arrow as it arrives.

One read-only transaction sees one state. What the server sends is parsed block by block, so memory
holds one block, whatever the query gives. Types are taken from the description of the query and
written into it as casts: nothing is guessed from values. ``docs/adr/0019`` says why not a binary
protocol.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.csv as pcsv

from everloop.errors import BackendError, Fault, InvalidInput, MissingExtra
from everloop.ports.source import QueryResult

__all__ = ["PostgresServer"]

_BLOCK = 16 << 20
_ROWS_AT_ONCE = 2000
_CONNECT_S = 15
_UTC = pa.timestamp("us", tz="UTC")
_NAIVE = pa.timestamp("us")
#: By the number that PostgreSQL gives a type: what it becomes here, and the cast to it.
_PLAIN: dict[int, tuple[pa.DataType, str]] = {
    16: (pa.bool_(), ""), 21: (pa.int16(), ""), 23: (pa.int32(), ""), 20: (pa.int64(), ""),
    26: (pa.int64(), "::bigint"), 700: (pa.float32(), ""), 701: (pa.float64(), ""),
    25: (pa.string(), ""), 1043: (pa.string(), ""), 1042: (pa.string(), ""),
    19: (pa.string(), "::text"), 18: (pa.string(), "::text"), 1082: (pa.date32(), ""),
    1114: (_NAIVE, ""), 1184: (_UTC, ""),
}  # fmt: skip
_NUMERIC, _MONEY, _BYTEA = 1700, 790, 17
#: A decimal of so many digits is the same again after it was a double.
_DOUBLE_DIGITS = 15
_LONG_DIGITS = 18


class _Column(NamedTuple):
    name: str
    type: pa.DataType
    expression: str
    is_bytes: bool = False


class PostgresServer:
    """One database.

    Args:
        url: Without a password.
        password: Empty where none is needed (or ``.pgpass`` has it).
        timeout_s: For a query as a whole; the server ends it.
    """

    def __init__(self, url: str, password: str = "", *, timeout_s: float = 1800.0) -> None:
        self._url = url.replace("postgres://", "postgresql://", 1)
        self._password = password
        self._timeout = timeout_s

    @contextlib.contextmanager
    def read(
        self, query: str, *, watermark: str, since: str, wanted: dict[str, str]
    ) -> Iterator[QueryResult]:
        """Run a query; see ``QueryServer.read``."""
        try:
            import psycopg
        except ModuleNotFoundError as error:
            raise MissingExtra.of("postgres", "reading PostgreSQL") from error
        try:
            with self._connect() as connection, connection.cursor() as cursor:
                columns, notes = self._columns(cursor, query, wanted)
                now = cursor.execute("SELECT now()").fetchone()[0]
                text = _select(query, columns, watermark, since, cursor)
                schema = pa.schema([(column.name, column.type) for column in columns])
                sources = self._tables(cursor, query)
                # Whoever gives up in the middle leaves a COPY on: it must end before the
                # transaction does, which would wait for it.
                with contextlib.closing(self._batches(cursor, text, columns, schema)) as batches:
                    yield QueryResult(batches, schema, sources, now, tuple(notes))
        except psycopg.Error as error:
            raise self._told(error) from None

    def _connect(self) -> Any:
        import psycopg

        # Values are written in one way, whatever the database or the role has set.
        options = (
            "-c TimeZone=UTC -c DateStyle=ISO -c IntervalStyle=iso_8601 -c bytea_output=hex"
            f" -c extra_float_digits=1 -c statement_timeout={int(self._timeout * 1000)}"
        )
        more: dict[str, Any] = {"password": self._password} if self._password else {}
        given = psycopg.conninfo.conninfo_to_dict(self._url).get("options")
        options = f"{given} {options}" if given else options
        connection = psycopg.connect(
            self._url,
            connect_timeout=_CONNECT_S,
            options=options,
            client_encoding="UTF8",
            application_name="everloop",
            **more,
        )
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        return connection

    def _columns(
        self, cursor: Any, query: str, wanted: dict[str, str]
    ) -> tuple[list[_Column], list[str]]:
        from psycopg import sql

        cursor.execute(_within(sql, query) + sql.SQL(" LIMIT 0"))
        described = list(cursor.description)
        names = [column.name for column in described]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise InvalidInput(
                f"the query has columns of one name: {', '.join(map(repr, doubled))}",
                hint="name them apart with AS",
            )
        kinds = self._kinds(cursor, [column.type_code for column in described])
        columns: list[_Column] = []
        notes: list[str] = []
        faults: list[Fault] = []
        for column in described:
            made = _column(cursor, column, kinds, wanted.get(column.name, ""), notes)
            if isinstance(made, Fault):
                faults.append(made)
            else:
                columns.append(made)
        if faults:
            raise InvalidInput(
                "the query has decimals that no column here holds exactly",
                faults,
                hint='state what they become: schema=ev.Schema([ev.Field("amount", "float64")],'
                ' extra="allow"), or "string" for every digit',
            )
        naive = [column.name for column in columns if column.type == _NAIVE]
        if naive:
            notes.append(f"times without a zone are taken as UTC: {', '.join(naive)}")
        return columns, notes

    def _kinds(self, cursor: Any, oids: list[int]) -> dict[int, tuple[str, str, str]]:
        cursor.execute(
            "SELECT oid::bigint, typname, typcategory, typtype FROM pg_type"
            " WHERE oid = ANY(%s::oid[])",
            [oids],
        )
        return {oid: (name, category, kind) for oid, name, category, kind in cursor.fetchall()}

    def _tables(self, cursor: Any, query: str) -> tuple[str, ...]:
        """The tables that the planner finds in the query, as OpenLineage names them."""
        import psycopg
        from psycopg import sql

        info = cursor.connection.info
        place = f"postgres://{info.host or 'localhost'}:{info.port}"
        found: list[str] = []
        with contextlib.suppress(psycopg.errors.SyntaxError), cursor.connection.transaction():
            explain = sql.SQL("EXPLAIN (VERBOSE, FORMAT JSON) ") + _within(sql, query)
            plan = cursor.execute(explain).fetchone()[0]
            _relations(json.loads(plan) if isinstance(plan, str) else plan, found)
        names = [f"{place}/{info.dbname}.{name}" for name in dict.fromkeys(found)]
        return tuple(names) or (f"{place}/{info.dbname}",)

    def _batches(
        self, cursor: Any, text: Any, columns: list[_Column], schema: pa.Schema
    ) -> Generator[pa.RecordBatch, None, None]:
        import psycopg

        if not columns:
            raise InvalidInput("the query has no columns")
        read = {c.name: pa.string() if c.is_bytes else c.type for c in columns}
        try:
            with cursor.copy(text) as copy:
                stream = _Stream(iter(copy))
                if not stream.is_empty:
                    yield from _parsed(stream, columns, read, schema)
        except psycopg.Error as error:
            raise self._told(error) from None
        except pa.ArrowException as error:
            raise _unfit(error, columns) from None

    def _told(self, error: Exception) -> Exception:
        """What happened, without a value and without the password."""
        import psycopg

        diagnosed = getattr(error, "diag", None)
        said = (diagnosed.message_primary if diagnosed else "") or str(error)
        said = (said.strip().splitlines() or [type(error).__name__])[0]
        if self._password:
            said = said.replace(self._password, "***")
        parts = urlsplit(self._url)
        where = f"{parts.hostname}:{parts.port or 5432}{unquote(parts.path)}"
        if isinstance(error, psycopg.errors.QueryCanceled):
            return BackendError(
                f"{where} ended the query: {said}",
                hint="give the source a longer timeout_s, or an index on its watermark",
            )
        if isinstance(error, psycopg.errors.InsufficientPrivilege):
            return BackendError(f"{where} refuses: {said}", hint="GRANT SELECT to the role")
        refusals = (psycopg.errors.SyntaxErrorOrAccessRuleViolation, psycopg.errors.DataError)
        unfit = (psycopg.ProgrammingError, psycopg.NotSupportedError)
        wrong = (*refusals, psycopg.errors.ReadOnlySqlTransaction, *unfit)
        if isinstance(error, wrong):
            return InvalidInput(f"the query cannot be run on {where}: {said}")
        return BackendError(
            f"{where} failed: {said}", hint="nothing was kept; it can be pulled again"
        )


def _within(sql: Any, query: str) -> Any:
    # On lines of their own: the query may end with a comment.
    return sql.SQL("SELECT * FROM (\n") + sql.SQL(query) + sql.SQL("\n) AS source")


def _column(
    cursor: Any,
    described: Any,
    kinds: dict[int, tuple[str, str, str]],
    wanted: str,
    notes: list[str],
) -> _Column | Fault:
    from psycopg import sql

    name, oid = described.name, described.type_code
    quoted = sql.Identifier(name).as_string(cursor)
    if oid in _PLAIN:
        kind, cast = _PLAIN[oid]
        return _Column(name, kind, f"{quoted}{cast}")
    if oid == _BYTEA:
        return _Column(name, pa.binary(), f"encode({quoted}, 'hex')", is_bytes=True)
    if oid in (_NUMERIC, _MONEY):
        return _decimal(name, quoted, described, oid, wanted, notes)
    known, category, kind_of = kinds.get(oid, ("", "", ""))
    if category == "A" or kind_of == "c":
        notes.append(f"{name} ({known}) is kept as JSON text")
        return _Column(name, pa.string(), f"to_json({quoted})::text")
    return _Column(name, pa.string(), f"{quoted}::text")


def _decimal(
    name: str, quoted: str, described: Any, oid: int, wanted: str, notes: list[str]
) -> _Column | Fault:
    digits = described.precision if oid == _NUMERIC else None
    places = described.scale if digits else None
    told = f"numeric({digits},{places})" if digits else "money" if oid == _MONEY else "numeric"
    if wanted == "string":
        return _Column(name, pa.string(), f"{quoted}::numeric::text")
    if wanted in ("float64", "float32"):
        return _Column(name, pa.float64(), f"{quoted}::numeric::float8")
    if digits and not places and digits <= _LONG_DIGITS:
        return _Column(name, pa.int64(), f"{quoted}::bigint")
    if digits and digits <= _DOUBLE_DIGITS:
        notes.append(f"{name} ({told}) is kept as float64, which gives all its digits back")
        return _Column(name, pa.float64(), f"{quoted}::float8")
    return Fault(name, f"is {told}")


def _select(query: str, columns: list[_Column], watermark: str, since: str, cursor: Any) -> Any:
    from psycopg import sql

    parts = [
        sql.SQL(column.expression) + sql.SQL(" AS ") + sql.Identifier(column.name)
        for column in columns
    ]
    text = sql.SQL("COPY (SELECT ") + sql.SQL(", ").join(parts)
    text += sql.SQL(" FROM (\n") + sql.SQL(query) + sql.SQL("\n) AS source")
    if watermark and since:
        column = sql.Identifier(watermark)
        text += sql.SQL(" WHERE {} >= {} OR {} IS NULL").format(column, sql.Literal(since), column)
    return text + sql.SQL(") TO STDOUT (FORMAT csv)")


def _relations(plan: Any, found: list[str]) -> None:
    if isinstance(plan, list):
        for part in plan:
            _relations(part, found)
    elif isinstance(plan, dict):
        if "Relation Name" in plan:
            found.append(f"{plan.get('Schema', 'public')}.{plan['Relation Name']}")
        for part in plan.values():
            if isinstance(part, dict | list):
                _relations(part, found)


class _Stream(io.RawIOBase):
    """What COPY sends, as a file that Arrow reads."""

    def __init__(self, chunks: Iterator[Any]) -> None:
        super().__init__()
        self._chunks = chunks
        self._left = self._next()

    def _next(self) -> memoryview:
        # One chunk is one row: joined here they cost a fraction of what each alone would.
        return memoryview(b"".join(itertools.islice(self._chunks, _ROWS_AT_ONCE)))

    @property
    def is_empty(self) -> bool:
        """Whether there is no row."""
        return not self._left

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        into = memoryview(buffer)
        filled = 0
        while filled < len(into):
            if not self._left:
                self._left = self._next()
                if not self._left:
                    break
            step = min(len(self._left), len(into) - filled)
            into[filled : filled + step] = self._left[:step]
            self._left = self._left[step:]
            filled += step
        return filled


def _parsed(
    stream: _Stream, columns: list[_Column], read: dict[str, pa.DataType], schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    reading = pcsv.ReadOptions(column_names=list(read), block_size=_BLOCK)
    # NULL is nothing at all, an empty text is quoted; of one column NULL is an empty line.
    parsing = pcsv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False)
    converting = pcsv.ConvertOptions(
        column_types=read, null_values=[""], true_values=["t"], false_values=["f"],
        strings_can_be_null=True, quoted_strings_can_be_null=False,
    )  # fmt: skip
    with pcsv.open_csv(pa.PythonFile(stream, mode="r"), reading, parsing, converting) as reader:
        for batch in reader:
            arrays = [
                _bytes(values) if column.is_bytes else values
                for column, values in zip(columns, batch.columns, strict=True)
            ]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def _bytes(texts: pa.Array) -> pa.Array:
    import polars as pl

    decoded = pl.Series(texts).cast(pl.String).str.decode("hex").to_arrow()
    return decoded.cast(pa.binary())


def _unfit(error: Exception, columns: list[_Column]) -> InvalidInput:
    """A value that has no place here, such as the time ``infinity``."""
    import re

    text = str(error).splitlines()[0]
    if "straddling" in text:
        return InvalidInput(f"a row of the query is longer than {_BLOCK >> 20} MB")
    found = re.search(r"CSV column #(\d+): (.*)", text)
    if found is None:
        return InvalidInput(f"what the query gives cannot be read: {text[:200]}")
    column = columns[int(found[1])]
    return InvalidInput(
        "the query gives a value that no column here holds",
        [Fault(column.name, f"wanted {column.type}: {found[2][:200]}")],
        hint="leave such rows out of the query, or change the value in it",
    )
