"""Tables without the rows of a subject: blocks, the hashes of their rows, and layouts.

A row that goes leaves a block with the rows behind it one place nearer to its begin. So a run of a
layout stays one run, whatever went within it: where it begins, and how long it is, follow from how
many rows went before. No version is read for it, and none of its rows but those of the blocks hit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from everloop.core.dataset import Block, DatasetVersion
from everloop.data.blocks import open_block, version_digest, write_block
from everloop.data.layout import store_runs
from everloop.data.rowhash import from_bytes
from everloop.data.rows import store_hashes
from everloop.data.seek import Sought
from everloop.ports.blobs import BlobStore

__all__ = ["Cut", "cut_block", "cut_hashes", "cut_version", "rows_of_block"]

Rows = np.ndarray


class Cut(NamedTuple):
    """A block that was written anew.

    Attributes:
        block: As it is now, still with the hashes that it had.
        gone: The rows that went, ascending.
    """

    block: Block
    gone: Rows


def rows_of_block(blobs: BlobStore, digest: str, sought: Sought) -> Rows:
    """The rows of a block that are of the subject; only the columns that say so are read."""
    with open_block(blobs, digest) as file:
        if not sought.may_be_in(file):
            return np.empty(0, np.int64)
        mask = sought.mask(file.read(columns=list(sought.columns)))
    assert mask is not None
    return np.flatnonzero(mask)


def cut_block(blobs: BlobStore, block: Block, gone: Rows) -> Cut:
    """Store a block without some of its rows; its statistics and dictionaries are made anew."""
    with open_block(blobs, block.digest) as file:
        rows = file.read()
    keep = np.ones(rows.num_rows, bool)
    keep[gone] = False
    made = write_block(blobs, rows.filter(pa.array(keep)).combine_chunks())
    return Cut(msgspec.structs.replace(made, hashes=block.hashes, delta=block.delta), gone)


def cut_hashes(blobs: BlobStore, digest: str, rows: int, gone: Rows) -> str:
    """Store the hashes of a block's rows without some; empty where they cannot be read."""
    found = from_bytes(blobs.get(digest), rows)
    if found is None:  # of another function: they are made anew when they are wanted
        return ""
    keep = np.ones(rows, bool)
    keep[gone] = False
    return store_hashes(blobs, found.take(np.flatnonzero(keep)))[0]


def cut_version(
    blobs: BlobStore, version: DatasetVersion, cuts: dict[str, Cut], hashes: dict[str, str]
) -> DatasetVersion:
    """A version of the blocks that are left.

    Args:
        version: As it is.
        cuts: By the digest of each block that was written anew.
        hashes: By the digest of their row hashes the new one.
    """
    blocks = [_renewed(block, cuts, hashes) for block in version.blocks]
    gone = [cuts[b.digest].gone if b.digest in cuts else None for b in version.blocks]
    runs = _runs(blobs, version)
    index, start, rows = runs["block"], runs["start"], runs["rows"]
    for n, rows_gone in enumerate(gone):
        if rows_gone is not None:
            at = np.flatnonzero(index == n)
            before = np.searchsorted(rows_gone, start[at])
            within = np.searchsorted(rows_gone, start[at] + rows[at]) - before
            start[at] -= before
            rows[at] -= within
    there = rows > 0
    index, start, rows = index[there], start[there], rows[there]
    named = np.unique(index)
    kept = tuple(blocks[n] for n in named.tolist())
    index = np.searchsorted(named, index)
    layout = "" if _is_plain(kept, index, start, rows) else _store(blobs, index, start, rows)
    return msgspec.structs.replace(
        version,
        blocks=kept,
        layout=layout,
        rows=int(rows.sum()),
        content=version_digest(version.schema, kept, layout),
    )


def _renewed(block: Block, cuts: dict[str, Cut], hashes: dict[str, str]) -> Block:
    found = cuts.get(block.digest)
    if found is None:
        return block
    # The same rows may be a delta in one version and a block of their own in another.
    return msgspec.structs.replace(
        found.block, hashes=hashes.get(block.hashes, ""), delta=block.delta
    )


def _runs(blobs: BlobStore, version: DatasetVersion) -> dict[str, Rows]:
    """The runs of a version: of its layout, and of blocks that were appended later as a whole."""
    parts: list[dict[str, Rows]] = []
    first = 0
    if version.layout:
        table = pq.read_table(pa.BufferReader(blobs.get(version.layout)), use_threads=False)
        part = {n: table.column(n).to_numpy().astype(np.int64) for n in ("block", "start", "rows")}
        first = int(part["block"].max()) + 1
        parts.append(part)
    later = version.blocks[first:]
    parts.append(
        {
            "block": np.arange(first, len(version.blocks)),
            "start": np.zeros(len(later), np.int64),
            "rows": np.array([block.rows for block in later], np.int64),
        }
    )
    return {n: np.concatenate([part[n] for part in parts]) for n in ("block", "start", "rows")}


def _is_plain(blocks: Iterable[Block], index: Rows, start: Rows, rows: Rows) -> bool:
    """Whether the runs are all rows of the blocks in order."""
    sizes = np.array([block.rows for block in blocks], np.int64)
    same = len(index) == len(sizes) and bool((index == np.arange(len(sizes))).all())
    return same and not start.any() and bool((rows == sizes).all())


def _store(blobs: BlobStore, index: Rows, start: Rows, rows: Rows) -> str:
    # A run that goes on where the one before it ended is the same run.
    goes_on = np.zeros(len(index), bool)
    goes_on[1:] = (np.diff(index) == 0) & (start[1:] == (start + rows)[:-1])
    begins = np.flatnonzero(~goes_on)
    return store_runs(blobs, index[begins], start[begins], np.add.reduceat(rows, begins))[0]
