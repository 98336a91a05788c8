"""Gates of the candidate alone: thresholds, weak slices, calibration, fairness, behaviour, running.

``calibrated`` and ``fair`` make one claim that the candidate must show. ``no_weak_slice`` searches
hundreds of slices, so a slice refuses only if its weakness is shown after correction for that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from everloop.core.gate import GateResult
from everloop.errors import NotFound
from everloop.evaluation.behaviour import (
    Behaviour,
    Case,
    directional,
    functionality,
    invariance,
    latency_ms,
)
from everloop.evaluation.bootstrap import MIN_DAYS, Interval, single
from everloop.evaluation.calibration import Calibration, calibration
from everloop.evaluation.fairness import GroupGap, fairness
from everloop.evaluation.results import Question, cannot_date, cannot_tell, settle
from everloop.evaluation.rows import Subject
from everloop.evaluation.slices import SliceSearch, find_slices

__all__ = [
    "calibrated",
    "calibration_facts",
    "fair",
    "handles",
    "holds_direction",
    "is_invariant",
    "latency",
    "no_weak_slice",
    "size",
    "slice_facts",
    "threshold",
]

_NOT_GIVEN = "the model itself was not given, only its scores"


def threshold(asked: Question) -> GateResult:
    """The metric itself is good enough."""
    gate, rows, spec = asked.gate, asked.rows, asked.metric
    cannot = cannot_tell(asked, days=1)
    if cannot:
        return settle(asked, "cannot tell", cannot)
    found = single(spec, rows.y, rows.candidate, rows.at_us, level=asked.level, **rows.more)
    passed = (found.estimate - gate.by) * spec.sign >= 0
    wanted = f"{'at least' if spec.sign > 0 else 'at most'} {gate.by:g}"
    reason = f"{gate.metric} is {found.estimate:.4f}, wanted is {wanted}"
    return settle(asked, "passed" if passed else "refused", reason, found)


def no_weak_slice(asked: Question) -> GateResult:
    """No slice is worse than the rest by more than the margin, corrected for the search."""
    gate, rows, spec = asked.gate, asked.rows, asked.metric
    cannot = cannot_tell(asked)
    if cannot:
        return settle(asked, "cannot tell", cannot)
    known = {**rows.groups, **rows.fields}
    for name in gate.fields:
        if name not in known:
            raise NotFound.named("column to search", name, known)
    fields = {name: known[name] for name in gate.fields} if gate.fields else known
    search = find_slices(
        spec, rows.y, rows.candidate, rows.at_us, fields,
        schema=rows.schema, floor=gate.by, min_rows=gate.min_rows, level=asked.level,
    )  # fmt: skip
    evidence = slice_facts(search)
    if not search.tried:
        told = search.reason or f"no slice has {gate.min_rows} rows on {MIN_DAYS} days"
        return settle(asked, "cannot tell", told, None, evidence)
    if not search.found:
        reason = f"{gate.metric} is worse by more than {gate.by:g} in none of {search.tried} slices"
        return settle(asked, "passed", reason, None, evidence)
    worst = search.found[0]
    found = Interval(-worst.effect, -worst.high, -worst.low, worst.days)
    reason = (
        f"{gate.metric} is worse by more than {gate.by:g} in {len(search.found)} of"
        f" {search.tried} slices; worst where {worst.name}: {worst.inside:.4f} on"
        f" {worst.rows} rows, {worst.outside:.4f} elsewhere"
    )
    return settle(asked, "refused", reason, found, evidence)


def slice_facts(search: SliceSearch) -> dict[str, Any]:
    """A search as builtins."""
    return search._asdict() | {"found": [one._asdict() for one in search.found]}


def calibrated(asked: Question) -> GateResult:
    """Probabilities are shown to be off by no more than the limit."""
    gate, rows = asked.gate, asked.rows
    cannot = cannot_tell(asked)
    if cannot:
        return settle(asked, "cannot tell", cannot)
    measured = calibration(rows.y, rows.candidate, rows.at_us, level=asked.level)
    found = measured.error
    span = f"{found.estimate:.4f} [{found.low:.4f}, {found.high:.4f}]"
    slope = f"slope {measured.slope.estimate:.2f}, intercept {measured.intercept.estimate:+.2f}"
    told = f"probabilities are off by {span}, wanted is at most {gate.by:g} ({slope})"
    evidence = calibration_facts(measured)
    if found.high <= gate.by:
        return settle(asked, "passed", told, found, evidence)
    if found.low > gate.by:
        return settle(asked, "refused", told, found, evidence)
    return settle(asked, "cannot tell", told, found, evidence)


def calibration_facts(measured: Calibration) -> dict[str, Any]:
    """A calibration as builtins."""
    return {
        "bins": [one._asdict() for one in measured.bins],
        "ece": measured.ece,
        "ece_of_chance": measured.ece_of_chance,
        "error": measured.error._asdict(),
        "slope": measured.slope._asdict(),
        "intercept": measured.intercept._asdict(),
        "brier": measured.parts._asdict(),
    }


def fair(asked: Question) -> GateResult:
    """Groups are treated alike by the criterion; a group too small to tell is named, no fault."""
    gate, rows = asked.gate, asked.rows
    cannot = cannot_date(rows)
    if cannot:
        return settle(asked, "cannot tell", cannot)
    criterion, _, at = gate.metric.partition("@")
    found = fairness(
        criterion, rows.y, rows.candidate, rows.groups[gate.group], rows.at_us,
        by=gate.by, threshold=float(at or 0.5), min_rows=gate.min_rows, level=asked.level,
    )  # fmt: skip
    open_ = found.groups("too small to tell")
    evidence = {
        "answer": found.answer,
        "unfair": found.groups("unfair"),
        "too_small": open_,
        "gaps": [gap._asdict() for gap in found.gaps],
    }
    if not found.gaps or not (found.groups("fair") or found.groups("unfair")):
        reason = f"{gate.metric} by {gate.group} cannot be told: every group is too small"
        return settle(asked, "cannot tell", reason, None, evidence)
    worst = max(
        (gap for gap in found.gaps if gap.answer != "too small to tell"), key=lambda g: abs(g.gap)
    )
    told = f"; widest for {worst.group}: {_gap(worst)}"
    told += f"; too small to tell: {', '.join(open_)}" if open_ else ""
    interval = Interval(worst.gap, worst.low, worst.high, asked.rows.days)
    if found.answer == "unfair":
        names = ", ".join(found.groups("unfair"))
        reason = f"{gate.metric} differs by more than {gate.by:g} for {gate.group} {names}{told}"
        return settle(asked, "refused", reason, interval, evidence)
    count = len(found.groups("fair"))
    reason = (
        f"{gate.metric} differs by at most {gate.by:g} for {count} groups of {gate.group}{told}"
    )
    return settle(asked, "passed", reason, interval, evidence)


def _gap(gap: GroupGap) -> str:
    return f"{gap.rate} {gap.inside:.3f} against {gap.outside:.3f}"


# --- behaviour and running ----------------------------------------------------------------------


def is_invariant(asked: Question) -> GateResult:
    """Changing the field moves no score by more than the margin."""
    gate = asked.gate

    def test(subject: Subject) -> Behaviour:
        return invariance(
            subject.predict, subject.names, subject.rows, gate.field,
            by=gate.by, values=gate.values,
        )  # fmt: skip

    told = f"with another {gate.field} the score moves by more than {gate.by:g}"
    return _behaves(asked, test, told)


def holds_direction(asked: Question) -> GateResult:
    """Moving the field moves no score the wrong way."""
    gate = asked.gate

    def test(subject: Subject) -> Behaviour:
        assert gate.effect  # checked with the gates
        return directional(
            subject.predict, subject.names, subject.rows, gate.field,
            change=gate.change, effect=gate.effect, by=gate.by,
        )  # fmt: skip

    beyond = f" by more than {gate.by:g}" if gate.by else ""
    told = f"with {gate.field} {gate.change:+g} the score does not go {gate.effect}{beyond}"
    return _behaves(asked, test, told)


def handles(asked: Question) -> GateResult:
    """Known cases score within their limits."""
    cases = [Case(one.name, one.features, one.low, one.high) for one in asked.gate.cases]

    def test(subject: Subject) -> Behaviour:
        return functionality(subject.predict, subject.names, cases)

    return _behaves(asked, test, "the answer is not within its limits")


def latency(asked: Question) -> GateResult:
    """One row takes no longer than the limit, 99 times of 100."""
    subject = asked.subject
    if subject is None:
        return settle(asked, "cannot tell", _NOT_GIVEN)
    rows = subject.rows
    if not len(rows):  # how long a model takes hardly depends on what it is asked
        rows = np.zeros((1, len(subject.names)))
    median, worst = latency_ms(subject.predict, rows)
    passed = worst <= asked.gate.by
    reason = f"one row takes {worst:.3g} ms (p99), wanted is at most {asked.gate.by:g} ms"
    evidence = {"p50_ms": median, "p99_ms": worst}
    found = Interval(worst, np.nan, np.nan, 0)
    return settle(asked, "passed" if passed else "refused", reason, found, evidence, count=200)


def size(asked: Question) -> GateResult:
    """The model's files together are no larger than the limit."""
    subject = asked.subject
    if subject is None:
        return settle(asked, "cannot tell", _NOT_GIVEN)
    found = subject.size_bytes / 1e6
    passed = found <= asked.gate.by
    reason = f"its files have {found:.3g} MB, wanted is at most {asked.gate.by:g} MB"
    evidence = {"size_bytes": subject.size_bytes}
    return settle(
        asked, "passed" if passed else "refused", reason, Interval(found, np.nan, np.nan, 0),
        evidence, count=0,
    )  # fmt: skip


def _behaves(asked: Question, test: Callable[[Subject], Behaviour], told: str) -> GateResult:
    if asked.subject is None:
        return settle(asked, "cannot tell", _NOT_GIVEN)
    if not len(asked.subject.rows) and asked.gate.kind != "functionality":
        return settle(asked, "cannot tell", "there is no row to try it on")
    found = test(asked.subject)
    things = "cases" if asked.gate.kind == "functionality" else "rows"
    if not found.checked:
        return settle(asked, "cannot tell", f"there are no {things} to try it on", count=0)
    passed = found.share <= asked.gate.share
    allowed = f", {asked.gate.share:.1%} may" if asked.gate.share else ""
    reason = f"{told} for {found.broken} of {found.checked} {things}{allowed}"
    if found.worst and "case" in found.worst[0]:
        reason += ": " + ", ".join(one["case"] for one in found.worst)
    return settle(
        asked, "passed" if passed else "refused", reason,
        Interval(found.share, np.nan, np.nan, 0),
        {"checked": found.checked, "broken": found.broken, "worst": list(found.worst)},
        count=found.checked,
    )  # fmt: skip
