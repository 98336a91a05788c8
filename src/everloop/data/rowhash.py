"""Row hashes: 128 bits for each row, from its values alone, the same for ever.

They tell which rows of a whole frame are new without reading what is stored, so they may hang on
nothing that an upgrade of a library changes: the function is the one below, under the name
``FUNCTION``, and hashes kept under another name are made anew.

A row's hash is the sum (modulo 2^64, in each of two lanes) of one term for each 8-byte word of its
values; a term hangs on the word, its column's name and kind, and its place within the value. So the
order of columns does not count, a null adds nothing (a column that older rows lack reads as nulls
there), and a column can be taken out of a hash by subtraction. Equal values have equal hashes:
integers of any width are one kind, floats are taken as float64 with one NaN and one zero.

Two rows that differ have equal hashes with odds of 2^-128 for each pair: among 10^9 new rows held
against 10^9 stored ones about 10^-20 in all. It holds against accident, not against somebody who
seeks such rows.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

__all__ = ["FUNCTION", "Hashes", "from_bytes", "kind_of", "row_hashes", "to_bytes"]

#: Name and version of the function; it opens every stored object.
FUNCTION = b"everloop.rows.1\n"

Words = npt.NDArray[np.uint64]

# Rows that are worked on at once: what one step needs stays in the cache of a core.
_AT_ONCE = 1 << 15
# SplitMix64's finaliser: Steele, Lea & Flood, "Fast splittable pseudorandom number generators"
# (OOPSLA 2014); then a round of its own for the second lane.
_STEPS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_LAST = np.uint64(31)
_SECOND = np.uint64(0xD6E8FEB86659FD93)
_SHIFT = np.uint64(32)
# Between the words of one value: odd, so that places repeat only after 2^64 words.
_NEXT = np.uint64(0x9E3779B97F4A7C15)
_NAN = np.uint64(0x7FF8000000000000)
_BIG = np.uint64(0xA0761D6478BD642F)


class Hashes(NamedTuple):
    """The two lanes, one entry a row."""

    low: Words
    high: Words

    def take(self, rows: np.ndarray) -> Hashes:
        """Those of `rows`."""
        return Hashes(self.low[rows], self.high[rows])

    def total(self) -> tuple[int, int]:
        """One number for all rows in any order, in two lanes of 64 bits.

        The sum of what is mixed anew from each row's two lanes: sums of the lanes themselves would
        not tell whose value a value is, as rows that swap two of them have the same.
        """
        low = high = 0
        for start in range(0, len(self.low), _AT_ONCE):
            one, two = (lane[start : start + _AT_ONCE] for lane in self)
            low += int((_mixed(one ^ _mixed(two ^ _NEXT))).sum(dtype=np.uint64))
            high += int((_mixed(two ^ _mixed(one ^ _BIG))).sum(dtype=np.uint64))
        return low % 2**64, high % 2**64

    def __sub__(self, other: Hashes) -> Hashes:
        """Hashes without the columns that `other` is of."""
        return Hashes(self.low - other.low, self.high - other.high)

    @classmethod
    def concat(cls, parts: list[Hashes]) -> Hashes:
        """One after the other."""
        if not parts:
            return cls(np.empty(0, np.uint64), np.empty(0, np.uint64))
        return cls(np.concatenate([p.low for p in parts]), np.concatenate([p.high for p in parts]))


def to_bytes(hashes: Hashes) -> bytes:
    """As stored: the function's name, then both lanes, little-endian."""
    return b"".join((FUNCTION, *(lane.astype("<u8").tobytes() for lane in hashes)))


def from_bytes(data: bytes | memoryview | pa.Buffer, rows: int) -> Hashes | None:
    """The reverse; None if another function made them, or they are not of so many rows."""
    view = memoryview(data)
    if len(view) != len(FUNCTION) + 16 * rows or bytes(view[: len(FUNCTION)]) != FUNCTION:
        return None
    lanes = np.frombuffer(view, "<u8", offset=len(FUNCTION)).astype(np.uint64, copy=False)
    return Hashes(lanes[:rows], lanes[rows:])


def row_hashes(table: pa.Table) -> Hashes:
    """Hash each row.

    Args:
        table: Columns of the types that fields have (see ``everloop.data.arrow``); any chunks.
    """
    hashes = Hashes(np.zeros(table.num_rows, np.uint64), np.zeros(table.num_rows, np.uint64))
    parts, start = [], 0
    for batch in table.to_batches(max_chunksize=_AT_ONCE):
        end = start + batch.num_rows
        if batch.num_rows:
            parts.append((batch, hashes.low[start:end], hashes.high[start:end]))
        start = end
    if len(parts) < 4:
        for part in parts:
            _add_batch(*part)
        return hashes
    with ThreadPoolExecutor() as threads:
        for done in [threads.submit(_add_batch, *part) for part in parts]:
            done.result()
    return hashes


