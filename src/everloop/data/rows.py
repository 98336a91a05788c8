"""The rows of a version: the one place that knows which rows of its blocks it has.

Whatever looks into the blocks of a dataset comes through here: reading, single rows by their
position, the rows that count of each block, and their hashes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from everloop.core.dataset import Block, DatasetVersion
from everloop.core.schema import Schema
from everloop.data.arrow import arrow_type
from everloop.data.blocks import read_block
from everloop.data.layout import Positions, Runs, block_of, offsets, positions, runs
from everloop.data.rowhash import Hashes, from_bytes, row_hashes, to_bytes
from everloop.ports.blobs import BlobStore

__all__ = [
    "Hashed",
    "are_hashed",
    "block_hashes",
    "counting",
    "hashed",
    "read_rows",
    "row_parts",
    "rows_at",
    "store_hashes",
]


def read_rows(blobs: BlobStore, version: DatasetVersion, columns: Sequence[str]) -> pa.Table:
    """`columns` of all rows of a version, in its order."""
    blocks, schema = version.blocks, version.schema
    wanted = _arrow_schema(schema, columns)
    if not blocks or not columns:
        return wanted.empty_table()
    if len(blocks) == 1 and not version.layout:
        return read_block(blobs, blocks[0], schema, columns).cast(wanted)
    parts: list[_Part] = [(block, None, None) for block in blocks]
    if version.layout:
        parts = _parts(blobs, version, columns)
    with ThreadPoolExecutor() as threads:
        tables = list(threads.map(lambda part: _read_part(blobs, part, schema, columns), parts))
    return pa.concat_tables(tables).cast(wanted)


def row_parts(
    blobs: BlobStore, version: DatasetVersion, columns: Sequence[str]
) -> Iterator[pa.Table]:
    """`columns` of the rows of a version block by block, in its order; the next is read ahead."""
    wanted = _arrow_schema(version.schema, columns)
    blocks = version.blocks
    if not blocks or not columns:
        return
    parts = _parts(blobs, version, columns) if version.layout else [(b, None, None) for b in blocks]
    with ThreadPoolExecutor(max_workers=1) as ahead:
        schema = version.schema
        following = ahead.submit(_read_part, blobs, parts[0], schema, columns)
        for n in range(len(parts)):
            rows = following.result()
            if n + 1 < len(parts):
                following = ahead.submit(_read_part, blobs, parts[n + 1], schema, columns)
            yield rows.cast(wanted)


def rows_at(
    blobs: BlobStore, version: DatasetVersion, at: Positions, columns: Sequence[str]
) -> pa.Table:
    """`columns` of the rows at these positions, in this order; only their blocks are read."""
    wanted = _arrow_schema(version.schema, columns)
    if not len(at):
        return wanted.empty_table()
    starts = offsets(version.blocks)
    order = np.argsort(at, kind="stable")
    ascending = at[order]
    blocks = block_of(ascending, starts)
    tables = []
    for n in np.unique(blocks).tolist():
        rows = read_block(blobs, version.blocks[n], version.schema, columns)
        tables.append(rows.take(pa.array(ascending[blocks == n] - starts[n])))
    back = np.empty(len(at), np.int64)
    back[order] = np.arange(len(at))
    return pa.concat_tables(tables).cast(wanted).take(pa.array(back))


def counting(blobs: BlobStore, version: DatasetVersion) -> list[tuple[Block, np.ndarray | None]]:
    """Each block with the mask of its rows that count; None where all do."""
    if not version.layout:
        return [(block, None) for block in version.blocks]
    starts = offsets(version.blocks)
    mask = np.zeros(starts[-1], bool)
    mask[positions(blobs, version)] = True
    masks = [mask[start : start + b.rows] for start, b in zip(starts, version.blocks, strict=False)]
    return [
        (block, None if part.all() else part)
        for block, part in zip(version.blocks, masks, strict=True)
    ]


class Hashed(NamedTuple):
    """A version whose rows have hashes.

    Attributes:
        blocks: As in the version, each with its hashes named.
        at: The position of each row, in the version's order.
        hashes: Of each row, in the same order.
        made: Objects that had to be stored for it: digest and bytes.
    """

    blocks: tuple[Block, ...]
    at: Positions
    hashes: Hashes
    made: list[tuple[str, int]]


def are_hashed(version: DatasetVersion) -> bool:
    """Whether the version is a set of rows with hashes, and not only a list of blocks."""
    keyed = bool(version.schema.key and version.blocks)
    return keyed and all(block.hashes for block in version.blocks)


def hashed(blobs: BlobStore, version: DatasetVersion) -> Hashed:
    """The hashes of a version: those that are kept, made anew and stored where none are."""
    blocks, hashes, made = [], [], []
    for block in version.blocks:
        found = _kept_hashes(blobs, block)
        if found is None:
            found = block_hashes(blobs, block, version.schema)
            digest, size = store_hashes(blobs, found)
            block = msgspec.structs.replace(block, hashes=digest)
            made.append((digest, size))
        blocks.append(block)
        hashes.append(found)
    at = positions(blobs, version)
    every = Hashes.concat(hashes)
    return Hashed(tuple(blocks), at, every.take(at) if version.layout else every, made)


def block_hashes(blobs: BlobStore, block: Block, schema: Schema) -> Hashes:
    """The hashes of all rows of a block, kept or made anew."""
    found = _kept_hashes(blobs, block)
    if found is None:
        found = row_hashes(read_block(blobs, block, schema, schema.names))
    return found


def _kept_hashes(blobs: BlobStore, block: Block) -> Hashes | None:
    return from_bytes(blobs.get(block.hashes), block.rows) if block.hashes else None


def store_hashes(blobs: BlobStore, hashes: Hashes) -> tuple[str, int]:
    """Store the hashes of a block; digest and bytes."""
    return blobs.put(to_bytes(hashes))


# A block, the rows to put between its own (in order), and which of both make the result; None for
# all of the block.
_Part = tuple[Block, pa.Table | None, np.ndarray | None]


def _parts(blobs: BlobStore, version: DatasetVersion, columns: Sequence[str]) -> list[_Part]:
    """One part for each block that is no delta, in order."""
    blocks, every = version.blocks, runs(blobs, version)
    is_delta = np.array([block.delta for block in blocks])
    deltas = [n for n, block in enumerate(blocks) if block.delta]
    between = is_delta[every.block]
    part_of = np.maximum.accumulate(np.where(between, -1, every.block))
    part_of[part_of < 0] = int(np.argmin(is_delta))
    with ThreadPoolExecutor() as threads:
        read = threads.map(
            lambda n: read_block(blobs, blocks[n], version.schema, columns, threads=False), deltas
        )
        among = pa.concat_tables(read).combine_chunks() if deltas else None
    # Where each delta block begins among the rows of all.
    begin_of = np.zeros(len(blocks), np.int64)
    begin_of[deltas] = offsets(tuple(blocks[n] for n in deltas))[:-1]
    begins = np.flatnonzero(np.append(True, np.diff(part_of) != 0))
    parts: list[_Part] = []
    for begin, end in zip(begins, np.append(begins[1:], len(part_of)), strict=True):
        block, mine = blocks[int(part_of[begin])], every.part(int(begin), int(end))
        inner, added, to = between[begin:end], None, mine.start
        if among is not None and inner.any():
            new = Runs(*(column[inner] for column in mine))
            added = _take(among, new.expanded(new.start + begin_of[new.block]))
            # They are put behind the rows of the block, and picked from there.
            to = to.copy()
            to[inner] = block.rows + np.cumsum(new.rows) - new.rows
        whole = added is None and int(mine.rows.sum()) == block.rows
        parts.append((block, added, None if whole else mine.expanded(to)))
    return parts


def _read_part(blobs: BlobStore, part: _Part, schema: Schema, columns: Sequence[str]) -> pa.Table:
    block, added, picked = part
    rows = read_block(blobs, block, schema, columns, threads=False)
    if picked is None:
        return rows
    if added is not None:
        rows = pa.concat_tables([rows, added.cast(rows.schema)])
    return _take(rows.combine_chunks(), picked)


def _take(rows: pa.Table, picked: np.ndarray) -> pa.Table:
    """`picked` rows of a table of one chunk; faster than its own method, which looks at bounds."""
    at = pa.array(picked)
    columns = [pc.take(column.chunk(0), at, boundscheck=False) for column in rows.columns]
    return pa.Table.from_arrays(columns, schema=rows.schema)


def _arrow_schema(schema: Schema, columns: Sequence[str]) -> pa.Schema:
    return pa.schema([pa.field(name, arrow_type(schema.field(name).type)) for name in columns])
