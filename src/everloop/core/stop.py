"""Rules that end a hopeless run early: an absolute bound, or the median of the runs before it.

Source of the median rule: Golovin et al., Google Vizier: A Service for Black-Box Optimization
(KDD 2017), section 3.2: a run is stopped at step s if its best value up to s is worse than the
median of the means, up to s, of the runs that finished.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from everloop.core.run import Metric
from everloop.errors import InvalidInput

__all__ = ["StopIf", "StopWatch", "stop_if"]

#: Finished runs that the median needs, and the newest that it looks at.
FEWEST, MOST = 3, 100
#: Points of each of them.
SAMPLED = 500

Curve = tuple[tuple[int, ...], tuple[float, ...]]


class StopIf(msgspec.Struct, frozen=True):
    """When to give a run up; made by :func:`stop_if`."""

    metric: str
    worse_than: float | Literal["median"]
    after: int
    goal: Literal["min", "max"]


def stop_if(
    metric: str,
    worse_than: float | Literal["median"] = "median",
    *,
    after: int = 0,
    goal: Literal["min", "max"] = "min",
) -> StopIf:
    """A rule for ``ev.run(..., stop=[...])``: when it holds, ``run.log`` raises RunStopped.

    The run then ends as killed, with the reason.

    Args:
        metric: The metric that is watched. A value that is NaN is worse than any.
        worse_than: A bound for each value; or ``"median"``: the best value so far against the
            median of the finished runs of the experiment (of their means up to the same step),
            which needs at least three of them.
        after: Steps below this one are left alone.
        goal: Whether low (``min``) or high (``max``) is good.

    Raises:
        InvalidInput: With everything that is wrong.
    """
    faults = []
    if not metric:
        faults.append(("metric", "is empty"))
    is_number = isinstance(worse_than, int | float) and not math.isnan(worse_than)
    if not is_number and worse_than != "median":
        faults.append(("worse_than", f"must be a number or 'median', got {worse_than!r}"))
    if goal not in ("min", "max"):
        faults.append(("goal", f"must be 'min' or 'max', got {goal!r}"))
    if faults:
        raise InvalidInput("the stopping rule is wrong", faults)
    return StopIf(metric, worse_than, after, goal)


class StopWatch:
    """Watches one run by one rule.

    Args:
        rule: The rule.
        others: Gives the points of finished runs, by step; asked once, when first needed.
    """

    def __init__(self, rule: StopIf, others: Callable[[], Sequence[Sequence[Metric]]]) -> None:
        self.rule = rule
        self._others = others
        self._curves: list[Curve] | None = None
        self._best: float | None = None

    def verdict(self, value: float, step: int) -> str:
        """Why the run should end now; empty while it may go on."""
        rule = self.rule
        if self._best is None or self._is_worse(self._best, value):
            self._best = value
        if step < rule.after:
            return ""
        if rule.worse_than != "median":
            bound = rule.worse_than
            told = f"{rule.metric} is {value:g} at step {step}, worse than {bound:g}"
            return told if self._is_worse(value, bound) else ""
        means = self._means(step)
        if len(means) < FEWEST:
            return ""
        import statistics  # with random and fractions

        median = statistics.median(means)
        if not self._is_worse(self._best, median):
            return ""
        return (
            f"{rule.metric} was at best {self._best:g} up to step {step}, worse than {median:g}, "
            f"the median of {len(means)} finished runs"
        )

    def _is_worse(self, value: float, bound: float) -> bool:
        if math.isnan(value):
            return not math.isnan(bound)
        return value > bound if self.rule.goal == "min" else value < bound

    def _means(self, step: int) -> list[float]:
        if self._curves is None:
            self._curves = [curve for points in self._others() if (curve := _curve(points))]
        found = []
        for steps, means in self._curves:
            place = bisect_right(steps, step)
            if place:
                found.append(means[place - 1])
        return found


def _curve(points: Sequence[Metric]) -> Curve | None:
    """Steps with the mean of all values up to each; NaN and infinities are left out."""
    steps, means, total = [], [], 0.0
    for point in points:
        if math.isfinite(point.value):
            total += point.value
            steps.append(point.step)
            means.append(total / len(steps))
    return (tuple(steps), tuple(means)) if steps else None
