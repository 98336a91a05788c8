"""Three versions of a directory made into one, by path."""

from __future__ import annotations

import os
from typing import Literal

from everloop.catalog.transaction import Transaction
from everloop.core.dataset import DatasetVersion, MergeConflict
from everloop.data.merge import Conflicts, Merged, Strategy, Three
from everloop.data.tree import Change, Entry, Load, changes, find
from everloop.data.tree_edit import edited
from everloop.data.trees import FilesDraft, publish_files
from everloop.errors import BackendError
from everloop.ports.blobs import BlobStore

__all__ = ["merged"]


class _Files:
    def __init__(self, draft: FilesDraft, conflicts: Conflicts) -> None:
        self.conflicts = conflicts
        self._draft = draft

    def publish(self, tx: Transaction, *, note: str, run_id: str) -> DatasetVersion | None:
        return publish_files(tx, self._draft, owner="", note=note, run_id=run_id, sources=())


def merged(blobs: BlobStore, three: Three, branch: str, strategy: Strategy) -> Merged:
    """Merge `three` to be a version of `branch`; its directories are stored.

    Raises:
        Conflict: If nothing decides what both lines changed.
    """
    base, ours, theirs = three
    load = blobs.get_many
    conflicts = Conflicts()
    mine = {change.path: change for change in changes(load, base.root, ours.root)}
    yours = {change.path: change for change in changes(load, base.root, theirs.root)}
    taken = {
        path: change.new
        for path, change in yours.items()
        if path not in mine and not _is_there(load, ours.root, change)
    }
    faults: list[MergeConflict] = []
    for path, change in yours.items():
        if path in mine and mine[path].new != change.new:
            faults.append(_conflict(path, change.old, mine[path].new, change.new))
            if strategy == "theirs":
                taken[path] = change.new
    for path, other in _within(mine, yours):
        faults.append(_conflict(path, None, mine[path].new, None, within=other))
        loser = path if strategy == "theirs" else other
        if strategy == "theirs":
            taken[loser] = None
        else:
            taken.pop(loser, None)
    if ours.kind == "file" and mine and yours and ours.root != theirs.root:
        # One file is one thing, whatever it is called on either line.
        faults = [_conflict(b"", None, None, None, whole=three)]
    conflicts.add(sorted(faults, key=lambda fault: fault.path))
    if strategy == "refuse":
        conflicts.refuse(three)
    root, size, files = _made(blobs, load, three, taken, strategy)
    counts = {"added": 0, "removed": 0, "changed": 0}
    for change in changes(load, ours.root, root):
        what = "added" if change.old is None else "removed" if change.new is None else "changed"
        counts[what] += 1
    kind: Literal["directory", "file"] = "file" if ours.kind == "file" else "directory"
    draft = FilesDraft(ours.dataset, kind, root, ours, counts, size, files, branch, theirs.number)
    return _Files(draft, conflicts)


def _made(
    blobs: BlobStore,
    load: Load,
    three: Three,
    taken: dict[bytes, Entry | None],
    strategy: Strategy,
) -> tuple[str, int, int]:
    base, ours, theirs = three
    if ours.kind == "file" or base.root == ours.root:
        one = ours if base.root == theirs.root or strategy == "ours" else theirs
        one = theirs if base.root == ours.root else one
        return one.root, one.size, one.files
    # What is removed goes first: a file may make way for a directory of its name.
    gone = edited(load, ours.root, {path: None for path, e in taken.items() if e is None})
    blobs.put_many(list(gone.objects.values()))
    made = edited(load, gone.digest, {path: e for path, e in taken.items() if e is not None})
    blobs.put_many(list(made.objects.values()))
    needed = [e.digest for e in taken.values() if e is not None and e.kind != "l"]
    if missing := blobs.keep_many(needed):
        raise BackendError(f"{theirs.ref} is damaged: {len(missing)} objects are missing")
    return made.digest, made.size, made.files


def _is_there(load: Load, root: str, change: Change) -> bool:
    """Whether an empty directory is a directory on the other line, which may have files in it."""
    if change.new is None or change.new.kind != "d":
        return False
    entry = find(load, root, change.path)
    return entry is not None and entry.kind == "d"


def _within(mine: dict[bytes, Change], yours: dict[bytes, Change]) -> list[tuple[bytes, bytes]]:
    """Paths that one line has as a file and the other as a directory with something in it."""
    found = []
    for upper, lower, is_mine in ((mine, yours, True), (yours, mine, False)):
        # A directory that is empty on one line may well have something in it on the other.
        files = {p for p, change in upper.items() if change.new and change.new.kind != "d"}
        for path, change in lower.items():
            if change.new is None:
                continue
            names = path.split(b"/")
            for depth in range(1, len(names)):
                above = b"/".join(names[:depth])
                if above in files:
                    found.append((above, path) if is_mine else (path, above))
    return found


def _conflict(
    path: bytes,
    base: Entry | None,
    ours: Entry | None,
    theirs: Entry | None,
    *,
    within: bytes = b"",
    whole: Three | None = None,
) -> MergeConflict:
    if whole is not None:
        roots = [version.root[:12] for version in whole]
        return MergeConflict(kind="file", base=roots[0], ours=roots[1], theirs=roots[2])
    said = [_said(entry) for entry in (base, ours, theirs)]
    if within:
        said[2] = f"the path {os.fsdecode(within)}"
    return MergeConflict(
        kind="file", path=os.fsdecode(path), base=said[0], ours=said[1], theirs=said[2]
    )


def _said(entry: Entry | None) -> str:
    if entry is None:
        return "no file"
    if entry.kind == "l":
        return f"a link to {os.fsdecode(entry.content)}"
    return "an empty directory" if entry.kind == "d" else entry.digest[:12]
