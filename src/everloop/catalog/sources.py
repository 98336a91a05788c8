"""Statements of data sources, of the files that they read, and of pulls."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import delete, select, update

from everloop.catalog.tables import data_pulls, data_sources, source_files
from everloop.catalog.transaction import Transaction
from everloop.core.source import DataSource, Pull, SourceFile, SourceState

__all__ = [
    "Known",
    "add_pull",
    "advance",
    "all_sources",
    "drop_source",
    "find_source",
    "forget",
    "pulls",
    "put_source",
    "state_of",
]


class Known(NamedTuple):
    """A source as the catalog has it."""

    spec: DataSource
    generation: int
    watermark: str


def find_source(tx: Transaction, name: str) -> Known | None:
    """The source of a dataset; None if there is none."""
    row = tx.first(select(data_sources).where(data_sources.c.dataset == name))
    if row is None:
        return None
    return Known(msgspec.convert(row.spec, DataSource), row.generation, row.watermark)


def all_sources(tx: Transaction) -> list[DataSource]:
    """All sources, by dataset."""
    rows = tx.all(select(data_sources.c.spec).order_by(data_sources.c.dataset))
    return [msgspec.convert(row.spec, DataSource) for row in rows]


def put_source(tx: Transaction, source: DataSource, actor: str) -> None:
    """Declare a source, or change what one says; how far it was read stays."""
    first = {
        "dataset": source.dataset,
        "spec": source,
        "generation": 0,
        "watermark": "",
        "actor": actor,
        "created_at": tx.now,
        "updated_at": tx.now,
    }
    if tx.insert_new(data_sources, first) is None:
        values = {"spec": source, "actor": actor, "updated_at": tx.now}
        tx.execute(_of(update(data_sources), source.dataset).values(values))


def drop_source(tx: Transaction, name: str) -> None:
    """Remove a source with all that is known of its files."""
    tx.execute(delete(source_files).where(source_files.c.dataset == name))
    tx.execute(_of(delete(data_sources), name))


def forget(tx: Transaction, name: str) -> None:
    """Forget how far a source was read; a pull that is on its way gives up."""
    tx.execute(delete(source_files).where(source_files.c.dataset == name))
    values = {"generation": data_sources.c.generation + 1, "watermark": ""}
    tx.execute(_of(update(data_sources), name).values(values))


def state_of(tx: Transaction, name: str, known: Known) -> SourceState:
    """How far a source was read, with all its files."""
    query = select(source_files).where(source_files.c.dataset == name)
    files = []
    for row in tx.all(query.order_by(source_files.c.path)):
        values: dict[str, Any] = row._asdict()
        del values["dataset"]
        files.append(SourceFile(**values))
    return SourceState(generation=known.generation, watermark=known.watermark, files=tuple(files))


def advance(
    tx: Transaction, name: str, watermark: str, files: Iterable[SourceFile], gone: Iterable[str]
) -> None:
    """Note how far a source was read."""
    values = {
        "generation": data_sources.c.generation + 1,
        "watermark": watermark,
        "updated_at": tx.now,
    }
    tx.execute(_of(update(data_sources), name).values(values))
    rows = [{"dataset": name, **msgspec.structs.asdict(file)} for file in files]
    tx.upsert(source_files, rows, ["dataset", "path"])
    lost = list(gone)
    for start in range(0, len(lost), 500):
        chosen = source_files.c.path.in_(lost[start : start + 500])
        tx.execute(delete(source_files).where(source_files.c.dataset == name, chosen))


def add_pull(tx: Transaction, pull: Pull) -> None:
    """Record a pull."""
    row = {
        "dataset": pull.dataset,
        "number": pull.number,
        "is_new": pull.is_new,
        "pull": pull,
        "run_id": pull.run_id,
        "actor": pull.actor,
        "at": pull.at,
    }
    tx.execute(data_pulls.insert().values(row))


def pulls(tx: Transaction, name: str, number: int | None, limit: int) -> list[Pull]:
    """Pulls into a dataset, newest first; those of one version if `number` is given."""
    query = select(data_pulls.c.pull).where(data_pulls.c.dataset == name)
    if number is not None:
        query = query.where(data_pulls.c.number == number)
    rows = tx.all(query.order_by(data_pulls.c.pk.desc()).limit(limit))
    return [msgspec.convert(row.pull, Pull) for row in rows]


def _of(statement: Any, name: str) -> Any:
    return statement.where(data_sources.c.dataset == name)
