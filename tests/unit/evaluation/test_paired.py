from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from everloop.evaluation.bootstrap import day_blocks, difference
from everloop.evaluation.metrics import auc, parse_metric
from everloop.evaluation.paired import days_for, delong, detectable, mcnemar

DAY_US = 86_400_000_000


@settings(max_examples=60)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 20))
def test_mcnemar_is_the_binomial_test_of_the_rows_that_differ(b: int, c: int, both: int) -> None:
    first = np.array([True] * b + [False] * c + [True] * both, dtype=bool)
    second = np.array([False] * b + [True] * c + [True] * both, dtype=bool)
    found = mcnemar(first, second)
    assert (found.only_first, found.only_second) == (b, c)
    exact = stats.binomtest(b, b + c).pvalue if b + c else 1.0
    assert found.exact == pytest.approx(exact)
    assert found.mid_p == pytest.approx(
        min(1, exact - stats.binom.pmf(min(b, c), b + c, 0.5)) if b != c else 1
    )
    assert found == mcnemar(second, first)._replace(only_first=b, only_second=c)


def test_mcnemar_of_a_million_rows_does_not_overflow() -> None:
    random = np.random.default_rng(0)
    first, second = random.random(10**6) < 0.701, random.random(10**6) < 0.7
    found = mcnemar(first, second)
    z = (found.only_first - found.only_second) / math.sqrt(found.only_first + found.only_second)
    assert found.exact == pytest.approx(math.erfc(abs(z) / math.sqrt(2)), rel=0.02)


def _naive_delong(y: np.ndarray, p: np.ndarray, q: np.ndarray) -> tuple[float, float]:
    """By its definition: every positive against every negative."""

    def kernel(scores: np.ndarray) -> np.ndarray:
        up, down = scores[y == 1][:, None], scores[y == 0][None, :]
        return (up > down) + (up == down) / 2.0

    off = kernel(p) - kernel(q)
    variance = off.mean(axis=1).var(ddof=1) / (y == 1).sum()
    variance += off.mean(axis=0).var(ddof=1) / (y == 0).sum()
    return float(off.mean()), math.sqrt(variance)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([3, 1000]))
def test_delong_is_its_definition(seed: int, levels: int) -> None:
    random = np.random.default_rng(seed)
    y = np.concatenate([[0, 0, 1, 1], random.integers(0, 2, 40)]).astype(float)
    p, q = random.integers(0, levels, (2, 44)).astype(float)
    found = delong(y, p, q)
    effect, spread = _naive_delong(y, p, q)
    assert found.difference == pytest.approx(effect)
    assert found.spread == pytest.approx(spread)
    assert found.first == pytest.approx(auc(y, p))
    alone = delong(y, p, q, blocks=np.arange(44))
    assert alone.spread == pytest.approx(
        spread, rel=0.15
    )  # each row a block: the same but for n - 1


def test_delong_by_days_agrees_with_the_bootstrap_by_days() -> None:
    random = np.random.default_rng(2)
    days, per_day = 40, 50
    logit = np.repeat(random.normal(0, 1, days), per_day) + random.normal(0, 1, 2000)
    y = (random.random(2000) < 1 / (1 + np.exp(-logit))).astype(float)
    skill = np.repeat(random.normal(1, 1.5, days), per_day)  # the second is good on some days
    first, second = logit + random.normal(0, 1, 2000), logit * skill + random.normal(0, 1, 2000)
    at_us = np.repeat(np.arange(days), per_day) * DAY_US
    by_days = delong(y, first, second, blocks=day_blocks(at_us))
    drawn = difference(parse_metric("auc"), y, first, second, at_us)
    assert by_days.difference == pytest.approx(drawn.estimate)
    assert by_days.spread == pytest.approx(drawn.spread, rel=0.2)
    assert by_days.spread > 1.1 * delong(y, first, second).spread  # rows alone would be too sure


def test_delong_of_a_model_with_itself_and_of_one_class() -> None:
    y, p = np.array([0.0, 1, 0, 1]), np.array([0.1, 0.2, 0.3, 0.4])
    assert delong(y, p, p)[2:] == (0, 0, 1)
    assert all(math.isnan(value) for value in delong(np.ones(4), p, p))


def test_what_is_detectable_is_detected_with_the_power_that_was_said() -> None:
    random = np.random.default_rng(5)
    spread = 0.3
    effect = detectable(spread, level=0.05, power=0.8)
    seen = random.normal(effect, spread, 20_000)
    found = np.mean(seen - stats.norm.ppf(0.95) * spread > 0)
    assert found == pytest.approx(0.8, abs=0.01)
    assert days_for(effect / 2, effect, 14) == 56
    assert days_for(0.0, effect, 14) is None


def test_nothing_and_next_to_nothing_have_no_answer_and_no_fault() -> None:
    nothing = np.empty(0)
    assert mcnemar(nothing.astype(bool), nothing.astype(bool)) == (0, 0, 1, 1)
    assert math.isnan(delong(nothing, nothing, nothing).difference)
    two = delong(np.array([0.0, 1.0]), np.array([0.1, 0.2]), np.array([0.2, 0.1]))
    assert two.difference == 1
    assert math.isnan(two.p)  # one pair shows nothing
