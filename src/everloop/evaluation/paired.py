"""Two models on the same rows by formula, and what a hold-out could have seen at all.

The gates decide by the bootstrap of ``bootstrap``, which holds for every metric. McNemar's and
DeLong's tests stand beside it as a second opinion: the former takes rows as independent, the latter
can take blocks, which is what rows of the same day are.

Sources:
    McNemar, Psychometrika 12 (1947); the mid-p version as in Fagerland, Lydersen and Laake, BMC
    Medical Research Methodology 13 (2013). DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988),
    with blocks as in Obuchowski, Biometrics 53 (1997).
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from everloop.evaluation.order import Floats

__all__ = ["POWER", "DeLong", "McNemar", "days_for", "delong", "detectable", "mcnemar"]

#: The chance of seeing a difference that a hold-out must have to count as able to see it.
POWER = 0.8

_Bools = npt.NDArray[np.bool_]


class McNemar(NamedTuple):
    """Who was right where the other was wrong.

    Attributes:
        only_first: Rows that only the first model got right; `only_second` the same of the second.
        exact: Two-sided p-value of the exact test, which errs on the safe side.
        mid_p: The same with half the weight on what was seen: closer to the level, still safe.
    """

    only_first: int
    only_second: int
    exact: float
    mid_p: float


def mcnemar(first_right: _Bools, second_right: _Bools) -> McNemar:
    """Test whether two models are right equally often.

    Args:
        first_right: Whether the first model was right on each row, shape (n,).
        second_right: The same of the second on the same rows.
    """
    b = int(np.count_nonzero(first_right & ~second_right))
    c = int(np.count_nonzero(~first_right & second_right))
    n, least = b + c, min(b, c)
    # log of n over i from the ratio of neighbours, so that a million rows are no trouble.
    i = np.arange(1, least + 1)
    logs = np.concatenate(([0.0], np.cumsum(np.log((n - i + 1) / i)))) - n * math.log(2)
    top = float(logs.max())
    tail = math.exp(top) * float(np.exp(logs - top).sum())
    exact = min(1.0, 2 * tail)
    return McNemar(b, c, exact, min(1.0, 2 * tail - math.exp(float(logs[-1]))))


class DeLong(NamedTuple):
    """The AUC of two models and their difference, first minus second.

    Attributes:
        spread: Standard error of the difference.
        p: Two-sided p-value of no difference.
    """

    first: float
    second: float
    difference: float
    spread: float
    p: float


def delong(
    labels: Floats,
    first: Floats,
    second: Floats,
    *,
    blocks: npt.NDArray[np.intp] | None = None,
) -> DeLong:
    """Compare the AUC of two models on the same rows; NaN throughout with one class only.

    Args:
        labels: 0 or 1, shape (n,).
        first: Scores, shape (n,).
        second: Scores of the other model.
        blocks: The block of each row, from 0; rows of one block may depend on each other. Each row
            is a block of its own if not given.
    """
    positive = labels == 1
    m, n = int(positive.sum()), int((~positive).sum())
    if not m or not n:
        return DeLong(*(math.nan,) * 5)
    placed = [_placements(scores, positive) for scores in (first, second)]
    aucs = [float(up.mean()) for up, _ in placed]
    ups, downs = placed[0][0] - placed[1][0], placed[0][1] - placed[1][1]
    found = aucs[0] - aucs[1]
    if blocks is None:
        variance = _variance(ups) + _variance(downs)
    else:
        influence = np.empty(len(labels))
        influence[positive] = (ups - found) / m
        influence[~positive] = (downs - found) / n
        by_block = np.bincount(blocks, influence)
        count = len(by_block)
        variance = float(by_block @ by_block) * count / (count - 1) if count > 1 else math.nan
    spread = math.sqrt(variance) if variance >= 0 else math.nan
    if not spread:
        return DeLong(aucs[0], aucs[1], found, spread, 0.0 if found else 1.0)
    p = math.erfc(abs(found) / spread / math.sqrt(2))
    return DeLong(aucs[0], aucs[1], found, spread, p)


def detectable(spread: float, *, level: float = 0.05, power: float = POWER) -> float:
    """The smallest true difference that a one-sided test would have found with this power.

    Args:
        spread: Standard error of the difference, in its units.
        level: One-sided error probability of the test.
        power: The chance of finding it.
    """
    normal = NormalDist()
    return (normal.inv_cdf(1 - level) + normal.inv_cdf(power)) * spread


def days_for(effect: float, seen: float, days: int) -> int | None:
    """How many days would show a difference of `effect` where `days` show one of `seen`.

    The standard error falls with the root of the days. None where that cannot be said.
    """
    if not (effect > 0 and math.isfinite(seen)):
        return None
    return math.ceil(days * (seen / effect) ** 2)


def _placements(scores: Floats, positive: _Bools) -> tuple[Floats, Floats]:
    """The share of negatives below each positive, and of positives above each negative."""
    every = _midranks(scores)
    above, below = scores[positive], scores[~positive]
    ups = (every[positive] - _midranks(above)) / len(below)
    downs = 1 - (every[~positive] - _midranks(below)) / len(above)
    return ups, downs


def _midranks(scores: Floats) -> Floats:
    """Ranks from 1, equal scores sharing the mean of theirs."""
    order = np.argsort(scores)
    ordered = scores[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    sizes = np.diff(np.append(starts, len(ordered)))
    ranks = np.empty(len(scores))
    ranks[order] = np.repeat(starts + (sizes + 1) / 2, sizes)
    return ranks


def _variance(values: npt.NDArray[Any]) -> float:
    return float(values.var(ddof=1)) / len(values) if len(values) > 1 else math.nan
