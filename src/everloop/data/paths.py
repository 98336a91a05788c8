"""A version of a table as a list of Parquet files that hold exactly its rows, in its order.

A block whose rows all count, in one run, under the schema of the version, is such a file already:
the list names it. Where rows were left out, stand in between, or lack a column, files are written
to the cache of this machine, once, so that any engine reads a version without knowing of layouts.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from everloop.core.dataset import Block, DatasetVersion
from everloop.data.arrow import arrow_type
from everloop.data.blocks import BLOCK_ROWS, open_block, version_digest
from everloop.data.rows import read_rows
from everloop.data.upkeep import copies_in
from everloop.errors import BackendError, InvalidInput, NotAllowed
from everloop.ports.blobs import BlobStore, HasPaths

__all__ = ["Holder", "parquet_paths"]

#: Lists that nobody asked for in so long are removed when another one is made.
_KEPT_S = 14 * 86_400


class Holder(Protocol):
    """What is needed of a workspace."""

    @property
    def blobs(self) -> BlobStore:
        """The object store."""
        ...

    @property
    def folder(self) -> Path:
        """Where the workspace keeps what is of this machine."""
        ...


def parquet_paths(home: Holder, version: DatasetVersion) -> list[Path]:
    """The files of a version, in its order; read-only, and at least one.

    They stay for as long as somebody asks for them now and then; who needs them for longer exports.

    Raises:
        InvalidInput: If it is no table.
        NotAllowed: If the blocks hold personal data that the caller may not see.
        BackendError: If a block is damaged, or the disk fails.
    """
    if version.kind != "table":
        raise InvalidInput(f"{version.ref} is a {version.kind}; check it out to have its files")
    cache = copies_in(home.folder)
    made = cache / version_digest(version.schema, version.blocks, version.layout)[:32]
    if (found := _there(made)) is not None:
        return found
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _forget_old(cache)
        begun = Path(tempfile.mkdtemp(prefix=".begun-", dir=cache))
        try:
            _write(home.blobs, version, begun)
            if made.exists():  # another process was faster, or its blocks are gone
                os.replace(made, begun.with_suffix(".old"))
                shutil.rmtree(begun.with_suffix(".old"), ignore_errors=True)
            os.replace(begun, made)
        finally:
            shutil.rmtree(begun, ignore_errors=True)
    except NotAllowed:
        raise
    except OSError as error:
        if (found := _there(made)) is not None:
            return found
        raise BackendError(f"the files of {version.ref} could not be written: {error}") from error
    found = _there(made)
    assert found is not None
    return found


def _there(made: Path) -> list[Path] | None:
    try:
        names = sorted(os.listdir(made))
        os.utime(made)
    except OSError:
        return None
    found = [made / name for name in names]
    return found if found and all(path.exists() for path in found) else None


def _forget_old(cache: Path) -> None:
    before = time.time() - _KEPT_S
    for folder in cache.iterdir():
        try:
            is_old = folder.stat().st_mtime < before
        except FileNotFoundError:
            continue
        if is_old:
            shutil.rmtree(folder, ignore_errors=True)


def _write(blobs: BlobStore, version: DatasetVersion, to: Path) -> None:
    names = list(version.schema.names)
    wanted = pa.schema([(f.name, arrow_type(f.type)) for f in version.schema.fields])
    if version.layout or not version.blocks:
        _put(read_rows(blobs, version, names), to, 0)
        return
    for number, block in enumerate(version.blocks):
        if isinstance(blobs, HasPaths) and _is_whole(blobs, block, wanted):
            os.symlink(blobs.path(block.digest), _part(to, number))
        else:
            alone = _only(version, block)
            _put(read_rows(blobs, alone, names), to, number)


def _is_whole(blobs: BlobStore, block: Block, wanted: pa.Schema) -> bool:
    with open_block(blobs, block.digest) as file:
        return bool(file.schema_arrow.equals(wanted))


def _only(version: DatasetVersion, block: Block) -> DatasetVersion:
    import msgspec

    return msgspec.structs.replace(version, blocks=(block,), rows=block.rows)


def _put(rows: pa.Table, to: Path, first: int) -> None:
    for number, start in enumerate(range(0, max(rows.num_rows, 1), BLOCK_ROWS), first):
        part = rows.slice(start, BLOCK_ROWS)
        pq.write_table(part, _part(to, number), compression="zstd")


def _part(to: Path, number: int) -> Path:
    return to / f"part-{number:05}.parquet"
