"""How the findings of a gate are put into a result: numbers, the sentence, the evidence."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from everloop.core.gate import Gate, GateAnswer, GateResult, Uses
from everloop.evaluation.bootstrap import MIN_DAYS, Interval
from everloop.evaluation.metrics import MetricSpec, metric
from everloop.evaluation.rows import Rows, Subject

__all__ = ["Question", "cannot_date", "cannot_tell", "level_of", "plain", "said", "settle"]


class Question(NamedTuple):
    """What a gate is asked.

    Attributes:
        spec: Of its metric; None where it has none.
        rows: Those of its own days.
        champion: Version of the champion, 0 if there is none.
        subject: The candidate itself, where it was given.
        uses: How often the hold-out and the year were used before.
    """

    gate: Gate
    spec: MetricSpec | None
    rows: Rows
    champion: int
    subject: Subject | None
    uses: Uses

    @property
    def metric(self) -> MetricSpec:
        assert self.spec is not None  # checked with the gates
        return self.spec

    @property
    def level(self) -> float:
        return level_of(self.gate, self.uses.holdout + 1)


def level_of(gate: Gate, use: int) -> float:
    """The error probability that the gate may spend on the `use`-th look at a hold-out.

    Shares of 1/k**2 add up to the whole however many looks there are (their sum is pi**2 / 6).
    """
    return gate.level * 6 / (math.pi * use) ** 2 if gate.spend else gate.level


def settle(
    asked: Question,
    answer: GateAnswer,
    reason: str,
    found: Interval | None = None,
    evidence: dict[str, Any] | None = None,
    *,
    count: int | None = None,
) -> GateResult:
    """The result; it passed if the answer says so.

    Args:
        count: What was looked at, where that is not the hold-out's rows.
    """
    estimate, low, high = found[:3] if found is not None else (math.nan,) * 3
    return GateResult(
        gate=asked.gate,
        passed=answer == "passed",
        estimate=estimate,
        low=low,
        high=high,
        rows=len(asked.rows.y) if count is None else count,
        reason=reason,
        answer=answer,
        evidence={"days": asked.rows.days, **(evidence or {})},
    )


def cannot_date(rows: Rows) -> str:
    """Why nothing shows that there are rows new to the models, or empty."""
    if not rows.stated:
        return "it is not stated until when the candidate was trained (trained_until)"
    return "" if len(rows.y) else "there are no rows later than what the models were trained on"


def cannot_tell(asked: Question, days: int = MIN_DAYS) -> str:
    """Why a gate cannot be judged on its rows, or empty."""
    gate, rows = asked.gate, asked.rows
    cannot = cannot_date(rows)
    if cannot:
        return cannot
    if len(rows.y) < gate.min_rows:
        return f"too few rows to tell: {len(rows.y)}, {gate.min_rows} are needed"
    if rows.days < days:
        return f"too few blocks to tell: {rows.days} days, {days} are needed"
    if asked.spec is not None and math.isnan(
        metric(asked.spec, rows.y, rows.candidate, **rows.more)
    ):
        classes = "one class only" if len(np.unique(rows.y)) == 1 else "no such prediction"
        return f"{gate.metric} is not defined on these rows: {classes}"
    return ""


def said(found: Interval) -> str:
    """An estimate with its interval, in a sentence."""
    return f"{found.estimate:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"


def plain(found: Interval) -> dict[str, Any]:
    """An interval as builtins."""
    return {"estimate": found.estimate, "low": found.low, "high": found.high, "days": found.days}
