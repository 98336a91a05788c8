"""Expressions over one row: a tree of Python closures, about a microsecond a feature.

A row maps names to Python values: None is null, an instant is a datetime or microseconds.
"""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from everloop.core.expr import Call, Column, Constant, Kind, Node, infer
from everloop.core.time import to_micros

__all__ = ["bucket_of", "compile_row", "exp_of", "log_of", "lower_of"]

Row = Mapping[str, Any]
Function = Callable[[Row], Any]

_DAY_US = 86_400_000_000
_INT_LIMIT = 2.0**63


def compile_row(node: Node, kinds: Mapping[str, Kind]) -> Function:
    """A function from a row to the value of the expression.

    Args:
        node: The expression.
        kinds: What the columns of a row hold; integers may stand where floats are expected.

    Raises:
        InvalidInput: If a column is not there or an operator does not take what it is given.
    """
    infer(node, kinds)
    return _compile(node, kinds)


def _compile(node: Node, kinds: Mapping[str, Kind]) -> Function:
    if isinstance(node, Column):
        return _column(node.name, kinds[node.name])
    if isinstance(node, Constant):
        value = None if node.kind == "null" else node.python
        return lambda row: value
    args = [_compile(arg, kinds) for arg in node.args]
    of = [infer(arg, kinds) for arg in node.args]
    if node.function in _COMPARISONS:
        return _comparison(_COMPARISONS[node.function], args, of)
    if node.function in _ARITHMETIC:
        return _strict2(_ARITHMETIC[node.function], *args)
    if node.function in _STRUCTURAL:
        return _STRUCTURAL[node.function](node, args, of)
    return _strict1(_UNARY[node.function](node, of[0]), args[0])


def _column(name: str, kind: Kind) -> Function:
    if kind == "float":

        def number(row: Row) -> Any:
            value = row[name]
            return None if value is None else float(value)

        return number
    if kind == "timestamp":

        def instant(row: Row) -> Any:
            value = row[name]
            return value if value is None or isinstance(value, int) else to_micros(value)

        return instant
    return operator.itemgetter(name)


def _strict1(function: Callable[[Any], Any], arg: Function) -> Function:
    def run(row: Row) -> Any:
        value = arg(row)
        return None if value is None else function(value)

    return run


def _strict2(function: Callable[[Any, Any], Any], left: Function, right: Function) -> Function:
    def run(row: Row) -> Any:
        a, b = left(row), right(row)
        return None if a is None or b is None else function(a, b)

    return run


def _comparison(
    function: Callable[[Any, Any], Any], args: list[Function], of: list[Kind]
) -> Function:
    if "float" in of and "int" in of:
        return _strict2(lambda a, b: function(float(a), float(b)), *args)
    return _strict2(function, *args)


def _and(call: Call, args: list[Function], of: list[Kind]) -> Function:
    left, right = args

    def run(row: Row) -> Any:
        a = left(row)
        if a is False:
            return False
        b = right(row)
        return False if b is False else (None if a is None or b is None else True)

    return run


def _or(call: Call, args: list[Function], of: list[Kind]) -> Function:
    left, right = args

    def run(row: Row) -> Any:
        a = left(row)
        if a is True:
            return True
        b = right(row)
        return True if b is True else (None if a is None or b is None else False)

    return run


def _widened(functions: list[Function], kinds: list[Kind]) -> list[Function]:
    if set(kinds) >= {"int", "float"}:
        return [_strict1(float, function) for function in functions]
    return functions


def _where(call: Call, args: list[Function], of: list[Kind]) -> Function:
    condition = args[0]
    first, second = _widened(args[1:], of[1:])
    return lambda row: first(row) if condition(row) else second(row)


def _fill(call: Call, args: list[Function], of: list[Kind]) -> Function:
    first, second = _widened(args, of)

    def run(row: Row) -> Any:
        value = first(row)
        return second(row) if value is None else value

    return run


def _is_null(call: Call, args: list[Function], of: list[Kind]) -> Function:
    arg = args[0]
    return lambda row: arg(row) is None


def _seconds_since(call: Call, args: list[Function], of: list[Kind]) -> Function:
    return _strict2(lambda later, earlier: float(later - earlier) / 1e6, *args)


def _divide(a: float, b: float) -> float:
    a, b = float(a), float(b)
    if b != 0.0:
        return a / b
    if a == 0.0 or a != a:
        return math.nan
    return math.copysign(math.inf, a) * math.copysign(1.0, b)


def log_of(value: float) -> float:
    """The natural logarithm, with the limits that IEEE 754 gives at and below zero."""
    if value > 0.0:
        return math.log(value)
    return -math.inf if value == 0.0 else math.nan


