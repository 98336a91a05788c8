"""Blocks: a table as ordinary zstd Parquet files under the digest of their bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq
from blake3 import blake3

from everloop.core.dataset import Block
from everloop.core.schema import Schema
from everloop.data.arrow import arrow_type
from everloop.ports.blobs import BlobStore, HasPaths

__all__ = [
    "BLOCK_ROWS",
    "open_block",
    "read_block",
    "version_digest",
    "write_block",
    "write_blocks",
]

#: Most rows of a block: small enough that erasing a row rewrites little, large enough to scan fast
#: (four times as many small blocks hold a third more bytes, as each has dictionaries of its own).
BLOCK_ROWS = 524_288


def write_block(blobs: BlobStore, rows: pa.Table, *, group: int = 0) -> Block:
    """Store `rows` as one Parquet file; equal rows give an equal digest (same Arrow release).

    Args:
        group: Rows of a row group; 0 makes one of all.
    """
    sink = pa.BufferOutputStream()
    bare = rows.replace_schema_metadata(None)
    pq.write_table(bare, sink, compression="zstd", row_group_size=group or max(rows.num_rows, 1))
    digest, size = blobs.put(sink.getvalue().to_pybytes())
    return Block(digest, rows.num_rows, size)


def write_blocks(blobs: BlobStore, table: pa.Table) -> Iterator[tuple[Block, pa.Table]]:
    """Store `table` in blocks of at most ``BLOCK_ROWS`` rows; each with its rows."""
    for start in range(0, table.num_rows, BLOCK_ROWS):
        rows = table.slice(start, BLOCK_ROWS)
        yield write_block(blobs, rows), rows


def version_digest(schema: Schema, blocks: Iterable[Block], layout: str = "") -> str:
    """blake3 over the digests of the schema, the blocks in order and the layout, 64 hex digits."""
    parts = [schema.digest, *(block.digest for block in blocks), *([layout] if layout else [])]
    return blake3("\n".join(parts).encode()).hexdigest()


def open_block(blobs: BlobStore, digest: str) -> pq.ParquetFile:
    """The Parquet file of a block: mapped where the store has files, else in memory."""
    if isinstance(blobs, HasPaths):
        return pq.ParquetFile(str(blobs.path(digest)), memory_map=True)
    return pq.ParquetFile(pa.BufferReader(blobs.get(digest)))


def read_block(
    blobs: BlobStore, block: Block, schema: Schema, columns: Sequence[str], *, threads: bool = True
) -> pa.Table:
    """`columns` of all rows of a block; one that the block is older than reads as nulls."""
    with open_block(blobs, block.digest) as file:
        have = [name for name in columns if name in file.schema_arrow.names]
        rows = file.read(columns=have, use_threads=threads)
    for name in columns:
        if name not in have:
            kind = arrow_type(schema.field(name).type)
            rows = rows.append_column(name, pa.nulls(block.rows, kind))
    return rows.select(list(columns))
