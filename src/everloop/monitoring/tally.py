"""Tally: the mergeable summary of some answers of one model version. Counts are exact integers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from everloop.data.bins import (
    SCORE_BINS,
    SLOTS,
    Counts,
    FeatureBins,
    Floats,
    pack,
    score_bins,
    unpack,
)
from everloop.data.statistics import auc_from_counts

__all__ = [
    "METRICS",
    "Tally",
    "merge",
    "metric_value",
    "tally",
    "without",
    "worse_if_above",
]

METRICS = ("auc", "brier", "brier_skill", "log_loss")

# The smallest probability that a logarithm is taken of; a certain and wrong score costs 34.5.
_LEAST = 1e-15


@dataclass(frozen=True)
class Tally:
    """What is kept of some answers of one version.

    Attributes:
        rows: Answers, errors included.
        errors: Answers that were an error.
        invalid: Answers whose score is no probability, or whose label is neither 0 nor 1. They
            count as rows and in no metric.
        scores: Valid answers by label (0, 1, none yet) and score bin. Shape (3, SCORE_BINS).
        squares: Sum of (score - label)^2 over the labelled ones.
        logs: Sum of their log losses, in nats.
        features: Counts for each feature, shape (SLOTS,), by the version's reference.
    """

    rows: int = 0
    errors: int = 0
    invalid: int = 0
    scores: Counts = field(default_factory=lambda: np.zeros((3, SCORE_BINS), dtype=np.int64))
    squares: float = 0.0
    logs: float = 0.0
    features: Mapping[str, Counts] = field(default_factory=dict)

    @property
    def positives(self) -> int:
        return int(self.scores[1].sum())

    @property
    def labels(self) -> int:
        """Labelled, valid answers: the ones that metrics are taken over."""
        return int(self.scores[:2].sum())

    def to_json(self) -> dict[str, Any]:
        names = list(self.features)
        counts = np.stack([self.features[name] for name in names]) if names else None
        return {
            "rows": self.rows,
            "errors": self.errors,
            "invalid": self.invalid,
            "scores": pack(self.scores),
            "squares": self.squares,
            "logs": self.logs,
            "names": names,
            "features": "" if counts is None else pack(counts),
        }

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Tally:
        names = body["names"]
        counts = unpack(body["features"], len(names), SLOTS) if names else ()
        return cls(
            rows=body["rows"],
            errors=body["errors"],
            invalid=body["invalid"],
            scores=unpack(body["scores"], 3, SCORE_BINS),
            squares=body["squares"],
            logs=body["logs"],
            features=dict(zip(names, counts, strict=True)),
        )


def tally(
    scores: Floats,
    labels: Floats,
    features: Mapping[str, pa.Array | pa.ChunkedArray] | None = None,
    bins: Sequence[FeatureBins] = (),
    *,
    errors: int = 0,
) -> Tally:
    """Summarise answers.

    Args:
        scores: What the model said. Shape (n,).
        labels: 0, 1, or NaN where the truth is not known yet. Shape (n,).
        features: What the model got, by name; n values each.
        bins: Of the version's reference; a feature that is not in `features` is left out.
        errors: Answers that were an error; they are not among the n.
    """
    known = ~np.isnan(labels)
    valid = (scores >= 0) & (scores <= 1) & (~known | (labels == 0) | (labels == 1))
    p, y = scores[valid], labels[valid]
    row = np.where(np.isnan(y), 2, y).astype(np.int64)
    counts = np.bincount(row * SCORE_BINS + score_bins(p), minlength=3 * SCORE_BINS)
    p, y = p[row < 2], y[row < 2]
    right = np.clip(np.where(y == 1, p, 1 - p), _LEAST, 1)
    given = features or {}
    return Tally(
        rows=len(scores) + errors,
        errors=errors,
        invalid=int(len(scores) - valid.sum()),
        scores=counts.astype(np.int64).reshape(3, SCORE_BINS),
        squares=math.fsum((p - y) ** 2),
        logs=math.fsum(-np.log(right)),
        features={b.name: b.count(given[b.name]) for b in bins if b.name in given},
    )


def merge(parts: Iterable[Tally]) -> Tally:
    """The summary of all the answers of `parts` together; any order gives the same."""
    found = list(parts)
    if len(found) == 1:
        return found[0]
    features: dict[str, Counts] = {}
    for part in found:
        for name, counts in part.features.items():
            features[name] = features[name] + counts if name in features else counts
    return Tally(
        rows=sum(part.rows for part in found),
        errors=sum(part.errors for part in found),
        invalid=sum(part.invalid for part in found),
        scores=sum((part.scores for part in found), start=Tally().scores),
        squares=math.fsum(part.squares for part in found),
        logs=math.fsum(part.logs for part in found),
        features=features,
    )


def without(whole: Tally, part: Tally) -> Tally:
    """The summary of the answers of `whole` that are not in `part`, which it must contain."""
    return Tally(
        rows=whole.rows - part.rows,
        errors=whole.errors - part.errors,
        invalid=whole.invalid - part.invalid,
        scores=whole.scores - part.scores,
        squares=whole.squares - part.squares,
        logs=whole.logs - part.logs,
        features={name: c - part.features.get(name, 0) for name, c in whole.features.items()},
    )


def metric_value(metric: str, of: Tally) -> float | None:
    """A metric over the labelled answers, or None where it is undefined.

    ``brier_skill`` is 1 - brier / (p (1 - p)) with p the share of label 1 in the same answers: how
    much better than someone who knew only that share. Unlike the Brier score it does not move with
    the share itself.
    """
    return _METRIC[metric](of) if of.labels else None


def worse_if_above(metric: str) -> bool:
    """Whether a larger value of the metric is worse."""
    return metric in ("brier", "log_loss")


def _brier_skill(of: Tally) -> float | None:
    share = of.positives / of.labels
    spread = share * (1 - share)
    return 1 - of.squares / of.labels / spread if spread else None


_METRIC: dict[str, Callable[[Tally], float | None]] = {
    "auc": lambda of: auc_from_counts(of.scores[0], of.scores[1]),
    "brier": lambda of: of.squares / of.labels,
    "log_loss": lambda of: of.logs / of.labels,
    "brier_skill": _brier_skill,
}
