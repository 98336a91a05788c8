"""Checks of every kind: Polars, and SQL in place, beside an oracle that looks row by row."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from statistics import median
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import everloop as ev
from everloop.core.quality import MASKED, QualityReport
from everloop.core.schema import Check, Field, Schema
from everloop.data import functions
from everloop.data.inplace import check_sql
from everloop.data.judge import judge_frame, judge_parts
from everloop.errors import InvalidInput, NotFound, UserCodeError

col = ev.col
KNOWN = ["a", "b"]
DATABASE = duckdb.connect(":memory:", config={"threads": 1})
DATABASE.register("names", pa.table({"name": [*KNOWN, None]}))

SCHEMA = Schema(
    (
        Field("id", "int64", owner="ids"),
        Field("i", "int32", nullable=False, ge=-2, le=3),
        Field("f", "float64", ge=-1.5, le=1.5, nullable=False),
        Field("s", "string", among=("a", "b", "ab"), regex="[ab]*", max_length=2),
        Field("t", "timestamp"),
        Field("u", "uint64", unique=True),
        Field("b", "bool"),
    ),
    checks=(
        Check("above", col.f > col.i, owner="sums"),
        Check("either", col.b | (col.s.length() > 0)),
        Check("sql", "f > i OR s = 'a'"),
        Check("pair", kind="unique", columns=("i", "s")),
        Check("grows", kind="increasing", columns=("t",)),
        Check("falls", kind="strictly_decreasing", columns=("f",)),
        Check("known", kind="references", columns=("s",), to="names/name"),
        Check("enough", kind="row_count", ge=3),
        Check("mean f", kind="mean", columns=("f",), ge=-0.5, le=0.5),
        Check("nulls", kind="null_share", columns=("f",), le=0.3),
        Check("several", kind="distinct", columns=("s",), ge=2),
        Check("greatest", kind="max", columns=("i",), le=2),
        Check("middle", kind="median", columns=("f",), ge=-0.5, le=1),
        Check("varied", kind="distinct_share", columns=("s",), ge=0.4),
        Check("has a", kind="matches", rule="a|^$", columns=("s",)),
        Check("no b", kind="not_matches", rule="b$", columns=("s",), where=col.b, mostly=0.5),
        Check("single", kind="unique", columns=("s",), stays="none", nulls_equal=True),
        Check("last", kind="unique", columns=("i", "s"), stays="last", where=col.f > -1),
        Check("mostly", col.f > col.i, where=~col.i.is_null(), mostly=0.6),
        Check("mostly sql", "f > i", where=col.b, mostly=0.4),
        Check("over", "i >= max(i) OVER ()", where=col.b),
        Check("grows where", kind="strictly_increasing", columns=("t",), where=col.i > 0),
        Check("known where", kind="references", columns=("s",), to="names/name", where=~col.b),
        Check("some true", kind="row_count", ge=1, where=col.b),
        Check("mean where", kind="mean", columns=("i",), le=1, where=col.b),
        Check("nulls where", kind="null_share", columns=("s",), le=0.5, where=col.i > 0),
    ),
)  # fmt: skip
TYPES = {
    "id": pa.int64(), "i": pa.int32(), "f": pa.float64(), "s": pa.string(),
    "t": pa.timestamp("us", "UTC"), "u": pa.uint64(), "b": pa.bool_(),
}  # fmt: skip
floats = st.sampled_from(
    [None, math.nan, -math.inf, math.inf, -2.0, -1.5, -0.0, 0.0, 1.0, 1.5, 2.5]
)
ROW = st.fixed_dictionaries(
    {
        "i": st.one_of(st.none(), st.integers(-3, 4)),
        "f": floats,
        "s": st.one_of(st.none(), st.sampled_from(["", "a", "b", "ab", "abc", "ä", "a\n"])),
        "t": st.one_of(st.none(), st.integers(-3, 3)),
        "u": st.one_of(st.none(), st.sampled_from([0, 1, 2**63, 2**64 - 1])),
        "b": st.one_of(st.none(), st.booleans()),
    }
)


def gone(value: Any) -> bool:
    return value is None or value != value


def oracle(rows: list[dict[str, Any]]) -> dict[str, list[int]]:
    """The rows that break each rule, looked at one after the other."""
    found: dict[str, list[int]] = {}
    seen: dict[str, set[Any]] = {"u.unique": set(), "pair": set()}
    last: dict[str, Any] = {}

    def say(rule: str, row: int, *, broken: bool) -> None:
        if broken:
            found.setdefault(rule, []).append(row)

    for n, row in enumerate(rows):
        i, f, s, t, u, b = (row[name] for name in "ifstub")
        say("i.not_null", n, broken=i is None)
        say("i.ge", n, broken=i is not None and i < -2)
        say("i.le", n, broken=i is not None and i > 3)
        say("f.not_null", n, broken=gone(f))
        say("f.ge", n, broken=not gone(f) and f < -1.5)
        say("f.le", n, broken=not gone(f) and f > 1.5)
        say("s.among", n, broken=s is not None and s not in ("a", "b", "ab"))
        say("s.regex", n, broken=s is not None and not re.fullmatch("[ab]*", s))
        say("s.max_length", n, broken=s is not None and len(s) > 2)
        above = f is not None and i is not None and f > i
        say("above", n, broken=not above)
        say("either", n, broken=not (b is True or (s is not None and len(s) > 0)))
        say("sql", n, broken=not ((not gone(f) and i is not None and f > i) or s == "a"))
        for rule, value in (("u.unique", u), ("pair", None if None in (i, s) else (i, s))):
            say(rule, n, broken=value is not None and value in seen[rule])
            seen[rule].add(value)
        for rule, value in (("grows", t), ("falls", f)):
            if not gone(value):
                before = last.get(rule, value if rule == "grows" else math.nan)
                say(rule, n, broken=value < before if rule == "grows" else value >= before)
                last[rule] = value
        say("known", n, broken=s is not None and s not in KNOWN)
        say("has a", n, broken=s is not None and not re.search("a|^$", s))
    return found | newer(rows)


def newer(rows: list[dict[str, Any]]) -> dict[str, list[int]]:
    """What ``where``, ``mostly``, ``stays`` and ``nulls_equal`` name, from lists of rows."""
    at = list(enumerate(rows))
    true = [(n, row) for n, row in at if row["b"] is True]
    positive = [(n, row) for n, row in at if row["i"] is not None and row["i"] > 0]
    whole = [(n, row) for n, row in at if row["i"] is not None]
    least = [(n, row) for n, row in at if row["f"] is not None and row["f"] > -1]
    pairs = [(n, (row["i"], row["s"])) for n, row in least if None not in (row["i"], row["s"])]
    texts = [row["s"] for row in rows]
    above = {n for n, row in whole if not (row["f"] is not None and row["f"] > row["i"])}
    below = {
        n for n, row in true
        if gone(row["f"]) or row["i"] is None or not row["f"] > row["i"]
    }  # fmt: skip
    most = max((row["i"] for _, row in true if row["i"] is not None), default=None)
    times = [(n, row["t"]) for n, row in positive if row["t"] is not None]
    ends = {n for n, row in true if row["s"] is not None and re.search(r"b\Z", row["s"])}
    found = {
        "no b": few(ends, len(true), 0.5),
        "single": {n for n, text in enumerate(texts) if texts.count(text) > 1},
        "last": {n for k, (n, pair) in enumerate(pairs) if pair in [p for _, p in pairs[k + 1 :]]},
        "mostly": few(above, len(whole), 0.6),
        "mostly sql": few(below, len(true), 0.4),
        "over": {n for n, row in true if row["i"] is None or row["i"] < most},
        "grows where": {n for (_, a), (n, b) in pairwise(times) if b <= a},
        "known where": {
            n for n, row in at if row["b"] is False and row["s"] not in (None, *KNOWN)
        },
    }  # fmt: skip
    return {rule: sorted(broken) for rule, broken in found.items() if broken}


def few(broken: set[int], judged: int, mostly: float) -> set[int]:
    return broken if broken and (judged - len(broken)) / judged < mostly else set()


def figures(rows: list[dict[str, Any]]) -> set[str]:
    fs = [row["f"] for row in rows if not gone(row["f"])]
    texts = {row["s"] for row in rows if row["s"] is not None}
    whole = [row["i"] for row in rows if row["i"] is not None]
    true = [row for row in rows if row["b"] is True]
    true_i = [row["i"] for row in true if row["i"] is not None]
    positive = [row["s"] for row in rows if row["i"] is not None and row["i"] > 0]
    mean = sum(fs) / len(fs) if fs else math.inf
    broken = {
        "enough": len(rows) < 3,
        "mean f": not -0.5 <= mean <= 0.5,
        "nulls": not rows or 1 - len(fs) / len(rows) > 0.3,
        "several": len(texts) < 2,
        "greatest": not whole or max(whole) > 2,
        "middle": not fs or not -0.5 <= median(fs) <= 1,
        "varied": not texts or len(texts) / sum(row["s"] is not None for row in rows) < 0.4,
        "some true": not true,
        "mean where": not true_i or sum(true_i) / len(true_i) > 1,
        "nulls where": not positive or positive.count(None) / len(positive) > 0.5,
    }
    return {name for name, is_broken in broken.items() if is_broken}


def table_of(rows: list[dict[str, Any]]) -> pa.Table:
    numbered = [{"id": n, **row} for n, row in enumerate(rows)]
    return pa.table({k: pa.array([r[k] for r in numbered], t) for k, t in TYPES.items()})


def values_of(dataset: str, column: str) -> pl.Series:
    assert (dataset, column) == ("names", "name")
    return pl.Series([*KNOWN, None])


def told(report: QualityReport) -> tuple[dict[str, list[int]], set[str]]:
    rows = {r.rule: [row.row for row in r.rows] for r in report.broken if r.rows}
    return rows, {r.rule for r in report.broken if not r.rows}


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(ROW, max_size=8), cut=st.integers(1, 8))
def test_every_kind_agrees_with_a_look_at_each_row(rows: list[dict[str, Any]], cut: int) -> None:
    table = table_of(rows)
    wanted = (oracle(rows), figures(rows))
    parts = [table.slice(n, cut) for n in range(0, max(len(rows), 1), cut)]
    assert told(judge_parts(parts, SCHEMA, values_of=values_of)) == wanted
    DATABASE.register("rows", table)
    assert told(check_sql(DATABASE, "rows", SCHEMA)) == wanted


def small(**columns: Any) -> pa.Table:
    return pa.table(columns)


def test_a_rule_names_every_row_with_key_reason_and_owner() -> None:
    schema = Schema(
        (Field("k", "string"), Field("x", "int64", ge=0, owner="sensors"), Field("y", "int64")),
        checks=(Check("y above x", col.y > col.x, reason="arrives before it leaves", owner="ops"),),
        key=("k",),
    )
    report = judge_frame({"k": ["a", "b", "c"], "x": [-1, 2, -3], "y": [0, 1, 5]}, schema)
    assert report.failures() == [
        {"row": 0, "k": "a", "rule": "x.ge", "reason": "x is below 0", "owner": "sensors",
         "value.x": -1},
        {"row": 2, "k": "c", "rule": "x.ge", "reason": "x is below 0", "owner": "sensors",
         "value.x": -3},
        {"row": 1, "k": "b", "rule": "y above x", "reason": "arrives before it leaves",
         "owner": "ops", "value.y": 1, "value.x": 2},
    ]  # fmt: skip
    assert not report.ok


def test_millions_of_failing_rows_are_counted_and_few_are_kept() -> None:
    frame = pl.select(x=pl.int_range(-3_000_000, 0), y=pl.lit("b").repeat_by(1).list.first())
    frame = frame.with_columns(y=pl.lit("b"))
    schema = Schema((Field("x", "int64", ge=0, unique=True), Field("y", "string", among=("a",))))
    report = judge_frame(frame, schema, show=7)
    assert [(r.rule, r.failed, len(r.rows)) for r in report.broken] == [
        ("x.ge", 3_000_000, 7),
        ("y.among", 3_000_000, 7),
    ]


def test_an_empty_table_breaks_no_rule_of_rows_but_a_row_count() -> None:
    schema = Schema(
        (Field("x", "int64", ge=0, unique=True),),
        checks=(Check("some", kind="row_count", ge=1), Check("m", kind="mean", columns="x", ge=0)),
    )
    report = judge_frame(small(x=pa.array([], pa.int64())), schema)
    assert [(r.rule, r.reason) for r in report.broken] == [
        ("some", "row_count is 0, below 1"),
        ("m", "mean of x cannot be told of these values"),
    ]


def test_a_rule_on_a_missing_column_fails_and_the_others_are_judged() -> None:
    schema = Schema(
        (Field("x", "int64", ge=0), Field("y", "int64")),
        checks=(Check("order", col.y > col.x, on_fail="warn"), Check("sql", "y > x")),
    )
    report = judge_frame(small(x=[-1]), schema)
    assert not report.ok
    assert [r.rule for r in report.broken] == ["x.ge", "order"]
    assert report.broken[1].on_fail == "fail"
    assert "the column is missing" in report.faults[0]


@pytest.mark.parametrize(
    ("check", "told"),
    [
        (Check("c", col.delai > 1), "did you mean 'delay'"),
        (Check("c", kind="unique", columns=("delai",)), "did you mean 'delay'"),
        (Check("c", col.name > 1), "needs values of one kind"),
        (Check("c", col.delay + 1), "must be true or false"),
        (Check("c", kind="mean", columns=("name",), ge=1), "needs numbers"),
        (Check("c", kind="mean", columns=("delay",)), "needs a bound"),
        (Check("c", kind="mean", columns=("delay",), ge=2, le=1), "is above"),
        (Check("c", kind="row_count", ge=1, on_fail="drop"), "of no single row"),
        (Check("c", "delay > 1", on_fail="repair"), "go together"),
        (Check("c", kind="references", columns=("name",)), "needs to="),
        (Check("c", ""), "needs a rule"),
        (Check("c", col.delay > 1, where=col.delai > 1), "did you mean 'delay'"),
        (Check("c", col.delay > 1, where=col.name), "must be true or false"),
        (Check("c", col.delay > 1, mostly=1.5), "a share from 0 to 1"),
        (Check("c", kind="mean", columns=("delay",), ge=1, mostly=0.5), "no single row"),
        (Check("c", kind="volume", ge=1, where=col.delay > 1), "over versions"),
        (Check("c", col.delay > 1, stays="none"), "of kind unique"),
        (Check("c", kind="matches", columns=("delay",), rule="a"), "needs text"),
        (Check("c", kind="matches", columns=("name",)), "needs a rule"),
        (Check("c", kind="matches", columns=("name",), rule="(?=a)"), "look-around"),
    ],
)
def test_a_check_that_cannot_be_is_refused_where_it_is_defined(check: Check, told: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(told)):
        Schema((Field("delay", "float64"), Field("name", "string")), checks=(check,))


def test_rules_of_a_field_that_disagree_each_name_the_row() -> None:
    with pytest.raises(InvalidInput, match="is above le"):
        Schema((Field("x", "int64", ge=3, le=2),))
    report = judge_frame(small(x=[1, 4]), Schema((Field("x", "int64", among=(1, 2), ge=3),)))
    broken = {r.rule: [row.row for row in r.rows] for r in report.broken}
    assert broken == {"x.ge": [0], "x.among": [1]}


def test_sql_that_is_none_is_refused_before_a_row_is_looked_at() -> None:
    schema = Schema((Field("x", "int64"),), checks=(Check("c", "x >"), Check("d", "nope > 1")))
    with pytest.raises(InvalidInput) as caught:
        judge_frame(small(x=pa.array([], pa.int64())), schema)
    assert [fault.path for fault in caught.value.faults] == ["c", "d"]


def test_a_window_in_a_condition_sees_all_parts() -> None:
    schema = Schema((Field("x", "int64"),), checks=(Check("c", "x <= avg(x) OVER () * 2"),))
    parts = [small(x=[1, 1]), small(x=[1, 13])]
    assert [row.row for row in judge_parts(parts, schema).broken[0].rows] == [3]


def test_personal_data_is_in_no_sample_and_no_error() -> None:
    schema = Schema(
        (Field("mail", "string", pii="email", regex=".+@.+"), Field("x", "int64", ge=0)),
        checks=(
            Check("sql", "CAST(mail AS INT) > 1"),
            Check("mine", kind="function", to="raises", columns=("mail",)),
        ),
        key=("mail",),
    )
    no_checks = Schema(schema.fields, key=schema.key)
    report = judge_frame({"mail": ["ann@x.org", "bob"], "x": [-1, 1]}, no_checks)
    assert not re.search("ann@|bob", repr(report))
    assert report.broken[0].rows[0].key == {"mail": MASKED}
    with pytest.raises(InvalidInput) as caught:
        judge_frame({"mail": ["ann@x.org"], "x": [1]}, Schema(schema.fields, schema.checks[:1]))
    assert "ann@" not in str(caught.value)

    @ev.check_function("raises")
    def raises(rows: ev.Table) -> Any:
        raise ValueError(rows.column("mail")[0].as_py())

    with pytest.raises(UserCodeError) as failed:
        judge_frame({"mail": ["ann@x.org"], "x": [1]}, Schema(schema.fields, schema.checks[1:]))
    functions.forget("raises")
    assert "ann@" not in str(failed.value)


def test_functions_of_rows_and_polars_expressions() -> None:
    @ev.check_function("even")
    def even(rows: ev.Table) -> Any:
        return [value % 2 == 0 for value in rows.column("x").to_pylist()]

    ev.check_function("small", pl.col("x") < 3)
    ev.check_function("short")(lambda rows: [True])
    fields = (Field("x", "int64"),)
    checks = [Check(n, kind="function", to=n, columns=("x",)) for n in ("even", "small")]
    report = judge_frame({"x": [1, 2, 4]}, Schema(fields, tuple(checks)))
    broken = {r.rule: [row.row for row in r.rows] for r in report.broken}
    assert broken == {"even": [0], "small": [2]}
    for name, error, told in (
        ("evn", InvalidInput, "even"), ("short", InvalidInput, "1 values of bool for 3 rows"),
    ):  # fmt: skip
        with pytest.raises(error, match=told):
            judge_frame({"x": [1, 2, 4]}, Schema(fields, (Check("c", kind="function", to=name),)))
    for name in ("even", "small", "short"):
        functions.forget(name)


def test_a_frame_of_the_right_types_is_judged_where_it_lies() -> None:
    schema = Schema((Field("x", "int64", ge=0), Field("s", "string", max_length=1)))
    frame = pl.DataFrame({"x": [1, -1], "s": ["a", "bb"]})
    assert judge_frame(frame, schema) == judge_frame(frame.to_arrow(), schema)
    with pytest.raises(NotFound):
        functions.named("nobody")
