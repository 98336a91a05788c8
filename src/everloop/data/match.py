"""Which row is which: two lists of row hashes held against each other."""

from __future__ import annotations

import numpy as np
import polars as pl

from everloop.data.layout import Positions
from everloop.data.rowhash import Hashes

__all__ = ["match"]

# Bits of a hash by which rows are looked up at once, and how often with other bits: after that so
# few rows are left that sorting them costs little.
_BITS = (8, 24)
_TURNS = 3


def match(new: Hashes, old: Hashes) -> Positions:
    """For each of `new` the index of the equal one of `old`, or -1; none is given away twice."""
    found = np.full(len(new.low), -1, np.int64)
    begin = _common(new, old, 1)
    found[:begin] = np.arange(begin)
    rest_new, rest_old = np.arange(begin, len(found)), np.arange(begin, len(old.low))
    if len(rest_new) == len(rest_old):
        same = _same(new, rest_new, old, rest_old)
        found[rest_new[same]] = rest_old[same]
        rest_new, rest_old = rest_new[~same], rest_old[~same]
    else:
        end = _common(new.take(rest_new), old.take(rest_old), -1)
        if end:
            found[-end:] = np.arange(len(old.low) - end, len(old.low))
            rest_new, rest_old = rest_new[:-end], rest_old[:-end]
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


def _common(new: Hashes, old: Hashes, step: int) -> int:
    """How many rows are equal from the beginning, or with `step` -1 from the end."""
    length = min(len(new.low), len(old.low))
    rows = np.arange(length) if step > 0 else np.arange(-1, -1 - length, -1)
    differ = ~_same(new, rows, old, rows)
    return int(differ.argmax()) if differ.any() else length


def _same(new: Hashes, rows: np.ndarray, old: Hashes, others: np.ndarray) -> np.ndarray:
    same: np.ndarray = (new.low[rows] == old.low[others]) & (new.high[rows] == old.high[others])
    return same


def _look_up(new: Hashes, rows: Positions, old: Hashes, others: Positions, turn: int) -> Positions:
    """As `match`, for `rows` and `others` alone; of those that share their bits one is found."""
    bits = int(np.clip(len(others).bit_length() + 1, *_BITS))
    shift, mask = np.uint64(turn * 19), np.uint64((1 << bits) - 1)
    table = np.full(1 << bits, -1, np.int64)
    table[((old.low[others] >> shift) & mask).astype(np.int64)] = others
    found = table[((new.low[rows] >> shift) & mask).astype(np.int64)]
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
