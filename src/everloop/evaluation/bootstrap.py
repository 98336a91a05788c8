"""Paired bootstrap of a metric, and of the difference of two models, by blocks of days.

Rows of one day are not independent (weather, a strike), so days are drawn, not rows; both models
are scored on the same days. Days are summed first, so a resample costs a product with the weights
of the days and not a pass over the rows.

Ratio metrics resample exactly. AUC resamples counts in at most 512 score bins (quantiles of all
scores, exact where there are no more distinct scores); the resampled values are moved by the
difference between exact and binned AUC, so the interval surrounds the exact estimate and only its
width has the resolution of the bins, about 0.001 of AUC at worst.

Source:
    Efron and Tibshirani, An Introduction to the Bootstrap (1993), sections 8.5 and 13.3.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from everloop.evaluation.metrics import Floats, MetricSpec, metric, ratio_parts

__all__ = ["AUC_BINS", "MIN_DAYS", "RESAMPLES", "Interval", "day_blocks", "difference", "single"]

RESAMPLES = 2_000
AUC_BINS = 512
#: With fewer days resampling them says little: the interval would be far too narrow.
MIN_DAYS = 8

_DAY_US = 86_400_000_000


class Interval(NamedTuple):
    """An estimate with its percentile interval; NaN where it is not defined.

    Attributes:
        days: Number of blocks that were drawn from.
    """

    estimate: float
    low: float
    high: float
    days: int


_NOTHING = Interval(math.nan, math.nan, math.nan, 0)


def day_blocks(at_us: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
    """The number of each row's UTC day among the days that occur, shape (n,), from 0."""
    return np.unique(at_us // _DAY_US, return_inverse=True)[1]


def difference(
    spec: MetricSpec,
    labels: Floats,
    first: Floats,
    second: Floats,
    at_us: npt.NDArray[np.int64],
    *,
    level: float = 0.05,
) -> Interval:
    """The metric of `first` minus that of `second` on the same rows.

    Args:
        labels: 0 or 1, shape (n,).
        first: Scores, shape (n,), finite.
        second: Scores of the other model on the same rows.
        at_us: Time of each row, microseconds since 1970, UTC.
        level: Error probability on each side: the interval holds ``1 - 2 * level``.
    """
    if not len(labels):
        return _NOTHING
    estimate = metric(spec, labels, first) - metric(spec, labels, second)
    days = day_blocks(at_us)
    weights = _draws(spec, days)
    drawn = _resampled(spec, labels, first, days, weights)
    drawn = drawn - _resampled(spec, labels, second, days, weights)
    return _interval(estimate, drawn, weights, level)


def single(
    spec: MetricSpec,
    labels: Floats,
    scores: Floats,
    at_us: npt.NDArray[np.int64],
    *,
    level: float = 0.05,
) -> Interval:
    """The metric of one model; arguments as for :func:`difference`."""
    if not len(labels):
        return _NOTHING
    days = day_blocks(at_us)
    weights = _draws(spec, days)
    drawn = _resampled(spec, labels, scores, days, weights)
    return _interval(metric(spec, labels, scores), drawn, weights, level)


def _draws(spec: MetricSpec, days: npt.NDArray[np.intp]) -> Floats:
    """How often each day is drawn, shape (1 + RESAMPLES, days); the first row is the sample itself.

    The seed follows from what is asked, so that the same question gets the same answer, in
    whichever order the rows come.
    """
    sizes = np.bincount(days)
    seed = blake3(f"{spec.name}@{spec.threshold}".encode() + sizes.tobytes()).digest(8)
    generator = np.random.default_rng(int.from_bytes(seed))
    count = len(sizes)
    drawn = generator.multinomial(count, np.full(count, 1 / count), RESAMPLES)
    return np.vstack([np.ones((1, count)), drawn])


def _resampled(
    spec: MetricSpec, labels: Floats, scores: Floats, days: npt.NDArray[np.intp], weights: Floats
) -> Floats:
    """The metric of each resample, shape (1 + RESAMPLES,); NaN where it is not defined."""
    count = weights.shape[1]
    with np.errstate(invalid="ignore", divide="ignore"):
        if spec.is_ratio:
            above, below = ratio_parts(spec, labels, scores)
            sums = weights @ np.bincount(days, above, count)
            return np.asarray(sums / (weights @ np.bincount(days, below, count)))
        bins, number = _score_bins(scores)
        cells = days * number + bins
        shape = (count, number)
        positive = weights @ np.bincount(cells, labels, count * number).reshape(shape)
        negative = weights @ np.bincount(cells, 1 - labels, count * number).reshape(shape)
        # A negative counts whole for each positive in a higher bin and half in its own.
        beaten = np.cumsum(negative, axis=1) - negative / 2
        pairs = positive.sum(axis=1) * negative.sum(axis=1)
        return np.asarray(np.einsum("ij,ij->i", positive, beaten) / pairs)


def _score_bins(scores: Floats) -> tuple[npt.NDArray[np.intp], int]:
    values, which = np.unique(scores, return_inverse=True)
    if len(values) <= AUC_BINS:
        return which, len(values)
    edges = np.unique(np.quantile(scores, np.linspace(0, 1, AUC_BINS + 1)[1:-1]))
    return np.searchsorted(edges, values, side="right")[which], len(edges) + 1


def _interval(estimate: float, drawn: Floats, weights: Floats, level: float) -> Interval:
    days = weights.shape[1]
    moved = drawn[1:] + (estimate - drawn[0])
    moved = moved[np.isfinite(moved)]
    # A resample without positives has no AUC; if that is common the interval means nothing.
    if math.isnan(estimate) or len(moved) < RESAMPLES * 0.9:
        return Interval(estimate, math.nan, math.nan, days)
    low, high = np.quantile(moved, (level, 1 - level))
    return Interval(estimate, float(low), float(high), days)
