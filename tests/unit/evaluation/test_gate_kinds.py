"""Gates beside the oldest three: their answers, their evidence, and how a verdict reads."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import numpy as np
import pytest

from everloop.automation import gates as ev
from everloop.core.gate import Gate, GateResult, Uses, Verdict
from everloop.core.model import ModelVersion, Signature
from everloop.core.schema import Field, Schema
from everloop.errors import InvalidInput, NotFound
from everloop.evaluation.gates import (
    HoldOut,
    Subject,
    first_verdict,
    gate_faults,
    judge,
    needs_subject,
    same_model,
)
from everloop.evaluation.render import verdict_markdown
from everloop.evaluation.results import level_of

START = datetime(2013, 4, 1, tzinfo=UTC)
DAY_US = 86_400_000_000
DAYS, PER_DAY = 21, 200
COUNT = DAYS * PER_DAY
NAMES = ("delay", "tail")


def _rows(*, noise: float = 0.3, other: float = 0.3, seed: int = 0, **more: Any) -> HoldOut:
    """A hold-out of two groups and a tiny one; the noise of each model's logits as given."""
    random = np.random.default_rng(seed)
    logit = random.normal(-0.5, 1.2, COUNT)

    def scores(by: float) -> np.ndarray:
        return 1 / (1 + np.exp(-(logit + random.normal(0, 1, COUNT) * by)))

    group = random.choice(["A", "B", "C"], COUNT, p=[0.6, 0.39, 0.01])
    given: dict[str, Any] = {
        "y": (random.random(COUNT) < scores(0)).astype(float),
        "candidate_p": scores(noise),
        "champion_p": scores(other),
        "at_us": int(START.timestamp() * 1e6) + np.arange(COUNT) // PER_DAY * DAY_US,
        "groups": {"carrier": group},
        "fields": {"hour": random.uniform(5, 23, COUNT), "wind": random.normal(size=COUNT)},
        "candidate_until": START - timedelta(days=1),
    }
    return HoldOut(**{**given, **more})


def _judge(rows: HoldOut, *gates: Gate, **more: Any) -> Verdict:
    given: dict[str, Any] = {"model": "m", "candidate": 2, "champion": 1}
    return judge(gates, rows=rows, now=START + timedelta(days=30), **{**given, **more})


def _only(rows: HoldOut, gate: Gate, **more: Any) -> GateResult:
    [result] = _judge(rows, gate, **more).results
    assert result.passed == (result.answer == "passed")
    return result


def _hurt(rows: HoldOut, where: np.ndarray, by: float) -> HoldOut:
    p = rows.candidate_p.copy()
    p[where] = np.clip(p[where] + by, 0, 1)
    return _rows(candidate_p=p)


# --- non-inferiority ----------------------------------------------------------------------------


def test_not_worse_must_be_shown_and_says_when_it_cannot_be_told() -> None:
    rows = _rows()
    fine = _only(rows, ev.not_worse("brier", by=0.01))
    assert fine.passed
    assert fine.low >= -0.01
    tight = _only(rows, ev.not_worse("brier", by=1e-5))
    assert tight.answer == "cannot tell"
    assert "is not shown" in tight.reason
    bad = _only(_rows(noise=1.5), ev.not_worse("brier", by=0.01))
    assert bad.answer == "refused"
    assert bad.high < -0.01


def test_a_group_may_have_a_margin_of_its_own() -> None:
    rows = _rows()
    hurt = _hurt(rows, rows.groups["carrier"] == "B", 0.12)
    by_all = ev.not_worse("brier", by=0.005, group="carrier")
    assert _only(hurt, by_all).answer == "refused"
    own = ev.not_worse("brier", by=0.005, group="carrier", margins={"B": 0.1})
    result = _only(hurt, own)
    assert result.passed
    assert result.evidence["groups"]["B"]["margin"] == 0.1
    assert result.evidence["too_small"] == ["C"]
    guard = ev.no_group_worse("carrier", "brier", by=0.005, margins={"B": 0.1})
    assert _only(hurt, guard).passed


