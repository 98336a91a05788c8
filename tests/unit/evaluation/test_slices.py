from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from everloop.core.schema import Field, Schema
from everloop.errors import InvalidInput
from everloop.evaluation.bootstrap import day_blocks
from everloop.evaluation.contrast import (
    adjusted,
    contrasts,
    ratio_columns,
    student_tail,
    student_value,
)
from everloop.evaluation.metrics import metric, parse_metric
from everloop.evaluation.slices import cut_field, find_slices

DAY_US = 86_400_000_000
BRIER = parse_metric("brier")


def _rows(seed: int = 0, count: int = 4000, days: int = 20, *, harm: float = 0.0) -> dict[str, Any]:
    """Rows of an honest model, but for flights of EV in the evening, whose scores are off."""
    random = np.random.default_rng(seed)
    carrier = random.choice(["AA", "B6", "EV", "UA"], count)
    hour = random.uniform(5, 23, count)
    p = random.beta(2, 4, count)
    hurt = (carrier == "EV") & (hour >= 18.5)
    true = np.where(hurt, np.clip(p + harm, 0, 1), p)
    return {
        "labels": (random.random(count) < true).astype(float),
        "scores": p,
        "at_us": (np.arange(count) % days) * DAY_US,
        "fields": {
            "carrier": carrier,
            "hour": hour,
            "origin": random.choice(["EWR", "JFK"], count),
            "wind": random.normal(size=count),
        },
    }


@pytest.mark.parametrize("method", ["all", "halves"])
def test_the_slice_that_was_hurt_is_found_first(method: Any) -> None:
    found = find_slices(BRIER, **_rows(count=12_000, days=40, harm=0.45), method=method)
    assert found.found
    worst = found.found[0]
    assert worst.name.startswith("carrier = EV and hour >= 18")
    assert worst.low > 0
    assert worst.inside - worst.outside == pytest.approx(worst.effect)
    assert [one.effect for one in found.found] == sorted(
        (o.effect for o in found.found), reverse=True
    )


@pytest.mark.parametrize("method", ["all", "halves"])
def test_an_honest_model_has_hardly_ever_a_bad_slice(method: Any) -> None:
    wrong = 0
    for seed in range(60):
        rows = _rows(seed, 3000)
        rows["fields"] |= {"noise": np.random.default_rng(seed + 999).integers(0, 15, 3000)}
        rows["scores"] = np.full(3000, 0.3)  # all rows alike, so no slice is worse
        rows["labels"] = (np.random.default_rng(seed).random(3000) < 0.3).astype(float)
        search = find_slices(BRIER, **rows, min_rows=60, method=method)
        assert search.tried > 40
        wrong += bool(search.found)
    assert wrong <= 7  # 5 % are allowed


def test_without_the_correction_the_search_would_find_its_own_making() -> None:
    smallest = []
    for seed in range(20):
        rows = _rows(seed, 3000)
        rows["labels"] = (np.random.default_rng(seed).random(3000) < 0.3).astype(float)
        rows["scores"] = np.full(3000, 0.3)
        above, below = ratio_columns(BRIER, rows["labels"], rows["scores"])
        days = day_blocks(rows["at_us"])
        one, two = (cut_field(rows["fields"][name]) for name in ("carrier", "hour"))
        c = contrasts(above, below, one.codes * len(two.names) + two.codes, days)
        p = [student_tail(e / s, 19) for e, s in zip(c.effect, c.spread, strict=True)]
        smallest.append(min(p))
    assert np.mean(np.array(smallest) < 0.05) > 0.3


def test_a_label_that_is_missing_is_not_a_wrong_answer() -> None:
    rows = _rows(harm=0.0)
    unknown = rows["fields"]["carrier"] == "AA"
    rows["labels"][unknown] = np.nan
    search = find_slices(BRIER, **rows)
    assert search.unlabelled == unknown.sum()
    assert not any("AA" in one.name for one in search.found)


def test_small_slices_and_small_effects_do_not_count() -> None:
    rows = _rows(count=12_000, days=40, harm=0.45)
    assert not find_slices(BRIER, **rows, floor=0.9).found
    few = find_slices(BRIER, **rows, min_rows=20_000)
    assert (few.found, few.tried) == ((), 0)
    assert few.too_small > 20
    short = find_slices(BRIER, **_rows(days=5))
    assert "too few blocks to tell: 5 days" in short.reason
    three = _rows(count=3, days=3)
    assert find_slices(BRIER, **three).found == ()
    assert find_slices(BRIER, np.empty(0), np.empty(0), np.empty(0, dtype=int), {}).tried == 0


