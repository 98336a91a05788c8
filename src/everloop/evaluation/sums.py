"""What each row adds to a metric, and how the metric follows from the sums.

This is what the bootstrap stands on: a metric that is a function of sums over rows can be had for
any set of blocks from the sums of each block, without another look at the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from everloop.errors import InvalidInput
from everloop.evaluation.order import Floats
from everloop.evaluation.ranking import RANKING, lists_of

__all__ = ["RowSums", "row_sums"]

# A probability of exactly 0 or 1 that is wrong would cost infinitely much.
_CLIP = 1e-15

Column = Floats | npt.NDArray[np.bool_] | None


class RowSums(NamedTuple):
    """The columns to be summed, and the metric of their sums.

    Attributes:
        columns: Shape (n,) each; None stands for a column of ones.
        value: Takes the sums of the columns, shape (columns, ...), and gives the metric, (...).
    """

    columns: tuple[Any, ...]
    value: Callable[[Floats], Floats]


def row_sums(
    name: str,
    parameter: float,
    labels: Floats,
    scores: Floats,
    query: npt.NDArray[Any] | None = None,
) -> RowSums:
    """What the metric `name` sums; arguments as for ``metrics.metric``.

    Raises:
        InvalidInput: If the scores have no shape that the metric can take, or `query` is missing.
    """
    if name in RANKING:
        if query is None:
            raise InvalidInput(f"{name} needs to know which rows are ranked together (query)")
        lists = lists_of(labels, scores, query)
        return RowSums(lists.at_first(RANKING[name](lists, int(parameter))), _ratio)
    if scores.ndim == 2 and name in _MULTICLASS:
        return _MULTICLASS[name](labels, scores, parameter)
    wide = 2 if name in _INTERVALS else 1
    if scores.ndim != wide or (name in _MULTICLASS and name not in _PLAIN | _AT_THRESHOLD):
        raise InvalidInput(f"{name} does not take scores of shape {scores.shape}")
    if name in _AT_THRESHOLD:
        columns, value = _AT_THRESHOLD[name]
        hit, truth = scores >= parameter, labels == 1
        return RowSums(tuple(_CELLS[cell](truth, hit) for cell in columns), value)
    return _PLAIN[name](labels, scores, parameter)


def _ratio(sums: Floats) -> Floats:
    return np.asarray(sums[0] / sums[1])


def _mean(column: Column) -> RowSums:
    return RowSums((column, None), _ratio)


# --- binary, at a threshold ---------------------------------------------------------------------

_Bools = npt.NDArray[np.bool_]
_CELLS: dict[str, Callable[[_Bools, _Bools], _Bools | None]] = {
    "all": lambda truth, hit: None,
    "true": lambda truth, hit: truth,
    "false": lambda truth, hit: ~truth,
    "hit": lambda truth, hit: hit,
    "right": lambda truth, hit: truth == hit,
    "tp": lambda truth, hit: truth & hit,
    "fp": lambda truth, hit: ~truth & hit,
    "fn": lambda truth, hit: truth & ~hit,
    "tn": lambda truth, hit: ~(truth | hit),
}


def _f1(sums: Floats) -> Floats:
    tp, hit, true = sums
    return np.asarray(2 * tp / (hit + true))


def _balanced(sums: Floats) -> Floats:
    tp, true, tn, false = sums
    return np.asarray((tp / true + tn / false) / 2)


def _mcc(sums: Floats) -> Floats:
    tp, fp, fn, tn = sums
    spread = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return np.asarray((tp * tn - fp * fn) / spread)


_AT_THRESHOLD: dict[str, tuple[tuple[str, ...], Callable[[Floats], Floats]]] = {
    "accuracy": (("right", "all"), _ratio),
    "tpr": (("tp", "true"), _ratio),
    "recall": (("tp", "true"), _ratio),
    "tnr": (("tn", "false"), _ratio),
    "fpr": (("fp", "false"), _ratio),
    "fnr": (("fn", "true"), _ratio),
    "precision": (("tp", "hit"), _ratio),
    "positive_rate": (("hit", "all"), _ratio),
    "f1": (("tp", "hit", "true"), _f1),
    "balanced_accuracy": (("tp", "true", "tn", "false"), _balanced),
    "mcc": (("tp", "fp", "fn", "tn"), _mcc),
}

# --- binary and regression, row by row ----------------------------------------------------------


def _square(labels: Floats, scores: Floats, _: float) -> RowSums:
    off = scores - labels
    return _mean(np.multiply(off, off, out=off))


def _log_loss(labels: Floats, scores: Floats, _: float) -> RowSums:
    likely = np.clip(np.where(labels == 1, scores, 1 - scores), _CLIP, 1 - _CLIP)
    return _mean(-np.log(likely))


def _rmse(labels: Floats, scores: Floats, _: float) -> RowSums:
    columns = _square(labels, scores, 0).columns
    return RowSums(columns, lambda sums: np.asarray(np.sqrt(sums[0] / sums[1])))


def _mae(labels: Floats, scores: Floats, _: float) -> RowSums:
    return _mean(np.abs(scores - labels))


def _mape(labels: Floats, scores: Floats, _: float) -> RowSums:
    # Where the truth is 0 no percentage is defined; such rows are left out, not counted as endless.
    known = labels != 0
    size = np.where(known, np.abs(labels), 1)
    return RowSums((np.where(known, np.abs(scores - labels) / size, 0), known), _ratio)


def _wape(labels: Floats, scores: Floats, _: float) -> RowSums:
    return RowSums((np.abs(scores - labels), np.abs(labels)), _ratio)


def _r2(labels: Floats, scores: Floats, _: float) -> RowSums:
    # Moved by the mean, so that the difference of large squares keeps its digits.
    moved = labels - (labels.mean() if len(labels) else 0.0)

    def value(sums: Floats) -> Floats:
        off, total, squares, count = sums
        spread = squares - total * total / count
        return np.asarray(np.where(spread > 0, 1 - off / spread, np.nan))

    return RowSums(((scores - labels) ** 2, moved, moved * moved, None), value)


def _pinball(labels: Floats, scores: Floats, quantile: float) -> RowSums:
    over = labels - scores
    return _mean(np.maximum(quantile * over, (quantile - 1) * over))


def _coverage(labels: Floats, scores: Floats, _: float) -> RowSums:
    return _mean((labels >= scores[:, 0]) & (labels <= scores[:, 1]))


def _width(labels: Floats, scores: Floats, _: float) -> RowSums:
    return _mean(scores[:, 1] - scores[:, 0])


def _interval_score(labels: Floats, scores: Floats, outside: float) -> RowSums:
    """Width, and what misses it times 2 / `outside` (Gneiting and Raftery, 2007, section 6.2)."""
    low, high = scores[:, 0], scores[:, 1]
    missed = np.maximum(low - labels, 0) + np.maximum(labels - high, 0)
    return _mean(high - low + missed * (2 / outside))


_Plain = Callable[[Floats, Floats, float], RowSums]
_PLAIN: dict[str, _Plain] = {
    "brier": _square,
    "log_loss": _log_loss,
    "mse": _square,
    "rmse": _rmse,
    "mae": _mae,
    "mape": _mape,
    "wape": _wape,
    "r2": _r2,
    "pinball": _pinball,
    "coverage": _coverage,
    "interval_width": _width,
    "interval_score": _interval_score,
}

_INTERVALS = ("coverage", "interval_width", "interval_score")

# --- multiclass ---------------------------------------------------------------------------------


def _of_truth(labels: Floats, scores: Floats) -> Floats:
    """What the model gave the true class, shape (n,)."""
    return np.asarray(scores[np.arange(len(labels)), labels.astype(np.intp)])


def _many_accuracy(labels: Floats, scores: Floats, _: float) -> RowSums:
    return _mean(scores.argmax(axis=1) == labels)


def _top_accuracy(labels: Floats, scores: Floats, depth: float) -> RowSums:
    """The true class is among the `depth` best; a tie counts against the model."""
    above = (scores >= _of_truth(labels, scores)[:, None]).sum(axis=1)
    return _mean(above <= depth)


def _many_log_loss(labels: Floats, scores: Floats, _: float) -> RowSums:
    return _mean(-np.log(np.clip(_of_truth(labels, scores), _CLIP, 1)))


def _many_brier(labels: Floats, scores: Floats, _: float) -> RowSums:
    """The sum over classes, 0 to 2, as Brier had it; half of it for two classes is binary's."""
    return _mean((scores**2).sum(axis=1) - 2 * _of_truth(labels, scores) + 1)


