"""Row hashes: equal values have equal hashes, others do not, and both for ever."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everloop.core.schema import Field, Schema
from everloop.data.arrow import conform
from everloop.data.match import match
from everloop.data.rowhash import Hashes, from_bytes, row_hashes, to_bytes

AT = datetime(2025, 3, 1, 12, tzinfo=UTC)
NAN = float("nan")


def hashes(values: pa.Array | pa.ChunkedArray, kind: str, name: str = "x") -> list[tuple[int, int]]:
    table = conform(pa.table({name: values}), Schema((Field(name, kind),)))  # type: ignore[arg-type]
    low, high = row_hashes(table)
    return list(zip(low.tolist(), high.tolist(), strict=True))


@pytest.mark.parametrize(
    ("kind", "one", "kind2", "other"),
    [
        ("int8", pa.array([1, -1], pa.int8()), "int64", pa.array([1, -1], pa.int64())),
        ("uint64", pa.array([7, 0], pa.uint64()), "int32", pa.array([7, 0], pa.int32())),
        ("float32", pa.array([0.5, NAN], pa.float32()), "float64", pa.array([0.5, -NAN])),
        ("float64", pa.array([0.0, -0.0]), "float64", pa.array([-0.0, 0.0])),
        ("string", pa.array(["a", None, "a"]).dictionary_encode(), "string",
         pa.chunked_array([["a"], [None, "a"]], pa.large_string())),
        ("string", pa.array(["", "ä€😀" * 9])[:], "string", pa.array(["x", "", "ä€😀" * 9])[1:]),
        ("timestamp", pa.array([AT, None], pa.timestamp("s", "Europe/Berlin")), "timestamp",
         pa.array([AT.astimezone(timezone(timedelta(hours=5))), None], pa.timestamp("ns", "UTC"))),
        ("bool", pa.array([True, None]), "bool", pa.chunked_array([[True], [None]], pa.bool_())),
        ("date", pa.array([AT.date()], pa.date32()), "date", pa.array([AT.date()], pa.date64())),
    ],
)  # fmt: skip
def test_equal_values_have_equal_hashes(kind: str, one: Any, kind2: str, other: Any) -> None:
    assert hashes(one, kind) == hashes(other, kind2)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("float64", [0.0, None, NAN, 1.0, -1.0, float("inf"), 5e-324]),
        ("int64", [0, None, 1, -1, 256, 2**63 - 1, -(2**63)]),
        ("uint64", [0, 2**64 - 1, 2**63, 1]),
        (
            "string",
            ["", None, "\0", "\0\0", "a", "a\0", "a" * 8, "a" * 8 + "\0", "b" * 7],
        ),
        ("bool", [True, False, None]),
    ],
)
def test_other_values_have_other_hashes(kind: str, values: list[Any]) -> None:
    found = hashes(pa.array(values, None if kind != "uint64" else pa.uint64()), kind)
    for lane in zip(*found, strict=True):
        assert len(set(lane)) == len(values)


def test_hashes_are_these_for_ever() -> None:
    """What is stored in every workspace must be found again by every later release."""
    table = pa.table({"id": [1, 2], "x": [0.5, None], "s": ["flights", "a text of two words"]})
    found = row_hashes(table.append_column("b", pa.array([b"\xff", None])))
    assert [f"{lane:016x}" for lane in (*found.low.tolist(), *found.high.tolist())] == [
        "bec203c8b7c8c4c8",
        "f8301e1e1176b4d2",
        "102ba96ca11e9d5c",
        "615c904c0d3541a1",
    ]
    total = ["14be1a4807717d34", "894f354149f9cd21"]
    assert [f"{lane:016x}" for lane in found.total()] == total


def test_the_order_of_columns_and_what_is_null_do_not_count() -> None:
    table = pa.table({"a": [1, 2], "b": ["x", "y"]})
    wider = table.append_column("c", pa.nulls(2, pa.int64()))
    assert row_hashes(table).total() == row_hashes(wider.select(["c", "b", "a"])).total()
    swapped = pa.table({"a": [1, 2], "c": ["x", "y"]})
    assert row_hashes(table).total() != row_hashes(swapped).total()
    apart = row_hashes(table) - row_hashes(table.select(["b"]))
    assert apart.total() == row_hashes(table.select(["a"])).total()


def test_rows_that_swap_values_are_another_content() -> None:
    table = pa.table({"id": [1, 2], "s": ["x", "y"]})
    swapped = pa.table({"id": [1, 2], "s": ["y", "x"]})
    assert row_hashes(table).total() != row_hashes(swapped).total()
    assert row_hashes(table).total() == row_hashes(table.take([1, 0])).total()


def test_hashes_of_another_function_are_not_taken() -> None:
    made = row_hashes(pa.table({"a": [1, 2, 3]}))
    back = from_bytes(to_bytes(made), 3)
    assert back is not None
    assert back.total() == made.total()
    assert from_bytes(to_bytes(made), 2) is None
    assert from_bytes(to_bytes(made).replace(b"rows.1", b"rows.0"), 3) is None


def test_threads_and_chunks_do_not_count() -> None:
    rng = np.random.default_rng(1)
    words = rng.integers(0, 10**6, 150_000)
    table = pa.table({"n": words, "s": pl.Series(words).cast(pl.String).to_arrow()})
    table = table.set_column(1, "s", table["s"].cast(pa.string()))
    whole = row_hashes(table)
    pieces = [row_hashes(table.slice(start, 7_777)) for start in range(0, 150_000, 7_777)]
    joined = Hashes.concat(pieces)
    assert np.array_equal(whole.low, joined.low)
    assert np.array_equal(whole.high, joined.high)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 12), max_size=30), st.lists(st.integers(0, 12), max_size=30))
def test_match_gives_each_row_one_of_its_like(new: list[int], old: list[int]) -> None:
    """Also where rows repeat, and where bits by which they are looked up are the same."""
    sides = []
    for values in (new, old):
        lanes = np.array(values, np.uint64)
        sides.append(Hashes(lanes % np.uint64(3), lanes))
    found = match(*sides)
    pairs = [(n, int(o)) for n, o in enumerate(found) if o >= 0]
    assert all(new[n] == old[o] for n, o in pairs)
    assert len({o for _, o in pairs}) == len(pairs)
    assert len(pairs) == sum(min(new.count(v), old.count(v)) for v in set(new))
