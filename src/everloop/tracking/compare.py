"""Comparisons as SQL that mean the same on both dialects; what comes after a place in an order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, and_, func, or_, true, type_coerce

__all__ = ["Condition", "after", "compare", "compare_time"]

Condition = ColumnElement[bool]
_INT64 = 1 << 63


def compare_time(column: Any, op: str, millis: float) -> Condition:
    """Compare a column of microseconds, cut to milliseconds, without computing on the column."""
    from_ = _micros(math.ceil(millis))  # the first instant that is >= millis
    above = _micros(math.floor(millis) + 1)  # the first that is > millis
    column = type_coerce(column, BigInteger)
    conditions: dict[str, Condition] = {
        ">": column >= above,
        ">=": column >= from_,
        "<": column < from_,
        "<=": column < above,
        "=": and_(column >= from_, column < above),
        "!=": or_(column < from_, column >= above),
    }
    return conditions[op]


def _micros(millis: int) -> int:
    return max(-_INT64, min(millis * 1000, _INT64 - 1))


def compare(column: Any, op: str, value: Any, dialect: str) -> Condition:
    """Compare a column of text or numbers by an operator of the search grammar."""
    if op == "IN":
        return column.in_(value)  # type: ignore[no-any-return]
    if op == "NOT IN":
        return column.not_in(value)  # type: ignore[no-any-return]
    if op == "LIKE":
        return _like(column, value, dialect)
    if op == "ILIKE":
        escaped = value.replace("\\", "\\\\")
        return func.lower(column).like(func.lower(escaped), escape="\\")
    if op == "RLIKE":
        return column.op("REGEXP" if dialect == "sqlite" else "~", is_comparison=True)(value)  # type: ignore[no-any-return]
    return column.op(op, is_comparison=True)(value)  # type: ignore[no-any-return]


def _like(column: Any, pattern: str, dialect: str) -> Condition:
    if dialect != "sqlite":
        return column.like(pattern.replace("\\", "\\\\"), escape="\\")  # type: ignore[no-any-return]
    # SQLite's LIKE ignores case; GLOB does not, and has other signs.
    signs = {"%": "*", "_": "?", "*": "[*]", "?": "[?]", "[": "[[]"}
    glob = "".join(signs.get(letter, letter) for letter in pattern)
    return column.op("GLOB", is_comparison=True)(glob)  # type: ignore[no-any-return]


def after(columns: Sequence[tuple[Any, bool, type]], place: list[Any]) -> Condition:
    """Rows that come after `place` in the order of `columns` (column, descending, kind)."""
    later: list[Condition] = []
    equal: Condition = true()
    for (column, descending, _), value in zip(columns, place, strict=True):
        beyond = column < value if descending else column > value
        later.append(and_(equal, beyond))
        equal = and_(equal, column == value)
    return or_(*later)
