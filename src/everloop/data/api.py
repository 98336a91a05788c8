"""``ev.read`` and ``ev.commit``: datasets of the current workspace, as plain functions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from everloop.core.context import current_workspace
from everloop.core.dataset import DatasetVersion
from everloop.core.reads import fixed
from everloop.core.reads import note as note_read
from everloop.core.schema import Schema
from everloop.data.files import add, open_files
from everloop.data.frame import Table
from everloop.errors import InvalidInput

__all__ = ["commit", "read"]


def read(name: str, version: int | None = None, *, columns: list[str] | None = None) -> Any:
    """Read a dataset: a :class:`Table`, or :class:`Files` of a directory or file.

    What is returned remembers the version that it came from. No annotation says which of the two
    it is, for that lies in the data.

    Args:
        name: Of the dataset.
        version: Number; the latest if not given.
        columns: Only these, of a table.

    Raises:
        NotFound: If there is no such dataset, version or column; with the nearest names.
    """
    service = current_workspace().data
    if version is None:
        known = fixed("dataset", name)
        found: DatasetVersion = service.version(name, int(known) if known else None)
        note_read("dataset", name, str(found.number))
    else:
        found = service.version(name, version)
    if found.kind != "table":
        if columns is not None:
            raise InvalidInput(f"{found.ref} is a {found.kind} and has no columns")
        return open_files(current_workspace(), found)
    rows = service.read(name, found.number, columns=columns)
    return Table(rows, sources=[(name, found.number, found.digest)], key=found.schema.key)


def commit(
    name: str,
    rows: Any,
    *,
    schema: Schema | None = None,
    mode: Literal["append", "replace"] = "replace",
    owner: str = "",
    note: str = "",
    sources: Sequence[str] = (),
) -> DatasetVersion:
    """Store `rows` as a version of a dataset; content that equals the latest version makes none.

    Args:
        name: Of the dataset.
        rows: Anything that :meth:`Table.of` takes; or the ``Path`` of a directory or a file, which
            is stored as it is, with the names of its files.
        schema: What must hold; the latest version's if not given.
        mode: ``replace`` stores the rows as the whole table, ``append`` adds them to it.
        owner: Who answers for the dataset.
        note: For people.
        sources: Where the rows come from outside, as URIs such as ``s3://lake/flights``.

    Raises:
        InvalidInput: With every fault, by column and row or by path; no version is made then.
        Conflict: If the dataset is of another kind.
    """
    service = current_workspace().data
    known = fixed("commit", name)
    if known is not None:  # the repetition of a run changes nothing
        done: DatasetVersion = service.version(name, int(known))
        return done
    made: DatasetVersion
    if isinstance(rows, Path):
        if schema is not None or mode != "replace":
            raise InvalidInput("files have no schema, and a version is all of them")
        made = add(current_workspace(), name, rows, owner=owner, note=note, sources=sources)
    else:
        made = service.commit(
            name,
            Table.of(rows).to_arrow(),
            schema=schema,
            mode=mode,
            owner=owner,
            note=note,
            sources=list(sources),
        )
    note_read("commit", name, str(made.number))
    return made
