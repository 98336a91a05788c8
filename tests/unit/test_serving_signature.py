"""What a request may hold: every rule, every fault, and rows against columns."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everloop.core.schema import Field, Schema
from everloop.core.time import to_micros
from everloop.errors import InvalidInput
from everloop.serving.fields import FieldRules, Wrong
from everloop.serving.signature import RequestValidator, where_in

FLIGHT = Schema(
    (
        Field("distance", "float64", nullable=False, ge=0, le=5_000),
        Field("origin", "string", nullable=False, among=("EWR", "JFK", "LGA")),
        Field("seats", "int16", nullable=True),
        Field("sched_dep", "timestamp", nullable=False),
        Field("tailnum", "string", max_length=6, regex="N[0-9A-Z]*"),
    )
)
GOOD = {"distance": 500, "origin": "JFK", "seats": 180, "sched_dep": 1, "tailnum": "N1"}


def faults_of(error: pytest.ExceptionInfo[InvalidInput]) -> dict[str, str]:
    return {fault.path: fault.message for fault in error.value.faults}


def test_one_request_becomes_canonical_columns() -> None:
    columns = RequestValidator(FLIGHT).row(GOOD)
    assert columns == {
        "distance": [500.0],
        "origin": ["JFK"],
        "seats": [180],
        "sched_dep": [1],
        "tailnum": ["N1"],
    }
    assert type(columns["distance"][0]) is float


def test_all_faults_come_together_with_their_paths() -> None:
    wrong = {"distance": "far", "origin": "XXX", "seats": 1.5, "tailnum": "toolong", "orgin": 1}
    with pytest.raises(InvalidInput) as error:
        RequestValidator(FLIGHT).row(wrong, path="inputs")
    found = faults_of(error)
    assert found == {
        "inputs.orgin": "no such column; did you mean 'origin'?",
        "inputs.distance": "expected a number, got text",
        "inputs.origin": "is not among 'EWR', 'JFK', 'LGA'",
        "inputs.seats": "expected a whole number, got a number with a fraction",
        "inputs.sched_dep": "missing",
        "inputs.tailnum": "is longer than 6 characters",
    }


def test_faults_of_many_rows_name_the_row() -> None:
    rows = 20
    columns = {name: [value] * rows for name, value in GOOD.items()}
    columns["distance"] = [500.0] * 19 + [math.nan]
    columns["origin"] = ["JFK"] * 3 + ["Jfk"] + ["JFK"] * 16
    with pytest.raises(InvalidInput) as error:
        RequestValidator(FLIGHT).columns(columns, where=where_in("inputs"))
    assert faults_of(error) == {
        "inputs.distance[19]": "must not be NaN",
        "inputs.origin[3]": "is not among 'EWR', 'JFK', 'LGA'",
    }


def test_the_value_itself_is_never_repeated() -> None:
    with pytest.raises(InvalidInput) as error:
        RequestValidator(FLIGHT).row({**GOOD, "origin": "4111-1111", "distance": "4111-1111"})
    assert "4111" not in str(error.value)


def test_nullable_column_may_be_left_out() -> None:
    columns = RequestValidator(FLIGHT).row({k: v for k, v in GOOD.items() if k != "seats"})
    assert columns["seats"] == [None]


def test_columns_of_unequal_length_are_refused() -> None:
    columns: dict[str, Any] = {name: [value] * 2 for name, value in GOOD.items()}
    columns["seats"] = [1]
    with pytest.raises(InvalidInput, match="has 1 values where other columns have 2"):
        RequestValidator(FLIGHT).columns(columns)


def test_extra_columns_are_dropped_where_the_schema_allows_them() -> None:
    schema = Schema((Field("x", "float64"),), extra="allow")
    assert RequestValidator(schema).row({"x": 1, "note": object()}) == {"x": [1.0]}


def test_a_million_faults_are_counted_not_listed() -> None:
    schema = Schema((Field("x", "float64", ge=0),))
    with pytest.raises(InvalidInput) as error:
        RequestValidator(schema).columns({"x": np.full(50_000, -1.0)})
    assert len(error.value.faults) == 1_001
    assert "49000 more rows are wrong" in error.value.faults[-1].message


def test_no_rows_are_no_fault() -> None:
    columns = RequestValidator(FLIGHT).columns({name: [] for name in FLIGHT.names})
    assert all(len(column) == 0 for column in columns.values())


@pytest.mark.parametrize(
    "given_at",
    [
        "2013-04-01T06:30:00Z",
        "2013-04-01T06:30:00+00:00",
        "2013-04-01T02:30:00-04:00",
        "2013-04-01 06:30:00",
        datetime(2013, 4, 1, 6, 30, tzinfo=UTC),
        datetime(2013, 4, 1, 2, 30, tzinfo=timezone(timedelta(hours=-4))),
        to_micros(datetime(2013, 4, 1, 6, 30, tzinfo=UTC)),
        np.datetime64("2013-04-01T06:30:00", "ns"),
    ],
)
def test_forms_of_one_instant_are_equal(given_at: Any) -> None:
    assert FieldRules(Field("at", "timestamp")).item(given_at) == 1_364_797_800_000_000


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("bool", 1), ("bool", "true"), ("int64", True), ("int64", 1.0), ("int64", "1"),
        ("int64", 2**63), ("int8", 128), ("uint8", -1), ("uint64", 2**64), ("float64", "1"),
        ("float64", True), ("float64", 10**400), ("float32", 1e39), ("float64", [1.0]),
        ("string", 1), ("string", b"x"), ("string", "a\0b"), ("timestamp", 1.5),
        ("timestamp", "yesterday"), ("timestamp", 2**62), ("timestamp", True),
        ("date", "2013-02-30"), ("date", 7), ("binary", "%%"), ("binary", 1),
    ],
)  # fmt: skip
def test_no_value_is_narrowed_or_guessed(kind: Any, value: Any) -> None:
    rules = FieldRules(Field("f", kind))
    with pytest.raises(Wrong):
        rules.item(value)
    assert rules.vector([value] * 9) is None


def test_dates_and_bytes_have_a_text_form() -> None:
    assert FieldRules(Field("f", "date")).item("2013-02-28") == date(2013, 2, 28)
    assert FieldRules(Field("f", "binary")).item("AAE=") == b"\0\1"


def test_float32_is_rounded_as_the_model_saw_it() -> None:
    rules = FieldRules(Field("f", "float32"))
    assert rules.item(0.1) == float(np.float32(0.1))
    column = rules.vector([0.1] * 9)
    assert column is not None
    assert column[0] == float(np.float32(0.1))


FIELDS = [
    Field("f", "float64", nullable=False, ge=-10, le=10),
    Field("f", "float32"),
    Field("f", "int8", ge=0),
    Field("f", "uint64"),
    Field("f", "int64", among=(1, 2, 3)),
    Field("f", "bool"),
    Field("f", "string", max_length=3),
    Field("f", "timestamp"),
]
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 300), st.integers(), st.floats(), st.text(max_size=5)
)


@given(st.sampled_from(FIELDS), st.lists(VALUES, max_size=6) | st.lists(st.integers(0, 5)))
def test_whole_columns_and_single_values_agree(field: Field, values: list[Any]) -> None:
    rules = FieldRules(field)
    items, wrong = [], False
    for value in values:
        try:
            items.append(rules.item(value))
        except Wrong:
            wrong = True
    column = rules.vector(values)
    if column is not None:
        assert not wrong
        np.testing.assert_array_equal(np.asarray(column), np.asarray(rules.column(items)))


@given(st.sampled_from(FIELDS), st.lists(st.integers(-300, 300), min_size=1))
def test_arrays_and_lists_agree(field: Field, values: list[int]) -> None:
    validator = RequestValidator(Schema((field,)))

    def outcome(given_values: Any) -> Any:
        try:
            return np.asarray(validator.columns({"f": given_values})["f"]).tolist()
        except InvalidInput as error:
            return error.faults

    for dtype in (np.int16, np.int64):
        assert outcome(np.array(values, dtype=dtype)) == outcome(values)
