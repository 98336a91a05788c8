"""Small objects together in one file: written, fsynced and renamed once for all of them.

The form of a pack is that of ``pack_format``; it never changes. What is removed from it stands in a
file beside it, ``<name>.gone``, until less than half is left: then the rest moves to a new one.
Which object lies where is kept in memory, some 200 bytes for each. The file ``names`` grows by a
line for each new pack, which is how other processes notice; the folder itself is what counts.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import NamedTuple

from everloop.backends.blobs.pack_format import (
    ENTRY_SIZE,
    TAIL_SIZE,
    count_in,
    entries_in,
    entries_left,
    laid_out,
    listing,
)
from everloop.core.ids import new_id
from everloop.errors import BackendError

__all__ = ["Packs", "sync_folder"]

_log = logging.getLogger(__name__)
#: As many pieces as one system call takes.
_PIECES = 512
_NAME_LENGTH = len(f"{new_id()}.pack")


class _Pack:
    """One file: where each object is in it, and which of them are removed."""

    __slots__ = ("entries", "gone", "kept", "path", "read", "whole")

    def __init__(self, path: Path, entries: dict[bytes, tuple[int, int]]) -> None:
        self.path = path
        self.entries = entries
        self.gone: set[bytes] = set()
        self.read = 0
        self.kept = self.whole = sum(size for _, size in entries.values())

    @property
    def is_mostly_gone(self) -> bool:
        """Whether what is left is so little that it moves to a new pack."""
        return bool(self.gone) and (
            self.kept < self.whole / 2 or len(self.gone) == len(self.entries)
        )

    def left(self) -> list[bytes]:
        """The objects that are not removed."""
        return [key for key in self.entries if key not in self.gone]

    def strike(self, keys: list[bytes], *, durably: bool = False) -> None:
        """List objects as removed; under a lock held alone.

        Raises:
            OSError: If the list could not be written.
        """
        with open(f"{self.path}.gone", "ab", buffering=0) as file:
            # What a full disk took a part of only would shift all that comes behind it.
            if torn := file.tell() % 32:
                file.truncate(file.tell() - torn)
            _append(file, b"".join(keys))
            if durably:
                os.fsync(file.fileno())

    def read_gone(self) -> None:
        """Bring `gone` up to what every process removed."""
        try:
            if os.stat(f"{self.path}.gone").st_size <= self.read:
                return
            with open(f"{self.path}.gone", "rb", buffering=0) as file:
                file.seek(self.read)
                data = file.read()
        except FileNotFoundError:
            return
        whole = len(data) // 32 * 32
        for key in (data[at : at + 32] for at in range(0, whole, 32)):
            if key in self.entries and key not in self.gone:
                self.gone.add(key)
                self.kept -= self.entries[key][1]
        self.read += whole


class Packed(NamedTuple):
    """An object in a pack."""

    digest: str
    size: int
    put_at: float


class Packs:
    """The packs in `folder`; `waiting` is where files lie until they are whole."""

    def __init__(self, folder: Path, waiting: Path) -> None:
        self._folder = folder
        self._waiting = waiting
        self._lock = threading.Lock()
        self._names = folder / "names"
        self._seen = -1
        self._packs: dict[str, _Pack] = {}
        self._places: dict[bytes, _Pack] = {}

    def put(self, objects: dict[str, bytes]) -> None:
        """Write a pack of these objects, by digest; durable when it returns.

        Raises:
            OSError: If it could not be written; nothing is left behind.
        """
        if not self._folder.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            sync_folder(self._folder.parent)
        entries = laid_out(objects)
        name = f"{new_id()}.pack"
        temporary, target = self._waiting / name, self._folder / name
        try:
            _write(temporary, [*objects.values(), listing(entries)])
            os.rename(temporary, target)
            sync_folder(self._folder)
            with open(self._names, "ab", buffering=0) as names:
                _append(names, f"{name}\n".encode())
        finally:
            temporary.unlink(missing_ok=True)
        with self._lock:
            if name not in self._packs:
                self._take(_Pack(target, entries))

    def get(self, digest: str) -> bytes | None:
        """The bytes of an object, unchecked; None if it is in no pack."""
        key = bytes.fromhex(digest)
        for _ in range(3):
            pack = self._find(key)
            if pack is None:
                return None
            offset, size = pack.entries[key]
            try:
                with open(pack.path, "rb", buffering=0) as file:
                    return os.pread(file.fileno(), size, offset)
            except FileNotFoundError:
                self._drop(pack)  # another process moved what was left of it
        return None

    def get_many(self, digests: Sequence[str]) -> dict[str, bytes]:
        """The bytes, unchecked, of those of the objects that are in a pack."""
        self._refresh()
        by_pack: dict[_Pack, list[tuple[str, bytes]]] = {}
        for digest in digests:
            key = bytes.fromhex(digest)
            pack = self._places.get(key)
            if pack is not None:
                by_pack.setdefault(pack, []).append((digest, key))
        found: dict[str, bytes] = {}
        for pack, wanted in by_pack.items():
            with self._lock:
                pack.read_gone()
            try:
                with open(pack.path, "rb", buffering=0) as file:
                    handle = file.fileno()
                    for digest, key in wanted:
                        if key not in pack.gone:
                            offset, size = pack.entries[key]
                            found[digest] = os.pread(handle, size, offset)
            except FileNotFoundError:
                self._drop(pack)
        # What moved to another pack meanwhile, or is in a second one.
        for digest in {digest for pairs in by_pack.values() for digest, _ in pairs} - found.keys():
            data = self.get(digest)
            if data is not None:
                found[digest] = data
        return found

    def has(self, digest: str) -> bool:
        """Whether an object is in a pack."""
        pack = self._find(bytes.fromhex(digest))
        return pack is not None and (pack.path.exists() or self._again(pack, digest))

    def keep(self, digest: str) -> bool:
        """Make the pack of an object young; to be called under the lock that removers hold alone.

        False if it is in none.
        """
        key = bytes.fromhex(digest)
        for _ in range(3):
            pack = self._find(key)
            if pack is None:
                return False
            try:
                os.utime(pack.path)
                return True
            except FileNotFoundError:
                self._drop(pack)
        return False

    def keep_many(self, digests: Sequence[str]) -> list[str]:
        """As `keep` for each, looking at each pack once; those that are in none."""
        self._refresh()
        touched: dict[_Pack, bool] = {}
        missing = []
        for digest in digests:
            key = bytes.fromhex(digest)
            pack = self._places.get(key)
            if pack is None:
                missing.append(digest)
                continue
            if pack not in touched:
                touched[pack] = self._touch(pack)
            if (not touched[pack] or key in pack.gone) and not self.keep(digest):
                missing.append(digest)
        return missing

    def _touch(self, pack: _Pack) -> bool:
        with self._lock:
            pack.read_gone()
        try:
            os.utime(pack.path)
        except FileNotFoundError:
            return False
        return True

    def remove(self, digest: str, before: float | None = None) -> bool:
        """Remove an object, if its pack is older than `before`; under a lock held alone."""
        key = bytes.fromhex(digest)
        pack = self._find(key)
        if pack is None:
            return False
        try:
            found = pack.path.stat()
        except FileNotFoundError:
            self._drop(pack)
            return False
        if before is not None and found.st_mtime >= before:
            return False
        pack.strike([key])
        with self._lock:
            pack.read_gone()
            self._forget(key, pack)
        if pack.is_mostly_gone:
            self._move(pack, pack.left(), found.st_mtime_ns)
        return True

    def erase(self, digests: Sequence[str]) -> None:
        """Remove objects, and write every pack anew that has their bytes; under a lock held alone.

        Also one of which they were removed before: what is removed stays in the file until then.
        """
        keys = {bytes.fromhex(digest) for digest in digests}
        self._look_anew()
        for pack in list(self._packs.values()):
            here = keys & pack.entries.keys()
            if not here:
                continue
            try:
                found = pack.path.stat()
            except FileNotFoundError:
                self._drop(pack)
                continue
            with self._lock:
                pack.read_gone()
            if fresh := here - pack.gone:
                # First, so that nobody finds them in it whatever becomes of the rest.
                pack.strike(sorted(fresh), durably=True)
                with self._lock:
                    pack.read_gone()
                    for key in fresh:
                        self._forget(key, pack)
            self._move(pack, pack.left(), found.st_mtime_ns)
        if self._folder.exists():
            sync_folder(self._folder)

    def finish(self) -> tuple[int, int]:
        """Finish the removals of processes that died in the middle; under a lock held alone.

        Returns:
            How many packs and lists of removed objects went, and their bytes.
        """
        count = size = 0
        self._look_anew()
        for pack in list(self._packs.values()):
            with self._lock:
                pack.read_gone()
            if not pack.is_mostly_gone:
                continue
            try:
                found = pack.path.stat()
            except FileNotFoundError:
                self._drop(pack)
                continue
            # Whoever died between writing the new pack and removing this one leaves both.
            left = [k for k in pack.left() if not self._is_elsewhere(k, pack, found.st_mtime_ns)]
            self._move(pack, left, found.st_mtime_ns)
            count, size = count + 1, size + found.st_size
        for file in self._folder.glob("*.gone"):
            if not file.with_suffix("").exists():
                size += file.stat().st_size
                file.unlink()
                count += 1
        return count, size

    def _is_elsewhere(self, key: bytes, pack: _Pack, put_at_ns: int) -> bool:
        """Whether an object is in another pack too, which is no older."""
        for other in self._packs.values():
            if other is not pack and key in other.entries and key not in other.gone:
                with suppress(FileNotFoundError):
                    if other.path.stat().st_mtime_ns >= put_at_ns:
                        return True
        return False

    def damaged(self) -> list[str]:
        """The packs whose list of objects cannot be read, by name."""
        self._look_anew()
        return sorted(name for name, pack in self._packs.items() if not pack.entries)

    def salvage(self, aside: Path) -> dict[str, int]:
        """Put what can be found in damaged packs into new ones; under a lock held alone.

        The old ones go to the folder `aside`. By name how many objects were found.
        """
        found: dict[str, int] = {}
        for name in self.damaged():
            pack = self._packs[name]
            pack.entries = entries_left(pack.path.read_bytes())
            pack.read = 0
            pack.read_gone()
            data = pack.path.read_bytes()
            left = {
                key.hex(): data[offset : offset + size]
                for key, (offset, size) in pack.entries.items()
                if key not in pack.gone
            }
            if left:
                self.put(left)
            os.rename(pack.path, aside / name)
            Path(f"{pack.path}.gone").unlink(missing_ok=True)
            self._drop(pack)
            found[name] = len(left)
        return found

    def _move(self, pack: _Pack, left: list[bytes], put_at_ns: int) -> None:
        """Put what is left of a pack into a new one, as old as it was, and remove it."""
        if left:
            data = pack.path.read_bytes()
            rest = {}
            for key in left:
                offset, size = pack.entries[key]
                rest[key.hex()] = data[offset : offset + size]
            self.put(rest)
            os.utime(self._places[left[0]].path, ns=(put_at_ns, put_at_ns))
        pack.path.unlink(missing_ok=True)
        Path(f"{pack.path}.gone").unlink(missing_ok=True)
        self._drop(pack)

    def all(self) -> Iterator[Packed]:
        """All objects, each once."""
        self._look_anew()
        with self._lock:
            packs = dict.fromkeys(self._places.values())
        for pack in packs:
            try:
                put_at = pack.path.stat().st_mtime
            except FileNotFoundError:
                continue
            pack.read_gone()
            for key, (_, size) in pack.entries.items():
                if key not in pack.gone and self._places.get(key) is pack:
                    yield Packed(key.hex(), size, put_at)

    # What is known of the folder

    def _find(self, key: bytes) -> _Pack | None:
        pack = self._places.get(key)
        if pack is None and self._refresh():
            pack = self._places.get(key)
        if pack is None:
            return None
        with self._lock:
            pack.read_gone()
            if key in pack.gone:
                self._forget(key, pack)
                return self._places.get(key)
        return pack

    def _refresh(self) -> bool:
        """Read the packs that are new; whether there were any."""
        try:
            size = os.stat(self._names).st_size
        except FileNotFoundError:
            size = 0
        if size == self._seen:
            return False
        with self._lock:
            seen, self._seen = self._seen, size
            if 0 <= seen < size:
                with open(self._names, "rb", buffering=0) as file:
                    file.seek(seen)
                    data = file.read(size - seen)
                # What of a line is not there yet comes with the next look.
                whole = data[: data.rfind(b"\n") + 1]
                self._seen = seen + len(whole)
                names = set(whole.decode("ascii", "replace").split())
            else:
                names = set()
            # A line that a full disk took a part of only, and the one that was put behind it.
            if not names or any(len(name) != _NAME_LENGTH for name in names):
                try:
                    names = set(os.listdir(self._folder))
                except FileNotFoundError:
                    return False
            for name in sorted(names - self._packs.keys()):
                if name.endswith(".pack"):
                    self._open(name)
        return True

    def _look_anew(self) -> None:
        """Read the folder itself: a writer that died may have left a pack that `names` lacks."""
        with self._lock:
            self._seen = -1
        self._refresh()

    def find_unlisted(self, digest: str) -> bytes | None:
        """As `get`, of an object that ought to be there: the folder itself is looked at."""
        self._look_anew()
        return self.get(digest)

    def _open(self, name: str) -> None:
        path = self._folder / name
        try:
            self._take(_Pack(path, _read(path)))
        except FileNotFoundError:
            pass  # moved since
        except BackendError as error:
            # Its objects count as missing, and putting one again stores it anew.
            _log.error("%s: %s", error.message, error.hint)
            self._take(_Pack(path, {}))

    def _again(self, pack: _Pack, digest: str) -> bool:
        """Whether an object is in another pack now that this one is gone."""
        self._drop(pack)
        return self._find(bytes.fromhex(digest)) is not None

    def _take(self, pack: _Pack) -> None:
        pack.read_gone()
        self._packs[pack.path.name] = pack
        for key in pack.entries:
            if key not in pack.gone:
                self._places[key] = pack

    def _forget(self, key: bytes, pack: _Pack) -> None:
        """Drop a removed object, or say that it is in another pack."""
        if self._places.get(key) is pack:
            del self._places[key]
            for other in self._packs.values():
                if other is not pack and key in other.entries and key not in other.gone:
                    self._places[key] = other
                    return

    def _drop(self, pack: _Pack) -> None:
        with self._lock:
            self._unlist(pack)
            self._seen = -1

    def _unlist(self, pack: _Pack) -> None:
        self._packs.pop(pack.path.name, None)
        for key in pack.entries:
            self._forget(key, pack)


def _append(file: FileIO, data: bytes) -> None:
    """Write all of `data`; a disk that is nearly full takes a part without an error."""
    if file.write(data) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _write(file: Path, pieces: Sequence[bytes]) -> None:
    with open(file, "xb", buffering=0) as target:
        for start in range(0, len(pieces), _PIECES):
            some = pieces[start : start + _PIECES]
            done = os.writev(target.fileno(), some)
            if done < sum(map(len, some)):  # a disk may take less, and a call at most 2 GB
                view = memoryview(b"".join(some))[done:]
                while view:
                    view = view[target.write(view) :]
        os.fsync(target.fileno())


def _read(path: Path) -> dict[bytes, tuple[int, int]]:
    """The list of the objects of a pack.

    Raises:
        BackendError: If the file is no whole pack.
    """
    with open(path, "rb", buffering=0) as file:
        end = os.fstat(file.fileno()).st_size
        count = count_in(os.pread(file.fileno(), TAIL_SIZE, max(0, end - TAIL_SIZE)))
        if count is not None:
            size = count * ENTRY_SIZE + TAIL_SIZE
            found = entries_in(os.pread(file.fileno(), size, end - size)) if size <= end else None
            if found is not None:
                return found
    raise BackendError(
        f"the pack {path} is damaged: its list of objects is not what it was",
        hint="restore this file from a copy of the store",
        details={"pack": path.name},
    )


def sync_folder(folder: str | Path) -> None:
    """Wait until the names in a folder are on disk: a rename is durable only then."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
