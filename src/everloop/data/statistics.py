"""Statistics from counts alone: ranking, distances, tests and their correction. Pure functions."""

from __future__ import annotations

import math

import numpy as np

from everloop.data.bins import Counts, Floats

__all__ = [
    "auc_from_counts",
    "chi2_p",
    "chi2_tail",
    "holm",
    "ks_distance",
    "ks_p",
    "share_p",
    "total_variation",
]


def auc_from_counts(negatives: Counts, positives: Counts) -> float | None:
    """Area under the ROC curve from counts by score bin.

    Args:
        negatives: Rows with label 0 in each bin, bins ascending by score. Shape (b,).
        positives: Rows with label 1. Shape (b,).

    Returns:
        The share of pairs ranked rightly, a tie (same bin) counting half; None with one class only,
        for it is undefined then, not 0.5.
    """
    zeros, ones = int(negatives.sum()), int(positives.sum())
    if not zeros or not ones:
        return None
    below = np.cumsum(negatives) - negatives
    won = 2 * int((positives * below).sum()) + int((positives * negatives).sum())
    return won / (2 * zeros * ones)


def ks_distance(left: Counts, right: Counts) -> Floats:
    """Largest gap between the distribution functions. Shapes (..., b) give (...); empty gives 0."""
    gap = np.cumsum(_shares(left) - _shares(right), axis=-1)
    return np.asarray(np.abs(gap).max(axis=-1))


def total_variation(left: Counts, right: Counts) -> Floats:
    """Share of the mass that moved between bins, in any order. Shapes (..., b) give (...)."""
    return np.asarray(np.abs(_shares(left) - _shares(right)).sum(axis=-1) / 2)


def ks_p(distance: float, n: int, m: int) -> float:
    """p-value of a two-sample Kolmogorov-Smirnov distance; conservative where values tie.

    Source:
        Stephens (1970), the asymptotic tail with his small-sample correction.
    """
    if not n or not m:
        return 1.0
    size = math.sqrt(n * m / (n + m))
    x = (size + 0.12 + 0.11 / size) * distance
    if x < 0.2:  # the series converges slowly there, and the tail is 1 to 12 digits
        return 1.0
    terms = (math.copysign(math.exp(-2 * k * k * x * x), k % 2 - 0.5) for k in range(1, 101))
    return min(1.0, max(0.0, 2 * sum(terms)))


def chi2_p(left: Counts, right: Counts) -> float:
    """p-value of the two-sample chi-square test of homogeneity. Shapes (b,).

    Two samples: taking one as the exact truth raises false alarms with the number of levels. Bins
    that expect fewer than 5 rows are merged into one.
    """
    n, m = int(left.sum()), int(right.sum())
    if not n or not m:
        return 1.0
    both = left + right
    scarce = both * (min(n, m) / (n + m)) < 5
    rows = np.stack([left, right])
    merged = np.concatenate([rows[:, ~scarce], rows[:, scarce].sum(axis=1, keepdims=True)], axis=1)
    merged = merged[:, merged.sum(axis=0) > 0]
    freedom = merged.shape[1] - 1
    if freedom < 1:
        return 1.0
    total = merged.sum(axis=0)
    expected = np.outer([n, m], total) / (n + m)
    return chi2_tail(float(((merged - expected) ** 2 / expected).sum()), freedom)


def chi2_tail(statistic: float, freedom: int) -> float:
    """Probability that a chi-square variable of `freedom` degrees exceeds `statistic`.

    Source:
        The regularised incomplete gamma function by its series below and its continued fraction
        (Lentz) above a + 1: Press et al., Numerical Recipes, section 6.2.
    """
    a, x = freedom / 2, statistic / 2
    if x <= 0:
        return 1.0
    scale = math.exp(a * math.log(x) - x - math.lgamma(a))
    if x < a + 1:
        term = total = 1 / a
        step = a
        while abs(term) > abs(total) * 1e-15:
            step += 1
            term *= x / step
            total += term
        return max(0.0, 1 - total * scale)
    tiny = 1e-300
    b = x + 1 - a
    c, d = 1 / tiny, 1 / b
    fraction = d
    for i in range(1, 1000):
        factor = -i * (i - a)
        b += 2
        d = 1 / (_away(factor * d + b, tiny))
        c = _away(b + factor / c, tiny)
        fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return min(1.0, fraction * scale)


def share_p(hits: int, n: int, reference_hits: int, m: int) -> float:
    """One-sided p-value that a share is larger than the reference's (two-proportion z test)."""
    if not n or not m:
        return 1.0
    # Half a hit keeps the reference's share above 0, whose spread would be 0 otherwise.
    pooled = (hits + reference_hits + 0.5) / (n + m + 1)
    spread = math.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
    z = (hits / n - reference_hits / m) / spread if spread else 0.0
    return 0.5 * math.erfc(z / math.sqrt(2))


def holm(p: list[float]) -> list[float]:
    """Corrected p-values, in the order given; keeps the chance of any false alarm at the level.

    Source:
        Holm (1979), A simple sequentially rejective multiple test procedure.
    """
    corrected = [1.0] * len(p)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        highest = max(highest, min(1.0, (len(p) - rank) * p[index]))
        corrected[index] = highest
    return corrected


def _shares(counts: Counts) -> Floats:
    total = counts.sum(axis=-1, keepdims=True)
    return np.asarray(counts / np.maximum(total, 1), dtype=np.float64)


def _away(value: float, tiny: float) -> float:
    return value if abs(value) > tiny else tiny
