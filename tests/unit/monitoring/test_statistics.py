"""Statistics from counts, against definitions by brute force and against SciPy's figures."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everloop.data.bins import (
    BINS,
    HIGH,
    LOW,
    NULL,
    SCORE_BINS,
    UNSEEN,
    fit_feature,
    pack,
    score_bins,
    unpack,
)
from everloop.data.statistics import (
    auc_from_counts,
    chi2_p,
    chi2_tail,
    holm,
    ks_distance,
    ks_p,
    total_variation,
)
from everloop.errors import InvalidInput
from everloop.monitoring.tally import Tally, merge, metric_value, tally, without

probabilities = st.lists(st.floats(0, 1), min_size=2, max_size=60)


def pairwise_auc(scores: np.ndarray, labels: np.ndarray) -> float:
    ones, zeros = scores[labels == 1], scores[labels == 0]
    won = (ones[:, None] > zeros).sum() + 0.5 * (ones[:, None] == zeros).sum()
    return float(won / (len(ones) * len(zeros)))


@given(st.lists(st.tuples(st.integers(0, SCORE_BINS - 1), st.booleans()), min_size=2))
def test_auc_from_counts_is_the_pairwise_auc(rows: list[tuple[int, bool]]) -> None:
    bins = np.array([row[0] for row in rows])
    labels = np.array([row[1] for row in rows], dtype=float)
    counts = [np.bincount(bins[labels == y], minlength=SCORE_BINS) for y in (0, 1)]
    found = auc_from_counts(*counts)
    if 0 < labels.sum() < len(labels):
        assert found == pytest.approx(pairwise_auc(bins.astype(float), labels))
    else:
        assert found is None


@given(probabilities)
def test_score_bins_keep_the_order_of_the_scores(scores: list[float]) -> None:
    ascending = np.sort(np.array(scores))
    bins = score_bins(ascending)
    assert (np.diff(bins) >= 0).all()
    assert bins.min() >= 0
    assert bins.max() < SCORE_BINS


@pytest.mark.parametrize("rate", [0.3, 0.002])
def test_binned_auc_is_close_to_exact_also_for_rare_events(rate: float) -> None:
    random = np.random.default_rng(1)
    odds = random.normal(np.log(rate / (1 - rate)), 1, 20_000)
    scores = 1 / (1 + np.exp(-odds))
    labels = (random.random(20_000) < scores).astype(float)
    found = metric_value("auc", tally(scores, labels))
    assert found == pytest.approx(pairwise_auc(scores, labels), abs=2e-3)


@given(probabilities, st.integers(0, 2**32))
def test_merging_in_any_order_gives_the_whole(scores: list[float], seed: int) -> None:
    random = np.random.default_rng(seed)
    p = np.array(scores)
    y = random.choice([0.0, 1.0, np.nan], len(p))
    feature = {"x": pa.array(random.normal(size=len(p)))}
    bins = [fit_feature("x", feature["x"])]
    whole = tally(p, y, feature, bins)
    cut = len(p) // 2
    parts = [
        tally(p[at], y[at], {"x": feature["x"].take(pa.array(at))}, bins)
        for at in (np.arange(cut), np.arange(cut, len(p)))
    ]
    merged = merge(reversed(parts))
    assert (merged.scores == whole.scores).all()
    assert (merged.features["x"] == whole.features["x"]).all()
    assert merged.squares == pytest.approx(whole.squares)
    rest = without(whole, parts[0])
    assert (rest.scores == parts[1].scores).all()
    assert (rest.features["x"] == parts[1].features["x"]).all()
    again = Tally.from_json(whole.to_json())
    assert (again.scores == whole.scores).all()
    assert again.squares == whole.squares


def test_metrics_by_hand() -> None:
    found = tally(np.array([0.9, 0.2, 0.6, 0.4]), np.array([1, 0, 0, np.nan]))
    assert found.labels == 3
    assert metric_value("brier", found) == pytest.approx((0.01 + 0.04 + 0.36) / 3)
    assert metric_value("auc", found) == 1.0
    logs = -np.log([0.9, 0.8, 0.4]).mean()
    assert metric_value("log_loss", found) == pytest.approx(logs)
    skill = 1 - (0.41 / 3) / (1 / 3 * 2 / 3)
    assert metric_value("brier_skill", found) == pytest.approx(skill)


def test_one_class_only_leaves_auc_and_skill_undefined() -> None:
    found = tally(np.array([0.9, 0.2]), np.array([1.0, 1.0]))
    assert metric_value("auc", found) is None
    assert metric_value("brier_skill", found) is None
    assert metric_value("brier", found) is not None
    assert metric_value("brier", Tally()) is None


def test_scores_that_are_no_probability_count_apart() -> None:
    found = tally(np.array([1.2, np.nan, -0.1, 0.5, 0.5]), np.array([1, 0, 1, 1, 0.5]))
    assert (found.rows, found.invalid, found.labels) == (5, 4, 1)


@pytest.mark.parametrize(
    ("statistic", "freedom", "wanted"),
    [  # scipy.stats.chi2.sf
        (3.841458820694124, 1, 0.05),
        (0.5, 3, 0.9188914116546758),
        (100.0, 63, 0.0020888262985263297),
        (10.0, 63, 1.0),
        (1000.0, 5, 5.2e-214),
    ],
)
def test_chi2_tail_gives_the_known_values(statistic: float, freedom: int, wanted: float) -> None:
    assert chi2_tail(statistic, freedom) == pytest.approx(wanted, rel=1e-2, abs=1e-12)


def test_ks_p_gives_the_known_value() -> None:
    # Critical distance at 5 %: 1.3581 sqrt((n + m) / (n m)).
    assert ks_p(1.3581 * np.sqrt(2 / 10_000), 10_000, 10_000) == pytest.approx(0.05, abs=1e-3)
    assert ks_p(0.0, 10, 10) == 1.0
    assert ks_p(0.5, 0, 10) == 1.0


def test_holm_is_the_textbook_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_two_sample_tests_hold_their_level_with_many_levels() -> None:
    """1000 levels at n = 1000: the form that takes the reference as exact alarms every time."""
    random = np.random.default_rng(2)
    weights = 1 / np.arange(1, 1001)
    weights /= weights.sum()
    alarms = 0
    for _ in range(100):
        text = [
            np.char.add("level", random.choice(1000, 1000, p=weights).astype(str)) for _ in "ab"
        ]
        bins = fit_feature("carrier", pa.array(text[0]))
        was, now = (bins.count(pa.array(side))[:BINS] for side in text)
        alarms += chi2_p(now, was) < 0.05
    assert bins.kind == "hashed"
    assert alarms <= 12


def test_two_sample_tests_find_a_tenth_of_a_sd_at_ten_thousand() -> None:
    random = np.random.default_rng(3)
    was, now = random.normal(size=10_000), random.normal(0.1, 1, 10_000)
    bins = fit_feature("x", pa.array(was))
    left, right = (bins.count(pa.array(side))[:BINS] for side in (now, was))
    assert ks_p(float(ks_distance(left, right)), 10_000, 10_000) < 1e-3


def test_missing_infinite_and_out_of_range_values_are_counted_apart() -> None:
    bins = fit_feature("x", pa.array(np.arange(100.0)))
    counts = bins.count(pa.array([None, np.nan, np.inf, -np.inf, 200.0, 50.0, -1.0]))
    assert counts[NULL] == 2
    assert (counts[LOW], counts[HIGH]) == (2, 2)
    assert counts[:BINS].sum() == 3


def test_unseen_levels_are_counted_apart() -> None:
    bins = fit_feature("carrier", pa.array(["UA", "DL", "UA"]))
    counts = bins.count(pa.array(["UA", "ZZ", None]))
    assert (counts[UNSEEN], counts[NULL], counts[:BINS].sum()) == (1, 1, 1)


def test_text_where_numbers_were_is_unseen_and_no_crash() -> None:
    bins = fit_feature("x", pa.array([1.0, 2.0]))
    counts = bins.count(pa.array(["one", None]))
    assert (counts[UNSEEN], counts[NULL]) == (1, 1)


def test_codes_of_levels_are_the_same_as_integer_and_float() -> None:
    bins = fit_feature("code", pa.array([1, 2, 2]), categorical=True)
    assert bins.count(pa.array([2.0, 2.0, 1.0]))[:2].tolist() == [1, 2]


def test_a_constant_column_never_moves() -> None:
    bins = fit_feature("x", pa.array(np.full(50, 3.0)))
    counts = bins.count(pa.array(np.full(20, 3.0)))
    assert ks_distance(counts[:BINS], bins.count(pa.array(np.full(50, 3.0)))[:BINS]) == 0


def test_no_column_at_all_gives_no_distance() -> None:
    empty = np.zeros(BINS, dtype=np.int64)
    assert ks_distance(empty, empty) == 0
    assert total_variation(empty, empty) == 0
    assert chi2_p(empty, empty) == 1


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300))
def test_the_reference_falls_into_its_own_bins(values: list[float]) -> None:
    column = pa.array(values)
    counts = fit_feature("x", column).count(column)
    assert counts[:BINS].sum() == len(values)
    assert counts[LOW] == counts[HIGH] == 0


@given(st.lists(st.integers(0, 2**40), min_size=6, max_size=6))
def test_packed_counts_come_back_exactly(values: list[int]) -> None:
    counts = np.array(values, dtype=np.int64).reshape(2, 3)
    assert (unpack(pack(counts), 2, 3) == counts).all()


def test_a_column_of_times_is_refused() -> None:
    with pytest.raises(InvalidInput, match="numbers, booleans or text"):
        fit_feature("at", pa.array([1], type=pa.timestamp("us")))
