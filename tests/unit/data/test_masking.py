"""Masks: the type stays, equal values stay equal, nothing of the value is left; no key, no hash."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import everloop as ev
from everloop.access.signing import SigningKey
from everloop.core.kinds import FIELD_TYPES
from everloop.core.mask import mask_fault, mask_of
from everloop.data.arrow import arrow_type
from everloop.data.masking import mask_key, masked_table
from everloop.errors import InvalidInput, StateError

KEY = mask_key("one workspace")
EARLY, LATE = (datetime(year, 1, 1) for year in (1900, 2100))  # noqa: DTZ001 (Hypothesis adds it)


def masked(values: Any, kind: str, mask: str, key: bytes = KEY) -> list[Any]:
    column = pa.array(values, arrow_type(kind))  # type: ignore[arg-type]
    rows = pa.table({"x": column})
    made = masked_table(rows, {"x": mask}, lambda: key)
    assert made.schema == rows.schema
    assert made.num_rows == rows.num_rows
    return made.column("x").to_pylist()


@given(st.lists(st.none() | st.text(max_size=8)))
def test_hashes_are_equal_where_values_are_and_nowhere_else(values: list[str | None]) -> None:
    made = masked(values, "string", "hash")
    assert [v is None for v in values] == [m is None for m in made]
    assert len(set(made)) == len(set(values))
    pairs = dict(zip(values, made, strict=True))
    assert [pairs[v] for v in values] == made
    assert all(m is None or len(m) == 32 for m in made)


def test_another_key_gives_other_hashes_and_the_same_key_the_same_in_every_table() -> None:
    one = masked(["ann", "bo"], "string", "hash")
    assert masked(["bo"], "string", "hash") == [one[1]]
    assert not set(one) & set(masked(["ann", "bo"], "string", "hash", mask_key("another")))
    whole = masked([7, -1, None, 2**62], "int64", "hash")
    assert whole[2] is None
    assert len(set(whole)) == 4
    assert all(n is None or n >= 0 for n in whole)


def test_a_hash_without_a_key_is_an_error_and_no_other_hash() -> None:
    rows = pa.table({"x": ["ann"]})
    with pytest.raises(StateError, match="no key"):
        masked_table(rows, {"x": "hash"}, lambda: mask_key(SigningKey(None).get()))
    assert masked_table(rows, {"x": "redact"}, _no_key).column("x").to_pylist() == ["(masked)"]


def _no_key() -> bytes:
    raise AssertionError("nobody needs a key here")


@given(st.lists(st.none() | st.integers(-(2**63), 2**63 - 1)), st.integers(1, 2**64))
def test_buckets_of_whole_numbers_are_multiples_below(values: list[int | None], width: int) -> None:
    least = -(2**63)
    for value, made in zip(values, masked(values, "int64", f"bucket:{width}"), strict=True):
        if value is None:
            assert made is None
            continue
        below = value // int(float(width)) * int(float(width))
        assert made == max(below, least)


@given(st.lists(st.floats(-1e9, 1e9)), st.sampled_from([0.5, 1.0, 10.0, 1000.0]))
def test_buckets_of_numbers(values: list[float], width: float) -> None:
    for value, made in zip(values, masked(values, "float64", f"bucket:{width}"), strict=True):
        assert made <= value < made + width or made == pytest.approx(value)


def test_buckets_of_times() -> None:
    at = datetime(2024, 5, 17, 13, 5, 9, 1, UTC)
    assert masked([at, None], "timestamp", "bucket:month") == [
        datetime(2024, 5, 1, tzinfo=UTC),
        None,
    ]
    assert masked([date(1969, 5, 17)], "date", "bucket:year") == [date(1969, 1, 1)]


@given(
    st.lists(
        st.tuples(
            st.none() | st.sampled_from(["ann", "bo", "cy"]),
            st.none() | st.datetimes(EARLY, LATE, timezones=st.just(UTC)),
        )
    ),
    st.integers(1, 400),
)
def test_shifts_keep_the_intervals_of_a_subject(
    rows: list[tuple[str | None, datetime | None]], days: int
) -> None:
    table = pa.table(
        {
            "who": pa.array([who for who, _ in rows], pa.string()),
            "at": pa.array([at for _, at in rows], pa.timestamp("us", "UTC")),
        }
    )
    made = masked_table(table, {"at": f"shift:who:{days}"}, lambda: KEY).column("at").to_pylist()
    shifts: dict[str, timedelta] = {}
    for (who, at), new in zip(rows, made, strict=True):
        if who is None or at is None:
            assert new is None
            continue
        moved = new - at
        assert shifts.setdefault(who, moved) == moved
        assert timedelta(0) < abs(moved) <= timedelta(days=days)
        assert moved % timedelta(days=1) == timedelta(0)


def test_a_shift_by_a_column_that_is_not_there_is_null_and_never_the_value() -> None:
    assert masked([datetime(2024, 1, 1, tzinfo=UTC)], "timestamp", "shift:gone") == [None]
    assert masked([date(2024, 1, 1)], "date", "shift:gone:7") == [None]


@pytest.mark.parametrize("kind", FIELD_TYPES)
@pytest.mark.parametrize("mask", ["redact", "null", "hash", "bucket:10", "bucket:month"])
def test_every_mask_over_every_type_leaves_no_value(kind: str, mask: str) -> None:
    value: Any = {
        "string": "secret", "binary": b"secret", "bool": True, "date": date(2024, 5, 17),
        "timestamp": datetime(2024, 5, 17, 1, tzinfo=UTC),
    }.get(kind, 117)  # fmt: skip
    assert masked([value], kind, mask) != [value]
    assert masked([], kind, mask) == []
    assert masked([None], kind, mask) == [None]


@pytest.mark.parametrize(
    ("mask", "kind"),
    [
        ("", "string"), ("hide", "string"), ("hash", "float64"), ("hash", "int8"),
        ("hash:k", "string"), ("bucket", "int64"), ("bucket:0", "int64"), ("bucket:-1", "int64"),
        ("bucket:nan", "float64"),
        ("bucket:inf", "float64"), ("bucket:0.5", "int64"), ("bucket:10", "string"),
        ("bucket:day", "date"), ("bucket:month", "int64"), ("shift", "date"), ("shift:", "date"),
        ("shift:a", "int64"), ("shift:a:0", "date"), ("shift:a:99999999", "date"),
    ],
)  # fmt: skip
def test_what_no_mask_can_be_is_refused_where_it_is_declared(mask: str, kind: Any) -> None:
    assert mask_fault(mask, kind)
    if mask:
        field = ev.Field("x", kind, mask=mask)
        with pytest.raises(InvalidInput):
            ev.Schema((field,))


def test_a_shift_takes_a_column_with_colons_in_its_name() -> None:
    assert mask_of("shift:a:b").by == "a:b"
    assert mask_of("shift:a:b:30")[3:] == ("a:b", 30)
