"""Functions of the user's that checks name: what is true of a row, and how rows are corrected.

A schema is plain data and travels; a function does not. It is registered under its name in the
process that holds the catalog: where a loop file is imported, that is done by the import.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import polars as pl
import pyarrow as pa

from everloop.data.frame import Table
from everloop.errors import InvalidInput, NotFound, UserCodeError

__all__ = ["check_function", "forget", "holds", "named", "repair", "repaired", "sees_all"]

Function = TypeVar("Function", bound=Callable[..., Any])

_CHECKS: dict[str, Any] = {}
_REPAIRS: dict[str, Callable[[Table], Any]] = {}
#: Names of functions that must be given all rows at once.
_WHOLE: set[str] = set()


def check_function(
    name: str, expression: pl.Expr | None = None, *, sees_all: bool = False
) -> Callable[[Function], Function]:
    """Register what a check of kind ``function`` means.

    Args:
        name: What ``ev.Check(kind="function", to=name)`` says.
        expression: A Polars expression, true for a row that is well; it is evaluated in the one
            pass, over the columns of the whole frame. Without one this is a decorator of a function
            that takes a :class:`Table` of the check's columns (all, if it names none) and gives one
            boolean a row; it is given rows in parts, and must judge each row by itself.
        sees_all: Give a function all rows at once instead; a version is then read whole.
    """
    _WHOLE.discard(name)
    if sees_all:
        _WHOLE.add(name)
    if expression is not None:
        _CHECKS[name] = expression

    def keep(function: Function) -> Function:
        _CHECKS[name] = function
        return function

    return keep


def repair(name: str) -> Callable[[Function], Function]:
    """Register a function that corrects rows, for ``on_fail="repair"``.

    It takes a :class:`Table` of the rows that broke the rule and gives as many, in the same order,
    with the same columns and types. They are judged again; what is still broken fails the commit.
    """

    def keep(function: Function) -> Function:
        _REPAIRS[name] = function
        return function

    return keep


def forget(name: str) -> None:
    """Remove both functions of a name; what is not there is no error."""
    _CHECKS.pop(name, None)
    _WHOLE.discard(name)
    _REPAIRS.pop(name, None)


def sees_all(name: str) -> bool:
    """Whether the function `name` must be given all rows at once."""
    return name in _WHOLE


def named(name: str, *, is_repair: bool = False) -> Any:
    """The function or expression under `name`.

    Raises:
        NotFound: With the nearest names.
    """
    known: dict[str, Any] = _REPAIRS if is_repair else _CHECKS
    if name not in known:
        raise NotFound.named("repair" if is_repair else "check function", name, known)
    return known[name]


def holds(name: str, rows: pa.Table, *, is_hidden: bool) -> np.ndarray:
    """For each row whether the function `name` holds; null is not true.

    Args:
        is_hidden: Whether the rows hold personal data, which the words of an error may repeat.

    Raises:
        UserCodeError: If it raises.
        InvalidInput: If it gives anything but one boolean a row.
    """
    given = _called(name, named(name), rows, is_hidden=is_hidden)
    if isinstance(given, pl.Series):
        given = given.to_arrow()
    try:
        values = given if isinstance(given, pa.Array | pa.ChunkedArray) else pa.array(given)
    except (pa.ArrowException, TypeError) as error:
        raise _wrong(name, f"gave a {type(given).__name__}") from error
    if len(values) != rows.num_rows or not pa.types.is_boolean(values.type):
        raise _wrong(name, f"gave {len(values)} values of {values.type} for {rows.num_rows} rows")
    return np.asarray(values.fill_null(False).to_numpy(zero_copy_only=False), dtype=bool)


def repaired(name: str, rows: pa.Table, *, is_hidden: bool) -> pa.Table:
    """`rows` as the repair `name` leaves them, in the same columns and types.

    Raises:
        UserCodeError: If it raises.
        InvalidInput: If it gives other columns, other types or another number of rows.
    """
    given = Table.of(_called(name, named(name, is_repair=True), rows, is_hidden=is_hidden))
    found = given.to_arrow()
    if found.num_rows != rows.num_rows:
        raise _wrong(name, f"gave {found.num_rows} rows for {rows.num_rows}")
    if set(found.column_names) != set(rows.column_names) or len(found.schema) != len(rows.schema):
        raise _wrong(name, f"gave the columns {', '.join(found.column_names)}")
    try:
        return found.select(rows.column_names).cast(rows.schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        why = "another type" if is_hidden else str(error).splitlines()[0]
        raise _wrong(name, f"gave another schema: {why}") from error


def _called(name: str, function: Callable[[Table], Any], rows: pa.Table, *, is_hidden: bool) -> Any:
    try:
        return function(Table(rows))
    except Exception as error:  # the user's code may raise anything
        if is_hidden:
            raise UserCodeError(
                f"{name} raised {type(error).__name__}",
                hint="its words are not shown: the rows hold personal data",
            ) from None
        raise UserCodeError.caught(name, error) from error


def _wrong(name: str, what: str) -> InvalidInput:
    return InvalidInput(f"{name} {what}", hint="one boolean a row; or the same rows, corrected")
