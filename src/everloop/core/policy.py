"""Charters, triggers and policies: why a loop exists and what keeps it calm."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from everloop.core.gate import Gate
from everloop.core.machines import RolloutPlan
from everloop.core.monitor import Monitor

__all__ = ["Charter", "Firing", "FiringOutcome", "LoopSpec", "ServiceLevel", "Trigger"]

FiringOutcome = Literal[
    "queued", "running", "done", "failed", "cooldown", "budget", "busy", "paused", "guarded", "data"
]


class ServiceLevel(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A promise with a number: ``prediction``, ``retraining``, ``deployment`` or ``renewal``."""

    name: Literal["prediction", "retraining", "deployment", "renewal"]
    at_most_s: float
    description: str = ""


class Charter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a project is for and who answers for it."""

    problem: str
    value: str
    owner: str
    success: str = ""
    service_levels: tuple[ServiceLevel, ...] = ()


class Trigger(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Event filter -> start the loop's pipeline.

    Attributes:
        on: ``alert`` (value: monitor name), ``schedule`` (value: cron, UTC) or ``data``
            (value: dataset name). A loop fires by itself for its ``first`` model, and by ``hand``.
    """

    on: Literal["alert", "schedule", "data", "first", "hand"]
    value: str


class LoopSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One production loop as its user declared it.

    Attributes:
        name: Of the loop, its deployment and its model.
        pipeline: ``path/to/file.py:function``; run by whoever supervises the loop.
        cooldown_s: Shortest time between two retrainings; doubles after each refusal in a row, up
            to `cooldown_most_s`.
        new_share: Labels that came since the champion's training data and that a candidate could
            learn from, as a share of the rows that the champion was trained on: with fewer it is
            not worth a retraining, for the gate could hardly tell the two models apart.
        budget: Most retrainings within `budget_s`.
    """

    name: str
    owner: str
    pipeline: str
    charter: Charter
    monitors: tuple[Monitor, ...] = ()
    gates: tuple[Gate, ...] = ()
    rollout: RolloutPlan = RolloutPlan()
    triggers: tuple[Trigger, ...] = ()
    cooldown_s: float = 7 * 86_400
    cooldown_most_s: float = 56 * 86_400
    new_share: float = 0.0
    budget: int = 4
    budget_s: float = 30 * 86_400
    paused: bool = False
    created_at: datetime
    updated_at: datetime


class Firing(msgspec.Struct, frozen=True, kw_only=True):
    """One firing of a trigger; unique by (loop, key), so that an event fires once.

    Attributes:
        outcome: ``queued`` work, or why not: ``cooldown``, ``budget``, ``busy``, ``paused``,
            ``guarded`` (the loop's own output led here),
            ``data`` (too few new labels); ``done`` and ``failed`` after the work.
    """

    id: str
    loop: str
    key: str
    cause: str
    outcome: FiringOutcome
    run_id: str = ""
    reason: str = ""
    scheduled_for: datetime
    created_at: datetime
    updated_at: datetime
