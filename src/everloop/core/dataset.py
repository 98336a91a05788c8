"""Datasets, their versions, and the ledger of rows that a rule dropped or changed."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from everloop.core.schema import Schema

__all__ = [
    "Block",
    "Damage",
    "Dataset",
    "DatasetVersion",
    "FileChange",
    "RowChange",
    "RowChangeSummary",
    "Verified",
]


class Dataset(msgspec.Struct, frozen=True, kw_only=True):
    """A named table, directory or file of a workspace and who answers for it."""

    name: str
    owner: str = ""
    description: str = ""
    created_at: datetime
    latest: int = 0


class Block(msgspec.Struct, frozen=True):
    """One Parquet file of a version: its blake3 digest, rows and bytes."""

    digest: str
    rows: int
    size: int


class DatasetVersion(msgspec.Struct, frozen=True, kw_only=True):
    """An immutable state of a dataset: a manifest over blocks, in row order, or a tree of files.

    Attributes:
        number: 1, 2, 3... within the dataset.
        kind: Of all versions of a dataset the same. Schema, blocks and rows are those of a table;
            root, files and size those of a directory or a file.
        digest: blake3 over the schema digest and the block digests, in order; of files the `root`.
        blocks: Ordinary Parquet files; row n of the version is row n of their concatenation.
        dropped: Rows of the input that a rule left out; the ledger has them.
        root: Digest of the object that holds the directory; a file is one of that file alone.
        files: Files and links.
        size: Bytes of all files.
    """

    dataset: str
    number: int
    kind: Literal["table", "directory", "file"] = "table"
    digest: str
    schema: Schema
    blocks: tuple[Block, ...]
    rows: int
    parent: int = 0
    run_id: str = ""
    author: str = ""
    note: str = ""
    dropped: int = 0
    root: str = ""
    files: int = 0
    size: int = 0
    created_at: datetime

    @property
    def ref(self) -> str:
        """``name@number``, the way people write a version."""
        return f"{self.dataset}@{self.number}"


class FileChange(msgspec.Struct, frozen=True):
    """A path at which two directories differ: a file, a link, or an empty directory.

    Attributes:
        path: From the directory down, with ``/`` between names; bytes that are no UTF-8 stand as
            Python's file names have them, as half surrogate pairs.
        old_size: Bytes before, None if it was not there.
        new_size: Bytes now, None if it is no longer there.
    """

    path: str
    what: Literal["added", "removed", "changed"]
    old_size: int | None = None
    new_size: int | None = None


class Damage(msgspec.Struct, frozen=True, kw_only=True):
    """An object of the store that is missing or is not what its name says.

    Attributes:
        paths: ``name@number`` of each version that it is a part of, with the path in it.
    """

    digest: str
    reason: str
    paths: tuple[str, ...]


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """What was found when the bytes of versions were held against their names.

    Attributes:
        versions: How many versions were looked at.
        objects: Objects that were read, each once.
        size: Their bytes.
    """

    versions: int
    objects: int
    size: int
    damaged: tuple[Damage, ...] = ()


class RowChangeSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What one rule did to the rows of one version or in one step.

    Attributes:
        scope: ``dataset:name@number`` for a commit, ``run:id/step`` for a pipeline step.
        detail: Digest of the Parquet object that holds each row: key columns and old values.
        dataset: The dataset that the rows come from, or empty.
    """

    scope: str
    dataset: str = ""
    rule: str
    action: Literal["dropped", "changed", "warned"]
    reason: str
    owner: str
    rows: int
    detail: str
    at: datetime


class RowChange(msgspec.Struct, frozen=True, kw_only=True):
    """One row that a rule dropped or altered, with its key and the values it had.

    Times stand as ISO 8601 text, bytes as hexadecimal digits.
    """

    scope: str
    dataset: str = ""
    rule: str
    action: str
    reason: str
    owner: str
    row: dict[str, str | int | float | bool | None]
