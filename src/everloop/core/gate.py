"""Gates and verdicts: requirements on a candidate and their outcome with the evidence."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, get_args

import msgspec

__all__ = ["GATE_KINDS", "Gate", "GateKind", "GateResult", "Verdict"]

GateKind = Literal["beats_champion", "no_group_worse", "threshold"]
GATE_KINDS: tuple[str, ...] = get_args(GateKind)


class Gate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One requirement on a candidate.

    Attributes:
        kind: ``beats_champion`` (paired test on data later than both models saw),
            ``no_group_worse`` (no group loses more than `by`) or ``threshold``.
        metric: Such as ``brier``, ``auc``, ``log_loss``.
        by: Margin, in units of the metric.
        group: Column that tells the groups apart, for ``no_group_worse``.
        days: Length of the hold-out, in days.
        level: One-sided error probability of the test.
        min_rows: Fewest rows for a group or a test to be judged at all.
    """

    kind: GateKind
    metric: str
    by: float = 0.0
    group: str = ""
    days: int = 21
    level: float = 0.05
    min_rows: int = 200

    @property
    def name(self) -> str:
        """How rules refer to it: ``kind:metric``, and ``kind:metric:group`` where it has one."""
        return ":".join(part for part in (self.kind, self.metric, self.group) if part)

    def answers_to(self, name: str) -> bool:
        """Whether `name` means this gate: its name, or the beginning of it, such as the kind."""
        return self.name == name or self.name.startswith(f"{name}:")


class GateResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one gate found: the estimate with its interval, and the sentence that says it."""

    gate: Gate
    passed: bool
    estimate: float
    low: float
    high: float
    rows: int
    reason: str
    evidence: dict[str, Any] = {}


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome for one candidate; kept for ever, also (and above all) when it is a no."""

    id: str
    model: str
    candidate: int
    champion: int
    passed: bool
    results: tuple[GateResult, ...]
    holdout: dict[str, Any] = {}
    run_id: str = ""
    at: datetime
