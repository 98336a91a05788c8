"""Which row is which: two lists of row hashes held against each other."""

from __future__ import annotations

import numpy as np
import polars as pl

from everloop.data.layout import Positions
from everloop.data.rowhash import Hashes

__all__ = ["match", "unlike"]

# Bits of a hash by which rows are looked up at once, and how often with other bits: after that so
# few rows are left that sorting them costs little.
_BITS = (8, 24)
_TURNS = 3
_AT_ONCE = 1 << 15


def match(new: Hashes, old: Hashes) -> Positions:
    """For each of `new` the index of the equal one of `old`, or -1; none is given away twice."""
    count, others = len(new.low), len(old.low)
    found = np.full(count, -1, np.int64)
    if count == others:
        same = (new.low == old.low) & (new.high == old.high)
        found[same] = np.flatnonzero(same)
        rest_new = rest_old = np.flatnonzero(~same)
    else:
        begin = _common(new, old)
        backwards = (Hashes(*(lane[begin:][::-1] for lane in side)) for side in (new, old))
        end = _common(*backwards)
        found[:begin] = np.arange(begin)
        found[count - end :] = np.arange(others - end, others)
        rest_new, rest_old = np.arange(begin, count - end), np.arange(begin, others - end)
    for turn in range(_TURNS):
        if not len(rest_new) or not len(rest_old):
            return found
        hits = _look_up(new, rest_new, old, rest_old, turn)
        there = hits >= 0
        found[rest_new[there]] = hits[there]
        rest_new = rest_new[~there]
        free = np.ones(len(old.low), bool)
        free[hits[there]] = False
        rest_old = rest_old[free[rest_old]]
    left = _frame(old, rest_old, "old")
    pairs = _frame(new, rest_new, "new").join(left, on=["low", "high", "nth"])
    found[pairs["new"].to_numpy()] = pairs["old"].to_numpy()
    return found


def _common(new: Hashes, old: Hashes) -> int:
    """How many rows are equal from the beginning."""
    length = min(len(new.low), len(old.low))
    for start in range(0, length, _AT_ONCE):
        part = slice(start, min(start + _AT_ONCE, length))
        differ = (new.low[part] != old.low[part]) | (new.high[part] != old.high[part])
        if differ.any():
            return start + int(differ.argmax())
    return length


def _same(new: Hashes, rows: np.ndarray, old: Hashes, others: np.ndarray) -> np.ndarray:
    same: np.ndarray = (new.low[rows] == old.low[others]) & (new.high[rows] == old.high[others])
    return same


def _look_up(new: Hashes, rows: Positions, old: Hashes, others: Positions, turn: int) -> Positions:
    """As `match`, for `rows` and `others` alone; of those that share their bits one is found."""
    bits = int(np.clip(len(others).bit_length() + 1, *_BITS))
    shift, mask = np.uint64(turn * 19), np.uint64((1 << bits) - 1)
    # Half as wide, it stays in the cache twice as long.
    table = np.full(1 << bits, -1, np.int32 if len(old.low) < 1 << 31 else np.int64)
    table[((old.low[others] >> shift) & mask).astype(np.int64)] = others
    found = table[((new.low[rows] >> shift) & mask).astype(np.int64)].astype(np.int64)
    found[~_same(new, rows, old, found)] = -1
    # Of equal rows of `new` that found the same one, one keeps it.
    hits = np.flatnonzero(found >= 0)
    owner = np.empty(len(old.low), np.int64)
    owner[found[hits]] = hits
    found[hits[owner[found[hits]] != hits]] = -1
    return found


def _frame(hashes: Hashes, rows: Positions, name: str) -> pl.DataFrame:
    frame = pl.DataFrame({"low": hashes.low[rows], "high": hashes.high[rows], name: rows})
    return frame.with_columns(nth=pl.int_range(pl.len()).over("low", "high"))


def unlike(new: Hashes, old: Hashes) -> tuple[Positions, Positions]:
    """The numbers of the rows of `new` that `old` lacks, and the reverse."""
    found = match(new, old)
    gone = np.ones(len(old.low), bool)
    gone[found[found >= 0]] = False
    return np.flatnonzero(found < 0), np.flatnonzero(gone)
