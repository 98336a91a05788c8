"""SQL expressions over an Arrow table, by DuckDB in memory.

Expressions come from schemas and from user code, and with a server from other people. They see
the table and nothing else: no files, no extensions, no variables of this process. Timestamps are
seen without their zone, in UTC, so that an answer does not depend on the machine's zone. NaN is
seen as null, as in the rules of fields: an engine's order of NaN decides nothing.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from everloop.errors import Fault, InvalidInput

if TYPE_CHECKING:
    import duckdb

__all__ = ["broken_rows", "evaluate", "matching_rows"]

_CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
}

# Opening an engine costs tens of milliseconds, a cursor on an open one tens of microseconds.
_engine: duckdb.DuckDBPyConnection | None = None
_lock = threading.Lock()


def _after_fork() -> None:
    # The engine's threads do not live in a forked child, and closing it would wait for them: it
    # is kept alive for good there, and the child opens one of its own.
    global _engine, _lock
    if _engine is not None:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(_engine))
    _engine, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _cursor() -> duckdb.DuckDBPyConnection:
    import duckdb  # not every commit has a rule in SQL

    global _engine
    with _lock:
        if _engine is None:
            _engine = duckdb.connect(":memory:", config=_CONFIG)
            _engine.execute("SET python_enable_replacements = false")
            _engine.execute("SET lock_configuration = true")
        return _engine.cursor()


def broken_rows(table: pa.Table, conditions: Mapping[str, str]) -> dict[str, np.ndarray]:
    """For each condition the rows, ascending, for which it is not true; null is not true.

    Args:
        table: Any number of rows.
        conditions: SQL by the name of the rule; all are evaluated in one query.

    Raises:
        InvalidInput: With each condition that SQL cannot understand or evaluate.
    """
    if not conditions:
        return {}
    return _rows(table, {name: f"({_alone(sql)}) IS NOT TRUE" for name, sql in conditions.items()})


def matching_rows(table: pa.Table, rule: str, condition: str) -> np.ndarray:
    """The rows, ascending, for which `condition` is true; null is not true. Raises as above."""
    return _rows(table, {rule: f"({_alone(condition)}) IS TRUE"})[rule]


def evaluate(table: pa.Table, rule: str, expression: str) -> pa.ChunkedArray:
    """The value of `expression` for each row, in the order of the rows. Raises as above."""
    row = _row_name(table)
    query = f'SELECT "{row}", {_alone(expression)} AS value FROM rows'
    found = _query(table, row, {rule: query})
    value = found.sort_by(row).column("value")
    if pa.types.is_timestamp(value.type):
        # Its unit stays: cutting nanoseconds off would change values in silence.
        unit = value.type.unit
        return value.cast(pa.timestamp(unit)).cast(pa.timestamp(unit, tz="UTC"))
    return value


def _alone(expression: str) -> str:
    # Where one expression must stand: DuckDB reads "()" and "(x, y)" as values too. The line break
    # ends a comment.
    return f"CASE WHEN true THEN {expression}\nEND"


def _rows(table: pa.Table, wanted: dict[str, str]) -> dict[str, np.ndarray]:
    row = _row_name(table)
    columns = ", ".join(f'{sql} AS "{row}{n}"' for n, sql in enumerate(wanted.values()))
    some = " OR ".join(f'"{row}{n}"' for n in range(len(wanted)))
    # A projection within, as a window function may stand in an expression but not in WHERE.
    query = f'SELECT * FROM (SELECT "{row}", {columns} FROM rows) WHERE {some}'
    alone = {name: f'SELECT "{row}", {sql} FROM rows' for name, sql in wanted.items()}
    found = _query(table, row, alone, query if len(wanted) > 1 else None)
    index = found.column(0).to_numpy()
    picked = [found.column(n + 1).to_numpy().astype(bool) for n in range(len(wanted))]
    return {name: np.sort(index[mask]) for name, mask in zip(wanted, picked, strict=True)}


def _query(
    table: pa.Table, row: str, alone: Mapping[str, str], together: str | None = None
) -> pa.Table:
    import duckdb

    _refuse_ambiguous(table, alone)
    cursor = _cursor()
    numbered = _as_seen(table).append_column(row, pa.array(np.arange(table.num_rows)))
    cursor.register("rows", numbered)
    try:
        if together is None:
            [together] = alone.values()
        return _run(cursor, together)
    except (duckdb.Error, ValueError) as error:
        faults = _faults(cursor, alone) or [Fault("", _first_line(error))]
        raise InvalidInput("a rule cannot be evaluated", faults, hint=_HINT) from None
    finally:
        cursor.close()


def _refuse_ambiguous(table: pa.Table, alone: Mapping[str, str]) -> None:
    """Refuse expressions over columns that SQL takes for one: it knows no upper and lower case."""
    names: dict[str, list[str]] = {}
    for column in table.column_names:
        names.setdefault(column.lower(), []).append(column)
    faults = [
        Fault(rule, f"SQL cannot tell the columns {' and '.join(map(repr, alike))} apart")
        for rule, query in alone.items()
        for lower, alike in names.items()
        if len(alike) > 1 and lower in query.lower()
    ]
    if faults:
        raise InvalidInput("a rule cannot be evaluated", faults, hint="rename one of the columns")


_HINT = 'a rule is an SQL condition over the columns; quote names that SQL reserves: "at"'


def _faults(cursor: duckdb.DuckDBPyConnection, alone: Mapping[str, str]) -> list[Fault]:
    import duckdb

    faults = []
    for name, query in alone.items():
        try:
            _run(cursor, query)
        except (duckdb.Error, ValueError) as error:
            faults.append(Fault(name, _first_line(error)))
    return faults


def _run(cursor: duckdb.DuckDBPyConnection, query: str) -> pa.Table:
    if len(cursor.extract_statements(query)) != 1:
        raise ValueError("more than one statement")
    relation: Any = cursor.sql(query)
    return relation.to_arrow_table()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _row_name(table: pa.Table) -> str:
    name = "__row"
    while any(column.lower().startswith(name) for column in table.column_names):
        name += "_"
    return name


def _as_seen(table: pa.Table) -> pa.Table:
    for position, field in enumerate(table.schema):
        column = table.column(position)
        if pa.types.is_timestamp(field.type) and field.type.tz is not None:
            seen = column.cast(pa.timestamp(field.type.unit))
        elif pa.types.is_floating(field.type) and pc.any(pc.is_nan(column)).as_py():
            seen = pc.if_else(pc.is_nan(column), pa.scalar(None, field.type), column)
        else:
            continue
        table = table.set_column(position, field.name, seen)
    return table
