"""The object store as the doors see it: bytes with personal data in them are not for everybody.

Whoever knows a digest could else take the block of a dataset past every mask, by any of the doors
that serve objects: the objects themselves, artifacts, files of a directory or of a model that name
the digest. So it is the store that asks, and not each door. Programs that hold the catalog
themselves (no principal) pass.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from everloop.catalog.direct import Direct
from everloop.catalog.engine import Catalog
from everloop.core.context import current_principal
from everloop.core.dataset import Block
from everloop.core.personal import PersonalColumn
from everloop.core.schema import Schema
from everloop.data.privacy import ASIDE, Privacy, View
from everloop.data.terms import TAGGED
from everloop.ports.blobs import BlobStore, HasPaths

__all__ = ["Guard", "guarded"]

_EVENTS = "SELECT subject, kind FROM events WHERE seq > ? AND kind LIKE ? ORDER BY seq"
_LAST = "SELECT max(seq) FROM events"
_TAGGED = 'SELECT DISTINCT dataset FROM dataset_versions WHERE "schema" LIKE ? OR "schema" LIKE ?'
_BLOCKS = 'SELECT number, blocks, "schema" FROM dataset_versions WHERE dataset = ? AND number > ?'
_LEDGER = "SELECT pk, dataset, detail FROM row_changes WHERE pk > ?"


class Guard:
    """Knows which objects hold personal data of which dataset, and lets through who may see it.

    Args:
        catalog: Where the versions are.
        privacy: Decides who sees what.
    """

    def __init__(self, catalog: Catalog, privacy: Privacy) -> None:
        self._catalog = catalog
        self._privacy = privacy
        self._lock = threading.Lock()
        self._seq = -1
        self._pk = 0
        #: Of datasets with personal data, the highest number that was seen, and all fields.
        self._numbers: dict[str, int] = {}
        self._schemas: dict[str, Schema] = {}
        self._holders: dict[str, set[str]] = {}

    def check(self, digests: Iterable[str]) -> None:
        """Return if whoever asks may have these objects; it is kept in the access log.

        Raises:
            NotAllowed: If one of them holds personal data that they may not see.
        """
        if current_principal() is None:
            return
        holders = self._look()
        for dataset in {name for digest in digests for name in holders.get(digest, ())}:
            if not dataset:
                self._check_any()
                continue
            personal = self._privacy.personal(dataset, self._schemas.get(dataset, _NONE))
            masks = self._privacy.masks_for(dataset, personal) if personal else {}
            if masks:
                raise self._privacy.refused(dataset, sorted(masks), "the stored bytes")
            View(dataset, 0, personal, masks, self._privacy).log(personal, "blocks")

    def _check_any(self) -> None:
        """Rows of several datasets are for those who see all personal data, if there is any."""
        if self._schemas and self._privacy.masks_for("", _ANY):
            raise self._privacy.refused("several datasets", [], "rows that a step changed")

    def _look(self) -> dict[str, set[str]]:
        """Digest -> datasets of all objects that may hold personal data, as of now."""
        stated = self._privacy.terms().keys()
        with self._lock, self._catalog.direct(write=False) as tx:
            last = tx.run(_LAST).fetchone()[0] or 0
            if last != self._seq:
                names = set(stated - self._numbers.keys())
                if self._seq < 0:
                    patterns = ('%"pii":"_%', '%"mask":"_%')
                    names |= {row[0] for row in tx.run(_TAGGED, patterns).fetchall()}
                else:
                    names |= self._changed(tx)
                for name in names:
                    self._add(tx, name)
                    self._add(tx, name + ASIDE)
                for pk, dataset, detail in tx.run(_LEDGER, (self._pk,)).fetchall():
                    self._holders.setdefault(detail, set()).add(dataset)
                    self._pk = max(self._pk, pk)
                self._seq = last
            return self._holders

    def _changed(self, tx: Direct) -> set[str]:
        """Datasets with personal data of which something happened since the last look."""
        names: set[str] = set()
        for subject, kind in tx.run(_EVENTS, (self._seq, "dataset.%")).fetchall():
            name = subject.partition(":")[2].partition("@")[0]
            if kind == "dataset.SubjectErased":  # blocks and rows of the ledger are others now
                self._pk = 0
                names |= self._numbers.keys()
                self._numbers = dict.fromkeys(self._numbers, 0)
            elif kind == TAGGED or (subject.startswith("dataset:") and name in self._numbers):
                names.add(name.removesuffix(ASIDE))
        return names

    def _add(self, tx: Direct, name: str) -> None:
        """Take up the blocks of versions of a dataset that are new."""
        number = self._numbers.get(name, 0)
        for one, blocks, schema in tx.run(_BLOCKS, (name, number)).fetchall():
            number = max(number, one)
            known, fields = self._schemas.get(name, _NONE), msgspec.json.decode(schema, type=Schema)
            if known.fields != fields.fields:
                self._schemas[name] = _both(known, fields)
            for block in msgspec.json.decode(blocks, type=list[Block]):
                for digest in (block.digest, block.hashes):
                    self._holders.setdefault(digest, set()).add(name)
        self._holders.pop("", None)
        self._numbers[name] = number


_NONE = Schema(())
_ANY = {"": PersonalColumn("", "", "null")}


def _both(known: Schema, news: Schema) -> Schema:
    """The columns of all versions; one that was personal in any is so."""
    fields = {field.name: field for field in known.fields}
    for field in news.fields:
        before = fields.get(field.name)
        if before is None or not (before.pii or before.mask):
            fields[field.name] = field
    return Schema(tuple(fields.values()))


def guarded(store: BlobStore, guard: Guard) -> BlobStore:
    """The same store, with a look at who asks before bytes are given out.

    It is of the class of the store, so that what else a store can do, it can too, and both share
    all that they know.
    """
    before = _GuardedPaths if isinstance(store, HasPaths) else _Guarded
    kind: Any = type(f"Guarded{type(store).__name__}", (before, type(store)), {"_guard": guard})
    made: Any = kind.__new__(kind)
    made.__dict__ = store.__dict__
    return made  # type: ignore[no-any-return]


class _Guarded:
    """Before the methods of a store that give bytes out."""

    _guard: Guard

    def get(self, digest: str) -> bytes:
        self._guard.check([digest])
        return super().get(digest)  # type: ignore[misc,no-any-return]

    def get_many(self, digests: Sequence[str]) -> list[bytes]:
        self._guard.check(digests)
        return super().get_many(digests)  # type: ignore[misc,no-any-return]

    def stream(self, digest: str, chunk: int = 1 << 20) -> Iterator[bytes]:
        self._guard.check([digest])
        return super().stream(digest, chunk)  # type: ignore[misc,no-any-return]


class _GuardedPaths(_Guarded):
    def path(self, digest: str) -> Path:
        self._guard.check([digest])
        return super().path(digest)  # type: ignore[misc,no-any-return]
