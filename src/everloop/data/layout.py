"""Layouts: which rows of its blocks a version has, and in which order.

The rows of all blocks of a version, one block after the other, have positions from 0. A layout is
the list of positions, kept as runs in a small Parquet object: ``block`` (index in the manifest),
``start`` (row in it), ``rows``. So a deleted row is one that no run names, and a row of a delta
block stands between those of another block because its run does. Within a block runs ascend.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from everloop.core.dataset import Block, DatasetVersion
from everloop.ports.blobs import BlobStore

__all__ = [
    "Positions",
    "Runs",
    "block_of",
    "covered",
    "offsets",
    "positions",
    "runs",
    "store_layout",
    "store_runs",
]

Positions = npt.NDArray[np.int64]


def offsets(blocks: tuple[Block, ...]) -> Positions:
    """The position of the first row of each block, and behind them the number of all rows."""
    return np.cumsum([0, *(block.rows for block in blocks)], dtype=np.int64)


def block_of(at: Positions, starts: Positions) -> Positions:
    """The index of the block that each position is in; `starts` as ``offsets`` gives them."""
    return np.searchsorted(starts, at, side="right").astype(np.int64) - 1


class Runs(NamedTuple):
    """The rows of a version as runs: the index of a block, its first row of them, how many."""

    block: Positions
    start: Positions
    rows: Positions

    def part(self, begin: int, end: int) -> Runs:
        """Runs `begin` to `end`."""
        return Runs(*(column[begin:end] for column in self))

    def expanded(self, to: Positions) -> Positions:
        """One number for each row: `to` for the first of each run, and on from there."""
        begins = np.cumsum(self.rows) - self.rows
        within = np.arange(self.rows.sum(), dtype=np.int64)
        within += np.repeat(to - begins, self.rows)
        return within


def runs(blobs: BlobStore, version: DatasetVersion) -> Runs:
    """The runs of a version, in its order."""
    count = len(version.blocks)
    every = (
        np.arange(count),
        np.zeros(count, np.int64),
        np.array([block.rows for block in version.blocks], np.int64),
    )
    if not version.layout:
        return Runs(*every)
    found = _stored(blobs, version.layout)
    later = slice(_covered(found), None)
    return Runs(
        *(np.concatenate(pair) for pair in zip(found, (e[later] for e in every), strict=True))
    )


def covered(blobs: BlobStore, version: DatasetVersion) -> int:
    """How many leading blocks the layout of a version tells of; all behind count wholly."""
    return _covered(_stored(blobs, version.layout)) if version.layout else 0


def _covered(stored: Runs) -> int:
    # Every block of a layout has a row in it: what no run names was appended later.
    return int(stored.block.max()) + 1


def _stored(blobs: BlobStore, layout: str) -> Runs:
    table = pq.read_table(pa.BufferReader(blobs.get(layout)), use_threads=False)
    return Runs(*(table.column(n).to_numpy().astype(np.int64) for n in range(3)))


def positions(blobs: BlobStore, version: DatasetVersion) -> Positions:
    """The position of every row of a version, in its order."""
    starts = offsets(version.blocks)
    if not version.layout:
        return np.arange(starts[-1], dtype=np.int64)
    found = runs(blobs, version)
    return found.expanded(starts[found.block] + found.start)


def store_layout(
    blobs: BlobStore, blocks: tuple[Block, ...], at: Positions
) -> tuple[str, int] | None:
    """Store `at`, the positions of a version of `blocks`: digest and bytes.

    None if they are all rows in order, which needs no layout.
    """
    starts = offsets(blocks)
    if len(at) == starts[-1] and np.array_equal(at, np.arange(len(at))):
        return None
    block = block_of(at, starts)
    first = np.empty(len(at), bool)
    first[0] = True
    first[1:] = (np.diff(at) != 1) | (np.diff(block) != 0)
    begins = np.flatnonzero(first)
    row = (at - starts[block])[begins]
    return store_runs(blobs, block[begins], row, np.diff(np.append(begins, len(at))))


def store_runs(
    blobs: BlobStore, block: Positions, start: Positions, rows: Positions
) -> tuple[str, int]:
    """Store a layout of these runs: digest and bytes."""
    table = pa.table({"block": block.astype(np.int32), "start": start, "rows": rows})
    sink = pa.BufferOutputStream()
    packed = {"start": "DELTA_BINARY_PACKED", "rows": "DELTA_BINARY_PACKED"}
    pq.write_table(
        table, sink, compression="zstd", use_dictionary=["block"], column_encoding=packed,
        write_statistics=False,
    )  # fmt: skip
    return blobs.put(sink.getvalue().to_pybytes())