def test_the_burden_of_proof_is_harms_in_one_gate_and_the_candidates_in_the_other() -> None:
    """A margin that the rows can neither clear nor break."""
    rows = _rows()
    guard = _only(rows, ev.no_group_worse("carrier", "brier", by=1e-5))
    assert guard.passed
    assert "too small to tell for A, B" in guard.reason
    answers = {one["answer"] for one in guard.evidence["groups"].values()}
    assert answers == {"too small to tell"}
    strict = _only(rows, ev.not_worse("brier", by=1e-5, group="carrier"))
    assert strict.answer == "cannot tell"


# --- power and uses -----------------------------------------------------------------------------


def test_a_refusal_says_what_the_rows_could_have_shown() -> None:
    result = _only(_rows(), ev.beats_champion("brier"))
    assert not result.passed
    seen = result.evidence["detectable"]
    assert seen == pytest.approx(2.4865 * result.evidence["spread"], rel=1e-3)
    assert f"with 80% power they show {seen:.2g} and more" in result.reason


def test_the_level_is_spent_over_the_uses_of_a_hold_out() -> None:
    gate = ev.beats_champion("brier", spend=True)
    assert sum(level_of(gate, use) for use in range(1, 100_000)) == pytest.approx(0.05, abs=1e-5)
    rows = _rows(noise=0.3, other=0.6)
    lows = [_only(rows, gate, uses=Uses(holdout=before)).low for before in (0, 3)]
    plain = _only(rows, ev.beats_champion("brier"), uses=Uses(holdout=3))
    assert lows[1] < lows[0] < plain.low
    assert (
        "use 4 of this hold-out, tested at 0.0019" in _only(rows, gate, uses=Uses(holdout=3)).reason
    )
    assert "use" not in plain.reason


def test_the_verdict_counts_uses_and_attempts() -> None:
    verdict = _judge(_rows(), ev.beats_champion("brier"), uses=Uses(holdout=2, year=11))
    assert (verdict.holdout["use"], verdict.holdout["attempt"]) == (3, 12)
    assert verdict.holdout["luck"] == pytest.approx(1 - 0.95**12)
    assert "use" not in _judge(_rows(), ev.beats_champion("brier")).holdout


def test_the_digest_names_the_rows_in_any_order() -> None:
    rows = _rows()
    mixed = np.random.default_rng(1).permutation(COUNT)
    names = ("y", "candidate_p", "champion_p", "at_us")
    other = _rows(**{name: getattr(rows, name)[mixed] for name in names}, groups={}, fields={})
    gate = ev.beats_champion("brier")
    digest = _judge(rows, gate).holdout["digest"]
    assert _judge(other, gate).holdout["digest"] == digest
    flipped = _rows(y=1 - rows.y)
    assert _judge(flipped, gate).holdout["digest"] != digest


def test_a_second_opinion_stands_beside_auc_and_accuracy() -> None:
    rows = _rows(noise=0.3, other=1.0)
    auc = _only(rows, ev.beats_champion("auc"))
    assert auc.evidence["delong"]["difference"] == pytest.approx(auc.estimate)
    assert auc.evidence["delong"]["spread"] == pytest.approx(auc.evidence["spread"], rel=0.3)
    assert auc.evidence["delong"]["p"] < 0.01
    accuracy = _only(rows, ev.beats_champion("accuracy"))
    assert accuracy.evidence["mcnemar"]["mid_p"] <= accuracy.evidence["mcnemar"]["exact"] < 0.05


# --- the candidate alone ------------------------------------------------------------------------


def test_calibration_must_be_shown() -> None:
    assert _only(_rows(noise=0), ev.calibrated(within=0.05)).passed
    off = _rows()
    shifted = _rows(candidate_p=np.clip(off.candidate_p * 0.6, 0, 1))
    result = _only(shifted, ev.calibrated(within=0.05))
    assert result.answer == "refused"
    assert len(result.evidence["bins"]) == 10
    assert _only(_rows(noise=0), ev.calibrated(within=0.003)).answer == "cannot tell"


