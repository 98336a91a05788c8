"""Metrics by name, for each kind of task: what is known of them, and their exact values.

A name may carry a parameter: ``tpr@0.3`` is at the threshold 0.3, ``pinball@0.9`` at the quantile
0.9, ``ndcg@10`` at the depth 10. Where a metric is not defined (AUC of one class, ``tpr`` without
positives, anything of no rows) it is NaN, never a neutral value. How a metric is put together from
sums over rows lies in ``sums`` and ``ranking``, what takes an order of the scores in ``order``.

=============  ==============================================  ===================================
task           labels                                          scores
=============  ==============================================  ===================================
binary         0 or 1, shape (n,)                              of the positive class, shape (n,)
multiclass     0 to k - 1, shape (n,)                          of each class, shape (n, k)
regression     any finite number, shape (n,)                   the same; for ``pinball`` a quantile
interval       any finite number, shape (n,)                   low and high end, shape (n, 2)
ranking        relevance, 0 and above, shape (n,)              any, shape (n,), with `query`
=============  ==============================================  ===================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from everloop.errors import InvalidInput, NotFound
from everloop.evaluation.order import Floats, Ordered
from everloop.evaluation.sums import row_sums

__all__ = [
    "METRICS",
    "TASKS",
    "Floats",
    "MetricSpec",
    "Task",
    "auc",
    "average_precision",
    "metric",
    "metrics_of",
    "parse_metric",
    "task_of",
]

Task = Literal["binary", "multiclass", "regression", "interval", "ranking"]
TASKS: tuple[str, ...] = get_args(Task)


class _Known(NamedTuple):
    """What is known of a metric; `parameter` is its default, None where it takes none."""

    tasks: tuple[Task, ...]
    sign: int
    parameter: float | None = None
    is_probability: bool = False
    ranks: bool = False


_BINARY: tuple[Task, ...] = ("binary",)
_CLASSES: tuple[Task, ...] = ("binary", "multiclass")
_MANY: tuple[Task, ...] = ("multiclass",)
_NUMBER: tuple[Task, ...] = ("regression",)
_INTERVAL: tuple[Task, ...] = ("interval",)
_RANKED: tuple[Task, ...] = ("ranking",)

_KNOWN: dict[str, _Known] = {
    "auc": _Known(_BINARY, 1, ranks=True),
    "average_precision": _Known(_BINARY, 1, ranks=True),
    "brier": _Known(_CLASSES, -1, is_probability=True),
    "log_loss": _Known(_CLASSES, -1, is_probability=True),
    "accuracy": _Known(_CLASSES, 1, 0.5),
    "balanced_accuracy": _Known(_CLASSES, 1, 0.5),
    "tpr": _Known(_BINARY, 1, 0.5),
    "recall": _Known(_BINARY, 1, 0.5),
    "tnr": _Known(_BINARY, 1, 0.5),
    "fpr": _Known(_BINARY, -1, 0.5),
    "fnr": _Known(_BINARY, -1, 0.5),
    "precision": _Known(_BINARY, 1, 0.5),
    "f1": _Known(_BINARY, 1, 0.5),
    "mcc": _Known(_BINARY, 1, 0.5),
    "positive_rate": _Known(_BINARY, 1, 0.5),
    "f1_macro": _Known(_MANY, 1),
    "f1_weighted": _Known(_MANY, 1),
    "top_accuracy": _Known(_MANY, 1, 3),
    "mae": _Known(_NUMBER, -1),
    "mse": _Known(_NUMBER, -1),
    "rmse": _Known(_NUMBER, -1),
    "mape": _Known(_NUMBER, -1),
    "wape": _Known(_NUMBER, -1),
    "r2": _Known(_NUMBER, 1),
    "pinball": _Known(_NUMBER, -1, 0.5),
    "coverage": _Known(_INTERVAL, 1),
    "interval_width": _Known(_INTERVAL, -1),
    "interval_score": _Known(_INTERVAL, -1, 0.1),
    "ndcg": _Known(_RANKED, 1, 10),
    "mrr": _Known(_RANKED, 1),
    "map": _Known(_RANKED, 1),
    "hit_rate": _Known(_RANKED, 1, 10),
}
_DEPTHS = ("ndcg", "hit_rate", "top_accuracy")
_SHARES = ("pinball", "interval_score")

#: Every metric by name.
METRICS: tuple[str, ...] = tuple(_KNOWN)


class MetricSpec(NamedTuple):
    """A metric by name and parameter; `sign` is 1 where higher is better, else -1."""

    name: str
    threshold: float
    sign: int

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The kinds of task that it measures."""
        return _KNOWN[self.name].tasks

    @property
    def is_ratio(self) -> bool:
        """Whether it follows from sums over rows; else it takes an order of the scores."""
        return not _KNOWN[self.name].ranks

    @property
    def takes_probabilities(self) -> bool:
        """Whether scores must lie within 0 and 1."""
        return _KNOWN[self.name].is_probability


