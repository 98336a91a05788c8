"""Expressions as Polars: one more reading of the tree of ``everloop.core.expr``, for whole frames.

An instant inside is Int64 microseconds since 1970. The operators mean what that module says: NaN
compares false save with ``!=``, and two integers are compared exactly, also beyond 64 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import polars as pl

from everloop.core.expr import DATE_PARTS, Call, Column, Constant, Kind, Node, infer, kind_of
from everloop.core.kinds import FieldType
from everloop.errors import InvalidInput

__all__ = ["compile_polars"]

_COMPARISONS: dict[str, Callable[[pl.Expr, pl.Expr], pl.Expr]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}
_ARITHMETIC: dict[str, Callable[[pl.Expr, pl.Expr], pl.Expr]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
}
_UNARY: dict[str, Callable[[pl.Expr], pl.Expr]] = {
    "neg": lambda a: -a,
    "abs": lambda a: a.abs(),
    "log": lambda a: a.log(),
    "exp": lambda a: a.exp(),
    "sqrt": lambda a: a.sqrt(),
    "floor": lambda a: a.floor(),
    "ceil": lambda a: a.ceil(),
    "round": lambda a: a.round(0, mode="half_to_even"),
}
_PARTS: dict[str, Callable[[pl.Expr], pl.Expr]] = {
    "year": lambda a: a.dt.year(),
    "month": lambda a: a.dt.month(),
    "day": lambda a: a.dt.day(),
    "hour": lambda a: a.dt.hour(),
    "minute": lambda a: a.dt.minute(),
    "weekday": lambda a: a.dt.weekday() - 1,
    "year_day": lambda a: a.dt.ordinal_day(),
}


def compile_polars(node: Node, types: Mapping[str, FieldType]) -> pl.Expr:
    """A Polars expression with the value of `node`, over columns of `types`.

    Raises:
        InvalidInput: If a column is not there, an operator does not take what it is given, or is
            ``hash_bucket``, which no check needs.
    """
    kinds = {name: kind_of(kind) for name, kind in types.items() if kind != "binary"}
    infer(node, kinds)
    return _polars(node, kinds, types)


def _polars(node: Node, kinds: Mapping[str, Kind], types: Mapping[str, FieldType]) -> pl.Expr:
    if isinstance(node, Column):
        return _column(node.name, types[node.name])
    if isinstance(node, Constant):
        return pl.lit(None) if node.kind == "null" else _literal(node.python)
    args = [_polars(arg, kinds, types) for arg in node.args]
    of = [infer(arg, kinds) for arg in node.args]
    function = node.function
    if function in _ARITHMETIC:
        return _ARITHMETIC[function](_double(args[0]), _double(args[1]))
    if function in _COMPARISONS:
        return _comparison(function, args, of)
    if function in _UNARY:
        return _UNARY[function](_double(args[0]))
    if function in DATE_PARTS:
        instant = pl.from_epoch(args[0].cast(pl.Int64), time_unit="us")
        return _PARTS[function](instant).cast(pl.Int64)
    if function in _REST:
        return _REST[function](node, args, of)
    raise InvalidInput(f"{function} cannot stand in a check")


def _column(name: str, kind: FieldType) -> pl.Expr:
    column = pl.col(name)
    if kind == "uint64":
        return column.cast(pl.Int128)
    if kind.startswith(("int", "uint")):
        return column.cast(pl.Int64)
    if kind.startswith("float"):
        return column.cast(pl.Float64)
    if kind == "date":
        return column.cast(pl.Datetime("us")).dt.epoch("us")
    return column.dt.epoch("us") if kind == "timestamp" else column


def _literal(value: Any) -> pl.Expr:
    if isinstance(value, int) and not isinstance(value, bool):
        return pl.lit(value, dtype=pl.Int64)
    return pl.lit(value)


def _double(value: pl.Expr) -> pl.Expr:
    return value.cast(pl.Float64)


def _comparison(function: str, args: list[pl.Expr], of: list[Kind]) -> pl.Expr:
    left, right = args
    if "float" not in of:
        return _COMPARISONS[function](left, right)
    left, right = _double(left), _double(right)
    # Polars, too, puts NaN above all numbers and equal to itself.
    unordered = pl.any_horizontal(
        [arg.is_nan() for arg, kind in zip((left, right), of, strict=True) if kind == "float"]
    )
    plain = _COMPARISONS[function](left, right)
    return plain | unordered if function == "ne" else plain & ~unordered


def _clip(call: Call, args: list[pl.Expr], of: list[Kind]) -> pl.Expr:
    value = _double(args[0])
    low, high = call.options["low"], call.options["high"]
    found = value
    if low is not None:
        found = pl.when(value < low).then(pl.lit(low)).otherwise(found)
    if high is not None:
        above = (value > high) & value.is_not_nan()
        found = pl.when(above).then(pl.lit(high)).otherwise(found)
    return found


def _cast(call: Call, args: list[pl.Expr], of: list[Kind]) -> pl.Expr:
    target, value = call.options["type"], args[0]
    if target == "float64":
        return _double(value)
    if target == "bool":
        # NaN is not zero to any engine.
        return value if of[0] == "bool" else value != 0
    if target == "int64":
        return value.cast(pl.Int64, strict=False)  # cuts towards zero; null where it does not fit
    if target == "string":
        return value.cast(pl.String)
    return value


def _where(call: Call, args: list[pl.Expr], of: list[Kind]) -> pl.Expr:
    first, second = _widened(args[1:], of[1:])
    return pl.when(args[0]).then(first).otherwise(second)


def _fill(call: Call, args: list[pl.Expr], of: list[Kind]) -> pl.Expr:
    first, second = _widened(args, of)
    return pl.coalesce(first, second)


def _widened(args: list[pl.Expr], of: list[Kind]) -> list[pl.Expr]:
    return [_double(arg) for arg in args] if "float" in of else args


def _is_nan(call: Call, args: list[pl.Expr], of: list[Kind]) -> pl.Expr:
    return _double(args[0]).is_nan()


def _seconds(call: Call, args: list[pl.Expr], of: list[Kind]) -> pl.Expr:
    return _double(args[0] - args[1]) / 1e6


def _lower(call: Call, args: list[pl.Expr], of: list[Kind]) -> pl.Expr:
    # Letter by letter: two letters have a lower case that hangs on their place, or is two.
    plain = args[0].str.replace_all("Σ", "σ", literal=True).str.replace_all("İ", "i", literal=True)
    return plain.str.to_lowercase()


def _is_in(call: Call, args: list[pl.Expr], of: list[Kind]) -> pl.Expr:
    return _any_of(args[0], call.options["values"])


def _any_of(value: pl.Expr, listed: list[Any]) -> pl.Expr:
    if isinstance(listed[0], str):
        return value.is_in(pl.lit(pl.Series(listed, dtype=pl.String)).implode())
    return value.cast(pl.Int128).is_in(pl.lit(pl.Series(listed, dtype=pl.Int128)).implode())


def _lookup(call: Call, args: list[pl.Expr], of: list[Kind]) -> pl.Expr:
    options = call.options
    found = args[0].replace_strict(
        options["keys"], options["values"], default=options["default"], return_dtype=pl.Float64
    )
    return pl.when(args[0].is_not_null()).then(found)


_REST: dict[str, Callable[[Call, list[pl.Expr], list[Kind]], pl.Expr]] = {
    "and": lambda call, args, of: args[0].cast(pl.Boolean) & args[1].cast(pl.Boolean),
    "or": lambda call, args, of: args[0].cast(pl.Boolean) | args[1].cast(pl.Boolean),
    "not": lambda call, args, of: ~args[0].cast(pl.Boolean),
    "where": _where,
    "fill": _fill,
    "clip": _clip,
    "cast": _cast,
    "is_null": lambda call, args, of: args[0].is_null(),
    "is_nan": _is_nan,
    "seconds_since": _seconds,
    "lower": _lower,
    "length": lambda call, args, of: args[0].str.len_chars().cast(pl.Int64),
    "starts_with": lambda call, args, of: args[0].str.starts_with(call.options["prefix"]),
    "is_in": _is_in,
    "lookup": _lookup,
}
