"""What keeps loops and automations calm: whether one may act now. Pure; the service records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Protocol

import msgspec

from everloop.core.events import Event
from everloop.core.policy import FiringOutcome

__all__ = ["Calm", "Obstacle", "Past", "cooldown_s", "free_at", "obstacle", "own_depth"]


class Calm(Protocol):
    """The rules of a loop or an automation."""

    @property
    def paused(self) -> bool: ...
    @property
    def cooldown_s(self) -> float: ...
    @property
    def cooldown_most_s(self) -> float: ...
    @property
    def new_share(self) -> float: ...
    @property
    def budget(self) -> int: ...
    @property
    def budget_s(self) -> float: ...


class Past(msgspec.Struct, frozen=True):
    """What a loop or an automation has done so far.

    Attributes:
        working: Id of a firing that is queued, running or waiting, or empty.
        rollout: Id of a rollout that is open, or empty.
        last_at: When it last took work up, or None.
        spent: How often it did within the budget's time.
        frees_at: When the budget's time ends for the oldest of those, or None.
        setbacks: Refusals, failures and aborted rollouts since the last promotion.
        new_labels: Labels since the champion's training data that a candidate could learn from.
        trained_rows: Rows that the champion was trained on; 0 where nobody said.
    """

    working: str = ""
    rollout: str = ""
    last_at: datetime | None = None
    spent: int = 0
    frees_at: datetime | None = None
    setbacks: int = 0
    new_labels: int = 0
    trained_rows: int = 0


class Obstacle(msgspec.Struct, frozen=True):
    """Why not now; `until` is when it ends, where the time alone ends it."""

    outcome: FiringOutcome
    reason: str
    until: datetime | None = None


def cooldown_s(rules: Calm, setbacks: int) -> float:
    """Shortest time to the next firing: doubled by each setback in a row, up to a limit."""
    most = max(rules.cooldown_most_s, rules.cooldown_s)  # a loop must not fall asleep
    return float(min(rules.cooldown_s * 2 ** min(setbacks, 32), most))


def obstacle(rules: Calm, past: Past, now: datetime) -> Obstacle | None:
    """What keeps a loop or an automation from acting at `now`, or None."""
    if rules.paused:
        return Obstacle("paused", "it is paused")
    if past.working:
        return Obstacle("busy", f"firing {past.working} is not done yet")
    if past.rollout:
        return Obstacle("busy", f"rollout {past.rollout} is open")
    if past.last_at is not None:
        ends = past.last_at + timedelta(seconds=cooldown_s(rules, past.setbacks))
        if now < ends:
            after = f" after {past.setbacks} without promotion" if past.setbacks else ""
            told = f"cools down until {ends:%Y-%m-%d %H:%M} UTC{after}"
            return Obstacle("cooldown", told, ends)
    if rules.budget and past.spent >= rules.budget:
        days = rules.budget_s / 86_400
        told = f"{past.spent} of {rules.budget} in {days:.3g} days are used up"
        return Obstacle("budget", told, past.frees_at)
    wanted = rules.new_share * past.trained_rows
    if past.new_labels < wanted:
        return Obstacle("data", f"{past.new_labels} new labels of {wanted:.0f} that it takes")
    return None


def free_at(rules: Calm, times: Sequence[datetime], at: datetime) -> datetime:
    """When an automation may act, `at` the earliest, after it did at `times`.

    What a loop does not do, for whether it is still worth while is judged anew then, an automation
    does later: nothing that happened is lost.
    """
    while True:
        since = at - timedelta(seconds=rules.budget_s)
        recent = [time for time in times if time > since]
        past = Past(
            last_at=max(times, default=None),
            spent=len(recent),
            frees_at=min(recent) + timedelta(seconds=rules.budget_s) if recent else None,
        )
        held = obstacle(rules, past, at)
        if held is None or held.until is None:
            return at
        at = held.until


def own_depth(name: str, causes: Iterable[Event]) -> int:
    """How many firings of `name` stand in a chain of causes."""
    return sum(e.kind == "trigger.Fired" and e.body.get("loop") == name for e in causes)
