"""``ev.read`` and ``ev.commit``: datasets of the current workspace, as plain functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from everloop.core.context import current_workspace
from everloop.core.dataset import DatasetVersion
from everloop.core.reads import fixed
from everloop.core.reads import note as note_read
from everloop.core.schema import Schema
from everloop.data.frame import Table

__all__ = ["commit", "read"]


def read(name: str, version: int | None = None, *, columns: list[str] | None = None) -> Table:
    """Read a dataset; the table remembers the version that it came from.

    Args:
        name: Of the dataset.
        version: Number; the latest if not given.
        columns: Only these.

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
    """Store `rows` as a version of a dataset; rows that equal the latest version make none.

    Args:
        name: Of the dataset.
        rows: Anything that :meth:`Table.of` takes.
        schema: What must hold; the latest version's if not given.
        mode: ``replace`` stores the rows as the whole table, ``append`` adds them to it.
        owner: Who answers for the dataset.
        note: For people.
        sources: Where the rows come from outside, as URIs such as ``s3://lake/flights``.

    Raises:
        InvalidInput: With every fault, by column and row; no version is made then.
    """
    service = current_workspace().data
    known = fixed("commit", name)
    if known is not None:  # the repetition of a run changes nothing
        done: DatasetVersion = service.version(name, int(known))
        return done
    made: DatasetVersion = service.commit(
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
