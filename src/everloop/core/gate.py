"""Gates and verdicts: requirements on a candidate and their outcome with the evidence."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, get_args

import msgspec

__all__ = [
    "GATE_KINDS",
    "Gate",
    "GateAnswer",
    "GateCase",
    "GateKind",
    "GateResult",
    "Uses",
    "Verdict",
]

GateKind = Literal[
    "beats_champion", "not_worse", "no_group_worse", "threshold", "no_weak_slice", "calibrated",
    "fair", "invariant", "directional", "functionality", "max_latency_ms", "max_size_mb",
]  # fmt: skip
GATE_KINDS: tuple[str, ...] = get_args(GateKind)
#: ``cannot tell`` is no pass.
GateAnswer = Literal["", "passed", "refused", "cannot tell"]


class GateCase(msgspec.Struct, frozen=True, omit_defaults=True):
    """One known answer: these features must score within ``[low, high]``."""

    name: str
    features: dict[str, float]
    low: float
    high: float


class Gate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One requirement on a candidate.

    Attributes:
        kind: Against the champion: ``beats_champion`` (better by more than chance), ``not_worse``
            (shown to lose no more than `by`), ``no_group_worse`` (no group is shown to lose more).
            Of the candidate alone: ``threshold``, ``no_weak_slice``, ``calibrated``, ``fair``.
            Of its behaviour: ``invariant``, ``directional``, ``functionality``. Of its running:
            ``max_latency_ms``, ``max_size_mb``.
        metric: Such as ``brier``, ``auc``, ``log_loss``; for ``fair`` the criterion.
        by: Margin, in units of the metric (of the score for behaviour); the limit of the others.
        margins: Margins of single groups, where they differ from `by`.
        group: Column that tells the groups apart.
        days: Length of the hold-out, in days.
        level: One-sided error probability of the test.
        spend: Whether `level` is shared out over all uses of a hold-out: the k-th use then gets
            6 / (pi k) ** 2 of it, which adds up to `level` however often it is used.
        min_rows: Fewest rows for a group or a test to be judged at all.
        field: The feature that a behavioural test changes.
        fields: The columns in which ``no_weak_slice`` searches; all there are if empty.
        values: What ``invariant`` puts into the field; what occurs if empty.
        change: What ``directional`` adds to the field.
        effect: Which way the score must go then.
        share: Share of rows that may break a behavioural test.
        cases: Known answers, for ``functionality``.
    """

    kind: GateKind
    metric: str = ""
    by: float = 0.0
    margins: dict[str, float] = {}
    group: str = ""
    days: int = 21
    level: float = 0.05
    spend: bool = False
    min_rows: int = 200
    field: str = ""
    fields: tuple[str, ...] = ()
    values: tuple[float, ...] = ()
    change: float = 0.0
    effect: Literal["", "up", "down"] = ""
    share: float = 0.0
    cases: tuple[GateCase, ...] = ()

    @property
    def name(self) -> str:
        """How rules refer to it: ``kind:metric``, and ``kind:metric:group`` where it has one."""
        parts = (self.kind, self.metric, self.group, self.field)
        return ":".join(part for part in parts if part)

    def answers_to(self, name: str) -> bool:
        """Whether `name` means this gate: its name, or the beginning of it, such as the kind."""
        return self.name == name or self.name.startswith(f"{name}:")


class GateResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one gate found: the estimate with its interval, and the sentence that says it.

    Attributes:
        answer: Why it did not pass: ``refused`` (shown not to hold), or ``cannot tell``.
        evidence: What the sentence stands on: values of both models, groups, slices, rows that
            broke a rule, and ``detectable``: the smallest true difference that these rows would
            have shown with 80 % power.
    """

    gate: Gate
    passed: bool
    estimate: float
    low: float
    high: float
    rows: int
    reason: str
    answer: GateAnswer = ""
    evidence: dict[str, Any] = {}


class Uses(msgspec.Struct, frozen=True, kw_only=True):
    """How often models were judged before.

    Attributes:
        holdout: Verdicts on this model whose hold-out shares days with the one asked about.
        year: Verdicts on this model against a champion in the 365 days before.
        since, until: The hold-out that was asked about.
    """

    holdout: int = 0
    year: int = 0
    since: datetime | None = None
    until: datetime | None = None


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome for one candidate; kept for ever, also (and above all) when it is a no.

    Attributes:
        holdout: What it was judged on: rows, days, ``from`` and ``to``, the ``digest`` of the rows,
            the number of this ``use`` of the hold-out and of this ``attempt`` of the year, the
            ``models`` with their digests, and what was seen beside the gates (``slices``,
            ``calibration``). ``reason`` where it was judged on nothing.
    """

    id: str
    model: str
    candidate: int
    champion: int
    passed: bool
    results: tuple[GateResult, ...]
    holdout: dict[str, Any] = {}
    run_id: str = ""
    at: datetime

    @property
    def reasons(self) -> tuple[str, ...]:
        """What was found, gate by gate; why nothing was judged where nothing was."""
        found = tuple(result.reason for result in self.results)
        told = str(self.holdout.get("reason", ""))
        return found or ((told,) if told else ())
