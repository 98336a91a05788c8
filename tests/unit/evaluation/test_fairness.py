from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from everloop.errors import InvalidInput, NotFound
from everloop.evaluation.fairness import CRITERIA, fairness
from everloop.evaluation.metrics import metric

DAY_US = 86_400_000_000


def _rows(
    seed: int = 0, count: int = 6000, *, lift: float = 0.0, base: float = 0.0
) -> dict[str, Any]:
    """Two large groups and a tiny one; `lift` moves the scores of B, `base` its true rate too."""
    random = np.random.default_rng(seed)
    groups = random.choice(["A", "B", "tiny"], count, p=[0.6, 0.395, 0.005])
    true = random.beta(2, 2, count)
    true = np.clip(true + np.where(groups == "B", base, 0), 0, 1)
    return {
        "labels": (random.random(count) < true).astype(float),
        "scores": np.clip(true + np.where(groups == "B", lift, 0), 0, 1),
        "groups": groups,
        "at_us": (np.arange(count) % 24) * DAY_US,
    }


@pytest.mark.parametrize("criterion", CRITERIA)
def test_equal_groups_are_fair_and_a_tiny_one_is_too_small_to_tell(criterion: str) -> None:
    found = fairness(criterion, **_rows(), by=0.08)
    assert found.groups("unfair") == []
    assert found.groups("fair") == ["A", "B"]
    assert found.groups("too small to tell") == ["tiny"]
    assert found.answer == "too small to tell"
    rows = _rows()
    large = rows["groups"] != "tiny"
    assert fairness(criterion, **{k: v[large] for k, v in rows.items()}, by=0.08).answer == "fair"


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_group_that_is_scored_higher_is_found_by_every_criterion(criterion: str) -> None:
    found = fairness(criterion, **_rows(lift=0.3), by=0.05)
    assert found.answer == "unfair"
    assert "B" in found.groups("unfair")
    assert found.groups("too small to tell") == ["tiny"]


def test_criteria_differ_where_base_rates_do() -> None:
    rows = _rows(base=0.3)  # B deserves more, and the scores are right about it
    assert fairness("demographic_parity", **rows, by=0.05).answer == "unfair"
    assert fairness("calibration", **rows, by=0.05).groups("unfair") == []


def test_rates_are_those_of_the_group_and_of_the_rest() -> None:
    rows = _rows(lift=0.1)
    found = fairness("equalised_odds", **rows, by=0.05)
    mine = rows["groups"] == "B"
    for rate in ("tpr", "fpr"):
        gap = next(one for one in found.gaps if (one.group, one.rate) == ("B", rate))
        y, p = rows["labels"], rows["scores"]
        assert gap.inside == pytest.approx(metric(rate, y[mine], p[mine]))
        assert gap.outside == pytest.approx(metric(rate, y[~mine], p[~mine]))
        assert gap.low < gap.gap < gap.high


def test_equal_groups_are_hardly_ever_called_unfair() -> None:
    wrong = sum(
        fairness("equal_opportunity", **_rows(seed, 2000), by=1e-6).answer == "unfair"
        for seed in range(80)
    )
    assert wrong <= 13  # 5 % on each side


def test_missing_labels_count_for_nothing_and_one_group_cannot_be_compared() -> None:
    rows = _rows()
    rows["labels"][::2] = np.nan
    assert fairness("equal_opportunity", **rows, by=0.1).unlabelled == 3000
    alone = fairness("equal_opportunity", **_rows() | {"groups": np.full(6000, "A")}, by=0.1)
    assert (alone.gaps, alone.answer) == ((), "too small to tell")
    no_positive = _rows() | {"labels": np.zeros(6000)}
    assert fairness("equal_opportunity", **no_positive, by=0.1).answer == "too small to tell"


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(NotFound, match="equal_opportunity"):
        fairness("equal_oportunity", **_rows(), by=0.1)
    with pytest.raises(InvalidInput, match="above 0"):
        fairness("calibration", **_rows(), by=0)
