"""Expressions as SQL for DuckDB. An instant inside is BIGINT microseconds since 1970."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from everloop.core.expr import DATE_PARTS, Call, Column, Constant, Kind, Node, infer

__all__ = ["compile_sql", "literal"]

_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
_COMPARISONS = {"eq": "=", "ne": "<>", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_EXTRACT = {**{part: part for part in DATE_PARTS}, "weekday": "isodow", "year_day": "doy"}
_PLAIN = {
    "neg": "(-{0})",
    "abs": "abs({0})",
    "floor": "floor({0})",
    "ceil": "ceil({0})",
    "round": "round_even({0}, 0)",
    # DuckDB refuses logarithms and roots of what has none; ours follow IEEE 754.
    "log": "(CASE WHEN isnan({0}) THEN {0} WHEN {0} > 0 THEN ln({0})"
    " WHEN {0} = 0 THEN '-inf'::DOUBLE WHEN {0} < 0 THEN 'nan'::DOUBLE END)",
    "sqrt": "(CASE WHEN {0} >= 0 THEN sqrt({0}) WHEN {0} < 0 THEN 'nan'::DOUBLE END)",
    # ... and exponentials out of range.
    "exp": "(CASE WHEN isnan({0}) THEN {0} WHEN {0} > 709.79 THEN 'inf'::DOUBLE"
    " WHEN {0} < -746 THEN 0::DOUBLE ELSE exp({0}) END)",
}
_TEMPLATES = {
    "and": "({0} AND {1})",
    "or": "({0} OR {1})",
    "not": "(NOT {0})",
    "where": "(CASE WHEN {0} THEN {1} ELSE {2} END)",
    "fill": "coalesce({0}, {1})",
    "is_null": "({0} IS NULL)",
    "is_nan": "isnan(CAST({0} AS DOUBLE))",
    "seconds_since": "(CAST({0} - {1} AS DOUBLE) / 1e6)",
    "lower": "lower({0})",
    "length": "length({0})",
}
_CASTS = {
    "bool": "({0} <> 0)",
    "float64": "CAST({0} AS DOUBLE)",
    "string": "CAST({0} AS VARCHAR)",
    "timestamp": "{0}",
}


def compile_sql(node: Node, kinds: Mapping[str, Kind]) -> str:
    """An SQL expression with the value of `node`, over columns of `kinds`.

    Raises:
        InvalidInput: If a column is not there or an operator does not take what it is given.
    """
    kind = infer(node, kinds)
    text = _sql(node, kinds)
    return f"make_timestamp({text})" if kind == "timestamp" else text


def _sql(node: Node, kinds: Mapping[str, Kind]) -> str:
    if isinstance(node, Column):
        return _column(node.name, kinds[node.name])
    if isinstance(node, Constant):
        return _constant(node)
    args = [_sql(arg, kinds) for arg in node.args]
    of = [infer(arg, kinds) for arg in node.args]
    function = node.function
    if function in _INFIX:
        return f"({_double(args[0])} {_INFIX[function]} {_double(args[1])})"
    if function in _COMPARISONS:
        return _comparison(function, node, args, of)
    if function in _PLAIN:
        return _PLAIN[function].format(_double(args[0]))
    if function in DATE_PARTS:
        part = f"extract('{_EXTRACT[function]}' FROM make_timestamp({args[0]}))"
        return f"({part} - 1)" if function == "weekday" else part
    return _rest(node, args, of)


def _column(name: str, kind: Kind) -> str:
    quoted = '"' + name.replace('"', '""') + '"'
    if kind == "timestamp":
        return f"epoch_us({quoted})"
    return f"CAST({quoted} AS DOUBLE)" if kind == "float" else quoted


def _constant(node: Constant) -> str:
    if node.kind == "null":
        return "NULL"
    return literal(node.python)


def literal(value: Any) -> str:
    """A value as it stands in SQL."""
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, int):
        return f"CAST({value} AS BIGINT)"
    if isinstance(value, float):
        if math.isnan(value):
            return "'nan'::DOUBLE"
        if math.isinf(value):
            return "'inf'::DOUBLE" if value > 0 else "'-inf'::DOUBLE"
        return f"'{value!r}'::DOUBLE"
    # A NUL cannot stand in SQL text, so it is put in by function.
    parts = [part.replace("'", "''") for part in str(value).split("\0")]
    text = " || chr(0) || ".join(f"'{part}'" for part in parts)
    return f"({text})" if len(parts) > 1 else text


def _double(text: str) -> str:
    return f"CAST({text} AS DOUBLE)"


def _comparison(function: str, node: Call, args: list[str], of: list[Kind]) -> str:
    sign = _COMPARISONS[function]
    if "float" not in of:
        return f"({args[0]} {sign} {args[1]})"
    left, right = (_double(arg) for arg in args)
    doubtful = [
        text
        for text, arg, kind in zip((left, right), node.args, of, strict=True)
        if kind == "float" and not (isinstance(arg, Constant) and not math.isnan(arg.python))
    ]
    plain = f"({left} {sign} {right})"
    if not doubtful:
        return plain
    # DuckDB puts NaN above all numbers and equal to itself; ours compares false, save for <>.
    unordered = " OR ".join(f"isnan({text})" for text in doubtful)
    answer = "TRUE" if function == "ne" else "FALSE"
    return (
        f"(CASE WHEN {left} IS NULL OR {right} IS NULL THEN NULL"
        f" WHEN {unordered} THEN {answer} ELSE {plain} END)"
    )


def _rest(node: Call, args: list[str], of: list[Kind]) -> str:
    function, options = node.function, node.options
    if function in _TEMPLATES:
        return _TEMPLATES[function].format(*args)
    if function == "clip":
        return _clip(_double(args[0]), options)
    if function == "cast":
        return _cast(args[0], of[0], options["type"])
    if function == "starts_with":
        return f"starts_with({args[0]}, {literal(options['prefix'])})"
    if function == "hash_bucket":
        number = f"md5_number_upper(CAST({args[0]} AS VARCHAR))"
        return f"CAST({number} % {options['buckets']} AS BIGINT)"
    return _listed(function, args[0], options)


def _clip(text: str, options: dict[str, Any]) -> str:
    bounds = ""
    if options["low"] is not None:
        bounds += f" WHEN {text} < {literal(options['low'])} THEN {literal(options['low'])}"
    if options["high"] is not None:
        bounds += f" WHEN {text} > {literal(options['high'])} THEN {literal(options['high'])}"
    return f"(CASE WHEN isnan({text}) THEN {text}{bounds} ELSE {text} END)"


def _cast(text: str, kind: Kind, target: str) -> str:
    if target == "int64":
        if kind in ("float", "null"):
            return f"TRY_CAST(trunc({_double(text)}) AS BIGINT)"
        return f"CAST({text} AS BIGINT)"
    if target == "bool" and kind == "bool":
        return text
    return _CASTS[target].format(text)


def _listed(function: str, text: str, options: dict[str, Any]) -> str:
    if function == "is_in":
        return f"({text} IN ({', '.join(literal(value) for value in options['values'])}))"
    pairs = zip(options["keys"], options["values"], strict=True)
    cases = "".join(f" WHEN {literal(key)} THEN {literal(value)}" for key, value in pairs)
    default = "NULL" if options["default"] is None else literal(options["default"])
    return f"(CASE WHEN {text} IS NULL THEN NULL ELSE CASE {text}{cases} ELSE {default} END END)"
