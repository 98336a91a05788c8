"""Rules: the same rows fail in Polars and in DuckDB, and people are told which."""

from __future__ import annotations

import math
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everloop.core.schema import Check, Field, Schema
from everloop.data.checks import check
from everloop.errors import InvalidInput
from tests.unit.data.strategies import columns, values

NUMBERS = ["int8", "int32", "int64", "uint8", "uint64", "float32", "float64"]
ORACLE = duckdb.connect(":memory:")
TEXTS = ["a+", "", "[a-z]*", "a|aa", ".", "a.b", "(?i)a", "ä?", "[^a]+"]


def broken_by_polars(column: pa.Array, field: Field) -> dict[str, list[int]]:
    report = check(pa.table({"x": column}), Schema((field,)))
    return {found.rule: found.rows.tolist() for found in report.broken}


def broken_by_duckdb(column: pa.Array, rule: str, condition: str) -> dict[str, list[int]]:
    """The rows for which `condition` holds, under the name of the rule."""
    table = pa.table({"x": column, "row": np.arange(len(column))})
    with ORACLE.cursor() as connection:
        connection.register("frame", table)
        query = (
            f"SELECT row FROM (SELECT *, ({condition}) AS hit FROM frame) WHERE hit ORDER BY row"
        )
        rows = [row for (row,) in connection.execute(query).fetchall()]
    return {rule: rows} if rows else {}


def missing(kind: str) -> str:
    return "x IS NULL OR isnan(x)" if kind.startswith("float") else "x IS NULL"


def number(value: Any, kind: str) -> str:
    if kind.startswith("float"):
        return f"CAST('{value!r}' AS {'FLOAT' if kind == 'float32' else 'DOUBLE'})"
    # No column has a number as large, and DuckDB has none larger.
    return f"CAST('{max(-(2**126), min(value, 2**126))}' AS HUGEINT)"


def seen(kind: str) -> str:
    return "x" if kind.startswith("float") else "CAST(x AS HUGEINT)"


@st.composite
def bounded(draw: st.DrawFn) -> tuple[str, pa.Array, float]:
    kind = draw(st.sampled_from(NUMBERS))
    column = draw(columns(kind, draw(st.integers(0, 8))))
    bound = draw(
        st.one_of(
            st.sampled_from([0.0, -0.0, 0.5, -0.5, 2.0**53, 2.0**63, -(2.0**63), 2.0**64, 127.0]),
            st.floats(allow_nan=False, allow_infinity=False, width=32),
        )
    )
    return kind, column, bound


@given(bounded())
@settings(max_examples=60, deadline=None)
def test_bounds_agree_with_duckdb(case: tuple[str, pa.Array, float]) -> None:
    kind, column, bound = case
    whole = not kind.startswith("float")
    for rule, sign, turn in (("ge", "<", math.ceil), ("le", ">", math.floor)):
        field = Field("x", kind, **{rule: bound})  # type: ignore[arg-type]
        limit = number(turn(bound) if whole else bound, kind)
        condition = f"{seen(kind)} {sign} {limit} AND NOT ({missing(kind)})"
        assert broken_by_polars(column, field) == broken_by_duckdb(column, f"x.{rule}", condition)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_not_null_agrees_with_duckdb(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from([*NUMBERS, "string", "bool", "binary", "timestamp", "date"]))
    column = data.draw(columns(kind, data.draw(st.integers(0, 8))))
    field = Field("x", kind, nullable=False)  # type: ignore[arg-type]
    assert broken_by_polars(column, field) == broken_by_duckdb(column, "x.not_null", missing(kind))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_among_agrees_with_duckdb(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from([*NUMBERS, "string", "bool"]))
    column = data.draw(columns(kind, data.draw(st.integers(0, 8))))
    allowed = values(kind).filter(lambda v: not isinstance(v, float) or math.isfinite(v))
    among = data.draw(st.lists(allowed, min_size=1, max_size=4))
    field = Field("x", kind, among=tuple(among))  # type: ignore[arg-type]
    if kind == "string":
        listed = ", ".join(_text(value) for value in among)
        condition = f"x NOT IN ({listed})"
    elif kind == "bool":
        condition = f"x NOT IN ({', '.join(map(str, among))})"
    else:
        listed = ", ".join(number(value, kind) for value in among)
        condition = f"{seen(kind)} NOT IN ({listed}) AND NOT ({missing(kind)})"
    assert broken_by_polars(column, field) == broken_by_duckdb(column, "x.among", condition)


def _text(value: str) -> str:
    return f"decode(from_hex('{value.encode().hex()}'))"


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_regex_and_length_agree_with_duckdb(data: st.DataObject) -> None:
    column = data.draw(columns("string", data.draw(st.integers(0, 8))))
    regex, most = data.draw(st.sampled_from(TEXTS)), data.draw(st.integers(1, 4))
    matched = broken_by_polars(column, Field("x", "string", regex=regex))
    if regex:
        condition = rf"NOT regexp_matches(x, '\A(?:{regex})\z')"
        assert matched == broken_by_duckdb(column, "x.regex", condition)
    measured = broken_by_polars(column, Field("x", "string", max_length=most))
    assert measured == broken_by_duckdb(column, "x.max_length", f"length(x) > {most}")


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_unique_agrees_with_duckdb(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from([*NUMBERS, "string", "bool", "binary", "timestamp", "date"]))
    column = data.draw(columns(kind, data.draw(st.integers(0, 10))))
    field = Field("x", kind, unique=True)  # type: ignore[arg-type]
    earlier = "row_number() OVER (PARTITION BY x ORDER BY row) > 1"
    condition = f"{earlier} AND NOT ({missing(kind)})"
    assert broken_by_polars(column, field) == broken_by_duckdb(column, "x.unique", condition)


