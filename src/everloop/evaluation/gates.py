"""Gates: whether a candidate may take the champion's place, decided on rows later than both saw.

:func:`judge` is pure: rows and requirements in, a :class:`Verdict` with its evidence out. What
cannot be told (too few days, one class) is no pass; what is malformed is an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from everloop.core.gate import Gate, GateResult, Verdict
from everloop.core.ids import new_id
from everloop.core.time import from_micros, to_micros, utc
from everloop.errors import Fault, InvalidInput, NotFound
from everloop.evaluation.bootstrap import MIN_DAYS, Interval, difference, single
from everloop.evaluation.metrics import Floats, MetricSpec, metric, parse_metric

__all__ = ["HoldOut", "gate_faults", "judge"]

_DAY_US = 86_400_000_000


@dataclass(frozen=True, eq=False)
class HoldOut:
    """Rows on which candidate and champion are compared, in any order.

    Attributes:
        y: The truth, 0 or 1, shape (n,).
        candidate_p: Scores of the candidate, shape (n,), finite.
        champion_p: Scores of the champion on the same rows; None where there is no champion.
        at_us: Time of each row, microseconds since 1970, UTC.
        groups: Columns that tell groups apart, shape (n,) each.
        candidate_until: No later row trained the candidate; rows up to it are left out. None is
            "not stated": then nothing shows that the rows are new to it, and it does not pass.
        champion_until: The same of the champion. Where it is not stated the champion may have seen
            the rows, which can only make it look better.
    """

    y: npt.NDArray[Any]
    candidate_p: npt.NDArray[Any]
    champion_p: npt.NDArray[Any] | None
    at_us: npt.NDArray[Any]
    groups: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    candidate_until: datetime | None = None
    champion_until: datetime | None = None


def judge(
    gates: Sequence[Gate],
    *,
    model: str,
    candidate: int,
    champion: int,
    rows: HoldOut,
    now: datetime,
    run_id: str = "",
) -> Verdict:
    """Judge a candidate by every gate; it passes if all of them do.

    In each result ``estimate``, ``low`` and ``high`` are the improvement over the champion in units
    of the metric, positive where the candidate is better (for ``threshold`` the metric itself),
    with the interval of ``1 - 2 * level``; NaN where there is none.

    Args:
        champion: Version of the champion, 0 if there is none yet.
        now: When the verdict is given.

    Raises:
        InvalidInput: If there is no gate, or rows are malformed (every fault is listed): lengths
            that differ, NaN, labels other than 0 and 1, probabilities outside 0 to 1.
        NotFound: If a metric or a group column is unknown.
    """
    specs = [parse_metric(gate.metric) for gate in gates]
    _check(gates, specs, champion, rows)
    later, dropped = _later_rows(rows)
    results = tuple(
        _KINDS[gate.kind](gate, spec, _latest(later, gate.days), champion)
        for gate, spec in zip(gates, specs, strict=True)
    )
    longest = _latest(later, max(gate.days for gate in gates))
    return Verdict(
        id=new_id(),
        model=model,
        candidate=candidate,
        champion=champion,
        passed=all(result.passed for result in results),
        results=results,
        holdout=_describe(longest, dropped),
        run_id=run_id,
        at=utc(now),
    )


# --- the gates ----------------------------------------------------------------------------------


def _beats_champion(gate: Gate, spec: MetricSpec, rows: _Rows, champion: int) -> GateResult:
    if not champion:
        return _result(gate, rows, True, "no champion yet")
    cannot = _cannot_tell(gate, spec, rows)
    if cannot:
        return _result(gate, rows, False, cannot)
    found = _improvement(spec, rows, gate.level)
    passed = found.low > gate.by
    more = f"by more than {gate.by:g} " if gate.by else ""
    verb = "is" if passed else "is not shown to be"
    reason = (
        f"{gate.metric} {verb} better {more}on {len(rows.y)} rows of {found.days} days:"
        f" {_said(found)}"
    )
    return _result(gate, rows, passed, reason, found, _both(spec, rows))


def _no_group_worse(gate: Gate, spec: MetricSpec, rows: _Rows, champion: int) -> GateResult:
    if not champion:
        return _result(gate, rows, True, "no champion yet")
    cannot = _cannot_date(rows)
    if cannot:
        return _result(gate, rows, False, cannot)
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
        found = _improvement(spec, part, gate.level)
        if math.isnan(found.low):
            undefined.append(name)
        else:
            judged[name] = found
    evidence = {
        "groups": {name: _plain(found) for name, found in judged.items()},
        "too_small": small,
        "undefined": undefined,
    }
    if not judged:
        few = f"needs {gate.min_rows} rows on {MIN_DAYS} days"
        reason = f"no group of {gate.group} can be judged ({few})"
        return _result(gate, rows, False, reason, None, evidence)
    # Worse beyond chance: even the good end of the interval lies below the margin.
    worse = {name: found for name, found in judged.items() if found.high < -gate.by}
    name, found = min(judged.items(), key=lambda item: item[1].estimate)
    if worse:
        told = ", ".join(sorted(worse))
        reason = f"{gate.metric} is worse by more than {gate.by:g} for {gate.group} {told}"
    else:
        reason = f"{gate.metric} is worse by more than {gate.by:g} for none of {len(judged)} groups"
    left = len(small) + len(undefined)
    reason += f" ({left} not judged)" if left else ""
    reason += f"; lowest for {name}: {_said(found)}"
    return _result(gate, rows, not worse, reason, found, evidence)


def _threshold(gate: Gate, spec: MetricSpec, rows: _Rows, _: int) -> GateResult:
    cannot = _cannot_tell(gate, spec, rows, days=1)
    if cannot:
        return _result(gate, rows, False, cannot)
    found = single(spec, rows.y, rows.candidate, rows.at_us, level=gate.level)
    passed = (found.estimate - gate.by) * spec.sign >= 0
    wanted = f"{'at least' if spec.sign > 0 else 'at most'} {gate.by:g}"
    reason = f"{gate.metric} is {found.estimate:.4f}, wanted is {wanted}"
    return _result(gate, rows, passed, reason, found)


_Judge = Callable[[Gate, MetricSpec, "_Rows", int], GateResult]
_KINDS: dict[str, _Judge] = {
    "beats_champion": _beats_champion,
    "no_group_worse": _no_group_worse,
    "threshold": _threshold,
}


# --- rows ---------------------------------------------------------------------------------------


class _Rows:
    """Checked rows, with what the gates ask of them."""

    def __init__(
        self,
        y: Floats,
        candidate: Floats,
        champion: Floats | None,
        at_us: npt.NDArray[np.int64],
        groups: Mapping[str, npt.NDArray[Any]],
        stated: bool,
    ) -> None:
        self.y = y
        self.candidate = candidate
        self.champion = champion
        self.at_us = at_us
        self.groups = groups
        self.stated = stated

    @property
    def days(self) -> int:
        return len(np.unique(self.at_us // _DAY_US))

    def where(self, mask: npt.NDArray[np.bool_]) -> _Rows:
        return _Rows(
            self.y[mask],
            self.candidate[mask],
            None if self.champion is None else self.champion[mask],
            self.at_us[mask],
            {name: column[mask] for name, column in self.groups.items()},
            self.stated,
        )


def _later_rows(rows: HoldOut) -> tuple[_Rows, int]:
    """The rows later than what either model was trained on, and how many were not."""
    checked = _Rows(
        np.asarray(rows.y, dtype=np.float64),
        np.asarray(rows.candidate_p, dtype=np.float64),
        None if rows.champion_p is None else np.asarray(rows.champion_p, dtype=np.float64),
        np.asarray(rows.at_us, dtype=np.int64),
        {name: np.asarray(column).astype(str) for name, column in rows.groups.items()},
        rows.candidate_until is not None,
    )
    stated = [until for until in (rows.candidate_until, rows.champion_until) if until is not None]
    if not stated:
        return checked, 0
    later = checked.at_us > max(to_micros(until) for until in stated)
    return checked.where(later), int(np.count_nonzero(~later))


def _latest(rows: _Rows, days: int) -> _Rows:
    """The rows of the last `days` calendar days (UTC), counted from the newest row."""
    if not len(rows.y):
        return rows
    day = rows.at_us // _DAY_US
    return rows.where(day > day.max() - days)


def _check(
    gates: Sequence[Gate], specs: Sequence[MetricSpec], champion: int, rows: HoldOut
) -> None:
    if not gates:
        raise InvalidInput("there is no gate to judge by", hint="ev.beats_champion('brier')")
    faults = gate_faults(gates)
    columns = {"y": rows.y, "candidate_p": rows.candidate_p, "at_us": rows.at_us}
    if rows.champion_p is not None:
        columns["champion_p"] = rows.champion_p
    elif champion:
        faults.append(Fault("champion_p", f"missing, and version {champion} is the champion"))
    count = np.shape(rows.y)[0] if np.ndim(rows.y) == 1 else -1
    for name, column in {**columns, **rows.groups}.items():
        if np.shape(column) != (count,):
            shape = np.shape(column)
            faults.append(Fault(name, f"has shape {shape}, y has {np.shape(rows.y)}"))
    for name in columns:
        faults += _faults_of_numbers(name, columns[name], any(s.takes_probabilities for s in specs))
    if faults:
        raise InvalidInput("the hold-out cannot be judged", faults)
    for gate in gates:
        if gate.kind == "no_group_worse" and gate.group not in rows.groups:
            raise NotFound.named("group column", gate.group, rows.groups)


def gate_faults(gates: Sequence[Gate]) -> list[Fault]:
    """What makes no sense in the definitions of gates, with ``gates[i].`` before each path."""
    faults = []
    for index, gate in enumerate(gates):
        try:
            parse_metric(gate.metric)
        except (InvalidInput, NotFound) as error:
            asked = f"; {error.hint}" if error.hint else ""
            faults.append(Fault(f"gates[{index}].metric", f"{error.message}{asked}"))
        if gate.kind == "no_group_worse" and not gate.group:
            faults.append(Fault(f"gates[{index}].group", "must name a column"))
        if not 0 < gate.level < 0.5:
            faults.append(Fault(f"gates[{index}].level", f"must be in (0, 0.5), got {gate.level}"))
        if gate.days < 1:
            faults.append(Fault(f"gates[{index}].days", f"must be at least 1, got {gate.days}"))
        if not math.isfinite(gate.by):
            faults.append(Fault(f"gates[{index}].by", f"must be a number, got {gate.by}"))
    return faults


def _faults_of_numbers(name: str, column: npt.NDArray[Any], probabilities: bool) -> list[Fault]:
    values = np.asarray(column)
    if values.dtype.kind not in "biuf":
        return [Fault(name, f"must be numbers, got {values.dtype}")]
    faults = []
    broken = int(np.count_nonzero(~np.isfinite(values)))
    if broken:
        where = int(np.flatnonzero(~np.isfinite(values))[0])
        faults.append(Fault(name, f"{broken} are NaN or infinite, the first at [{where}]"))
    known = values[np.isfinite(values)]
    if name == "y" and not np.isin(known, (0, 1)).all():
        faults.append(Fault(name, f"must be 0 or 1, got {known[~np.isin(known, (0, 1))][0]}"))
    outside = int(np.count_nonzero((known < 0) | (known > 1)))
    if name.endswith("_p") and probabilities and outside:
        faults.append(Fault(name, f"{outside} are no probabilities (outside 0 to 1)"))
    return faults


# --- results ------------------------------------------------------------------------------------


def _cannot_date(rows: _Rows) -> str:
    """Why nothing shows that there are rows new to the models, or empty."""
    if not rows.stated:
        return "it is not stated until when the candidate was trained (trained_until)"
    return "" if len(rows.y) else "there are no rows later than what the models were trained on"


def _cannot_tell(gate: Gate, spec: MetricSpec, rows: _Rows, days: int = MIN_DAYS) -> str:
    """Why a gate cannot be judged on these rows, or empty."""
    cannot = _cannot_date(rows)
    if cannot:
        return cannot
    if len(rows.y) < gate.min_rows:
        return f"too few rows to tell: {len(rows.y)}, {gate.min_rows} are needed"
    if rows.days < days:
        return f"too few blocks to tell: {rows.days} days, {days} are needed"
    if math.isnan(metric(spec, rows.y, rows.candidate)):
        classes = "one class only" if len(np.unique(rows.y)) == 1 else "no such prediction"
        return f"{gate.metric} is not defined on these rows: {classes}"
    return ""


def _improvement(spec: MetricSpec, rows: _Rows, level: float) -> Interval:
    """Candidate against champion, turned so that positive is better."""
    assert rows.champion is not None  # checked with the input
    better, worse = rows.candidate, rows.champion
    if spec.sign < 0:
        better, worse = worse, better
    return difference(spec, rows.y, better, worse, rows.at_us, level=level)


def _both(spec: MetricSpec, rows: _Rows) -> dict[str, float | None]:
    assert rows.champion is not None  # checked with the input
    values = {"candidate": rows.candidate, "champion": rows.champion}
    return {name: metric(spec, rows.y, scores) for name, scores in values.items()}


def _result(
    gate: Gate,
    rows: _Rows,
    passed: bool,
    reason: str,
    found: Interval | None = None,
    evidence: dict[str, Any] | None = None,
) -> GateResult:
    estimate, low, high = found[:3] if found is not None else (math.nan,) * 3
    return GateResult(
        gate=gate,
        passed=passed,
        estimate=estimate,
        low=low,
        high=high,
        rows=len(rows.y),
        reason=reason,
        evidence={"days": rows.days, **(evidence or {})},
    )


def _describe(rows: _Rows, dropped: int) -> dict[str, Any]:
    told: dict[str, Any] = {
        "rows": len(rows.y),
        "positives": int(rows.y.sum()),
        "days": rows.days,
        "not_later": dropped,
    }
    if len(rows.y):
        told["from"] = from_micros(int(rows.at_us.min())).isoformat()
        told["to"] = from_micros(int(rows.at_us.max())).isoformat()
    return told


def _said(found: Interval) -> str:
    return f"{found.estimate:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"


def _plain(found: Interval) -> dict[str, Any]:
    return {"estimate": found.estimate, "low": found.low, "high": found.high, "days": found.days}
