"""Datasets, their versions, and the ledger of rows that a rule dropped or changed."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from everloop.core.schema import Schema

__all__ = [
    "MAIN",
    "Block",
    "ColumnDiff",
    "Damage",
    "Dataset",
    "DatasetBranch",
    "DatasetDiff",
    "DatasetMerge",
    "DatasetTag",
    "DatasetVersion",
    "FileChange",
    "MergeConflict",
    "RowAction",
    "RowChange",
    "RowChangeSummary",
    "RowDiff",
    "Value",
    "Verified",
]

#: The line of versions that a dataset has from the beginning; who names no line sees this one.
MAIN = "main"

#: A value of a row as JSON has it.
Value = str | int | float | bool | None

#: What happened to a row.
RowAction = Literal["dropped", "changed", "warned", "quarantined", "found", "fixed", "dismissed"]


class Dataset(msgspec.Struct, frozen=True, kw_only=True):
    """A named table, directory or file of a workspace and who answers for it."""

    name: str
    owner: str = ""
    description: str = ""
    created_at: datetime
    latest: int = 0


class Block(msgspec.Struct, frozen=True, omit_defaults=True):
    """One Parquet file of a version.

    Attributes:
        digest: blake3 of its bytes.
        rows: All that are in the file, also those that the version left out.
        size: In bytes.
        hashes: Digest of the object that holds the hashes of its rows; empty if none were made.
        delta: Whether its rows stand between those of other blocks.
    """

    digest: str
    rows: int
    size: int
    hashes: str = ""
    delta: bool = False


class DatasetVersion(msgspec.Struct, frozen=True, kw_only=True):
    """An immutable state of a dataset: a manifest over blocks, in row order, or a tree of files.

    Attributes:
        number: 1, 2, 3... within the dataset.
        kind: Of all versions of a dataset the same. Schema, blocks, layout and rows are those of a
            table; root, files and size those of a directory or a file.
        digest: Equal for equal content. Of a version with a key whose rows have hashes it is over
            the schema digest and the hashes, whatever the order; of other tables over the schema
            digest and the block digests, in order; of files the `root`.
        blocks: Ordinary Parquet files. Without a layout, row n of the version is row n of their
            concatenation.
        layout: Digest of the object that says which rows of the blocks count, and in which order;
            blocks that were appended later follow in full. Empty if all do.
        dropped: Rows of the input that a rule left out; the ledger has them.
        root: Digest of the object that holds the directory; a file is one of that file alone.
        files: Files and links.
        size: Bytes of all files.
        parent: The version before it on its line, 0 for none.
        branch: The line that it was committed to.
        merged: The head of the other line, of a version that a merge made; else 0.
    """

    dataset: str
    number: int
    kind: Literal["table", "directory", "file"] = "table"
    digest: str
    schema: Schema
    blocks: tuple[Block, ...]
    rows: int
    layout: str = ""
    parent: int = 0
    run_id: str = ""
    author: str = ""
    note: str = ""
    dropped: int = 0
    root: str = ""
    files: int = 0
    size: int = 0
    content: str = ""
    branch: str = MAIN
    merged: int = 0
    created_at: datetime

    @property
    def ref(self) -> str:
        """``name@number``, the way people write a version."""
        return f"{self.dataset}@{self.number}"

    @property
    def holds(self) -> str:
        """The digest of what the version has now: `digest` unless rows were erased since."""
        return self.content or self.digest


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


class DatasetTag(msgspec.Struct, frozen=True, kw_only=True):
    """A name for one version of a dataset, which can be moved to another."""

    dataset: str
    tag: str
    number: int
    actor: str
    reason: str = ""
    updated_at: datetime

    @property
    def ref(self) -> str:
        """``name@tag``, which can stand for the version."""
        return f"{self.dataset}@{self.tag}"


class DatasetBranch(msgspec.Struct, frozen=True, kw_only=True):
    """A line of versions beside the main one.

    Attributes:
        base: The version that it began at.
        number: Its latest version; `base` as long as nothing was committed to it.
        actor: Who made it.
    """

    dataset: str
    branch: str
    base: int
    number: int
    actor: str
    note: str = ""
    created_at: datetime
    updated_at: datetime

    @property
    def ref(self) -> str:
        """``name@branch``, which can stand for its latest version."""
        return f"{self.dataset}@{self.branch}"


class MergeConflict(msgspec.Struct, frozen=True, kw_only=True):
    """Something that both lines changed since their common version, to different ends.

    Attributes:
        kind: ``value`` of one cell; ``row`` that one line removed and the other changed;
            ``column`` whose definition both changed, or that one dropped and the other changed;
            ``schema``: its key, time or checks; ``file``; ``table`` that has no key.
        key: Values of the key columns, of a value or row.
        column: Of a value its column, of a column its name, of a schema the part.
        path: Of a file.
        base, ours, theirs: What was there, what the line has that is merged into, and what the
            other has: of values these; of all else words, or the digest of a file.
    """

    kind: Literal["value", "row", "column", "schema", "file", "table"]
    key: dict[str, Value] = {}
    column: str = ""
    path: str = ""
    base: Value = ""
    ours: Value = ""
    theirs: Value = ""


class DatasetMerge(msgspec.Struct, frozen=True, kw_only=True):
    """What a merge did.

    Attributes:
        version: The latest of the line that was merged into: made by the merge, or as it was if the
            other line had nothing that this one lacked.
        base: Number of the version that both lines come from.
        ours, theirs: Numbers of the heads that were merged.
        conflicts: Those that the strategy decided, at most a thousand; `conflicted` counts all.
    """

    version: DatasetVersion
    base: int
    ours: int
    theirs: int
    conflicted: int = 0
    conflicts: tuple[MergeConflict, ...] = ()


class RowDiff(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A row that two versions do not have alike. Times are ISO 8601 text, bytes hexadecimal.

    Attributes:
        key: Values of the key columns; empty without a key.
        old: Values in the old version: of a removed row all, of a changed one those that changed.
        new: Values in the new version: of an added row all, of a changed one those that changed.
    """

    kind: Literal["added", "removed", "changed"]
    key: dict[str, Value] = {}
    old: dict[str, Value] = {}
    new: dict[str, Value] = {}


