"""Reading the points of a metric, all of them or a sample for a chart, on the driver's cursor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from everloop.core.run import Metric
from everloop.tracking.store import chunks

__all__ = ["history_points", "sample_points"]

_OF = (
    "run_pk = (SELECT pk FROM runs WHERE id = {mark}) "
    "AND key_pk = (SELECT pk FROM metric_keys WHERE name = {mark})"
)
_POINTS = "SELECT step, at_ms, value, is_nan FROM metric_points WHERE "
#: Points that several workers log at one step are all drawn, up to so many for each that was asked.
_AT_A_STEP = 10
_ORDERS = {
    "time": "at_ms, step, value, is_nan",
    "step": "step, at_ms, value, is_nan",
}


class _Series:
    """One metric of one run, asked through `cursor`."""

    def __init__(self, cursor: Any, dialect: str, run_id: str, key: str) -> None:
        self._cursor = cursor
        self._mark = "?" if dialect == "sqlite" else "%s"
        self._of = _OF.format(mark=self._mark)
        self._names = (run_id, key)
        self._key = key

    def points(self, rest: str, *values: Any) -> list[Metric]:
        self._cursor.execute(f"{_POINTS}{self._of}{rest}", (*self._names, *values))
        key, nan = self._key, math.nan
        return [
            Metric(key=key, value=nan if is_nan else value, step=step, at_ms=at_ms)
            for step, at_ms, value, is_nan in self._cursor.fetchall()
        ]

    def after(self, order: str, place: tuple[Any, ...]) -> tuple[str, tuple[Any, ...]]:
        marks = ", ".join([self._mark] * len(place))
        return f" AND ({order}) > ({marks})", place

    def steps(self, bounds: str, *, descending: bool = False, limit: int = 0) -> list[int]:
        """Distinct steps, in order."""
        order = "DESC" if descending else "ASC"
        query = f"SELECT DISTINCT step FROM metric_points WHERE {self._of}{bounds}"
        query += f" ORDER BY step {order}" + (f" LIMIT {limit}" if limit else "")
        self._cursor.execute(query, self._names)
        return [row[0] for row in self._cursor.fetchall()]

    def spread(self, step: int, count: int) -> list[Metric]:
        """At most `count` points of one step, evenly by time; the last is among them."""
        at = f" AND step = {step}"
        ends = self.points(f"{at} ORDER BY at_ms LIMIT 1")
        ends += self.points(f"{at} ORDER BY at_ms DESC, value DESC, is_nan DESC LIMIT 1")
        if not ends:
            return []  # purged since
        first, last = ends[0].at_ms, ends[-1]
        found: list[Metric] = []
        for index in range(count - 1):
            since = first + round(index * (last.at_ms - first) / (count - 1))
            if not found or found[-1].at_ms < since:
                rest = f" AND at_ms >= {since} ORDER BY at_ms, value, is_nan LIMIT 1"
                found += self.points(at + rest)
        return found if found and found[-1] == last else [*found, last]

    def steps_from(self, wanted: Sequence[int], bounds: str) -> list[int]:
        """For each of `wanted` the first step there that is not before it, in order, once each."""
        found: set[int] = set()
        for part in chunks(wanted):
            rows = ", ".join(f"({step})" for step in part)
            # As many short walks into the index, whatever the length of the series.
            self._cursor.execute(
                f"WITH one AS (SELECT (SELECT pk FROM runs WHERE id = {self._mark}) AS run_pk, "
                f"(SELECT pk FROM metric_keys WHERE name = {self._mark}) AS key_pk) "
                "SELECT (SELECT step FROM metric_points WHERE metric_points.run_pk = one.run_pk "
                f"AND metric_points.key_pk = one.key_pk AND step >= wanted.column1{bounds} "
                f"ORDER BY step LIMIT 1) FROM one, (VALUES {rows}) AS wanted",
                self._names,
            )
            found.update(row[0] for row in self._cursor.fetchall() if row[0] is not None)
        return sorted(found)


def history_points(
    cursor: Any,
    dialect: str,
    run_id: str,
    key: str,
    *,
    limit: int,
    after: Metric | None,
    order: Literal["time", "step"],
) -> list[Metric]:
    """All points of a metric, or at most `limit` (0: all) that come after `after`."""
    series, columns = _Series(cursor, dialect, run_id, key), _ORDERS[order]
    rest, values = "", ()
    if after is not None:
        is_nan = math.isnan(after.value)
        place = (after.at_ms, after.step) if order == "time" else (after.step, after.at_ms)
        rest, values = series.after(columns, (*place, 0.0 if is_nan else after.value, is_nan))
    rest += f" ORDER BY {columns}" + (f" LIMIT {int(limit)}" if limit else "")
    return series.points(rest, *values)


def sample_points(
    cursor: Any,
    dialect: str,
    run_id: str,
    key: str,
    count: int,
    start_step: int | None,
    end_step: int | None,
) -> list[Metric]:
    """At most about `count` points of one run, evenly by step, with the first and last step."""
    series = _Series(cursor, dialect, run_id, key)
    bounds = "" if start_step is None else f" AND step >= {int(start_step)}"
    bounds += "" if end_step is None else f" AND step <= {int(end_step)}"
    first = series.steps(bounds, limit=1)
    if not first:
        return []
    (last,) = series.steps(bounds, descending=True, limit=1)
    sampled = _sampled(series, count, first[0], last, bounds)
    found: list[Metric] = []
    for part in chunks(sampled):
        steps = ", ".join(map(str, part))
        most = _AT_A_STEP * count + 1 - len(found)
        order = f"{_ORDERS['step']} LIMIT {most}"
        found += series.points(f" AND step IN ({steps}) ORDER BY {order}")
        if len(found) > _AT_A_STEP * count:
            break
    else:
        return found
    # A program that counts no steps logs all its points at step 0.
    share = max(1, count // len(sampled))
    return [point for step in sampled for point in series.spread(step, share)]


def _sampled(series: _Series, count: int, first: int, last: int, bounds: str) -> list[int]:
    span = last - first
    if span < count:
        return series.steps_from(range(first, last + 1), bounds)
    wanted = [first + round(index * span / (count - 1)) for index in range(count - 1)]
    steps = sorted({*series.steps_from(wanted, bounds), last})
    if 2 * len(steps) >= count:
        return steps
    # The steps lie in clusters, or are few: spread the sample over those that there are.
    steps = series.steps(bounds)
    if len(steps) <= count:
        return steps
    end = len(steps) - 1
    places = [round(index * end / (count - 1)) for index in range(count - 1)]
    return [steps[place] for place in (*places, end)]
