"""``ev.coverage``: whether what is served is what was trained on."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from everloop.core.finding import FeatureCoverage, FindingReport
from everloop.core.schema import Schema
from everloop.data.bins import BINS, HIGH, LOW, NULL, UNSEEN, fit_feature
from everloop.data.frame import Table
from everloop.data.statistics import ks_distance, total_variation
from everloop.errors import InvalidInput
from everloop.evaluation.bootstrap import Interval, single
from everloop.evaluation.findings.distances import nearest
from everloop.evaluation.findings.folds import Fit, predicted
from everloop.evaluation.findings.found import Finding, Findings, html_table
from everloop.evaluation.findings.looked import Looked, look, plain_values
from everloop.evaluation.findings.telltale import (
    Described,
    auc_of,
    cross_fitted,
    described,
    expanded,
)
from everloop.evaluation.metrics import parse_metric
from everloop.evaluation.order import Floats

__all__ = ["Coverage", "coverage"]

_FOLDS = 5
# Rows of each side that the classifier sees, and training rows whose distance is taken.
_SAMPLE = 20_000
_SERVED = 100_000
# Rows on which features are shuffled.
_SHUFFLED = 4000
_BLOCKS = 100
_DAY_US = 86_400_000_000
#: Share of training rows that are farther from the others than a served row may be.
_BEYOND = 0.01
_LEAST = 50


class Coverage(Findings):
    """Served rows beside training rows; the finding are served rows that no training row is near.

    Attributes:
        auc: How well a classifier tells the two apart, out of fold, with its interval: 0.5 is not
            at all.
        features: Each feature, the one that tells most first.
        uncovered_share: Share of served rows that are farther from their nearest training row than
            99 % of training rows are from theirs; 0.01 is what to expect.
        effective_share: Share of the training rows that they are worth for what is served: the
            effective number by `weights`.
        weights: How much each training row would have to count to stand for what is served, mean 1,
            shape (training rows,).
    """

    def __init__(
        self,
        found: Iterable[Finding],
        figures: dict[str, Any],
        reason: str = "",
        *,
        auc: Interval,
        features: tuple[FeatureCoverage, ...] = (),
        uncovered_share: float = math.nan,
        weights: Floats | None = None,
    ) -> None:
        self.auc = auc
        self.features = features
        self.uncovered_share = uncovered_share
        self.weights = np.empty(0) if weights is None else weights
        total = float(self.weights.sum())
        self.effective_share = (
            total**2 / float((self.weights**2).sum()) / len(self.weights) if total else math.nan
        )
        shown = {
            "auc": auc.estimate,
            "low": auc.low,
            "high": auc.high,
            "uncovered_share": uncovered_share,
            "effective_share": self.effective_share,
        }
        super().__init__("coverage", list(found), shown | figures, reason)

    @property
    def is_alike(self) -> bool | None:
        """Whether the classifier cannot tell the two apart; None if it cannot be told."""
        return None if math.isnan(self.auc.low) else self.auc.low <= 0.5

    def summary(self) -> str:
        """What was found, and the features that tell most."""
        told = [
            f"  {one.name}: distance {one.distance:.3f}, alone {one.auc:.3f}, "
            f"importance {one.importance:.3f}"
            for one in self.features[:5]
        ]
        return "\n".join([super().summary(), *told])

    def _repr_html_(self) -> str:
        head = ["feature", "distance", "auc alone", "importance", "outside", "missing change"]
        body = [
            [one.name, f"{one.distance:.3f}", f"{one.auc:.3f}", f"{one.importance:.3f}",
             f"{one.outside_share:.2%}", f"{one.missing_change:+.2%}"]
            for one in self.features
        ]  # fmt: skip
        title = f"AUC {self.auc.estimate:.3f} ({self.auc.low:.3f} to {self.auc.high:.3f})"
        return super()._repr_html_() + html_table(title, head, body)


def coverage(
    train: Any,
    served: Any,
    *,
    features: Iterable[str] | None = None,
    fit: Fit | None = None,
    seed: int = 0,
    schema: Schema | None = None,
) -> Coverage:
    """Tell whether the training rows cover what is served, and stand for it.

    By each feature; jointly by a classifier that tries to tell the two apart; and by the distance
    of each served row to its nearest training row. Samples of 20,000 rows of each side are taken.

    Args:
        train: The name of a dataset, or anything that ``Table.of`` takes.
        served: The same.
        features: Columns to compare; those of both but key, identifiers, times, targets and
            personal data if not given.
        fit: Trains the classifier instead: as for :func:`out_of_fold`, on the features with the
            column ``served`` (0 or 1) as the label.
        seed: Of samples, folds and shuffling.
        schema: Names the key and personal columns of frames.

    Raises:
        NotFound: If there is no such dataset or column.
        InvalidInput: If no feature can be compared.
        UserCodeError: If `fit` raises.
    """
    sides = look(train, schema), look(served, schema)
    numbers, levels, skipped = _features(*sides, None if features is None else tuple(features))
    names = [*numbers, *levels]
    random = np.random.default_rng(seed)
    figures: dict[str, Any] = {
        "train_rows": len(sides[0].table),
        "served_rows": len(sides[1].table),
    }
    if skipped:
        figures["skipped"] = skipped
    nothing = Interval(math.nan, math.nan, math.nan, 0)
    least = min(len(side.table) for side in sides)
    if least < _LEAST:
        reason = f"too small to tell: {least} rows on one side, {_LEAST} are needed"
        return Coverage((), figures, reason, auc=nothing)
    whole = described(sides[0].table, sides[1].table, numbers, levels)
    picked = [_sampled(random, len(rows), _SAMPLE) for rows in (whole.one, whole.other)]
    labels = np.repeat([0.0, 1.0], [len(rows) for rows in picked])
    fold = random.permutation(len(labels)) % _FOLDS
    stacked = np.vstack([whole.one[picked[0]], whole.other[picked[1]]])
    if fit is None:
        judge: _Judge = _Linear(stacked, labels, fold, whole.feature)
    else:
        tables = [
            side.table.select(names).take(rows) for side, rows in zip(sides, picked, strict=True)
        ]
        judge = _Given(fit, tables, labels, fold)
    auc = _interval(labels, judge.scores, random)
    rows = _sampled(random, len(labels), _SHUFFLED)
    fallen = [judge.without(position, rows, random) for position in range(len(names))]
    base = auc_of(labels[rows], judge.scores[rows])
    alone = _alone(stacked, labels, fold, whole.feature, len(names))
    told = [
        _feature(*sides, name, name in levels, alone[n], base - fallen[n])
        for n, name in enumerate(names)
    ]
    told.sort(key=lambda one: (-one.importance, -one.distance, one.name))
    finding, share = _uncovered(sides[1], whole, picked[0], random)
    return Coverage(
        finding, figures, auc=auc, features=tuple(told), uncovered_share=share,
        weights=_weights(whole.one, stacked, labels, fold),
    )  # fmt: skip


def _features(
    train: Looked, served: Looked, wanted: tuple[str, ...] | None
) -> tuple[list[str], list[str], list[str]]:
    """Columns of numbers, columns of levels, and those that cannot be compared."""
    there = served.table.column_names
    names = wanted or [name for name in train.table.column_names if name in there]
    numbers, levels, skipped = [], [], []
    for name in names:
        kinds = [_kind(side.table.column(name)) for side in (train, served)]
        is_name = train.semantic(name) in ("id", "target", "timestamp", "text", "embedding")
        is_left_out = is_name or name in train.key or name in (train.personal | served.personal)
        if wanted is None and is_left_out:
            continue
        if kinds[0] != kinds[1] or not kinds[0]:
            skipped.append(name)
        elif kinds[0] == "level" or train.semantic(name) == "categorical":
            levels.append(name)
        else:
            numbers.append(name)
    if not numbers and not levels:
        raise InvalidInput("there is no feature that both sides have", hint="give features=[...]")
    return numbers, levels, skipped


def _kind(column: pa.ChunkedArray) -> str:
    kind = plain_values(column).type
    if pa.types.is_boolean(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "level"
    return "number" if pa.types.is_integer(kind) or pa.types.is_floating(kind) else ""


def _sampled(random: np.random.Generator, rows: int, most: int) -> npt.NDArray[np.int64]:
    if rows <= most:
        return np.arange(rows)
    return np.sort(random.choice(rows, most, replace=False))


def _interval(labels: Floats, scores: Floats, random: np.random.Generator) -> Interval:
    """Rows have no time here: they are drawn in blocks of some at random, as good as one by one."""
    blocks = random.permutation(len(labels)) % _BLOCKS
    return single(parse_metric("auc"), labels, scores, blocks * _DAY_US, level=0.025)


class _Judge(Protocol):
    """Scores of all rows out of fold, and what becomes of the AUC if a feature is shuffled."""

    scores: Floats

    def without(
        self, feature: int, rows: npt.NDArray[np.int64], random: np.random.Generator
    ) -> float:
        """The AUC of `rows` with this feature shuffled."""


class _Linear:
    def __init__(
        self,
        rows: npt.NDArray[np.float32],
        labels: Floats,
        fold: npt.NDArray[np.int64],
        feature: npt.NDArray[np.intp],
    ) -> None:
        self._rows, self._labels, self._fold, self._feature = rows, labels, fold, feature
        self.scores, self._models = cross_fitted(expanded(rows), labels, fold)

    def without(
        self, feature: int, rows: npt.NDArray[np.int64], random: np.random.Generator
    ) -> float:
        some = self._rows[rows].copy()
        mine = np.flatnonzero(self._feature == feature)
        some[:, mine] = some[np.ix_(random.permutation(len(some)), mine)]
        design, scores = expanded(some), np.empty(len(some))
        for number, model in enumerate(self._models):
            held = self._fold[rows] == number
            scores[held] = design[held] @ model
        return auc_of(self._labels[rows], scores)


class _Given:
    def __init__(
        self, fit: Fit, tables: list[Table], labels: Floats, fold: npt.NDArray[np.int64]
    ) -> None:
        self._rows = Table.concat([t.settled() for t in tables])
        self._labels, self._fold = labels, fold
        self._names = self._rows.column_names
        table = self._rows.with_columns(served=labels.astype(np.int64))
        self.scores = np.empty(len(labels))
        self._models: list[Any] = []
        for number in range(int(fold.max()) + 1):
            held = np.flatnonzero(fold == number)
            model = self._trained(fit, table.take(np.flatnonzero(fold != number)))
            self._models.append(model)
            self.scores[held] = self._predicted(model, self._rows.take(held))

    @staticmethod
    def _trained(fit: Fit, rows: Table) -> Any:
        found: list[Any] = []

        def once(train: Table) -> Any:
            found.append(fit(train))
            return lambda held: np.full((len(held), 2), 0.5)

        predicted(once, rows, rows.take([0]), 2)
        return found[0]

    @staticmethod
    def _predicted(model: Any, rows: Table) -> Floats:
        return predicted(lambda _: model, rows, rows, 2)[:, 1]

    def without(
        self, feature: int, rows: npt.NDArray[np.int64], random: np.random.Generator
    ) -> float:
        name = self._names[feature]
        some = self._rows.take(rows)
        mixed = some.column(name).take(pa.array(random.permutation(len(some))))
        some = some.with_columns({name: mixed})
        scores = np.empty(len(some))
        for number, model in enumerate(self._models):
            held = np.flatnonzero(self._fold[rows] == number)
            if len(held):
                scores[held] = self._predicted(model, some.take(held))
        return auc_of(self._labels[rows], scores)


def _alone(
    rows: npt.NDArray[np.float32],
    labels: Floats,
    fold: npt.NDArray[np.int64],
    feature: npt.NDArray[np.intp],
    count: int,
) -> list[float]:
    found = []
    for position in range(count):
        scores, _ = cross_fitted(expanded(rows[:, feature == position]), labels, fold)
        found.append(auc_of(labels, scores))
    return found


def _feature(
    train: Looked, served: Looked, name: str, is_level: bool, auc: float, importance: float
) -> FeatureCoverage:
    ours, theirs = (plain_values(s.table.column(name)).combine_chunks() for s in (train, served))
    bins = fit_feature(name, ours, categorical=is_level)
    one, other = bins.count(ours), bins.count(theirs)
    if bins.kind == "numeric":
        distance = float(ks_distance(one[:BINS], other[:BINS]))
    else:
        here = [*range(BINS), UNSEEN]
        distance = float(total_variation(one[here], other[here]))
    outside = int(other[LOW] + other[HIGH] + other[UNSEEN])
    return FeatureCoverage(
        name=name, distance=distance, auc=auc, importance=importance,
        outside_share=outside / len(theirs),
        missing_change=float(other[NULL]) / len(theirs) - float(one[NULL]) / len(ours),
    )  # fmt: skip


def _uncovered(
    served: Looked,
    whole: Described,
    reference: npt.NDArray[np.int64],
    random: np.random.Generator,
) -> tuple[list[Finding], float]:
    known = whole.one[reference]
    some = _sampled(random, len(known), _SHUFFLED)
    usual = nearest(known[some], known, leave_out=some)[1]
    edge = max(float(np.quantile(usual, 1 - _BEYOND)), 1e-9)
    of_served = _sampled(random, len(whole.other), _SERVED)
    apart = nearest(whole.other[of_served], known)[1]
    beyond = np.flatnonzero(apart > edge)
    share = len(beyond) / len(of_served)
    if share <= _BEYOND + 3 * math.sqrt(_BEYOND / len(of_served) + _BEYOND / len(some)):
        return [], share
    beyond = beyond[np.argsort(-apart[beyond], kind="stable")]
    told = FindingReport(
        kind="uncovered", name="served rows far from training", side="served", count=len(beyond),
        reason=f"farther from any training row ({edge:.3g}) than 99 % of these are from theirs",
        score=share, figures={"share": share, "expected": _BEYOND, "edge": edge},
        columns=(),
    )  # fmt: skip
    distance = {"distance": pa.array(apart[beyond])}
    return [Finding(served, told, of_served[beyond], apart[beyond] / edge, distance)], share


def _weights(
    train: npt.NDArray[np.float32],
    sample: npt.NDArray[np.float32],
    labels: Floats,
    fold: npt.NDArray[np.int64],
) -> Floats:
    """The odds of being served, out of fold for what is known; mean 1."""
    scores, models = cross_fitted(expanded(sample), labels, fold)
    slope, level = _logistic(scores, labels)
    mean = np.mean(models, axis=0)
    found = np.empty(len(train))
    for start in range(0, len(train), _SAMPLE):
        part = slice(start, start + _SAMPLE)
        found[part] = expanded(train[part]) @ mean
    odds = np.exp(np.clip(slope * found + level, -10, 10))
    return np.asarray(odds / odds.mean())


def _logistic(scores: Floats, labels: Floats) -> tuple[float, float]:
    """Slope and level of the log odds, by Newton's method; slope at least 0."""
    design = np.column_stack([scores, np.ones(len(scores))])
    found = np.zeros(2)
    for _ in range(25):
        chance = 1 / (1 + np.exp(-np.clip(design @ found, -30, 30)))
        spread = chance * (1 - chance) + 1e-9
        hessian = (design * spread[:, None]).T @ design + 1e-6 * np.eye(2)
        step = np.linalg.solve(hessian, design.T @ (labels - chance) - 1e-6 * found)
        found += np.clip(step, -5, 5)
        if np.abs(step).max() < 1e-8:
            break
    return max(float(found[0]), 0.0), float(found[1])
