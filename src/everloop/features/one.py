"""A view's features of a single request, without arrays: the quick way for a few rows.

It gives the same bits as :mod:`everloop.features.retrieve`, because what a feature is does not
depend on how it is found: a sum is the exact sum rounded once, which is what ``math.fsum`` gives.
The property tests hold both ways to ``history()``.
"""

from __future__ import annotations

import math
import struct
from bisect import bisect_left, bisect_right
from typing import Any

import numpy as np

from everloop.core.feature import Aggregate
from everloop.features.plan import Plan
from everloop.features.records import Codec, damaged
from everloop.features.vectors import Array

__all__ = ["OneRow"]

_instant = struct.Struct("<q").unpack_from


class OneRow:
    """Looks single requests up in the blob of an entity.

    Attributes:
        able: Whether it can: not for text, and not for views that need both a window and the
            newest row of a source whose rows become visible out of order.
    """

    def __init__(self, plan: Plan, codec: Codec) -> None:
        self.able = not codec.has_text and not (plan.ranked and plan.windowed)
        self._plan, self._codec = plan, codec
        self._timed = bool(plan.view.source.time)
        self._ttl = plan.view.ttl_us
        self._size = codec.dtype.itemsize
        fields: Any = codec.dtype.fields
        self._event_at = fields["event" if plan.ranked else "visible"][1]
        pairs = zip(plan.view.features, plan.places, strict=True)
        self._parts = [_part(feature.value, place, fields) for feature, place in pairs]

    def look_up(self, blob: bytes | None, at: int) -> tuple[list[Any], int]:
        """The features of an entity whose rows are `blob` (None: unknown), and the newest time."""
        blob = blob or b""
        if len(blob) % self._size:
            raise damaged()
        records = np.frombuffer(blob, self._codec.dtype) if blob else _NOTHING
        visible = _Visible(blob, self._size)
        upto = len(records) if not self._timed else bisect_right(visible, at)
        winner, used = upto - 1, -1
        values: list[Any] = []
        if self._ttl and winner >= 0 and at - visible.instant(winner, self._event_at) > self._ttl:
            winner = -1
        for aggregate, value, there in self._parts:
            if aggregate is None:
                if winner < 0:
                    values.append(None)
                    continue
                start = winner * self._size
                if self._timed:
                    used = max(used, visible[winner])
                values.append(value(blob, start + there[0])[0] if blob[start + there[1]] else None)
                continue
            low, high = _window(visible, aggregate, at, upto)
            if high > low:
                used = max(used, visible[high - 1])
            values.append(_aggregated(aggregate, records, value, there, low, high))
        return values, used


def _part(value: Any, place: int, fields: Any) -> Any:
    """How to read a feature: its aggregate and columns, or where the value and its mark lie."""
    if isinstance(value, Aggregate):
        return value, f"v{place}", f"n{place}"
    dtype, value_at = fields[f"v{place}"][:2]
    unpack = struct.Struct("<" + _STRUCT[dtype.kind]).unpack_from
    return None, unpack, (value_at, fields[f"n{place}"][1])


_NOTHING: Array = np.empty(0)
_STRUCT = {"f": "d", "i": "q", "b": "?"}


class _Visible:
    """The visible times of a blob, read where they lie."""

    __slots__ = ("_blob", "_size")

    def __init__(self, blob: bytes, size: int) -> None:
        self._blob, self._size = blob, size

    def __len__(self) -> int:
        return len(self._blob) // self._size

    def __getitem__(self, row: int) -> int:
        return _instant(self._blob, row * self._size)[0]  # type: ignore[no-any-return]

    def instant(self, row: int, offset: int) -> int:
        """Another instant of a row, `offset` bytes into its record."""
        return _instant(self._blob, row * self._size + offset)[0]  # type: ignore[no-any-return]


def _window(visible: Any, aggregate: Aggregate, at: int, upto: int) -> tuple[int, int]:
    closed, start = aggregate.closed, at - aggregate.window_us
    high = upto if closed in ("right", "both") else bisect_left(visible, at, 0, upto)
    bisect = bisect_left if closed in ("left", "both") else bisect_right
    return bisect(visible, start, 0, high), high


def _aggregated(
    aggregate: Aggregate, records: Array, value: str, there: str, low: int, high: int
) -> float | None:
    function = aggregate.function
    if value == "v-1":
        return float(high - low)
    if high <= low:
        return 0.0 if function == "count" else None
    part = records[low:high]
    if function == "count":
        return float(np.count_nonzero(part[value]))
    numbers = part[value]
    mask = part[there]
    if not mask.all():
        numbers = numbers[mask]
    found: list[float] = numbers.tolist()
    if not found:
        return None
    if function in ("sum", "mean"):
        total = _sum(found)
        return total / len(found) if function == "mean" else total
    if any(number != number for number in found):
        return math.nan
    return max(found) if function == "max" else min(found)


def _sum(numbers: list[float]) -> float:
    try:
        return math.fsum(numbers)
    except (OverflowError, ValueError):
        # Beyond the range of a double or with infinities of both signs: rare, so by the other way.
        from everloop.features.sums import window_sum

        every = np.array([0]), np.array([len(numbers)])
        return float(window_sum(np.array(numbers), *every)[0])
