"""What a whole keyed table stores when it is saved again: the rows that changed.

The rows are a set by their key, held against those of the latest version by their hashes. A row
that is there stays where it is stored, and in the order that it had; a new or changed row stands
behind the row that it stood behind in the frame given. So a frame whose other rows come in the
same order as before is read back in its own order.

New rows go into delta blocks. Where more than one row in ``DIRTY`` of a block is left out or stands
in between, the block is written anew with those; where more than ``MOST_DELTAS`` delta blocks are
left, they are written as one. Reading a version therefore never costs much more than its rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
from blake3 import blake3

from everloop.core.dataset import Block, DatasetVersion
from everloop.core.schema import Schema
from everloop.data.blocks import BLOCK_ROWS, write_block
from everloop.data.layout import Positions, block_of, offsets, store_layout
from everloop.data.match import match
from everloop.data.rowhash import FUNCTION, Hashes
from everloop.data.rows import Hashed, hashed, store_hashes
from everloop.ports.blobs import BlobStore

__all__ = [
    "Order",
    "Plan",
    "can_build_on",
    "plan_merge",
    "plan_updates",
    "plan_whole",
    "set_digest",
]

#: A block is written anew when more than one row in so many of it changed since.
DIRTY = 8
#: Delta blocks that a version may have.
MOST_DELTAS = 4


class Plan(NamedTuple):
    """A version as it will be, all of it stored.

    Attributes:
        objects: What was stored for it: digest and bytes.
        is_same: Whether it has the rows of the version that it was held against.
    """

    blocks: tuple[Block, ...]
    layout: str
    digest: str
    rows: int
    objects: list[tuple[str, int]]
    is_same: bool


def set_digest(schema: Schema, rows: int, totals: tuple[int, int]) -> str:
    """Digest of a set of rows: over the schema digest, their number and the sum of their hashes."""
    low, high = totals
    parts = [FUNCTION.decode().strip(), schema.digest, str(rows), f"{low:016x}{high:016x}"]
    return blake3("\n".join(parts).encode()).hexdigest()


def can_build_on(old: Schema, new: Schema) -> bool:
    """Whether blocks of the one schema can be part of a version of the other.

    A column that went must not come back with what it held once, so none may be missing.
    """
    types = {field.name: field.type for field in new.fields}
    return all(types.get(field.name) == field.type for field in old.fields)


def plan_whole(
    blobs: BlobStore,
    base: DatasetVersion | None,
    schema: Schema,
    rows: pa.Table,
    hashes: Hashes,
) -> Plan:
    """Store what makes `rows` a version after `base`."""
    known = hashed(blobs, base) if base and can_build_on(base.schema, schema) else _NOTHING
    found = match(hashes, known.hashes)
    new = np.flatnonzero(found < 0)
    dead = np.ones(len(known.at), bool)
    dead[found[found >= 0]] = False
    digest = set_digest(schema, rows.num_rows, hashes.total())
    if base is not None and known is not _NOTHING and not len(new) and not dead.any():
        return Plan(known.blocks, base.layout, digest, base.rows, known.made, is_same=True)
    order = Order(found, new, dead)
    old = np.flatnonzero(~dead)
    frame = np.empty(len(known.at), np.int64)
    frame[found[found >= 0]] = np.flatnonzero(found >= 0)
    at = order.woven(known.at[old], np.full(len(new), -1, np.int64))
    source = order.woven(frame[old], order.new)
    return _Writer(blobs, known, rows, hashes).write(at, source, digest, compact=True)


def plan_merge(
    blobs: BlobStore,
    latest: DatasetVersion,
    schema: Schema,
    rows: pa.Table,
    hashes: Hashes,
    new: Positions,
    gone: Hashes,
) -> Plan:
    """Store what makes `latest` a version with the rows `new` of a frame and without others.

    Args:
        rows: The frame, of which the other rows say where the new ones stand.
        hashes: Of `rows`.
        new: Numbers of rows that are to be in the version and are not in `latest`.
        gone: Hashes of rows of `latest` that are not to be in it.
    """
    known = hashed(blobs, latest)
    found = match(hashes, known.hashes)
    dead = np.zeros(len(known.at), bool)
    dead[match(gone, known.hashes)] = True
    order = Order(found, new, dead)
    old = np.flatnonzero(~dead)
    at = order.woven(known.at[old], np.full(len(new), -1, np.int64))
    source = order.woven(np.full(len(old), -1, np.int64), order.new)
    totals = Hashes.concat([known.hashes.take(old), hashes.take(new)]).total()
    digest = set_digest(schema, len(at), totals)
    return _Writer(blobs, known, rows, hashes).write(at, source, digest, compact=False)


def plan_updates(
    blobs: BlobStore,
    latest: DatasetVersion,
    schema: Schema,
    rows: pa.Table,
    hashes: Hashes,
    at_old: Positions,
) -> Plan:
    """Store what makes `latest` a version with `rows` in it.

    Args:
        hashes: Of `rows`.
        at_old: For each of `rows` the number of the row of `latest` whose place it takes; -1 for
            those that stand behind all.
    """
    known = hashed(blobs, latest)
    there = np.flatnonzero(at_old >= 0)
    old = known.hashes.take(at_old[there])
    is_same = np.zeros(len(at_old), bool)
    is_same[there] = (old.low == hashes.low[there]) & (old.high == hashes.high[there])
    new = np.flatnonzero(~is_same)
    if not len(new):
        digest = set_digest(schema, latest.rows, known.hashes.total())
        return Plan(known.blocks, latest.layout, digest, latest.rows, known.made, is_same=True)
    places = np.where(at_old[new] >= 0, at_old[new], len(known.at))
    dead = np.zeros(len(known.at), bool)
    dead[places[places < len(known.at)]] = True
    stay = np.flatnonzero(~dead)
    order = np.argsort(places, kind="stable")
    new, gaps = new[order], np.searchsorted(stay, places[order])
    at = np.insert(known.at[stay], gaps, -1)
    source = np.insert(np.full(len(stay), -1, np.int64), gaps, new)
    totals = Hashes.concat([known.hashes.take(stay), hashes.take(new)]).total()
    digest = set_digest(schema, len(at), totals)
    return _Writer(blobs, known, rows, hashes).write(at, source, digest, compact=False)


_NOTHING = Hashed((), np.empty(0, np.int64), Hashes.concat([]), [])


class Order:
    """Where new rows stand among the old ones that stay.

    Args:
        found: For each row of the frame the number of its old row, or -1.
        new: The rows of the frame that are new.
        dead: For each old row whether it goes; none of `found` does.
    """

    def __init__(self, found: Positions, new: Positions, dead: np.ndarray) -> None:
        last = np.maximum.accumulate(np.where(found >= 0, np.arange(len(found)), -1))
        behind = np.where(last[new] >= 0, found[last[new]], -1)
        order = np.argsort(behind, kind="stable")
        self.new = new[order]
        self._places = np.searchsorted(np.flatnonzero(~dead), behind[order], side="right")

    def woven(self, old: Positions, new: Positions) -> Positions:
        """What is said of each old row that stays, and of each new one, in the new order."""
        return np.insert(old, self._places, new)


class _Writer:
    """Writes a version that is made of old rows and of rows of a frame."""

    def __init__(self, blobs: BlobStore, known: Hashed, rows: pa.Table, hashes: Hashes) -> None:
        self._blobs = blobs
        self._known = known
        self._rows = rows
        self._hashes = hashes
        self._starts = offsets(known.blocks)
        self._objects = list(known.made)

    def write(self, at: Positions, source: Positions, digest: str, *, compact: bool) -> Plan:
        """Store a version.

        Args:
            at: For each of its rows the position that it has already, or -1.
            source: For each the row of the frame; -1 where it is not known, as in a merge.
            digest: Of the version.
            compact: Write anew what changed much; the frame must have all rows then.
        """
        block = np.where(at >= 0, block_of(at, self._starts), -1)
        row = at - self._starts[block]
        is_delta = np.array([b.delta for b in self._known.blocks] + [True])[block]
        afresh = np.zeros(len(at), bool)
        if compact or not self._known.blocks:
            region = _regions(block, is_delta, len(self._known.blocks))
            afresh = self._is_dirty(region, is_delta)[region]
            if len(np.unique(block[is_delta & ~afresh])) > MOST_DELTAS:
                block[is_delta & ~afresh] = -1
        blocks = list(self._known.blocks)
        spine, between = afresh, (block < 0) & ~afresh
        for delta, chosen in ((False, spine), (True, between)):
            for part in _pieces(np.flatnonzero(chosen), whole=delta):
                blocks.append(self._store(source[part], delta=delta))
                block[part], row[part] = len(blocks) - 1, np.arange(len(part))
        return self._plan(blocks, block, row, digest)

    def _is_dirty(self, region: Positions, is_delta: np.ndarray) -> np.ndarray:
        """For each block, and behind them for no block, whether it is to be written anew."""
        count = len(self._known.blocks)
        size = np.array([b.rows for b in self._known.blocks] + [0])
        kept = np.bincount(region[~is_delta], minlength=count + 1)
        added = np.bincount(region[is_delta], minlength=count + 1)
        dirty: np.ndarray = (size - kept + added) * DIRTY > size
        return dirty

    def _store(self, rows: Positions, *, delta: bool) -> Block:
        in_order = len(rows) == rows[-1] - rows[0] + 1 and bool((np.diff(rows) == 1).all())
        frame = self._rows
        chosen = frame.slice(rows[0], len(rows)) if in_order else frame.take(pa.array(rows))
        block = write_block(self._blobs, chosen)
        digest, size = store_hashes(self._blobs, self._hashes.take(rows))
        self._objects += [(block.digest, block.size), (digest, size)]
        return msgspec.structs.replace(block, hashes=digest, delta=delta)

    def _plan(self, blocks: list[Block], block: Positions, row: Positions, digest: str) -> Plan:
        """The manifest of the blocks that have a row left: first in their order, deltas behind."""
        used, first = np.unique(block, return_index=True)
        ordered = sorted(zip(used.tolist(), first.tolist(), strict=True), key=lambda u: u[1])
        numbers = [n for n, _ in ordered if not blocks[n].delta]
        numbers += [n for n, _ in ordered if blocks[n].delta]
        made = tuple(blocks[n] for n in numbers)
        index = np.zeros(len(blocks), np.int64)
        index[numbers] = np.arange(len(numbers))
        layout = store_layout(self._blobs, made, offsets(made)[index[block]] + row)
        objects = self._objects + ([layout] if layout else [])
        return Plan(made, layout[0] if layout else "", digest, len(row), objects, is_same=False)


def _regions(block: Positions, is_delta: np.ndarray, none: int) -> Positions:
    """For each row the block that it stands in: of a row of a delta the one before it.

    Rows before all blocks belong to the first; `none` where there is no block.
    """
    spine = np.flatnonzero(~is_delta)
    if not len(spine):
        return np.full(len(block), none, np.int64)
    last = np.maximum.accumulate(np.where(is_delta, -1, np.arange(len(block))))
    return block[np.where(last >= 0, last, spine[0])]


def _pieces(rows: np.ndarray, *, whole: bool) -> Iterator[np.ndarray]:
    """Rows cut for blocks: of one size, and at gaps unless they are taken as a `whole`."""
    gaps = np.flatnonzero(np.diff(rows) != 1) + 1 if not whole else np.empty(0, np.int64)
    for run in np.split(rows, gaps):
        if len(run):
            yield from np.array_split(run, -(-len(run) // BLOCK_ROWS))
