"""What keeps a loop calm: whether a retraining may start now. Pure; the service records."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import msgspec
from cronsim import CronSim

from everloop.core.events import Event
from everloop.core.policy import FiringOutcome, LoopSpec

__all__ = [
    "Obstacle",
    "Past",
    "cooldown_s",
    "latest_tick",
    "obstacle",
    "own_depth",
]


class Past(msgspec.Struct, frozen=True):
    """What a loop has done so far.

    Attributes:
        working: Id of a firing that is queued or running, or empty.
        rollout: Id of a rollout that is open, or empty.
        last_at: When it last took a retraining up, or None.
        spent: How many retrainings lie within the budget's time.
        setbacks: Refusals, failures and aborted rollouts since the last promotion.
        new_labels: Labels since the champion's training data that a candidate could learn from.
        trained_rows: Rows that the champion was trained on; 0 where nobody said.
    """

    working: str = ""
    rollout: str = ""
    last_at: datetime | None = None
    spent: int = 0
    setbacks: int = 0
    new_labels: int = 0
    trained_rows: int = 0


class Obstacle(msgspec.Struct, frozen=True):
    """Why not now."""

    outcome: FiringOutcome
    reason: str


def cooldown_s(spec: LoopSpec, setbacks: int) -> float:
    """Shortest time to the next retraining: doubled by each setback in a row, up to a limit."""
    most = max(spec.cooldown_most_s, spec.cooldown_s)  # a loop must not fall asleep
    return float(min(spec.cooldown_s * 2 ** min(setbacks, 32), most))


def obstacle(spec: LoopSpec, past: Past, now: datetime) -> Obstacle | None:
    """What keeps the loop from retraining at `now`, or None."""
    if spec.paused:
        return Obstacle("paused", "the loop is paused")
    if past.working:
        return Obstacle("busy", f"firing {past.working} is not done yet")
    if past.rollout:
        return Obstacle("busy", f"rollout {past.rollout} is open")
    if past.last_at is not None:
        ends = past.last_at + timedelta(seconds=cooldown_s(spec, past.setbacks))
        if now < ends:
            after = f" after {past.setbacks} without promotion" if past.setbacks else ""
            return Obstacle("cooldown", f"cools down until {ends:%Y-%m-%d %H:%M} UTC{after}")
    if past.spent >= spec.budget:
        days = spec.budget_s / 86_400
        return Obstacle("budget", f"{past.spent} of {spec.budget} in {days:g} days are used up")
    wanted = spec.new_share * past.trained_rows
    if past.new_labels < wanted:
        return Obstacle("data", f"{past.new_labels} new labels of {wanted:.0f} that it takes")
    return None


def latest_tick(cron: str, after: datetime, now: datetime) -> datetime | None:
    """The latest time of `cron` (UTC) within ``(after, now]``; of missed times only that one."""
    # A whole second on, for the iterator leaves out the time that it starts at.
    begin = now.replace(microsecond=0) + timedelta(seconds=1)
    found: datetime = next(CronSim(cron, begin, reverse=True), after)
    return found.astimezone(UTC) if found > after else None


def own_depth(loop: str, causes: Iterable[Event]) -> int:
    """How many firings of `loop` stand in a chain of causes."""
    return sum(e.kind == "trigger.Fired" and e.body.get("loop") == loop for e in causes)