def test_fairness_names_the_groups_and_those_too_small_to_tell() -> None:
    result = _only(_rows(), ev.fair("carrier", "equal_opportunity", by=0.2))
    assert result.passed
    assert result.evidence["too_small"] == ["C"]
    assert "too small to tell: C" in result.reason
    rows = _rows()
    hurt = _hurt(rows, rows.groups["carrier"] == "B", -0.3)
    bad = _only(hurt, ev.fair("carrier", "equal_opportunity", by=0.05))
    assert bad.answer == "refused"
    assert "B" in bad.evidence["unfair"]
    tiny = _rows(groups={"carrier": np.array([f"g{n % 400}" for n in range(COUNT)])})
    assert _only(tiny, ev.fair("carrier", "calibration", by=0.05)).answer == "cannot tell"


def test_a_weak_slice_refuses_with_its_name() -> None:
    rows = _rows()
    evening = (rows.fields["hour"] > 18.5) & (rows.groups["carrier"] == "B")
    hurt = _hurt(rows, evening, 0.5)
    result = _only(hurt, ev.no_weak_slice("brier", by=0.02))
    assert result.answer == "refused"
    assert "carrier = B and hour >= 18" in result.reason
    assert result.evidence["found"][0]["effect"] > 0.02
    assert _only(rows, ev.no_weak_slice("brier", by=0.02, fields=["wind"])).passed
    schema = Schema((Field("hour", "float64", semantic="id"),))
    known = _rows(candidate_p=hurt.candidate_p, schema=schema)
    result = _only(known, ev.no_weak_slice("brier", by=0.02))
    assert not any("hour" in one["name"] for one in result.evidence["found"])
    with pytest.raises(NotFound, match="wind"):
        _only(rows, ev.no_weak_slice("brier", by=0.02, fields=["winds"]))


# --- behaviour ----------------------------------------------------------------------------------


def _subject(count: int = 40, size_bytes: int = 2_000_000) -> Subject:
    matrix = np.random.default_rng(0).normal(size=(count, 2))
    return Subject(NAMES, lambda rows: 1 / (1 + np.exp(-rows[:, 0])), matrix, size_bytes)


def test_behaviour_speed_and_size_are_judged_on_the_model_itself() -> None:
    more = {"subject": _subject()}
    assert _only(_rows(), ev.invariant("tail"), **more).passed
    broken = _only(_rows(), ev.invariant("delay", by=0.01), **more)
    assert broken.answer == "refused"
    assert broken.rows == 40
    assert len(broken.evidence["worst"]) == 5
    assert set(broken.evidence["worst"][0]["features"]) == set(NAMES)
    assert _only(_rows(), ev.directional("delay", 0.5, "up"), **more).passed
    assert not _only(_rows(), ev.directional("delay", 0.5, "down"), **more).passed
    assert _only(_rows(), ev.directional("delay", 0.5, "down", by=1), **more).passed
    assert _only(_rows(), ev.answers("very late", {"delay": 4}, "> 0.9"), **more).passed
    wrong = _only(_rows(), ev.answers("early", {"delay": -4}, "0.3 to 1"), **more)
    assert not wrong.passed
    assert wrong.reason.endswith(": early")
    assert _only(_rows(), ev.max_latency_ms(1000), **more).passed
    assert not _only(_rows(), ev.max_latency_ms(1e-7), **more).passed
    assert _only(_rows(), ev.max_size_mb(2), **more).passed
    assert not _only(_rows(), ev.max_size_mb(1.9), **more).passed


def test_what_cannot_be_tried_is_no_pass() -> None:
    for gate in (ev.invariant("tail"), ev.max_size_mb(1), ev.max_latency_ms(1)):
        assert _only(_rows(), gate).answer == "cannot tell"
    nothing = _only(_rows(), ev.invariant("tail"), subject=_subject(0))
    assert nothing.answer == "cannot tell"
    with pytest.raises(NotFound, match="tail"):
        _only(_rows(), ev.invariant("tial"), subject=_subject())


