"""Frames and rules for property tests, with the values that engines disagree on."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

from everloop.core.schema import FIELD_TYPES, Field, Schema
from everloop.data.arrow import arrow_type

_FLOATS = [0.0, -0.0, float("nan"), float("inf"), float("-inf"), 0.1, 1.0, -1.0, 2.0**53, 1e308]
_TEXTS = ["", " ", "a", "aa", "A", "ab", "b\n", "ä", "aä", "😀", "a\x00b", "NaN", "null"]


def integers(kind: str) -> st.SearchStrategy[int]:
    bits = int(kind.removeprefix("u").removeprefix("int"))
    low, high = (0, 2**bits - 1) if kind[0] == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    edges = {low, low + 1, high - 1, high, 0, 1, 2}
    if bits == 64:
        edges |= {2**53 - 1, 2**53, 2**53 + 1}
    return st.one_of(st.sampled_from(sorted(edges)), st.integers(low, high))


def values(kind: str) -> st.SearchStrategy[Any]:
    """Values of a field type."""
    if kind == "bool":
        return st.booleans()
    if kind.startswith(("int", "uint")):
        return integers(kind)
    if kind.startswith("float"):
        width = int(kind[5:])
        fitting = [v for v in _FLOATS if width == 64 or v != 1e308]
        return st.one_of(st.sampled_from(fitting), st.floats(width=width)).map(
            lambda v: pa.scalar(v, arrow_type(kind)).as_py()
        )
    if kind == "string":
        return st.one_of(st.sampled_from(_TEXTS), st.text(max_size=5))
    if kind == "binary":
        return st.binary(max_size=5)
    if kind == "timestamp":
        low, high = datetime(1677, 9, 22), datetime(2262, 4, 11)  # noqa: DTZ001 (Hypothesis wants naive)
        return st.datetimes(low, high, timezones=st.just(UTC))
    return st.dates(date(1, 1, 1), date(9999, 12, 31))


def columns(kind: str, rows: int) -> st.SearchStrategy[pa.Array]:
    """A column of `rows` values, some of them null."""
    cells = st.lists(st.none() | values(kind), min_size=rows, max_size=rows)
    return cells.map(lambda items: pa.array(items, arrow_type(kind)))


@st.composite
def frames(draw: st.DrawFn) -> tuple[pa.Table, Schema]:
    """A frame with a column of every type, and its schema."""
    rows = draw(st.integers(0, 6))
    table = pa.table({kind: draw(columns(kind, rows)) for kind in FIELD_TYPES})
    return table, Schema(tuple(Field(kind, kind) for kind in FIELD_TYPES))  # type: ignore[arg-type]
