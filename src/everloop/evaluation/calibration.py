"""Whether probabilities mean what they say: reliability, its error, slope and intercept.

Scores are put into bins of about equal numbers of rows. The plain calibration error (ECE) of a
perfect model is not 0 (with 100 rows a bin it is about 0.03), so what chance alone would show
stands beside it, and an error from which that is taken off. Intervals come from days as blocks.

Sources:
    Murphy, Journal of Applied Meteorology 12 (1973), with the terms within bins of Stephenson,
    Coelho and Jolliffe, Weather and Forecasting 23 (2008), so that the parts add up exactly.
    Kumar, Liang and Ma, NeurIPS (2019) for the bias. Cox, Biometrika 45 (1958) for the slope.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from everloop.evaluation.bootstrap import RESAMPLES, Interval, day_blocks
from everloop.evaluation.order import Floats, Ordered

__all__ = ["Bin", "BrierParts", "Calibration", "brier_parts", "calibration"]

_CLIP = 1e-6
# Mean distance from 0 of a normal variable, in standard deviations.
_FOLDED = math.sqrt(2 / math.pi)
_NOT_DEFINED = Interval(math.nan, math.nan, math.nan, 0)


class Bin(NamedTuple):
    """One line of the reliability table.

    Attributes:
        low, high: Lowest and highest score in it.
        score: Mean of the scores.
        rate: Share of positives, with the interval of Wilson (rows as if independent).
    """

    low: float
    high: float
    rows: int
    score: float
    rate: float
    rate_low: float
    rate_high: float


class BrierParts(NamedTuple):
    """The Brier score is `reliability` - `resolution` + `uncertainty` + `within`.

    Attributes:
        reliability: How far scores lie from rates, squared; 0 is best.
        resolution: How far the rates of bins lie from the base rate; high is best.
        uncertainty: What the base rate alone costs; the model has no part in it.
        within: What the bins hide; small where they are many.
    """

    brier: float
    reliability: float
    resolution: float
    uncertainty: float
    within: float


class Calibration(NamedTuple):
    """How well probabilities agree with what came.

    Attributes:
        bins: The reliability table, ascending.
        ece: Mean distance of score and rate over the bins, as it is: too high by chance.
        ece_of_chance: What it would be for a model that is calibrated perfectly.
        error: Root mean square of that distance with what chance adds taken off, 0 at least.
        slope: Of the logistic regression of the truth on the scores' logits; 1 is right, below
            it the scores are too extreme.
        intercept: What the logits are off by on the whole (slope held at 1); 0 is right, above it
            the scores are too low.
        parts: Of the Brier score.
    """

    bins: tuple[Bin, ...]
    ece: float
    ece_of_chance: float
    error: Interval
    slope: Interval
    intercept: Interval
    parts: BrierParts


def calibration(
    labels: Floats,
    scores: Floats,
    at_us: npt.NDArray[np.int64],
    *,
    bins: int = 10,
    level: float = 0.05,
) -> Calibration:
    """Measure the calibration of probabilities; NaN where it is not defined.

    Args:
        labels: 0 or 1, shape (n,).
        scores: Probabilities, 0 to 1, shape (n,).
        at_us: Time of each row, microseconds since 1970, UTC.
        bins: Most bins.
        level: Error probability on each side of the intervals.
    """
    if not len(labels):
        nothing = BrierParts(*(math.nan,) * 5)
        return Calibration(
            (), math.nan, math.nan, _NOT_DEFINED, _NOT_DEFINED, _NOT_DEFINED, nothing
        )
    codes, number = Ordered.of(labels, scores).bins(bins)
    days = day_blocks(at_us)
    blocks = int(days.max()) + 1
    cells = days * number + codes
    shape = (blocks, number)
    n, y, p = (
        np.bincount(cells, values, blocks * number).reshape(shape).astype(np.float64)
        for values in (None, labels, scores)
    )
    rows = n.sum(axis=0)
    rate, score = y.sum(axis=0) / rows, p.sum(axis=0) / rows
    slope, intercept = _recalibrated(labels, scores, days, blocks, level)
    return Calibration(
        _table(labels, scores, codes, number),
        float((rows * np.abs(score - rate)).sum()) / len(labels),
        float((rows * np.sqrt(score * (1 - score) / rows)).sum() * _FOLDED) / len(labels),
        _error(n, y, p, level),
        slope,
        intercept,
        brier_parts(labels, scores, codes),
    )


def brier_parts(labels: Floats, scores: Floats, codes: npt.NDArray[np.intp]) -> BrierParts:
    """The parts of the Brier score over the bins `codes`, which add up to it exactly."""
    rows = np.bincount(codes).astype(np.float64)
    filled = np.maximum(rows, 1)
    rate, score = np.bincount(codes, labels) / filled, np.bincount(codes, scores) / filled
    base, count = float(labels.mean()), len(labels)
    off, moved = scores - score[codes], labels - rate[codes]
    return BrierParts(
        float(((scores - labels) ** 2).mean()),
        float((rows * (score - rate) ** 2).sum()) / count,
        float((rows * (rate - base) ** 2).sum()) / count,
        base * (1 - base),
        float((off * off - 2 * off * moved).mean()),
    )


def _table(
    labels: Floats, scores: Floats, codes: npt.NDArray[np.intp], number: int
) -> tuple[Bin, ...]:
    low, high = np.full(number, np.inf), np.full(number, -np.inf)
    np.minimum.at(low, codes, scores)
    np.maximum.at(high, codes, scores)
    rows = np.bincount(codes, minlength=number)
    hits, sums = np.bincount(codes, labels, number), np.bincount(codes, scores, number)
    return tuple(
        Bin(
            float(low[i]), float(high[i]), int(rows[i]), float(sums[i] / rows[i]),
            float(hits[i] / rows[i]), *_wilson(float(hits[i]), int(rows[i])),
        )
        for i in range(number)
    )  # fmt: skip


def _wilson(hits: float, rows: int) -> tuple[float, float]:
    z = NormalDist().inv_cdf(0.95)
    middle = (hits + z * z / 2) / (rows + z * z)
    half = z / (rows + z * z) * math.sqrt(hits * (rows - hits) / rows + z * z / 4)
    return max(0.0, middle - half), min(1.0, middle + half)


def _squares(rows: Floats, hits: Floats, sums: Floats) -> tuple[Floats, Floats]:
    """Mean square of score less rate over the bins, as it is, and what of it is chance.

    Shapes (..., b) give (...).
    """
    filled = np.maximum(rows, 1)
    share = rows / rows.sum(axis=-1, keepdims=True)
    # Half a hit each way: a bin of no positives is not known for certain either.
    smooth = (hits + 0.5) / (filled + 1)
    chance = smooth * (1 - smooth) / filled
    return (share * ((sums - hits) / filled) ** 2).sum(axis=-1), (share * chance).sum(axis=-1)


def _error(n: Floats, y: Floats, p: Floats, level: float) -> Interval:
    """The root mean square error without chance; its interval from drawing days."""
    days = n.shape[0]
    plain, chance = _squares(n.sum(axis=0), y.sum(axis=0), p.sum(axis=0))
    square = float(plain - chance)
    estimate = math.sqrt(max(0.0, square))
    if days < 2:
        return Interval(estimate, math.nan, math.nan, days)
    seed = int.from_bytes(blake3(b"calibration" + n.tobytes()).digest(8))
    drawn = np.random.default_rng(seed).multinomial(days, np.full(days, 1 / days), RESAMPLES)
    weights = drawn.astype(np.float64)
    again, more = _squares(weights @ n, weights @ y, weights @ p)
    values = again - more
    # Drawing adds the noise of the days once more; only the width is taken from it.
    values = np.sqrt(np.maximum(values - values.mean() + square, 0))
    low, high = np.quantile(values, (level, 1 - level))
    return Interval(estimate, float(low), float(high), days, float(values.std(ddof=1)))


def _recalibrated(
    labels: Floats, scores: Floats, days: npt.NDArray[np.intp], blocks: int, level: float
) -> tuple[Interval, Interval]:
    """Slope, and intercept at slope 1, with intervals from the sums of each day."""
    if len(np.unique(labels)) < 2:
        return _NOT_DEFINED, _NOT_DEFINED
    inside = np.clip(scores, _CLIP, 1 - _CLIP)
    logits = np.log(inside / (1 - inside))
    one = np.ones((len(labels), 1))
    moved = _logistic(one, labels, logits)
    both = (
        _logistic(np.column_stack([one, logits]), labels, np.zeros(len(labels)))
        if np.ptp(logits) > 0
        else None
    )
    intercept = _interval_of(one, labels, logits, moved, 0, days, blocks, level)
    design = np.column_stack([one, logits])
    slope = _interval_of(design, labels, np.zeros(len(labels)), both, 1, days, blocks, level)
    return slope, intercept


def _logistic(design: Floats, labels: Floats, offset: Floats) -> Floats | None:
    """Coefficients of a logistic regression by Newton's method; None where it has no end."""
    found = np.zeros(design.shape[1])
    for _ in range(50):
        chance = 1 / (1 + np.exp(-np.clip(design @ found + offset, -30, 30)))
        weight = chance * (1 - chance)
        try:
            step = np.linalg.solve(
                design.T @ (design * weight[:, None]), design.T @ (labels - chance)
            )
        except np.linalg.LinAlgError:
            return None
        found = found + step
        if not np.isfinite(found).all() or np.abs(found).max() > 1e3:
            return None  # the scores tell the classes apart without a fault
        if np.abs(step).max() < 1e-9:
            return found
    return None


def _interval_of(
    design: Floats,
    labels: Floats,
    offset: Floats,
    found: Floats | None,
    which: int,
    days: npt.NDArray[np.intp],
    blocks: int,
    level: float,
) -> Interval:
    if found is None:
        return Interval(math.nan, math.nan, math.nan, blocks)
    chance = 1 / (1 + np.exp(-np.clip(design @ found + offset, -30, 30)))
    inverse = np.linalg.inv(design.T @ (design * (chance * (1 - chance))[:, None]))
    rows = design * (labels - chance)[:, None]
    by_day = np.column_stack([np.bincount(days, column, blocks) for column in rows.T])
    scale = blocks / (blocks - 1) if blocks > 1 else math.nan
    spread = math.sqrt(float((inverse @ (by_day.T @ by_day) @ inverse)[which, which]) * scale)
    half = NormalDist().inv_cdf(1 - level) * spread
    value = float(found[which])
    return Interval(value, value - half, value + half, blocks, spread)
