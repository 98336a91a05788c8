"""Paired bootstrap of a metric, and of the difference of two models, by blocks of days.

Rows of one day are not independent (weather, a strike), so days are drawn, not rows; both models
are scored on the same days. Days are summed first, so a resample costs a product with the weights
of the days and not a pass over the rows.

Metrics of sums resample exactly. Those of the order of the scores (AUC, average precision) resample
counts in at most 512 score bins (quantiles of all scores, exact where there are no more distinct
scores); the resampled values are moved by the difference between exact and binned metric, so the
interval surrounds the exact estimate and only its width has the resolution of the bins, about 0.001
of AUC at worst.

Source:
    Efron and Tibshirani, An Introduction to the Bootstrap (1993), sections 8.5 and 13.3.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from everloop.evaluation.metrics import MetricSpec
from everloop.evaluation.order import Floats, Ordered, auc_of_bins, precision_of_bins
from everloop.evaluation.sums import row_sums

__all__ = [
    "AUC_BINS",
    "MIN_DAYS",
    "RESAMPLES",
    "Interval",
    "day_blocks",
    "difference",
    "draws",
    "resampled",
    "single",
]

RESAMPLES = 2_000
AUC_BINS = 512
#: With fewer days resampling them says little: the interval would be far too narrow.
MIN_DAYS = 8

_DAY_US = 86_400_000_000
_OF_BINS = {"auc": auc_of_bins, "average_precision": precision_of_bins}


class Interval(NamedTuple):
    """An estimate with its percentile interval; NaN where it is not defined.

    Attributes:
        days: Number of blocks that were drawn from.
        spread: Standard deviation of the resampled values: the standard error.
    """

    estimate: float
    low: float
    high: float
    days: int
    spread: float = math.nan


_NOTHING = Interval(math.nan, math.nan, math.nan, 0)


def day_blocks(at_us: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
    """The number of each row's UTC day among the days that occur, shape (n,), from 0."""
    if not len(at_us):
        return np.empty(0, dtype=np.intp)
    day = at_us // _DAY_US
    first = int(day.min())
    span = int(day.max()) - first + 1
    if span > 16 * len(day) + 4096:  # a few rows centuries apart: a table of days would be vast
        return np.unique(day, return_inverse=True)[1]
    day -= first
    seen = np.bincount(day, minlength=span) > 0
    return day if seen.all() else (np.cumsum(seen) - 1)[day]


def difference(
    spec: MetricSpec,
    labels: Floats,
    first: Floats,
    second: Floats,
    at_us: npt.NDArray[np.int64],
    *,
    level: float = 0.05,
    weights: Floats | None = None,
    query: npt.NDArray[Any] | None = None,
    resamples: int = RESAMPLES,
) -> Interval:
    """The metric of `first` minus that of `second` on the same rows.

    Args:
        spec: The metric.
        labels: The truth, as ``metrics`` has it for each task.
        first: Scores, finite.
        second: Scores of the other model on the same rows.
        at_us: Time of each row, microseconds since 1970, UTC.
        level: Error probability on each side: the interval holds ``1 - 2 * level``.
        weights: How much each row counts, 0 and above, shape (n,).
        query: Which rows are ranked together; a query belongs to the day of its first row.
        resamples: How many times the days are drawn.
    """
    if not len(labels):
        return _NOTHING
    days = day_blocks(at_us)
    drawn = draws(spec, days, resamples)
    one, of_one = resampled(spec, labels, first, days, drawn, weights, query)
    other, of_other = resampled(spec, labels, second, days, drawn, weights, query)
    return _interval(one - other, of_one - of_other, drawn, level)


def single(
    spec: MetricSpec,
    labels: Floats,
    scores: Floats,
    at_us: npt.NDArray[np.int64],
    *,
    level: float = 0.05,
    weights: Floats | None = None,
    query: npt.NDArray[Any] | None = None,
    resamples: int = RESAMPLES,
) -> Interval:
    """The metric of one model; arguments as for :func:`difference`."""
    if not len(labels):
        return _NOTHING
    days = day_blocks(at_us)
    drawn = draws(spec, days, resamples)
    estimate, of_drawn = resampled(spec, labels, scores, days, drawn, weights, query)
    return _interval(estimate, of_drawn, drawn, level)


def draws(spec: MetricSpec, days: npt.NDArray[np.intp], resamples: int) -> Floats:
    """How often each day is drawn, shape (1 + resamples, days); the first row is the sample itself.

    The seed follows from what is asked, so that the same question gets the same answer, in
    whichever order the rows come.
    """
    sizes = np.bincount(days)
    seed = blake3(f"{spec.name}@{spec.threshold}".encode() + sizes.tobytes()).digest(8)
    generator = np.random.default_rng(int.from_bytes(seed))
    count = len(sizes)
    drawn = generator.multinomial(count, np.full(count, 1 / count), resamples)
    return np.vstack([np.ones((1, count)), drawn])


def resampled(
    spec: MetricSpec,
    labels: Floats,
    scores: Floats,
    days: npt.NDArray[np.intp],
    drawn: Floats,
    weights: Floats | None = None,
    query: npt.NDArray[Any] | None = None,
) -> tuple[float, Floats]:
    """The metric, and that of each resample, shape (1 + resamples,); NaN where not defined.

    Args:
        days: The block of each row, from 0.
        drawn: How often each block is drawn, as :func:`draws` gives it.
    """
    count = drawn.shape[1]
    with np.errstate(invalid="ignore", divide="ignore"):
        if spec.is_ratio:
            sums = row_sums(spec.name, spec.threshold, labels, scores, query)
            by_day = np.stack([_by_day(one, days, count, weights) for one in sums.columns])
            return float(sums.value(by_day.sum(axis=1))), sums.value(by_day @ drawn.T)
        ordered = Ordered.of(labels, scores, weights)
        bins, number = ordered.bins(AUC_BINS)
        cells = days * number + bins
        hits = labels if weights is None else labels * weights
        misses = 1 - labels if weights is None else (1 - labels) * weights
        shape = (count, number)
        positive = drawn @ np.bincount(cells, hits, count * number).reshape(shape)
        negative = drawn @ np.bincount(cells, misses, count * number).reshape(shape)
        exact = ordered.auc() if spec.name == "auc" else ordered.average_precision()
        return exact, _OF_BINS[spec.name](positive, negative)


def _by_day(
    column: npt.NDArray[Any] | None,
    days: npt.NDArray[np.intp],
    count: int,
    weights: Floats | None,
) -> Floats:
    if weights is not None:
        column = weights if column is None else column * weights
    return np.bincount(days, column, count).astype(np.float64, copy=False)


def _interval(estimate: float, drawn: Floats, weights: Floats, level: float) -> Interval:
    days, resamples = weights.shape[1], len(drawn) - 1
    moved = drawn[1:] + (estimate - drawn[0])
    moved = moved[np.isfinite(moved)]
    # A resample without positives has no AUC; if that is common the interval means nothing.
    if math.isnan(estimate) or len(moved) < resamples * 0.9:
        return Interval(estimate, math.nan, math.nan, days)
    low, high = np.quantile(moved, (level, 1 - level))
    spread = float(moved.std(ddof=1)) if len(moved) > 1 else math.nan
    return Interval(estimate, float(low), float(high), days, spread)