@given(st.lists(st.tuples(st.none() | st.integers(0, 2), st.none() | st.sampled_from("ab"))))
@settings(max_examples=50, deadline=None)
def test_key_agrees_with_counting(pairs: list[tuple[int | None, str | None]]) -> None:
    table = pa.table(
        {
            "a": pa.array([a for a, _ in pairs], pa.int64()),
            "b": pa.array([b for _, b in pairs], pa.string()),
        }
    )
    schema = Schema((Field("a", "int64"), Field("b", "string")), key=("a", "b"))
    report = check(table, schema)
    found = {broken.rule: broken.rows.tolist() for broken in report.broken}
    whole = [None not in pair for pair in pairs]
    repeated = [n for n, pair in enumerate(pairs) if whole[n] and pair in pairs[:n]]
    assert found.get("key.unique", []) == repeated
    for n, name in enumerate("ab"):
        nulls = [row for row, pair in enumerate(pairs) if pair[n] is None]
        assert found.get(f"key.{name}.not_null", []) == nulls


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_nan_counts_as_missing(kind: Any) -> None:
    column = pa.array(
        [1.0, float("nan"), None], pa.float32() if kind == "float32" else pa.float64()
    )
    assert broken_by_polars(column, Field("x", kind, nullable=False)) == {"x.not_null": [1, 2]}
    assert broken_by_polars(column, Field("x", kind, ge=0, le=2, unique=True)) == {}
    table = pa.table({"x": column})
    schema = Schema((Field("x", kind),), checks=(Check("positive", "x > 0"),))
    assert check(table, schema).broken[0].rows.tolist() == [1, 2]


def test_condition_that_is_null_counts_as_broken() -> None:
    schema = Schema((Field("x", "int64"),), checks=(Check("c", "x < 3", reason="too large"),))
    report = check(pa.table({"x": [1, None, 5]}), schema)
    assert [str(fault) for fault in report.faults] == ["rows[1]: too large", "rows[2]: too large"]


def test_every_bad_condition_is_named() -> None:
    checks = (Check("good", "x > 0"), Check("typo", "y > 0"), Check("syntax", "x >"))
    with pytest.raises(InvalidInput) as got:
        check(pa.table({"x": [1]}), Schema((Field("x", "int64"),), checks=checks))
    assert [fault.path for fault in got.value.faults] == ["typo", "syntax"]
    assert '"y" not found' in got.value.faults[0].message


def test_values_of_personal_data_are_not_shown() -> None:
    field = Field("mail", "string", regex="[^@]+@[^@]+", max_length=3, pii="email")
    report = check(pa.table({"mail": ["secret"]}), Schema((field,)))
    assert len(report.faults) == 2
    assert "secret" not in str(report.faults)
    number = Field("pin", "int8", pii="pin")
    assert "4711" not in str(check(pa.table({"pin": [4711]}), Schema((number,))).faults)


def test_long_values_are_cut_in_messages() -> None:
    report = check(pa.table({"x": ["y" * 5000]}), Schema((Field("x", "string", max_length=1),)))
    assert len(str(report.faults[0])) < 200


def test_rules_over_good_columns_are_judged_beside_bad_ones() -> None:
    schema = Schema((Field("a", "int64"), Field("b", "int64", ge=0)), checks=(Check("c", "a > b"),))
    report = check(pa.table({"a": ["x"], "b": [-1]}), schema)
    assert [fault.path for fault in report.faults] == ["a", "rows[0].b"]


def test_kept_leaves_out_dropped_rows_once() -> None:
    schema = Schema(
        (Field("x", "int64", ge=0, le=10, on_fail="drop"),),
        checks=(Check("odd", "x % 2 = 1", on_fail="drop"), Check("w", "x <> 7", on_fail="warn")),
    )
    report = check(pa.table({"x": [1, -2, 20, 7, 4]}), schema)
    assert report.faults == []
    assert report.kept()["x"].to_pylist() == [1, 7]
    assert report.total == 0


def test_few_faults_of_one_rule_are_kept_beside_many_of_another() -> None:
    schema = Schema((Field("a", "int64", ge=1), Field("b", "int64", ge=1)))
    table = pa.table({"a": [0] * 3000, "b": [1] * 2999 + [0]})
    report = check(table, schema)
    assert report.counts == {"a.ge": 3000, "b.ge": 1}
    assert len(report.faults) == 1000
    assert report.faults[-1].path == "rows[2999].b"


def test_empty_frame_has_no_faults() -> None:
    schema = Schema(
        (Field("x", "int64", nullable=False, ge=0, unique=True),),
        checks=(Check("c", "x > 0"),),
        key=("x",),
    )
    report = check(pa.table({"x": pa.array([], pa.int64())}), schema)
    assert (report.faults, report.broken) == ([], [])
