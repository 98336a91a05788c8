"""Versions of directories and files where the catalog is: made, checked, walked down."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from everloop.catalog import datasets as statements
from everloop.catalog.edges import link_all
from everloop.catalog.transaction import Transaction
from everloop.core.context import current_actor
from everloop.core.dataset import MAIN, DatasetVersion
from everloop.core.lineage import external_ref
from everloop.core.schema import Schema
from everloop.data.chunks import chunks_of, parts_of
from everloop.data.tree import Change, Load, changes
from everloop.data.versions import link_before, tell_committed
from everloop.errors import BackendError
from everloop.ports.blobs import BlobStore

__all__ = ["FilesDraft", "contents", "copy_tree", "publish_files", "reachable", "unstored"]

#: Objects that are read at once, of at most 4 MB each; bytes that are put at once, about.
_AT_ONCE, _BYTES = 32, 32 << 20


def reachable(load: Load, root: str, seen: set[str]) -> Iterator[str]:
    """Every object that a directory is made of, but for those of directories in `seen`.

    Raises:
        NotFound: If an object that names others is missing.
        BackendError: If it is damaged.
    """
    nodes: list[str] = []

    def is_seen(digest: str) -> bool:
        if digest in seen:
            return True
        seen.add(digest)
        nodes.append(digest)
        return False

    for change in changes(load, "", root, seen=is_seen):
        yield from contents(load, change, seen)
    yield from nodes


def contents(load: Load, change: Change, seen: set[str]) -> Iterator[str]:
    """The objects that hold the bytes of what is new at a path."""
    entry = change.new
    if entry is None or entry.kind in "ld":
        return
    yield entry.digest
    if entry.kind in "FX" and entry.digest not in seen:
        seen.add(entry.digest)
        for part in parts_of(load, entry.digest):
            digest = part.content.hex()
            yield digest
            if digest not in seen:
                seen.add(digest)
                yield from (piece.content.hex() for piece in chunks_of(load, part))


def copy_tree(
    root: str, source: BlobStore, target: BlobStore, seen: set[str]
) -> tuple[int, int, int]:
    """Copy a directory from one store to another; what is there is kept and not read.

    Args:
        root: Its digest.
        source: Where it is.
        target: Where to.
        seen: Directories that were copied before; takes those of this one.

    Returns:
        Objects that it is made of, those that were copied, and their bytes.

    Raises:
        NotFound: If an object is missing in `source`.
        BackendError: If it is damaged there, or could not be stored.
    """
    waiting: list[bytes] = []
    count = news = size = held = 0
    found = iter(reachable(source.get_many, root, seen))
    while some := list(dict.fromkeys(itertools.islice(found, _AT_ONCE))):
        lacking = target.keep_many(some)
        data = source.get_many(lacking)
        count, news = count + len(some), news + len(lacking)
        waiting += data
        held += sum(map(len, data))
        if held >= _BYTES:
            target.put_many(waiting)
            waiting, size, held = [], size + held, 0
    target.put_many(waiting)
    return count, news, size + held


class _Missing(Exception):
    """Objects that a tree names and the store does not have."""


class FilesDraft(NamedTuple):
    """A directory on its way to a version.

    Attributes:
        base: The version that it was compared with; None if there was none.
        counts: Paths ``added``, ``removed`` and ``changed`` since then.
    """

    name: str
    kind: Literal["directory", "file"]
    root: str
    base: DatasetVersion | None
    counts: dict[str, int]
    size: int
    files: int
    branch: str = MAIN
    merged: int = 0


def unstored(blobs: BlobStore, base: str, root: str) -> tuple[list[str], dict[str, int]]:
    """Objects that `root` has beyond `base` and the store does not; how many paths differ.

    Those that are there are kept, so that none goes before the version is made.

    Raises:
        BackendError: If an object is none of a directory, or names what none can hold.
    """
    if base:
        try:
            missing, counts = _unstored(blobs, base, root)
        except BackendError:
            missing = [base]
        if not missing:
            return missing, counts
    # Or it is the base that is not whole: then everything is looked at.
    return _unstored(blobs, "", root)


def _unstored(blobs: BlobStore, base: str, root: str) -> tuple[list[str], dict[str, int]]:
    counts = {"added": 0, "removed": 0, "changed": 0}

    def load(digests: Sequence[str]) -> list[bytes]:
        missing = blobs.keep_many(digests)
        if missing:
            raise _Missing(missing)
        return blobs.get_many(digests)

    wanted: dict[str, None] = {}
    seen: set[str] = set()
    try:
        for change in changes(load, base, root):
            if change.new is not None and change.new.kind in "fx":  # as most are
                wanted[change.new.digest] = None
            else:
                wanted.update(dict.fromkeys(contents(load, change, seen)))
            what = "added" if change.old is None else "removed" if change.new is None else "changed"
            counts[what] += 1
    except _Missing as missing:
        return missing.args[0], counts
    return blobs.keep_many(list(wanted)), counts


def publish_files(
    tx: Transaction,
    draft: FilesDraft,
    *,
    owner: str,
    note: str,
    run_id: str,
    sources: Iterable[str],
) -> DatasetVersion | None:
    """Make a version of a draft; None if its base is no longer the latest one."""
    latest, base = statements.find_version(tx, draft.name, branch=draft.branch), draft.base
    if (latest.number if latest else 0) != (base.number if base else 0):
        return None
    refs = [external_ref(source) for source in sources]
    if base is not None and not draft.merged and base.root == draft.root:
        link_all(tx, refs, f"dataset:{base.ref}", "read")
        return base
    version = DatasetVersion(
        dataset=draft.name,
        number=statements.last_number(tx, draft.name) + 1,
        kind=draft.kind,
        digest=draft.root,
        schema=Schema(()),
        blocks=(),
        rows=0,
        parent=base.number if base else 0,
        run_id=run_id,
        author=current_actor() or tx.actor,
        note=note,
        root=draft.root,
        files=draft.files,
        size=draft.size,
        branch=draft.branch,
        merged=draft.merged,
        created_at=tx.now,
    )
    statements.add_version(tx, version, owner)
    subject = f"dataset:{version.ref}"
    link_all(tx, refs, subject, "read")
    link_before(tx, version, base, "replaced")
    body = {
        "dataset": version.dataset,
        "number": version.number,
        "kind": version.kind,
        "files": version.files,
        "size": version.size,
        **draft.counts,
        "mode": "merge" if version.merged else "replace",
        "run_id": run_id,
        "digest": version.digest,
    }
    tell_committed(tx, version, body)
    return version
