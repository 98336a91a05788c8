"""Directories and files as versions of a dataset, from the side of who has them: add, look, get.

The bytes go from this machine straight to the object store; the catalog hears of the root alone.
"""

from __future__ import annotations

import gc
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

from everloop.core.dataset import MAIN, DatasetVersion, FileChange
from everloop.data.checkout import Local, Written, write_out
from everloop.data.chunks import ChunkedFile, stream
from everloop.data.file_service import FileService
from everloop.data.scan import Storing, scan
from everloop.data.stamps import Stamps
from everloop.data.tree import Change, Entry, Load, changes, find, listed
from everloop.errors import BackendError, InvalidInput, NotFound
from everloop.ports.blobs import BlobStore

__all__ = ["Files", "Home", "add", "checkout", "difference", "files_of", "open_files", "status"]

#: As many links as one path may lead through.
_LINKS = 40
#: Large files are opened with a buffer of one chunk, as a rule.
_BUFFER = 128 << 10


class Home(Protocol):
    """What is needed of a workspace."""

    @property
    def files(self) -> FileService:
        """Versions of files."""
        ...

    @property
    def blobs(self) -> BlobStore:
        """The object store."""
        ...

    @property
    def folder(self) -> Path:
        """Where the workspace keeps what is of this machine."""
        ...


def add(
    home: Home,
    name: str,
    path: str | os.PathLike[str],
    *,
    owner: str = "",
    note: str = "",
    sources: Iterable[str] = (),
    branch: str = MAIN,
) -> DatasetVersion:
    """Make a version of the directory or file at `path`; equal content makes none.

    What did not change since the last time is neither read nor stored. It becomes the latest of
    `branch`.

    Raises:
        InvalidInput: With everything in it that cannot be stored; no version is made then.
        NotFound: If there is nothing at `path`.
        Conflict: If the dataset is of another kind.
        BackendError: If bytes could not be stored.
    """
    root = _real(path)
    kind: Literal["directory", "file"] = "directory" if os.path.isdir(root) else "file"

    def once(*, trust: bool) -> DatasetVersion:
        with _uncollected(), _storing(home.blobs.put_many) as storing:
            found = scan(root, _stamps(home), storing, trust=trust, never=_self(home))
            if found.faults:
                storing.put(found.rest).result()
                found.remember(stored=True)
                raise InvalidInput(
                    f"{len(found.faults)} paths of {os.fspath(path)} cannot be stored",
                    found.faults,
                    hint="mend or move them, then add again: what was read is not read again",
                )
            storing.put([*found.rest, *found.objects.values()]).result()
            found.remember(stored=True, whole=True)
            return home.files.commit(
                name,
                found.made.digest,
                kind=kind,
                owner=owner,
                note=note,
                sources=list(sources),
                branch=branch,
            )

    try:
        return once(trust=True)
    except NotFound as error:
        if "missing" not in error.details:
            raise
        # Files were known here and not in the store, which lost them or is another one.
        return once(trust=False)


def status(
    home: Home, path: str | os.PathLike[str], name: str, number: int | None = None
) -> list[FileChange]:
    """What a directory or file has that a version has not, and the reverse; by path.

    Raises:
        InvalidInput: With everything in it that no version can hold.
        NotFound: If there is no such path, dataset or version.
    """
    version = _version(home, name, number)
    root = _real(path)
    with _uncollected(), _storing(None) as storing:
        found = scan(root, _stamps(home), storing, never=_self(home))
        found.remember()
    if found.faults:
        raise InvalidInput(f"{len(found.faults)} paths cannot be stored", found.faults)
    if found.made.digest == version.root:
        return []
    load = found.load_with(home.blobs.get_many)
    with _named(version.ref):
        return _told(changes(load, version.root, found.made.digest))


def difference(home: Home, name: str, old: int, new: int) -> list[FileChange]:
    """The paths at which two versions differ; what they share is not read."""
    before, after = _version(home, name, old), _version(home, name, new)
    with _named(f"{before.ref} or {after.ref}"):
        return _told(changes(home.blobs.get_many, before.root, after.root))


def checkout(
    home: Home,
    name: str,
    number: int | None,
    to: str | os.PathLike[str],
    *,
    force: bool = False,
) -> Written:
    """Write a version to the directory `to`, as :meth:`Files.checkout` does."""
    return files_of(home, name, number).checkout(to, force=force)


def files_of(home: Home, name: str, number: int | None = None) -> Files:
    """The files of a version, the latest if `number` is None; InvalidInput for a table."""
    return open_files(home, _version(home, name, number))


