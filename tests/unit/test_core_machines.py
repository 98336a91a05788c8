"""State machines: legal moves, and promises that hold for any sequence."""

from __future__ import annotations

import contextlib
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everloop.core.machines import (
    RUN_STATES,
    RolloutObservation,
    RolloutPlan,
    RolloutState,
    VersionState,
    decide_alert,
    decide_rollout,
    next_run_state,
    next_version_state,
)
from everloop.errors import StateError

EVENTS = ["start", "finish", "fail", "kill", "lose", "resume", "wait"]
PLAN = RolloutPlan(steps=(5, 25, 100), every_s=100, shadow_s=50, min_requests=10, error_rate=0.1)


def shadow(plan: RolloutPlan = PLAN) -> RolloutState:
    return RolloutState("shadow", 0, 0)


@pytest.mark.parametrize(
    ("state", "event", "then"),
    [
        ("queued", "start", "running"),
        ("running", "finish", "finished"),
        ("running", "lose", "lost"),
        ("lost", "resume", "running"),
        ("failed", "resume", "running"),
        ("killed", "resume", "running"),
        ("running", "wait", "waiting"),
        ("waiting", "resume", "running"),
        ("waiting", "fail", "failed"),
        ("waiting", "kill", "killed"),
    ],
)
def test_run_moves(state: str, event: str, then: str) -> None:
    assert next_run_state(state, event) == then


def test_finished_run_never_moves() -> None:
    for event in EVENTS:
        with pytest.raises(StateError, match="a run that is finished cannot"):
            next_run_state("finished", event)


@given(st.lists(st.sampled_from(EVENTS)))
def test_run_is_always_in_a_known_state(events: list[str]) -> None:
    state: str = "queued"
    for event in events:
        with contextlib.suppress(StateError):
            state = next_run_state(state, event)
        assert state in RUN_STATES


def test_illegal_move_tells_the_story() -> None:
    with pytest.raises(StateError) as got:
        next_run_state("queued", "finish", "it was never started")
    assert got.value.hint == "it was never started"


def test_rollout_goes_by_its_steps() -> None:
    state, seen = shadow(), []
    for now in (49, 50, 149, 150, 250, 300):
        decision = decide_rollout(PLAN, state, RolloutObservation(now, requests=10))
        seen.append((decision.action, decision.state.stage, decision.weight))
        state = decision.state
    assert seen == [
        ("wait", "shadow", 0),
        ("advance", "canary", 5),
        ("wait", "canary", 5),
        ("advance", "canary", 25),
        ("promote", "promoted", 100),
        ("wait", "promoted", 100),
    ]


def test_rollout_waits_for_requests() -> None:
    decision = decide_rollout(PLAN, shadow(), RolloutObservation(1000, requests=9))
    assert (decision.action, decision.reason) == ("wait", "9 of 10 requests seen")


@pytest.mark.parametrize(
    ("plan", "seen", "reason"),
    [
        (PLAN, RolloutObservation(1, requests=10, errors=6), "error rate"),
        (RolloutPlan(p99_ms=50), RolloutObservation(1, requests=100, p99_ms=51), "p99"),
    ],
)
def test_broken_objective_aborts_at_once(
    plan: RolloutPlan, seen: RolloutObservation, reason: str
) -> None:
    decision = decide_rollout(plan, RolloutState("canary", 1, 0), seen)
    assert (decision.action, decision.state.stage, decision.weight) == ("abort", "aborted", 0)
    assert decision.reason.startswith(reason)
    again = decide_rollout(plan, decision.state, RolloutObservation(9999, requests=99))
    assert (again.action, again.weight) == ("wait", 0)


@given(
    st.sets(st.floats(1, 99), max_size=4).map(lambda s: (*sorted(s), 100.0)),
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 20), st.integers(0, 3)), max_size=20),
)
def test_weight_only_grows_until_an_abort(
    steps: tuple[float, ...], story: list[tuple[int, int, int]]
) -> None:
    plan = RolloutPlan(steps=steps, every_s=100, shadow_s=50, error_rate=0.5)
    state, weight, now = shadow(), 0.0, 0
    for passed, requests, errors in story:
        now += passed
        seen = RolloutObservation(now, requests=requests, errors=min(errors, requests))
        decision = decide_rollout(plan, state, seen)
        if decision.state.stage == "aborted":
            assert decision.weight == 0
            return
        assert decision.weight >= weight
        state, weight = decision.state, decision.weight


@given(st.lists(st.booleans(), max_size=30))
def test_alert_fires_and_clears_in_turn(breaches: list[bool]) -> None:
    state, actions = "ok", []
    for n in range(len(breaches)):
        state, action = decide_alert(
            state,
            tuple(breaches[: n + 1]),
            fire=(3, 5),
            clear=(1, 5),  # type: ignore[arg-type]
        )
        if action:
            actions.append(action)
    assert actions == ["fire", "clear"] * (len(actions) // 2) + ["fire"] * (len(actions) % 2)


def test_alert_keeps_its_state_between_the_bounds() -> None:
    two_of_five = (True, True, False, False, False)
    assert decide_alert("ok", two_of_five, fire=(3, 5), clear=(1, 5)) == ("ok", "")
    assert decide_alert("firing", two_of_five, fire=(3, 5), clear=(1, 5)) == ("firing", "")
    assert decide_alert("ok", (True,) * 4, fire=(3, 5), clear=(1, 5)) == ("ok", "")


VERSION_STATES = get_args(VersionState)


@pytest.mark.parametrize("start", VERSION_STATES)
@pytest.mark.parametrize("wanted", [*VERSION_STATES, "gone"])
def test_a_version_moves_as_the_table_says(start: str, wanted: str) -> None:
    legal = {
        "draft": {"candidate", "live", "archived"},
        "candidate": {"live", "archived"},
        "live": {"candidate", "archived"},
        "archived": {"draft", "candidate", "live"},
    }
    if wanted in legal[start]:
        assert next_version_state(start, wanted) == wanted
        return
    with pytest.raises(StateError, match=f"m/1 is {start} and cannot become {wanted}") as refused:
        next_version_state(start, wanted, f"m/1 is {start}")
    assert all(state in refused.value.hint for state in legal[start])
