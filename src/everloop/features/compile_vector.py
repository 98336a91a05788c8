"""Expressions over columns: NumPy vectors with a mask of nulls.

Logarithm and exponential are taken value by value from the C library and not from NumPy's own
vector code, which differs in the last bit: a row must give the same bits alone and in a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from everloop.core.expr import DATE_PARTS, Call, Column, Constant, Node, infer
from everloop.features.compile_row import bucket_of, exp_of, log_of, lower_of
from everloop.features.vectors import Array, Vector, constant

__all__ = ["evaluate"]

_DAY_US = 86_400_000_000
_INT_LIMIT = 2.0**63


def evaluate(node: Node, columns: Mapping[str, Vector], rows: int) -> Vector:
    """The value of an expression for each of `rows` rows.

    Raises:
        InvalidInput: If a column is not there or an operator does not take what it is given.
    """
    infer(node, {name: vector.kind for name, vector in columns.items()})
    with np.errstate(all="ignore"):
        return _value(node, columns).spread(rows)


def _value(node: Node, columns: Mapping[str, Vector]) -> Vector:
    if isinstance(node, Column):
        return columns[node.name]
    if isinstance(node, Constant):
        return constant(node.kind, None if node.kind == "null" else node.python)
    args = [_value(arg, columns) for arg in node.args]
    special = _SPECIAL.get(node.function)
    if special is not None:
        return special(node, args)
    if node.function in _ARITHMETIC:
        data = _ARITHMETIC[node.function](*(_double(arg) for arg in args))
        return Vector("float", data, _all_valid(args))
    return _compare(node.function, args)


def _double(vector: Vector) -> Array:
    return vector.data.astype(np.float64, copy=False)


def _all_valid(args: list[Vector]) -> Array | None:
    masks = [arg.valid for arg in args if arg.valid is not None]
    if not masks:
        return None
    found = masks[0]
    for mask in masks[1:]:
        found = found & mask
    return found


def _each(function: Callable[[float], float], values: Array) -> Array:
    flat = values.ravel().tolist()
    return np.array([function(value) for value in flat], np.float64).reshape(values.shape)


def _compare(function: str, args: list[Vector]) -> Vector:
    left, right = args
    valid = _all_valid(args)
    operator = _COMPARISONS[function]
    if left.words is not None or right.words is not None:
        return Vector("bool", operator(_ranks(left, right), _ranks(right, left)), valid)
    if {left.kind, right.kind} & {"float", "null"}:
        return Vector("bool", operator(_double(left), _double(right)), valid)
    return Vector("bool", operator(left.data, right.data), valid)


def _ranks(mine: Vector, other: Vector) -> Array:
    # Texts are compared by their place among all words of both sides.
    if not mine.words:
        return np.zeros(mine.data.shape, np.int64)
    order = {word: rank for rank, word in enumerate(sorted({*mine.words, *(other.words or ())}))}
    return np.array([order[word] for word in mine.words], np.int64)[mine.data]


def _logic(call: Call, args: list[Vector]) -> Vector:
    if call.function == "not":
        return Vector("bool", ~args[0].data.astype(np.bool_), args[0].valid)
    left, right = (arg.data.astype(np.bool_) for arg in args)
    both = call.function == "and"
    data = left & right if both else left | right
    known = _all_valid(args)
    if known is not None:
        # A side that decides alone makes the other's null irrelevant.
        for arg, side in zip(args, (left, right), strict=True):
            decides = (~side if both else side) & arg.mask()
            known = known | decides
            data = np.where(decides, not both, data)
    return Vector("bool", data, known)


def _branch(condition: Array, first: Vector, second: Vector) -> Vector:
    kind = first.kind if first.kind != "null" else second.kind
    if {first.kind, second.kind} == {"int", "float"}:
        kind = "float"
    valid = None
    if first.valid is not None or second.valid is not None:
        valid = np.where(condition, first.mask(), second.mask())
    if kind == "string":
        words = [*(first.words or [""]), *(second.words or [""])]
        shift = len(first.words or [""])
        left = first.data if first.words else np.zeros(first.data.shape, np.int32)
        right = (second.data if second.words else np.zeros(second.data.shape, np.int32)) + shift
        return Vector(kind, np.where(condition, left, right).astype(np.int32), valid, words)
    dtype = {"float": np.float64, "bool": np.bool_, "null": np.float64}.get(kind, np.int64)
    data = np.where(condition, first.data.astype(dtype), second.data.astype(dtype))
    return Vector(kind, data, valid)


def _where(call: Call, args: list[Vector]) -> Vector:
    condition = args[0].data.astype(np.bool_)
    if args[0].valid is not None:
        condition = condition & args[0].valid
    return _branch(condition, args[1], args[2])


def _fill(call: Call, args: list[Vector]) -> Vector:
    return _branch(args[0].mask(), args[0], args[1])


def _clip(call: Call, args: list[Vector]) -> Vector:
    data = _double(args[0])
    low, high = call.options["low"], call.options["high"]
    if low is not None:
        data = np.where(data < low, low, data)
    if high is not None:
        data = np.where(data > high, high, data)
    return Vector("float", data, args[0].valid)


def _cast(call: Call, args: list[Vector]) -> Vector:
    arg, target = args[0], call.options["type"]
    if target == "float64":
        return Vector("float", _double(arg), arg.valid)
    if target == "bool":
        return Vector("bool", arg.data != 0, arg.valid)
    if target == "timestamp":
        return Vector("timestamp", arg.data.astype(np.int64), arg.valid)
    if target == "int64":
        if arg.kind in ("float", "null"):
            fits = (arg.data >= -_INT_LIMIT) & (arg.data < _INT_LIMIT)  # False for NaN
            cut = np.where(fits, arg.data, 0.0).astype(np.int64)
            return Vector("int", cut, fits & arg.mask())
        return Vector("int", arg.data.astype(np.int64), arg.valid)
    if arg.words is not None:
        return arg
    distinct, codes = np.unique(arg.data, return_inverse=True)
    words = [
        str(value).lower() if arg.kind == "bool" else str(value) for value in distinct.tolist()
    ]
    return Vector("string", codes.reshape(arg.data.shape).astype(np.int32), arg.valid, words)


def _is_null(call: Call, args: list[Vector]) -> Vector:
    return Vector("bool", ~args[0].mask())


def _is_nan(call: Call, args: list[Vector]) -> Vector:
    return Vector("bool", np.isnan(_double(args[0])), args[0].valid)


def _date_part(call: Call, args: list[Vector]) -> Vector:
    return Vector("int", date_part(call.function, args[0].data.astype(np.int64)), args[0].valid)


def date_part(part: str, micros: Array) -> Array:
    """A part of the UTC date of instants (`DATE_PARTS`); int64, any year."""
    if part == "hour":
        return micros // 3_600_000_000 % 24
    if part == "minute":
        return micros // 60_000_000 % 60
    days = micros // _DAY_US
    if part == "weekday":
        return (days + 3) % 7  # 1970 began on a Thursday
    dates = days.astype("M8[D]")
    if part == "year":
        return np.asarray(dates.astype("M8[Y]").astype(np.int64) + 1970)
    if part == "month":
        return np.asarray(dates.astype("M8[M]").astype(np.int64) % 12 + 1)
    begin = dates.astype("M8[M]" if part == "day" else "M8[Y]").astype("M8[D]")
    return np.asarray((dates - begin).astype(np.int64) + 1)


def _seconds_since(call: Call, args: list[Vector]) -> Vector:
    later, earlier = (arg.data.astype(np.int64) for arg in args)
    return Vector("float", (later - earlier) / 1e6, _all_valid(args))


def _by_word(arg: Vector, function: Callable[[Any], Any], dtype: Any) -> Array:
    """Apply `function` once for each distinct text or integer."""
    if arg.kind == "null":
        return np.zeros(arg.data.shape, dtype)
    if arg.words is not None:
        if not arg.words:
            return np.zeros(arg.data.shape, dtype)
        return np.array([function(word) for word in arg.words], dtype)[arg.data]
    distinct, codes = np.unique(arg.data, return_inverse=True)
    found = np.array([function(value) for value in distinct.tolist()], dtype)
    return found[codes].reshape(arg.data.shape)


def _lower(call: Call, args: list[Vector]) -> Vector:
    words = [lower_of(word) for word in args[0].words or [""]]
    data = args[0].data if args[0].words else np.zeros(args[0].data.shape, np.int32)
    return Vector("string", data, args[0].valid, words)


def _length(call: Call, args: list[Vector]) -> Vector:
    return Vector("int", _by_word(args[0], len, np.int64), args[0].valid)


def _starts_with(call: Call, args: list[Vector]) -> Vector:
    prefix = call.options["prefix"]
    data = _by_word(args[0], lambda word: word.startswith(prefix), np.bool_)
    return Vector("bool", data, args[0].valid)


def _is_in(call: Call, args: list[Vector]) -> Vector:
    listed = frozenset(call.options["values"])
    return Vector("bool", _by_word(args[0], listed.__contains__, np.bool_), args[0].valid)


def _hash_bucket(call: Call, args: list[Vector]) -> Vector:
    buckets = call.options["buckets"]
    data = _by_word(args[0], lambda value: bucket_of(value, buckets), np.int64)
    return Vector("int", data, args[0].valid)


def _lookup(call: Call, args: list[Vector]) -> Vector:
    table = dict(zip(call.options["keys"], call.options["values"], strict=True))
    default = call.options["default"]
    other = math.nan if default is None else default
    data = _by_word(args[0], lambda value: table.get(value, other), np.float64)
    valid = args[0].valid
    if default is None:  # a table holds no NaN, so a NaN says "not in it"
        found = ~np.isnan(data)
        valid = found if valid is None else valid & found
    return Vector("float", data, valid)


def _unary(function: Callable[[Array], Array]) -> Callable[[Call, list[Vector]], Vector]:
    return lambda call, args: Vector("float", function(_double(args[0])), args[0].valid)


_ARITHMETIC: dict[str, Callable[..., Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
}
_COMPARISONS: dict[str, Callable[..., Array]] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
_SPECIAL: dict[str, Callable[[Call, list[Vector]], Vector]] = {
    "neg": _unary(np.negative),
    "abs": _unary(np.abs),
    "log": _unary(lambda values: _each(log_of, values)),
    "exp": _unary(lambda values: _each(exp_of, values)),
    "sqrt": _unary(np.sqrt),
    "floor": _unary(np.floor),
    "ceil": _unary(np.ceil),
    "round": _unary(np.rint),
    "clip": _clip,
    "and": _logic,
    "or": _logic,
    "not": _logic,
    "where": _where,
    "fill": _fill,
    "cast": _cast,
    "is_null": _is_null,
    "is_nan": _is_nan,
    **dict.fromkeys(DATE_PARTS, _date_part),
    "seconds_since": _seconds_since,
    "lower": _lower,
    "length": _length,
    "starts_with": _starts_with,
    "is_in": _is_in,
    "hash_bucket": _hash_bucket,
    "lookup": _lookup,
}
