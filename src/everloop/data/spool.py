"""Rows on their way in: written to a file as they are read, then mapped, so that memory is bounded.

What is read is held as one batch at a time; the table at the end lies in the page cache, which the
system takes back when it needs to.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import pyarrow as pa

from everloop.errors import BackendError, Fault, InvalidInput

__all__ = ["Mark", "Spool"]

#: Batches smaller than this are put together: ten thousand files of a row each are one.
_ROWS = 65_536


class Mark(NamedTuple):
    """Where the rows of a file begin."""

    start: int
    path: str


class Spool:
    """Takes batches, gives a table; what it wrote goes at the end of the block.

    Batches may come with different columns; a column that one lacks is null there.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.marks: list[Mark] = []
        self._folder = tempfile.TemporaryDirectory(prefix="everloop-pull-")
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_rows = 0
        self._schema: pa.Schema | None = None
        self._writer: pa.RecordBatchFileWriter | None = None
        self._files: list[Path] = []

    @property
    def is_begun(self) -> bool:
        """Whether it is known which columns there are."""
        return self._schema is not None

    def mark(self, path: str) -> None:
        """Say that what comes now is of a file."""
        self.marks.append(Mark(self.rows, path))

    def begin(self, schema: pa.Schema) -> None:
        """Say which columns there are, also if no row comes."""
        if self._schema is None:
            self._schema = schema.remove_metadata()

    def add(self, batch: pa.RecordBatch) -> None:
        """Take a batch.

        Raises:
            BackendError: If there is no room for it.
        """
        schema = batch.schema.remove_metadata()
        if self._schema is not None and schema != self._schema:
            self._flush()
            self._end()
        self._schema = schema
        self._waiting.append(batch)
        self._waiting_rows += batch.num_rows
        self.rows += batch.num_rows
        if self._waiting_rows >= _ROWS:
            self._flush()

    def table(self) -> pa.Table:
        """All rows, in the order that they came in; call it once.

        Raises:
            InvalidInput: If a column has types that no one type holds.
        """
        self._flush()
        self._end()
        if not self._files:
            assert self._schema is not None, "it was begun"
            return self._schema.empty_table()
        parts = []
        for file in self._files:
            with pa.memory_map(str(file)) as source:
                parts.append(pa.ipc.open_file(source).read_all())
        return parts[0] if len(parts) == 1 else _together(parts)

    def _flush(self) -> None:
        if not self._waiting:
            return
        table = pa.Table.from_batches(self._waiting, self._waiting[0].schema)
        bare = table.replace_schema_metadata(None).combine_chunks()
        self._waiting, self._waiting_rows = [], 0
        try:
            if self._writer is None:
                file = Path(self._folder.name) / f"{len(self._files)}.arrow"
                self._files.append(file)
                self._writer = pa.ipc.new_file(str(file), bare.schema)
            self._writer.write_table(bare)
        except OSError as error:
            raise _no_room(error) from error

    def _end(self) -> None:
        if self._writer is not None:
            try:
                self._writer.close()
            except OSError as error:
                raise _no_room(error) from error
            self._writer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._writer = None
        self._folder.cleanup()


def _together(parts: list[pa.Table]) -> pa.Table:
    faults = []
    for name in dict.fromkeys(name for part in parts for name in part.column_names):
        kinds = {part.schema.field(name).type for part in parts if name in part.column_names}
        kinds.discard(pa.null())
        widths = (pa.types.is_signed_integer, pa.types.is_unsigned_integer, pa.types.is_floating)
        if len(kinds) > 1 and not any(all(map(alike, kinds)) for alike in widths):
            faults.append(Fault(name, f"is {' and '.join(sorted(map(str, kinds)))}"))
    if faults:
        raise InvalidInput("the files have columns of several types", faults)
    return pa.concat_tables(parts, promote_options="permissive")


def _no_room(error: OSError) -> BackendError:
    why = os.strerror(error.errno) if error.errno else str(error)
    return BackendError(
        f"what was pulled cannot be kept in {tempfile.gettempdir()}: {why}",
        hint="free space there, or set TMPDIR; nothing was kept",
    )
