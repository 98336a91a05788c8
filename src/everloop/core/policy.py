"""Charters, triggers and policies: why a loop exists and what keeps it calm."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import msgspec

from everloop.core.gate import Gate
from everloop.core.machines import RolloutPlan
from everloop.core.monitor import Monitor

__all__ = [
    "Automation",
    "Charter",
    "Firing",
    "FiringAction",
    "FiringOutcome",
    "LevelName",
    "LoopSpec",
    "MeasuredLevel",
    "Missed",
    "Notify",
    "RunPipeline",
    "ServiceLevel",
    "Trigger",
    "TriggerKind",
]

FiringOutcome = Literal[
    "queued", "running", "waiting", "done", "failed",
    "cooldown", "budget", "busy", "paused", "guarded", "data",
]  # fmt: skip
FiringAction = Literal["train", "run", "notify", "resume"]
TriggerKind = Literal[
    "alert", "schedule", "data", "registered", "alias", "gate_failed", "rolled_back",
    "run_failed", "webhook", "files", "first", "hand",
]  # fmt: skip
Missed = Literal["skip", "latest", "all"]
LevelName = Literal["prediction", "retraining", "deployment", "renewal"]


class ServiceLevel(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A promise with a number: ``prediction``, ``retraining``, ``deployment`` or ``renewal``."""

    name: LevelName
    at_most_s: float
    description: str = ""

    @property
    def alert(self) -> str:
        """What alerts of it are called, beside those of monitors."""
        return f"sla:{self.name}"


class MeasuredLevel(msgspec.Struct, frozen=True, kw_only=True):
    """A promise beside what was measured.

    Attributes:
        measured_s: Seconds, or None where nothing was measured yet.
        samples: How many measurements that rests on.
        kept: Whether the promise is kept; None where nothing was measured.
        as_of: Up to when: the time of the last answer, or now before the first one.
        of_answers: Whether there was an answer.
    """

    name: LevelName
    at_most_s: float
    measured_s: float | None
    samples: int
    kept: bool | None
    as_of: datetime
    of_answers: bool
    description: str = ""


class Charter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a project is for and who answers for it."""

    problem: str
    value: str
    owner: str
    success: str = ""
    service_levels: tuple[ServiceLevel, ...] = ()


class Trigger(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Event filter -> action.

    Attributes:
        on: What happened. A loop fires by itself for its ``first`` model, and by ``hand``.
        value: Of what: a monitor (or ``deployment/monitor``), a cron expression, a dataset, a
            model, ``model@alias``, a deployment, a pipeline, a webhook or a pattern of paths. Empty
            is any.
        where: What the event's body must say besides, see ``everloop.automation.matching``.
        zone: Time zone of a schedule; empty is UTC.
        missed: Which of the times of a schedule that nobody was there for fire afterwards.
        secret: Where the secret of a webhook is, such as ``env:RETRAIN_SECRET``.
    """

    on: TriggerKind
    value: str = ""
    where: dict[str, Any] = {}
    zone: str = ""
    missed: Missed = "latest"
    secret: str = ""


class RunPipeline(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="run"):
    """Run ``path/to/file.py:function`` with these arguments, which JSON can hold."""

    pipeline: str
    arguments: dict[str, Any] = {}


class Notify(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="notify"):
    """Tell somebody: `to` is ``log:``, ``slack:``, ``webhook:`` or ``mail:`` with the address.

    A secret address is named, not given: ``slack:env:SLACK_WEBHOOK``.
    """

    to: str
    text: str = ""


class Automation(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happens by itself: triggers, an action, and what keeps it calm.

    Attributes:
        name: Its own; no loop has the same.
        debounce_s: Events within this time of the first one are one firing, at its end.
        cooldown_s: Shortest time between two firings; what comes earlier waits, as one firing.
        budget: Most firings within `budget_s`, 0 is no limit; what is above waits, as one firing.
        concurrency: How many of its runs may be open at once, with those that wait for an
            approval.
        depth: How many firings of its own may stand behind an event that fires it. With 1 what it
            does itself never fires it again.
        source: The file that declares it, or empty; with the file's declaration it goes.
    """

    name: str
    owner: str = ""
    triggers: tuple[Trigger, ...]
    action: RunPipeline | Notify
    debounce_s: float = 0
    cooldown_s: float = 0
    budget: int = 0
    budget_s: float = 0
    concurrency: int = 1
    depth: int = 1
    paused: bool = False
    source: str = ""
    created_at: datetime
    updated_at: datetime

    @property
    def cooldown_most_s(self) -> float:
        """Its cooldown does not grow: nobody judges what it does."""
        return self.cooldown_s

    @property
    def new_share(self) -> float:
        """It asks for no new labels."""
        return 0.0


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
        loop: Name of the loop or the automation; ``run:ID`` where a run goes on by itself.
        outcome: ``queued`` work, or why not: ``cooldown``, ``budget``, ``busy``, ``paused``,
            ``guarded`` (the loop's own output led here),
            ``data`` (too few new labels); ``waiting`` for an approval; ``done`` and ``failed``
            after the work.
        action: What is to be done.
        due_at: When it may be taken up.
        slots: How many of this name may be open at once.
        attempts: How often it was taken up.
        holder: The process that works on it, as :func:`everloop.core.owner.this_process` says.
        fence: Grows with each holder; what an older one says is refused.
        lease_until: Until when the holder has said it lives; None if it need not.
        body: ``events``: ids of all events that it answers, up to 100, ``merged``: how many came
            after the first.
    """

    id: str
    loop: str
    key: str
    cause: str
    outcome: FiringOutcome
    run_id: str = ""
    reason: str = ""
    scheduled_for: datetime
    action: FiringAction = "train"
    due_at: datetime
    slots: int = 1
    attempts: int = 0
    holder: str = ""
    fence: int = 0
    lease_until: datetime | None = None
    body: dict[str, Any] = {}
    created_at: datetime
    updated_at: datetime