def open_files(home: Home, version: DatasetVersion) -> Files:
    """The files of a version."""

    def roots() -> list[str]:
        found = home.files.versions(version.dataset)
        return [one.root for one in reversed(found)]

    source = (version.dataset, version.number, version.digest)
    return Files(
        home.blobs.get_many,
        version.root,
        version.kind,
        sources=[source],
        roots=roots,
        stamps=_stamps(home),
        never=_self(home),
    )


class Files(Mapping[str, bytes]):
    """The files of a directory version, read-only: paths and, by each, its bytes.

    Paths have ``/`` between names; names that are no UTF-8 are as Python's file names are. Bytes
    are read when they are asked for, and held against their digests.

    Attributes:
        digest: Of the content; equal for equal files.
        sources: The version: name, number, digest.
        kind: ``directory`` or ``file``.
    """

    #: What rules did to rows; files have none.
    changes = ()

    def __init__(
        self,
        load: Load,
        digest: str,
        kind: str,
        *,
        sources: Iterable[Sequence[Any]] = (),
        roots: Callable[[], list[str]] = list,
        stamps: Stamps | None = None,
        never: tuple[int, int] | None = None,
    ) -> None:
        self.digest = digest
        self.kind = kind
        self.sources = tuple((str(n), int(v), str(d)) for n, v, d in sources)
        self._load = load
        self._roots = roots
        self._stamps = stamps or Stamps(None)
        self._never = never
        self._paths: dict[str, Entry] | None = None

    @property
    def ref(self) -> str:
        """``name@number``, or the digest if it came from no version."""
        return "{}@{}".format(*self.sources[0]) if self.sources else self.digest[:16]

    @property
    def paths(self) -> list[str]:
        """Of all files and links, sorted by their bytes."""
        return list(self._entries())

    def _entries(self) -> dict[str, Entry]:
        if self._paths is None:
            with _named(self.ref):
                found = list(changes(self._load, "", self.digest))
            entries = [(c.path, c.new) for c in found if c.new is not None and c.new.kind != "d"]
            self._paths = {os.fsdecode(path): entry for path, entry in sorted(entries)}
        return self._paths

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries())

    def __len__(self) -> int:
        return len(self._entries())

    def __contains__(self, path: object) -> bool:
        return isinstance(path, str) and path in self._entries()

    def __getitem__(self, path: str) -> bytes:
        return self.read_bytes(path)

    def folder(self, path: str = "") -> list[tuple[str, str, int]]:
        """What is in one directory: path, kind (``file``, ``link``, ``directory``) and bytes.

        Raises:
            NotFound: If there is no such directory.
        """
        here = os.fsencode(path.strip("/"))
        with _named(self.ref, path):
            entry = find(self._load, self.digest, here) if here else None
            if here and (entry is None or entry.kind != "d"):
                raise NotFound(f"no directory {path!r} in {self.ref}")
            found = listed(self._load, entry.digest if entry else self.digest, here)
        prefix = here + b"/" if here else b""
        kinds = {"d": "directory", "l": "link"}
        return [
            (os.fsdecode(prefix + item.name), kinds.get(item.kind, "file"), item.size)
            for item in found
        ]

    def open(self, path: str) -> BinaryIO:
        """A file to read from, at any place; a link leads to what it points to.

        Raises:
            NotFound: If there is no such file; with near names.
            BackendError: If the store is damaged, here or when it is read.
        """
        entry = self.entry(path)
        with _named(self.ref, path):
            if entry.kind in "fx":
                return io.BytesIO(self._load([entry.digest])[0])
            raw = _Named(self._load, entry.digest, f"{self.ref}/{path}")
            return io.BufferedReader(raw, _BUFFER)

    def read_bytes(self, path: str) -> bytes:
        """All bytes of a file; raises as `open`."""
        entry = self.entry(path)
        with _named(self.ref, path):
            if entry.kind in "fx":
                return self._load([entry.digest])[0]
            return b"".join(stream(self._load, entry.digest))

    def checkout(self, to: str | os.PathLike[str], *, force: bool = False) -> Written:
        """Make the directory `to` these files; writes only what differs.

        Local files that no version has stay where nothing of this one is in their place.

        Args:
            to: Made if it is not there.
            force: Replace local changes.

        Raises:
            Conflict: If local changes are in the way: all of them; nothing is written then.
            BackendError: If the store is damaged or the disk fails.
        """
        target = os.path.realpath(os.fsencode(to))
        if os.path.lexists(target) and not os.path.isdir(target):
            raise InvalidInput(f"{os.fspath(to)} is a file", hint="check out to a directory")
        seen = target
        if self.kind == "file":
            with _named(self.ref):
                [only] = listed(self._load, self.digest)
            seen = target + b"/" + only.name
        local = Local("", self._load)
        if os.path.lexists(seen):
            with _storing(None) as storing:
                found = scan(seen, self._stamps, storing, lenient=True, never=self._never)
            found.remember()
            local = Local(found.made.digest, found.load_with(self._load))
        roots = [self.digest, *self._roots()]
        with _uncollected(), _named(self.ref):
            return write_out(local, self.digest, target, known=lambda: roots, force=force)

    def entry(self, path: str) -> Entry:
        """What stands at a path, or where a link there leads; raises NotFound if it is no file."""
        names = os.fsencode(path.strip("/")).split(b"/")
        with _named(self.ref, path):
            for _ in range(_LINKS):
                names = self._resolved(names)
                entry = find(self._load, self.digest, b"/".join(names)) if names else None
                if entry is None or entry.kind == "d":
                    break
                if entry.kind != "l":
                    return entry
                names = [*names[:-1], *entry.content.split(b"/")]
        raise NotFound.named(f"file of {self.ref}", path, self._entries())

    def _resolved(self, names: list[bytes]) -> list[bytes]:
        found: list[bytes] = []
        for name in names:
            if name == b"..":
                found = found[:-1]
            elif name not in (b"", b"."):
                found.append(name)
        return found

    def __repr__(self) -> str:
        return f"Files({self.ref})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Files) and other.digest == self.digest

    def __hash__(self) -> int:
        return hash(self.digest)


