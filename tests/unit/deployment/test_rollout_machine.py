from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from everloop.core.machines import (
    RolloutDecision,
    RolloutObservation,
    RolloutPlan,
    RolloutState,
    _at_least,
    begin_rollout,
    decide_rollout,
)
from everloop.errors import InvalidInput

DAY = 86_400.0
PLAN = RolloutPlan((5, 25, 100), every_s=DAY, shadow_s=DAY, p99_ms=50, error_rate=0.001)

plans = st.builds(
    lambda steps, every, shadow, few: RolloutPlan(
        (*sorted(steps), 100), every, shadow, few, p99_ms=50, error_rate=0.01
    ),
    st.sets(st.integers(1, 99), max_size=5),
    st.sampled_from([0.0, 10.0, DAY]),
    st.sampled_from([0.0, 10.0]),
    st.sampled_from([0, 50]),
)
observations = st.tuples(
    st.floats(-10, 2 * DAY), st.integers(0, 500), st.integers(0, 5), st.floats(0, 80)
)


def _see(plan: RolloutPlan, state: RolloutState, **seen: float) -> RolloutDecision:
    return decide_rollout(plan, state, RolloutObservation(**seen))  # type: ignore[arg-type]


@given(plans, st.lists(observations, max_size=30))
def test_the_weight_only_grows_step_by_step_or_falls_to_nothing(
    plan: RolloutPlan, seen: list[tuple[float, int, int, float]]
) -> None:
    decision = begin_rollout(plan, 0.0)
    weights = (0.0, *plan.steps) if plan.shadow_s else plan.steps
    place, now = 0, 0.0
    assert decision.weight == weights[0]
    for later, requests, errors, p99 in seen:
        now += later
        before = decision
        observed = RolloutObservation(now, requests, min(errors, requests), p99)
        decision = decide_rollout(plan, before.state, observed)
        if before.state.stage in ("promoted", "aborted"):
            assert decision.action == "wait"
            assert (decision.state, decision.weight) == (before.state, before.weight)
        elif decision.action == "abort":
            assert (decision.weight, decision.state.stage) == (0.0, "aborted")
        elif decision.action == "wait":
            assert (decision.state, decision.weight) == (before.state, before.weight)
        else:
            place += 1
            assert decision.weight == weights[place]
            lasted = now - before.state.since_s
            assert lasted >= (plan.shadow_s if before.state.stage == "shadow" else plan.every_s)
            assert requests >= plan.min_requests
            assert (decision.weight == 100) == (decision.action == "promote")
            assert decision.state.since_s == now


def test_a_long_absence_moves_one_step_only() -> None:
    state = begin_rollout(PLAN, 0).state
    weights = []
    for day in (100, 200, 300):
        decision = _see(PLAN, state, now_s=day * DAY, requests=1000)
        state = decision.state
        weights.append(decision.weight)
    assert weights == [5, 25, 100]
    assert state.stage == "promoted"


def test_a_broken_objective_aborts_within_the_step() -> None:
    state = RolloutState("canary", 1, 0)
    decision = _see(PLAN, state, now_s=1, requests=200, errors=4)
    assert (decision.action, decision.weight, decision.state.stage) == ("abort", 0, "aborted")
    assert "error rate 0.0200 above 0.001" in decision.reason
    slow = _see(PLAN, state, now_s=1, requests=100, p99_ms=50.1)
    assert (slow.action, slow.weight) == ("abort", 0)


def test_one_unlucky_answer_holds_the_step_and_does_not_abort_it() -> None:
    state = RolloutState("canary", 0, 0)
    for seen in ({"requests": 100, "errors": 1}, {"requests": 99, "p99_ms": 80.0}):
        decision = _see(PLAN, state, now_s=2 * DAY, **seen)
        assert (decision.action, decision.weight) == ("wait", 5)
        assert "too few answers to tell" in decision.reason


def test_no_error_is_allowed_where_the_limit_is_nothing() -> None:
    plan = msgspec.structs.replace(PLAN, error_rate=0)
    state = RolloutState("canary", 0, 0)
    assert _see(plan, state, now_s=1, requests=1000, errors=1).action == "abort"
    assert _see(plan, state, now_s=1, requests=1000, errors=0).action == "wait"


def test_without_limits_nothing_aborts() -> None:
    plan = RolloutPlan((50, 100), every_s=10, shadow_s=0)
    state = begin_rollout(plan, 0).state
    decision = _see(plan, state, now_s=11, requests=10, errors=10, p99_ms=1e9)
    assert decision.action == "promote"


def test_a_plan_of_one_step_without_shadow_promotes_at_once() -> None:
    decision = begin_rollout(RolloutPlan((100,), shadow_s=0), 5)
    assert (decision.action, decision.weight) == ("promote", 100)
    assert decision.state == RolloutState("promoted", 0, 5)


def test_a_clock_that_steps_back_waits() -> None:
    assert _see(PLAN, RolloutState("canary", 0, 100), now_s=0, requests=10).action == "wait"


def test_a_wrong_plan_is_refused_with_every_fault() -> None:
    with pytest.raises(InvalidInput) as refused:
        RolloutPlan((25, 5), every_s=-1, shadow_s=math.nan, p99_ms=math.inf, error_rate=2)
    assert [fault.path for fault in refused.value.faults] == [
        "steps", "steps", "every_s", "shadow_s", "p99_ms", "error_rate"
    ]  # fmt: skip
    for steps in ((), (0, 100), (5, 5, 100), (5, 200)):
        with pytest.raises(InvalidInput):
            RolloutPlan(steps)


@given(st.integers(1, 2000), st.floats(0.0001, 0.9), st.data())
def test_the_tail_is_the_binomial_one(trials: int, rate: float, data: st.DataObject) -> None:
    low = min(trials, int(rate * trials) + 1)  # the machine asks above the mean only
    count = data.draw(st.integers(low, trials))
    assert _at_least(count, trials, rate) == pytest.approx(
        binom.sf(count - 1, trials, rate), rel=1e-6, abs=1e-12
    )
