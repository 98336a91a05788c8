"""Label issues: flipped labels are found, counted and ranked; what does not fit is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import everloop as ev
from everloop.errors import InvalidInput, NotFound, UserCodeError
from everloop.evaluation.findings.labels import doubts

FLIPPED = 0.08


def noisy(n: int = 4000, classes: int = 5, seed: int = 0) -> tuple[Any, Any, Any]:
    """True labels, given labels, and probabilities that do not know which were flipped."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, classes, n)
    logits = random.normal(size=(n, classes))
    logits[np.arange(n), truth] += 4
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    flipped = random.random(n) < FLIPPED
    given = np.where(flipped, (truth + random.integers(1, classes, n)) % classes, truth)
    return truth, given, probabilities


def slow_joint(labels: Any, probabilities: Any) -> tuple[Any, Any]:
    """The confident joint as the paper has it, row by row, not yet calibrated."""
    classes = probabilities.shape[1]
    means = [
        probabilities[labels == k, k].mean() if (labels == k).any() else np.inf
        for k in range(classes)
    ]
    counts = np.zeros((classes, classes), int)
    for label, row in zip(labels, probabilities, strict=True):
        sure = [k for k in range(classes) if row[k] >= means[k] - 1e-6]
        if sure:
            counts[label, max(sure, key=lambda k: (row[k], -k))] += 1
    return counts, means


@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(2, 6))
@settings(max_examples=60, deadline=None)
def test_counts_are_those_of_the_paper(seed: int, n: int, classes: int) -> None:
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, n)
    probabilities = random.dirichlet(np.full(classes, 0.5), n)
    found = doubts(labels, probabilities)
    counts, means = slow_joint(labels, probabilities)
    np.fill_diagonal(counts, np.maximum(counts.diagonal(), 1))
    sizes = np.bincount(labels, minlength=classes)
    # Calibrated: the rows sum to the labels given, and no cell is a whole row away from its share.
    assert (found.joint.sum(axis=1) == sizes).all()
    shares = counts / counts.sum(axis=1, keepdims=True) * sizes[:, None]
    assert (np.abs(found.joint - shares) < 1).all()
    assert np.allclose(found.thresholds[sizes > 0], np.array(means)[sizes > 0])
    assert not (probabilities[found.rows].argmax(axis=1) == labels[found.rows]).any()
    assert (np.diff(found.belief) >= 0).all()


@pytest.mark.parametrize("by", ["joint", "noise_rate", "class", "both"])
def test_flipped_labels_are_found(by: Any) -> None:
    truth, given, probabilities = noisy()
    found = ev.label_issues({"y": given}, probabilities, label="y", by=by)
    wrong = given != truth
    hits = wrong[found.numbers].sum()
    assert hits / len(found) > 0.9
    assert hits / wrong.sum() > 0.9
    assert abs(found.figures["estimated_wrong"] - wrong.sum()) < 0.1 * wrong.sum()
    assert (found.relabelled().column("y").to_numpy() == truth).mean() > (given == truth).mean()


def test_ranking_has_no_lower_precision_than_pruning_at_the_same_recall() -> None:
    truth, given, probabilities = noisy(seed=3)
    wrong = given != truth
    pruned = ev.label_issues({"y": given}, probabilities, label="y", by="noise_rate")
    ranked = ev.label_issues({"y": given}, probabilities, label="y")
    hits = wrong[pruned.numbers].sum()
    needed = 1 + int(np.searchsorted(np.cumsum(wrong[ranked.numbers]), hits))
    assert needed <= len(pruned)


def test_float32_and_many_threads_give_the_same() -> None:
    _, given, probabilities = noisy(1 << 16, 4)
    exact = doubts(given, probabilities)
    coarse = doubts(given, probabilities.astype(np.float32))
    assert np.setxor1d(exact.rows, coarse.rows).size <= len(exact.rows) // 100


def test_rows_without_a_label_are_left_out_and_counted() -> None:
    _, given, probabilities = noisy(500)
    labels = [None if n % 7 == 0 else int(y) for n, y in enumerate(given)]
    found = ev.label_issues({"y": labels}, probabilities, label="y")
    assert found.figures["unlabelled"] == 72
    assert not (found.numbers % 7 == 0).any()
    floats = [np.nan if y is None else float(y) for y in labels]
    assert ev.label_issues({"y": floats}, probabilities, label="y").numbers.tolist() == (
        found.numbers.tolist()
    )


def test_one_class_is_an_answer_and_no_error() -> None:
    found = ev.label_issues({"y": ["a"] * 5}, np.ones((5, 1)), label="y")
    assert len(found) == 0
    assert "1 class" in found.reason
    assert len(ev.label_issues({"y": [None, None]}, np.ones((2, 0)), label="y")) == 0