def _by_class(labels: Floats, scores: Floats) -> tuple[Any, ...]:
    """Per class: rightly said, said, true; shape (n,) each, the classes one after the other."""
    said, truth = scores.argmax(axis=1), labels.astype(np.intp)
    classes = range(scores.shape[1])
    return (
        *((said == k) & (truth == k) for k in classes),
        *(said == k for k in classes),
        *(truth == k for k in classes),
    )


def _f1_macro(labels: Floats, scores: Floats, _: float) -> RowSums:
    def value(sums: Floats) -> Floats:
        right, said, true = np.split(sums, 3)
        # A class that is neither said nor true does not count; one that is never right counts 0.
        f1 = np.where(said + true > 0, 2 * right / np.maximum(said + true, 1e-300), np.nan)
        seen = np.isfinite(f1)
        return np.asarray(np.where(seen, f1, 0).sum(axis=0) / seen.sum(axis=0))

    return RowSums(_by_class(labels, scores), value)


def _f1_weighted(labels: Floats, scores: Floats, _: float) -> RowSums:
    def value(sums: Floats) -> Floats:
        right, said, true = np.split(sums, 3)
        f1 = 2 * right / np.maximum(said + true, 1e-300)
        return np.asarray((f1 * true).sum(axis=0) / true.sum(axis=0))

    return RowSums(_by_class(labels, scores), value)


def _many_balanced(labels: Floats, scores: Floats, _: float) -> RowSums:
    def value(sums: Floats) -> Floats:
        right, _said, true = np.split(sums, 3)
        found = np.where(true > 0, right / np.maximum(true, 1e-300), 0)
        return np.asarray(found.sum(axis=0) / (true > 0).sum(axis=0))

    return RowSums(_by_class(labels, scores), value)


_MULTICLASS: dict[str, _Plain] = {
    "accuracy": _many_accuracy,
    "top_accuracy": _top_accuracy,
    "log_loss": _many_log_loss,
    "brier": _many_brier,
    "f1_macro": _f1_macro,
    "f1_weighted": _f1_weighted,
    "balanced_accuracy": _many_balanced,
}
