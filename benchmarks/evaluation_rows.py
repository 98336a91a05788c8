"""The paired bootstrap beside a raw pass with NumPy: the same blocks, the same resamples."""

from __future__ import annotations

import numpy as np

from benchmarks.harness import Context, Row, in_turns, timed
from everloop.evaluation.bootstrap import difference
from everloop.evaluation.metrics import parse_metric

__all__ = ["bootstrap_rows"]

RESAMPLES = 1_000
DAYS = 365
DAY_US = 86_400_000_000

_Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def sample(rows: int) -> tuple[_Array, _Array, _Array, np.ndarray]:
    """Labels, two models' scores, and times within a year, mixed."""
    random = np.random.default_rng(1)
    logit = random.normal(-1, 1.2, rows)
    y = (random.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.float64)
    first, second = (
        1 / (1 + np.exp(-(logit + random.normal(0, noise, rows)))) for noise in (0.4, 0.6)
    )
    return y, first, second, random.integers(0, DAYS * DAY_US, rows)


def raw_brier(y: _Array, first: _Array, second: _Array, at_us: np.ndarray) -> tuple[float, ...]:
    """Square both errors, sum by day, draw the days: no check and no name."""
    days = at_us // DAY_US
    count = int(days.max()) + 1
    sizes = np.bincount(days, minlength=count)
    sums = [np.bincount(days, (scores - y) ** 2, count) for scores in (first, second)]
    drawn = np.random.default_rng(2).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    weights = drawn.astype(np.float64)
    below = weights @ sizes
    values = (weights @ sums[0]) / below - (weights @ sums[1]) / below
    low, high = np.quantile(values, (0.05, 0.95))
    return float((sums[0].sum() - sums[1].sum()) / len(y)), float(low), float(high)


def raw_auc(y: _Array, first: _Array, second: _Array, at_us: np.ndarray) -> tuple[float, ...]:
    """Sort each model's scores once, count by day and bin, draw the days."""
    days = at_us // DAY_US
    count, bins = int(days.max()) + 1, 512
    drawn = np.random.default_rng(2).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    weights = np.vstack([np.ones((1, count)), drawn])
    values = np.zeros(RESAMPLES + 1)
    for scores, sign in ((first, 1), (second, -1)):
        place = np.empty(len(y), dtype=np.int64)
        place[np.argsort(scores)] = np.arange(len(y)) * bins // len(y)
        cells = days * bins + place
        positive, negative = (
            weights @ np.bincount(cells, truth, count * bins).reshape(count, bins)
            for truth in (y, 1 - y)
        )
        beaten = np.cumsum(negative, axis=1) - negative / 2
        pairs = positive.sum(axis=1) * negative.sum(axis=1)
        values += sign * np.einsum("ij,ij->i", positive, beaten) / pairs
    low, high = np.quantile(values[1:], (0.05, 0.95))
    return float(values[0]), float(low), float(high)


def bootstrap_rows(context: Context) -> list[Row]:
    """One row a metric: the difference of two models on a million rows."""
    rows = context.size(1_000_000, 100_000)
    y, first, second, at_us = sample(rows)
    found = []
    for name, raw in (("brier", raw_brier), ("auc", raw_auc)):
        repeats = context.repeats(10 if name == "brier" else 5)
        spec = parse_metric(name)
        ours = difference(spec, y, first, second, at_us, resamples=RESAMPLES)
        expected = raw(y, first, second, at_us)
        # Other draws of the same days: ends agree to a tenth of the interval.
        near = 0.1 * (expected[2] - expected[1])
        equal = all(abs(a - b) < near for a, b in zip(ours[:3], expected, strict=True))
        seconds = in_turns(
            {
                "everloop": timed(
                    lambda spec=spec: difference(spec, y, first, second, at_us, resamples=RESAMPLES)
                ),
                "limit": timed(lambda raw=raw: raw(y, first, second, at_us)),
            },
            repeats=repeats,
        )
        found.append(
            Row(
                area="automation",
                work=f"paired bootstrap of {name}: {rows:,} rows x {RESAMPLES:,} resamples by day",
                unit="s",
                everloop=seconds["everloop"],
                limit=seconds["limit"],
                limit_name="one pass with NumPy: sums by day, drawn days, product",
                answers_equal=equal,
                repeats=repeats,
            )
        )
    return found
