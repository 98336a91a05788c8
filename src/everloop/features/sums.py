"""Sums, counts and extremes over windows of sorted rows, the same bits however they are reached.

A sum is the exact sum of the window's values, rounded once to the nearest double (what
``math.fsum`` gives). So it does not depend on where a prefix starts nor on the order of rows: the
year in training and the two days in an online store give equal bits. Values are cut into levels
of whole multiples of a power of two, few enough bits each that their prefix sums are exact.
"""

from __future__ import annotations

import math

import numpy as np

from everloop.features.vectors import Array

__all__ = ["window_count", "window_extreme", "window_sum"]


def window_count(valid: Array | None, low: Array, high: Array) -> Array:
    """How many of rows `low` to `high` (exclusive) are valid; int64."""
    if valid is None:
        return high - low
    before = _prefix(valid, np.int64)
    return before[high] - before[low]


def window_sum(values: Array, low: Array, high: Array) -> Array:
    """The sums of ``values[low[i]:high[i]]``, rounded once; float64.

    Args:
        values: Float64, shape (n,); 0 where there is no value.
        low: First row of each window, shape (m,).
        high: Row after the last, shape (m,).
    """
    finite = np.isfinite(values)
    with np.errstate(over="ignore"):  # a sum beyond the range is an infinity, as IEEE 754 has it
        if finite.all():
            return _finite_sum(values, low, high)
        total = _finite_sum(np.where(finite, values, 0.0), low, high)
    up = window_count(values == np.inf, low, high) > 0
    down = window_count(values == -np.inf, low, high) > 0
    odd = window_count(np.isnan(values), low, high) > 0
    total[up] = np.inf
    total[down] = -np.inf
    total[odd | (up & down)] = np.nan
    return total


def _finite_sum(values: Array, low: Array, high: Array) -> Array:
    levels = _levels(values)
    if not levels:
        return np.zeros(len(low))
    sums = [(grid, before[high] - before[low]) for grid, before in levels]
    if len(sums) == 1:
        return np.asarray(np.ldexp(sums[0][1], sums[0][0]))
    if len(sums) == 2 and sums[0][0] < 960 and sums[1][0] > -1022:
        # Both are exact and far from the ends of the range, so one addition rounds once.
        return np.asarray(np.ldexp(sums[0][1], sums[0][0]) + np.ldexp(sums[1][1], sums[1][0]))
    return _exact(sums)


def _levels(values: Array) -> list[tuple[int, Array]]:
    """Cut `values` into (exponent, prefix sums of whole numbers) that add up to them exactly."""
    # With `bits` bits a value and n values no prefix sum reaches 2**53.
    bits = 52 - max(len(values), 1).bit_length()
    rest, levels = values, []
    while len(rest):
        largest = float(np.abs(rest).max())
        if largest == 0.0:
            break
        grid = max(math.frexp(largest)[1] - bits, -1074)
        whole = np.trunc(_scaled(rest, -grid))
        levels.append((grid, _prefix(whole, np.float64)))
        rest = rest - _scaled(whole, grid)
    return levels


def _scaled(values: Array, exponent: int) -> Array:
    # Two steps: a single factor of 2**1074 would overflow on the way.
    half = exponent // 2
    return np.asarray(np.ldexp(np.ldexp(values, half), exponent - half))


def _exact(sums: list[tuple[int, Array]]) -> Array:
    lowest = min(grid for grid, _ in sums)
    columns = [part.tolist() for _, part in sums]
    shifts = [grid - lowest for grid, _ in sums]
    found = np.empty(len(columns[0]))
    for row, parts in enumerate(zip(*columns, strict=True)):
        total = sum(int(part) << shift for part, shift in zip(parts, shifts, strict=True))
        found[row] = _rounded(total, lowest)
    return found


def _rounded(total: int, exponent: int) -> float:
    """``total * 2**exponent``, rounded once; an infinity where it is too large."""
    try:
        # A division of whole numbers rounds correctly, subnormal results included.
        return float(total << exponent) if exponent >= 0 else total / (1 << -exponent)
    except OverflowError:
        return math.inf if total > 0 else -math.inf


def window_extreme(values: Array, low: Array, high: Array, *, largest: bool) -> Array:
    """The largest or smallest of each window that is not empty; NaN if one is in it.

    Rows without a value must hold the neutral infinity. Empty windows give that infinity too.

    Source: the sparse table of Bender and Farach-Colton, The LCA Problem Revisited (2000).
    """
    pick = np.maximum if largest else np.minimum
    found = np.full(len(low), -np.inf if largest else np.inf)
    length = high - low
    level = np.frexp(length.astype(np.float64))[1] - 1
    table, size = values, 1
    for step in range(int(level.max(initial=-1)) + 1):
        here = np.flatnonzero((level == step) & (length > 0))
        found[here] = pick(table[low[here]], table[high[here] - size])
        table = pick(table[:-size], table[size:])
        size *= 2
    return found


def _prefix(values: Array, dtype: type) -> Array:
    before: Array = np.empty(len(values) + 1, dtype)
    before[0] = 0
    np.cumsum(values, dtype=dtype, out=before[1:])
    return before
