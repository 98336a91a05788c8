"""Statements of datasets, their versions and the row ledger."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import delete, func, select
from sqlalchemy.engine import Row

from everloop.catalog.tables import (
    dataset_branches,
    dataset_tags,
    dataset_versions,
    datasets,
    objects,
    row_changes,
)
from everloop.catalog.transaction import Transaction
from everloop.core.dataset import (
    MAIN,
    Dataset,
    DatasetBranch,
    DatasetTag,
    DatasetVersion,
    RowChangeSummary,
)

__all__ = [
    "add_change",
    "add_objects",
    "add_version",
    "all_datasets",
    "branches",
    "drop_branch",
    "drop_tag",
    "find_branch",
    "find_version",
    "has_change",
    "last_number",
    "lines",
    "names",
    "numbers",
    "put_branch",
    "put_tag",
    "tags",
    "times",
    "versions",
]


def names(tx: Transaction) -> list[str]:
    """The names of all datasets."""
    return [row.name for row in tx.all(select(datasets.c.name).order_by(datasets.c.name))]


def all_datasets(tx: Transaction) -> list[Dataset]:
    """All datasets by name."""
    return [Dataset(**row._asdict()) for row in tx.all(select(datasets).order_by(datasets.c.name))]


def numbers(tx: Transaction, name: str) -> list[int]:
    """The numbers of all versions, ascending."""
    table = dataset_versions
    query = select(table.c.number).where(table.c.dataset == name).order_by(table.c.number)
    return [row.number for row in tx.all(query)]


def last_number(tx: Transaction, name: str) -> int:
    """The highest number of a version on any line, 0 if there is none."""
    table = dataset_versions
    return int(tx.scalar(select(func.max(table.c.number)).where(table.c.dataset == name)) or 0)


def times(tx: Transaction, name: str) -> list[tuple[int, datetime]]:
    """Number and time of every version of the main line, by number."""
    table = dataset_versions
    query = select(table.c.number, table.c.created_at)
    query = query.where(table.c.dataset == name, table.c.branch == MAIN)
    return [(row.number, row.created_at) for row in tx.all(query.order_by(table.c.number))]


class Point(NamedTuple):
    """A version in the graph of versions."""

    parent: int
    merged: int
    created_at: datetime


def lines(tx: Transaction, name: str) -> dict[int, Point]:
    """What came before each version, of all lines, by number."""
    table = dataset_versions
    query = select(table.c.number, table.c.parent, table.c.merged, table.c.created_at)
    rows = tx.all(query.where(table.c.dataset == name).order_by(table.c.number))
    return {row.number: Point(row.parent, row.merged, row.created_at) for row in rows}


def find_version(
    tx: Transaction, name: str, number: int | None = None, *, branch: str = MAIN
) -> DatasetVersion | None:
    """One version; None if there is no such version, or no such branch.

    Args:
        number: None is the latest of `branch`.
    """
    table = dataset_versions
    query = select(table).where(table.c.dataset == name)
    if number is None and branch == MAIN:
        query = query.where(table.c.branch == MAIN).order_by(table.c.number.desc()).limit(1)
    elif number is None:
        line = find_branch(tx, name, branch)
        if line is None:
            return None
        query = query.where(table.c.number == line.number)
    else:
        query = query.where(table.c.number == number)
    row = tx.first(query)
    return None if row is None else _version(row)


def versions(tx: Transaction, name: str) -> list[DatasetVersion]:
    """All versions, oldest first."""
    table = dataset_versions
    query = select(table).where(table.c.dataset == name).order_by(table.c.number)
    return [_version(row) for row in tx.all(query)]


def add_version(tx: Transaction, version: DatasetVersion, owner: str) -> None:
    """Insert a version, the latest of its line; makes a new dataset, and takes a stated `owner`."""
    first = {
        "name": version.dataset,
        "owner": owner,
        "description": "",
        "created_at": version.created_at,
        "latest": 0,
    }
    tx.insert_new(datasets, first)
    latest: dict[str, Any] = {"latest": version.number} if version.branch == MAIN else {}
    if owner:
        latest["owner"] = owner
    if latest:
        tx.execute(datasets.update().where(datasets.c.name == version.dataset).values(latest))
    if version.branch != MAIN:
        line = dataset_branches
        is_it = (line.c.dataset == version.dataset) & (line.c.branch == version.branch)
        head = {"number": version.number, "updated_at": version.created_at}
        tx.execute(line.update().where(is_it).values(head))
    values = {name: getattr(version, name) for name in version.__struct_fields__}
    tx.execute(dataset_versions.insert().values(values))


def branches(tx: Transaction, name: str) -> list[DatasetBranch]:
    """The branches of a dataset beside the main line, by name."""
    table = dataset_branches
    query = select(table).where(table.c.dataset == name).order_by(table.c.branch)
    return [DatasetBranch(**row._asdict()) for row in tx.all(query)]


def find_branch(tx: Transaction, name: str, branch: str) -> DatasetBranch | None:
    """A branch beside the main line; None if there is none of this name."""
    table = dataset_branches
    row = tx.first(select(table).where(table.c.dataset == name, table.c.branch == branch))
    return None if row is None else DatasetBranch(**row._asdict())


def put_branch(tx: Transaction, branch: DatasetBranch) -> None:
    """Insert a branch."""
    values = {name: getattr(branch, name) for name in branch.__struct_fields__}
    tx.execute(dataset_branches.insert().values(values))


def drop_branch(tx: Transaction, name: str, branch: str) -> None:
    """Remove a branch; its versions stay."""
    table = dataset_branches
    tx.execute(delete(table).where(table.c.dataset == name, table.c.branch == branch))


def tags(tx: Transaction, name: str) -> list[DatasetTag]:
    """The tags of a dataset, by name."""
    table = dataset_tags
    query = select(table).where(table.c.dataset == name).order_by(table.c.tag)
    return [DatasetTag(**row._asdict()) for row in tx.all(query)]


def put_tag(tx: Transaction, tag: DatasetTag) -> None:
    """Make a tag, or move it."""
    values = {name: getattr(tag, name) for name in tag.__struct_fields__}
    tx.upsert(dataset_tags, values, ("dataset", "tag"))


def drop_tag(tx: Transaction, name: str, tag: str) -> None:
    """Remove a tag."""
    table = dataset_tags
    tx.execute(delete(table).where(table.c.dataset == name, table.c.tag == tag))


def add_objects(tx: Transaction, sizes: Iterable[tuple[str, int]]) -> None:
    """Record objects (digest, bytes) that the store holds; known ones stay as they are."""
    rows = [{"digest": digest, "size": size, "created_at": tx.now} for digest, size in sizes]
    tx.insert_missing(objects, rows)


def add_change(tx: Transaction, change: RowChangeSummary) -> None:
    """Append to the row ledger."""
    values = {name: getattr(change, name) for name in change.__struct_fields__}
    tx.execute(row_changes.insert().values(values))


def has_change(tx: Transaction, change: RowChangeSummary, *, scope: str = "") -> bool:
    """Whether the same rows stand in the ledger under the same rule, in `scope` if given."""
    table = row_changes
    query = select(table.c.pk).where(
        table.c.dataset == change.dataset,
        table.c.rule == change.rule,
        table.c.action == change.action,
        table.c.detail == change.detail,
    )
    if scope:
        query = query.where(table.c.scope == scope)
    return tx.first(query.limit(1)) is not None


def _version(row: Row[Any]) -> DatasetVersion:
    # Names come as a subclass of str, which msgspec does not take for a key.
    return msgspec.convert({str(k): v for k, v in row._asdict().items()}, DatasetVersion)
