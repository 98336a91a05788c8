"""A classifier that tells two samples apart, in NumPy: what it cannot tell apart is alike.

Fisher's linear discriminant over standardised numbers, their squares and products of pairs, and the
levels of texts: it sees shifts of means, of spreads and of correlations, in one solve. What needs
more than that (a hole in the middle of a cloud, three features at once) it does not see; then give
a model of your own.

Source:
    Lopez-Paz and Oquab, "Revisiting Classifier Two-Sample Tests", ICLR 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from everloop.data.frame import Table
from everloop.evaluation.findings.looked import matrix_of, plain_values
from everloop.evaluation.order import Floats, Ordered

__all__ = ["Described", "auc_of", "cross_fitted", "described", "expanded"]

_LEVELS = 20
# Beyond so many columns the products of pairs are left out: the solve grows with their cube.
_MOST_PAIRED = 30
_RIDGE = 1e-3
_REACH = 5.0


class Described(NamedTuple):
    """Both samples as numbers.

    Attributes:
        one, other: float32 of shape (rows, columns): standardised numbers within 5 standard
            deviations, levels and missing values as 0 and 1.
        feature: Which feature each column is of.
    """

    one: npt.NDArray[np.float32]
    other: npt.NDArray[np.float32]
    feature: npt.NDArray[np.intp]


def described(one: Table, other: Table, numbers: Sequence[str], levels: Sequence[str]) -> Described:
    """The columns `numbers` and `levels` of both; features are numbered in that order."""
    columns: list[list[npt.NDArray[np.float32]]] = [[], []]
    feature: list[int] = []
    for position, name in enumerate(numbers):
        for mine, matrix in zip(columns, matrix_of([one, other], [name]), strict=True):
            mine.append(np.clip(matrix, -_REACH, _REACH))
        feature.append(position)
        gone = [~np.isfinite(side.to_numpy([name])[:, 0]) for side in (one, other)]
        if any(mask.any() for mask in gone):
            for mine, mask in zip(columns, gone, strict=True):
                mine.append(mask[:, None].astype(np.float32))
            feature.append(position)
    for position, name in enumerate(levels, len(numbers)):
        sides = [_texts(side, name) for side in (one, other)]
        found = np.unique(np.concatenate(sides), return_counts=True)
        for level in found[0][np.argsort(-found[1], kind="stable")[:_LEVELS]]:
            for mine, values in zip(columns, sides, strict=True):
                mine.append((values == level)[:, None].astype(np.float32))
            feature.append(position)
    tables = [np.hstack(c) if c else np.zeros((0, 0), np.float32) for c in columns]
    return Described(tables[0], tables[1], np.array(feature, np.intp))


def _texts(table: Table, name: str) -> npt.NDArray[np.str_]:
    column = plain_values(table.column(name)).cast(pa.string())
    # A sign that stands in no text, for what is missing.
    return np.asarray(column.fill_null("\0").to_numpy(), dtype=np.str_)


def expanded(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """With squares and products of pairs, and a constant."""
    count = rows.shape[1]
    ones = np.ones((len(rows), 1), np.float32)
    if count > _MOST_PAIRED:
        return np.hstack([rows, rows * rows, ones])
    first, second = np.triu_indices(count)
    return np.hstack([rows, rows[:, first] * rows[:, second], ones])


def cross_fitted(
    design: npt.NDArray[np.float32], labels: Floats, fold: npt.NDArray[np.int64]
) -> tuple[Floats, list[Floats]]:
    """Scores of each row by the weights of all other folds; and those weights, fold by fold."""
    weights = _balanced(labels)
    held = [np.flatnonzero(fold == number) for number in range(int(fold.max()) + 1)]
    sums = [_sums(design[rows], labels[rows], weights[rows]) for rows in held]
    gram = np.asarray(np.sum([one for one, _ in sums], axis=0), np.float64)
    right = np.asarray(np.sum([one for _, one in sums], axis=0), np.float64)
    scores = np.empty(len(labels))
    models: list[Floats] = []
    for rows, (own, own_right) in zip(held, sums, strict=True):
        models.append(_solved(gram - own, right - own_right))
        scores[rows] = design[rows] @ models[-1]
    return scores, models


def _balanced(labels: Floats) -> Floats:
    share = labels.mean()
    weights: Floats = np.where(labels == 1, 0.5 / share, 0.5 / (1 - share))
    return weights


def _sums(
    design: npt.NDArray[np.float32], labels: Floats, weights: Floats
) -> tuple[Floats, Floats]:
    weighted = design * weights.astype(np.float32)[:, None]
    gram = (weighted.T @ design).astype(np.float64)
    return gram, weighted.T.astype(np.float64) @ (2 * labels - 1)


def _solved(gram: Floats, right: Floats) -> Floats:
    ridge = _RIDGE * max(float(np.trace(gram)) / len(gram), 1e-12)
    return np.asarray(np.linalg.solve(gram + ridge * np.eye(len(gram)), right), np.float64)


def auc_of(labels: Floats, scores: Floats) -> float:
    """The chance that a row with label 1 scores above one with 0."""
    return Ordered.of(labels, scores).auc()
