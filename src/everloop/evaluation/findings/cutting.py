"""Columns cut into parts, each of which SQL can name: ranges of numbers and times, single values.

How a column is cut does not depend on the error, or a search would find its own making.
"""

from __future__ import annotations

from datetime import date, datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from everloop.evaluation.findings.literals import literal, quoted, shown
from everloop.evaluation.findings.looked import plain_values

__all__ = ["NOWHERE", "Parts", "cut_column"]

#: The part of rows that no rule is made for: values beyond the most frequent ones.
NOWHERE = 255

_BINS = 8
# Numbers of so few values, such as hours, are cut at each of them.
_FEW = 24
_MOST_LEVELS = 12
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 (rules see times in UTC, without a zone)
_DAY_US = 86_400_000_000


class Parts(NamedTuple):
    """A column in parts.

    Attributes:
        codes: The part of each row: ranges or values from 0, then what is missing; or NOWHERE.
        edges: Where one range ends and the next begins, ascending; of values, None.
        values: Single values by part; of ranges, empty.
        size: How many parts there are, the missing one among them.
        missing: The part of missing values, or -1.
        is_whole: Whether ranges are of whole numbers.
    """

    name: str
    codes: npt.NDArray[np.uint8]
    edges: tuple[Any, ...] | None
    values: tuple[Any, ...]
    size: int
    missing: int
    is_whole: bool

    def ranges(self) -> list[tuple[int, int]]:
        """Every run of neighbouring parts that a rule may name, as begin and end; not all rows."""
        known = self.size - (self.missing >= 0)
        if self.edges is None:
            found = [(part, part + 1) for part in range(known) if self.size > 1]
        else:
            found = [
                (begin, end)
                for begin in range(known)
                for end in range(begin + 1, known + 1)
                if end - begin < known
            ]
        if self.missing >= 0 and self.size > 1:
            found.append((self.missing, self.missing + 1))
        return found

    def told(self, begin: int, end: int) -> str:
        """The rule for people."""
        if begin == self.missing:
            return f"{self.name} is missing"
        if self.edges is None:
            return f"{self.name} = {shown(self.values[begin])}"
        low, high = self._ends(begin, end)
        if low is not None and high is not None:
            if self.is_whole and high - low == 1:
                return f"{self.name} = {shown(low)}"
            return f"{shown(low)} <= {self.name} < {shown(high)}"
        if low is not None:
            return f"{self.name} >= {shown(low)}"
        return f"{self.name} < {shown(high)}"

    def sql(self, begin: int, end: int) -> str:
        """The rule for DuckDB."""
        name = quoted(self.name)
        if begin == self.missing:
            return f"{name} IS NULL"
        if self.edges is None:
            return f"{name} = {literal(self.values[begin])}"
        low, high = self._ends(begin, end)
        sides = [] if low is None else [f"{name} >= {literal(low)}"]
        sides += [] if high is None else [f"{name} < {literal(high)}"]
        return " AND ".join(sides)

    def _ends(self, begin: int, end: int) -> tuple[Any, Any]:
        edges = self.edges or ()
        low = edges[begin - 1] if begin else None
        return low, edges[end - 1] if end <= len(edges) else None


def cut_column(name: str, column: pa.ChunkedArray, *, is_category: bool = False) -> Parts | None:
    """Cut a column into at most 25 parts; None if no rule can be made of its type.

    Text and booleans go by value, the 12 most frequent; numbers, dates and times by eighths of
    their rows, at edges of few digits, or by value where there are at most 24; what is missing is a
    part of its own.

    Args:
        name: Of the column.
        column: Any length.
        is_category: Whether numbers are names of classes.
    """
    column = plain_values(column)
    kind = column.type
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    is_time = pa.types.is_timestamp(kind) or pa.types.is_date(kind)
    if is_time or (is_number and not is_category):
        return _cut_numbers(name, column)
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if is_text or pa.types.is_boolean(kind) or (is_category and pa.types.is_integer(kind)):
        return _cut_levels(name, column)
    return None


