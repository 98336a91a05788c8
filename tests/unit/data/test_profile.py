"""Profiles beside figures that are worked out by hand, and schemas that are inferred from them."""

from __future__ import annotations

import math
import statistics
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

import everloop as ev
from everloop.core.profile import Profile
from everloop.core.schema import Field, Schema
from everloop.data.judge import judge_frame
from everloop.data.profile import inferred
from everloop.server import make_app
from everloop.workspace import Workspace

FLOATS = st.one_of(
    st.none(), st.sampled_from([math.nan, math.inf, -math.inf]), st.floats(-1e6, 1e6, width=32)
)
TEXTS = st.one_of(st.none(), st.text("aä\"'\\\n{<", max_size=4))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.tuples(FLOATS, st.one_of(st.none(), st.integers(-9, 9)), TEXTS, st.booleans()),
        max_size=30,
    )
)
def test_figures_are_those_of_a_look_at_each_value(rows: list[tuple[Any, ...]]) -> None:
    kinds = {"f": pa.float64(), "n": pa.int64(), "s": pa.string(), "b": pa.bool_()}
    table = pa.table(
        {c: pa.array([row[k] for row in rows], t) for k, (c, t) in enumerate(kinds.items())}
    )
    found = ev.profile(table)
    for k, column in enumerate(found.columns):
        values = [row[k] for row in rows if row[k] is not None and row[k] == row[k]]
        assert column.nulls == len(rows) - len(values)
        assert column.distinct == len(set(values))
        assert (column.low, column.high) == (min(values, default=None), max(values, default=None))
        if column.name in "sb":
            assert len(column.top) == min(column.distinct, 10)
            assert all(values.count(value) == count for value, count in column.top)
        else:
            finite = [value for value in values if math.isfinite(value)]
            assert sum(column.counts) == len(finite)
            mean = statistics.fmean(finite) if finite else None
            assert column.mean == (None if mean is None else pytest.approx(mean, abs=1e-6))
            assert len(column.quantiles) == (5 if values else 0)
            assert all(quantile in values for quantile in column.quantiles)
        if column.name == "s" and values:
            lengths = [len(value) for value in values]
            assert column.lengths[::2] == (min(lengths), max(lengths))
    names: dict[str, Any] = {}
    exec(compile(inferred(found), "inferred", "exec"), names)
    report = judge_frame(table, names["SCHEMA"])
    assert [rule.rule for rule in report.broken] == ([] if rows else ["rows"])
    assert "<script" not in found._repr_html_()


def test_distinct_counts_of_many_rows_are_estimates_and_say_so() -> None:
    found = ev.profile({"x": list(range(150_000))}).columns[0]
    assert found.is_approximate
    assert found.distinct == pytest.approx(150_000, rel=0.05)
    assert "~" in ev.profile({"x": list(range(150_000))})._repr_html_()


@pytest.mark.parametrize("ws", ["sqlite", "remote"], indirect=True)
def test_a_version_is_profiled_without_personal_data(ws: Workspace) -> None:
    schema = Schema(
        (Field("mail", "string", pii="email"), Field("at", "timestamp"), Field("x", "float64"))
    )
    at = datetime(2013, 4, 1, tzinfo=UTC)
    ws.data.commit(
        "people", pa.table({"mail": ["ann@x.org", None], "at": [at, at], "x": [1.0, 3.0]}),
        schema=schema,
    )  # fmt: skip
    found = ws.data.profile("people")
    assert found == ev.profile("people@1")
    assert "ann" not in repr(found)
    mail, when, x = found.columns
    assert (mail.nulls, mail.distinct, mail.lengths) == (1, 1, (9.0, 9.0, 9.0))
    assert when.low == "2013-04-01T00:00:00+00:00"
    assert (x.mean, x.quantiles[2] in (1.0, 3.0)) == (2.0, True)


@pytest.mark.parametrize("ws", ["sqlite"], indirect=True)
def test_the_page_and_its_twin(ws: Workspace) -> None:
    ws.data.commit("t", pa.table({"s": ["<b>", "<b>", "c"], "x": [1.0, 2.0, 5.0]}))
    with TestClient(make_app(ws), base_url="http://127.0.0.1") as client:
        twin = client.get("/datasets/t/profile.json")
        assert Profile(**{**twin.json(), "columns": ()}).rows == 3
        page = client.get("/datasets/t/profile").text
        assert "&lt;b&gt; (2)" in page
        assert page.count("<rect") == 20
        assert client.get("/datasets/nobody/profile").status_code == 404
