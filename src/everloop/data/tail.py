"""Small blocks at the end of a table that is appended to, put together as they become many.

Who appends thirty rows a thousand times would leave a thousand files to open, and manifests that
name them all a thousand times over. So blocks have levels by their size, each `FAN` times that of
the level below, as in a log-structured merge tree (O'Neil et al., 1996): `FAN` blocks of one level
at the end of the table are written as one. A row is written once for each level at most, and a
table of n appends has some ``FAN * log(n)`` small blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import pyarrow as pa

from everloop.core.dataset import Block
from everloop.core.schema import Schema
from everloop.data.blocks import BLOCK_ROWS, read_block, write_block
from everloop.data.rowhash import Hashes
from everloop.data.rows import block_hashes, store_hashes
from everloop.ports.blobs import BlobStore

__all__ = ["FAN", "Together", "put_together"]

FAN = 8
#: Most rows to write anew at once: an append takes tens of milliseconds for it, now and then.
_MOST = BLOCK_ROWS // 4


class Together(NamedTuple):
    """The blocks of a table after small ones were put together.

    Attributes:
        objects: What was stored for it: digest and bytes.
    """

    blocks: tuple[Block, ...]
    objects: list[tuple[str, int]]


def put_together(
    blobs: BlobStore, schema: Schema, blocks: Sequence[Block], fixed: int, *, hashed: bool
) -> Together:
    """Store what makes fewer of the blocks behind the first `fixed`, in the same order of rows.

    Args:
        blobs: Holds the blocks.
        schema: Of the version that is to have them; what a block lacks of it is null.
        blocks: All rows of those behind `fixed` count, and stand in the order of the blocks.
        fixed: Leading blocks that a layout tells of.
        hashed: Whether each block is to have the hashes of its rows kept.
    """
    left = list(blocks)
    objects: list[tuple[str, int]] = []
    while run := _run([block.rows for block in left[fixed:]]):
        parts = left[-run:]
        rows = pa.concat_tables(read_block(blobs, part, schema, schema.names) for part in parts)
        made = write_block(blobs, rows)
        objects.append((made.digest, made.size))
        if hashed:
            hashes = Hashes.concat([block_hashes(blobs, part, schema) for part in parts])
            digest, size = store_hashes(blobs, hashes)
            made = msgspec.structs.replace(made, hashes=digest)
            objects.append((digest, size))
        left[-run:] = [made]
    return Together(tuple(left), objects)


def _run(sizes: Sequence[int]) -> int:
    """How many blocks at the end are to be put together; 0 if none are."""
    levels = [_level(rows) for rows in sizes]
    for level in sorted(set(levels[-FAN:])):
        run = next((n for n, at in enumerate(reversed(levels)) if at > level), len(levels))
        if levels[len(levels) - run :].count(level) >= FAN and sum(sizes[-run:]) <= _MOST:
            return run
    return 0


def _level(rows: int) -> int:
    level = 0
    while rows >= FAN:
        rows //= FAN
        level += 1
    return level