def metrics_of(task: Task) -> tuple[str, ...]:
    """The metrics that a task has."""
    return tuple(name for name, known in _KNOWN.items() if task in known.tasks)


def task_of(specs: Sequence[MetricSpec]) -> Task:
    """The task that all these metrics measure.

    Raises:
        InvalidInput: If there is none.
    """
    common = [task for task in TASKS if all(task in spec.tasks for spec in specs)]
    if not common:
        told = "; ".join(f"{spec.name}: {', '.join(spec.tasks)}" for spec in specs)
        raise InvalidInput("no task has all of these metrics", hint=told)
    return common[0]  # type: ignore[return-value]  # TASKS are the literals, as plain text


def parse_metric(text: str) -> MetricSpec:
    """Read the name of a metric, such as ``brier``, ``tpr@0.3`` or ``ndcg@10``.

    Raises:
        NotFound: If there is no such metric; with the nearest names.
        InvalidInput: If the parameter is none that the metric can have.
    """
    name, at, number = text.partition("@")
    if name not in _KNOWN:
        raise NotFound.named("metric", name, METRICS)
    known = _KNOWN[name]
    if at and known.parameter is None:
        raise InvalidInput(f"metric {name!r} has no threshold", hint=f"write it as {name!r}")
    default = 0.5 if known.parameter is None else known.parameter
    try:
        value = float(number) if at else default
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        example = "10" if name in _DEPTHS else "0.3"
        raise InvalidInput(f"{number!r} is no threshold", hint=f'write it as "{name}@{example}"')
    if name in _DEPTHS and (value < 1 or value != int(value)):
        raise InvalidInput(f"{number!r} is no depth", hint=f'write it as "{name}@10"')
    if name in _SHARES and not 0 < value < 1:
        raise InvalidInput(f"{number!r} does not lie between 0 and 1", hint=f'"{name}@0.9"')
    return MetricSpec(name, value, known.sign)


def metric(
    spec: MetricSpec | str,
    labels: Floats,
    scores: Floats,
    *,
    weights: Floats | None = None,
    query: npt.NDArray[Any] | None = None,
) -> float:
    """The value of a metric.

    Args:
        spec: The metric or its name.
        labels: The truth, see the table above.
        scores: What the model said, finite.
        weights: How much each row counts, 0 and above, shape (n,); all alike if not given. Of a
            ranking the weight of a query's first row counts for the query.
        query: Which rows are ranked together, shape (n,); a ranking needs it.

    Returns:
        The value, NaN where it is not defined.

    Raises:
        InvalidInput: If a ranking comes without `query`.
    """
    spec = parse_metric(spec) if isinstance(spec, str) else spec
    if spec.name == "auc":
        return auc(labels, scores, weights=weights)
    if spec.name == "average_precision":
        return average_precision(labels, scores, weights=weights)
    sums = row_sums(spec.name, spec.threshold, labels, scores, query)
    if not len(labels):
        return math.nan
    totals = [_total(column, weights, len(labels)) for column in sums.columns]
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(sums.value(np.array(totals, dtype=np.float64)))


def auc(labels: Floats, scores: Floats, *, weights: Floats | None = None) -> float:
    """The chance that a positive scores above a negative, ties counted half; exact.

    Source:
        Mann and Whitney, Annals of Mathematical Statistics 18 (1947).
    """
    return Ordered.of(labels, scores, weights).auc()


def average_precision(labels: Floats, scores: Floats, *, weights: Floats | None = None) -> float:
    """The mean of the precision over the recall that each score threshold adds; exact."""
    return Ordered.of(labels, scores, weights).average_precision()


def _total(column: Floats | None, weights: Floats | None, count: int) -> float:
    if column is None:  # one for each row
        return float(count) if weights is None else float(weights.sum())
    return float(column.sum()) if weights is None else float(column @ weights)