def _add_batch(batch: pa.RecordBatch, low: Words, high: Words) -> None:
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if column.null_count == len(column):
            continue
        kind = kind_of(column.type)
        if kind in ("text", "bytes"):
            terms = _of_texts(column, *_seeds(name, kind))
        else:
            terms = _terms(_words(column, kind), *_seeds(name, kind))
        if column.null_count:
            there = column.is_valid().to_numpy(zero_copy_only=False)
            for lane in terms:
                lane *= there
        low += terms[0]
        high += terms[1]


def _seeds(name: str, kind: str) -> tuple[np.uint64, np.uint64]:
    digest = hashlib.sha256(f"{kind}:{name}".encode()).digest()
    return np.uint64(int.from_bytes(digest[:8], "little")), np.uint64(
        int.from_bytes(digest[8:16], "little")
    )


def kind_of(kind: pa.DataType) -> str:
    """The kind of values that a type is of: within one, equal values have equal hashes."""
    if pa.types.is_floating(kind):
        return "float"
    if pa.types.is_integer(kind):
        return "int"
    if pa.types.is_timestamp(kind):
        return "timestamp"
    if pa.types.is_boolean(kind):
        return "bool"
    if pa.types.is_date(kind):
        return "date"
    return "text" if pa.types.is_string(kind) else "bytes"


def _words(column: pa.Array, kind: str) -> Words:
    """The values of a column as 64 bits each, in memory of its own."""
    if kind == "float":
        values = column.cast(pa.float64()).fill_null(0.0).to_numpy(zero_copy_only=False) + 0.0
        words: Words = values.view(np.uint64)
        words[np.isnan(values)] = _NAN
        return words
    if kind == "bool":
        return _integers(column.cast(pa.uint8()))
    if kind == "timestamp":
        return _integers(column.cast(pa.int64()))
    return _integers(column.cast(pa.int32()) if kind == "date" else column)


def _integers(column: pa.Array) -> Words:
    values = column.fill_null(0).to_numpy(zero_copy_only=False)
    if values.dtype == np.uint64:
        # What no int64 holds must not look like a negative number.
        words: Words = np.where(values >> np.uint64(63), values ^ _BIG, values)
    else:
        words = values.astype(np.int64).view(np.uint64)
    return words


def _terms(words: Words, seed: np.uint64 | Words, second: np.uint64) -> tuple[Words, Words]:
    """The terms of `words`, which are overwritten."""
    words ^= seed
    _mixed(words)
    other = words + second
    spare = np.empty_like(words)
    np.right_shift(other, _SHIFT, out=spare)
    other ^= spare
    other *= _SECOND
    np.right_shift(other, _SHIFT, out=spare)
    other ^= spare
    return words, other


def _mixed(words: Words) -> Words:
    """`words`, in place, each turned into another one."""
    spare = np.empty_like(words)
    for shift, factor in _STEPS:
        np.right_shift(words, np.uint64(shift), out=spare)
        words ^= spare
        words *= np.uint64(factor)
    np.right_shift(words, _LAST, out=spare)
    words ^= spare
    return words


def _of_texts(column: pa.Array, seed: np.uint64, second: np.uint64) -> tuple[Words, Words]:
    """Terms of texts: of every full word of 8 bytes, then of the rest with its length on top."""
    _, offsets_buffer, data_buffer = column.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int32)[column.offset :][: len(column) + 1]
    first, last = int(offsets[0]), int(offsets[-1])
    data = np.zeros(last - first + 8, np.uint8)
    if last > first:
        data[:-8] = np.frombuffer(data_buffer, np.uint8)[first:last]
    starts = (offsets[:-1] - first).astype(np.int64)
    lengths = np.diff(offsets).astype(np.int64)
    if column.null_count:
        lengths[~column.is_valid().to_numpy(zero_copy_only=False)] = 0
    counts = (lengths >> 3) + 1
    ends = np.cumsum(counts)
    begins = ends - counts
    places = np.arange(int(ends[-1]), dtype=np.int64)
    places -= np.repeat(begins, counts)
    words = _at(data, np.repeat(starts, counts) + 8 * places)
    rest = (lengths & 7).astype(np.uint64)
    bits = rest << np.uint64(3)
    mask = (np.uint64(1) << bits) - np.uint64(1)
    lasts = ends - 1
    words[lasts] = (words[lasts] & mask) | ((rest + np.uint64(1)) << np.uint64(56))
    seeds = places.view(np.uint64) * _NEXT + seed
    low, high = _terms(words, seeds, second)
    return np.add.reduceat(low, begins), np.add.reduceat(high, begins)


def _at(data: npt.NDArray[np.uint8], places: npt.NDArray[np.int64]) -> Words:
    """The 8 bytes at each of `places` as a word, little-endian."""
    every = np.ndarray((len(data) - 7,), "<u8", data.data, strides=(1,))
    return every[places].astype(np.uint64, copy=False)
