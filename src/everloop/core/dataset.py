"""Datasets, their versions, and the ledger of rows that a rule dropped or changed."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from everloop.core.schema import Schema

__all__ = ["Block", "Dataset", "DatasetVersion", "RowChange", "RowChangeSummary"]


class Dataset(msgspec.Struct, frozen=True, kw_only=True):
    """A named table of a workspace and who answers for it."""

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
    """An immutable state of a dataset: a manifest over blocks, in row order.

    Attributes:
        number: 1, 2, 3... within the dataset.
        digest: blake3 over the schema digest and the block digests, in order.
        blocks: Ordinary Parquet files; row n of the version is row n of their concatenation.
        dropped: Rows of the input that a rule left out; the ledger has them.
    """

    dataset: str
    number: int
    digest: str
    schema: Schema
    blocks: tuple[Block, ...]
    rows: int
    parent: int = 0
    run_id: str = ""
    author: str = ""
    note: str = ""
    dropped: int = 0
    created_at: datetime

    @property
    def ref(self) -> str:
        """``name@number``, the way people write a version."""
        return f"{self.dataset}@{self.number}"


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
