"""The whole store held against the catalog, and mended as far as there is something to mend it by.

Each object is read once. What is damaged is moved out of the way, so that it can be stored again:
from another copy in this store or in another one, or made anew from what it was made of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Column, Row, Select, Table, Text, select, type_coerce

from everloop.catalog import datasets as statements
from everloop.catalog import references, tables
from everloop.catalog.engine import Catalog
from everloop.catalog.transaction import Transaction
from everloop.catalog.types import Json
from everloop.core.dataset import DatasetVersion
from everloop.core.fsck import BadObject, Checked
from everloop.data.blocks import read_block
from everloop.data.erase_catalog import models_of
from everloop.data.rowhash import row_hashes
from everloop.data.rows import store_hashes
from everloop.data.verify import Checker, objects_of_table, places_of
from everloop.errors import EverloopError
from everloop.ports.blobs import BlobStore, CanRepair

__all__ = ["fsck"]

#: How rows of a table are called; others by the table and its key.
_CALLED = {
    "model_versions": "model {name}/{version}",
    "artifacts": "file {path}",
    "runs": "run {id}",
    "packages": "package {name}",
    "prediction_segments": "predictions {id} of {deployment}",
    "label_batches": "labels {id} of {deployment}",
    "row_changes": "ledger of {scope}, rule {rule}",
    "memos": "result of step {step}",
}
#: Parts of parts: a repaired directory may name what is damaged as well.
_ROUNDS = 20


def fsck(
    catalog: Catalog,
    blobs: BlobStore,
    *,
    read_data: bool,
    repair: bool,
    others: Sequence[BlobStore] = (),
) -> Checked:
    """Check every object that the catalog names, and with `read_data` every one that is there.

    Args:
        read_data: Hold the bytes against the names; else only look whether objects are there.
        repair: Mend what can be mended, and move what cannot be out of the way.
        others: Stores to take objects from.
    """
    packs = _packs(blobs, repair=repair)
    found: dict[str, BadObject] = {}
    for _ in range(_ROUNDS):
        with catalog.read() as tx:
            versions = [v for name in statements.names(tx) for v in statements.versions(tx, name)]
            checker = _checked(tx, blobs, versions, read_data=read_data)
            places = _places(tx, versions, checker)
        fresh = [digest for digest in sorted(checker.bad) if digest not in found]
        mended = _mend(blobs, others, versions, fresh) if repair else {}
        for digest in fresh:
            found[digest] = BadObject(
                digest=digest,
                reason=checker.bad[digest],
                places=tuple(places[digest]),
                rows=_rows(versions, digest),
                repaired=mended.get(digest, ""),
            )
        if not mended:
            break
    with catalog.read() as tx:
        lost = [p for bad in found.values() if not bad.repaired for p in bad.places]
        models = _models(tx, lost)
    return Checked(
        read_data=read_data,
        versions=len(versions),
        objects=checker.objects,
        size=checker.size,
        damaged=tuple(found.values()),
        packs=tuple(packs),
        models=tuple(models),
    )


def _packs(blobs: BlobStore, *, repair: bool) -> list[str]:
    if not isinstance(blobs, CanRepair):
        return []
    if not repair:
        return [f"{name}: its list of objects is damaged" for name in blobs.damaged_packs()]
    return [
        f"{name}: its list was damaged; {count} objects were found in it and stored anew"
        for name, count in blobs.salvage().items()
    ]


def _checked(
    tx: Transaction, blobs: BlobStore, versions: Sequence[DatasetVersion], *, read_data: bool
) -> Checker:
    checker = Checker(blobs)
    there = set(blobs.digests())
    wanted = {digest for version in versions for digest, _ in objects_of_table(version)}
    listed = {row.digest for row in tx.all(select(tables.objects.c.digest))}
    for name in references.OBJECT_COLUMNS - {"dataset_versions.root"}:
        column = _column(name)
        wanted.update(row[0] for row in tx.all(select(column).where(column != "").distinct()))
    # What a JSON text names is an object only if it was stored once.
    wanted |= references.find(tx).digests & (listed | there)
    for version in versions:
        if version.root:
            wanted.update(digest for digest, _ in checker.tree(version.root))
    if read_data:
        checker.check((digest, 1 << 20) for digest in sorted(wanted | there))
        for digest in blobs.doubled() if isinstance(blobs, CanRepair) else ():
            checker.check_one(digest)
    for digest in sorted(wanted - there - checker.bad.keys()):
        checker.bad[digest] = f"no object {digest}"
    return checker


def _column(name: str) -> Column[str]:
    table, _, column = name.partition(".")
    found: Column[str] = tables.metadata.tables[table].columns[column]
    return found


# Where it is


def _places(
    tx: Transaction, versions: Sequence[DatasetVersion], checker: Checker
) -> dict[str, list[str]]:
    """What each damaged object is a part of."""
    found = places_of(checker, versions)
    for digest in checker.bad:
        for table in tables.metadata.sorted_tables:
            if table.name in ("objects", "events", "dataset_versions", "erased_objects"):
                continue
            for column in table.columns:
                name = f"{table.name}.{column.name}"
                if name in references.OBJECT_COLUMNS:
                    hit = column == digest
                elif isinstance(column.type, Json) and name not in references.UNSEARCHED_JSON:
                    hit = type_coerce(column, Text).contains(digest, autoescape=True)
                else:
                    continue
                found[digest] += [_called(table.name, row) for row in tx.all(_keys(table, hit))]
    return found


def _keys(table: Table, hit: Any) -> Select[Any]:
    called = _CALLED.get(table.name, "")
    named = [c for c in table.columns if c.primary_key or f"{{{c.name}}}" in called]
    return select(*named).where(hit).order_by(*named).distinct()


def _called(table: str, row: Row[Any]) -> str:
    values = {str(name): value for name, value in row._asdict().items()}
    if table in _CALLED:
        return _CALLED[table].format(**values)
    return f"{table} {' '.join(str(value) for value in values.values())}"


def _rows(versions: Sequence[DatasetVersion], digest: str) -> int:
    blocks = (block for version in versions for block in version.blocks)
    return next((block.rows for block in blocks if block.digest == digest), 0)


def _models(tx: Transaction, places: Sequence[str]) -> list[str]:
    direct = {p.removeprefix("model ") for p in places if p.startswith("model ")}
    refs = {place.partition("/")[0] for place in places if "@" in place and " " not in place}
    return sorted(direct | set(models_of(tx, [f"dataset:{ref}" for ref in refs])))


# Mending


def _mend(
    blobs: BlobStore,
    others: Sequence[BlobStore],
    versions: Sequence[DatasetVersion],
    digests: Sequence[str],
) -> dict[str, str]:
    """How each object was repaired that could be; blocks first, as row hashes are made of them."""
    hashes = {b.hashes: (v, b) for v in versions for b in v.blocks if b.hashes}
    mended: dict[str, str] = {}
    for digest in sorted(digests, key=lambda one: one in hashes):
        if isinstance(blobs, CanRepair):
            blobs.quarantine(digest)
        if how := next(_ways(blobs, others, digest), ""):
            mended[digest] = how
        elif digest in hashes:
            version, block = hashes[digest]
            try:
                rows = read_block(blobs, block, version.schema, version.schema.names)
                made, _ = store_hashes(blobs, row_hashes(rows))
            except (EverloopError, OSError):  # the block is damaged too
                continue
            if made == digest:
                mended[digest] = f"made anew from block {block.digest[:12]}"
    return mended


def _ways(blobs: BlobStore, others: Sequence[BlobStore], digest: str) -> Iterator[str]:
    """How the object could be had again; done when it is taken."""
    if _is_whole(blobs, digest):
        yield "from another copy in this store"
    for other in others:
        if _is_whole(other, digest):
            blobs.put(other.get(digest))
            yield "from the other workspace"


def _is_whole(blobs: BlobStore, digest: str) -> bool:
    try:
        blobs.get(digest)
    except EverloopError:
        return False
    return True
