"""Gates: whether a candidate may take the champion's place, decided on rows later than both saw.

:func:`judge` is pure: rows and requirements in, a :class:`Verdict` with its evidence out. What
cannot be told (too few days, one class) is no pass; what is malformed is an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any

import numpy as np

from everloop.core.gate import Gate, GateResult, Uses, Verdict
from everloop.core.ids import new_id
from everloop.core.model import ModelVersion
from everloop.core.time import utc
from everloop.errors import Fault, InvalidInput, NotFound
from everloop.evaluation import absolute, relative
from everloop.evaluation.calibration import calibration
from everloop.evaluation.fairness import CRITERIA
from everloop.evaluation.metrics import MetricSpec, Task, parse_metric, task_of
from everloop.evaluation.results import Question
from everloop.evaluation.rows import (
    HoldOut,
    Rows,
    Subject,
    described,
    faults_of_rows,
    later_rows,
    latest,
)
from everloop.evaluation.slices import find_slices

__all__ = [
    "ROWLESS",
    "SUBJECT",
    "HoldOut",
    "Subject",
    "first_verdict",
    "gate_faults",
    "judge",
    "needs_subject",
    "same_model",
]

_KINDS: dict[str, Callable[[Question], GateResult]] = {
    "beats_champion": relative.beats_champion,
    "not_worse": relative.not_worse,
    "no_group_worse": relative.no_group_worse,
    "threshold": absolute.threshold,
    "no_weak_slice": absolute.no_weak_slice,
    "calibrated": absolute.calibrated,
    "fair": absolute.fair,
    "invariant": absolute.is_invariant,
    "directional": absolute.holds_direction,
    "functionality": absolute.handles,
    "max_latency_ms": absolute.latency,
    "max_size_mb": absolute.size,
}
_WITHOUT_METRIC = (
    "calibrated", "fair", "invariant", "directional", "functionality", "max_latency_ms",
    "max_size_mb",
)  # fmt: skip
#: Kinds that can be judged before anything was ever asked.
ROWLESS = ("functionality", "max_latency_ms", "max_size_mb")
#: Kinds that ask for the candidate itself, and not for what it is compared with.
SUBJECT = ("invariant", "directional", *ROWLESS)
_OF_GROUPS = ("no_group_worse", "fair")
_WORST_SHOWN = 5


def judge(
    gates: Sequence[Gate],
    *,
    model: str,
    candidate: int,
    champion: int,
    rows: HoldOut,
    now: datetime,
    run_id: str = "",
    subject: Subject | None = None,
    uses: Uses | None = None,
    versions: Sequence[ModelVersion] = (),
) -> Verdict:
    """Judge a candidate by every gate; it passes if all of them do.

    In each result ``estimate``, ``low`` and ``high`` are the improvement over the champion in units
    of the metric, positive where the candidate is better (for gates of the candidate alone what
    they measure), with the interval of ``1 - 2 * level``; NaN where there is none.

    Args:
        champion: Version of the champion, 0 if there is none yet.
        now: When the verdict is given.
        subject: The candidate itself, for gates of its behaviour, speed and size.
        uses: How often the hold-out was used before; not counted in the verdict if not given.
        versions: Candidate and champion, for the record of what was compared.

    Raises:
        InvalidInput: If there is no gate, or rows are malformed (every fault is listed): lengths
            that differ, NaN, labels other than 0 and 1, probabilities outside 0 to 1.
        NotFound: If a metric, a feature or a group column is unknown.
    """
    specs = [None if gate.kind in _WITHOUT_METRIC else parse_metric(gate.metric) for gate in gates]
    task = _check(gates, specs, champion, rows)
    later, dropped = later_rows(rows)
    before = uses or Uses()
    results = tuple(
        _KINDS[gate.kind](Question(gate, spec, latest(later, gate.days), champion, subject, before))
        for gate, spec in zip(gates, specs, strict=True)
    )
    longest = latest(later, max(gate.days for gate in gates))
    holdout = described(longest, dropped, task)
    if uses is not None:
        holdout |= _counted(gates, uses)
    if versions:
        holdout["models"] = _models(versions)
    holdout |= _beside(specs, longest, task)
    return Verdict(
        id=new_id(),
        model=model,
        candidate=candidate,
        champion=champion,
        passed=all(result.passed for result in results),
        results=results,
        holdout=holdout,
        run_id=run_id,
        at=utc(now),
    )


def same_model(
    candidate: ModelVersion, champion: ModelVersion, *, now: datetime, run_id: str = ""
) -> Verdict | None:
    """The verdict on a candidate that is the champion, byte for byte; None if it is not.

    A rerun with nothing changed makes one. No hold-out is spent on it.
    """
    if not candidate.digest or candidate.digest != champion.digest:
        return None
    reason = f"the same model as version {champion.version}: nothing to promote"
    return Verdict(
        id=new_id(),
        model=candidate.name,
        candidate=candidate.version,
        champion=champion.version,
        passed=False,
        results=(),
        holdout={"reason": reason, "models": _models((candidate, champion))},
        run_id=run_id,
        at=utc(now),
    )


def first_verdict(
    gates: Sequence[Gate],
    candidate: ModelVersion,
    *,
    subject: Callable[[], Subject],
    now: datetime,
    run_id: str = "",
) -> Verdict:
    """The verdict on the first model, which has nobody to beat and was asked nothing yet.

    It is judged by what can be judged: known cases, latency, size. The other gates are named as
    not judged (``holdout["not_judged"]``); see ADR 10.

    Args:
        subject: Gives the candidate itself; called only where a gate needs it.

    Raises:
        NotFound: If a case names a feature that the model does not take.
    """
    empty, _ = later_rows(HoldOut(*(np.empty(0),) * 3, np.empty(0, dtype=np.int64)))
    judged = [gate for gate in gates if gate.kind in ROWLESS]
    itself = subject() if judged else None
    results = tuple(
        _KINDS[gate.kind](Question(gate, None, empty, 0, itself, Uses())) for gate in judged
    )
    left = [gate.name for gate in gates if gate.kind not in ROWLESS]
    reason = "no champion yet" + (", and nothing was asked yet" if left else "")
    return Verdict(
        id=new_id(),
        model=candidate.name,
        candidate=candidate.version,
        champion=0,
        passed=all(result.passed for result in results),
        results=results,
        holdout={"reason": reason, "not_judged": left, "models": _models((candidate,))},
        run_id=run_id,
        at=utc(now),
    )


def needs_subject(gates: Sequence[Gate]) -> bool:
    """Whether any gate asks for the candidate itself."""
    return any(gate.kind in SUBJECT for gate in gates)


# --- what is kept beside the gates --------------------------------------------------------------


def _counted(gates: Sequence[Gate], uses: Uses) -> dict[str, Any]:
    """Which use of the hold-out this was, and what the year's attempts come to."""
    attempt = uses.year + 1
    told: dict[str, Any] = {}
    if uses.since is not None and uses.until is not None:
        told["counted"] = [uses.since.isoformat(), uses.until.isoformat()]
    level = max((gate.level for gate in gates if gate.kind == "beats_champion"), default=0.0)
    return told | {
        "use": uses.holdout + 1,
        "attempt": attempt,
        # Were no candidate of the year any better: the chance that one passes nevertheless.
        "luck": 1 - (1 - level) ** attempt,
    }


