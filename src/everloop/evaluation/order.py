"""Metrics of the order of the scores: AUC and average precision, exact, from one sort.

Rows with equal scores make one step. A row counts with its weight, so both metrics follow from the
weights of positives and of negatives at each step; the bootstrap gathers steps into bins.

Source:
    Mann and Whitney, Annals of Mathematical Statistics 18 (1947) for the AUC.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Floats", "Ordered", "auc_of_bins", "precision_of_bins"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Ordered:
    """Rows by score, ascending.

    Attributes:
        order: Which row stands at each place, shape (n,).
        starts: The place at which each step begins, shape (s,).
        positive, negative: Weight of the positives and of the negatives of each step, shape (s,).
    """

    order: npt.NDArray[np.intp]
    starts: npt.NDArray[np.intp]
    positive: Floats
    negative: Floats

    @classmethod
    def of(cls, labels: Floats, scores: Floats, weights: Floats | None = None) -> Ordered:
        """Sort the rows; arguments as for ``metrics.metric``."""
        if not len(labels):
            nothing = np.empty(0)
            none = np.empty(0, dtype=np.intp)
            return cls(none, none, nothing, nothing)
        order = np.argsort(scores)
        ordered = scores[order]
        starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
        hits = labels if weights is None else labels * weights
        misses = 1 - labels if weights is None else (1 - labels) * weights
        return cls(
            order,
            starts,
            np.add.reduceat(hits[order], starts),
            np.add.reduceat(misses[order], starts),
        )

    def auc(self) -> float:
        """The chance that a positive scores above a negative; NaN with one class only."""
        if not len(self.starts):
            return math.nan
        return float(auc_of_bins(self.positive, self.negative))

    def average_precision(self) -> float:
        """Precision averaged over recall; NaN without positives."""
        if not len(self.starts):
            return math.nan
        return float(precision_of_bins(self.positive, self.negative))

    def bins(self, most: int) -> tuple[npt.NDArray[np.intp], int]:
        """The bin of each row, in the order given, and how many there are.

        Steps as they are where there are no more than `most`; else neighbours share a bin, about
        as many rows in each.
        """
        count = len(self.order)
        of_step = np.arange(len(self.starts))
        if len(of_step) > most:
            _, of_step = np.unique(self.starts * most // count, return_inverse=True)
        found = np.empty(count, dtype=np.intp)
        found[self.order] = np.repeat(of_step, np.diff(np.append(self.starts, count)))
        return found, int(of_step[-1]) + 1


def auc_of_bins(positive: Floats, negative: Floats) -> Floats:
    """AUC from the weights in each bin, bins ascending by score. Shapes (..., b) give (...)."""
    # A negative counts whole for each positive in a higher bin and half in its own.
    beaten = np.cumsum(negative, axis=-1) - negative / 2
    pairs = positive.sum(axis=-1) * negative.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.einsum("...j,...j->...", positive, beaten) / pairs)


def precision_of_bins(positive: Floats, negative: Floats) -> Floats:
    """Average precision from weights in bins, ascending by score. Shapes (..., b) give (...)."""
    found = np.cumsum(positive[..., ::-1], axis=-1)
    taken = found + np.cumsum(negative[..., ::-1], axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(taken > 0, found / taken, 0.0)
        gained = np.einsum("...j,...j->...", positive[..., ::-1], precision)
        return np.asarray(gained / positive.sum(axis=-1))
