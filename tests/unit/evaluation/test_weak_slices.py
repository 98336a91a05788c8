"""Slices: planted ones are found as rules, SQL names exactly their rows, noise gives none."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import everloop as ev
from everloop.errors import InvalidInput, NotFound
from everloop.evaluation.findings.cutting import cut_column
from everloop.evaluation.findings.search import Rule, members, search

START = datetime(2013, 1, 1, tzinfo=UTC)


def flights(n: int = 6000, seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    origin = np.array(["EWR", "JFK", "LGA"])[random.integers(0, 3, n)]
    hour = random.integers(5, 24, n)
    loss = random.exponential(0.2, n)
    loss[(origin == "EWR") & (hour >= 18) & (hour < 21)] += 0.5
    return {
        "id": np.arange(n),
        "origin": origin,
        "hour": hour,
        "noise": random.normal(size=n),
        "loss": loss,
    }


def test_a_planted_pair_is_found_as_a_rule_and_its_parents_are_not() -> None:
    rows = flights()
    found = ev.slices(rows, error="loss", fields=["origin", "hour", "noise"], min_rows=50)
    assert len(found) == 1
    [worst] = found
    assert worst.name.startswith("origin = 'EWR' and ")
    assert worst.figures["low"] > 0.2
    assert worst.figures["adjusted_p"] < 0.05
    planted = (rows["origin"] == "EWR") & (rows["hour"] >= 18) & (rows["hour"] < 21)
    assert planted[worst.numbers].mean() > 0.6
    assert (np.diff(worst.scores) <= 0).all()
    assert found.figures["tried"] > 100


def test_a_rule_becomes_a_check_a_version_and_a_filter() -> None:
    table = ev.Table.of(flights(), key=["id"])
    [worst] = ev.slices(table, error="loss", fields=["origin", "hour"], min_rows=50)
    of_filter = table.filter(worst.condition).column("id").to_pylist()
    assert sorted(worst.numbers.tolist()) == of_filter
    check = worst.as_check(owner="ops@example.org")
    types = {"id": "int64", "hour": "int64", "origin": "string", "noise": "float64"}
    fields = [ev.Field(name, kind) for name, kind in (types | {"loss": "float64"}).items()]  # type: ignore[arg-type]
    schema = ev.Schema(tuple(fields), checks=(check,))
    [broken] = ev.check(table, schema).broken
    assert (broken.failed, broken.owner) == (len(worst), "ops@example.org")
    left = worst.drop_from()
    assert len(left) == len(table) - len(worst)
    assert left.changes[0].rows.num_rows == len(worst)


def test_noise_gives_nothing() -> None:
    random = np.random.default_rng(7)
    for seed in range(5):
        rows = {f"x{n}": random.normal(size=3000) for n in range(6)}
        rows["level"] = random.integers(0, 5, 3000).astype(str)
        error = (np.random.default_rng(seed).random(3000) < 0.3).astype(float)
        assert len(ev.slices(rows, error=error, min_rows=30)) == 0


def test_days_are_the_sample_where_a_time_is_named() -> None:
    random = np.random.default_rng(3)
    day = random.integers(0, 40, 8000)
    storm = random.random(40) < 0.2
    # What a day had in common with its part of the year is no slice of the part.
    rows = {
        "at": [START + timedelta(days=int(one)) for one in day],
        "half": np.where(day < 20, "first", "second"),
        "loss": random.exponential(0.2, 8000) + storm[day] * random.random(40)[day],
    }
    by_rows = ev.slices(rows, error="loss", fields=["half"])
    by_days = ev.slices(rows, error="loss", fields=["half"], time="at")
    assert len(by_rows) == 1
    assert len(by_days) == 0
    few = ev.slices(rows | {"at": [START] * 8000}, error="loss", fields=["half"], time="at")
    assert "too few blocks" in few.reason


values = st.one_of(
    st.lists(st.one_of(st.none(), st.floats(width=64)), min_size=1, max_size=40).map(
        lambda v: pa.array(v, pa.float64())
    ),
    st.lists(st.one_of(st.none(), st.floats(width=32)), min_size=1, max_size=40).map(
        lambda v: pa.array(v, pa.float32())
    ),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=40).map(
        lambda v: pa.array(v, pa.int64())
    ),
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=40).map(
        lambda v: pa.array(v, pa.uint64())
    ),
    st.lists(st.integers(-5, 5), min_size=1, max_size=40).map(lambda v: pa.array(v, pa.int8())),
    st.lists(
        st.one_of(st.none(), st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1))),  # noqa: DTZ001
        min_size=1, max_size=40,
    ).map(lambda v: pa.array(v, pa.timestamp("us", "UTC"))),
    st.lists(
        st.one_of(st.none(), st.dates(date(1900, 1, 1), date(2200, 1, 1))), min_size=1, max_size=40
    ).map(lambda v: pa.array(v, pa.date32())),
    st.lists(
        st.one_of(st.none(), st.text(st.characters(codec="utf-8", exclude_characters="\0"))),
        min_size=1, max_size=40,
    ).map(lambda v: pa.array(v, pa.string())),
    st.lists(st.one_of(st.none(), st.booleans()), min_size=1, max_size=40).map(
        lambda v: pa.array(v, pa.bool_())
    ),
)  # fmt: skip


@given(values, st.booleans())
@settings(max_examples=150, deadline=None)
def test_sql_names_exactly_the_rows_of_each_part(column: pa.Array, is_category: bool) -> None:
    name = 'a "b" c'
    table = ev.Table.of(pa.table({name: column, "__n": pa.array(range(len(column)))}))
    parts = cut_column(name, table.column(name), is_category=is_category)
    if parts is None:
        assert is_category
        return
    assert parts.size <= 25
    for begin, end in parts.ranges()[:12]:
        mine = np.flatnonzero(members([parts], Rule(((0, begin, end),), 0, 0, 0, 0, 0, 0)))
        sql = table.filter(parts.sql(begin, end)).column("__n").to_pylist()
        assert sql == mine.tolist(), parts.sql(begin, end)
        assert parts.told(begin, end)


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_every_rule_is_measured_as_a_query_would(seed: int) -> None:
    random = np.random.default_rng(seed)
    n = 400
    table = ev.Table.of({
        "a": random.integers(0, 3, n).astype(str), "b": random.normal(size=n).round(1),
        "c": [None if x < 0.1 else float(x) for x in random.random(n)],
    })  # fmt: skip
    error = random.random(n) + (table.column("a").to_numpy(zero_copy_only=False) == "1") * 0.6
    columns = [cut_column(name, table.column(name)) for name in "abc"]
    cut = [parts for parts in columns if parts is not None]
    found = search(cut, error, floor=0.0, min_rows=10, level=0.05, pairs=True, most=5)
    assert found.rules
    frame = table.to_polars().with_columns(error=error)
    for rule in found.rules:
        where = " AND ".join(cut[c].sql(b, e) for c, b, e in rule.sides)
        inside = frame.sql(f"SELECT error FROM self WHERE {where}")["error"].to_numpy()
        assert len(inside) == rule.rows
        assert rule.inside == pytest.approx(inside.mean())
        outside = (error.sum() - inside.sum()) / (n - len(inside))
        assert rule.effect == pytest.approx(inside.mean() - outside)


def test_what_cannot_be_cut_is_skipped_with_the_reason() -> None:
    n = 500
    error = np.random.default_rng(0).random(n)
    rows = {
        "lists": [[1]] * n, "same": ["x"] * n, "mail": ["a@example.org", "b@example.org"] * 250,
        "A": np.arange(n), "a": np.arange(n), "huge": [2**63 - 1 - i for i in range(n)],
        "nothing": pa.nulls(n), "nan": np.full(n, np.nan),
    }  # fmt: skip
    schema = ev.Schema((ev.Field("mail", "string", pii="email"),), extra="allow")
    found = ev.slices(rows, error=error, schema=schema, min_rows=20)
    skipped = found.figures["skipped"]
    assert skipped["mail"] == "personal data"
    assert set(skipped) == {"lists", "same", "mail", "A", "a", "nothing", "nan"}


def test_a_personal_column_is_never_part_of_a_rule() -> None:
    rows = flights()
    schema = ev.Schema((ev.Field("origin", "string", pii="place"),), extra="allow")
    found = ev.slices(rows, error="loss", fields=["origin", "hour"], schema=schema, min_rows=50)
    assert "EWR" not in found.summary() + found._repr_html_() + str(found.to_frame().to_dicts())


def test_few_rows_are_too_small_to_tell() -> None:
    assert "too small to tell" in ev.slices({"a": [1, 2, 3]}, error=[0, 1, 1]).reason
    assert "too small" in ev.slices({"a": pl.Series([], dtype=pl.Int64)}, error=[]).reason
    assert "no column" in ev.slices({"error": [0.0, 1.0] * 500}, error="error").reason
    one_value = {"a": np.arange(1000), "error": np.zeros(1000)}
    assert len(ev.slices(one_value, error="error")) == 0


def test_slices_of_three_rows_can_be_asked_for() -> None:
    error = np.r_[9.0, 9.1, 9.2, np.random.default_rng(0).random(997)]
    rows = {"who": ["x"] * 3 + ["y"] * 500 + ["z"] * 497}
    assert len(ev.slices(rows, error=error)) == 0
    [found] = ev.slices(rows, error=error, min_rows=3)
    assert (found.name, len(found)) == ("who = 'x'", 3)


def test_missing_errors_are_counted_and_their_rows_stay_in_the_slice() -> None:
    rows = flights()
    loss = np.asarray(rows["loss"]).copy()
    loss[::10] = np.nan
    table = ev.Table.of(rows | {"loss": loss})
    found = ev.slices(table, error="loss", fields=["origin", "hour"], min_rows=50)
    assert found.figures["without_error"] == 600
    assert len(found[0]) == len(table.filter(found[0].condition))


def test_wrong_options_are_told_together() -> None:
    with pytest.raises(InvalidInput) as caught:
        ev.slices(flights(10), error="loss", floor=-1, min_rows=1, level=2, most=0)
    assert [fault.path for fault in caught.value.faults] == ["floor", "min_rows", "level", "most"]
    with pytest.raises(NotFound, match="'loss'"):
        ev.slices(flights(10), error="lost")
    with pytest.raises(InvalidInput, match="number"):
        ev.slices(flights(10), error="origin")
    with pytest.raises(InvalidInput, match="shape"):
        ev.slices(flights(10), error=[1.0])
