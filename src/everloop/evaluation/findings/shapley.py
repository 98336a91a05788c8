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
    edges = np.empty(len(holdout), np.float32) if near == n else _edges(train, holdout, near)
    for start, block in squared_distances(holdout, train):
        parts = np.array_split(np.arange(len(block)), len(workers))
        on_threads(
            lambda one: one[0].add(block, one[1], truth[start:], edges[start:]),  # noqa: B023 (it ends within)
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

    def add(
        self,
        block: Singles,
        rows: npt.NDArray[np.intp],
        truth: npt.NDArray[np.int64],
        edges: Singles,
    ) -> None:
        """Add the values of `rows` of a block of hold-out rows."""
        near, n, (rank, step) = self._near, self._n, self._weights
        for row in rows.tolist():
            one = int(truth[row])
            distances, mask = block[row], self._by_class[one]
            among = None if near == n else _among_nearest(distances, near, edges[row])
            order = _ranked(distances, among)[:near]
            right = mask[order].astype(np.float64)
            # The sum of the steps up to a rank, less that of all ranks, is that of those behind.
            values = right * step[:near]
            np.cumsum(values, out=values)
            behind = float(values[-1])
            if near == n:
                right *= rank
            else:
                for_right, for_wrong, far = self._far_of(one, int(right.sum()))
                right *= rank[:near] - (for_right - for_wrong)
                behind += far + for_wrong
            values += right
            values -= behind
            self._values[order] += values

    def _far_of(self, one: int, near_right: int) -> tuple[float, float, float]:
        """Means of the far rows of the right label and of others; the sum of all their steps.

        Of the far only how many have the right label is known, not at which rank: these are means
        over all orders. Every row gets them in the end, so the near ones have theirs taken off.
        """
        near, n, rank = self._near, self._n, self._weights.rank
        share = (self._sizes[one] - near_right) / (n - near)
        edge, last = float(rank[near - 1]), float(rank[-1])
        mean = math.log((n + 0.5) / (near + 0.5)) / (n - near)
        for_right = mean - share * (mean - last)
        for_wrong = -share * (mean - last)
        so_right, so_wrong = self._far[one]
        self._far[one] = (so_right + for_right, so_wrong + for_wrong)
        return for_right, for_wrong, share * (edge - last)


def _ranked(distances: Singles, among: npt.NDArray[np.int64] | None) -> npt.NDArray[np.int64]:
    """Row numbers by distance, then by number.

    A float32 of 0 and above orders as its bits do: distance and number are sorted as one integer,
    which is several times faster than sorting numbers by distance.
    """
    if among is None:
        among, picked = np.arange(len(distances)), distances
    else:
        picked = distances[among]
    keys = np.maximum(picked, 0).view(np.int32).astype(np.int64)
    keys <<= 32
    keys |= among
    keys.sort()
    keys &= 0xFFFFFFFF
    return keys


def _edges(train: Singles, holdout: Singles, near: int) -> Singles:
    """For each hold-out row about the distance of its nearest `near` rows, rather more than less.

    From a sample of the training rows: to pick it out of all distances later would wait for memory.
    """
    sample = np.ascontiguousarray(train[:: max(1, len(train) // _SAMPLED)])
    share = near / len(train)
    slack = 3 * math.sqrt(share * (1 - share) / len(sample))
    place = min(len(sample) - 1, math.ceil((share + slack) * len(sample)))
    found = np.empty(len(holdout), np.float32)
    for start, block in squared_distances(holdout, sample):
        parts = np.array_split(block, os.cpu_count() or 1)
        on_threads(lambda part: part.partition(place, axis=1), parts)
        found[start : start + len(block)] = block[:, place]
    return found


def _among_nearest(distances: Singles, near: int, edge: np.float32) -> npt.NDArray[np.int64]:
    """Numbers of at least the `near` nearest rows, and of few more if `edge` is right."""
    found = np.flatnonzero(distances <= edge)
    if len(found) < near:
        found = np.flatnonzero(distances <= np.partition(distances, near - 1)[near - 1])
    return found