class ColumnDiff(msgspec.Struct, frozen=True, kw_only=True):
    """How the columns of two versions differ.

    Attributes:
        added, removed: Names; their values do not make a row a changed one.
        retyped: By name the old and the new type. Where they are of two kinds (text and numbers),
            the values are not compared.
        rules: Names whose rules, unit, owner or description differ.
    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    retyped: dict[str, tuple[str, str]] = {}
    rules: tuple[str, ...] = ()


class DatasetDiff(msgspec.Struct, frozen=True, kw_only=True):
    """How two versions of a dataset differ; order alone is no difference.

    Attributes:
        old, new: References of the versions.
        added, removed, changed: Numbers of rows, by key. Without a key none is changed: a row that
            is not in both is removed or added, as often as it is.
        rows: The first of each kind, as many as were asked for.
    """

    old: str
    new: str
    columns: ColumnDiff
    added: int
    removed: int
    changed: int
    rows: tuple[RowDiff, ...] = ()


class RowChangeSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What one rule did to the rows of one version or in one step.

    Attributes:
        scope: ``dataset:name@number`` for a commit, ``run:id/step`` for a pipeline step.
        action: ``fixed`` and ``dismissed`` rows are those of the work list that the version closed.
        detail: Digest of the Parquet object that holds each row: key columns and old values.
        dataset: The dataset that the rows come from, or empty.
    """

    scope: str
    dataset: str = ""
    rule: str
    action: RowAction
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
    row: dict[str, Value]
