"""Objects as files: ``<root>/ab/cdef...``, written to a temporary name, fsynced, then renamed.

Small ones that are put together lie together, in one file of ``<root>/packs`` (see ``packs.py``).
One of them gets a file of its own when somebody wants its path.
"""

from __future__ import annotations

import fcntl
import os
import stat
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from blake3 import blake3

from everloop.backends.blobs.digests import check_digests, digest_of_pieces
from everloop.backends.blobs.files import write_durably
from everloop.backends.blobs.pack_format import portions
from everloop.backends.blobs.packs import Packs, sync_folder
from everloop.core.ids import new_id, new_ids
from everloop.errors import BackendError, NotFound
from everloop.ports.blobs import ObjectAge

if TYPE_CHECKING:
    from everloop.backends.blobs.parts import PartFiles

__all__ = ["LocalBlobs"]

_CHUNK = 1 << 20
#: Objects up to this size are packed; a pack grows to about that.
_SMALL, _PACK = 256 << 10, 32 << 20
#: From this many bytes on an object that was stored by this process is not read to verify it.
_LARGE = 64 << 20
#: Of a large piece so much is written at a time, so that the disk can begin.
_SLICE = 8 << 20
#: A writer that has not touched its half-written file for so long is dead.
_DEAD_S = 900
#: Files whose way to the disk is waited for at once; the disk takes them in one go.
_SYNCING = 32


