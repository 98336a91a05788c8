"""Squared distances between rows, a block at a time: one matrix product gives them whole."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

__all__ = ["BLOCK_BYTES", "Singles", "nearest", "squared_distances"]

Singles = npt.NDArray[np.float32]

#: Memory of one block of distances; the product is fastest from some 100 rows on.
BLOCK_BYTES = 1 << 26


def squared_distances(these: Singles, others: Singles) -> Iterator[tuple[int, Singles]]:
    """Blocks of rows of `these` with their squared distances to all `others`.

    Yields the number of the first row and an array of shape (block, others), 0 and above, which the
    next block overwrites. In float32: two rows nearer than about 0.001 of their norm may show any
    distance up to that.

    Args:
        these: Shape (n, features).
        others: Shape (m, features).
    """
    centre = others.mean(axis=0, dtype=np.float64) if len(others) else 0.0
    moved, turned = (side - centre for side in (these, others))
    # |a - b|^2 = a.a - 2 a.b + b.b as one product of rows with two columns more.
    ones = np.ones((len(turned), 1))
    right = np.hstack([turned, (turned**2).sum(axis=1, keepdims=True), ones])
    right = np.ascontiguousarray(right.T, np.float32)
    own = (moved**2).sum(axis=1, keepdims=True)
    left = np.hstack([-2 * moved, np.ones((len(moved), 1)), own]).astype(np.float32)
    block = int(max(1, min(len(left), BLOCK_BYTES // (4 * max(len(turned), 1)))))
    space = np.empty((block, len(turned)), np.float32)
    for start in range(0, len(left), block):
        part = left[start : start + block]
        out = space[: len(part)]
        np.matmul(part, right, out=out)
        yield start, np.maximum(out, 0, out=out)


def nearest(
    these: Singles, others: Singles, *, leave_out: npt.NDArray[np.int64] | None = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """For each of `these` the nearest of `others` and the distance to it.

    Args:
        these: Shape (n, features).
        others: Shape (m, features), m >= 1; 2 if one is left out.
        leave_out: For each of `these` the one of `others` that is itself, shape (n,).
    """
    place = np.empty(len(these), np.int64)
    for start, block in squared_distances(these, others):
        end = start + len(block)
        if leave_out is not None:
            block[np.arange(len(block)), leave_out[start:end]] = np.inf
        place[start:end] = block.argmin(axis=1)
    # Again and exactly, for the one that was found.
    apart = np.empty(len(these))
    for start in range(0, len(these), 1 << 16):
        part = slice(start, start + (1 << 16))
        apart[part] = ((these[part].astype(np.float64) - others[place[part]]) ** 2).sum(axis=1)
    return place, np.sqrt(apart)
