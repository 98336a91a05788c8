"""Metrics of every task against scikit-learn, weighted and not; their intervals against rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle

from everloop.errors import InvalidInput
from everloop.evaluation.bootstrap import day_blocks, single
from everloop.evaluation.metrics import METRICS, metric, metrics_of, parse_metric, task_of

DAY_US = 86_400_000_000
seeds = st.integers(0, 10_000)


def _binary(seed: int, count: int = 80) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    y = (random.random(count) < 0.4).astype(float)
    y[:2] = (0, 1)
    return y, random.integers(1, 20, count) / 20, random.integers(0, 4, count).astype(float) + 0.5


@settings(max_examples=10, deadline=None)
@given(seeds)
def test_weighted_binary_metrics_agree_with_sklearn(seed: int) -> None:
    y, p, weights = _binary(seed)
    hit = (p >= 0.3).astype(int)
    more = {"sample_weight": weights}
    expected = {
        "auc": oracle.roc_auc_score(y, p, **more),
        "average_precision": oracle.average_precision_score(y, p, **more),
        "brier": oracle.brier_score_loss(y, p, **more),
        "log_loss": oracle.log_loss(y, p, **more),
        "accuracy@0.3": oracle.accuracy_score(y, hit, **more),
        "balanced_accuracy@0.3": oracle.balanced_accuracy_score(y, hit, **more),
        "recall@0.3": oracle.recall_score(y, hit, **more),
        "tpr@0.3": oracle.recall_score(y, hit, **more),
        "tnr@0.3": oracle.recall_score(1 - y, 1 - hit, **more),
        "fnr@0.3": 1 - oracle.recall_score(y, hit, **more),
        "f1@0.3": oracle.f1_score(y, hit, **more),
        "positive_rate@0.3": np.average(hit, weights=weights),
    }
    for name, value in expected.items():
        assert metric(name, y, p, weights=weights) == pytest.approx(value), name
    if len(set(hit)) == 2:
        known = oracle.matthews_corrcoef(y, hit, **more)
        assert metric("mcc@0.3", y, p, weights=weights) == pytest.approx(known)


@settings(max_examples=10, deadline=None)
@given(seeds)
def test_regression_metrics_agree_with_sklearn(seed: int) -> None:
    random = np.random.default_rng(seed)
    y = random.normal(1000, 3, 60)
    p = y + random.normal(0, 2, 60)
    weights = random.random(60) + 0.1
    for more in ({}, {"sample_weight": weights}):
        ours = {"weights": weights} if more else {}
        expected = {
            "mae": oracle.mean_absolute_error(y, p, **more),
            "mse": oracle.mean_squared_error(y, p, **more),
            "rmse": oracle.root_mean_squared_error(y, p, **more),
            "mape": oracle.mean_absolute_percentage_error(y, p, **more),
            "r2": oracle.r2_score(y, p, **more),
            "pinball@0.9": oracle.mean_pinball_loss(y, p, alpha=0.9, **more),
        }
        for name, value in expected.items():
            assert metric(name, y, p, **ours) == pytest.approx(value), name
    assert metric("wape", y, p) == pytest.approx(np.abs(p - y).sum() / np.abs(y).sum())


@settings(max_examples=10, deadline=None)
@given(seeds)
def test_multiclass_metrics_agree_with_sklearn(seed: int) -> None:
    random = np.random.default_rng(seed)
    y = np.concatenate([[0, 1, 2], random.integers(0, 3, 57)]).astype(float)
    p = random.dirichlet([1, 1, 1], 60)
    said = p.argmax(axis=1)
    weights = random.random(60) + 0.1 if seed % 2 else None
    more = {"sample_weight": weights}
    expected = {
        "accuracy": oracle.accuracy_score(y, said, **more),
        "balanced_accuracy": oracle.balanced_accuracy_score(y, said, **more),
        "log_loss": oracle.log_loss(y, p, **more),
        "top_accuracy@2": oracle.top_k_accuracy_score(y, p, k=2, **more),
        "f1_macro": oracle.f1_score(y, said, average="macro", **more),
        "f1_weighted": oracle.f1_score(y, said, average="weighted", **more),
        "brier": oracle.brier_score_loss(y, p, **more),
    }
    for name, value in expected.items():
        assert metric(name, y, p, weights=weights) == pytest.approx(value), name


@settings(max_examples=10, deadline=None)
@given(seeds)
def test_ranking_metrics_agree_with_sklearn(seed: int) -> None:
    random = np.random.default_rng(seed)
    relevance = random.integers(0, 4, (6, 8)).astype(float)
    relevance[:, 0] = 1
    coarse, fine = random.integers(0, 3, (6, 8)).astype(float), random.random((6, 8))
    query = np.repeat([f"q{n}" for n in range(6)], 8)
    mixed = random.permutation(48)

    def ours(name: str, truth: np.ndarray, scores: np.ndarray) -> float:
        return metric(name, truth.ravel()[mixed], scores.ravel()[mixed], query=query[mixed])

    for scores in (coarse, fine):  # with ties and without
        known = oracle.ndcg_score(relevance, scores, k=5)
        assert ours("ndcg@5", relevance, scores) == pytest.approx(known)
    some = (relevance > 0).astype(float)
    known = oracle.label_ranking_average_precision_score(some, fine)
    assert ours("map", relevance, fine) == pytest.approx(known)
    best = [1 + np.flatnonzero(row[np.argsort(-s)])[0] for row, s in zip(some, fine, strict=True)]
    assert ours("mrr", relevance, fine) == pytest.approx(np.mean(1 / np.array(best)))
    hits = np.mean(np.array(best) <= 2)
    assert ours("hit_rate@2", relevance, fine) == pytest.approx(hits)


def test_a_tie_is_taken_against_the_model() -> None:
    y, flat, query = np.array([1.0, 0, 0, 0]), np.zeros(4), np.zeros(4)
    assert metric("mrr", y, flat, query=query) == 0.25
    assert metric("hit_rate@3", y, flat, query=query) == 0
    one_of_three = np.tile([0.4, 0.4, 0.2], (4, 1))
    assert metric("top_accuracy@1", np.zeros(4), one_of_three) == 0


def test_a_query_without_anything_relevant_does_not_count() -> None:
    y, query = np.array([0.0, 0, 1, 0]), np.array([0, 0, 1, 1])
    scores = np.array([1.0, 2, 4, 3])
    assert metric("ndcg@2", y, scores, query=query) == 1
    assert metric("map", y, scores, query=query) == 1
    assert metric("mrr", y, scores, query=query) == 0.5  # nothing was found for the first


def test_intervals_are_scored_by_width_and_by_what_they_miss() -> None:
    y = np.array([1.0, 5.0, 9.0])
    ends = np.array([[0.0, 2.0], [6.0, 8.0], [5.0, 8.5]])
    assert metric("coverage", y, ends) == pytest.approx(1 / 3)
    assert metric("interval_width", y, ends) == 2.5
    assert metric("interval_score@0.2", y, ends) == pytest.approx((2 + 2 + 10 + 3.5 + 5) / 3)


def test_a_row_of_weight_2_counts_as_two_rows() -> None:
    y, p, _ = _binary(3)
    twice = np.ones(80)
    twice[10:20] = 2
    rows = np.concatenate([np.arange(80), np.arange(10, 20)])
    for name in metrics_of("binary"):
        expected = metric(name, y[rows], p[rows])
        assert metric(name, y, p, weights=twice) == pytest.approx(expected), name


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_of_nothing_is_not_a_number(name: str) -> None:
    spec = parse_metric(name)
    wide = spec.tasks[0] in ("interval", "multiclass")
    scores = np.empty((0, 2)) if wide else np.empty(0)
    assert math.isnan(metric(name, np.empty(0), scores, query=np.empty(0)))


def test_what_cannot_be_measured_is_refused_with_its_reason() -> None:
    y = np.array([0.0, 1.0])
    with pytest.raises(InvalidInput, match="ranked together"):
        metric("ndcg", y, y)
    for name, scores in (("coverage", y), ("f1_macro", y), ("rmse", np.ones((2, 3)))):
        with pytest.raises(InvalidInput, match="does not take scores of shape"):
            metric(name, y, scores)
    for text in ("ndcg@0", "ndcg@1.5", "pinball@1", "interval_score@0", "rmse@2"):
        with pytest.raises(InvalidInput):
            parse_metric(text)


def test_the_task_follows_from_the_metrics() -> None:
    assert task_of([parse_metric("brier"), parse_metric("auc")]) == "binary"
    assert task_of([parse_metric("brier"), parse_metric("f1_macro")]) == "multiclass"
    assert task_of([parse_metric("rmse")]) == "regression"
    with pytest.raises(InvalidInput, match="no task has all"):
        task_of([parse_metric("rmse"), parse_metric("auc")])


# --- intervals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["regression", "multiclass", "ranking"])
def test_intervals_of_other_tasks_are_those_of_resampling_rows(task: str) -> None:
    random = np.random.default_rng(4)
    days, per_day = 20, 40
    at_us = np.repeat(np.arange(days), per_day) * DAY_US
    level = np.repeat(random.normal(0, 1, days), per_day)
    more = {}
    if task == "regression":
        name, y = "rmse", random.normal(5, 1, 800)
        p = y + level + random.normal(0, 1, 800)
    elif task == "multiclass":
        name, y = "f1_macro", random.integers(0, 3, 800).astype(float)
        p = random.dirichlet([1, 1, 1], 800)
        p[np.arange(800), y.astype(int)] += np.abs(level) / 3
    else:
        name, y, p = "ndcg@3", random.integers(0, 3, 800).astype(float), random.random(800)
        p += y * np.abs(level) / 4
        more = {"query": np.arange(800) // 8}
    weights = random.random(800) + 0.5
    found = single(parse_metric(name), y, p, at_us, weights=weights, **more)
    assert found.estimate == pytest.approx(metric(name, y, p, weights=weights, **more))
    naive = []
    for _ in range(300):
        rows = (random.integers(0, days, days)[:, None] * per_day + np.arange(per_day)).ravel()
        drawn = {"query": np.arange(800) // 8} if more else {}
        naive.append(metric(name, y[rows], p[rows], weights=weights[rows], **drawn))
    assert found.spread == pytest.approx(np.std(naive), rel=0.15)
    low, high = np.quantile(naive, (0.05, 0.95))
    assert found.low == pytest.approx(low, abs=0.2 * (high - low))
    assert found.high == pytest.approx(high, abs=0.2 * (high - low))


@settings(max_examples=40)
@given(st.lists(st.integers(-3, 9), max_size=30), st.sampled_from([1, 10**7]))
def test_days_are_numbered_as_they_come_in_time(days: list[int], apart: int) -> None:
    at_us = np.array([day * apart * DAY_US + 5 for day in days], dtype=np.int64)
    expected = np.unique(at_us // DAY_US, return_inverse=True)[1]
    assert day_blocks(at_us).tolist() == expected.tolist()
