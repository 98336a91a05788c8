"""Looking up the features of a view among its rows: the one code of training and of serving.

Rows lie sorted by (key, visible time). What a window holds at a time T is the rows between two
places, found by bisection; the newest row is the best (by event time, then known time, then order
of writing) of all those before T's place.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from everloop.core.feature import Aggregate
from everloop.features.plan import Plan
from everloop.features.sums import window_count, window_extreme, window_sum
from everloop.features.vectors import Array, Vector

__all__ = ["Found", "Rows", "Timeline", "best_so_far", "look_up"]


class Timeline:
    """Keys and instants folded into one sorted column, so that one bisection finds both.

    Args:
        key: Number of the key of each row.
        visible: Visible time of each row.
        keys: How many keys there are.
        ordered: Whether the rows are sorted by (key, visible) already.

    Attributes:
        order: Sorts the rows by (key, visible), stable; None if they were sorted.
        starts: The place of the first row of each key, after sorting; shape (keys,).
    """

    def __init__(self, key: Array, visible: Array, keys: int, *, ordered: bool = False) -> None:
        self._least = int(visible.min()) if len(visible) else 0
        self._most = int(visible.max()) if len(visible) else 0
        self._times: Array | None = None
        self._one = keys == 1
        if self._one:
            folded, self._span = visible, 0
        else:
            self._span = self._most - self._least + 2
            if keys * self._span >= 1 << 62:  # then by rank: at most rows x keys
                self._times = np.unique(visible)
                self._span = len(self._times) + 1
            folded = key * self._span + self._tick(visible, inclusive=True)
        self.order: Array | None = None
        if not ordered:
            self.order = np.argsort(folded, kind="stable")
            folded = folded[self.order]
        self.folded = folded
        if self._one:
            self.starts = np.zeros(1, np.int64)
        else:
            self.starts = np.searchsorted(folded, np.arange(keys) * self._span, side="right")

    def _tick(self, at: Array, *, inclusive: bool) -> Array:
        """0 for times before every row, then rising; rows with a tick up to it are before `at`."""
        if self._times is not None:
            return np.asarray(np.searchsorted(self._times, at, "right" if inclusive else "left"))
        least = self._least - 1 if inclusive else self._least
        return np.asarray(np.clip(at, self._least - 1, self._most + 1) - least)

    def before(self, key: Array, at: Array, *, inclusive: bool) -> Array:
        """The place after the last row of `key` that is visible before (or at) `at`."""
        if self._one:
            return np.asarray(np.searchsorted(self.folded, at, "right" if inclusive else "left"))
        tick = np.clip(self._tick(at, inclusive=inclusive), 0, self._span - 1)
        return np.asarray(np.searchsorted(self.folded, key * self._span + tick, side="right"))


def best_so_far(key: Array, event: Array, known: Array | None, order: Array | None) -> Array:
    """For each row in sorted order the best row of its key up to there, as a place in that order.

    Args:
        key: Number of the key of each row, as written.
        event: Event time of each row, as written.
        known: Known time, or None.
        order: The sorted order, or None for as written.
    """
    rows = len(key)
    by_rank = np.lexsort((event,) if known is None else (known, event))
    rank = np.empty(rows, np.int64)
    rank[by_rank] = np.arange(rows)
    if order is not None:
        rank, key = rank[order], key[order]
    best = np.maximum.accumulate(key * rows + rank) - key * rows if rows else rank
    place = np.empty(rows, np.int64)
    place[rank] = np.arange(rows)
    return place[best]


class Rows(NamedTuple):
    """The rows of a view in sorted order.

    Attributes:
        timeline: Their keys and visible times.
        visible: Visible times.
        event: Event times; equal to `visible` where the source has no known time.
        best: The best row so far, as a place; None where it is the row itself.
        values: One vector for each input of the plan.
    """

    timeline: Timeline
    visible: Array
    event: Array
    best: Array | None
    values: list[Vector]


class Found(NamedTuple):
    """Features of the rows asked for.

    Attributes:
        values: One vector for each feature of the view.
        times: When the newest row used had become visible, microseconds; -1 if none was used or
            the source has no time.
    """

    values: list[Vector]
    times: Array


def look_up(plan: Plan, rows: Rows, key: Array, at: Array) -> Found:
    """The features of a view for keys at instants.

    Args:
        plan: The view.
        rows: Its rows.
        key: Number of the key of each row asked for; -1 where it is null, -2 where no row has it.
        at: The instant of each; microseconds, shape (n,).
    """
    view = plan.view
    named = key != -1
    if not view.source.time:
        at = np.zeros(len(at), np.int64)
    has_rows = len(rows.visible) > 0
    there = key >= 0 if has_rows else np.zeros(len(key), np.bool_)
    key = np.where(there, key, 0)
    if has_rows:
        upto = rows.timeline.before(key, at, inclusive=True)
        start = rows.timeline.starts[key]
        upto = np.where(there, upto, start)
    else:
        upto = start = key
    windows = _Windows(rows, key, at, there, upto, has_rows)
    used = np.full(len(at), -1, np.int64)
    winner: Array | None = None
    if plan.newest:
        winner, alive = _newest(plan, rows, start, upto, at)
        if view.source.time and has_rows:
            used = np.where(alive, rows.visible[winner], -1)
    values = []
    for feature, place in zip(view.features, plan.places, strict=True):
        if isinstance(feature.value, Aggregate):
            low, high = windows.of(feature.value)
            found = _aggregated(feature.value, rows, place, low, high)
            # Of no entity nothing is known, not even that nothing happened.
            if feature.value.function == "count" and not named.all():
                found.valid = named
            values.append(found)
            if has_rows:
                newest = rows.visible[np.maximum(high - 1, 0)]
                used = np.where(high > low, np.maximum(used, newest), used)
        elif has_rows and winner is not None:
            values.append(rows.values[place].take(winner, alive))
        else:
            values.append(_nothing(rows.values[place], len(at)))
    return Found(values, used)


class _Windows:
    """The places between which the rows of a window lie, each window bisected once."""

    def __init__(
        self, rows: Rows, key: Array, at: Array, there: Array, upto: Array, has_rows: bool
    ) -> None:
        self._rows, self._key, self._at = rows, key, at
        self._there, self._has_rows = there, has_rows
        self._places: dict[tuple[int, bool], Array] = {(0, True): upto}

    def of(self, aggregate: Aggregate) -> tuple[Array, Array]:
        """The first row and the row after the last."""
        if not self._has_rows:
            return self._key, self._key
        right = aggregate.closed in ("right", "both")
        left = aggregate.closed in ("left", "both")
        high = self._before(0, right)
        low = np.minimum(self._before(aggregate.window_us, not left), high)
        # An entity that nobody knows has the empty window of its own start.
        return np.where(self._there, low, high), high

    def _before(self, back: int, inclusive: bool) -> Array:
        if (back, inclusive) not in self._places:
            self._places[back, inclusive] = self._rows.timeline.before(
                self._key, self._at - back, inclusive=inclusive
            )
        return self._places[back, inclusive]


def _newest(plan: Plan, rows: Rows, start: Array, upto: Array, at: Array) -> tuple[Array, Array]:
    """The best visible row of each key, and whether there is one that is young enough."""
    alive = upto > start
    if not len(rows.visible):
        return upto, alive
    winner = np.maximum(upto - 1, 0)
    if rows.best is not None:
        winner = rows.best[winner]
    if plan.view.ttl_us:
        alive = alive & (at - rows.event[winner] <= plan.view.ttl_us)
    return winner, alive


def _aggregated(aggregate: Aggregate, rows: Rows, place: int, low: Array, high: Array) -> Vector:
    if place < 0:
        return Vector("float", (high - low).astype(np.float64))
    vector = rows.values[place]
    if aggregate.function == "count":  # kept as whether there is a value
        counted = window_count(vector.data.astype(np.bool_), low, high)
        return Vector("float", counted.astype(np.float64))
    count = window_count(vector.valid, low, high)
    some = count > 0
    if aggregate.function in ("sum", "mean"):
        data = vector.data if vector.valid is None else np.where(vector.valid, vector.data, 0.0)
        total = window_sum(data, low, high)
        if aggregate.function == "mean":
            total = total / np.maximum(count, 1)
        return Vector("float", total, None if some.all() else some)
    largest = aggregate.function == "max"
    neutral = -np.inf if largest else np.inf
    data = vector.data if vector.valid is None else np.where(vector.valid, vector.data, neutral)
    found = window_extreme(data, low, high, largest=largest)
    return Vector("float", found, None if some.all() else some)


def _nothing(like: Vector, rows: int) -> Vector:
    dtype = like.data.dtype
    words = None if like.words is None else [""]
    return Vector(like.kind, np.zeros(rows, dtype), np.zeros(rows, np.bool_), words)