def test_the_schema_says_what_is_cut_and_how() -> None:
    schema = Schema(
        (
            Field("carrier", "string", semantic="id"),
            Field("hour", "float64", semantic="numeric"),
            Field("origin", "string"),
            Field("wind", "float64"),
        )
    )
    rows = _rows(count=12_000, days=40, harm=0.45)
    search = find_slices(BRIER, **rows, schema=schema, pairs=False)
    assert not any("carrier" in one.name for one in search.found)
    assert any(one.name.startswith("hour >= 18") for one in search.found)


def test_a_metric_that_is_no_ratio_is_refused() -> None:
    rows = _rows()
    for name in ("auc", "f1", "rmse"):
        with pytest.raises(InvalidInput, match="group by group"):
            find_slices(parse_metric(name), **rows)
    rows["fields"]["short"] = np.zeros(3)
    with pytest.raises(InvalidInput, match="short"):
        find_slices(BRIER, **rows)


def test_fields_are_cut_into_parts_that_hold_every_row_once() -> None:
    columns = {
        "text": np.array(["b", "a", None, "a"], dtype=object),
        "many": np.array([f"l{n % 50}" for n in range(500)]),
        "numbers": np.array([*np.linspace(0, 1, 99), np.nan]),
        "same": np.full(40, 7.0),
        "none": np.full(5, np.nan),
        "flags": np.array([True, False]),
    }
    cuts = {name: cut_field(column) for name, column in columns.items()}
    for name, cut in cuts.items():
        assert set(cut.codes.tolist()) <= set(range(len(cut.names))), name
        assert len(cut.codes) == len(columns[name])
    assert cuts["text"].names == ("= None", "= a", "= b", "is missing")
    assert len(cuts["many"].names) == 20
    assert cuts["many"].names[-1] == "is any other"
    assert cuts["numbers"].names[-1] == "is missing"
    assert len(cuts["numbers"].names) == 5


# --- what the search stands on ------------------------------------------------------------------


def test_contrasts_are_those_of_two_metrics_with_the_error_of_drawing_days() -> None:
    rows = _rows(3, 2000, days=40, harm=0.3)
    y, p, days = rows["labels"], rows["scores"], day_blocks(rows["at_us"])
    y[days % 5 == 0] = 1  # days differ
    cut = cut_field(rows["fields"]["carrier"])
    found = contrasts(*ratio_columns(BRIER, y, p), cut.codes, days)
    random = np.random.default_rng(0)
    draws = random.multinomial(40, np.full(40, 1 / 40), 400)
    for part in range(4):
        mine = cut.codes == part
        inside, outside = metric("brier", y[mine], p[mine]), metric("brier", y[~mine], p[~mine])
        assert (found.inside[part], found.outside[part]) == pytest.approx((inside, outside))
        assert found.rows[part] == mine.sum()
        drawn = []
        for draw in draws:
            w = draw[days].astype(float)
            drawn.append(
                metric("brier", y[mine], p[mine], weights=w[mine])
                - metric("brier", y[~mine], p[~mine], weights=w[~mine])
            )
        assert found.spread[part] == pytest.approx(np.std(drawn), rel=0.2)


@given(st.floats(-8, 8), st.integers(4, 200))
def test_the_tail_of_student_is_close(t: float, freedom: int) -> None:
    assert student_tail(t, freedom) == pytest.approx(stats.t.sf(t, freedom), abs=1.5e-3)


@pytest.mark.parametrize(("tail", "freedom"), [(0.05, 7), (0.05, 20), (0.001, 13), (0.025, 100)])
def test_the_value_of_a_tail_is_its_inverse(tail: float, freedom: int) -> None:
    value = student_value(tail, freedom)
    assert student_tail(value, freedom) == pytest.approx(tail, rel=1e-6)
    assert value == pytest.approx(stats.t.isf(tail, freedom), rel=0.02)


@given(st.lists(st.floats(0, 1), max_size=40))
def test_adjusted_p_values_are_scipys(p: list[float]) -> None:
    expected = stats.false_discovery_control(p) if p else []
    assert adjusted(np.array(p)) == pytest.approx(np.array(expected))
