"""KNN-Shapley: what each training row is worth to a vote of the k nearest, without training.

The utility of a set of training rows is the mean, over the rows of a hold-out, of the share of the
k nearest neighbours that have its label. The Shapley value of each row in that game follows from
one ranking for each hold-out row: with f_i = 1 if the i-th nearest of n has the right label,

    s_n = f_n min(k, n) / (k n),    s_i = s_{i+1} + (f_i - f_{i+1}) min(k, i) / (k i),

which sums to s_i = f_i w_i - sum over t > i of f_t (w_{t-1} - w_t) with w_t = 1 / max(k, t). Rows
at equal distances are ranked by their number.

Beyond rank m a row's value for one hold-out row lies within 1/m of 0, so that ranking all rows buys
little: with `epsilon` the nearest m = 1/epsilon are ranked and get their exact value; the rows
beyond share the exact sum of theirs, those of the right label one mean and the others another. So
the values still add up to the utility, and none is off by more than epsilon.

Source:
    Jia, Dao, Wang, Hubis, Gurel, Li, Zhang, Spanos and Song, "Efficient Task-Specific Data
    Valuation for Nearest Neighbor Algorithms", Proceedings of the VLDB Endowment 12 (2019), theorem
    1 for the recursion, theorem 2 for the bound of what is far. With fewer than k rows a vote still
    counts k seats, as in the paper.
"""

from __future__ import annotations

import math
import os
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from everloop.evaluation.findings.distances import Singles, squared_distances
from everloop.evaluation.findings.parallel import on_threads
from everloop.evaluation.order import Floats

__all__ = ["knn_shapley"]

# Of so many rows a sample tells where about the nearest m end.
_SAMPLED = 4096


class _Weights(NamedTuple):
    """w_i of each rank, and w_{i-1} - w_i (0 for the first); shape (n,)."""

    rank: Floats
    step: Floats


def knn_shapley(
    train: Singles,
    labels: npt.NDArray[np.int64],
    holdout: Singles,
    truth: npt.NDArray[np.int64],
    k: int,
    epsilon: float = 0.0,
) -> Floats:
    """The value of each training row; together they are the utility.

    Memory is bounded by a block of distances, whatever the number of rows.

    Args:
        train: Shape (n, features), n >= 1.
        labels: Shape (n,).
        holdout: Shape (m, features), m >= 1.
        truth: Shape (m,).
        k: Neighbours that vote, 1 at least.
        epsilon: Most that a value may be off; 0 ranks every row for every hold-out row.
    """
    n = len(train)
    near = n if epsilon <= 0 else min(n, max(k + 1, math.ceil(1 / epsilon)))
    ranks = np.arange(1, n + 1)
    weights = _Weights(1 / np.maximum(k, ranks), np.zeros(n))
    weights.step[1:] = weights.rank[:-1] - weights.rank[1:]
    by_class = {one: (labels == one) for one in np.unique(truth).tolist()}
    workers = [_Worker(by_class, n, near, weights) for _ in range(os.cpu_count() or 1)]
    for start, block in squared_distances(holdout, train):
        parts = np.array_split(np.arange(len(block)), len(workers))
        on_threads(
            lambda one: one[0].add(block, one[1], truth[start:]),  # noqa: B023 (it ends within)
            zip(workers, parts, strict=True),
        )
    total: Floats = np.sum([worker.total() for worker in workers], axis=0)
    return total / len(holdout)


class _Worker:
    """Adds up the values of some hold-out rows."""

    def __init__(
        self,
        by_class: dict[int, npt.NDArray[np.bool_]],
        n: int,
        near: int,
        weights: _Weights,
    ) -> None:
        self._by_class = by_class
        self._sizes = {one: int(mask.sum()) for one, mask in by_class.items()}
        self._weights = weights
        self._near = near
        self._n = n
        self._values = np.zeros(n)
        # What every row of the right label, and every other one, gets as one of the far.
        self._far = dict.fromkeys(by_class, (0.0, 0.0))

    def total(self) -> Floats:
        """The sum so far of every row."""
        found = self._values.copy()
        for one, (right, wrong) in self._far.items():
            found += np.where(self._by_class[one], right, wrong)
        return found

    def add(self, block: Singles, rows: npt.NDArray[np.intp], truth: npt.NDArray[np.int64]) -> None:
        """Add the values of `rows` of a block of hold-out rows."""
        for row in rows.tolist():
            one = int(truth[row])
            if self._near == self._n:
                order = _ranked(block[row], None)
                self._values[order] += _exact(self._by_class[one][order], 0.0, self._weights)
            else:
                self._add_near(block[row], one)

    def _add_near(self, distances: Singles, one: int) -> None:
        near, n, weights = self._near, self._n, self._weights
        order = _ranked(distances, _among_nearest(distances, near))[:near]
        right = self._by_class[one][order]
        far_right = self._sizes[one] - int(right.sum())
        # Of the far only how many have the right label is known, not at which rank: the mean over
        # all orders. The step of a rank, and what lies behind it, are linear in that.
        share = far_right / (n - near)
        edge, last = float(weights.rank[near - 1]), float(weights.rank[-1])
        behind = share * (edge - last)
        self._values[order] += _exact(right, behind, weights)
        mean_rank, mean_behind = _far_means(n, near, last)
        for_right = mean_rank - share * mean_behind
        for_wrong = -share * mean_behind
        so_right, so_wrong = self._far[one]
        self._far[one] = (so_right + for_right, so_wrong + for_wrong)
        self._values[order] -= np.where(right, for_right, for_wrong)


def _far_means(n: int, near: int, last: float) -> tuple[float, float]:
    """Mean over the ranks near + 1 to n of w_i, and of the w_i - w_n that lies behind each."""
    mean = float((math.log(n + 0.5) - math.log(near + 0.5)) / (n - near))
    return mean, mean - last


def _ranked(distances: Singles, among: npt.NDArray[np.int64] | None) -> npt.NDArray[np.int64]:
    """Row numbers by distance, then by number.

    A float32 of 0 and above orders as its bits do: distance and number are sorted as one integer,
    which is several times faster than sorting numbers by distance.
    """
    if among is None:
        among, picked = np.arange(len(distances)), distances
    else:
        picked = distances[among]
    keys = picked.view(np.int32).astype(np.int64)
    keys <<= 32
    keys |= among
    keys.sort()
    keys &= 0xFFFFFFFF
    return keys


def _among_nearest(distances: Singles, near: int) -> npt.NDArray[np.int64]:
    """Numbers of at least the `near` nearest rows, and of few more."""
    n = len(distances)
    step = max(1, n // _SAMPLED)
    sample = np.sort(distances[::step])
    share = near / n
    slack = 4 * math.sqrt(share * (1 - share) / len(sample))
    place = min(len(sample) - 1, math.ceil((share + slack) * len(sample)))
    found = np.flatnonzero(distances <= sample[place])
    if len(found) < near:
        found = np.flatnonzero(distances <= np.partition(distances, near - 1)[near - 1])
    return found


def _exact(right: npt.NDArray[np.bool_], behind: float, weights: _Weights) -> Floats:
    """Values by rank, of the first ranks; `behind` is the sum of the steps of all ranks after."""
    count = len(right)
    steps = np.where(right, weights.step[:count], 0.0)
    after = np.cumsum(steps[::-1])[::-1]
    values: Floats = np.where(right, weights.rank[:count], 0.0)
    values[:-1] -= after[1:]
    return values - behind
