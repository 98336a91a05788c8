from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle

from everloop.errors import InvalidInput, NotFound
from everloop.evaluation.bootstrap import AUC_BINS, RESAMPLES, difference, single
from everloop.evaluation.metrics import (
    Floats,
    auc,
    metric,
    parse_metric,
)

DAY_US = 86_400_000_000


def _few(seed: int) -> tuple[Floats, Floats]:
    """A few rows, often of one class, with many equal scores."""
    random = np.random.default_rng(seed)
    count = int(random.integers(2, 60))
    y = (random.random(count) < random.random()).astype(float)
    return y, random.integers(1, 20, count) / 20


# By seed: a strategy of arrays takes longer to draw than all that is tested.
labels_and_scores = st.integers(0, 100_000).map(_few)


@settings(max_examples=40, deadline=None)
@given(labels_and_scores)
def test_metrics_agree_with_sklearn(given_: tuple[Floats, Floats]) -> None:
    y, p = given_
    if len(np.unique(y)) == 2:
        assert auc(y, p) == pytest.approx(oracle.roc_auc_score(y, p))
    else:
        assert math.isnan(auc(y, p))
    assert metric("brier", y, p) == pytest.approx(oracle.brier_score_loss(y, p))
    assert metric("log_loss", y, p) == pytest.approx(oracle.log_loss(y, p, labels=[0, 1]))
    hit = (p >= 0.3).astype(int)
    assert metric("accuracy@0.3", y, p) == pytest.approx(oracle.accuracy_score(y, hit))
    for name, function in (("tpr", oracle.recall_score), ("precision", oracle.precision_score)):
        expected = function(y, hit, zero_division=np.nan)
        assert metric(f"{name}@0.3", y, p) == pytest.approx(expected, nan_ok=True)
    expected = oracle.recall_score(1 - y, hit, zero_division=np.nan)
    assert metric("fpr@0.3", y, p) == pytest.approx(expected, nan_ok=True)


@settings(max_examples=40, deadline=None)
@given(labels_and_scores)
def test_auc_turns_around_with_the_scores(given_: tuple[Floats, Floats]) -> None:
    y, p = given_
    assume(len(np.unique(y)) == 2)
    assert auc(y, p) + auc(y, -p) == pytest.approx(1)
    assert auc(y, np.exp(p)) == pytest.approx(auc(y, p))


def test_what_is_not_defined_is_nan() -> None:
    nothing = np.empty(0)
    for name in ("auc", "brier", "log_loss", "accuracy", "tpr"):
        assert math.isnan(metric(name, nothing, nothing))
    ones = np.ones(3)
    assert math.isnan(auc(ones, ones / 2))
    assert math.isnan(metric("fpr", ones, ones / 2))
    assert metric("brier", ones, ones / 2) == 0.25


def test_a_sure_and_wrong_probability_costs_much_but_not_infinitely() -> None:
    assert 30 < metric("log_loss", np.array([1.0]), np.array([0.0])) < 40


def test_a_metric_is_named_right_or_refused() -> None:
    assert parse_metric("tpr@0.3") == ("tpr", 0.3, 1)
    assert parse_metric("brier").sign == -1
    with pytest.raises(NotFound, match="brier"):
        parse_metric("briar")
    for text in ("brier@0.3", "tpr@", "tpr@x", "tpr@nan"):
        with pytest.raises(InvalidInput):
            parse_metric(text)


# --- bootstrap ----------------------------------------------------------------------------------


def _sample(
    days: int, per_day: int, noise: float, seed: int = 0
) -> tuple[Floats, Floats, Floats, np.ndarray]:
    """Labels, the true probability, a noisy one, and times; days differ in their level."""
    random = np.random.default_rng(seed)
    at_us = np.repeat(np.arange(days), per_day) * DAY_US + random.integers(
        0, DAY_US, days * per_day
    )
    logit = np.repeat(random.normal(0, 0.7, days), per_day) + random.normal(0, 1, days * per_day)
    true = 1 / (1 + np.exp(-logit))
    y = (random.random(days * per_day) < true).astype(float)
    noisy = 1 / (1 + np.exp(-(logit + random.normal(0, noise, days * per_day))))
    return y, true, noisy, at_us.astype(np.int64)


@pytest.mark.parametrize(
    "name", ["brier", "log_loss", "auc", "tpr@0.6", "average_precision", "mcc"]
)
def test_the_interval_is_that_of_resampling_rows_day_by_day(name: str) -> None:
    y, true, noisy, at_us = _sample(20, 60, 0.8)
    found = difference(parse_metric(name), y, true, noisy, at_us)
    random = np.random.default_rng(1)
    rows_of = [np.flatnonzero(at_us // DAY_US == day) for day in range(20)]
    naive = []
    for _ in range(600):
        rows = np.concatenate([rows_of[day] for day in random.integers(0, 20, 20)])
        naive.append(metric(name, y[rows], true[rows]) - metric(name, y[rows], noisy[rows]))
    low, high = np.quantile(naive, (0.05, 0.95))
    width = high - low
    assert found.days == 20
    expected = metric(name, y, true) - metric(name, y, noisy)
    assert found.estimate == pytest.approx(expected, rel=1e-12)
    assert found.low == pytest.approx(low, abs=0.15 * width)
    assert found.high == pytest.approx(high, abs=0.15 * width)


def test_auc_by_bins_stays_close_to_exact_scores() -> None:
    y, true, _, at_us = _sample(15, 400, 0.5)
    assert len(np.unique(true)) > 8 * AUC_BINS
    fine = single(parse_metric("auc"), y, true, at_us)
    coarse = single(parse_metric("auc"), y, np.round(true * 400) / 400, at_us)
    assert fine.estimate == auc(y, true)
    assert fine.low == pytest.approx(coarse.low, abs=0.001)
    assert fine.high == pytest.approx(coarse.high, abs=0.001)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(["brier", "auc", "tpr"]))
def test_the_order_of_rows_does_not_matter(seed: int, name: str) -> None:
    y, true, noisy, at_us = _sample(9, 20, 0.8, seed)
    order = np.random.default_rng(seed).permutation(len(y))
    spec = parse_metric(name)
    straight = difference(spec, y, true, noisy, at_us)
    shuffled = difference(spec, y[order], true[order], noisy[order], at_us[order])
    np.testing.assert_allclose(straight, shuffled, atol=1e-12)
    turned = difference(spec, y, noisy, true, at_us)
    np.testing.assert_allclose(turned[:3], (-straight[0], -straight[2], -straight[1]), atol=1e-12)


def test_equal_scores_differ_by_exactly_nothing() -> None:
    y, true, _, at_us = _sample(10, 30, 1)
    for name in ("brier", "auc", "log_loss"):
        assert difference(parse_metric(name), y, true, true, at_us)[:3] == (0, 0, 0)


def test_no_rows_and_one_class_have_no_interval() -> None:
    nothing, spec = np.empty(0), parse_metric("auc")
    empty = single(spec, nothing, nothing, nothing.astype(np.int64))
    assert empty.days == 0
    assert math.isnan(empty.low)
    y, true, _, at_us = _sample(10, 30, 1)
    assert math.isnan(single(spec, np.ones_like(y), true, at_us).high)
    rare = (np.arange(len(y)) == 5).astype(float)  # one positive: a third of the draws lack it
    assert math.isnan(single(spec, rare, true, at_us).low)


def test_enough_resamples_for_the_levels_that_gates_use() -> None:
    assert RESAMPLES * 0.01 >= 20