class _Named(ChunkedFile):
    """A file in chunks whose damage is told by its path."""

    def __init__(self, load: Load, digest: str, where: str) -> None:
        self._where = where
        super().__init__(load, digest)

    def readinto(self, target: Any) -> int:
        with _named(self._where):
            return super().readinto(target)


@contextmanager
def _named(ref: str, path: str = "") -> Iterator[None]:
    """What the store cannot give is told by version and path."""
    try:
        yield
    except BackendError as error:
        raise _damaged(ref, path, error) from error
    except NotFound as error:
        if not error.message.startswith("no object"):
            raise
        raise _damaged(ref, path, error) from error


def _damaged(ref: str, path: str, error: BackendError | NotFound) -> BackendError:
    where = f"{ref}/{path}" if path else ref
    return BackendError(
        f"{where} cannot be read: {error.message}",
        hint=error.hint or "everloop fsck --read-data tells which versions are hit",
        details=error.details,
    )


def _told(found: Iterable[Change]) -> list[FileChange]:
    told = []
    for change in sorted(found, key=lambda change: change.path):
        old, new = change.old, change.new
        what = "added" if old is None else "removed" if new is None else "changed"
        end = "/" if "d" in (getattr(old, "kind", ""), getattr(new, "kind", "")) else ""
        path = os.fsdecode(change.path) + end
        told.append(
            FileChange(path, what, old.size if old else None, new.size if new else None)  # type: ignore[arg-type]
        )
    return told


def _version(home: Home, name: str, number: int | None) -> DatasetVersion:
    version: DatasetVersion = home.files.version(name, number)
    if version.kind == "table":
        raise InvalidInput(
            f"{version.ref} is a table, not files", hint=f"everloop data show {name}"
        )
    return version


def _real(path: str | os.PathLike[str]) -> bytes:
    found = os.path.realpath(os.fsencode(path))
    if not os.path.lexists(found):
        raise NotFound(f"there is nothing at {os.fspath(path)}")
    return found


def _stamps(home: Home) -> Stamps:
    return Stamps(home.folder / "cache")


def _self(home: Home) -> tuple[int, int] | None:
    """Device and inode of the workspace's folder, which no version of a directory holds."""
    try:
        found = os.stat(home.folder)
    except OSError:
        return None
    return found.st_dev, found.st_ino


@contextmanager
def _uncollected() -> Iterator[None]:
    """Python does not look for garbage in circles meanwhile.

    There is none in what stands for thousands of files, and to look through all of it again and
    again takes a fifth of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def _storing(put_many: Callable[..., Any] | None) -> Iterator[Storing]:
    storing = Storing(put_many)
    try:
        yield storing
    finally:
        storing.close()
