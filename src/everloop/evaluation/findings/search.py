"""The search for slices: counts of all pairs of parts, from them every rule, from these the few.

One pass for each pair of columns adds up rows, error and squared error by pair of parts; products
with the runs of parts give those sums for every rule of one or two fields. A rule counts if the
error within is higher than outside by more than the floor and by more than chance, corrected for
all rules tried (Bonferroni: neighbouring rules are so alike that a share of false finds would mean
little), and a rule of two fields if it beats by as much what else either of them holds.

Source:
    Chung et al., "Slice Finder", ICDE 2019, for effect, test and correction; Sagadeeva and Boehm,
    "SliceLine", SIGMOD 2021, for counting all pairs at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from everloop.evaluation.contrast import contrasts, student_tail
from everloop.evaluation.findings.cutting import NOWHERE, Parts
from everloop.evaluation.findings.parallel import on_threads
from everloop.evaluation.order import Floats

__all__ = ["Rule", "Searched", "members", "search"]

# Rules of one table of parts, and of all, that are looked at row by row.
_OF_TABLE = 3
_SHORTLIST = 300
_ROWS = 1 << 17

_Mask = npt.NDArray[np.bool_]


class Rule(NamedTuple):
    """A rule of one field or two, each with a run of its parts.

    Attributes:
        sides: ``(column, begin, end)`` of each field.
        t: Effect divided by its error.
        p: Chance of such an effect, corrected for all rules tried; at most 1.
    """

    sides: tuple[tuple[int, int, int], ...]
    rows: int
    inside: float
    outside: float
    effect: float
    spread: float
    t: float
    p: float = math.nan


class Searched(NamedTuple):
    """The rules that count, the largest effect first; how many were tried."""

    rules: list[Rule]
    tried: int


class _Sums(NamedTuple):
    """Rows, error and squared error; arrays of one shape."""

    n: Floats
    s: Floats
    q: Floats

    def without(self, other: _Sums) -> _Sums:
        return _Sums(self.n - other.n, self.s - other.s, self.q - other.q)

    def mean(self) -> Floats:
        return self.s / self.n

    def variance_of_mean(self) -> Floats:
        variance = np.maximum(self.q / self.n - self.mean() ** 2, 0) * self.n / (self.n - 1)
        return np.asarray(variance / self.n)


def search(
    columns: Sequence[Parts],
    error: Floats,
    days: npt.NDArray[np.intp] | None = None,
    *,
    floor: float,
    min_rows: int,
    level: float,
    pairs: bool,
    most: int,
) -> Searched:
    """Find the rules whose rows have the higher error.

    Args:
        columns: Cut columns, all of the length of `error`.
        error: Finite, the higher the worse.
        days: Block of each row, from 0: then blocks are the sample and not rows.
        floor: Smallest effect that counts.
        min_rows: Fewest rows within, and outside.
        level: Chance of any false find.
        pairs: Whether rules of two fields are tried too.
        most: Rules to keep.
    """
    # Taken from the mean: squares of what is far from 0 would cancel.
    centred = error - error.mean()
    whole = _sums_of(centred)
    fields: list[tuple[int, ...]] = [(n,) for n in range(len(columns))]
    fields += list(combinations(range(len(columns)), 2)) if pairs else []
    scan = _Scan(columns, centred, centred**2, whole, floor, min_rows)
    counted = on_threads(scan.table, fields)
    tried = sum(one.tried for one in counted)
    if not tried:
        return Searched([], 0)
    bound = _bound(level / tried)
    shortlist = [rule for one in counted for rule in scan.best(one, bound)]
    shortlist.sort(key=lambda rule: (-rule.t, rule.sides))
    choice = _Choice(
        columns, centred, float(error.mean()), days, floor, min_rows, level, tried, bound
    )
    kept = choice.of(shortlist[:_SHORTLIST], most)
    return Searched(sorted(kept, key=lambda rule: (-rule.effect, rule.sides)), tried)


def _bound(p: float) -> float:
    """What a standard normal exceeds with probability `p`."""
    low, high = 0.0, 40.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if math.erfc(middle / math.sqrt(2)) / 2 > p else (low, middle)
    return high


class _Table(NamedTuple):
    """All rules of one field or of two: figures of shape (runs of the first, of the second)."""

    fields: tuple[int, ...]
    tried: int
    n: Floats
    effect: Floats
    t: Floats
    beats: Floats


def _sums_of(values: Floats) -> _Sums:
    return _Sums(np.array(len(values)), np.array(values.sum()), np.array(values @ values))


class _Scan:
    """Counts rules from sums by parts."""

    def __init__(
        self,
        columns: Sequence[Parts],
        error: Floats,
        squared: Floats,
        whole: _Sums,
        floor: float,
        min_rows: int,
    ) -> None:
        self._columns = columns
        self._error, self._squared = error, squared
        self._whole = whole
        self._floor, self._min_rows = floor, min_rows
        self._runs = [column.ranges() for column in columns]
        self._within = [
            _members(runs, column.size) for runs, column in zip(self._runs, columns, strict=True)
        ]

    def table(self, fields: tuple[int, ...]) -> _Table:
        """Every rule of these fields."""
        sums = self._sums(fields)
        first = self._within[fields[0]]
        second = self._within[fields[1]] if len(fields) > 1 else np.ones((1, 1))
        inside = _Sums(*(first @ one @ second.T for one in sums))
        outside = self._whole.without(inside)
        is_tried = (inside.n >= self._min_rows) & (outside.n >= self._min_rows)
        with np.errstate(invalid="ignore", divide="ignore"):
            effect, t = _against(inside, outside)
            beats = t
            if len(fields) > 1:
                for side in (
                    _Sums(*((first @ one.sum(axis=1))[:, None] for one in sums)),
                    _Sums(*((second @ one.sum(axis=0))[None, :] for one in sums)),
                ):
                    rest = side.without(inside)
                    more, by = _against(inside, rest)
                    # A parent that holds little else is the same slice said more simply.
                    by = np.where((rest.n >= 2) & (more > self._floor), by, -np.inf)
                    beats = np.minimum(beats, by)
        counts = is_tried & (effect > self._floor)
        t = np.where(counts & np.isfinite(t), t, -np.inf)
        beats = np.where(counts & np.isfinite(beats), beats, -np.inf)
        return _Table(fields, int(is_tried.sum()), inside.n, effect, t, beats)

    def best(self, table: _Table, bound: float) -> list[Rule]:
        """The rules of a table that are beyond chance, none of which shares a row with another."""
        t = np.where(table.beats >= bound, table.t, -np.inf)
        found: list[Rule] = []
        while len(found) < _OF_TABLE and t.size and np.isfinite(t.max()):
            place = np.unravel_index(int(t.argmax()), t.shape)
            runs = [self._runs[f][int(p)] for f, p in zip(table.fields, place, strict=False)]
            sides = tuple((f, *run) for f, run in zip(table.fields, runs, strict=True))
            found.append(Rule(
                sides, int(table.n[place]), math.nan, math.nan, float(table.effect[place]),
                math.nan, float(t[place]),
            ))  # fmt: skip
            apart = [
                np.array([e <= begin or b >= end for b, e in self._runs[f]])
                for f, (begin, end) in zip(table.fields, runs, strict=True)
            ]
            clear = apart[0][:, None] | (apart[1][None, :] if len(apart) > 1 else False)
            t = np.where(clear, t, -np.inf)
        return found

    def _sums(self, fields: tuple[int, ...]) -> _Sums:
        columns = [self._columns[field] for field in fields]
        first = columns[0]
        # One more part for what is nowhere; it is cut off in the end.
        sizes = [first.size + 1, columns[1].size + 1 if len(columns) > 1 else 1]
        cells = sizes[0] * sizes[1]
        n, s, q = np.zeros(cells), np.zeros(cells), np.zeros(cells)
        for start in range(0, len(self._error), _ROWS):
            part = slice(start, start + _ROWS)
            place = np.minimum(first.codes[part], first.size).astype(np.intp)
            if len(columns) > 1:
                place *= sizes[1]
                place += np.minimum(columns[1].codes[part], columns[1].size)
            n += np.bincount(place, minlength=cells)
            s += np.bincount(place, self._error[part], cells)
            q += np.bincount(place, self._squared[part], cells)
        ends = first.size, columns[1].size if len(columns) > 1 else 1
        return _Sums(*(one.reshape(sizes)[: ends[0], : ends[1]] for one in (n, s, q)))


def _members(runs: Sequence[tuple[int, int]], count: int) -> Floats:
    found = np.zeros((len(runs), count))
    for row, (begin, end) in zip(found, runs, strict=True):
        row[begin:end] = 1
    return found


def _against(inside: _Sums, outside: _Sums) -> tuple[Floats, Floats]:
    """The difference of the means, and that divided by its error (Welch)."""
    effect = inside.mean() - outside.mean()
    return effect, effect / np.sqrt(inside.variance_of_mean() + outside.variance_of_mean())


class _Choice:
    """Takes rules one after another, those that tell something new."""

    def __init__(
        self,
        columns: Sequence[Parts],
        error: Floats,
        mean: float,
        days: npt.NDArray[np.intp] | None,
        floor: float,
        min_rows: int,
        level: float,
        tried: int,
        bound: float,
    ) -> None:
        self._columns, self._error, self._mean, self._days = columns, error, mean, days
        self._floor, self._min_rows = floor, min_rows
        self._level, self._tried, self._bound = level, tried, bound
        self._whole = _sums_of(error)
        self._kept: list[tuple[Rule, _Mask]] = []
        self._covered = np.zeros(len(error), dtype=bool)

    def of(self, rules: Sequence[Rule], most: int) -> list[Rule]:
        for rule in rules:
            mask = members(self._columns, rule)
            if not self._is_new(mask):
                continue
            judged = self._judged(rule, mask)
            if judged.p > self._level or judged.effect <= self._floor:
                continue
            self._kept.append((judged, mask))
            self._covered |= mask
            if len(self._kept) == most:
                break
        return [rule for rule, _ in self._kept]

    def _is_new(self, mask: _Mask) -> bool:
        fresh = mask & ~self._covered
        if np.count_nonzero(fresh) >= max(self._min_rows, 0.5 * np.count_nonzero(mask)):
            known = self._sums(self._covered | mask)
            return self._is_worse(self._sums(fresh), self._whole.without(known))
        # Mostly within what is known: it must be worse than the rest of each that it lies in, also
        # without what overlaps it by chance and is told already.
        half = 0.5 * np.count_nonzero(mask)
        within, told = [], np.zeros(len(mask), dtype=bool)
        for _, one in self._kept:
            if np.count_nonzero(one & mask) > half:
                within.append(one)
            else:
                told |= one
        own = mask & ~told
        if not within or np.count_nonzero(own) < self._min_rows:
            return False
        sums = self._sums(own)
        return all(self._is_worse(sums, self._sums(one & ~mask & ~told)) for one in within)

    def _sums(self, mask: _Mask) -> _Sums:
        return _sums_of(self._error[mask])

    def _is_worse(self, these: _Sums, others: _Sums) -> bool:
        if these.n < 2 or others.n < 2:
            return False
        effect = these.mean() - others.mean()
        spread = np.sqrt(these.variance_of_mean() + others.variance_of_mean())
        return bool(effect > self._floor and effect >= self._bound * spread)

    def _judged(self, rule: Rule, mask: _Mask) -> Rule:
        """With its own figures; by blocks, where there are some."""
        inside = self._sums(mask)
        outside = self._whole.without(inside)
        effect = float(inside.mean() - outside.mean())
        spread = float(np.sqrt(inside.variance_of_mean() + outside.variance_of_mean()))
        freedom = int(inside.n) - 1
        if self._days is not None:
            ones = np.ones(len(self._error))
            by_day = contrasts(self._error, ones, np.where(mask, 0, -1), self._days)
            spread, freedom = float(by_day.spread[0]), int(by_day.days[0]) - 1
        p = student_tail(effect / spread, freedom) if spread > 0 else (0.0 if effect > 0 else 1.0)
        return rule._replace(
            rows=int(inside.n), inside=float(inside.mean()) + self._mean,
            outside=float(outside.mean()) + self._mean, effect=effect, spread=spread,
            p=1.0 if math.isnan(p) else min(1.0, p * self._tried),
        )  # fmt: skip


def members(columns: Sequence[Parts], rule: Rule) -> _Mask:
    """The rows of a rule."""
    found = np.ones(len(columns[0].codes), dtype=bool)
    for column, begin, end in rule.sides:
        codes = columns[column].codes
        found &= (codes >= begin) & (codes < end) & (codes != NOWHERE)
    return found
