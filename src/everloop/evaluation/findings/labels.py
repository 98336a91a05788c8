"""Confident learning: which labels a model that never saw them does not believe.

A row is confidently of class j if its probability of j reaches the mean that the rows labelled j
have. Counting given against confident class gives the joint distribution of given and true labels
(calibrated to the labels that are there), and that says how many rows of each class to doubt; which
ones, the probabilities say. Everything is decided by rows whose likeliest class is not the label,
so after one pass over the probabilities only few rows are looked at again.

Source:
    Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels",
    Journal of Artificial Intelligence Research 70 (2021), sections 3.1 to 3.3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from everloop.evaluation.findings.parallel import in_parts
from everloop.evaluation.order import Floats

__all__ = ["METHODS", "Doubts", "Method", "doubts"]

Method = Literal["joint", "noise_rate", "class", "both", "confident"]
METHODS: tuple[str, ...] = get_args(Method)

# Rows turned at once, so that one class after another is contiguous and in the cache.
_AT_ONCE = 1 << 13
_BELOW = 1e-6


class Doubts(NamedTuple):
    """What the probabilities say of the labels.

    Attributes:
        rows: Rows in doubt, the least believed first: by the probability of the given class as
            share of that of the likeliest, which ranked flipped labels better than the plain one
            in every trial (`docs/adr/0022`).
        belief: That share, 0 to 1.
        self_confidence: Probability of the given class, of these rows.
        suggested: The class that each more likely is.
        joint: Calibrated counts, given class by true class, shape (classes, classes).
        thresholds: Mean self-confidence of each class; NaN of one that no row has.
    """

    rows: npt.NDArray[np.int64]
    belief: Floats
    self_confidence: Floats
    suggested: npt.NDArray[np.int64]
    joint: npt.NDArray[np.int64]
    thresholds: Floats


def doubts(
    labels: npt.NDArray[np.int64], probabilities: npt.NDArray[Any], by: Method = "joint"
) -> Doubts:
    """Find the rows whose label is doubtful.

    Args:
        labels: Class of each row, 0 to classes - 1.
        probabilities: Of each class, from models that did not see the row; shape (n, classes).
        by: Which rows: ``joint`` takes as many as the joint says are wrong, the least believed of
            all; ``noise_rate`` for each pair of classes as many as it says, those with the largest
            margin towards the other; ``class`` of each class as many as it says, the least
            self-confident; ``both`` what the last two take; ``confident`` those that are
            confidently of another class.
    """
    n, classes = probabilities.shape
    own = np.empty(n)
    in_parts(n, lambda part: _gather(probabilities, labels, own, part))
    sizes = np.bincount(labels, minlength=classes)
    with np.errstate(invalid="ignore"):
        thresholds = np.bincount(labels, own, classes) / sizes
    guess, top = np.empty(n, np.int32), np.empty(n, np.int32)
    wanted = np.where(sizes > 0, thresholds - _BELOW, np.inf)
    in_parts(n, lambda part: _guess(probabilities, wanted, guess, top, part))
    joint = _calibrated(_counts(labels, guess, classes), sizes)
    # A label that is the likeliest class is in no doubt, whatever the counts say; nor in a tie.
    candidates = np.flatnonzero(top != labels)
    likeliest = np.take_along_axis(probabilities[candidates], top[candidates, None], axis=1)[:, 0]
    below = own[candidates] < likeliest
    candidates, likeliest = candidates[below], likeliest[below]
    seen = _Candidates(
        probabilities[candidates], labels[candidates], own[candidates], guess[candidates],
        own[candidates] / likeliest,
    )  # fmt: skip
    kept = np.flatnonzero(_PICKS[by](seen, joint))
    kept = kept[np.lexsort((seen.own[kept], seen.belief[kept]))]
    rows = candidates[kept]
    sure = (guess[rows] >= 0) & (guess[rows] != labels[rows])
    suggested = np.where(sure, guess[rows], top[rows]).astype(np.int64)
    return Doubts(rows, seen.belief[kept], own[rows], suggested, joint, thresholds)


class _Candidates(NamedTuple):
    probabilities: npt.NDArray[Any]
    labels: npt.NDArray[np.int64]
    own: Floats
    guess: npt.NDArray[np.int32]
    belief: Floats


def _gather(
    probabilities: npt.NDArray[Any], labels: npt.NDArray[np.int64], own: Floats, part: slice
) -> None:
    own[part] = np.take_along_axis(probabilities[part], labels[part, None], axis=1)[:, 0]


def _guess(
    probabilities: npt.NDArray[Any],
    wanted: Floats,
    guess: npt.NDArray[np.int32],
    top: npt.NDArray[np.int32],
    part: slice,
) -> None:
    """The likeliest class of all, and of those that are confident (-1 where none is)."""
    for start in range(part.start, part.stop, _AT_ONCE):
        rows = slice(start, min(start + _AT_ONCE, part.stop))
        turned = np.ascontiguousarray(probabilities[rows].T)
        best, place = turned[0].copy(), np.zeros(turned.shape[1], np.int32)
        for k, column in enumerate(turned[1:], 1):
            np.copyto(place, k, where=column > best)
            np.maximum(best, column, out=best)
        top[rows] = guess[rows] = place
        # The likeliest is the answer to both, unless it is not confident itself.
        rest = np.flatnonzero(best < wanted[place])
        if len(rest):
            guess[start + rest] = _likeliest_sure(turned[:, rest], wanted)


def _likeliest_sure(turned: npt.NDArray[Any], wanted: Floats) -> npt.NDArray[np.int32]:
    best, place = np.full(turned.shape[1], -1, turned.dtype), np.full(turned.shape[1], -1, np.int32)
    for k, column in enumerate(turned):
        reached = column >= wanted[k]
        reached &= column > best
        np.copyto(place, k, where=reached)
        np.copyto(best, column, where=reached)
    return place


def _counts(
    labels: npt.NDArray[np.int64], guess: npt.NDArray[np.int32], classes: int
) -> npt.NDArray[np.int64]:
    cells = labels * classes + guess
    found = np.bincount(cells[guess >= 0], minlength=classes * classes).reshape(classes, classes)
    np.fill_diagonal(found, np.maximum(found.diagonal(), 1))
    return found


def _calibrated(
    counts: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Scaled so that each given class has as many rows as it has, in whole rows."""
    scaled = counts * (sizes / counts.sum(axis=1))[:, None]
    whole = np.floor(scaled).astype(np.int64)
    left = sizes - whole.sum(axis=1)
    order = np.argsort(whole - scaled, axis=1, kind="stable")
    rank = np.argsort(order, axis=1, kind="stable")
    found: npt.NDArray[np.int64] = whole + (rank < left[:, None])
    return found


