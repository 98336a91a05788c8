"""Where a model is worst: slices of the fields, found by search and corrected for it.

Tried are the values of each field (levels of text, quantile bins of numbers) and each pair of two
fields. A slice counts if it is worse than the rows outside it by more than the floor, and by more
than chance when all that was tried is allowed for. How fields are cut does not depend on the
labels, or the search would find its own making. Rows without a label are left out and counted.

An effect that was picked as the worst of many looks larger than it is; ``method="halves"`` finds on
every other day and measures on the days between, so that what it reports is not picked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations, pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from everloop.core.schema import Schema
from everloop.errors import InvalidInput
from everloop.evaluation.bootstrap import MIN_DAYS, day_blocks
from everloop.evaluation.contrast import (
    adjusted,
    contrasts,
    ratio_columns,
    student_tail,
    student_value,
)
from everloop.evaluation.metrics import MetricSpec
from everloop.evaluation.order import Floats

__all__ = ["Cut", "FoundSlice", "SliceSearch", "cut_field", "find_slices"]

Method = Literal["all", "halves"]

_MOST_LEVELS = 20
_BINS = 4
_MOST_FOUND = 20
# Two slices that share this much of the smaller one tell the same story twice.
_SAME = 0.8
_LEFT_OUT = ("id", "text", "embedding", "timestamp", "target")


class Cut(NamedTuple):
    """A field in parts: the part of each row from 0 (-1: in none), and their names."""

    codes: npt.NDArray[np.intp]
    names: tuple[str, ...]


class FoundSlice(NamedTuple):
    """A slice that is worse than the rest.

    Attributes:
        name: Such as ``carrier = EV and hour in [17, 20)``.
        rows: Labelled rows in it, on so many `days`.
        inside: The metric within; `outside` that of all other rows.
        effect: How much worse, in units of the metric, above 0; with its interval.
        adjusted_p: p-value after correction for all slices tried.
    """

    name: str
    rows: int
    days: int
    inside: float
    outside: float
    effect: float
    low: float
    high: float
    adjusted_p: float


class SliceSearch(NamedTuple):
    """What a search came to.

    Attributes:
        found: The slices that are worse, worst first.
        tried: How many were large enough to be tried; `too_small` how many were not.
        unlabelled: Rows without a label, which no slice holds.
        reason: Why nothing could be searched, or empty.
    """

    found: tuple[FoundSlice, ...]
    tried: int
    too_small: int
    unlabelled: int
    method: Method
    reason: str = ""


def find_slices(
    spec: MetricSpec,
    labels: Floats,
    scores: Floats,
    at_us: npt.NDArray[np.int64],
    fields: Mapping[str, npt.NDArray[Any]],
    *,
    schema: Schema | None = None,
    floor: float = 0.0,
    min_rows: int = 200,
    level: float = 0.05,
    pairs: bool = True,
    method: Method = "all",
) -> SliceSearch:
    """Find the slices in which the metric is worse than outside them.

    Args:
        spec: A metric that is one sum over another, such as ``brier`` or ``mae``.
        labels: The truth; NaN where it is not known.
        scores: What the model said.
        at_us: Time of each row, microseconds since 1970, UTC.
        fields: Columns to cut by, shape (n,) each: text, booleans, numbers.
        schema: What the columns mean; identifiers, texts and times are left out, categories are cut
            by value even where they are numbers.
        floor: Smallest effect that counts, in units of the metric.
        min_rows: Fewest labelled rows of a slice.
        level: Share of false finds among what is reported.
        pairs: Whether pairs of two fields are tried too.
        method: ``all`` days find, corrected by Benjamini and Hochberg over all that was tried; or
            ``halves``: the even days find, the odd ones measure, corrected over what was found.

    Raises:
        InvalidInput: If the metric cannot be compared group by group, or a column has another
            length.
    """
    wrong = [name for name, column in fields.items() if len(column) != len(labels)]
    if wrong:
        raise InvalidInput(f"fields {wrong} have other lengths than the {len(labels)} labels")
    labelled = np.isfinite(labels)
    unlabelled = int(np.count_nonzero(~labelled))
    labels, scores, at_us = labels[labelled], scores[labelled], at_us[labelled]
    above, below = ratio_columns(spec, labels, scores)
    days = day_blocks(at_us)
    blocks = int(days.max()) + 1 if len(days) else 0
    needed = MIN_DAYS * (2 if method == "halves" else 1)
    if blocks < needed:
        reason = f"too few blocks to tell: {blocks} days, {needed} are needed"
        return SliceSearch((), 0, 0, unlabelled, method, reason)
    cuts = {
        name: cut_field(column[labelled], _is_category(schema, name))
        for name, column in fields.items()
        if _is_tried(schema, name)
    }
    scan = _Scan(above, below, days, cuts, spec.sign, min_rows)
    every = np.ones(len(labels), dtype=bool)
    one_or_two: list[tuple[str, ...]] = [(name,) for name in cuts]
    one_or_two += list(combinations(cuts, 2)) if pairs else []
    if method == "all":
        tried = list(scan.over(one_or_two, every))
        picked = _worse(_judged(tried), floor, level)
    else:
        even = days % 2 == 0
        tried = list(scan.over(one_or_two, even))
        hopeful = _worse(_judged(tried), floor, 0.2)[:_MOST_FOUND]
        again = scan.over({_fields_of(one): None for one in hopeful}, ~even)
        chosen = {one.parts for one in hopeful}
        picked = _worse(_judged(one for one in again if one.parts in chosen), floor, level)
    large = _judged(tried)
    found = tuple(one.told(cuts, level) for one in _distinct(picked, cuts))
    return SliceSearch(found, len(large), len(tried) - len(large), unlabelled, method)


def cut_field(column: npt.NDArray[Any], is_category: bool | None = None) -> Cut:
    """Cut a column into parts.

    Text and booleans go by value, the 20 most frequent and the others together; numbers by
    quartile, or by value where there are few; what is missing is a part of its own.

    Args:
        column: Shape (n,).
        is_category: Whether numbers are names of classes; None for as they look.
    """
    values = np.asarray(column)
    if values.dtype.kind in "iuf" and not is_category:
        numbers = values.astype(np.float64)
        few = np.unique(numbers[np.isfinite(numbers)][:10_000])
        if len(few) > 8 or is_category is False:
            return _cut_numbers(numbers)
    return _cut_levels(values)


class _Tried(NamedTuple):
    """A slice as ``(field, part)`` of one field or two: its rows are found again when needed."""

    parts: tuple[tuple[str, int], ...]
    rows: int
    days: int
    inside: float
    outside: float
    effect: float
    spread: float
    p: float | None
    q: float = math.nan

    def told(self, cuts: Mapping[str, Cut], level: float) -> FoundSlice:
        name = " and ".join(f"{field} {cuts[field].names[part]}" for field, part in self.parts)
        half = student_value(level, self.days - 1) * self.spread
        return FoundSlice(
            name, self.rows, self.days, self.inside, self.outside,
            self.effect, self.effect - half, self.effect + half, self.q,
        )  # fmt: skip


class _Scan:
    """Measures every part of the cuts, and of pairs of them, against the rows outside it."""

    def __init__(
        self,
        above: Floats,
        below: Floats,
        days: npt.NDArray[np.intp],
        cuts: Mapping[str, Cut],
        sign: int,
        min_rows: int,
    ) -> None:
        self._above, self._below, self._days = above, below, days
        self._cuts = cuts
        self._sign = sign
        self._min_rows = min_rows

    def over(
        self, fields: Iterable[tuple[str, ...]], among: npt.NDArray[np.bool_]
    ) -> Iterator[_Tried]:
        """All parts of one field or of two, on the rows `among`; p is None if too small."""
        above, below = self._above[among], self._below[among]
        days = np.unique(self._days[among], return_inverse=True)[1]
        for names in fields:
            cuts = [self._cuts[name] for name in names]
            sizes = [len(cut.names) for cut in cuts]
            codes = np.ravel_multi_index([cut.codes[among] for cut in cuts], sizes)
            found = contrasts(above, below, codes, days)
            for cell in np.flatnonzero(found.rows):
                rows, seen = int(found.rows[cell]), int(found.days[cell])
                effect = -self._sign * float(found.effect[cell])
                spread = float(found.spread[cell])
                p: float | None = None
                if rows >= self._min_rows and seen >= MIN_DAYS and spread > 0:
                    p = student_tail(effect / spread, seen - 1)
                places = (int(place) for place in np.unravel_index(cell, sizes))
                yield _Tried(
                    tuple(zip(names, places, strict=True)), rows, seen,
                    float(found.inside[cell]), float(found.outside[cell]), effect, spread, p,
                )  # fmt: skip


def _judged(tried: Iterable[_Tried]) -> list[_Tried]:
    return [one for one in tried if one.p is not None]


def _fields_of(one: _Tried) -> tuple[str, ...]:
    return tuple(field for field, _ in one.parts)


def _worse(tried: list[_Tried], floor: float, level: float) -> list[_Tried]:
    """Those beyond floor and chance, worst first."""
    q = adjusted(np.array([one.p for one in tried], dtype=np.float64))
    kept = [one._replace(q=float(p)) for one, p in zip(tried, q, strict=True)]
    kept = [one for one in kept if one.q <= level and one.effect > floor]
    return sorted(kept, key=lambda one: (-one.effect, one.parts))


def _distinct(tried: list[_Tried], cuts: Mapping[str, Cut]) -> list[_Tried]:
    """Without slices that are mostly within, or mostly hold, a worse one."""
    kept: list[_Tried] = []
    masks: list[npt.NDArray[np.bool_]] = []
    for one in tried:
        mine = np.logical_and.reduce([cuts[field].codes == part for field, part in one.parts])
        if all(
            np.count_nonzero(mine & other) < _SAME * min(mine.sum(), other.sum()) for other in masks
        ):
            kept.append(one)
            masks.append(mine)
        if len(kept) == _MOST_FOUND:
            break
    return kept


def _is_tried(schema: Schema | None, name: str) -> bool:
    field = _field(schema, name)
    return field is None or field.semantic not in _LEFT_OUT


def _is_category(schema: Schema | None, name: str) -> bool | None:
    field = _field(schema, name)
    if field is None or not field.semantic:
        return None
    return bool(field.semantic == "categorical")


def _field(schema: Schema | None, name: str) -> Any:
    return None if schema is None else next((f for f in schema.fields if f.name == name), None)


def _cut_levels(values: npt.NDArray[Any]) -> Cut:
    if values.dtype.kind == "f":
        missing = ~np.isfinite(values)
        texts = np.array([f"{value:g}" for value in values.tolist()], dtype=str)
    else:
        missing = np.array([value is None for value in values.tolist()], dtype=bool)
        texts = values.astype(str)
    levels, codes, counts = np.unique(texts, return_inverse=True, return_counts=True)
    names = [f"= {level}" for level in levels]
    if len(levels) > _MOST_LEVELS:
        kept = np.sort(np.argsort(-counts, kind="stable")[: _MOST_LEVELS - 1])
        place = np.full(len(levels), len(kept))
        place[kept] = np.arange(len(kept))
        codes = place[codes]
        names = [*(names[level] for level in kept), "is any other"]
    return _with_missing(codes.astype(np.intp), names, missing)


def _cut_numbers(values: Floats) -> Cut:
    missing = ~np.isfinite(values)
    known = values[~missing]
    if not len(known):
        return _with_missing(np.zeros(len(values), dtype=np.intp), ["is known"], missing)
    edges = np.unique(np.quantile(known, np.linspace(0, 1, _BINS + 1)[1:-1]))
    edges = edges[edges > known.min()]
    codes = np.searchsorted(edges, np.where(missing, 0, values), side="right")
    ends = [-math.inf, *edges.tolist(), math.inf]
    names = []
    for low, high in pairwise(ends):
        if math.isinf(low):
            names.append(f"< {high:g}" if math.isfinite(high) else "is known")
        else:
            names.append(f">= {low:g}" if math.isinf(high) else f"in [{low:g}, {high:g})")
    return _with_missing(codes.astype(np.intp), names, missing)


def _with_missing(
    codes: npt.NDArray[np.intp], names: list[str], missing: npt.NDArray[np.bool_]
) -> Cut:
    if not missing.any():
        return Cut(codes, tuple(names))
    return Cut(np.where(missing, len(names), codes), (*names, "is missing"))