class LocalBlobs:
    """A BlobStore on a local file system (contract: ``everloop.testing.blobs``)."""

    def __init__(self, root: str | Path) -> None:
        self._root = Path(root)
        #: Sizes of objects whose bytes were compared with their names.
        self._verified: dict[str, int] = {}
        self._lock = threading.Lock()
        self._ready: set[Path] = set()
        self._packs = Packs(self._root / "packs", self._root / "tmp")

    @cached_property
    def _parts(self) -> PartFiles:
        from everloop.backends.blobs.parts import PartFiles  # few take large objects in parts

        return PartFiles(self._root / "tmp" / "parts")

    def put(self, data: bytes | Iterable[bytes] | BinaryIO) -> tuple[str, int]:
        known = ""
        if isinstance(data, bytes | bytearray | memoryview):
            known = blake3(data).hexdigest()
            if self._keep_whole(known, len(data)):
                return known, len(data)
            pieces: Iterable[bytes] = (bytes(data),)
        elif isinstance(data, list):
            # Seen twice: what is there already is only read, however large it is.
            known, size = digest_of_pieces(data)
            if self._keep_whole(known, size):
                return known, size
            pieces = _slices(data)
        elif hasattr(data, "read"):
            pieces = iter(lambda: data.read(_CHUNK), b"")
        else:
            pieces = data
        digest, size = self._write_own(pieces, known, renew=True)
        if size >= _LARGE:
            # We just wrote it and the disk took it: to read all of it again costs as much.
            self._verified[digest] = size
        return digest, size

    def _write_own(
        self, pieces: Iterable[bytes], known: str = "", *, renew: bool
    ) -> tuple[str, int]:
        """Write a file of its own; with `renew` only unless the object is there already."""
        temporary = self._folder(self._root / "tmp") / new_id()
        try:
            digest, size = write_durably(temporary, pieces, known)
            target = self._file(digest)
            if renew and self._keep_whole(digest, size):
                return digest, size
            folder = self._folder(target.parent)
            os.rename(temporary, target)
            sync_folder(folder)
        except OSError as error:
            raise self._failed(error) from error
        finally:
            temporary.unlink(missing_ok=True)
        return digest, size

    def put_many(self, data: Sequence[bytes]) -> list[tuple[str, int]]:
        found = [(blake3(item).hexdigest(), len(item)) for item in data]
        fresh = {digest: item for (digest, _), item in zip(found, data, strict=True)}
        try:
            lacking = self._keep_all({digest: len(item) for digest, item in fresh.items()})
            fresh = {digest: fresh[digest] for digest in lacking}
            small = {digest: item for digest, item in fresh.items() if len(item) <= _SMALL}
            if len(small) > 1:
                self._folder(self._root / "tmp")
                for part in portions(small, _PACK):
                    self._packs.put(part)
            else:
                small = {}
            if large := {digest: fresh[digest] for digest in fresh.keys() - small.keys()}:
                self._put_fresh(large)
        except OSError as error:
            raise self._failed(error) from error
        return found

    def _put_fresh(self, fresh: dict[str, bytes]) -> None:
        # Texts and not paths: of a small file, making the paths costs as much as writing it.
        root, waiting = str(self._root), str(self._folder(self._root / "tmp"))
        names = zip(new_ids(len(fresh)), fresh.items(), strict=True)
        begun = [(f"{waiting}/{name}", digest, item) for name, (digest, item) in names]
        folders = sorted({digest[:2] for digest in fresh})
        try:
            with ThreadPoolExecutor(_SYNCING) as threads:
                written = [threads.submit(_write, begun[n::_SYNCING]) for n in range(_SYNCING)]
                self._make({self._root / folder for folder in folders})
                for part in written:
                    part.result()  # waits, and raises what went wrong
                while begun:
                    temporary, digest, _ = begun[-1]
                    os.rename(temporary, f"{root}/{digest[:2]}/{digest[2:]}")
                    begun.pop()
                list(threads.map(sync_folder, (f"{root}/{folder}" for folder in folders)))
        finally:
            for temporary, _, _ in begun:  # those that did not get their name
                Path(temporary).unlink(missing_ok=True)

    def get(self, digest: str) -> bytes:
        try:
            data = self._file(digest).read_bytes()
        except FileNotFoundError:
            data = self._packed(digest)
        if blake3(data).hexdigest() != digest:
            raise self._corrupt(digest)
        return data

    def get_many(self, digests: Sequence[str]) -> list[bytes]:
        check_digests(digests)
        found = self._packs.get_many(digests)
        for digest, data in found.items():
            if blake3(data).hexdigest() != digest:
                raise self._corrupt(digest)
        return [found[d] if d in found else self.get(d) for d in digests]

    def stream(self, digest: str, chunk: int = _CHUNK) -> Iterator[bytes]:
        hasher = blake3()
        try:
            file = open(self._file(digest), "rb")  # noqa: SIM115 (closed below)
        except FileNotFoundError:
            data = self.get(digest)
            yield from (data[at : at + chunk] for at in range(0, len(data), chunk))
            return
        with file:
            while piece := file.read(chunk):
                hasher.update(piece)
                yield piece
        if hasher.hexdigest() != digest:
            raise self._corrupt(digest)

    def path(self, digest: str) -> Path:
        file = self._file(digest)
        try:
            size = file.stat().st_size
        except FileNotFoundError:
            _, size = self._write_own([self.get(digest)], renew=False)
        try:
            if self._verified.get(digest) != size and _digest(file) != digest:
                raise self._corrupt(digest)
        except FileNotFoundError:  # removed meanwhile
            raise NotFound(f"no object {digest}") from None
        self._verified[digest] = size
        return file

    def _packed(self, digest: str) -> bytes:
        data = self._packs.get(digest)
        if data is None:
            data = self._packs.find_unlisted(digest)
        if data is None:
            raise NotFound(f"no object {digest}")
        return data

    def begin_parts(self, purpose: str) -> str:
        return self._parts.begin(purpose)

    def put_part(self, upload: str, number: int, data: Iterable[bytes]) -> str:
        return self._parts.put(upload, number, data)

    def join_parts(self, upload: str, purpose: str, parts: dict[int, str]) -> tuple[str, int]:
        return self.put(self._parts.read(upload, purpose, parts))

    def drop_parts(self, upload: str, purpose: str) -> None:
        self._parts.drop(self._parts.check(upload, purpose))

    def exists(self, digest: str) -> bool:
        return self._file(digest).exists() or self._packs.has(digest)

    def keep(self, digest: str) -> bool:
        file = self._file(digest)
        if not file.exists() and not self._packs.has(digest):
            return False
        with self._held(fcntl.LOCK_SH):
            try:
                os.utime(file)
            except FileNotFoundError:
                return self._packs.keep(digest)
            except OSError as error:
                raise self._failed(error) from error
        return True

    def keep_many(self, digests: Sequence[str]) -> list[str]:
        check_digests(digests)
        return self._keep_all(dict.fromkeys(digests))

    def _keep_all(self, sizes: Mapping[str, int | None]) -> list[str]:
        """Keep objects; those that are not there, or not of the size that is said."""
        if not sizes:
            return []
        with self._held(fcntl.LOCK_SH):
            missing = self._packs.keep_many(list(sizes))
            # Of thousands most are not there: in a store of packs no call asks for each.
            folders = set(os.listdir(self._root))
            return [
                digest
                for digest in missing
                if digest[:2] not in folders or not self._keep_own(digest, sizes[digest])
            ]

    def _keep_own(self, digest: str, size: int | None) -> bool:
        # Text and not a path: of thousands, most are looked for and not there.
        file = f"{self._root}/{digest[:2]}/{digest[2:]}"
        try:
            if not os.access(file, os.F_OK) or (size is not None and os.stat(file).st_size != size):
                return False
            os.utime(file)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._failed(error) from error
        return True

    def _keep_whole(self, digest: str, size: int) -> bool:
        """As `keep`; an object that was cut off is as good as none, and is put anew."""
        try:
            return self._file(digest).stat().st_size == size and self.keep(digest)
        except FileNotFoundError:
            return self.keep(digest)  # in a pack, which is whole or not there

    def delete(self, digest: str) -> None:
        self._verified.pop(digest, None)
        self._file(digest).unlink(missing_ok=True)
        if self._packs.has(digest):
            with self._alone("remove objects in"):
                self._packs.remove(digest)

    def erase(self, digests: Sequence[str]) -> None:
        check_digests(digests)
        with self._alone("erase objects in"):
            for digest in digests:
                self._verified.pop(digest, None)
                self._file(digest).unlink(missing_ok=True)
            self._packs.erase(digests)
            folders = {self._root / digest[:2] for digest in digests}
            with ThreadPoolExecutor(_SYNCING) as threads:
                list(threads.map(sync_folder, filter(Path.exists, folders)))
        self.remove_leftovers(time.time() - _DEAD_S)

    def damaged_packs(self) -> list[str]:
        return self._packs.damaged()

    def salvage(self) -> dict[str, int]:
        with self._alone("mend"):
            return self._packs.salvage(self._folder(self._root / "quarantine"))

    def doubled(self) -> list[str]:
        return [item.digest for item in self._packs.all() if self._is_own(item.digest)]

    def quarantine(self, digest: str) -> bool:
        file, aside = self._file(digest), self._root / "quarantine"
        with self._alone("mend"):
            self._verified.pop(digest, None)
            moved = False
            if file.exists() and _digest(file) != digest:
                self._folder(aside)
                os.rename(file, aside / digest)
                moved = True
            data = self._packs.get(digest)
            if data is not None and blake3(data).hexdigest() != digest:
                self._folder(aside)
                (aside / f"{digest}.packed").write_bytes(data)
                self._packs.remove(digest)
                moved = True
        return moved

    @contextmanager
    def _alone(self, act: str) -> Iterator[None]:
        """Around what removes or moves objects."""
        try:
            with self._held(fcntl.LOCK_EX):
                self._folder(self._root / "tmp")
                yield
        except OSError as error:
            raise BackendError(
                f"could not {act} {self._root}: {error.strerror or error}",
                hint="check the rights of the folder and the space on the disk, then do it again",
            ) from error

    def digests(self) -> Iterator[str]:
        yield from self._own()
        yield from (item.digest for item in self._packs.all() if not self._is_own(item.digest))

    def _own(self) -> Iterator[str]:
        for folder in sorted(self._root.glob("[0-9a-f][0-9a-f]")):
            for file in folder.iterdir():
                yield folder.name + file.name

    def _is_own(self, digest: str) -> bool:
        return os.path.exists(f"{self._root}/{digest[:2]}/{digest[2:]}")

    def ages(self) -> Iterator[ObjectAge]:
        for digest in self._own():
            try:
                found = self._file(digest).stat()
            except FileNotFoundError:
                continue
            yield ObjectAge(digest, found.st_size, found.st_mtime)
        for item in self._packs.all():
            if not self._is_own(item.digest):
                yield ObjectAge(*item)

    def remove_old(self, digest: str, before: float) -> bool:
        file = self._file(digest)
        with self._alone("remove objects in"):
            try:
                if file.stat().st_mtime >= before:
                    return False
            except FileNotFoundError:
                return self._packs.remove(digest, before)
            # A copy that is in a pack as well goes first: then it is here or gone, as a whole.
            if self._packs.has(digest) and not self._packs.remove(digest, before):
                return False
            self._verified.pop(digest, None)
            file.unlink(missing_ok=True)
        return True

    def remove_old_many(self, digests: Sequence[str], before: float) -> list[str]:
        return [digest for digest in digests if self.remove_old(digest, before)]

    def missing(self, digests: Sequence[str]) -> list[str]:
        return [digest for digest in digests if not self.exists(digest)]

    def remove_leftovers(self, before: float) -> tuple[int, int]:
        with self._alone("remove what was left half-way in"):
            count, size = self._packs.finish()
            for file in (self._root / "tmp").glob("*"):
                try:
                    found = file.stat()
                    # A folder holds the parts of an upload, which go by a rule of their own.
                    if found.st_mtime < before and not stat.S_ISDIR(found.st_mode):
                        file.unlink()
                        count, size = count + 1, size + found.st_size
                except FileNotFoundError:
                    continue  # its writer lives
        return count, size

    @contextmanager
    def _held(self, how: int) -> Iterator[None]:
        """The lock between those who renew objects (shared) and who removes them (alone).

        The system lets go of it when its holder dies, so no killed process can leave it behind.
        """
        handle = os.open(self._folder(self._root / "tmp").parent / "lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(handle, how)
            yield
        finally:
            os.close(handle)

    def _failed(self, error: OSError) -> BackendError:
        return BackendError(
            f"could not store an object in {self._root}: {error.strerror or error}",
            hint="free space or check the rights of the folder, then do it again",
        )

    def _file(self, digest: str) -> Path:
        check_digests((digest,))
        return self._root / digest[:2] / digest[2:]

    def _folder(self, folder: Path) -> Path:
        if folder not in self._ready:
            self._make({folder})
        return folder

    def _make(self, folders: set[Path]) -> None:
        """Make those of `folders`, all directly below the root, that are not there."""
        with self._lock:
            fresh = [folder for folder in folders - self._ready if not folder.exists()]
            for folder in fresh:
                folder.mkdir(parents=True, exist_ok=True)
            if fresh:
                sync_folder(self._root)
            self._ready |= folders

    def _corrupt(self, digest: str) -> BackendError:
        return BackendError(
            f"object {digest} in {self._root} is damaged: its bytes are not what its name says",
            hint="restore this file from a copy of the store",
            details={"digest": digest},
        )


def _write(files: Sequence[tuple[str, str, bytes]]) -> None:
    for temporary, _, item in files:
        with open(temporary, "xb", buffering=0) as target:
            rest = memoryview(item)
            while rest:
                rest = rest[target.write(rest) :]
            os.fsync(target.fileno())


def _digest(file: Path) -> str:
    # Read and not mapped: pages of a map count as memory of the process.
    hasher, piece = blake3(max_threads=blake3.AUTO), memoryview(bytearray(_CHUNK))
    with open(file, "rb", buffering=0) as source:
        while size := source.readinto(piece):
            hasher.update(piece[:size])
    return hasher.hexdigest()


def _slices(pieces: Sequence[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        whole: Any = memoryview(piece)  # as good as bytes to whoever writes or hashes them
        for at in range(0, len(whole), _SLICE):
            yield whole[at : at + _SLICE]