def _by_noise_rate(found: _Candidates, joint: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    kept = np.zeros(len(found.labels), dtype=bool)
    for given in np.unique(found.labels):
        rows = np.flatnonzero(found.labels == given)
        margins = found.probabilities[rows] - found.own[rows, None]
        for other in np.flatnonzero(joint[given]):
            towards = np.flatnonzero(margins[:, other] > 0) if other != given else rows[:0]
            most = min(int(joint[given, other]), len(towards))
            kept[rows[towards[np.argsort(-margins[towards, other], kind="stable")[:most]]]] = True
    return kept


def _by_class(found: _Candidates, joint: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    kept = np.zeros(len(found.labels), dtype=bool)
    wrong = joint.sum(axis=1) - joint.diagonal()
    for given in np.unique(found.labels):
        rows = np.flatnonzero(found.labels == given)
        kept[rows[np.argsort(found.own[rows], kind="stable")[: int(wrong[given])]]] = True
    return kept


def _by_both(found: _Candidates, joint: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    return _by_noise_rate(found, joint) & _by_class(found, joint)


def _confident(found: _Candidates, joint: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    sure: npt.NDArray[np.bool_] = (found.guess >= 0) & (found.guess != found.labels)
    return sure


def _by_joint(found: _Candidates, joint: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    kept = np.zeros(len(found.labels), dtype=bool)
    most = int(joint.sum() - joint.diagonal().sum())
    kept[np.lexsort((found.own, found.belief))[:most]] = True
    return kept


_PICKS: dict[str, Callable[[_Candidates, npt.NDArray[np.int64]], npt.NDArray[np.bool_]]] = {
    "joint": _by_joint,
    "noise_rate": _by_noise_rate,
    "class": _by_class,
    "both": _by_both,
    "confident": _confident,
}
