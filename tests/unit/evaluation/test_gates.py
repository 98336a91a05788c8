from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import numpy as np
import pytest

from everloop.core.gate import Gate, GateResult, Verdict
from everloop.core.time import from_micros, to_micros
from everloop.errors import InvalidInput, NotFound
from everloop.evaluation.gates import HoldOut, judge

START = datetime(2013, 4, 1, tzinfo=UTC)
BRIER = Gate(kind="beats_champion", metric="brier")
GROUPS = Gate(kind="no_group_worse", metric="brier", group="carrier", by=0.01, min_rows=100)


def _rows(
    days: int = 21,
    per_day: int = 100,
    *,
    candidate: float = 0.3,
    champion: float = 1.0,
    seed: int = 0,
    **more: Any,
) -> HoldOut:
    """A hold-out; `candidate` and `champion` are the noise in the logits of each."""
    random = np.random.default_rng(seed)
    count = days * per_day
    logit = np.repeat(random.normal(-1, 0.5, days), per_day) + random.normal(0, 1, count)

    def scores(noise: float) -> np.ndarray:
        return 1 / (1 + np.exp(-(logit + random.normal(0, 1, count) * noise)))

    at = [START + timedelta(days=n // per_day, minutes=n % per_day) for n in range(count)]
    given: dict[str, Any] = {
        "candidate_p": scores(candidate),
        "champion_p": scores(champion),
        "y": (random.random(count) < scores(0)).astype(int),
        "at_us": np.array([to_micros(one) for one in at]),
        "groups": {"carrier": np.array(["UA", "AA", "B6", "OO"])[np.arange(count) % 4]},
        "candidate_until": START - timedelta(days=1),
        "champion_until": START - timedelta(days=9),
    }
    return HoldOut(**{**given, **more})


def _judge(rows: HoldOut, *gates: Gate, champion: int = 1) -> Verdict:
    return judge(
        gates or (BRIER,), model="m", candidate=2, champion=champion, rows=rows,
        now=START + timedelta(days=30), run_id="r",
    )  # fmt: skip


def _only(verdict: Verdict) -> GateResult:
    [result] = verdict.results
    assert result.passed == verdict.passed
    return result


def test_a_better_candidate_passes_with_its_evidence() -> None:
    verdict = _judge(_rows())
    result = _only(verdict)
    assert result.passed
    assert 0 < result.low < result.estimate < result.high
    better, worse = result.evidence["candidate"], result.evidence["champion"]
    assert worse - better == pytest.approx(result.estimate)
    assert (result.rows, result.evidence["days"]) == (2100, 21)
    assert "brier is better on 2100 rows of 21 days" in result.reason
    assert (verdict.candidate, verdict.champion, verdict.run_id) == (2, 1, "r")
    assert verdict.holdout["not_later"] == 0
    assert verdict.holdout["from"] == START.isoformat()


@pytest.mark.parametrize("metric", ["brier", "log_loss", "auc", "accuracy"])
def test_a_worse_or_equal_candidate_does_not_pass(metric: str) -> None:
    gate = Gate(kind="beats_champion", metric=metric)
    assert _only(_judge(_rows(candidate=1.0, champion=0.3), gate)).estimate < 0
    rows = _rows()
    same = _only(_judge(_rows(champion_p=rows.candidate_p), gate))
    assert not same.passed
    assert (same.estimate, same.low, same.high) == (0, 0, 0)


def test_a_candidate_that_is_no_better_rarely_passes() -> None:
    passed = sum(_judge(_rows(candidate=0.8, champion=0.8, seed=seed)).passed for seed in range(80))
    assert passed <= 10  # 5 % are expected, a little more with 21 days


def test_the_margin_must_be_beaten_too() -> None:
    found = _only(_judge(_rows()))
    below = msgspec.structs.replace(BRIER, by=found.low - 1e-6)
    above = msgspec.structs.replace(BRIER, by=found.low + 1e-6)
    assert _judge(_rows(), below).passed
    assert not _judge(_rows(), above).passed


def test_rows_that_a_model_was_trained_on_do_not_count() -> None:
    middle = START + timedelta(days=10)
    for name in ("candidate_until", "champion_until"):
        verdict = _judge(_rows(**{name: middle}))
        assert (verdict.holdout["rows"], verdict.holdout["not_later"]) == (1099, 1001)
        assert verdict.holdout["days"] == 11
    seen_all = _only(_judge(_rows(candidate_until=START + timedelta(days=40))))
    assert not seen_all.passed
    assert seen_all.reason == "there are no rows later than what the models were trained on"


def test_without_trained_until_nothing_shows_that_rows_are_new() -> None:
    for gate in (BRIER, GROUPS, Gate(kind="threshold", metric="brier", by=0.9)):
        result = _only(_judge(_rows(candidate_until=None), gate))
        assert not result.passed
        assert "not stated" in result.reason
    assert _judge(_rows(champion_until=None)).passed


def test_only_the_latest_days_count() -> None:
    verdict = _judge(_rows(40), msgspec.structs.replace(BRIER, days=14))
    result = _only(verdict)
    assert (result.rows, result.evidence["days"]) == (1400, 14)
    assert verdict.holdout["from"] == (START + timedelta(days=26)).isoformat()


def test_too_little_to_tell_is_no_pass() -> None:
    few_days = _only(_judge(_rows(7, 400)))
    assert "too few blocks to tell: 7 days, 8 are needed" in few_days.reason
    assert "too few rows to tell: 160" in _only(_judge(_rows(20, 8))).reason
    one_class = _rows(y=np.zeros(2100))
    result = _only(_judge(one_class, Gate(kind="beats_champion", metric="auc")))
    assert "one class only" in result.reason
    assert math.isnan(result.estimate)
    assert not any(r.passed for r in (few_days, result))


def test_the_first_model_needs_no_champion() -> None:
    verdict = _judge(_rows(champion_p=None), BRIER, GROUPS, champion=0)
    assert verdict.passed
    assert {result.reason for result in verdict.results} == {"no champion yet"}


def test_a_group_that_is_worse_beyond_chance_refuses() -> None:
    rows = _rows(candidate=0.3, champion=0.3)
    hurt = rows.candidate_p.copy()
    at = rows.groups["carrier"] == "B6"
    hurt[at] = np.clip(hurt[at] + 0.4, 0, 1)
    result = _only(_judge(_rows(champion=0.3, candidate_p=hurt), GROUPS))
    assert not result.passed
    assert "worse by more than 0.01 for carrier B6" in result.reason
    assert result.evidence["groups"]["B6"]["high"] < -0.01
    assert set(result.evidence["groups"]) == {"UA", "AA", "B6", "OO"}
    assert _judge(rows, GROUPS).passed


def test_a_small_group_is_neither_pass_nor_fail() -> None:
    carrier = np.where(np.arange(2100) % 100 == 0, "HA", "UA")
    rows = _rows(groups={"carrier": carrier})
    hurt = rows.candidate_p.copy()
    hurt[carrier == "HA"] = 1 - rows.y[carrier == "HA"]
    result = _only(_judge(_rows(groups={"carrier": carrier}, candidate_p=hurt), GROUPS))
    assert result.passed
    assert result.evidence["too_small"] == ["HA"]
    assert "(1 not judged)" in result.reason
    none = _only(_judge(_rows(per_day=10), GROUPS))
    assert not none.passed
    assert "no group of carrier can be judged" in none.reason


def test_groups_may_hold_none_and_numbers() -> None:
    carrier = np.array([None, 1], dtype=object)[np.arange(2100) % 2]
    result = _only(_judge(_rows(groups={"carrier": carrier}), GROUPS))
    assert set(result.evidence["groups"]) == {"None", "1"}


@pytest.mark.parametrize(
    ("metric", "by", "passed"),
    [("brier", 0.5, True), ("brier", 0.01, False), ("auc", 0.6, True), ("auc", 0.99, False)],
)
def test_a_threshold_is_met_from_the_right_side(metric: str, by: float, passed: bool) -> None:
    result = _only(_judge(_rows(), Gate(kind="threshold", metric=metric, by=by)))
    assert result.passed is passed
    assert result.low < result.estimate < result.high


def test_one_gate_that_refuses_is_enough() -> None:
    verdict = _judge(_rows(), BRIER, Gate(kind="threshold", metric="auc", by=0.999))
    assert [result.passed for result in verdict.results] == [True, False]
    assert not verdict.passed


def test_malformed_rows_are_refused_with_every_fault() -> None:
    broken = _rows(
        y=np.full(2100, 2),
        candidate_p=np.full(2100, np.nan),
        champion_p=np.full(2100, 1.5),
        at_us=np.zeros(3, dtype=np.int64),
        groups={"carrier": np.array(["a"])},
    )
    with pytest.raises(InvalidInput) as refused:
        _judge(broken, msgspec.structs.replace(BRIER, level=0.7, days=0, by=math.inf))
    assert {fault.path for fault in refused.value.faults} == {
        "gates[0].level", "gates[0].days", "gates[0].by", "at_us", "carrier", "y", "candidate_p",
        "champion_p",
    }  # fmt: skip
    with pytest.raises(InvalidInput, match="champion_p: missing"):
        _judge(_rows(champion_p=None))
    with pytest.raises(InvalidInput, match="must be numbers"):
        _judge(_rows(candidate_p=np.full(2100, "x")))
    with pytest.raises(InvalidInput, match="no gate"):
        judge((), model="m", candidate=2, champion=1, rows=_rows(), now=START)


def test_scores_beyond_1_are_fine_for_a_rank_metric() -> None:
    rows = _rows()
    scaled = _rows(candidate_p=rows.candidate_p * 10)
    assert _judge(scaled, Gate(kind="beats_champion", metric="auc")).passed


def test_no_rows_at_all_are_no_pass() -> None:
    nothing = np.empty(0)
    rows = _rows(
        y=nothing, candidate_p=nothing, champion_p=nothing, at_us=nothing.astype(np.int64),
        groups={"carrier": nothing},
    )  # fmt: skip
    verdict = _judge(rows, BRIER, GROUPS)
    assert not verdict.passed
    assert verdict.holdout == {"rows": 0, "positives": 0, "days": 0, "not_later": 0}


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(NotFound, match="carrier"):
        _judge(_rows(), msgspec.structs.replace(GROUPS, group="carier"))
    with pytest.raises(NotFound, match="brier"):
        _judge(_rows(), msgspec.structs.replace(BRIER, metric="brierr"))


def test_the_same_question_gets_the_same_answer() -> None:
    one, two = _judge(_rows(), BRIER, GROUPS), _judge(_rows(), BRIER, GROUPS)
    assert one.results == two.results
    assert from_micros(to_micros(one.at)) == one.at
