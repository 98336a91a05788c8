"""Metrics of ranked lists, by query: NDCG, MRR, MAP, hit rate.

Each query gives one value, which stands at the query's first row; the metric is their mean. Within
a query equal scores are taken against the model, the relevant row last; NDCG alone takes the mean
over all orders of a tie, which has a closed form.

Source:
    Järvelin and Kekäläinen, ACM Transactions on Information Systems 20 (2002) for NDCG; ties as in
    McSherry and Najork, ECIR (2008).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from everloop.evaluation.order import Floats

__all__ = ["RANKING", "Lists", "lists_of"]

_Ints = npt.NDArray[np.intp]


class Lists(NamedTuple):
    """Rows sorted by query, within it by score, the best first.

    Attributes:
        first: The row at which each query begins, in the order given, shape (q,).
        query: Number of the query of each sorted row, shape (n,).
        rank: Place within the query, from 1, shape (n,).
        gain: Relevance of each sorted row, shape (n,).
        ideal: Relevance with each query sorted by relevance, shape (n,).
        tie: Number of the tie of each sorted row: one query, one score; shape (n,).
    """

    first: _Ints
    query: _Ints
    rank: _Ints
    gain: Floats
    ideal: Floats
    tie: _Ints

    def sums(self, values: npt.NDArray[Any]) -> Floats:
        """The sum of `values`, one for each sorted row, by query."""
        return np.bincount(self.query, values, len(self.first)).astype(np.float64)

    def at_first(self, values: Floats) -> tuple[Floats, Floats]:
        """Values of queries as columns of the rows given, and 1 where there is one."""
        column, known = np.zeros(len(self.query)), np.zeros(len(self.query))
        defined = np.isfinite(values)
        column[self.first[defined]] = values[defined]
        known[self.first[defined]] = 1
        return column, known


def lists_of(labels: Floats, scores: Floats, query: npt.NDArray[Any]) -> Lists:
    """Sort the rows of each query."""
    _, first, number = np.unique(query, return_index=True, return_inverse=True)
    order = np.lexsort((labels, -scores, number))
    of = number[order]
    sizes = np.bincount(number, minlength=len(first))
    rank = np.arange(len(labels)) - (np.cumsum(sizes) - sizes)[of] + 1
    ordered = scores[order]
    new = np.ones(len(labels), dtype=bool)
    new[1:] = (ordered[1:] != ordered[:-1]) | (of[1:] != of[:-1])
    ideal = labels[np.lexsort((-labels, number))]
    return Lists(first, of, rank, labels[order], ideal, np.cumsum(new) - 1)


def _ndcg(lists: Lists, depth: int) -> Floats:
    discount = np.where(lists.rank <= depth, 1 / np.log2(lists.rank + 1), 0)
    # The mean over the orders of a tie: each of its rows has the tie's mean gain.
    mean = np.bincount(lists.tie, lists.gain) / np.bincount(lists.tie)
    best = lists.sums(lists.ideal * discount)
    got = lists.sums(mean[lists.tie] * discount)
    return np.where(best > 0, got / np.where(best > 0, best, 1), np.nan)


def _mrr(lists: Lists, _: int) -> Floats:
    """One over the place of the first relevant row; 0 where a query has none."""
    place = np.full(len(lists.first), np.inf)
    relevant = lists.gain > 0
    np.minimum.at(place, lists.query[relevant], lists.rank[relevant].astype(np.float64))
    return 1 / place


def _map(lists: Lists, _: int) -> Floats:
    relevant = (lists.gain > 0).astype(np.float64)
    total = lists.sums(relevant)
    before = np.cumsum(total) - total
    found = np.cumsum(relevant) - before[lists.query]
    added = lists.sums(relevant * found / lists.rank)
    return np.where(total > 0, added / np.maximum(total, 1), np.nan)


def _hit_rate(lists: Lists, depth: int) -> Floats:
    """Whether anything relevant is among the `depth` best."""
    return np.minimum(lists.sums((lists.gain > 0) & (lists.rank <= depth)), 1)


#: The value of each query by the metric's name; NaN where a query has nothing relevant to find.
RANKING: dict[str, Callable[[Lists, int], Floats]] = {
    "ndcg": _ndcg,
    "mrr": _mrr,
    "map": _map,
    "hit_rate": _hit_rate,
}