# --- other tasks --------------------------------------------------------------------------------


def test_a_regression_is_judged_by_its_own_metrics() -> None:
    random = np.random.default_rng(0)
    y = random.normal(50, 10, COUNT)
    rows = _rows(
        y=y, candidate_p=y + random.normal(0, 1, COUNT), champion_p=y + random.normal(0, 3, COUNT)
    )
    verdict = _judge(rows, ev.beats_champion("rmse"), ev.no_group_worse("carrier", "mae", by=0.1))
    assert verdict.passed
    assert verdict.holdout["slices"]["metric"] == "mae"
    assert "positives" not in verdict.holdout
    with pytest.raises(InvalidInput, match="no task has all"):
        _judge(rows, ev.beats_champion("rmse"), ev.beats_champion("auc"))


def test_many_classes_rankings_and_weights_are_judged_too() -> None:
    random = np.random.default_rng(0)
    y = random.integers(0, 3, COUNT).astype(float)
    better, worse = np.full((2, COUNT, 3), 0.2)
    better[np.arange(COUNT), y.astype(int)] += 0.4
    worse[np.arange(COUNT), random.integers(0, 3, COUNT)] += 0.4
    rows = _rows(y=y, candidate_p=better, champion_p=worse, weights=random.random(COUNT))
    assert _judge(rows, ev.beats_champion("f1_macro"), ev.beats_champion("log_loss")).passed
    flat = _rows(y=y, candidate_p=better[:, 0], champion_p=worse)
    with pytest.raises(InvalidInput, match="multiclass takes"):
        _judge(flat, ev.beats_champion("f1_macro"))
    ranked = _rows(
        y=y, candidate_p=y, champion_p=random.random(COUNT), query=np.arange(COUNT) // 10
    )
    assert _judge(ranked, ev.beats_champion("ndcg@5")).passed
    with pytest.raises(InvalidInput, match="ranked together"):
        _judge(_rows(y=y), ev.beats_champion("ndcg@5"))
    with pytest.raises(InvalidInput, match="weights: must be 0 or above"):
        _judge(_rows(weights=-np.ones(COUNT)), ev.beats_champion("brier"))


# --- candidate == champion, and the first -------------------------------------------------------


def _version(number: int, digest: str) -> ModelVersion:
    schema = Schema(tuple(Field(name, "float64") for name in NAMES))
    out = Schema((Field("score", "float64"),))
    return ModelVersion(
        name="m", version=number, digest=digest, files=(), flavor="f", tier="safe",
        signature=Signature(schema, out), created_at=START, updated_at=START,
    )  # fmt: skip


def test_the_champion_itself_is_nothing_to_promote_and_spends_no_hold_out() -> None:
    verdict = same_model(_version(3, "abc"), _version(2, "abc"), now=START)
    assert verdict is not None
    assert not verdict.passed
    assert verdict.reasons == ("the same model as version 2: nothing to promote",)
    assert "digest" not in verdict.holdout
    assert [one["digest"] for one in verdict.holdout["models"]] == ["abc", "abc"]
    assert same_model(_version(3, "abc"), _version(2, "abd"), now=START) is None
    assert same_model(_version(3, ""), _version(2, ""), now=START) is None
    assert "nothing to promote" in verdict_markdown(verdict)


def test_the_first_model_is_judged_by_what_can_be_judged() -> None:
    gates = [ev.beats_champion("brier"), ev.max_size_mb(1)]
    small = first_verdict(gates, _version(1, "a"), subject=lambda: _subject(0, 10), now=START)
    assert small.passed
    assert [result.gate.kind for result in small.results] == ["max_size_mb"]
    assert small.holdout["not_judged"] == ["beats_champion:brier"]
    large = first_verdict(gates, _version(1, "a"), subject=lambda: _subject(0), now=START)
    assert not large.passed
    asked: list[bool] = []
    first_verdict(
        gates[:1], _version(1, "a"), subject=lambda: asked.append(True) or _subject(), now=START
    )
    assert asked == []  # a model is not loaded for gates that cannot be judged
    timed = first_verdict(
        [ev.max_latency_ms(1000)], _version(1, "a"), subject=lambda: _subject(0), now=START
    )
    assert timed.passed


