"""MirrorData: datasets of another workspace, brought here when they are first asked for.

What is brought are blocks and files, by their digests, so that what is here already is not brought
again. The other workspace is only read; what is committed here stays here.
"""

from __future__ import annotations

import threading
from typing import Literal

import msgspec
import pyarrow as pa

from everloop.access.policy import Authorizer
from everloop.access.service import action
from everloop.catalog import datasets as statements
from everloop.catalog.engine import Catalog
from everloop.core.dataset import MAIN, DatasetVersion
from everloop.core.schema import Schema
from everloop.data.blocks import version_digest, write_blocks
from everloop.data.rows import read_rows
from everloop.data.sample import Sample, sampled
from everloop.data.service import DataService
from everloop.data.trees import copy_tree
from everloop.errors import NotFound
from everloop.ports.blobs import BlobStore

__all__ = ["MirrorData", "Origin"]


class Origin(msgspec.Struct, frozen=True):
    """The datasets of the other workspace, and its objects."""

    data: DataService
    blobs: BlobStore


class MirrorData(DataService):
    """Datasets of a workspace that mirrors another.

    The latest version there is looked up once in the life of this object, so that all of a run
    sees one state; what earlier ones committed here is not seen. Versions keep their numbers as
    long as nothing was committed here.

    Attributes:
        stated: The schemas that commits here have stated, by dataset.

    Args:
        origin: What is mirrored; None is an empty workspace.
        sample: What is kept of each table, also of those that are committed here; None is all.
    """

    area = "data"

    def __init__(
        self,
        catalog: Catalog,
        blobs: BlobStore,
        authorizer: Authorizer,
        origin: Origin | None,
        sample: Sample | None,
    ) -> None:
        super().__init__(catalog, blobs, authorizer)
        self._origin = origin
        self._sample = sample
        self._lock = threading.RLock()
        self._found: dict[str, DatasetVersion | None] = {}
        self._asked: dict[str, None] = {}
        self._made: set[str] = set()
        self.stated: dict[str, Schema] = {}

    @property
    def asked(self) -> dict[str, DatasetVersion]:
        """The latest versions there of what was read or committed here so far, by dataset."""
        with self._lock:
            found = {name: self._found.get(name) for name in self._asked}
            return {name: version for name, version in found.items() if version is not None}

    @action("dataset:read")
    def refresh(self) -> None:
        """Bring the latest of everything that is here: a worker process looks no further."""
        for dataset in self.datasets():
            self._bring_latest(dataset.name)

    @action("dataset:read", on="name")
    def owner_there(self, name: str) -> str:
        """Who answers for a dataset there; empty if nobody is named."""
        theirs = [] if self._origin is None else self._origin.data.datasets()
        return next((dataset.owner for dataset in theirs if dataset.name == name), "")

    @action("dataset:read", on="name")
    def version(self, name: str, number: int | None = None) -> DatasetVersion:
        """A version; the latest if `number` is None. Brought here if it is not here yet."""
        self._asked.setdefault(name)
        if number is None:
            if self._bring_latest(name) is None and name not in self._made:
                raise NotFound.named("dataset", name, self._names())
        else:
            with self._catalog.read() as tx:
                is_here = statements.find_version(tx, name, number) is not None
            if not is_here and self._origin is not None:
                self._take(self._origin.data.version(name, number), latest=False)
        return super().version(name, number)

    @action("dataset:read", on="ref")
    def find(self, ref: str) -> DatasetVersion:
        """The version that a text means; by tag or time it is the one that is meant there."""
        name, _, which = ref.partition("@")
        if which in ("", "latest"):
            return self.version(name)
        if which.isdecimal() or self._origin is None:
            return super().find(ref)
        return self.version(name, self._origin.data.find(ref).number)

    @action("dataset:write", on="name")
    def commit(
        self,
        name: str,
        rows: pa.Table,
        *,
        schema: Schema | None = None,
        mode: Literal["append", "replace"] = "append",
        owner: str = "",
        note: str = "",
        run_id: str = "",
        expect: int | None = None,
        sources: list[str] | None = None,
        branch: str = MAIN,
        on_duplicate: Literal["error", "last"] = "error",
    ) -> DatasetVersion:
        """Commit here, on top of the latest version there."""
        self._asked.setdefault(name)
        is_new = self._bring_latest(name) is None and name not in self._made
        if branch != MAIN:
            self._bring_branch(name, branch)
        if schema is not None:
            self.stated[name] = schema
        if self._sample is not None and isinstance(rows, pa.Table):
            rows = sampled(rows, schema or Schema(()), self._sample)
        made = super().commit(
            name,
            rows,
            schema=schema,
            mode="replace" if is_new else mode,
            owner=owner,
            note=note,
            run_id=run_id,
            expect=expect,
            sources=sources,
            branch=branch,
            on_duplicate=on_duplicate,
        )
        self._made.add(name)
        return made

    @action("dataset:write", on="name")
    def bring(self, name: str) -> None:
        """Have the latest version there here, for a commit of files on top of it."""
        self._asked.setdefault(name)
        self._bring_latest(name)
        self._made.add(name)

    def _names(self) -> list[str]:
        theirs = [] if self._origin is None else self._origin.data.datasets()
        return sorted({found.name for found in theirs} | self._made)

    def _bring_latest(self, name: str) -> DatasetVersion | None:
        """The latest version there, which is here then, or what was committed here on top."""
        with self._lock:
            if name in self._found:
                return self._found[name]
            found = None
            if self._origin is not None:
                try:
                    found = self._origin.data.version(name)
                except NotFound:  # it is made here, or asked for in vain
                    found = None
            if found is not None:
                self._take(found, latest=True)
            self._found[name] = found
            return found

    def _bring_branch(self, name: str, branch: str) -> None:
        with self._catalog.read() as tx:
            is_here = statements.find_branch(tx, name, branch) is not None
        if is_here or self._origin is None:
            return
        theirs = {line.branch: line for line in self._origin.data.branches(name)}
        if branch in theirs:
            head = self.version(name, theirs[branch].number)
            line = msgspec.structs.replace(theirs[branch], base=head.number)
            with self._catalog.write() as tx:
                statements.put_branch(tx, line)

    def _take(self, found: DatasetVersion, *, latest: bool) -> None:
        note = f"mirrored from {found.holds}" + (
            f", a sample of {self._sample.name}" if self._sample is not None else ""
        )
        with self._catalog.read() as tx:
            known = statements.find_version(tx, found.dataset)
        if latest and known is not None and known.note == note:
            return
        held, objects = self._bring_objects(found)
        with self._catalog.write() as tx:
            name = found.dataset
            known = statements.find_version(tx, name)
            newest = known.number if known is not None else 0
            number = found.number
            if latest and (number <= newest or statements.find_version(tx, name, number)):
                number = statements.last_number(tx, name) + 1
            made = msgspec.structs.replace(
                held,
                number=number,
                parent=0,
                merged=0,
                run_id="",
                note=note,
                created_at=tx.now,
            )
            statements.add_objects(tx, objects)
            statements.add_version(tx, made, "")
            body = {
                "dataset": made.dataset,
                "number": made.number,
                "rows": made.rows,
                "mode": "mirrored",
                "digest": made.digest,
                "run_id": "",
            }
            tx.append("dataset.VersionCommitted", f"dataset:{made.ref}", body)

    def _bring_objects(self, found: DatasetVersion) -> tuple[DatasetVersion, list[tuple[str, int]]]:
        """The version as it is held here, and its objects that the catalog is to know."""
        assert self._origin is not None
        theirs = self._origin.blobs
        if found.root:  # files are brought as they are, of a sample too
            copy_tree(found.root, theirs, self._blobs, set())
            return found, []
        if self._sample is not None:
            kept = sampled(read_rows(theirs, found, found.schema.names), found.schema, self._sample)
            blocks = tuple(block for block, _ in write_blocks(self._blobs, kept))
            held = msgspec.structs.replace(
                found,
                digest=version_digest(found.schema, blocks),
                blocks=blocks,
                layout="",
                rows=kept.num_rows,
            )
            return held, [(block.digest, block.size) for block in blocks]
        objects = [(block.digest, block.size) for block in found.blocks]
        for digest in (found.layout, *(block.hashes for block in found.blocks)):
            if digest:
                objects.append((digest, self._brought(digest)))
        for block in found.blocks:
            if not self._blobs.keep(block.digest):
                self._blobs.put(theirs.stream(block.digest))
        return found, objects

    def _brought(self, digest: str) -> int:
        """Have a small object here; its bytes."""
        assert self._origin is not None
        if self._blobs.keep(digest):
            return len(self._blobs.get(digest))
        return self._blobs.put(self._origin.blobs.stream(digest))[1]
