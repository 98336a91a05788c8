"""Metrics of binary scores: exact values, and their sums by day that the bootstrap resamples.

A metric is known by name: ``auc``, ``brier``, ``log_loss``, or ``accuracy``, ``tpr``, ``fpr`` and
``precision`` at a threshold (0.5, or as in ``tpr@0.3``). Where a metric is not defined (AUC of one
class, ``tpr`` without positives, anything of no rows) it is NaN, never a neutral value.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from everloop.errors import InvalidInput, NotFound

__all__ = [
    "METRICS",
    "Floats",
    "MetricSpec",
    "auc",
    "metric",
    "parse_metric",
    "ratio_parts",
]

Floats = npt.NDArray[np.float64]

# A probability of exactly 0 or 1 that is wrong would cost infinitely much.
_CLIP = 1e-15

_RATIOS = ("brier", "log_loss", "accuracy", "tpr", "fpr", "precision")
_AT_THRESHOLD = ("accuracy", "tpr", "fpr", "precision")
_LOWER_IS_BETTER = ("brier", "log_loss", "fpr")

#: Every metric by name.
METRICS: tuple[str, ...] = ("auc", *_RATIOS)


class MetricSpec(NamedTuple):
    """A metric by name and threshold; `sign` is 1 where higher is better, else -1."""

    name: str
    threshold: float
    sign: int

    @property
    def is_ratio(self) -> bool:
        """Whether it is a sum over rows divided by another."""
        return self.name != "auc"

    @property
    def takes_probabilities(self) -> bool:
        """Whether scores must lie within 0 and 1."""
        return self.name in ("brier", "log_loss")


def parse_metric(text: str) -> MetricSpec:
    """Read the name of a metric, such as ``brier`` or ``tpr@0.3``.

    Raises:
        NotFound: If there is no such metric; with the nearest names.
        InvalidInput: If the threshold is no number, or the metric has none.
    """
    name, at, number = text.partition("@")
    if name not in METRICS:
        raise NotFound.named("metric", name, METRICS)
    if at and name not in _AT_THRESHOLD:
        raise InvalidInput(f"metric {name!r} has no threshold", hint=f"write it as {name!r}")
    try:
        threshold = float(number) if at else 0.5
    except ValueError:
        threshold = math.nan
    if not math.isfinite(threshold):
        raise InvalidInput(f"{number!r} is no threshold", hint=f'write it as "{name}@0.3"')
    return MetricSpec(name, threshold, -1 if name in _LOWER_IS_BETTER else 1)


def metric(spec: MetricSpec | str, labels: Floats, scores: Floats) -> float:
    """The value of a metric.

    Args:
        spec: The metric or its name.
        labels: 0 or 1, shape (n,).
        scores: Of the positive class, shape (n,), finite.

    Returns:
        The value, NaN where it is not defined.
    """
    spec = parse_metric(spec) if isinstance(spec, str) else spec
    if not spec.is_ratio:
        return auc(labels, scores)
    above, below = ratio_parts(spec, labels, scores)
    total = float(below.sum())
    return float(above.sum()) / total if total else math.nan


def auc(labels: Floats, scores: Floats) -> float:
    """The chance that a positive scores above a negative, ties counted half; exact.

    Source:
        Mann and Whitney, Annals of Mathematical Statistics 18 (1947).
    """
    positives = float(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return math.nan
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    # Rank 1..n; those of equal scores share the mean of theirs.
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    sizes = np.diff(np.append(starts, len(ordered)))
    ranks = np.repeat(starts + (sizes + 1) / 2, sizes)
    above = float(ranks[labels[order] == 1].sum()) - positives * (positives + 1) / 2
    return above / (positives * negatives)


def ratio_parts(spec: MetricSpec, labels: Floats, scores: Floats) -> tuple[Floats, Floats]:
    """What each row adds to numerator and denominator of a ratio metric, shape (n,) each."""
    return _PARTS[spec.name](labels, scores, scores >= spec.threshold)


_Parts = Callable[[Floats, Floats, npt.NDArray[np.bool_]], tuple[Floats, Floats]]


def _brier(labels: Floats, scores: Floats, _: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
    return (scores - labels) ** 2, np.ones_like(labels)


def _log_loss(labels: Floats, scores: Floats, _: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
    likely = np.clip(np.where(labels == 1, scores, 1 - scores), _CLIP, 1 - _CLIP)
    return -np.log(likely), np.ones_like(labels)


def _accuracy(labels: Floats, _: Floats, hit: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
    return (hit == (labels == 1)).astype(np.float64), np.ones_like(labels)


def _tpr(labels: Floats, _: Floats, hit: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
    return labels * hit, labels


def _fpr(labels: Floats, _: Floats, hit: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
    return (1 - labels) * hit, 1 - labels


def _precision(labels: Floats, _: Floats, hit: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
    return labels * hit, hit.astype(np.float64)


_PARTS: dict[str, _Parts] = {
    "brier": _brier,
    "log_loss": _log_loss,
    "accuracy": _accuracy,
    "tpr": _tpr,
    "fpr": _fpr,
    "precision": _precision,
}
