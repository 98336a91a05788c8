"""Behavioural tests: what a model must do whatever its metrics say.

Each takes rows of features and the model as a function of a matrix, and gives back what was
checked, what broke it, and the worst rows as they were, so that a person can look at them.

Source:
    The kinds are those of Ribeiro, Wu, Guestrin and Singh, Beyond Accuracy (ACL 2020): minimum
    functionality, invariance, directional expectation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from everloop.core.time import monotonic_ns
from everloop.errors import InvalidInput, NotFound
from everloop.evaluation.order import Floats

__all__ = [
    "Behaviour",
    "Case",
    "Predict",
    "directional",
    "functionality",
    "invariance",
    "latency_ms",
]

Predict = Callable[[Floats], npt.NDArray[Any]]

_MOST_VALUES = 10
_SHOWN = 5


class Case(NamedTuple):
    """One known answer: these features must score within ``[low, high]``."""

    name: str
    features: Mapping[str, float]
    low: float
    high: float


class Behaviour(NamedTuple):
    """What a behavioural test came to.

    Attributes:
        checked: How many rows, or cases, were looked at.
        broken: How many broke the expectation.
        worst: The rows that broke it most, the worst first: features, what was, what came.
    """

    checked: int
    broken: int
    worst: tuple[dict[str, Any], ...]

    @property
    def share(self) -> float:
        """The share that broke it; NaN where nothing was checked."""
        return self.broken / self.checked if self.checked else math.nan


def invariance(
    predict: Predict,
    names: Sequence[str],
    rows: Floats,
    field: str,
    *,
    by: float,
    values: Sequence[float] = (),
) -> Behaviour:
    """Change a field that must not matter; no score may move by more than `by`.

    Args:
        predict: Scores of a matrix (n, k), shape (n,).
        names: The features in the order of the columns.
        rows: Real rows, shape (n, k).
        field: The feature to change.
        by: How far a score may move.
        values: What to put in its place; what occurs in the rows if not given, at most 10 values.

    Raises:
        NotFound: If the model takes no such feature.
    """
    at = _place(names, field)
    tried = np.asarray(values, dtype=np.float64) if len(values) else _values_of(rows[:, at])
    before = _scores(predict, rows)
    farthest, came, put = np.zeros(len(rows)), before.copy(), rows[:, at].copy()
    for value in tried:
        changed = rows.copy()
        changed[:, at] = value
        after = _scores(predict, changed)
        moved = np.abs(after - before)
        moved[~np.isfinite(moved)] = np.inf  # a score that is none is no small change
        more = moved > farthest
        farthest[more], came[more], put[more] = moved[more], after[more], value
    return _told(
        farthest > by, farthest, names, rows,
        lambda i: {"changed": {field: float(put[i])}, "before": before[i], "after": came[i]},
    )  # fmt: skip


def directional(
    predict: Predict,
    names: Sequence[str],
    rows: Floats,
    field: str,
    *,
    change: float,
    effect: Literal["up", "down"],
    by: float = 0.0,
) -> Behaviour:
    """Move a field; no score may move the wrong way by more than `by`.

    Args:
        change: What is added to the field.
        effect: Which way the scores must go (or stay).
        by: How far the wrong way is let pass; the other arguments as for :func:`invariance`.

    Raises:
        NotFound: If the model takes no such feature.
    """
    at = _place(names, field)
    known = np.isfinite(rows[:, at])  # nothing can be added to what is missing
    rows = rows[known]
    changed = rows.copy()
    changed[:, at] += change
    before, after = _scores(predict, rows), _scores(predict, changed)
    wrong = before - after if effect == "up" else after - before
    wrong[~np.isfinite(wrong)] = np.inf
    return _told(
        wrong > by, wrong, names, rows,
        lambda i: {
            "changed": {field: float(changed[i, at])}, "before": before[i], "after": after[i],
        },
    )  # fmt: skip


def functionality(predict: Predict, names: Sequence[str], cases: Sequence[Case]) -> Behaviour:
    """Known cases must score within their limits; features that a case leaves out are missing.

    Raises:
        InvalidInput: If there is no case.
        NotFound: If a case names a feature that the model does not take.
    """
    if not cases:
        raise InvalidInput("there is no case to check", hint="name at least one")
    rows = np.full((len(cases), len(names)), math.nan)
    for index, case in enumerate(cases):
        for name, value in case.features.items():
            rows[index, _place(names, name)] = value
    scores = _scores(predict, rows)
    low, high = (np.array([case[end] for case in cases]) for end in (2, 3))
    off = np.maximum(np.maximum(low - scores, scores - high), 0)
    off[~np.isfinite(off)] = np.inf
    return _told(
        off > 0, off, names, rows,
        lambda i: {"case": cases[i].name, "wanted": [low[i], high[i]], "score": scores[i]},
    )  # fmt: skip


def latency_ms(
    predict: Predict, rows: Floats, *, calls: int = 200, warm_up: int = 20
) -> tuple[float, float]:
    """Median and 99th percentile of the time that one row takes, in milliseconds.

    The model alone, in this process: what a client waits for has features and the network besides.

    Raises:
        InvalidInput: If there is no row.
    """
    if not len(rows):
        raise InvalidInput("there is no row to time the model with")
    spent = np.empty(calls)
    for call in range(-warm_up, calls):
        row = rows[call % len(rows)][None, :]
        began = monotonic_ns()
        predict(row)
        if call >= 0:
            spent[call] = (monotonic_ns() - began) / 1e6
    median, worst = np.quantile(spent, (0.5, 0.99))
    return float(median), float(worst)


def _place(names: Sequence[str], field: str) -> int:
    if field not in names:
        raise NotFound.named("feature of the model", field, names)
    return list(names).index(field)


def _values_of(column: Floats) -> Floats:
    values = np.unique(column[np.isfinite(column)])
    if len(values) <= _MOST_VALUES:
        return values
    # Real values, not means between two of them: half of a category is none.
    return np.asarray(values[np.linspace(0, len(values) - 1, _MOST_VALUES).round().astype(int)])


def _scores(predict: Predict, rows: Floats) -> Floats:
    if not len(rows):
        return np.empty(0)
    found = np.asarray(predict(rows), dtype=np.float64)
    if found.shape != (len(rows),):
        raise InvalidInput(f"the model gave shape {found.shape} for {len(rows)} rows")
    return found


def _told(
    broken: npt.NDArray[np.bool_],
    badness: Floats,
    names: Sequence[str],
    rows: Floats,
    more: Callable[[int], dict[str, Any]],
) -> Behaviour:
    order = np.argsort(-badness, kind="stable")
    worst = [int(i) for i in order[:_SHOWN] if broken[i]]
    return Behaviour(
        len(rows),
        int(np.count_nonzero(broken)),
        tuple(
            {"features": dict(zip(names, rows[i].tolist(), strict=True))} | _plain(more(i))
            for i in worst
        ),
    )


def _plain(found: dict[str, Any]) -> dict[str, Any]:
    """NumPy's numbers as Python's, for the evidence is kept as JSON."""
    return {
        key: [float(one) for one in value]
        if isinstance(value, list)
        else float(value)
        if isinstance(value, np.floating)
        else value
        for key, value in found.items()
    }