def _models(versions: Sequence[ModelVersion]) -> list[dict[str, Any]]:
    return [
        {
            "version": one.version,
            "digest": one.digest,
            "run": one.run_id,
            "trained_until": None if one.trained_until is None else one.trained_until.isoformat(),
        }
        for one in versions
    ]


def _beside(specs: Sequence[MetricSpec | None], rows: Rows, task: Task) -> dict[str, Any]:
    """Worst slices and calibration of the candidate, which decide nothing but tell much."""
    told: dict[str, Any] = {}
    probable = any(spec is not None and spec.takes_probabilities for spec in specs)
    if not len(rows.y):
        return told
    if task == "binary" and probable:
        found = absolute.calibration_facts(calibration(rows.y, rows.candidate, rows.at_us))
        told["calibration"] = {key: found[key] for key in ("ece", "error", "slope", "intercept")}
    name = {"binary": "brier" if probable else "", "regression": "mae"}.get(task, "")
    fields = {**rows.groups, **rows.fields}
    if name and fields and not rows.more:
        search = find_slices(
            parse_metric(name), rows.y, rows.candidate, rows.at_us, fields, schema=rows.schema
        )
        facts = absolute.slice_facts(search)
        told["slices"] = facts | {"metric": name, "found": facts["found"][:_WORST_SHOWN]}
    return told


# --- what is wrong with gates -------------------------------------------------------------------


