"""Columns that alone tell the label: the answer copied into the question."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from everloop.core.finding import FindingReport
from everloop.errors import EverloopError
from everloop.evaluation.findings.found import Finding
from everloop.evaluation.findings.looked import Looked, classes_of

__all__ = ["telling_features"]

#: Share of what guessing the commonest class gets wrong that a column alone must get right.
_ENOUGH = 0.95
_BINS = 256
_LEAST_ROWS = 20


def telling_features(
    train: Looked, test: Looked, columns: Sequence[str], label: str
) -> Iterator[Finding]:
    """One finding, without rows, for each column that alone predicts the label of the test.

    Each value (of numbers with more than 256, each quantile bin) predicts the class that is most
    frequent with it in `train`; a value that `train` has not, the most frequent of all.
    """
    ours = classes_of(train.table, label)
    theirs = classes_of(test.table, label, None)
    place = {value: number for number, value in enumerate(ours.values)}
    of_test = np.array([place.get(value, -1) for value in theirs.values] or [-1], np.int64)
    truth = np.where(theirs.codes < 0, -1, of_test[theirs.codes])
    known = theirs.codes >= 0
    if known.sum() < _LEAST_ROWS or len(ours.values) < 2:
        return
    sizes = np.bincount(ours.codes[ours.codes >= 0], minlength=len(ours.values))
    base = float((truth[known] == sizes.argmax()).mean())
    for name in columns:
        guess = _guesses(train, test, name, ours.codes, int(sizes.argmax()))
        if guess is None or base == 1:
            continue
        right = float((guess[known] == truth[known]).mean())
        told = (right - base) / (1 - base)
        if told >= _ENOUGH:
            yield Finding(
                test,
                FindingReport(
                    kind="telling_feature", name=f"{name} tells {label}", side="test",
                    reason=f"{name} alone predicts {label} of {right:.1%} of the test rows; "
                    f"without it {base:.1%}",
                    count=0, score=told, columns=(name,),
                    figures={"accuracy": right, "without": base},
                ),
                np.empty(0, np.int64),
            )  # fmt: skip


def _guesses(
    train: Looked, test: Looked, name: str, labels: npt.NDArray[np.int64], usual: int
) -> npt.NDArray[np.int64] | None:
    """The class that the column alone predicts for each row of the test; None if it cannot."""
    try:
        one, other = (pl.Series(side.table.column(name)) for side in (train, test))
        if one.dtype.is_numeric() and other.dtype.is_numeric():
            one, other = one.cast(pl.Float64), other.cast(pl.Float64)
            if one.n_unique() > _BINS:
                one, other = _binned(one, other)
        # Rows of a value with each label; the most frequent first, then the least class.
        seen = pl.DataFrame({"value": one, "label": labels}).filter(pl.col("label") >= 0)
        counts = (
            seen.group_by("value", "label").len().sort(["len", "label"], descending=[True, False])
        )
        best = counts.group_by("value", maintain_order=True).first()
        asked = pl.DataFrame({"value": other})
        found = asked.join(best, on="value", how="left", nulls_equal=True, maintain_order="left")
    except (pl.exceptions.PolarsError, pa.ArrowException, TypeError, ValueError, EverloopError):
        return None  # of two types, or of one that has no equality
    return found["label"].fill_null(usual).to_numpy().astype(np.int64)


def _binned(one: pl.Series, other: pl.Series) -> tuple[pl.Series, pl.Series]:
    ours, theirs = one.fill_null(np.nan).to_numpy(), other.fill_null(np.nan).to_numpy()
    known = np.sort(ours[np.isfinite(ours)])
    edges = np.unique(known[np.arange(1, _BINS) * len(known) // _BINS])
    return pl.Series(np.searchsorted(edges, ours)), pl.Series(np.searchsorted(edges, theirs))
