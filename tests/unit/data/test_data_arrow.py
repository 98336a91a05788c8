"""Casts lose nothing, and what would lose something is named."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everloop.backends.blobs.local import LocalBlobs
from everloop.core.schema import FIELD_TYPES, Field, FieldType, Schema
from everloop.data.arrow import arrow_type, conform, field_type, from_arrow_schema, inspect
from everloop.data.blocks import read_block, write_blocks
from everloop.errors import InvalidInput
from tests.unit.data.strategies import columns, frames


def one(kind: FieldType, **options: Any) -> Schema:
    return Schema((Field("x", kind, **options),))


def cast(column: pa.Array, kind: FieldType) -> pa.ChunkedArray:
    return conform(pa.table({"x": column}), one(kind)).column("x")


def faults(column: pa.Array, kind: FieldType) -> list[str]:
    seen = inspect(pa.table({"x": column}), one(kind))
    return [str(fault) for fault in [*seen.columns, *seen.rows]]


def test_every_field_type_has_one_arrow_type() -> None:
    schema = Schema(tuple(Field(kind, kind) for kind in FIELD_TYPES))  # type: ignore[arg-type]
    assert (
        from_arrow_schema(pa.schema([(kind, arrow_type(kind)) for kind in FIELD_TYPES])) == schema
    )


@given(frames())
@settings(max_examples=20, deadline=None)
def test_written_blocks_read_back_the_same(case: tuple[pa.Table, Schema]) -> None:
    table, schema = case
    with TemporaryDirectory() as folder:
        blobs = LocalBlobs(Path(folder))
        blocks = [block for block, _ in write_blocks(blobs, conform(table, schema))]
        parts = [read_block(blobs, block, schema, schema.names) for block in blocks]
        read = pa.concat_tables(parts) if parts else table.slice(0, 0)
        again = [block for block, _ in write_blocks(blobs, read)]
    # Arrow holds NaN equal to nothing, so the digests, which are of the bytes, speak for NaN.
    assert blocks == again
    assert read.schema == table.schema
    numbers = ("float32", "float64")
    assert read.drop_columns(numbers).equals(table.drop_columns(numbers))
    assert [str(read[n]) for n in numbers] == [
        str(table[n]) for n in numbers
    ] or table.num_rows == 0


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_cast_between_integers_is_exact_or_named(data: st.DataObject) -> None:
    kinds = [kind for kind in FIELD_TYPES if "int" in kind]
    given_kind, wanted = data.draw(st.sampled_from(kinds)), data.draw(st.sampled_from(kinds))
    column = data.draw(columns(given_kind, 5))
    seen = inspect(pa.table({"x": column}), one(wanted))  # type: ignore[arg-type]
    bits = int(wanted.removeprefix("u").removeprefix("int"))
    low, high = (0, 2**bits) if wanted[0] == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1))
    values = column.to_pylist()
    outside = [n for n, v in enumerate(values) if v is not None and not low <= v < high]
    assert [fault.path for fault in seen.rows] == [f"rows[{n}].x" for n in outside]
    if not outside:
        assert seen.table["x"].to_pylist() == values


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_integer_widens_to_float_exactly_or_is_named(data: st.DataObject) -> None:
    given_kind = data.draw(st.sampled_from([kind for kind in FIELD_TYPES if "int" in kind]))
    column = data.draw(columns(given_kind, 5))
    seen = inspect(pa.table({"x": column}), one("float64"))
    values = column.to_pylist()
    inexact = [n for n, v in enumerate(values) if v is not None and int(float(v)) != v]
    assert [fault.path for fault in seen.rows] == [f"rows[{n}].x" for n in inexact]
    if not inexact:
        assert seen.table["x"].to_pylist() == values


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pa.array([1.0]), "int64"),
        (pa.array(["1"]), "int64"),
        (pa.array(["1"]), "float64"),
        (pa.array([True]), "int8"),
        (pa.array([True]), "float64"),
        (pa.array([1]), "bool"),
        (pa.array([1]), "string"),
        (pa.array(["2013-01-01"]), "timestamp"),
        (pa.array([date(2013, 1, 1)]), "timestamp"),
        (pa.array([datetime(2013, 1, 1, tzinfo=UTC)]), "date"),
        (pa.array([0]), "timestamp"),
        (pa.array([b"x"]), "string"),
        (pa.array(["x"]), "binary"),
        (pa.array([[1]]), "int64"),
        (pa.array([1]).cast(pa.decimal128(22, 2)), "float64"),
    ],
)
def test_wrong_type_is_never_read_in_silence(column: pa.Array, kind: FieldType) -> None:
    [fault] = faults(column, kind)
    assert fault.startswith(f"x: wanted {kind}, got {column.type}")


@pytest.mark.parametrize(
    ("column", "kind", "values"),
    [
        (pa.array([1, None], pa.int16()), "float64", [1.0, None]),
        (pa.array([1.5], pa.float32()), "float64", [1.5]),
        (pa.array([0.1]), "float32", [pa.scalar(0.1, pa.float32()).as_py()]),
        (pa.array(["a", None]).dictionary_encode(), "string", ["a", None]),
        (pa.array([7, 7]).dictionary_encode(), "int8", [7, 7]),
        (pa.array(["a"], pa.large_string()), "string", ["a"]),
        (pa.array(["a"], pa.string_view()), "string", ["a"]),
        (pa.array([b"ab"], pa.binary(2)), "binary", [b"ab"]),
        (pa.nulls(2), "string", [None, None]),
        (pa.nulls(1), "timestamp", [None]),
        (pa.array([86_400_000], pa.date64()), "date", [date(1970, 1, 2)]),
        (
            pa.array([5], pa.timestamp("s")),
            "timestamp",
            [datetime(1970, 1, 1, 0, 0, 5, tzinfo=UTC)],
        ),
        (
            pa.array([5000], pa.timestamp("ns", "Europe/Berlin")),
            "timestamp",
            [datetime(1970, 1, 1, 0, 0, 0, 5, UTC)],
        ),
        (pa.array([2**60]), "float64", [float(2**60)]),
        (pa.array([2.5], pa.float16()), "float32", [2.5]),
    ],
)
def test_what_widens_is_taken(column: pa.Array, kind: FieldType, values: list[Any]) -> None:
    found = cast(column, kind)
    assert found.to_pylist() == values
    assert field_type(found.type) == kind


@pytest.mark.parametrize(
    ("column", "kind", "fault"),
    [
        (pa.array([1, None, 300]), "int8", "rows[2].x: 300 does not fit int8"),
        (pa.array([-1]), "uint64", "rows[0].x: -1 does not fit uint64"),
        (pa.array([2**63], pa.uint64()), "int64", "rows[0].x: 9223372036854775808"),
        (pa.array([2**53 + 1]), "float64", "rows[0].x: 9007199254740993 does not fit float64"),
        (pa.array([2**63 - 1]), "float64", "rows[0].x: 9223372036854775807"),
        (pa.array([2**64 - 1], pa.uint64()), "float64", "rows[0].x: 18446744073709551615"),
        (pa.array([2**24 + 1]), "float32", "rows[0].x: 16777217 does not fit float32"),
        (pa.array([1e300]), "float32", "rows[0].x: 1e+300 does not fit float32"),
        (
            pa.array([1], pa.timestamp("ns")),
            "timestamp",
            "rows[0].x: 1970-01-01 00:00:00.000000001",
        ),
        (pa.array([2**62], pa.timestamp("s")), "timestamp", "rows[0].x"),
        (pa.array([b"\xff"]).cast(pa.string(), safe=False), "int64", "x: wanted int64"),
    ],
)
def test_value_that_does_not_fit_is_named_by_row(
    column: pa.Array, kind: FieldType, fault: str
) -> None:
    [found] = faults(column, kind)
    assert found.startswith(fault)


def test_infinity_and_nan_fit_every_float() -> None:
    column = pa.array([float("inf"), float("-inf"), float("nan")])
    assert str(cast(column, "float32").to_pylist()) == "[inf, -inf, nan]"


def test_all_faults_of_the_columns_come_together() -> None:
    schema = Schema((Field("distance", "float64"), Field("carrier", "string"), Field("n", "int8")))
    table = pa.table({"distanse": [1.0], "carrier": [5], "n": [1]})
    with pytest.raises(InvalidInput) as got:
        conform(table, schema)
    assert [str(fault) for fault in got.value.faults] == [
        "distance: the column is missing; did you mean 'distanse'?",
        "carrier: wanted string, got int64",
        "distanse: the schema has no such column; did you mean 'distance'?",
    ]


def test_doubled_column_is_named_once() -> None:
    table = pa.table([pa.array([1]), pa.array([2]), pa.array([3])], names=["x", "y", "x"])
    seen = inspect(table, Schema((Field("x", "int64"), Field("y", "int64"))))
    assert [str(fault) for fault in seen.columns] == ["x: the frame has 2 columns of this name"]
    with pytest.raises(InvalidInput):
        from_arrow_schema(table.schema)


def test_columns_come_in_the_order_of_the_schema() -> None:
    schema = Schema((Field("b", "int64"), Field("a", "int64")))
    assert conform(pa.table({"a": [1], "b": [2]}), schema).column_names == ["b", "a"]


def test_open_schema_keeps_extra_and_fills_missing_columns() -> None:
    schema = Schema((Field("a", "int64", nullable=False), Field("b", "string")), extra="allow")
    table = conform(pa.table({"z": [1.5], "a": [1]}), schema)
    assert table.to_pylist() == [{"a": 1, "b": None, "z": 1.5}]
    with pytest.raises(InvalidInput, match="a: the column is missing"):
        conform(pa.table({"b": ["x"]}), schema)


def test_inferred_schema_names_every_column_without_field_type() -> None:
    table = pa.table({"a": pa.array([[1]]), "b": pa.nulls(1), "c": [1]})
    with pytest.raises(InvalidInput) as got:
        from_arrow_schema(table.schema)
    assert [fault.path for fault in got.value.faults] == ["a", "b"]


def test_inferred_key_columns_are_not_nullable() -> None:
    schema = from_arrow_schema(pa.schema({"id": pa.int64(), "x": pa.float64()}), key=("id",))
    assert [field.nullable for field in schema.fields] == [False, True]
    assert schema.key == ("id",)