def test_a_class_that_no_row_has_is_named() -> None:
    labels = ["a", "b"] * 10
    with pytest.raises(InvalidInput, match="3 columns for 2 classes"):
        ev.label_issues({"y": labels}, np.full((20, 3), 1 / 3), label="y")
    found = ev.label_issues(
        {"y": labels}, np.tile([0.1, 0.1, 0.8], (20, 1)), label="y", classes=["a", "b", "c"]
    )
    assert found.figures["thresholds"][2] is None
    more = ev.label_issues(
        {"y": ["a", "b"]}, np.full((2, 5), 0.2), label="y", classes=list("abcde")
    )
    assert len(more) == 0


@pytest.mark.parametrize(
    ("probabilities", "said"),
    [
        ([[0.5, 0.6], [0.5, 0.5]], r"probabilities\[0\]: sums to 1.1, not 1"),
        ([[0.5, 0.5], [np.nan, 1]], r"probabilities\[1\]: holds NaN"),
        ([[0.5, 0.5], [-0.5, 1.5]], r"probabilities\[1\]: holds -0.5, below 0"),
        ([[0.5, 0.5]], "1 rows for 2 rows"),
        ([0.5, 0.5, 0.1], "3 rows for 2 rows"),
        ([[[0.5]]], "shape"),
        ([["x", "y"], ["x", "y"]], "no array of numbers"),
    ],
)
def test_what_are_no_probabilities_is_told_by_row(probabilities: Any, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        ev.label_issues({"y": [0, 1]}, probabilities, label="y")


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(NotFound, match="'late'"):
        ev.label_issues({"late": [0, 1]}, [0.1, 0.2], label="lat")
    with pytest.raises(NotFound, match="method"):
        ev.label_issues({"y": [0, 1]}, [0.1, 0.2], label="y", by="prune")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="no class"):
        ev.label_issues({"y": [[0], [1]]}, [0.1, 0.2], label="y")


def centroids(rows: ev.Table) -> Any:
    """The nearest of the means of the classes, as a model of two lines."""
    x, y = rows.to_numpy(["a", "b"]), rows.column("y").to_numpy(zero_copy_only=False)
    means = np.array([x[y == one].mean(axis=0) for one in np.unique(y)])

    def predict(rows: ev.Table) -> Any:
        near = -((rows.to_numpy(["a", "b"])[:, None] - means) ** 2).sum(axis=2)
        odds = np.exp(near - near.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)

    return predict


def points(n: int = 300) -> dict[str, Any]:
    random = np.random.default_rng(1)
    y = random.integers(0, 3, n)
    x = random.normal(size=(n, 2)) + 4 * np.stack([y == 1, y == 2], axis=1)
    return {"id": np.arange(n), "a": x[:, 0], "b": x[:, 1], "y": y, "who": np.arange(n) // 10}


def test_each_row_is_predicted_by_a_model_that_did_not_see_it() -> None:
    rows, seen = points(), []

    def fit(train: ev.Table) -> Any:
        seen.append(set(train.column("id").to_pylist()))
        return centroids(train)

    found = ev.out_of_fold(rows, fit, label="y", groups="who")
    assert found.classes == (0, 1, 2)
    assert np.allclose(np.asarray(found).sum(axis=1), 1)
    for fold, train in enumerate(seen):
        held = set(np.flatnonzero(found.fold == fold).tolist())
        assert not held & train
        assert {n // 10 for n in held}.isdisjoint({n // 10 for n in train})
    y = np.asarray(rows["y"]).copy()
    y[:10] = (y[:10] + 1) % 3
    issues = ev.label_issues(rows | {"y": y}, found, label="y")
    assert set(range(10)) <= set(issues.numbers.tolist())


def test_folds_by_time_are_blocks_and_others_equal_shares() -> None:
    rows = points() | {"at": np.arange(300)[::-1]}
    blocks = ev.out_of_fold(rows, centroids, label="y", time="at").fold
    assert (np.diff(blocks) <= 0).all()
    shares = ev.out_of_fold(rows, centroids, label="y").fold
    for one in range(3):
        sizes = np.bincount(shares[np.asarray(rows["y"]) == one])
        assert sizes.max() - sizes.min() <= 1
    again = ev.out_of_fold(rows, centroids, label="y").fold
    assert (again == shares).all()


def test_a_model_that_raises_or_predicts_something_else_is_told() -> None:
    rows = points()

    def broken(train: ev.Table) -> Any:
        raise RuntimeError("no memory left")

    with pytest.raises(UserCodeError, match="no memory left"):
        ev.out_of_fold(rows, broken, label="y")
    with pytest.raises(InvalidInput, match=r"must be \(60, 3\)"):
        ev.out_of_fold(rows, lambda train: lambda held: np.ones(len(held)), label="y")
    with pytest.raises(InvalidInput, match="predict_proba"):
        ev.out_of_fold(rows, lambda train: 3, label="y")
    with pytest.raises(InvalidInput, match="1 class"):
        ev.out_of_fold({"y": [1, 1, 1]}, centroids, label="y")
    with pytest.raises(InvalidInput, match="folds of 300 rows"):
        ev.out_of_fold(rows, centroids, label="y", folds=301)
