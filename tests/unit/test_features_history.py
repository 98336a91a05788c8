"""history(): every cell equal to plain joins in DuckDB, and every bad input said."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everloop.core.context import using
from everloop.core.dataset import DatasetVersion
from everloop.data.arrow import from_arrow_schema
from everloop.data.frame import Table
from everloop.errors import InvalidInput, NotFound
from everloop.features.define import agg, col, feature_set, feature_view, source
from tests.unit import features_cases as cases

CASES = cases.definitions()
WILD = cases.wild()


@settings(max_examples=20, deadline=None)
@given(
    events=st.lists(cases.events, max_size=25),
    facts=st.lists(cases.facts, max_size=5),
    requests=st.lists(cases.requests, min_size=1, max_size=12),
    as_of=st.booleans(),
)
def test_every_cell_equals_plain_joins(
    events: list[Any], facts: list[Any], requests: list[Any], as_of: bool
) -> None:
    rows = cases.table(requests, cases.REQUESTS)
    data = {"events": cases.table(events, cases.EVENTS), "facts": cases.table(facts, cases.FACTS)}
    mode = "as-of" if as_of else "as-known"
    found = CASES.history(rows, sources=data, mode=mode).to_arrow()
    wanted = cases.oracle(CASES, data | {"requests": rows}, as_of=as_of)
    for name in wanted.column_names:
        assert cases.cells(found.column(name)) == cases.cells(wanted.column(name)), name
    assert found.select(rows.column_names).equals(rows)


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.floats(width=64), max_size=20),
    times=st.lists(st.integers(0, 20), min_size=20, max_size=20),
)
def test_sum_is_the_exact_sum_rounded_once(values: list[float], times: list[int]) -> None:
    events = [("a", 0, t, t, x, 0, "", True) for x, t in zip(values, times, strict=False)]
    rows = cases.table([("a", 0, t, None) for t in range(30)], cases.REQUESTS)
    found = WILD.history(rows, sources={"events": cases.table(events, cases.EVENTS)})
    for t, total, least in zip(
        range(30), found.column("sum").to_pylist(), found.column("min").to_pylist(), strict=True
    ):
        inside = [x for _, _, at, _, x, *_ in events if t - 9 < at <= t]
        if not inside:
            assert (total, least) == (None, None)
            continue
        try:
            wanted = math.fsum(inside)
        except (OverflowError, ValueError):
            continue  # the range of a double is left on the way; tested below
        assert total == wanted or (math.isnan(total) and math.isnan(wanted))
        if not any(math.isnan(x) for x in inside):
            assert least == min(inside)


@pytest.mark.parametrize(
    ("values", "total"),
    [
        ([math.inf, 1.0], math.inf),
        ([math.inf, -math.inf], math.nan),
        ([1e308, 1e308, -1e308], 1e308),
        ([1e308, 1e308], math.inf),
        ([1e308, 1.0, -1e308, 5e-324], 1.0),
        ([5e-324, 5e-324], 1e-323),
        ([0.1] * 10, 1.0),
    ],
)
def test_sum_at_the_ends_of_the_range(values: list[float], total: float) -> None:
    events = [("a", 0, 1, 1, x, 0, "", True) for x in values]
    rows = cases.table([("a", 0, 2, None)], cases.REQUESTS)
    found = WILD.history(rows, sources={"events": cases.table(events, cases.EVENTS)})
    got = found.column("sum").to_pylist()[0]
    assert got == total or (math.isnan(got) and math.isnan(total))


def at(minute: int) -> datetime:
    return datetime(2013, 3, 1, 12, tzinfo=UTC) + timedelta(minutes=minute)


def one_view(**options: Any) -> Any:
    events = source("events", time="time", **options)
    view = feature_view("v", entity="k", source=events, features={"newest": col.x})
    return feature_set("s", view, time="t", request={"k": str | None})


def ask(definition: Any, events: dict[str, Any], keys: Any, times: Any) -> list[Any]:
    rows = pa.table({"k": keys, "t": times})
    return (
        definition.history(rows, sources={"events": pa.table(events)})
        .to_arrow()
        .column(-1)
        .to_pylist()
    )


def test_instants_are_compared_whatever_zone_or_unit() -> None:
    zone = timezone(timedelta(hours=-5))
    for unit, made in [
        ("s", at(0)),
        ("ms", at(0).astimezone(zone)),
        ("ns", at(0).replace(tzinfo=None)),
    ]:
        events = {
            "k": ["a"],
            "time": pa.array([made], pa.timestamp(unit, made.tzinfo and "UTC")),
            "x": [1.0],
        }
        asked = pa.array([at(0), at(-1)], pa.timestamp("us", "America/New_York"))
        assert ask(one_view(), events, ["a", "a"], asked) == [1.0, None]


def test_row_that_arrives_again_under_its_id_counts_once() -> None:
    events = {
        "k": ["a"] * 4,
        "time": [at(0)] * 4,
        "flight": ["f", "f", None, None],
        "x": [1.0, 2.0, 4.0, 8.0],
    }
    view = feature_view(
        "v",
        entity="k",
        source=source("events", time="time", id="flight"),
        features={"sum": agg.sum(col.x, "1h")},
    )
    definition = feature_set("s", view, time="t", request={"k": str})
    assert ask(definition, events, ["a"], [at(1)]) == [14.0]


def test_nothing_known_gives_the_right_types() -> None:
    rows = cases.table([("a", 0, 5, 1.0)], cases.REQUESTS)
    none = {"events": cases.EVENTS.empty_table(), "facts": cases.FACTS.empty_table()}
    found = CASES.history(rows, sources=none)
    wanted = {f.name: f.type for f in CASES.schema.fields}
    shown = {
        "float64": pa.float64(),
        "int64": pa.int64(),
        "bool": pa.bool_(),
        "string": pa.string(),
    }
    for name, kind in wanted.items():
        assert found.schema.field(name).type == shown.get(kind, cases.INSTANT)
    assert found.column("w_rows").to_pylist() == [0.0]


def test_no_rows_give_no_rows() -> None:
    none = {"events": cases.EVENTS.empty_table(), "facts": cases.FACTS.empty_table()}
    found = CASES.history(cases.REQUESTS.empty_table(), sources=none)
    assert found.num_rows == 0
    assert found.column_names == [*cases.REQUESTS.names, *CASES.names]


EVENTS: dict[str, Any] = {"k": ["a"], "time": [at(0)], "x": [1.0]}


@pytest.mark.parametrize(
    ("events", "keys", "times", "message"),
    [
        (EVENTS, ["a", "b"], [at(0), None], r"rows\[1\].t: is null"),
        (EVENTS, [1], [at(0)], "k: is int, in events it is string"),
        (EVENTS, ["a"], [5], "t: is int, must be a timestamp"),
        ({"k": ["a"], "x": [1.0]}, ["a"], [at(0)], "time: is missing"),
        ({**EVENTS, "x": ["1"]}, ["a"], [at(0)], "numbers unless cast"),
        ({**EVENTS, "x": [[1.0]]}, ["a"], [at(0)], "which features do not read"),
        ({**EVENTS, "k": [1.0]}, ["a"], [at(0)], "a float cannot name an entity"),
        (
            {**EVENTS, "time": pa.array([1], pa.timestamp("ns"))},
            ["a"],
            [at(0)],
            "whole microseconds",
        ),
    ],
)
def test_bad_rows_are_said(events: Any, keys: Any, times: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        ask(one_view(), events, keys, times)


def test_column_with_the_name_of_a_feature_is_refused_unless_it_is_repeated() -> None:
    events = source("events", time="time")
    view = feature_view("v", entity="k", source=events, features={"newest": col.x})
    definition = feature_set(
        "s", view, time="t", request={"k": str, "miles": float}, on_demand={"miles": col.miles}
    )
    rows = pa.table({"k": ["a"], "t": [at(1)], "miles": pa.array([5], pa.int64())})
    found = definition.history(rows, sources={"events": pa.table(EVENTS)})
    assert found.column_names == ["k", "t", "miles", "newest"]
    assert found.column("miles").to_pylist() == [5.0]
    with pytest.raises(InvalidInput, match="newest: is both a column and a feature"):
        definition.history(found, sources={"events": pa.table(EVENTS)})


def test_request_column_of_another_type_is_refused() -> None:
    rows = pa.table({"k": ["a"], "j": [1], "t": [at(1)], "asked": ["5"]})
    none = {"events": cases.EVENTS.empty_table(), "facts": cases.FACTS.empty_table()}
    with pytest.raises(InvalidInput, match="asked: is string, the request has float64"):
        CASES.history(rows, sources=none)


def test_leakage_counts_what_late_rows_change() -> None:
    events = pa.table(
        {"k": ["a", "b"], "time": [at(0)] * 2, "known": [at(9), at(0)], "x": [1.0, 1.0]}
    )
    rows = pa.table({"k": ["a", "b", "a"], "t": [at(5), at(5), at(10)]})
    report = one_view(known="known").check_leakage(rows, sources={"events": events})
    assert report.rows == 3
    assert [(f.name, f.rows) for f in report.features] == [("newest", 1)]
    assert one_view().check_leakage(rows, sources={"events": events}).features == ()


class Data:
    """The data service of a workspace, as far as history() asks it."""

    def __init__(self, **tables: pa.Table) -> None:
        self.tables = tables
        self.read_columns: dict[str, list[str]] = {}

    def version(self, name: str, number: int | None = None) -> DatasetVersion:
        return DatasetVersion(
            dataset=name, number=number or 3, digest=f"d{number or 3}", blocks=(), rows=0,
            schema=from_arrow_schema(self.tables[name].schema), created_at=at(0),
        )  # fmt: skip

    def read(self, name: str, number: int, *, columns: list[str]) -> pa.Table:
        self.read_columns[name] = columns
        return self.tables[name].select(columns)


class Workspace:
    def __init__(self, data: Data) -> None:
        self.data = data


def test_datasets_are_read_from_the_workspace_and_remembered() -> None:
    data = Data(events=pa.table({**EVENTS, "unused": [1]}))
    rows = Table(pa.table({"k": ["a"], "t": [at(1)]}), sources=[("asked", 7, "d7")], key=["k"])
    with using(Workspace(data)):
        latest = one_view().history(rows)
        pinned = one_view().history(rows, versions={"events": 2})
    assert latest.column("newest").to_pylist() == [1.0]
    assert latest.sources == (("asked", 7, "d7"), ("events", 3, "d3"))
    assert pinned.sources[1] == ("events", 2, "d2")
    assert latest.key == ("k",)
    assert data.read_columns == {"events": ["k", "time", "x"]}


def test_source_that_no_view_reads_is_refused() -> None:
    with pytest.raises(NotFound, match="did you mean 'events'"):
        one_view().history(
            pa.table({"k": ["a"], "t": [at(1)]}), sources={"event": pa.table(EVENTS)}
        )


def test_columns_of_one_name_are_refused() -> None:
    at = pa.array([datetime(2013, 1, 1, tzinfo=UTC)], pa.timestamp("us", "UTC"))
    delay = feature_set(
        "delay",
        feature_view("v", entity="k", source=source("events"), features={"x": col.a}),
        time="at",
        request={"k": int},
    )
    rows = pa.table([pa.array([1]), pa.array([1]), at], names=["k", "k", "at"])
    with pytest.raises(InvalidInput, match="k: stands twice"):
        delay.history(rows, sources={"events": {"k": [1], "a": [2.0]}})
