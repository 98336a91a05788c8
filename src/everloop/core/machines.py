"""Decisions as pure functions: ``decide(state, event) -> (state, actions)``.

The shells (pipelines, registry, deployment, monitoring) perform what is decided here and write
state and event in one transaction. Nothing here reads a clock, a file or a table.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from everloop.errors import Fault, InvalidInput, StateError

__all__ = [
    "ALERT_STATES",
    "RUN_STATES",
    "AlertState",
    "RolloutDecision",
    "RolloutObservation",
    "RolloutPlan",
    "RolloutState",
    "RunState",
    "VersionEvent",
    "VersionState",
    "begin_rollout",
    "decide_alert",
    "decide_promise",
    "decide_rollout",
    "next_run_state",
    "next_version_state",
]

RunState = Literal["queued", "running", "waiting", "finished", "failed", "killed", "lost"]
RUN_STATES: tuple[str, ...] = RunState.__args__  # type: ignore[attr-defined]

# (state, event) -> state. "lost" is a running run whose owner's lease ran out; it can be resumed.
# "waiting" is for an approval: it has no owner, and is resumed when it is answered.
_RUN: dict[tuple[str, str], RunState] = {
    ("queued", "start"): "running",
    ("queued", "kill"): "killed",
    ("running", "finish"): "finished",
    ("running", "fail"): "failed",
    ("running", "kill"): "killed",
    ("running", "lose"): "lost",
    ("running", "wait"): "waiting",
    ("waiting", "resume"): "running",
    ("waiting", "fail"): "failed",
    ("waiting", "kill"): "killed",
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


VersionState = Literal["draft", "candidate", "live", "archived"]
VersionEvent = Literal["nominate", "promote", "archive", "restore"]

# A live version becomes a candidate where another deployment tries it anew. Only what was archived
# returns to draft: to be judged again it starts from the beginning.
_VERSION: dict[tuple[str, str], VersionState] = {
    ("draft", "nominate"): "candidate",
    ("draft", "promote"): "live",
    ("draft", "archive"): "archived",
    ("candidate", "promote"): "live",
    ("candidate", "archive"): "archived",
    ("live", "nominate"): "candidate",
    ("live", "archive"): "archived",
    ("archived", "nominate"): "candidate",
    ("archived", "promote"): "live",
    ("archived", "restore"): "draft",
}
_TOWARDS: dict[str, VersionEvent] = {
    "draft": "restore",
    "candidate": "nominate",
    "live": "promote",
    "archived": "archive",
}


def next_version_state(state: str, wanted: str, story: str = "") -> VersionState:
    """The state of a model version that was `state` and is to be `wanted`.

    Raises:
        StateError: If the move is not legal; `story` says what led here.
    """
    event = _TOWARDS.get(wanted)
    after = _VERSION.get((state, event or ""))
    if after is None:
        legal = [to for (start, _), to in _VERSION.items() if start == state]
        raise StateError(
            f"{story or f'a version that is {state}'} and cannot become {wanted}",
            hint=f"it can become {' or '.join(legal)}",
        )
    return after


class RolloutPlan(msgspec.Struct, frozen=True, omit_defaults=True):
    """How traffic moves to a new version.

    Attributes:
        steps: Per cent of the traffic that the candidate gets, ascending, ending with 100: reaching
            the last one is the promotion.
        every_s: Seconds that each step lasts at least.
        shadow_s: Seconds of shadow before the first step; 0 leaves it out.
        min_requests: Answers of the candidate needed before a step may end.
        p99_ms: Abort when the candidate's 99th percentile is above; 0 means no limit.
        error_rate: Abort when the candidate's share of errors is above; 1 means no limit.

    Raises:
        InvalidInput: With everything that is wrong with the plan.
    """

    steps: tuple[float, ...] = (5, 25, 100)
    every_s: float = 86_400
    shadow_s: float = 86_400
    min_requests: int = 0
    p99_ms: float = 0
    error_rate: float = 1

    def __post_init__(self) -> None:
        faults = []
        if not self.steps or self.steps[-1] != 100:
            faults.append(Fault("steps", "must end with 100"))
        rising = all(a < b for a, b in zip(self.steps, self.steps[1:], strict=False))
        if not rising or not all(step > 0 for step in self.steps):
            faults.append(Fault("steps", "must be above 0 and ascending"))
        for name in ("every_s", "shadow_s", "min_requests", "p99_ms"):
            value = getattr(self, name)
            if not (0 <= value < math.inf):
                faults.append(Fault(name, f"must be 0 or above, got {value}"))
        if not 0 <= self.error_rate <= 1:
            faults.append(Fault("error_rate", f"must be within 0 and 1, got {self.error_rate}"))
        if faults:
            raise InvalidInput("the rollout plan is wrong", faults)


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


def begin_rollout(plan: RolloutPlan, now_s: float) -> RolloutDecision:
    """The state in which a rollout starts: shadow, the first step, or promoted if that is all."""
    if plan.shadow_s > 0:
        return RolloutDecision(RolloutState("shadow", 0, now_s), 0.0, "advance", "shadow first")
    return _take_step(plan, 0, now_s, "no shadow asked for")


def decide_rollout(
    plan: RolloutPlan, state: RolloutState, seen: RolloutObservation
) -> RolloutDecision:
    """Decide the next move: at most one step, however long ago the last decision was.

    An objective that is broken takes the weight to 0 at once, also within a step. The error rate is
    broken when so many errors would come by chance in less than one of 1,000 candidates that are
    just within the limit; a p99 is judged from 100 answers on, as that of fewer is their slowest.
    What is above its limit but not yet broken in this sense holds the step until more is seen.
    """
    if state.stage in ("promoted", "aborted"):
        weight = 100.0 if state.stage == "promoted" else 0.0
        return RolloutDecision(state, weight, "wait", f"already {state.stage}")
    verdict, why = _judge_objectives(plan, seen)
    if verdict == "broken":
        aborted = RolloutState("aborted", state.step, seen.now_s)
        return RolloutDecision(aborted, 0.0, "abort", why)
    lasted, wanted = seen.now_s - state.since_s, plan.every_s
    weight = plan.steps[state.step]
    if state.stage == "shadow":
        wanted, weight = plan.shadow_s, 0.0
    if lasted < wanted:
        return RolloutDecision(state, weight, "wait", f"{wanted - lasted:.0f} s to go")
    if seen.requests < plan.min_requests:
        reason = f"{seen.requests} of {plan.min_requests} requests seen"
        return RolloutDecision(state, weight, "wait", reason)
    if verdict == "in doubt":
        return RolloutDecision(state, weight, "wait", f"{why}, too few answers to tell")
    step = 0 if state.stage == "shadow" else state.step + 1
    return _take_step(plan, step, seen.now_s, "every objective held")


def _take_step(plan: RolloutPlan, step: int, now_s: float, reason: str) -> RolloutDecision:
    if plan.steps[step] >= 100:
        return RolloutDecision(RolloutState("promoted", step, now_s), 100.0, "promote", reason)
    moved = RolloutState("canary", step, now_s)
    return RolloutDecision(moved, plan.steps[step], "advance", reason)


_P99_MIN_REQUESTS = 100
_ERROR_CHANCE = 0.001


def _judge_objectives(
    plan: RolloutPlan, seen: RolloutObservation
) -> tuple[Literal["held", "in doubt", "broken"], str]:
    doubt = ""
    if seen.errors > plan.error_rate * seen.requests:
        rate = seen.errors / max(seen.requests, 1)
        doubt = f"error rate {rate:.4f} above {plan.error_rate} ({seen.errors} errors)"
        if _at_least(seen.errors, seen.requests, plan.error_rate) < _ERROR_CHANCE:
            return "broken", doubt
    if plan.p99_ms and seen.requests and seen.p99_ms > plan.p99_ms:
        doubt = f"p99 {seen.p99_ms:.1f} ms above {plan.p99_ms} ms"
        if seen.requests >= _P99_MIN_REQUESTS:
            return "broken", doubt
    return ("in doubt", doubt) if doubt else ("held", "")


def _at_least(count: int, trials: int, rate: float) -> float:
    """The chance of `count` or more of `trials`, each with chance `rate` (binomial tail)."""
    if rate <= 0 or count > trials:
        return 0.0
    if rate >= 1:
        return 1.0
    total = 0.0
    for hits in range(count, trials + 1):
        ways = math.lgamma(trials + 1) - math.lgamma(hits + 1) - math.lgamma(trials - hits + 1)
        term = math.exp(ways + hits * math.log(rate) + (trials - hits) * math.log1p(-rate))
        total += term
        # Above the mean the terms fall at least geometrically; what is left cannot matter.
        if term < total * 1e-12:
            break
    return total


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


#: What keeps a promise again keeps it with a tenth to spare.
_SPARE = 0.9


def decide_promise(
    state: AlertState, value: float | None, at_most: float, *, is_new: bool
) -> tuple[AlertState, Literal["", "fire", "clear"]]:
    """Alert of a promise, with hysteresis.

    Args:
        state: The present state.
        value: What is measured now; None where there is nothing that could break the promise.
        at_most: What is promised, in the same unit.
        is_new: Whether the value is of another fact than the one that broke it, or the promise is
            another. The same fact does not mend what it broke, also where the clock steps back.

    Returns:
        The next state and the action.
    """
    if state == "ok":
        broken = value is not None and value > at_most
        return ("firing", "fire") if broken else (state, "")
    if value is None or (is_new and value <= _SPARE * at_most):
        return "ok", "clear"
    return state, ""
