"""Every object of versions held against its name; what is damaged is named with path and version.

Each object is read once, however many versions have it. Only where something is damaged are the
versions walked again, to say which of them it hits and where.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from everloop.core.dataset import Damage, DatasetVersion, Verified
from everloop.data.chunks import MAX
from everloop.data.tree import Change, changes, shown
from everloop.data.trees import contents
from everloop.errors import BackendError, EverloopError
from everloop.ports.blobs import BlobStore

__all__ = ["Checker", "objects_of_table", "places_of", "verify"]

#: Bytes of objects that are in memory together, about.
_AT_ONCE = 32 << 20
#: Bytes of the hash of a row.
_HASH = 16


def verify(blobs: BlobStore, versions: Sequence[DatasetVersion]) -> Verified:
    """Read all objects of `versions`."""
    checker = Checker(blobs)
    for version in versions:
        checker.check(objects_of_table(version))
        if version.root:
            checker.check(checker.tree(version.root))
    places = places_of(checker, versions) if checker.bad else {}
    damaged = [
        Damage(digest=digest, reason=checker.bad[digest], paths=tuple(found))
        for digest, found in sorted(places.items())
    ]
    return Verified(
        versions=len(versions), objects=checker.objects, size=checker.size, damaged=tuple(damaged)
    )


def places_of(checker: Checker, versions: Sequence[DatasetVersion]) -> dict[str, list[str]]:
    """By the digest of each damaged object the versions that it hits, with the path in each."""
    places: dict[str, list[str]] = {digest: [] for digest in checker.bad}
    if places:
        for version in versions:
            for digest, path in _hits(checker, version):
                places[digest].append(f"{version.ref}/{path}" if path else version.ref)
    return places


class Checker:
    """What was read so far.

    Attributes:
        bad: By the digest of a damaged object, why.
    """

    def __init__(self, blobs: BlobStore) -> None:
        self.objects = self.size = 0
        self.bad: dict[str, str] = {}
        self._blobs = blobs
        self._read: set[str] = set()

    def load(self, digests: Sequence[str]) -> list[bytes]:
        """Read objects; what is damaged or missing comes as nothing."""
        try:
            found = self._blobs.get_many(digests)
        except EverloopError:
            found = [self._one(digest) for digest in digests]
        for digest, data in zip(digests, found, strict=True):
            if digest not in self._read:
                self._read.add(digest)
                self.objects += 1
                self.size += len(data)
        return found

    def _one(self, digest: str) -> bytes:
        try:
            return self._blobs.get(digest)
        except EverloopError as error:
            self.bad[digest] = error.message
            return b""

    def check_one(self, digest: str) -> None:
        """Read an object by itself, which may be another copy than the one of many."""
        self._one(digest)

    def check(self, objects: Iterable[tuple[str, int]]) -> None:
        """Read those of the objects, given with their sizes, that were not read yet."""
        wanted: dict[str, None] = {}
        held = 0
        for digest, size in objects:
            if digest not in self._read and digest not in wanted:
                wanted[digest] = None
                held += size
            if held >= _AT_ONCE:
                self.load(list(wanted))
                wanted, held = {}, 0
        self.load(list(wanted))

    def tree(self, root: str) -> Iterator[tuple[str, int]]:
        """The objects of a directory that hold bytes, with sizes at most; others are read here."""
        known = self._read.__contains__  # a directory that was read is not walked again
        for change in changes(self.load, "", root, seen=known, lost=self._lose):
            assert change.new is not None
            size = change.new.size if change.new.kind in "fx" else MAX
            for digest in self._contents(change):
                yield digest, size

    def _lose(self, path: bytes, digest: str, error: BackendError) -> None:
        self.bad.setdefault(digest, error.message)

    def _contents(self, change: Change) -> Iterator[str]:
        try:
            yield from contents(self.load, change, set())
        except BackendError as error:  # a list of chunks
            digest = str(error.details["digest"])
            self.bad.setdefault(digest, error.message)
            yield digest

    def of_file(self, change: Change) -> set[str]:
        """The damaged ones of the objects at a path."""
        return self.bad.keys() & set(self._contents(change))


def objects_of_table(version: DatasetVersion) -> Iterator[tuple[str, int]]:
    """The objects of a table with their sizes: blocks, hashes of their rows, and the layout."""
    for block in version.blocks:
        yield block.digest, block.size
        if block.hashes:
            yield block.hashes, _HASH * block.rows
    if version.layout:
        yield version.layout, 0


def _hits(checker: Checker, version: DatasetVersion) -> Iterator[tuple[str, str]]:
    """Damaged objects of a version with the path of each."""
    yield from ((digest, "") for digest, _ in objects_of_table(version) if digest in checker.bad)
    if not version.root:
        return
    lost: list[tuple[str, str]] = []

    def lose(path: bytes, digest: str, _: BackendError) -> None:
        lost.append((digest, f"{shown(path)}/" if path else ""))

    for change in changes(checker.load, "", version.root, lost=lose):
        for digest in sorted(checker.of_file(change)):
            yield digest, shown(change.path)
    yield from lost
