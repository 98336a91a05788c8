"""k-anonymity of a table: how many rows share their values in columns that others may know."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from everloop.core.pii import Anonymity, ColumnWeight
from everloop.errors import Fault, InvalidInput, NotFound

__all__ = ["anonymity_of"]


def anonymity_of(
    frame: pl.DataFrame, columns: Sequence[str], *, k: int = 5, sensitive: str = "", ref: str = ""
) -> Anonymity:
    """How well the rows of `frame` hide among each other; see ``Anonymity``.

    A missing value is a value of its own, and NaN is one: two rows that both lack it are alike.

    Args:
        columns: The quasi-identifiers; at least one.
        k: How many rows a group should have at least; 1 or more.
        sensitive: A column whose values should differ within each group.
        ref: The version, or empty.

    Raises:
        InvalidInput: If no column is named, one twice, or k is below 1.
        NotFound: If there is no such column.
    """
    faults = []
    if not columns:
        faults.append(Fault("columns", "name at least one"))
    if len(set(columns)) != len(columns):
        faults.append(Fault("columns", "a column is named twice"))
    if k < 1:
        faults.append(Fault("k", f"{k} is below 1"))
    if sensitive and sensitive in columns:
        faults.append(Fault("sensitive", f"{sensitive} is one of the columns"))
    if faults:
        raise InvalidInput("anonymity cannot be told so", faults)
    for name in (*columns, *([sensitive] if sensitive else [])):
        if name not in frame.columns:
            raise NotFound.named("column", name, frame.columns)
    known = frame.select(
        pl.col(name).fill_nan(None) if kind.is_float() else pl.col(name)
        for name, kind in frame.schema.items()
        if name in columns or name == sensitive
    )
    groups = _sizes(known, columns, sensitive)
    sizes = groups["rows"]
    under = int(sizes.filter(sizes < k).sum() or 0)
    weights = [_weight(known, columns, name, k, under) for name in columns]
    diverse = groups["values"].min() if sensitive and len(groups) else None
    return Anonymity(
        ref=ref,
        columns=tuple(columns),
        rows=frame.height,
        groups=len(groups),
        smallest=int(sizes.min() or 0),  # type: ignore[arg-type]  # a number, or None
        k=k,
        under=under,
        unique=int((sizes == 1).sum()),
        distinct_sensitive=None if diverse is None else int(diverse),  # type: ignore[arg-type]
        weights=tuple(sorted(weights, key=lambda w: (w.without, w.name))),
    )


def _sizes(known: pl.DataFrame, columns: Sequence[str], sensitive: str = "") -> pl.DataFrame:
    # The names of the columns are the user's: the figures get names that no column of theirs has.
    parts = known.select(
        [pl.col(name).alias(f"c{n}") for n, name in enumerate(columns)]
        + ([pl.col(sensitive).alias("s")] if sensitive else [])
    )
    wanted = [pl.len().alias("rows"), *([pl.col("s").n_unique().alias("values")] * bool(sensitive))]
    return parts.group_by([f"c{n}" for n in range(len(columns))]).agg(wanted)


def _weight(
    known: pl.DataFrame, columns: Sequence[str], name: str, k: int, under: int
) -> ColumnWeight:
    others = [one for one in columns if one != name]
    if others:
        sizes = _sizes(known, others)["rows"]
        without = int(sizes.filter(sizes < k).sum() or 0)
    else:
        without = known.height if known.height < k else 0
    return ColumnWeight(name, known[name].n_unique(), min(without, under))
