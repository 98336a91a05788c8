"""KNN-Shapley: equal to the sum over all subsets, bounded beyond, and of use."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import everloop as ev
from everloop.errors import InvalidInput, NotFound
from everloop.evaluation.findings.shapley import knn_shapley


def over_subsets(train: Any, labels: Any, holdout: Any, truth: Any, k: int) -> Any:
    """The Shapley value as it is defined."""
    n = len(train)

    def utility(rows: tuple[int, ...]) -> float:
        right = 0
        for x, y in zip(holdout, truth, strict=True):
            near = sorted(rows, key=lambda i: (float(((train[i] - x) ** 2).sum()), i))[:k]
            right += sum(labels[i] == y for i in near)
        return right / k / len(holdout)

    values = np.zeros(n)
    for i in range(n):
        others = [j for j in range(n) if j != i]
        for size in range(n):
            weight = 1 / (n * math.comb(n - 1, size))
            for some in combinations(others, size):
                values[i] += weight * (utility((*some, i)) - utility(some))
    return values


@given(st.integers(0, 10_000), st.integers(1, 7), st.integers(1, 4), st.integers(1, 9))
@settings(max_examples=25, deadline=None)
def test_value_is_the_sum_over_all_subsets(seed: int, n: int, m: int, k: int) -> None:
    random = np.random.default_rng(seed)
    train, holdout = (random.normal(size=(rows, 3)).astype(np.float32) for rows in (n, m))
    labels, truth = random.integers(0, 3, n), random.integers(0, 4, m)
    found = knn_shapley(train, labels, holdout, truth, k)
    assert np.allclose(found, over_subsets(train, labels, holdout, truth, k), atol=1e-12)


@pytest.mark.parametrize("epsilon", [0.1, 0.01, 0.002])
def test_no_value_is_off_by_more_than_epsilon_and_the_sum_is_exact(epsilon: float) -> None:
    random = np.random.default_rng(5)
    train, holdout = (random.normal(size=(n, 4)).astype(np.float32) for n in (3000, 40))
    labels, truth = random.integers(0, 3, 3000), random.integers(0, 4, 40)
    exact = knn_shapley(train, labels, holdout, truth, 5)
    bounded = knn_shapley(train, labels, holdout, truth, 5, epsilon)
    assert np.abs(bounded - exact).max() <= epsilon
    assert bounded.sum() == pytest.approx(exact.sum(), abs=1e-12)
    assert np.corrcoef(bounded, exact)[0, 1] > 0.8


def two_clouds(n: int, seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    y = random.integers(0, 2, n)
    return {"id": np.arange(n), "x": random.normal(size=n) + 4 * y, "y": y}


def test_flipped_rows_are_worth_least() -> None:
    train, holdout = two_clouds(400, 0), two_clouds(200, 1)
    flipped = np.random.default_rng(2).random(400) < 0.1
    train["y"] = np.where(flipped, 1 - train["y"], train["y"])
    value = ev.data_value(train, holdout, label="y", features=["x"])
    assert flipped[value.lowest(rows=int(flipped.sum())).numbers].mean() > 0.9
    assert value.values.sum() == pytest.approx(value.figures["utility"])
    assert (value.values[value.harmful.numbers] < 0).all()
    better = ev.data_value(value.harmful.drop_from(), holdout, label="y", features=["x"])
    assert better.figures["utility"] > value.figures["utility"]


def test_missing_labels_are_worth_nothing_known_and_missing_features_the_mean() -> None:
    train, holdout = two_clouds(50, 0), two_clouds(20, 1)
    train["y"] = [None, *train["y"][1:].tolist()]
    train["x"] = np.where(np.arange(50) == 3, np.nan, train["x"])
    value = ev.data_value(train, holdout, label="y", features=["x"])
    assert np.isnan(value.values[0])
    assert np.isfinite(value.values[1:]).all()
    assert 0 not in value.lowest(share=1.0).numbers
    assert value.figures["unlabelled"] == 1


def test_huge_numbers_ties_and_one_value_everywhere_are_finite() -> None:
    rows = {"x": [2**62, 2**62 + 1, -(2**62), 7], "same": [1.0] * 4, "y": [0, 1, 0, 1]}
    value = ev.data_value(rows, rows, label="y", k=3)
    assert np.isfinite(value.values).all()
    assert value.figures["features"] == ["x", "same"]


def test_what_cannot_be_valued_is_told_together() -> None:
    rows = two_clouds(10, 0)
    empty = {name: np.asarray(column)[:0] for name, column in rows.items()}
    with pytest.raises(InvalidInput) as caught:
        ev.data_value(empty, rows, label="y", k=0, epsilon=-1)
    assert [fault.path for fault in caught.value.faults] == ["k", "epsilon", "train"]
    with pytest.raises(NotFound, match="'z'"):
        ev.data_value(rows, rows, label="y", features=["z"])
    with pytest.raises(InvalidInput, match="no number"):
        ev.data_value(
            {"s": ["a", "b"], "y": [0, 1]}, {"s": ["a"], "y": [0]}, label="y", features=["s"]
        )
    with pytest.raises(InvalidInput, match="no feature"):
        ev.data_value({"y": [0, 1]}, {"y": [0]}, label="y")
    value = ev.data_value(rows, rows, label="y")
    for wrong in ({}, {"share": 0.1, "rows": 3}, {"share": 0.0}, {"rows": -1}):
        with pytest.raises(InvalidInput):
            value.lowest(**wrong)  # type: ignore[arg-type]
