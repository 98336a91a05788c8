"""Gates against the champion: better, not worse, no group worse.

Who carries the burden of proof differs, see ADR 10. ``beats_champion`` and ``not_worse`` make one
claim each, so the candidate must show it: the bad end of the interval counts. ``no_group_worse``
looks at many groups at once, where chance alone always shows one that seems worse: a group refuses
only if harm is shown, and groups that the rows cannot clear are named.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from everloop.core.gate import GateResult
from everloop.evaluation.bootstrap import MIN_DAYS, Interval, day_blocks, difference
from everloop.evaluation.metrics import MetricSpec, metric
from everloop.evaluation.paired import POWER, delong, detectable, mcnemar
from everloop.evaluation.results import Question, cannot_date, cannot_tell, plain, said, settle
from everloop.evaluation.rows import Rows

__all__ = ["beats_champion", "no_group_worse", "not_worse"]

GroupFound = Literal["worse", "not worse", "too small to tell"]


def beats_champion(asked: Question) -> GateResult:
    """Better by more than the margin, beyond chance."""
    gate, rows = asked.gate, asked.rows
    if not asked.champion:
        return settle(asked, "passed", "no champion yet")
    cannot = cannot_tell(asked)
    if cannot:
        return settle(asked, "cannot tell", cannot)
    found = _improvement(asked.metric, rows, asked.level)
    more = f"by more than {gate.by:g} " if gate.by else ""
    passed = found.low > gate.by
    verb = "is" if passed else "is not shown to be"
    reason = (
        f"{gate.metric} {verb} better {more}on {len(rows.y)} rows of {found.days} days:"
        f" {said(found)}{_spent(asked)}"
    )
    evidence = _both(asked.metric, rows) | _seen(asked, found) | _second_opinion(asked)
    if not passed and math.isfinite(found.spread):
        reason += f"; with {POWER:.0%} power they show {evidence['detectable']:.2g} and more"
    return settle(asked, "passed" if passed else "refused", reason, found, evidence)


def not_worse(asked: Question) -> GateResult:
    """Shown to lose no more than the margin: as a whole, or in each group of a column."""
    gate, rows = asked.gate, asked.rows
    if not asked.champion:
        return settle(asked, "passed", "no champion yet")
    if gate.group:
        return _groups(asked, burden="candidate")
    cannot = cannot_tell(asked)
    if cannot:
        return settle(asked, "cannot tell", cannot)
    found = _improvement(asked.metric, rows, asked.level)
    evidence = _both(asked.metric, rows) | _seen(asked, found)
    answer = _answer_of(found, gate.by)
    told = {
        "not worse": f"{gate.metric} is shown to be worse by no more than {gate.by:g}",
        "worse": f"{gate.metric} is worse by more than {gate.by:g}",
        "too small to tell": f"{gate.metric} is not shown to be worse by no more than {gate.by:g}",
    }[answer]
    reason = f"{told} on {len(rows.y)} rows of {found.days} days: {said(found)}{_spent(asked)}"
    if answer == "not worse":
        return settle(asked, "passed", reason, found, evidence)
    return settle(asked, "refused" if answer == "worse" else "cannot tell", reason, found, evidence)


def no_group_worse(asked: Question) -> GateResult:
    """No group is shown to lose more than its margin."""
    if not asked.champion:
        return settle(asked, "passed", "no champion yet")
    return _groups(asked, burden="harm")


def _groups(asked: Question, *, burden: Literal["harm", "candidate"]) -> GateResult:
    gate, rows = asked.gate, asked.rows
    cannot = cannot_date(rows)
    if cannot:
        return settle(asked, "cannot tell", cannot)
    column = rows.groups[gate.group]
    judged: dict[str, Interval] = {}
    small: list[str] = []
    undefined: list[str] = []
    for value in np.unique(column):
        part = rows.where(column == value)
        name = str(value)
        if len(part.y) < gate.min_rows or part.days < MIN_DAYS:
            small.append(name)
            continue
        found = _improvement(asked.metric, part, asked.level)
        if math.isnan(found.low):
            undefined.append(name)
        else:
            judged[name] = found
    margins = {name: gate.margins.get(name, gate.by) for name in judged}
    answers = {name: _answer_of(found, margins[name]) for name, found in judged.items()}
    evidence: dict[str, Any] = {
        "groups": {
            name: plain(found)
            | {
                "answer": answers[name],
                "margin": margins[name],
                "detectable": detectable(found.spread, level=asked.level),
            }
            for name, found in judged.items()
        },
        "too_small": small,
        "undefined": undefined,
    }
    if not judged:
        few = f"needs {gate.min_rows} rows on {MIN_DAYS} days"
        reason = f"no group of {gate.group} can be judged ({few})"
        return settle(asked, "cannot tell", reason, None, evidence)
    name, lowest = min(judged.items(), key=lambda item: item[1].estimate + margins[item[0]])
    end = _left_over(small, undefined) + f"; lowest for {name}: {said(lowest)}{_spent(asked)}"
    worse = sorted(name for name, answer in answers.items() if answer == "worse")
    open_ = sorted(name for name, answer in answers.items() if answer == "too small to tell")
    if worse:
        reason = f"{gate.metric} is worse by more than {_margin(asked)} for {gate.group}"
        return settle(asked, "refused", f"{reason} {', '.join(worse)}{end}", lowest, evidence)
    if burden == "harm":
        reason = f"{gate.metric} is worse by more than {_margin(asked)} for none of"
        told = f" (too small to tell for {', '.join(open_)})" if open_ else ""
        return settle(
            asked, "passed", f"{reason} {len(judged)} groups{told}{end}", lowest, evidence
        )
    if open_:
        reason = f"{gate.metric} is not shown to be worse by no more than {_margin(asked)} for"
        return settle(
            asked, "cannot tell", f"{reason} {gate.group} {', '.join(open_)}{end}", lowest, evidence
        )
    reason = f"{gate.metric} is shown to be worse by no more than {_margin(asked)} for all of"
    return settle(asked, "passed", f"{reason} {len(judged)} groups{end}", lowest, evidence)


# --- inside -------------------------------------------------------------------------------------


def _answer_of(found: Interval, by: float) -> GroupFound:
    if found.high < -by:
        return "worse"
    return "not worse" if found.low >= -by else "too small to tell"


def _margin(asked: Question) -> str:
    return f"{asked.gate.by:g}" + (" (or its own margin)" if asked.gate.margins else "")


def _left_over(small: list[str], undefined: list[str]) -> str:
    left = len(small) + len(undefined)
    return f" ({left} not judged)" if left else ""


def _improvement(spec: MetricSpec, rows: Rows, level: float) -> Interval:
    """Candidate against champion, turned so that positive is better."""
    assert rows.champion is not None  # checked with the input
    better, worse = rows.candidate, rows.champion
    if spec.sign < 0:
        better, worse = worse, better
    return difference(spec, rows.y, better, worse, rows.at_us, level=level, **rows.more)


def _both(spec: MetricSpec, rows: Rows) -> dict[str, Any]:
    assert rows.champion is not None  # checked with the input
    values = {"candidate": rows.candidate, "champion": rows.champion}
    return {name: metric(spec, rows.y, scores, **rows.more) for name, scores in values.items()}


def _seen(asked: Question, found: Interval) -> dict[str, Any]:
    """What the rows could have shown at all."""
    return {
        "spread": found.spread,
        "power": POWER,
        "detectable": detectable(found.spread, level=asked.level),
        "level": asked.level,
    }


def _second_opinion(asked: Question) -> dict[str, Any]:
    """The test by formula that the field knows for this metric."""
    rows, spec = asked.rows, asked.metric
    assert rows.champion is not None  # checked with the input
    if rows.more:
        return {}
    if spec.name == "auc":
        found = delong(rows.y, rows.candidate, rows.champion, blocks=day_blocks(rows.at_us))
        return {"delong": {"difference": found.difference, "spread": found.spread, "p": found.p}}
    if spec.name == "accuracy" and rows.candidate.ndim == 1:
        truth = rows.y == 1
        told = mcnemar(
            (rows.candidate >= spec.threshold) == truth, (rows.champion >= spec.threshold) == truth
        )
        return {"mcnemar": told._asdict()}
    return {}


def _spent(asked: Question) -> str:
    if not asked.gate.spend:
        return ""
    use = asked.uses.holdout + 1
    return f" (use {use} of this hold-out, tested at {asked.level:.2g})"
