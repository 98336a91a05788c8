"""The profile of a table in one Polars pass, and a schema that a person can start from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import date, datetime
from typing import Any

import polars as pl

from everloop.core.dataset import Value
from everloop.core.profile import QUANTILES, ColumnProfile, Profile
from everloop.core.schema import Field, Schema
from everloop.data.rules import missing

__all__ = ["inferred", "profile_of"]

_EXACT_ROWS = 100_000
_BINS, _TOP = 20, 10
#: Most distinct values of a column whose most frequent ones are told.
_COUNTED = 10_000
#: Values that are few enough to be a set, in a schema that is inferred.
_FEW = 20


def profile_of(frame: pl.DataFrame, schema: Schema) -> Profile:
    """The profile of the columns of `frame`, which are those of `schema` and have its types."""
    approximate = frame.height > _EXACT_ROWS
    wanted = [
        one.alias(f"{n} {what}")
        for n, field in enumerate(schema.fields)
        for what, one in _figures(field, approximate=approximate)
    ]
    found = frame.lazy().select(wanted).collect().row(0, named=True) if wanted else {}
    # To count the values of a column of names takes longer than all else, and says nothing.
    few = [
        _top(field).alias(f"{n} top")
        for n, field in enumerate(schema.fields)
        if field.type in ("string", "bool") and not field.pii and found[f"{n} distinct"] <= _COUNTED
    ]
    if few:
        found |= frame.lazy().select(few).collect().row(0, named=True)
    columns = tuple(
        _column(n, field, found, approximate=approximate) for n, field in enumerate(schema.fields)
    )
    return Profile(rows=frame.height, key=schema.key, columns=columns)


def _figures(field: Field, *, approximate: bool) -> Iterator[tuple[str, pl.Expr]]:
    column = pl.col(field.name)
    known = column.fill_nan(None) if field.type.startswith("float") else column
    yield "nulls", missing(field).sum()
    known = known.drop_nulls()
    yield "distinct", known.approx_n_unique() if approximate else known.n_unique()
    if field.type == "string":
        lengths = known.str.len_chars()
        yield "lengths", pl.concat_list(lengths.min(), lengths.mean(), lengths.max())
    if field.pii or field.type == "binary":
        return
    yield "low", known.min()
    yield "high", known.max()
    if field.is_numeric:
        finite = known.cast(pl.Float64)
        finite = finite.filter(finite.is_finite())
        yield "mean", finite.mean()
        yield "std", finite.std()
        yield "quantiles", known.cast(pl.Float64).quantile(list(QUANTILES))
        yield "histogram", finite.hist(bin_count=_BINS, include_breakpoint=True).implode()
        yield "least", finite.min()


def _top(field: Field) -> pl.Expr:
    pairs = pl.col(field.name).drop_nulls().value_counts(sort=True, name=f"{field.name} count")
    return pairs.head(_TOP).implode()


def _column(n: int, field: Field, found: dict[str, Any], *, approximate: bool) -> ColumnProfile:
    def get(what: str) -> Any:
        return found.get(f"{n} {what}")

    top = [tuple(pair.values()) for pair in get("top") or ()]
    bins = list(get("histogram") or ()) if get("least") is not None else []
    edges = [get("least"), *(one["breakpoint"] for one in bins)] if bins else []
    some = any(value is not None for value in get("lengths") or ())
    return ColumnProfile(
        name=field.name,
        type=field.type,
        pii=field.pii,
        nulls=get("nulls"),
        distinct=get("distinct"),
        is_approximate=approximate,
        low=_plain(get("low")),
        high=_plain(get("high")),
        mean=get("mean"),
        std=get("std"),
        quantiles=tuple(q for q in get("quantiles") or () if q is not None),
        # The order of equal counts is the engine's; people want one order.
        top=tuple(sorted(((_plain(v), c) for v, c in top), key=lambda p: (-p[1], str(p[0])))),
        lengths=tuple(get("lengths")) if some else (),
        edges=tuple(edges),
        counts=tuple(one["count"] for one in bins),
    )


def _plain(value: Any) -> Value:
    if isinstance(value, datetime | date):
        return value.isoformat()
    plain: Value = value
    return plain


def inferred(profile: Profile) -> str:
    """A schema in Python, true of every row that was profiled, for a person to edit.

    Bounds are what was seen, rounded outwards to two digits; few texts are a set; a column without
    missing values may have none. Whatever is estimated, or of personal data, is left out.
    """
    fields = "".join(f"        {_field(column, profile)},\n" for column in profile.columns)
    few = max(profile.rows // 2, 1)
    key = f"    key={profile.key!r},\n" if profile.key else ""
    return (
        f'"""What was true of {profile.ref or "a frame"}, {profile.rows} rows. '
        'Edit: these are facts, not yet rules."""\n\n'
        "import everloop as ev\n\n"
        f"SCHEMA = ev.Schema(\n    (\n{fields}    ),\n"
        f'    checks=(\n        ev.Check("rows", kind="row_count", ge={few}, on_fail="warn"),\n'
        f"    ),\n{key})\n"
    )


def _field(column: ColumnProfile, profile: Profile) -> str:
    stated = [repr(column.name), repr(column.type)]
    if not column.nulls and profile.rows:
        stated.append("nullable=False")
    if column.quantiles and isinstance(column.low, int | float):
        assert isinstance(column.high, int | float)
        if math.isfinite(column.low) and math.isfinite(column.high):
            stated.append(f"ge={_outward(column.low, math.floor)!r}")
            stated.append(f"le={_outward(column.high, math.ceil)!r}")
    exact = not column.is_approximate
    if column.type == "string" and exact and 0 < column.distinct <= min(_FEW, len(column.top)):
        stated.append(f"among={tuple(value for value, _ in column.top)!r}")
    elif column.lengths:
        stated.append(f"max_length={max(int(column.lengths[2]), 1)}")
    if exact and column.distinct == profile.rows > _FEW and not column.quantiles:
        stated.append("unique=True")
    if column.pii:
        stated.append(f"pii={column.pii!r}")
    return f"ev.Field({', '.join(stated)})"


def _outward(value: float, turn: Any) -> float:
    if not value:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - 1)
    rounded = float(turn(value / unit) * unit)
    # A unit that is no binary fraction may round to the wrong side of the value.
    return (
        rounded if (rounded <= value if turn is math.floor else rounded >= value) else float(value)
    )