# --- definitions and how they read --------------------------------------------------------------


@pytest.mark.parametrize(
    ("gate", "path"),
    [
        (ev.not_worse("brier", by=-1), "by"),
        (ev.not_worse("brier", by=0.1, margins={"A": -1}), "margins"),
        (ev.calibrated(within=0), "by"),
        (ev.fair("carrier", "equality", by=0.1), "metric"),
        (ev.fair("carrier", "calibration@x", by=0.1), "metric"),
        (ev.fair("", "calibration", by=0.1), "group"),
        (ev.invariant(""), "field"),
        (ev.invariant("x", share=1), "share"),
        (ev.directional("x", 0, "up"), "change"),
        (ev.directional("x", 1, "sideways"), "effect"),  # type: ignore[arg-type]
        (ev.answers("x", {}, "0.4 to 0.2"), "cases"),
        (Gate(kind="functionality"), "cases"),
        (ev.max_latency_ms(0), "by"),
        (ev.max_size_mb(math.inf), "by"),
        (Gate(kind="beats_champion"), "metric"),
    ],
)
def test_a_gate_that_makes_no_sense_is_named(gate: Gate, path: str) -> None:
    assert [fault.path for fault in gate_faults([gate])] == [f"gates[0].{path}"]


def test_gates_of_different_tasks_do_not_go_together() -> None:
    [fault] = gate_faults([ev.beats_champion("rmse"), ev.calibrated(within=0.1)])
    assert "take probabilities, not a regression" in fault.message
    with pytest.raises(InvalidInput, match="no range of scores"):
        ev.answers("x", {}, "about 0.5")
    assert needs_subject([ev.invariant("x")])
    assert not needs_subject([ev.beats_champion("brier")])


def test_a_gate_survives_its_journey_as_json() -> None:
    for gate in (
        ev.answers("x", {"a": 1}, "> 0.5"),
        ev.not_worse("brier", by=0.1, group="g", margins={"A": 0.2}),
        ev.directional("x", -3, "down", share=0.1),
    ):
        assert msgspec.json.decode(msgspec.json.encode(gate), type=Gate) == gate
    old = b'{"kind":"beats_champion","metric":"brier","days":14}'
    assert msgspec.json.decode(old, type=Gate) == ev.beats_champion("brier", on="14d")


def test_a_verdict_reads_a_year_later() -> None:
    rows = _rows(noise=0.2, other=0.6)
    odd = np.where(rows.groups["carrier"] == "A", "A|one\nline", rows.groups["carrier"])
    rows = _rows(noise=0.2, other=0.6, groups={"carrier": odd})
    verdict = _judge(
        rows,
        ev.beats_champion("auc", spend=True),
        ev.no_group_worse("carrier", "brier", by=0.02),
        ev.fair("carrier", "calibration", by=0.2),
        ev.calibrated(within=0.1),
        ev.no_weak_slice("brier", by=0.001),
        ev.invariant("delay", by=0.01),
        subject=_subject(), uses=Uses(holdout=1, year=4), versions=[_version(2, "c" * 64)],
    )  # fmt: skip
    text = verdict_markdown(verdict)
    for told in (
        "# m/2: refused against version 1", "used 2 times", "attempt 5 within a year",
        "A\\|one line", "With 80% power", "By delong", "Rows that broke it", "`cccccccccccccccc`",
        verdict.holdout["digest"], "## Calibration of the candidate", "too small to tell: C",
    ):  # fmt: skip
        assert told in text, told
    assert "nan" not in text.replace("nance", "")
