"""The table that the checks are measured on: 21 columns, with the faults of facts/data planted."""

from __future__ import annotations

import numpy as np
import polars as pl

from everloop.core.schema import Field, Schema

__all__ = ["SCHEMA", "frame_of", "raw_checks"]

_REALS = [f"x{n}" for n in range(12)]
_WHOLE = [f"n{n}" for n in range(5)]
_SETS = {"state": ("CA", "NY", "TX", "WA"), "kind": ("new", "old")}
_MAIL = r"[^@\s]+@[^@\s]+\.[a-z]+"

#: 30 rules: 20 not null, 6 ranges, 2 sets, 1 unique, 1 regex.
SCHEMA = Schema(
    (
        Field("id", "int64", nullable=False, unique=True, owner="ids@example.org"),
        *(Field(name, "float64", nullable=False, ge=-6 if n < 3 else None) for n, name in
          enumerate(_REALS)),
        *(Field(name, "int64", nullable=False, le=1000 if n < 3 else None) for n, name in
          enumerate(_WHOLE)),
        *(Field(name, "string", nullable=False, among=among) for name, among in _SETS.items()),
        Field("mail", "string", regex=_MAIL),
    ),
    key=(),
)  # fmt: skip


def frame_of(rows: int) -> pl.DataFrame:
    """`rows` rows in which every kind of rule is broken by some."""
    random = np.random.default_rng(7)
    columns: dict[str, pl.Series] = {"id": pl.Series(np.arange(rows))}
    for name in _REALS:
        columns[name] = pl.Series(random.standard_normal(rows))
    for name in _WHOLE:
        columns[name] = pl.Series(random.integers(0, 1000, rows))
    for name, among in _SETS.items():
        columns[name] = pl.Series(np.array(among)[random.integers(0, len(among), rows)])
    frame = pl.DataFrame(columns).with_columns(mail=pl.format("user{}@example.org", "id"))
    row = pl.int_range(rows)
    return frame.with_columns(
        id=pl.when(row == rows - 1).then(0).otherwise("id"),
        x0=pl.when(row % 1000 == 1).then(-7.0).otherwise("x0"),
        x5=pl.when(row % 1000 == 2).then(None).otherwise("x5"),
        state=pl.when(row % 1000 == 3).then(pl.lit("??")).otherwise("state"),
        mail=pl.when(row % 1000 == 4).then(pl.lit("nobody")).otherwise("mail"),
    )


def raw_checks() -> list[pl.Expr]:
    """The same rules by hand: how many rows break each, by its name here."""
    names = [field.name for field in SCHEMA.fields if not field.nullable]
    found = [pl.col(name).is_null().sum().alias(f"{name}.not_null") for name in names]
    found += [(pl.col(name) < -6).sum().alias(f"{name}.ge") for name in _REALS[:3]]
    found += [(pl.col(name) > 1000).sum().alias(f"{name}.le") for name in _WHOLE[:3]]
    found += [
        (~pl.col(name).is_in(list(among))).sum().alias(f"{name}.among")
        for name, among in _SETS.items()
    ]
    found.append((pl.len() - pl.col("id").n_unique()).alias("id.unique"))
    matches = pl.col("mail").str.contains(rf"\A(?:{_MAIL})\z")
    return [*found, (~matches).sum().alias("mail.regex")]
