"""SqliteServer: queries of an SQLite file, by the standard library.

SQLite types values, not columns: the type of a column is that of all its values, or a fault that
tells which there are. The query therefore runs twice, in one transaction.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa

from everloop.errors import BackendError, Fault, InvalidInput, NotFound
from everloop.ports.source import QueryResult

__all__ = ["SqliteServer"]

_ROWS = 32_768
_STEPS = 100_000
_TYPES = {
    ("integer",): pa.int64(), ("real",): pa.float64(), ("integer", "real"): pa.float64(),
    ("text",): pa.string(), ("blob",): pa.binary(),
}  # fmt: skip
_WANTED = {
    "bool": pa.bool_(),
    "binary": pa.binary(),
    "float32": pa.float64(),
    "float64": pa.float64(),
}


class SqliteServer:
    """One file.

    Args:
        path: Of the file, which is only read.
        timeout_s: For a query as a whole.
    """

    def __init__(self, path: str, *, timeout_s: float = 1800.0) -> None:
        self._path = path
        self._timeout = timeout_s

    @contextlib.contextmanager
    def read(
        self, query: str, *, watermark: str, since: str, wanted: dict[str, str]
    ) -> Iterator[QueryResult]:
        """Run a query; see ``QueryServer.read``."""
        if not Path(self._path).is_file():
            raise NotFound(f"there is no database {self._path}", hint="check the path")
        until = time.monotonic() + self._timeout
        try:
            with contextlib.closing(
                sqlite3.connect(f"file:{quote(self._path)}?mode=ro", uri=True, isolation_level=None)
            ) as connection:
                connection.set_progress_handler(lambda: time.monotonic() > until, _STEPS)
                connection.execute("BEGIN")
                where, values = _where(watermark, since)
                rows = f"FROM (\n{query}\n) AS source{where}"
                schema = self._schema(connection, query, wanted)
                yield QueryResult(
                    batches=_batches(connection, f"SELECT * {rows}", values, schema),
                    schema=schema,
                    sources=(f"file://{quote(str(Path(self._path).absolute()))}",),
                    now=datetime.now(UTC),
                    notes=(),
                )
        except sqlite3.Error as error:
            raise self._told(error) from None

    def _schema(
        self, connection: sqlite3.Connection, query: str, wanted: dict[str, str]
    ) -> pa.Schema:
        described = connection.execute(f"SELECT * FROM (\n{query}\n) AS source LIMIT 0").description
        names = [column[0] for column in described]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise InvalidInput(
                f"the query has columns of one name: {', '.join(map(repr, doubled))}"
            )
        asked = ", ".join(f"group_concat(DISTINCT typeof({_quoted(name)}))" for name in names)
        found = connection.execute(f"SELECT {asked} FROM (\n{query}\n) AS source").fetchone()
        fields, faults = [], []
        for name, text in zip(names, found, strict=True):
            kinds = tuple(sorted(set((text or "").split(",")) - {"null", ""}))
            known = wanted.get(name, "")
            kind = _TYPES.get(kinds) if kinds else _stated(known)
            if kinds == ("integer",) and known in _WANTED:
                kind = _WANTED[known]
            if kind is None:
                told = (
                    f"holds {' and '.join(kinds)}"
                    if kinds
                    else "has no value to tell its type from"
                )
                faults.append(Fault(name, told))
            else:
                fields.append(pa.field(name, kind))
        if faults:
            raise InvalidInput(
                "the query has columns of no one type",
                faults,
                hint="CAST them in the query, or state types of empty ones by schema=",
            )
        return pa.schema(fields)

    def _told(self, error: sqlite3.Error) -> Exception:
        said = str(error)
        if "interrupted" in said:
            return BackendError(f"{self._path}: the query took longer than {self._timeout:g} s")
        if "UTF-8" in said:
            return InvalidInput(f"{self._path} holds text that is no UTF-8", hint="CAST it AS BLOB")
        wrong = ("syntax", "no such", "ambiguous", "misuse", "readonly", "one statement", "near")
        if any(word in said for word in wrong):
            return InvalidInput(f"the query cannot be run on {self._path}: {said[:200]}")
        return BackendError(f"{self._path} cannot be read: {said[:200]}")


def _stated(known: str) -> pa.DataType | None:
    if known in _WANTED:
        return _WANTED[known]
    if known.startswith(("int", "uint")):
        return pa.int64()
    return pa.string() if known else None


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _where(watermark: str, since: str) -> tuple[str, tuple[Any, ...]]:
    if not (watermark and since):
        return "", ()
    column = _quoted(watermark)
    value: Any = int(since) if since.removeprefix("-").isdecimal() else since
    return f" WHERE {column} >= ? OR {column} IS NULL", (value,)


def _batches(
    connection: sqlite3.Connection, query: str, values: tuple[Any, ...], schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    cursor = connection.execute(query, values)
    while rows := cursor.fetchmany(_ROWS):
        columns = []
        for field, column in zip(schema, zip(*rows, strict=True), strict=True):
            if pa.types.is_boolean(field.type):
                column = tuple(None if value is None else bool(value) for value in column)
            elif pa.types.is_floating(field.type):
                column = tuple(None if value is None else float(value) for value in column)
            columns.append(pa.array(column, field.type))
        yield pa.RecordBatch.from_arrays(columns, schema=schema)
