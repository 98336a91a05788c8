"""Decisions as pure functions: ``decide(state, event) -> (state, actions)``.

The shells (pipelines, deployment, monitoring) perform what is decided here and write state and
event in one transaction. Nothing here reads a clock, a file or a table.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from everloop.errors import StateError

__all__ = [
    "ALERT_STATES",
    "RUN_STATES",
    "AlertState",
    "RolloutDecision",
    "RolloutObservation",
    "RolloutPlan",
    "RolloutState",
    "RunState",
    "decide_alert",
    "decide_rollout",
    "next_run_state",
]

RunState = Literal["queued", "running", "finished", "failed", "killed", "lost"]
RUN_STATES: tuple[str, ...] = RunState.__args__  # type: ignore[attr-defined]

# (state, event) -> state. "lost" is a running run whose owner's lease ran out; it can be resumed.
_RUN: dict[tuple[str, str], RunState] = {
    ("queued", "start"): "running",
    ("queued", "kill"): "killed",
    ("running", "finish"): "finished",
    ("running", "fail"): "failed",
    ("running", "kill"): "killed",
    ("running", "lose"): "lost",
    ("running", "resume"): "running",
    ("lost", "resume"): "running",
    ("failed", "resume"): "running",
    ("killed", "resume"): "running",
}


def next_run_state(state: str, event: str, story: str = "") -> RunState:
    """The state after `event`.

    Raises:
        StateError: If the move is not legal; `story` says what led here.
    """
    try:
        return _RUN[state, event]
    except KeyError:
        raise StateError(
            f"a run that is {state} cannot {event}",
            hint=story or "everloop run show RUN tells what happened",
        ) from None


class RolloutPlan(msgspec.Struct, frozen=True, omit_defaults=True):
    """How traffic moves to a new version.

    Attributes:
        steps: Per cent of the traffic that the candidate gets, ascending, ending with 100.
        every_s: Seconds that each step lasts at least.
        shadow_s: Seconds of shadow before the first step; 0 leaves it out.
        min_requests: Answers of the candidate needed before a step may end.
        p99_ms: Abort when the candidate's 99th percentile is above; 0 means no limit.
        error_rate: Abort when the candidate's share of errors is above; 1 means no limit.
    """

    steps: tuple[float, ...] = (5, 25, 100)
    every_s: float = 86_400
    shadow_s: float = 86_400
    min_requests: int = 0
    p99_ms: float = 0
    error_rate: float = 1


RolloutStage = Literal["shadow", "canary", "promoted", "aborted"]


class RolloutState(msgspec.Struct, frozen=True):
    """Where a rollout stands: the stage, the index into ``plan.steps`` and since when (seconds)."""

    stage: RolloutStage
    step: int
    since_s: float


class RolloutObservation(msgspec.Struct, frozen=True):
    """What was seen of the candidate since the step began."""

    now_s: float
    requests: int = 0
    errors: int = 0
    p99_ms: float = 0


class RolloutDecision(msgspec.Struct, frozen=True):
    """The state to take, the candidate's share of the traffic in per cent, and why."""

    state: RolloutState
    weight: float
    action: Literal["wait", "advance", "promote", "abort"]
    reason: str


def decide_rollout(
    plan: RolloutPlan, state: RolloutState, seen: RolloutObservation
) -> RolloutDecision:
    """Decide the next move. An objective that is broken takes the weight to 0 at once."""
    if state.stage in ("promoted", "aborted"):
        weight = 100.0 if state.stage == "promoted" else 0.0
        return RolloutDecision(state, weight, "wait", f"already {state.stage}")
    broken = _broken_objective(plan, seen)
    if broken:
        aborted = RolloutState("aborted", state.step, seen.now_s)
        return RolloutDecision(aborted, 0.0, "abort", broken)
    lasted, wanted = seen.now_s - state.since_s, plan.every_s
    weight = plan.steps[state.step]
    if state.stage == "shadow":
        wanted, weight = plan.shadow_s, 0.0
    if lasted < wanted:
        return RolloutDecision(state, weight, "wait", f"{wanted - lasted:.0f} s to go")
    if seen.requests < plan.min_requests:
        reason = f"{seen.requests} of {plan.min_requests} requests seen"
        return RolloutDecision(state, weight, "wait", reason)
    step = 0 if state.stage == "shadow" else state.step + 1
    if plan.steps[step] >= 100:
        done = RolloutState("promoted", step, seen.now_s)
        return RolloutDecision(done, 100.0, "promote", "every objective held")
    moved = RolloutState("canary", step, seen.now_s)
    return RolloutDecision(moved, plan.steps[step], "advance", "every objective held")


def _broken_objective(plan: RolloutPlan, seen: RolloutObservation) -> str:
    if seen.requests and seen.errors / seen.requests > plan.error_rate:
        return f"error rate {seen.errors / seen.requests:.4f} above {plan.error_rate}"
    if plan.p99_ms and seen.requests and seen.p99_ms > plan.p99_ms:
        return f"p99 {seen.p99_ms:.1f} ms above {plan.p99_ms} ms"
    return ""


AlertState = Literal["ok", "firing"]
ALERT_STATES: tuple[str, ...] = AlertState.__args__  # type: ignore[attr-defined]


def decide_alert(
    state: AlertState, breaches: tuple[bool, ...], *, fire: tuple[int, int], clear: tuple[int, int]
) -> tuple[AlertState, Literal["", "fire", "clear"]]:
    """Alert with hysteresis.

    Args:
        state: The present state.
        breaches: Whether each mature window broke the bound, oldest first.
        fire: ``(k, m)``: fires when at least k of the last m windows broke it.
        clear: ``(k, m)``: clears when at most k of the last m windows broke it.

    Returns:
        The next state and the action; with fewer than m windows nothing changes.
    """
    if state == "ok":
        k, m = fire
        if len(breaches) >= m and sum(breaches[-m:]) >= k:
            return "firing", "fire"
        return state, ""
    k, m = clear
    if len(breaches) >= m and sum(breaches[-m:]) <= k:
        return "ok", "clear"
    return state, ""