def _cut_levels(name: str, column: pa.ChunkedArray) -> Parts:
    encoded = column.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    index = encoded.indices.fill_null(len(encoded.dictionary)).to_numpy(zero_copy_only=False)
    counts = np.bincount(index, minlength=len(encoded.dictionary) + 1)
    has_missing = bool(counts[-1])
    order = np.argsort(-counts[:-1], kind="stable")[:_MOST_LEVELS]
    values = encoded.dictionary.take(pa.array(order)).to_pylist()
    of_level = np.full(len(counts), NOWHERE, np.uint8)
    of_level[order] = np.arange(len(order))
    missing = len(values) if has_missing else -1
    of_level[-1] = missing if has_missing else NOWHERE
    return Parts(
        name, of_level[index], None, tuple(values), len(values) + has_missing, missing, False
    )


def _cut_numbers(name: str, column: pa.ChunkedArray) -> Parts:
    kind = column.type
    unknown = column.is_null().to_numpy() if column.null_count else None
    if pa.types.is_timestamp(kind):
        values = _whole(column.cast(pa.timestamp("us", kind.tz), safe=False).cast(pa.int64()))
    elif pa.types.is_date(kind):
        values = _whole(column.cast(pa.date32()).cast(pa.int32()))
    elif pa.types.is_integer(kind):
        values = _whole(column)
    else:
        values = column.cast(pa.float64(), safe=False).fill_null(0).to_numpy()
    known = values if unknown is None else values[~unknown]
    edges = _edges(known, kind)
    codes = np.zeros(len(values), np.uint8)
    for edge in edges:
        codes += values >= edge
    missing = -1
    if unknown is not None:
        missing = len(edges) + 1
        codes[unknown] = missing
    return Parts(
        name, codes, tuple(_value(edge, kind) for edge in edges), (),
        len(edges) + 1 + (missing >= 0), missing, pa.types.is_integer(kind),
    )  # fmt: skip


def _whole(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    found: npt.NDArray[Any] = column.fill_null(0).to_numpy()
    return found


def _edges(known: npt.NDArray[Any], kind: pa.DataType) -> list[Any]:
    """Ascending, none at or below the least value; each a value that SQL reads back exactly."""
    if known.dtype.kind == "f":
        known = known[np.isfinite(known)]
    if not len(known):
        return []
    ordered = np.sort(known)
    at = [ordered[len(ordered) * part // _BINS] for part in range(1, _BINS)]
    if len(few := np.unique(ordered[: 1 << 20])) <= _FEW:
        at = list(few[1:])
    if not at:
        return []
    step = _step(at[0], at[-1], kind)
    rounded = sorted({_rounded(one, step) for one in at})
    return [edge for edge in rounded if ordered[0] < edge <= ordered[-1]]


def _step(low: Any, high: Any, kind: pa.DataType) -> float | int:
    """To what edges are rounded: some hundredth of their span, or a natural unit of time."""
    span = float(high) - float(low)
    if pa.types.is_timestamp(kind):
        units = (30 * _DAY_US, _DAY_US), (_DAY_US, 60_000_000), (60_000_000, 1_000_000)
        return next((unit for least, unit in units if span > least), 1)
    if pa.types.is_date(kind):
        return 1
    if not 0 < span < float("inf"):
        return 0
    step = 10.0 ** np.floor(np.log10(span / 50))
    if pa.types.is_integer(kind):
        return max(1, int(step))
    return float(step)


def _rounded(value: Any, step: float | int) -> Any:
    if isinstance(value, np.integer):
        whole = int(value)
        return whole if not step else -(-whole // int(step)) * int(step)
    number = float(value)
    if not step:
        return number
    # Decimal digits, not a multiple of the step: 18.5 and no 18.500000000000004.
    return round(number, int(-np.floor(np.log10(step) + 0.5)))


def _value(edge: Any, kind: pa.DataType) -> Any:
    if pa.types.is_timestamp(kind):
        return _EPOCH + timedelta(microseconds=edge)
    if pa.types.is_date(kind):
        return date(1970, 1, 1) + timedelta(days=edge)
    return edge
