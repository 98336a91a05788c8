"""The rules of fields and of the key as Polars expressions; those of checks are in ``check_rules``.

A missing value breaks ``not_null`` and no other rule. NaN counts as missing everywhere, so that
an answer does not depend on how an engine orders NaN. Of values that repeat, the first may stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from everloop.core.schema import Field, OnFail, Schema
from everloop.errors import Fault, InvalidInput

__all__ = ["POLARS", "Rule", "missing", "repeats", "rules_of"]

#: Polars types by field type; text, times and dates have one each.
POLARS: dict[str, Any] = {
    "int8": pl.Int8,
    "int16": pl.Int16,
    "int32": pl.Int32,
    "int64": pl.Int64,
    "uint8": pl.UInt8,
    "uint16": pl.UInt16,
    "uint32": pl.UInt32,
    "uint64": pl.UInt64,
    "float32": pl.Float32,
    "float64": pl.Float64,
    "string": pl.String,
    "binary": pl.Binary,
    "bool": pl.Boolean,
    "timestamp": pl.Datetime("us", "UTC"),
    "date": pl.Date,
}


class Rule(NamedTuple):
    """One rule over rows.

    Attributes:
        name: ``column.kind``, such as ``distance.ge``; ``key.unique`` for the key.
        columns: What it looks at.
        broken: True for a row that breaks it; null counts as false.
        reason: Why a row breaks it, in words, without its value.
        tell: The message for one value; None where values must not be shown.
        is_whole: Whether a row can only be judged with all rows before it.
        repair: Name of the function that corrects its rows.
        judged: True for a row that it looks at; None if it looks at all.
        mostly: Least share of those that must hold it.
    """

    name: str
    columns: tuple[str, ...]
    broken: pl.Expr
    reason: str
    on_fail: OnFail
    owner: str
    tell: Callable[[Any], str] | None
    is_whole: bool = False
    repair: str = ""
    judged: pl.Expr | None = None
    mostly: float = 1.0


def rules_of(schema: Schema, present: frozenset[str], *, keep_last: bool = False) -> list[Rule]:
    """The rules of `schema` that look at `present` columns only.

    Args:
        keep_last: Of rows with one key the last one stays and the others are left out.

    Raises:
        InvalidInput: With each regex that cannot be compiled.
    """
    rules = [rule for f in schema.fields if f.name in present for rule in _of_field(f)]
    if schema.key and present.issuperset(schema.key):
        rules += _of_key(schema, keep_last=keep_last)
    return rules


def _of_field(field: Field) -> Iterator[Rule]:
    if not field.nullable:
        yield _rule(field, "not_null", missing(field), "is null", lambda _: "is null")
    if field.ge is not None and (broken := _below(field, field.ge)) is not None:
        yield _bound(field, "ge", broken, f"is below {field.ge:g}")
    if field.le is not None and (broken := _above(field, field.le)) is not None:
        yield _bound(field, "le", broken, f"is above {field.le:g}")
    if field.among:
        values = pl.lit(pl.Series(list(field.among), dtype=POLARS[field.type])).implode()
        broken = ~_column(field).is_in(values) & ~missing(field)
        shown = ", ".join(map(repr, field.among[:8])) + (", ..." if len(field.among) > 8 else "")
        yield _bound(field, "among", broken, f"is none of {shown}")
    if field.regex:
        yield _bound(field, "regex", ~_matches(field), f"does not match {field.regex!r}")
    if field.max_length:
        broken = _column(field).str.len_chars() > field.max_length
        yield _bound(field, "max_length", broken, f"is longer than {field.max_length} characters")
    if field.unique:
        broken = ~_column(field).is_first_distinct() & ~missing(field)
        repeats = _bound(field, "unique", broken, "stands in an earlier row already")
        yield repeats._replace(is_whole=True)


def _rule(
    field: Field, kind: str, broken: pl.Expr, reason: str, tell: Callable[[Any], str]
) -> Rule:
    return Rule(
        f"{field.name}.{kind}",
        (field.name,),
        broken,
        f"{field.name} {reason}",
        field.on_fail,
        field.owner,
        None if field.pii else tell,
        repair=field.repair,
    )


def _bound(field: Field, kind: str, broken: pl.Expr, reason: str) -> Rule:
    return _rule(field, kind, broken, reason, lambda value: f"{_shown(value)} {reason}")


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str | bytes) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _column(field: Field) -> pl.Expr:
    return pl.col(field.name)


def missing(field: Field) -> pl.Expr:
    """Null, or NaN in a column of floats."""
    null = _column(field).is_null()
    return null | _column(field).is_nan() if field.type.startswith("float") else null


def _below(field: Field, bound: float) -> pl.Expr | None:
    if field.type.startswith("float"):
        return (_column(field) < _literal(field, bound)) & ~missing(field)
    # Whole numbers are compared as such: a float64 cannot tell 2^53 from 2^53 + 1.
    least, limits = math.ceil(bound), np.iinfo(field.type)
    if least <= limits.min:
        return None
    if least > limits.max:
        return _column(field).is_not_null()
    return _column(field) < _literal(field, least)


def _above(field: Field, bound: float) -> pl.Expr | None:
    if field.type.startswith("float"):
        return (_column(field) > _literal(field, bound)) & ~missing(field)
    most, limits = math.floor(bound), np.iinfo(field.type)
    if most >= limits.max:
        return None
    if most < limits.min:
        return _column(field).is_not_null()
    return _column(field) > _literal(field, most)


def _literal(field: Field, value: float) -> pl.Expr:
    return pl.lit(value, dtype=POLARS[field.type])


def _matches(field: Field) -> pl.Expr:
    pattern = rf"\A(?:{field.regex})\z"
    try:
        pl.Series([""]).str.contains(pattern)
    except pl.exceptions.ComputeError as error:
        why = " ".join(str(error).splitlines()[:4])
        raise InvalidInput(
            "a regex cannot be compiled",
            [Fault(f"fields.{field.name}", why)],
            hint="look-around and back-references are not supported: a match takes linear time",
        ) from None
    return _column(field).str.contains(pattern)


def _of_key(schema: Schema, *, keep_last: bool) -> Iterator[Rule]:
    fields = [schema.field(name) for name in schema.key]
    for field in fields:
        if field.nullable or field.on_fail != "fail":
            strict = Rule(
                f"key.{field.name}.not_null",
                (field.name,),
                missing(field),
                f"{field.name} is null, but belongs to the key",
                "fail",
                field.owner,
                lambda _: "is null, but belongs to the key",
            )
            yield strict
    other = "a later row, which stays" if keep_last else "an earlier row already"
    names = ", ".join(schema.key)
    is_private = any(field.pii for field in fields)
    yield Rule(
        "key.unique",
        schema.key,
        repeats(fields, keep_last=keep_last),
        f"the key ({names}) stands in {other}",
        "drop" if keep_last else "fail",
        "",
        None if is_private else lambda key: f"the key ({names}) = {key} stands in {other}",
        is_whole=True,
    )


def repeats(fields: Sequence[Field], *, keep_last: bool = False) -> pl.Expr:
    """Whether a row has the same values in `fields` as an earlier one; a missing value never.

    With `keep_last` as a later one.
    """
    names = [field.name for field in fields]
    whole = pl.struct(names) if len(names) > 1 else pl.col(names[0])
    some = pl.any_horizontal([missing(field) for field in fields])
    stays = whole.is_last_distinct() if keep_last else whole.is_first_distinct()
    return ~stays & ~some
