"""Erasure: a subject goes out of every version, and the versions stay.

First everything is sought and written anew beside what is there, without a lock. Then one
transaction names the new objects in the place of the old ones, says which objects are erased, and
how to go on. From then on the erasure is certain: what is left, to remove the old bytes and to
write the catalog's file anew, may be done again from its begin as often as it is broken off.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import msgspec
import numpy as np
from blake3 import blake3
from sqlalchemy import Row

from everloop.catalog import datasets as statements
from everloop.catalog import references, tables
from everloop.catalog.engine import Catalog
from everloop.catalog.transaction import Transaction
from everloop.core.dataset import Block, DatasetVersion
from everloop.core.erase import ErasedVersion, Erasure, ReplacedObject
from everloop.data.erase_catalog import (
    PLACES,
    Look,
    Place,
    looked,
    models_of,
    scrub_values,
    spoken_of,
    views_of,
)
from everloop.data.erase_places import (
    cut_file,
    is_in_result,
    is_in_rows,
    is_log,
    may_hold,
    seek_answers,
    seek_labels,
)
from everloop.data.erase_rows import Cut, cut_block, cut_hashes, cut_version, rows_of_block
from everloop.data.seek import Sought
from everloop.data.trees import reachable
from everloop.errors import NotFound
from everloop.ports.blobs import BlobStore

__all__ = ["Change", "Eraser"]

#: Bytes by which objects that may hold rows begin.
_HEADS = (b"PAR1", b"ARROW1")
#: Bytes that wait to be stored together.
_BYTES = 32 << 20
#: Kinds of objects of which one that is named elsewhere tells nothing of the subject.
_SHARED = ("layout", "result")


class Change(NamedTuple):
    """What an erasure did to the catalog.

    Attributes:
        objects: Digests of objects that are named nowhere any more and are to be removed.
        tables: Tables of the catalog that held values of the subject.
    """

    erasure: Erasure
    objects: list[str]
    tables: set[str]


class _New(NamedTuple):
    """What comes in the place of an object that a row of the catalog names.

    Attributes:
        values: Columns of that row.
        gone: Rows that went.
    """

    digest: str
    values: dict[str, Any]
    gone: int


class _Recorder:
    """A store that notes what is put; of a dry run nothing is stored, only named."""

    def __init__(self, blobs: BlobStore, *, dry_run: bool) -> None:
        self._blobs = blobs
        self._dry_run = dry_run
        self.sizes: dict[str, int] = {}

    def put(self, data: bytes) -> tuple[str, int]:
        stored = (blake3(data).hexdigest(), len(data)) if self._dry_run else self._blobs.put(data)
        self.sizes[stored[0]] = stored[1]
        return stored

    def put_many(self, data: Sequence[bytes]) -> None:
        if not self._dry_run:
            self._blobs.put_many(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._blobs, name)


class _Later:
    """Puts what is small all at once, as one wait for the disk is for all of them then."""

    def __init__(self, recorder: _Recorder) -> None:
        self._recorder = recorder
        self._waiting: list[bytes] = []
        self._held = 0
        self._lock = threading.Lock()

    def put(self, data: bytes) -> tuple[str, int]:
        stored = blake3(data).hexdigest(), len(data)
        with self._lock:
            self._recorder.sizes[stored[0]] = stored[1]
            self._waiting.append(data)
            self._held += len(data)
            if self._held >= _BYTES:
                self.flush()
        return stored

    def flush(self) -> None:
        """Store what waits."""
        self._recorder.put_many(self._waiting)
        self._waiting, self._held = [], 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._recorder, name)


class Eraser:
    """Finds a subject and takes it out.

    Args:
        dataset: Only versions and the ledger of this one; empty is all. Logs, results of steps and
            files of runs are always looked at.
        dry_run: Nothing is stored.
    """

    def __init__(
        self, catalog: Catalog, blobs: BlobStore, sought: Sought, dataset: str, *, dry_run: bool
    ) -> None:
        self._catalog = catalog
        self._source = blobs
        self._blobs: Any = _Recorder(blobs, dry_run=dry_run)
        self._later: Any = _Later(self._blobs)
        self._sought = sought
        self._dataset = dataset
        #: By the digest of each block that was sought in, the rows that are of the subject.
        self._rows: dict[str, np.ndarray] = {}
        self._cuts: dict[str, Cut] = {}
        self._hashes: dict[str, str] = {}
        self._versions: dict[tuple[str, str, tuple[Block, ...]], DatasetVersion] = {}
        self._logs: dict[tuple[str, str, int], _New | None] = {}
        #: What labels name the predictions by that are of the subject.
        self._requests: set[str] = set()
        self._telling: set[str] = set()
        self._tables: dict[str, bool] = {}
        self._memos: dict[tuple[str, str], bool] = {}

    def look(self) -> Look:
        """Seek in everything, and write anew what is hit."""
        with self._catalog.read() as tx:
            look = looked(tx, self._dataset)
        self.prepare(look)
        return look

    def prepare(self, look: Look) -> None:
        """Seek in what was not sought in yet, and write anew what is hit."""
        blocks = {block.digest: block for version in look.versions for block in version.blocks}
        self._seek_blocks([digest for digest in blocks if digest not in self._rows])
        hit = [b for d, b in blocks.items() if len(self._rows[d]) and d not in self._cuts]
        with ThreadPoolExecutor() as threads:  # Arrow and the disk work beside each other
            for block, cut in zip(hit, threads.map(self._cut, hit), strict=True):
                self._cuts[block.digest] = cut
            self._prepare_hashes(look)
            fresh = [version for version in look.versions if self._is_to_cut(version)]
            for version, made in zip(fresh, threads.map(self._cut_version, fresh), strict=True):
                self._versions[_ident(version)] = made
        self._later.flush()
        for place, row in _rows(look):
            at = self._at(place, row)
            if at not in self._logs:
                self._logs[at] = self._renewed(place.kind, row)
        for memo in look.memos:
            if memo[:2] not in self._memos:
                self._memos[memo[:2]] = self._is_of_memo(memo)

    def _at(self, place: Place, row: Row[Any]) -> tuple[str, str, int]:
        """What the content of an entry hangs on; of labels also on the predictions found so far."""
        many = len(self._requests) if place.kind == "labels" else 0
        return place.kind, getattr(row, place.digest), many

    def _hits(self, look: Look) -> Iterator[tuple[Place, Row[Any], _New]]:
        for place, row in _rows(look):
            if (found := self._logs[self._at(place, row)]) is not None:
                yield place, row, found

    def _seek_blocks(self, digests: list[str]) -> None:
        with ThreadPoolExecutor() as threads:
            found = threads.map(lambda d: rows_of_block(self._source, d, self._sought), digests)
            self._rows.update(zip(digests, found, strict=True))

    def _cut(self, block: Block) -> Cut:
        return cut_block(self._blobs, block, self._rows[block.digest])

    def _cut_version(self, version: DatasetVersion) -> DatasetVersion:
        return cut_version(self._later, version, self._cuts, self._hashes)

    def _is_to_cut(self, version: DatasetVersion) -> bool:
        hit = any(block.digest in self._cuts for block in version.blocks)
        return hit and _ident(version) not in self._versions

    def _prepare_hashes(self, look: Look) -> None:
        for version in look.versions:
            for block in version.blocks:
                is_hit = block.digest in self._cuts and block.hashes
                if is_hit and block.hashes not in self._hashes:
                    gone = self._rows[block.digest]
                    made = cut_hashes(self._later, block.hashes, block.rows, gone)
                    self._hashes[block.hashes] = made

    def _renewed(self, kind: str, row: Row[Any]) -> _New | None:
        try:
            if kind == "ledger":
                return self._ledger(row)
            data = self._source.get(row.digest)
        except NotFound:  # of long ago, and lost since
            return None
        if kind == "predictions":
            return self._segment(data)
        if kind == "artifact":
            return self._file(row, data)
        found = seek_labels(data, self._sought, self._requests)
        if found is None:
            return None
        values = {"digest": self._blobs.put(found[0])[0], "rows": row.rows - found[1]}
        return _New(values["digest"], values, found[1])

    def _ledger(self, row: Row[Any]) -> _New | None:
        gone = rows_of_block(self._source, row.detail, self._sought)
        if not len(gone):
            return None
        made = cut_block(self._blobs, Block(row.detail, row.rows, 0), gone).block
        return _New(made.digest, {"detail": made.digest, "rows": made.rows}, len(gone))

    def _segment(self, data: bytes) -> _New | None:
        found = seek_answers(data, self._sought)
        if found is None:
            return None
        self._requests |= found.requests
        ids = found.rows.column("id").to_pylist() or [""]
        digest = self._blobs.put(found.data)[0]
        values = {
            "digest": digest, "rows": found.rows.num_rows,
            "first_id": ids[0], "last_id": ids[-1],
        }  # fmt: skip
        return _New(digest, values, found.gone)

    def _file(self, row: Row[Any], data: bytes) -> _New | None:
        found = cut_file(row.path, data, self._sought)
        if found is None:
            if may_hold(data, self._sought):
                self._telling.add(row.digest)
            return None
        digest, size = self._blobs.put(found[0])
        return _New(digest, {"digest": digest, "size": size}, found[1])

    def _is_of_memo(self, memo: tuple[str, str, str, str]) -> bool:
        _, value, *others = memo
        texts = [*others, *_text_of(value, self._source)]
        return any(is_in_result(t, self._source, self._sought, self._tables) for t in texts)

    # What came of it

    def dry(self, look: Look) -> Change:
        """What it would do."""
        objects = self._objects(look, self.unnamed())
        with self._catalog.read() as tx:
            counts, changed = scrub_values(tx, self._sought, change=False)
            return self._change(tx, look, counts, changed, objects, set())

    def apply(self, tx: Transaction, look: Look, unnamed: list[str]) -> Change:
        """Let the catalog name the new objects; the look must be of the state that `tx` sees."""
        for version in look.versions:
            if (made := self._versions.get(_ident(version))) is not None:
                _update_version(tx, made)
        for place, row, found in self._hits(look):
            its = place.table.c[place.key] == getattr(row, place.key)
            tx.execute(place.table.update().where(its).values(found.values))
        for memo in look.memos:
            if self._memos[memo[:2]]:
                tx.execute(tables.memos.delete().where(tables.memos.c.key == memo[0]))
        counts, changed = scrub_values(tx, self._sought, change=True)
        objects = self._objects(look, unnamed)
        new = {o.after for o in objects if o.after}
        statements.add_objects(tx, sorted((d, self._blobs.sizes[d]) for d in new))
        still = self._still_named(tx, {o.before for o in objects})
        return self._change(tx, look, counts, changed, objects, still)

    def _still_named(self, tx: Transaction, digests: set[str]) -> set[str]:
        """Those that something still names that was not changed, such as a version of files."""
        found = references.find(tx)
        named = digests & found.digests
        seen: set[str] = set()
        for root in sorted(found.trees):
            named |= digests & set(reachable(self._source.get_many, root, seen))
        return named

    def unnamed(self) -> list[str]:
        """Objects with the subject that nothing names, as of a commit that failed."""
        with self._catalog.read() as tx:
            named = references.find(tx).digests
        found = []
        for digest in self._source.digests():
            is_new = digest in self._blobs.sizes  # what this erasure stored itself
            if is_new or digest in named or digest in self._rows or self._tables.get(digest):
                continue
            try:
                head = next(iter(self._source.stream(digest, 64)), b"")
                if head.startswith(_HEADS) and self._is_in_unnamed(digest):
                    found.append(digest)
            except NotFound:
                continue
        return found

    def _is_in_unnamed(self, digest: str) -> bool:
        if digest not in self._tables:
            data = self._source.get(digest)
            self._tables[digest] = is_in_rows(data, self._sought) or (
                is_log(data) and seek_answers(data, self._sought) is not None
            )
        return self._tables[digest]

    def _change(
        self,
        tx: Transaction,
        look: Look,
        counts: Counter[str],
        changed: set[str],
        objects: Sequence[ReplacedObject],
        still: set[str],
    ) -> Change:
        versions = [
            ErasedVersion(
                ref=v.ref, digest=v.digest, content=made.content, before=v.rows, after=made.rows
            )
            for v in look.versions
            if (made := self._versions.get(_ident(v))) is not None
        ]
        memos = [memo for memo in look.memos if self._memos[memo[:2]]]
        found = Counter(counts)
        if memos:
            found["results of steps"] = len(memos)
            changed = changed | {"memos"}
        # Of a dropped result some parts may belong to another one; two versions may share a layout.
        gone = [o for o in objects if o.before not in still]
        kept = sorted({o.before for o in objects if o.before in still and o.kind not in _SHARED})
        erasure = Erasure(
            rows=sum(o.rows for o in objects),
            versions=tuple(versions),
            objects=tuple(gone),
            counts=dict(sorted(found.items())),
            unreached=tuple(self._unreached(tx, look, kept)),
            models=tuple(models_of(tx, [f"dataset:{v.ref}" for v in versions])),
        )
        return Change(erasure, sorted({o.before for o in gone}), changed)

    def _objects(self, look: Look, unnamed: Sequence[str]) -> list[ReplacedObject]:
        found = [
            ReplacedObject(kind="block", before=digest, after=cut.block.digest, rows=len(cut.gone))
            for digest, cut in self._cuts.items()
        ]
        found += [
            ReplacedObject(kind="row hashes", before=before, after=after)
            for before, after in self._hashes.items()
        ]
        layouts = {}
        for version in look.versions:
            made = self._versions.get(_ident(version))
            if made is not None and version.layout and made.layout != version.layout:
                layouts[version.layout] = made.layout
        found += [ReplacedObject(kind="layout", before=b, after=a) for b, a in layouts.items()]
        found += [
            _replaced(place.kind, getattr(row, place.digest), new.digest, new.gone)
            for place, row, new in self._hits(look)
        ]
        dropped = [memo for memo in look.memos if self._memos[memo[:2]]]
        results: set[str] = set()
        for memo in dropped:
            for text in (memo[1], *_text_of(memo[1], self._source)):
                results.update(references.digests_in(text.encode()))
        held = {d for d in results if self._source.exists(d)}
        found += [_replaced("result", digest, "", 0) for digest in sorted(held)]
        found += [_replaced("unnamed", digest, "", 0) for digest in unnamed]
        return found

    def _unreached(self, tx: Transaction, look: Look, kept: list[str]) -> list[str]:
        told = list(spoken_of(tx, self._sought))
        files = [d.name for d in statements.all_datasets(tx) if _kind(tx, d.name) != "table"]
        if files and not self._dataset:
            told.append(f"files of {', '.join(files)}: directories and files are not looked into")
        told += views_of(tx, self._sought.columns)
        for row in look.logs["artifact"]:
            if row.digest in self._telling:
                told.append(f"file {row.path} has a text of the subject and is of no known form")
        if kept:
            shown = ", ".join(digest[:12] for digest in kept[:5])
            told.append(f"{len(kept)} objects stay as something else names them too: {shown}")
        return told


def _rows(look: Look) -> Iterator[tuple[Place, Row[Any]]]:
    for place in PLACES:
        for row in look.logs[place.kind]:
            yield place, row


def _ident(version: DatasetVersion) -> tuple[str, str, tuple[Block, ...]]:
    return version.ref, version.layout, version.blocks


def _replaced(kind: str, before: str, after: str, rows: int) -> ReplacedObject:
    return ReplacedObject(kind=kind, before=before, after=after, rows=rows)


def _kind(tx: Transaction, name: str) -> str:
    found = statements.find_version(tx, name)
    return found.kind if found else "table"


def _text_of(value: str, blobs: BlobStore) -> list[str]:
    """The text of a stored value: in the catalog, or in an object of its own."""
    meta = msgspec.json.decode(value).get("meta", {})
    if "text" in meta:
        return [meta["text"]]
    try:
        return [blobs.get(meta["text_object"]).decode()]
    except (KeyError, NotFound):
        return []


def _update_version(tx: Transaction, made: DatasetVersion) -> None:
    table = tables.dataset_versions
    its = (table.c.dataset == made.dataset, table.c.number == made.number)
    values = {name: getattr(made, name) for name in ("blocks", "layout", "rows", "content")}
    tx.execute(table.update().where(*its).values(values))