def exp_of(value: float) -> float:
    """E to the power of `value`, infinity where it is too large."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _sqrt(value: float) -> float:
    return math.sqrt(value) if value >= 0.0 else math.nan


def _whole(function: Callable[[float], float]) -> Callable[[float], float]:
    def run(value: float) -> float:
        value = float(value)
        # From 2**52 on every double is whole; copysign keeps the sign of a zero.
        if not abs(value) < 4503599627370496.0:
            return value
        return math.copysign(float(function(value)), value)

    return run


def lower_of(text: str) -> str:
    """Text in lower case, one letter for one letter, whatever stands around it."""
    if text.isascii():
        return text.lower()
    # "İ" is the one letter whose lower case has two; the plain i is its simple mapping.
    return "".join("i" if letter == "İ" else letter.lower() for letter in text)


def bucket_of(value: str | int, buckets: int) -> int:
    """The bucket of a text or integer: the first 8 bytes of its MD5, little-endian, modulo."""
    digest = hashlib.md5(str(value).encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[:8], "little") % buckets


def _clip(call: Call, kind: Kind) -> Callable[[Any], Any]:
    low, high = call.options["low"], call.options["high"]

    def run(value: Any) -> float:
        number = float(value)
        if low is not None and number < low:
            number = low
        if high is not None and number > high:
            number = high
        return number

    return run


def _cast(call: Call, kind: Kind) -> Callable[[Any], Any]:
    target = call.options["type"]
    if target == "float64":
        return float
    if target == "bool":
        return lambda value: value != 0
    if target == "int64":
        return _to_int if kind == "float" else int
    if target == "string" and kind == "bool":
        return lambda value: "true" if value else "false"
    return str if target == "string" else lambda value: value


def _to_int(value: float) -> int | None:
    return int(value) if -_INT_LIMIT <= value < _INT_LIMIT else None


def _civil(days: int) -> tuple[int, int, int, int]:
    """Year, month, day and day of the year of a day number (1970-01-01 is 0), any year.

    Source: Howard Hinnant, chrono-Compatible Low-Level Date Algorithms, civil_from_days.
    """
    era, of_era = divmod(days + 719_468, 146_097)
    year_of_era = (of_era - of_era // 1_460 + of_era // 36_524 - of_era // 146_096) // 365
    from_march = of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted = (5 * from_march + 2) // 153
    day = from_march - (153 * shifted + 2) // 5 + 1
    month = shifted + 3 if shifted < 10 else shifted - 9
    year = year_of_era + era * 400 + (month <= 2)
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    year_day = from_march + 60 + leap if month > 2 else from_march - 305
    return year, month, day, year_day


def _date_part(part: str) -> Callable[[int], int]:
    if part == "hour":
        return lambda micros: micros // 3_600_000_000 % 24
    if part == "minute":
        return lambda micros: micros // 60_000_000 % 60
    if part == "weekday":
        return lambda micros: (micros // _DAY_US + 3) % 7
    place = ("year", "month", "day", "year_day").index(part)
    return lambda micros: _civil(micros // _DAY_US)[place]


def _lookup(call: Call, kind: Kind) -> Callable[[Any], Any]:
    table = dict(zip(call.options["keys"], call.options["values"], strict=True))
    default = call.options["default"]
    return lambda value: table.get(value, default)


def _part_maker(part: str) -> Callable[[Call, Kind], Callable[[Any], Any]]:
    return lambda call, kind: _date_part(part)


def _plain(function: Callable[[Any], Any]) -> Callable[[Call, Kind], Callable[[Any], Any]]:
    return lambda call, kind: function


_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: float(a) + float(b),
    "sub": lambda a, b: float(a) - float(b),
    "mul": lambda a, b: float(a) * float(b),
    "div": _divide,
}
_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}
_STRUCTURAL: dict[str, Callable[[Call, list[Function], list[Kind]], Function]] = {
    "and": _and,
    "or": _or,
    "where": _where,
    "fill": _fill,
    "is_null": _is_null,
    "seconds_since": _seconds_since,
}
_UNARY: dict[str, Callable[[Call, Kind], Callable[[Any], Any]]] = {
    "not": _plain(operator.not_),
    "neg": _plain(lambda value: -float(value)),
    "abs": _plain(lambda value: abs(float(value))),
    "log": _plain(log_of),
    "exp": _plain(exp_of),
    "sqrt": _plain(_sqrt),
    "floor": _plain(_whole(math.floor)),
    "ceil": _plain(_whole(math.ceil)),
    "round": _plain(_whole(round)),
    "clip": _clip,
    "cast": _cast,
    "is_nan": _plain(lambda value: value != value),
    **{part: _part_maker(part) for part in ("year", "month", "day", "hour", "minute")},
    **{part: _part_maker(part) for part in ("weekday", "year_day")},
    "lower": _plain(lower_of),
    "length": _plain(len),
    "starts_with": lambda call, kind: lambda text: text.startswith(call.options["prefix"]),
    "is_in": lambda call, kind: frozenset(call.options["values"]).__contains__,
    "hash_bucket": lambda call, kind: lambda value: bucket_of(value, call.options["buckets"]),
    "lookup": _lookup,
}