def _check(
    gates: Sequence[Gate], specs: Sequence[MetricSpec | None], champion: int, rows: HoldOut
) -> Task:
    if not gates:
        raise InvalidInput("there is no gate to judge by", hint="ev.beats_champion('brier')")
    known = [spec for spec in specs if spec is not None]
    task = task_of(known)
    probable = any(spec.takes_probabilities for spec in known)
    probable = probable or any(gate.kind == "calibrated" for gate in gates)
    faults = gate_faults(gates) + faults_of_rows(rows, champion, task, probable)
    if faults:
        raise InvalidInput("the hold-out cannot be judged", faults)
    for gate in gates:
        if gate.group and gate.group not in rows.groups:
            raise NotFound.named("group column", gate.group, rows.groups)
    return task


def gate_faults(gates: Sequence[Gate]) -> list[Fault]:
    """What makes no sense in the definitions of gates, with ``gates[i].`` before each path."""
    return [
        Fault(f"gates[{index}].{path}", told)
        for index, gate in enumerate(gates)
        for path, told in _faults_of(gate)
    ] + _faults_of_all(gates)


def _faults_of(gate: Gate) -> Iterator[tuple[str, str]]:
    if gate.kind not in _WITHOUT_METRIC:
        try:
            parse_metric(gate.metric)
        except (InvalidInput, NotFound) as error:
            yield "metric", f"{error.message}{f'; {error.hint}' if error.hint else ''}"
    if gate.kind == "fair":
        criterion, at, number = gate.metric.partition("@")
        if criterion not in CRITERIA:
            yield "metric", f"{gate.metric!r} is none of {', '.join(CRITERIA)}"
        if at and not _is_share(number):
            yield "metric", f"{number!r} is no threshold"
    if gate.kind in _OF_GROUPS and not gate.group:
        yield "group", "must name a column"
    if not 0 < gate.level < 0.5:
        yield "level", f"must be in (0, 0.5), got {gate.level}"
    if gate.days < 1:
        yield "days", f"must be at least 1, got {gate.days}"
    if not math.isfinite(gate.by):
        yield "by", f"must be a number, got {gate.by}"
    yield from _faults_of_limits(gate)


def _faults_of_limits(gate: Gate) -> Iterator[tuple[str, str]]:
    positive = ("fair", "calibrated", "max_latency_ms", "max_size_mb")
    if gate.kind in positive and gate.by <= 0:
        yield "by", f"must be above 0, got {gate.by}"
    at_least_0 = ("not_worse", "no_weak_slice", "invariant", "directional")
    if gate.kind in at_least_0 and gate.by < 0:
        yield "by", f"must be 0 or above, got {gate.by}"
    if any(not math.isfinite(one) or one < 0 for one in gate.margins.values()):
        yield "margins", "must be numbers of 0 or above"
    if not 0 <= gate.share < 1:
        yield "share", f"must be in [0, 1), got {gate.share}"
    yield from _faults_of_behaviour(gate)


def _faults_of_behaviour(gate: Gate) -> Iterator[tuple[str, str]]:
    if gate.kind in ("invariant", "directional") and not gate.field:
        yield "field", "must name a feature"
    if gate.kind == "directional":
        if gate.effect not in ("up", "down"):
            yield "effect", f'must be "up" or "down", got {gate.effect!r}'
        if not math.isfinite(gate.change) or gate.change == 0:
            yield "change", f"must be a number other than 0, got {gate.change}"
    if gate.kind == "functionality":
        if not gate.cases:
            yield "cases", "must hold at least one case"
        for case in gate.cases:
            if not case.low <= case.high:
                yield "cases", f"{case.name!r} wants a score within [{case.low}, {case.high}]"


def _faults_of_all(gates: Sequence[Gate]) -> list[Fault]:
    """Metrics that no one task has cannot be judged on the same rows."""
    specs = []
    for gate in gates:
        try:
            specs += [] if gate.kind in _WITHOUT_METRIC else [parse_metric(gate.metric)]
        except (InvalidInput, NotFound):
            return []  # told already, gate by gate
    try:
        task = task_of(specs)
    except InvalidInput as error:
        return [Fault("gates", f"{error.message}; {error.hint}")]
    binary = [gate.kind for gate in gates if gate.kind in ("calibrated", "fair")]
    if binary and task != "binary":
        return [Fault("gates", f"{', '.join(binary)} take probabilities, not a {task}")]
    return []


def _is_share(text: str) -> bool:
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False
