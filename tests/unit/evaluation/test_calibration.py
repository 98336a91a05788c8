from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression

from everloop.evaluation.calibration import calibration
from everloop.evaluation.metrics import metric

DAY_US = 86_400_000_000


def _sample(
    count: int, days: int = 20, *, seed: int = 0, slope: float = 1.0, shift: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores whose truth follows `slope` * logit + `shift`: 1 and 0 are perfect calibration."""
    random = np.random.default_rng(seed)
    logit = random.normal(-0.5, 1.2, count)
    y = (random.random(count) < 1 / (1 + np.exp(-(slope * logit + shift)))).astype(float)
    return y, 1 / (1 + np.exp(-logit)), (np.arange(count) % days) * DAY_US


def test_the_reliability_table_is_sklearns() -> None:
    y, p, at_us = _sample(3000)
    found = calibration(y, p, at_us, bins=8)
    rate, score = calibration_curve(y, p, n_bins=8, strategy="quantile")
    assert [one.rate for one in found.bins] == pytest.approx(list(rate), abs=0.01)
    assert [one.score for one in found.bins] == pytest.approx(list(score), abs=0.01)
    assert sum(one.rows for one in found.bins) == 3000
    assert all(one.rate_low < one.rate < one.rate_high for one in found.bins)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 12))
def test_the_parts_of_the_brier_score_add_up(seed: int, bins: int) -> None:
    y, p, at_us = _sample(200, seed=seed)
    parts = calibration(y, np.round(p, 1), at_us, bins=bins).parts
    total = parts.reliability - parts.resolution + parts.uncertainty + parts.within
    assert parts.brier == pytest.approx(metric("brier", y, np.round(p, 1)))
    assert total == pytest.approx(parts.brier)


def test_the_error_of_perfect_scores_is_chance_and_the_estimate_knows_it() -> None:
    found = [calibration(*_sample(800, seed=seed)) for seed in range(60)]
    plain = np.mean([one.ece for one in found])
    assert plain > 0.035  # what a naive reader would take for a fault
    assert np.mean([one.ece_of_chance for one in found]) == pytest.approx(plain, rel=0.1)
    assert np.mean([one.error.estimate for one in found]) < 0.5 * plain


def test_the_error_of_shifted_scores_is_found_and_its_interval_holds_it() -> None:
    truth = calibration(*_sample(400_000, shift=0.4)).error.estimate
    found = [calibration(*_sample(2000, seed=seed, shift=0.4)).error for seed in range(60)]
    assert np.mean([one.estimate for one in found]) == pytest.approx(truth, rel=0.05)
    assert 46 <= sum(one.low <= truth <= one.high for one in found) <= 60  # 90 % are meant


def test_slope_and_intercept_are_those_of_logistic_regression() -> None:
    y, p, at_us = _sample(4000, slope=0.6, shift=0.3)
    logits = np.log(p / (1 - p))[:, None]
    oracle = LogisticRegression(C=np.inf, tol=1e-10).fit(logits, y)
    found = calibration(y, p, at_us)
    assert found.slope.estimate == pytest.approx(oracle.coef_[0, 0], abs=1e-4)
    assert found.slope.low < 0.6 < found.slope.high < 1
    level = calibration(*_sample(4000, shift=0.3)).intercept
    assert level.low < 0.3 < level.high
    assert level.low > 0


def test_a_slope_interval_covers_as_often_as_it_says() -> None:
    held = sum(
        one.slope.low <= 0.8 <= one.slope.high
        for one in (calibration(*_sample(600, 30, seed=s, slope=0.8)) for s in range(80))
    )
    assert 64 <= held <= 79  # 90 % are meant


def test_what_is_not_defined_is_not_a_number() -> None:
    nothing = np.empty(0)
    assert math.isnan(calibration(nothing, nothing, nothing.astype(int)).ece)
    p, at_us = np.full(50, 0.3), np.arange(50) * DAY_US
    one_class = calibration(np.zeros(50), p, at_us)
    assert math.isnan(one_class.slope.estimate)
    assert one_class.ece == pytest.approx(0.3)
    y = (np.arange(50) % 3 == 0).astype(float)
    flat = calibration(y, p, at_us)
    assert math.isnan(flat.slope.estimate)
    assert flat.intercept.estimate == pytest.approx(math.log(17 / 33) - math.log(3 / 7))
    parted = calibration(y, y, at_us)  # scores that are never wrong have no finite slope
    assert math.isnan(parted.slope.estimate)
