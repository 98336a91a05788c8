"""Checks of a version against time and against the versions before it.

Distances between distributions are those that monitors use (``everloop.data.statistics``), over
bins that are taken from the reference.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence, Set
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from everloop.core.check import OVER_TIME, Check
from everloop.core.dataset import DatasetVersion
from everloop.core.quality import RuleResult
from everloop.core.schema import Schema
from everloop.core.time import utc
from everloop.data.bins import BINS, NULL, UNSEEN, fit_feature
from everloop.data.statistics import ks_distance, total_variation

__all__ = ["MOST_PAST", "Past", "judge_over_time"]

#: Versions that an anomaly is told from: fewer have no spread, more are of other times.
_FEWEST = 5
MOST_PAST = 60
#: Earlier versions of the same weekday from which on only those are looked at.
_WEEKDAYS = 5
#: Robust standard deviations from the median. Source: Iglewicz and Hoaglin, How to Detect and
#: Handle Outliers (1993), who advise 3.5.
_FAR = 3.5


class Past(NamedTuple):
    """A version with those before it.

    Attributes:
        earlier: Oldest first.
        now: The catalog's clock.
        values: A column of a version.
        find: A version by number or tag.
        grown: Numbers of those that came to be by rows being added to the one before.
    """

    version: DatasetVersion
    earlier: Sequence[DatasetVersion]
    now: datetime
    values: Callable[[DatasetVersion, str], pa.ChunkedArray]
    find: Callable[[str], DatasetVersion]
    grown: Set[int]


def judge_over_time(past: Past, schema: Schema) -> tuple[list[RuleResult], dict[str, str]]:
    """The checks of `schema` over time that are broken, and those that cannot be judged yet.

    Raises:
        NotFound: If a check names a version or column that is not there.
    """
    broken, unjudged = [], {}
    for check in schema.checks:
        if check.kind in OVER_TIME:
            told, value, why = _JUDGES[check.kind](check, past)
            if why:
                unjudged[check.name] = why
            elif told:
                reason = f"{told}: {check.reason}" if check.reason else told
                broken.append(
                    RuleResult(
                        rule=check.name, on_fail=check.on_fail, reason=reason, owner=check.owner,
                        columns=check.columns, value=value,
                    )
                )  # fmt: skip
    return broken, unjudged


# What is wrong, the figure, and why nothing can be said.
_Answer = tuple[str, float | None, str]


def _freshness(check: Check, past: Past) -> _Answer:
    assert check.le is not None
    latest: datetime | None = past.version.created_at
    if check.columns:
        newest = pc.max(past.values(past.version, check.columns[0])).as_py()
        if newest is not None and not isinstance(newest, datetime):
            newest = datetime(newest.year, newest.month, newest.day, tzinfo=UTC)
        latest = None if newest is None else utc(newest)
    if latest is None:
        return f"{check.columns[0]} has no value, so nothing says how old it is", None, ""
    age = (past.now - latest).total_seconds()
    told = f"the latest value is {age:.0f} s old, above {check.le:g} s" if age > check.le else ""
    return told, age, ""


def _volume(check: Check, past: Past) -> _Answer:
    if not past.earlier:
        return "", None, "there is no version before it"
    before = past.earlier[-1]
    if not before.rows:
        return "", None, f"{before.ref} has no rows"
    share = past.version.rows / before.rows
    told = f"{past.version.rows} rows are {share:g} of the {before.rows} of {before.ref}"
    if check.ge is not None and share < check.ge:
        return f"{told}, below {check.ge:g}", share, ""
    if check.le is not None and share > check.le:
        return f"{told}, above {check.le:g}", share, ""
    return "", share, ""


def _drift(check: Check, past: Past) -> _Answer:
    assert check.le is not None
    if not check.to and not past.earlier:
        return "", None, "there is no version before it"
    reference = past.find(check.to) if check.to else past.earlier[-1]
    column = check.columns[0]
    old, new = past.values(reference, column), past.values(past.version, column)
    if pa.types.is_temporal(old.type):
        old, new = (one.cast(pa.int64()) if pa.types.is_timestamp(one.type)
                    else one.cast(pa.int32()) for one in (old, new))  # fmt: skip
    bins = fit_feature(column, old)
    left, right = bins.count(old), bins.count(new)
    if bins.kind == "numeric":
        distance = float(ks_distance(left[:BINS], right[:BINS]))
    else:
        slots = [*range(BINS), NULL, *([UNSEEN] if bins.kind == "levels" else [])]
        distance = float(total_variation(left[slots], right[slots]))
    told = f"{column} is {distance:.3g} from {reference.ref}, above {check.le:g}"
    return told if distance > check.le else "", distance, ""


def _anomaly(check: Check, past: Past) -> _Answer:
    if len(past.earlier) < _FEWEST:
        return "", None, f"{len(past.earlier)} versions before it; {_FEWEST} have a spread"
    earlier = list(past.earlier[-MOST_PAST:])
    same = [v for v in earlier if v.created_at.weekday() == past.version.created_at.weekday()]
    by_weekday = len(same) >= _WEEKDAYS
    asked = same if by_weekday else earlier
    wrong = []
    for name, figure in _figures(check, past):
        known = [value for v in asked if (value := figure(v)) is not None]
        value = figure(past.version)
        if len(known) < _FEWEST:
            continue
        if value is None:
            wrong.append(f"{name} has no value")
            continue
        middle = statistics.median(known)
        far = _distance(value, known, middle)
        if far > _FAR:
            of = "earlier versions of this weekday" if by_weekday else "earlier versions"
            wrong.append(f"{name} is {value:g}; the median of {len(known)} {of} is {middle:g}")
    return "; ".join(wrong), None, ""


def _figures(
    check: Check, past: Past
) -> list[tuple[str, Callable[[DatasetVersion], float | None]]]:
    numbers = {v.number: v for v in [*past.earlier, past.version]}

    def rows(version: DatasetVersion) -> float | None:
        # Of a table that is appended to, what came with each version.
        before = numbers.get(version.parent)
        if before is not None and version.number in past.grown:
            return float(version.rows - before.rows)
        return float(version.rows)

    found: list[tuple[str, Callable[[DatasetVersion], float | None]]] = [("rows", rows)]
    for column in check.columns:
        found.append((f"null share of {column}", partial(_null_share, past, column)))
        kind = past.version.schema.field(column).type
        if kind.startswith(("int", "uint", "float")):
            found.append((f"mean of {column}", partial(_mean, past, column)))
    return found


def _null_share(past: Past, column: str, version: DatasetVersion) -> float | None:
    if column not in version.schema.names or not version.rows:
        return None
    return float(pc.sum(pc.is_null(past.values(version, column), nan_is_null=True)).as_py()) / (
        version.rows
    )


def _mean(past: Past, column: str, version: DatasetVersion) -> float | None:
    if column not in version.schema.names:
        return None
    values = past.values(version, column).cast(pa.float64()).to_numpy()
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else None


def _distance(value: float, known: Sequence[float], middle: float) -> float:
    """Robust standard deviations from the median.

    Where more than half of the values are equal their MAD is 0: the mean deviation stands in, and a
    thousandth of the median below that, so that a figure which never moved may move a little.
    """
    away = [abs(one - middle) for one in known]
    spread = 1.4826 * statistics.median(away) or 1.2533 * statistics.fmean(away)
    return abs(value - middle) / max(spread, abs(middle) / 1000, 1e-12)


_JUDGES: dict[str, Callable[[Check, Past], _Answer]] = {
    "freshness": _freshness,
    "volume": _volume,
    "drift": _drift,
    "anomaly": _anomaly,
}
