"""From scores to effects: the bootstrap over rows of the hold-out and over seeds.

Every version is scored with the same seeds on the same rows, so a difference is taken row by row
and seed by seed. Groups of rows (or days) are drawn, the same ones for all seeds and versions. The
spread over seeds stands beside that over rows; drawing both at once would count what a seed does to
single rows three times. The interval is Student's t with degrees of freedom by Satterthwaite: five
seeds say less of their spread than a thousand rows say of theirs. Intervals of a family hold
together (Bonferroni).

What this does not hold is the luck of the draw of the training rows: they are what is tested.

Sources:
    Efron and Tibshirani, An Introduction to the Bootstrap (1993). Owen, The Pigeonhole Bootstrap,
    Annals of Applied Statistics 1 (2007), for what drawing both would count. Satterthwaite,
    Biometrics Bulletin 2 (1946).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from everloop.core.data_test import Answer, Effect
from everloop.evaluation.bootstrap import MIN_DAYS, draws, resampled
from everloop.evaluation.contrast import student_value
from everloop.evaluation.metrics import Floats, MetricSpec
from everloop.evaluation.metrics import metric as exact_metric

__all__ = ["MIN_ROWS", "SAME", "Measured", "effect_of", "interval_of", "measured", "number"]

#: Rows that a slice must have to be judged.
MIN_ROWS = 50
#: A standard error from so many is 3 % off, one of a slice 4 %.
_RESAMPLES = 600
_RESAMPLES_OF_SLICE = 300

SAME = Effect(estimate=0.0, low=0.0, high=0.0, spread=0.0, answer="same data")


class Measured(NamedTuple):
    """A metric with each seed, and in each resample of the rows.

    Attributes:
        exact: Shape (seeds,).
        drawn: Shape (seeds, resamples); NaN where a resample has only one class, or the like.
        blocks: How many groups of rows were drawn from.
    """

    exact: Floats
    drawn: Floats
    blocks: int

    def __sub__(self, other: Measured) -> Measured:
        return Measured(self.exact - other.exact, self.drawn - other.drawn, self.blocks)

    def scaled(self, factor: float) -> Measured:
        """All values times a number."""
        return Measured(self.exact * factor, self.drawn * factor, self.blocks)


def measured(
    spec: MetricSpec,
    y: Floats,
    scores: Sequence[Floats],
    blocks: npt.NDArray[np.intp],
    *,
    is_slice: bool = False,
) -> Measured:
    """Measure the scores of each seed.

    Args:
        spec: The metric.
        y: The truth, shape (n,).
        scores: Of each seed, shape (n,) or (n, k).
        blocks: The group of each row.
        is_slice: Whether this is one of many parts, for which fewer resamples must do.
    """
    _, places = np.unique(blocks, return_inverse=True)
    count = _RESAMPLES_OF_SLICE if is_slice else _RESAMPLES
    drawn = _draws(spec.name, spec.threshold, np.bincount(places).tobytes(), count)
    exact, values = [], []
    for one in scores:
        _, found = resampled(spec, y, one, places, drawn)
        exact.append(exact_metric(spec, y, one))
        values.append(found[1:])
    return Measured(np.array(exact), np.array(values), drawn.shape[1])


@lru_cache(maxsize=8)
def _draws(name: str, threshold: float, sizes: bytes, count: int) -> Floats:
    # Only how many rows a block has decides, and all versions and seeds are asked on the same.
    rows = np.frombuffer(sizes, dtype=np.intp)
    return draws(MetricSpec(name, threshold, 1), np.repeat(np.arange(len(rows)), rows), count)


class _Spread(NamedTuple):
    estimate: float
    spread: float
    freedom: float


def _spread(found: Measured) -> _Spread:
    """Mean over seeds, its standard error over rows and seeds, and the degrees of freedom."""
    estimate = float(found.exact.mean())
    seeds, resamples = found.drawn.shape
    well = np.isfinite(found.drawn).all(axis=0)
    if math.isnan(estimate) or well.sum() < 0.9 * resamples:
        return _Spread(estimate, math.nan, 0)
    drawn = found.drawn[:, well]
    of_rows = float(drawn.mean(axis=0).var(ddof=1))
    if seeds == 1:
        return _Spread(estimate, math.sqrt(of_rows), found.blocks - 1)
    # What is a seed's own on these very rows is in both parts; it is taken out of one of them.
    both = max(float(drawn.var(axis=1, ddof=1).mean()) - of_rows, 0.0) / (seeds - 1)
    of_seeds = max(float(found.exact.var(ddof=1)) / seeds - both, 0.0)
    total = of_rows + of_seeds
    if total == 0:
        return _Spread(estimate, 0.0, found.blocks - 1)
    freedom = total**2 / (of_rows**2 / max(found.blocks - 1, 1) + of_seeds**2 / (seeds - 1))
    return _Spread(estimate, math.sqrt(total), freedom)


def effect_of(
    difference: Measured,
    sign: int,
    *,
    level: float,
    family: int = 1,
    rows: int | None = None,
    more_variance: float = 0.0,
) -> Effect:
    """What a difference (this version minus the one it is held against) shows.

    Args:
        difference: Seed by seed, resample by resample.
        sign: 1 where higher is better, else -1.
        level: Error probability of the whole family of intervals, two-sided.
        family: How many intervals are to hold together.
        rows: Rows of the slice, where it is one: too few are not judged.
        more_variance: Of the estimate, from elsewhere.
    """
    estimate, spread, freedom = _spread(difference.scaled(sign))
    spread = math.sqrt(spread**2 + more_variance)
    is_small = rows is not None and rows < MIN_ROWS
    if is_small or difference.blocks < MIN_DAYS or math.isnan(spread):
        return Effect(estimate=number(estimate), answer="too small to tell")
    half = student_value(level / (2 * family), max(int(freedom), 1)) * spread if spread else 0.0
    low, high = estimate - half, estimate + half
    answer: Answer = "no difference shown"
    if low > 0:
        answer = "better"
    elif high < 0:
        answer = "worse"
    return Effect(estimate=estimate, low=low, high=high, spread=spread, answer=answer)


def interval_of(found: Measured, level: float) -> tuple[float | None, float | None]:
    """The interval of the metric itself."""
    estimate, spread, freedom = _spread(found)
    if math.isnan(spread):
        return None, None
    half = student_value(level / 2, max(int(freedom), 1)) * spread if spread else 0.0
    return estimate - half, estimate + half


def number(value: float) -> float | None:
    """A figure as JSON has it: None where it is not defined."""
    return float(value) if math.isfinite(value) else None
