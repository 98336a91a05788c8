"""``ev.leakage``: what a test set tells that it should not, and rows that stand twice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from everloop.core.finding import FindingKind, FindingReport
from everloop.core.schema import Schema
from everloop.data.arrow import arrow_type, field_type
from everloop.data.rowhash import Hashes, kind_of
from everloop.errors import Fault, InvalidInput
from everloop.evaluation.findings.distances import nearest
from everloop.evaluation.findings.folds import instants
from everloop.evaluation.findings.found import Finding, Findings
from everloop.evaluation.findings.looked import (
    Looked,
    features_of,
    hashes_of,
    look,
    matrix_of,
    number_columns,
)
from everloop.evaluation.findings.telling import telling_features

__all__ = ["leakage"]

# Pairs of rows whose distance is taken; beyond, test rows are sampled.
_MOST_PAIRS = 2_000_000_000
_OF_TRAIN = 1000
_Numbers = npt.NDArray[np.int64]


def leakage(
    train: Any,
    test: Any,
    *,
    key: str | Iterable[str] = (),
    time: str = "",
    label: str = "",
    features: Iterable[str] | None = None,
    near: float = 0.05,
    schema: Schema | None = None,
) -> Findings:
    """Find what leaks from a test set into training, and rows that stand twice.

    ================== =============================================================================
    kind               rows
    ================== =============================================================================
    duplicate          of `train`, of `test`: equal to an earlier row in all columns but the key
    conflicting_label  of `train`: equal to another row in all but key and label, with another label
    shared_row         of `test`: equal to a row of `train` in all shared columns but the key
    near_duplicate     of `test`: nearer to a row of `train` than `near` of the median distance of a
                       row of `train` to its nearest other one, on standardised numbers
    shared_key         of `test`: with a key that `train` has: the same person, the same flight
    not_later          of `test`: not later than the last row of `train`
    telling_feature    none: a column that alone predicts the label of `test` all but perfectly
    ================== =============================================================================

    Args:
        train: The name of a dataset, or anything that ``Table.of`` takes.
        test: The same.
        key: Columns that name what must not be on both sides; the key of `train` if not given.
        time: Column of times, in both.
        label: Column of the labels, in both; without one labels are not looked at.
        features: Numbers by which near rows are found, and columns that must not tell the label;
            all that both have but key, label and personal data if not given.
        near: See above; 0 leaves near rows out.
        schema: Names the key and personal columns of frames.

    Raises:
        NotFound: If there is no such dataset or column.
        InvalidInput: If `near` is out of range, or a column is of no use for what it was named for.
    """
    if not 0 <= near < 1:
        raise InvalidInput(f"near is a share from 0 to below 1, got {near!r}")
    sides = look(train, schema), look(test, schema)
    names = (key,) if isinstance(key, str) and key else tuple(key)
    wanted = None if features is None else tuple(features)
    for name in (*names, *(one for one in (time, label) if one), *(wanted or ())):
        for side in sides:
            side.table.column(name)
    pair = _Pair(*sides, names or sides[0].key, label, wanted)
    figures: dict[str, Any] = {"train_rows": len(sides[0].table), "test_rows": len(sides[1].table)}
    found = [*pair.equal_rows(figures), *pair.shared_keys()]
    if near:
        found += pair.near_rows(near, time, figures)
    if time:
        found += pair.not_later(time)
    if label:
        found += telling_features(pair.train, pair.test, pair.columns(without=(time,)), label)
    found.sort(key=lambda one: -one.score)
    return Findings("leakage", found, figures)


class _Pair(NamedTuple):
    """Both sides, and what is asked of them."""

    train: Looked
    test: Looked
    key: tuple[str, ...]
    label: str
    features: tuple[str, ...] | None

    def columns(self, without: Sequence[str] = ()) -> list[str]:
        """The columns to compare by: those wanted, or all shared ones but key and label."""
        if self.features is not None:
            return list(self.features)
        left_out = {*self.key, self.label, *without}
        there = set(self.test.table.column_names)
        return [n for n in self.train.table.column_names if n in there and n not in left_out]

    def equal_rows(self, figures: dict[str, Any]) -> Iterator[Finding]:
        """Rows that are equal in all shared columns but the key."""
        there = set(self.test.table.column_names)
        shared = [n for n in self.train.table.column_names if n in there and n not in self.key]
        shared, skipped = _comparable(self.train, self.test, shared)
        if skipped:
            figures["not_compared"] = skipped
        if not shared:
            return
        hashes = [hashes_of(side.table, shared) for side in (self.train, self.test)]
        for side, looked, one in zip(
            ("train", "test"), (self.train, self.test), hashes, strict=True
        ):
            first = _first_of(one)
            numbers = np.flatnonzero(first != np.arange(len(first)))
            reason = "equal to an earlier row in all columns but the key"
            yield from _some(looked, "duplicate", side, reason, numbers, first[numbers])
        places = _places(hashes[1], hashes[0])
        numbers = np.flatnonzero(places >= 0)
        reason = "this row was trained on"
        yield from _some(self.test, "shared_row", "test", reason, numbers, places[numbers])
        if self.label in shared and len(shared) > 1:
            yield from self._conflicts(shared, hashes[0])

    def _conflicts(self, shared: list[str], whole: Hashes) -> Iterator[Finding]:
        without = hashes_of(self.train.table, [n for n in shared if n != self.label])
        rows = pl.DataFrame(
            {"a": without.low, "b": without.high, "x": whole.low, "row": np.arange(len(whole.low))}
        )
        # Of rows that are equal but for the label: those in a company of several labels.
        many = rows.filter(pl.col("x").n_unique().over("a", "b") > 1)
        first = many.with_columns(first=pl.col("row").min().over("a", "b"))
        yield from _some(
            self.train, "conflicting_label", "train",
            f"equal to another row in all but the key, with another {self.label}",
            first["row"].to_numpy(), first["first"].to_numpy(),
        )  # fmt: skip

    def shared_keys(self) -> Iterator[Finding]:
        """Rows of the test with a key that the training rows have."""
        if not self.key or not set(self.key) <= set(self.test.table.column_names):
            return
        names, skipped = _comparable(self.train, self.test, list(self.key))
        if skipped:
            faults = [Fault(name, "has no type, or two, to compare by") for name in skipped]
            raise InvalidInput("keys cannot be compared", faults)
        places = _places(hashes_of(self.test.table, names), hashes_of(self.train.table, names))
        numbers = np.flatnonzero(places >= 0)
        reason = f"the same {', '.join(names)} was trained on"
        yield from _some(self.test, "shared_key", "test", reason, numbers, places[numbers])

    def near_rows(self, near: float, time: str, figures: dict[str, Any]) -> Iterator[Finding]:
        """Rows of the test that a training row is almost equal to."""
        without = (self.label, time, *self.key)
        names = number_columns(self.train, self.test, self.features, without)
        if not names or len(self.train.table) < 2 or not len(self.test.table):
            return
        names = list(features_of(self.train, names, ()))
        random = np.random.default_rng(0)
        of_test = np.arange(len(self.test.table))
        most = max(1, _MOST_PAIRS // len(self.train.table))
        if most < len(of_test):
            of_test = np.sort(random.choice(of_test, most, replace=False))
            figures["near_looked_at"] = most
        ours, theirs = matrix_of([self.train.table, self.test.table.take(of_test)], names)
        some = random.permutation(len(ours))[:_OF_TRAIN]
        # Twice the same row among some of them: then the next one is what counts.
        usual = float(np.median(nearest(ours[some], ours, leave_out=some)[1]))
        place, apart = nearest(theirs, ours)
        found = np.flatnonzero((apart < near * usual) & (apart > 0))
        found = found[np.argsort(apart[found], kind="stable")]
        yield from _some(
            self.test, "near_duplicate", "test",
            f"a training row is nearer than {near:g} of the usual distance ({usual:.3g})",
            of_test[found], place[found], apart[found],
        )  # fmt: skip

    def not_later(self, time: str) -> Iterator[Finding]:
        """Rows of the test that are not later than all training rows."""
        ours, theirs = (instants(s.table.column(time), time) for s in (self.train, self.test))
        if not len(ours):
            return
        found = np.flatnonzero(theirs <= ours.max())
        found = found[np.argsort(theirs[found], kind="stable")]
        last = self.train.table.column(time).take(pa.array([int(ours.argmax())]))[0].as_py()
        when = "the last training row" if time in self.train.personal else f"{last}, the last"
        yield from _some(
            self.test, "not_later", "test", f"{time} is not later than {when} trained on", found
        )


_NAMES: dict[str, str] = {
    "duplicate": "duplicates",
    "conflicting_label": "conflicting labels",
    "shared_row": "test rows trained on",
    "near_duplicate": "near duplicates of training rows",
    "shared_key": "keys on both sides",
    "not_later": "test rows not later",
}


def _some(
    looked: Looked,
    kind: FindingKind,
    side: str,
    reason: str,
    numbers: _Numbers,
    same_as: _Numbers | None = None,
    apart: npt.NDArray[np.float64] | None = None,
) -> Iterator[Finding]:
    if not len(numbers):
        return
    share = len(numbers) / len(looked.table)
    told = FindingReport(
        kind=kind, name=_NAMES[kind], reason=reason, side=side, count=len(numbers), score=share,
        figures={"share": share},
    )  # fmt: skip
    of_rows = {} if same_as is None else {"same_as": pa.array(same_as)}
    if apart is not None:
        of_rows["distance"] = pa.array(apart)
    row_reason = "" if same_as is None else reason.replace("{", "{{").replace("}", "}}")
    row_reason += " (row {same_as})" if row_reason else ""
    yield Finding(looked, told, numbers, np.ones(len(numbers)), of_rows, row_reason=row_reason)


def _comparable(one: Looked, other: Looked, names: list[str]) -> tuple[list[str], list[str]]:
    """The columns that can be compared, and those that cannot: nested, or of two kinds."""
    kept, skipped = [], []
    for name in names:
        kinds = []
        for side in (one, other):
            found = field_type(side.table.column(name).type)
            kinds.append("" if found is None else kind_of(arrow_type(found)))
        if kinds[0] and kinds[0] == kinds[1]:
            kept.append(name)
        else:
            skipped.append(name)
    return kept, skipped


def _first_of(hashes: Hashes) -> _Numbers:
    """For each row the number of the first that is equal."""
    rows = pl.DataFrame({"a": hashes.low, "b": hashes.high, "row": np.arange(len(hashes.low))})
    return rows.select(pl.col("row").min().over("a", "b")).to_series().to_numpy()


def _places(these: Hashes, among: Hashes) -> _Numbers:
    """For each row the first equal one of `among`, or -1."""
    left = pl.DataFrame({"a": these.low, "b": these.high})
    right = pl.DataFrame({"a": among.low, "b": among.high, "row": np.arange(len(among.low))})
    first = right.group_by("a", "b").agg(pl.col("row").min())
    joined = left.join(first, on=["a", "b"], how="left", maintain_order="left")
    return joined["row"].fill_null(-1).to_numpy().astype(np.int64)
