"""A directory on this machine as a tree of entries.

A file is read once, and again only if it changed. Everything that is wrong is told together.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

from blake3 import blake3

from everloop.data.chunks import LARGE, Put, chunked
from everloop.data.stamps import SETTLED_NS, FolderStamp, Stamp, Stamps
from everloop.data.tree import Entry, Load, encode, link_fault, shown

__all__ = ["Scan", "Storing", "kind_of", "scan"]

#: Small files are handed on together: so many bytes, or so many files.
_BATCH, _BATCH_FILES = 16 << 20, 8192
#: Batches that are being stored.
_WAITING = 2
#: Stands for what is not read yet.
_UNREAD = Entry(b"", "f", bytes(32), 0, 1)
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_SPECIAL = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
}


class _Folder:
    """A directory that is being scanned; `entries` are of its files and links, by name."""

    __slots__ = ("entries", "folders", "is_sound", "known", "made", "path", "stamps", "unstored")

    def __init__(self, path: bytes, known: FolderStamp | None) -> None:
        self.path = path
        self.known = known
        self.stamps: list[Stamp] = []
        self.entries: list[Entry] = []
        self.unstored: set[bytes] = set()
        self.folders: list[_Folder] = []
        self.made: Entry
        self.is_sound = True

    @property
    def name(self) -> bytes:
        return self.path.rpartition(b"/")[2]

    def all(self) -> list[Entry]:
        return [*self.entries, *(folder.made for folder in self.folders)]


class _Unstable(Exception):
    """A file changed while it was read."""


class Storing:
    """Gives bytes to a store, or only digests them, in threads beside the one that reads.

    There are two, as one of them mostly waits for the disk.
    """

    def __init__(self, put_many: Callable[[Sequence[Any]], list[tuple[str, int]]] | None) -> None:
        self.stores = put_many is not None
        self._put_many = put_many or _digests
        self._threads = ThreadPoolExecutor(_WAITING)
        self._waiting: list[Future[Any]] = []

    def put(self, data: list[Any]) -> Future[list[tuple[str, int]]]:
        """Begin to store pieces; waits while much is waiting already."""
        while len(self._waiting) >= _WAITING:
            self._waiting.pop(0).exception()
        future = self._threads.submit(self._put_many, data)
        self._waiting.append(future)
        return future

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)


def _digests(data: Sequence[Any]) -> list[tuple[str, int]]:
    return [(blake3(item).hexdigest(), len(item)) for item in data]


class Scan:
    """What was found.

    Attributes:
        made: The entry of the directory itself.
        objects: Objects of the directories that may be new, by digest.
        faults: What cannot be stored, by path.
        rest: The last files that were read, if they shall be stored: whoever stores the objects
            stores them along, as each call waits for the disk.
    """

    def __init__(
        self,
        folders: list[_Folder],
        faults: list[tuple[str, str]],
        rest: list[bytes],
        remember: Callable[[dict[bytes, FolderStamp]], None],
    ) -> None:
        self.faults = faults
        self.rest = rest
        self.objects: dict[str, bytes] = {}
        self._folders = folders
        self._remember = remember
        self._known: dict[str, _Folder] = {}
        for folder in reversed(folders):
            self._make(folder)
        self.made = folders[0].made

    def _make(self, folder: _Folder) -> None:
        known = folder.known
        children = [(child.name, child.made.content) for child in folder.folders]
        if known is not None and known.entries == folder.entries and known.folders == children:
            folder.made = known.made
            if known.is_stored:
                self._known[known.made.digest] = folder
                return
        tree = encode(folder.all())
        self.objects |= tree.objects
        content = bytes.fromhex(tree.digest)
        folder.made = Entry(folder.name, "d", content, tree.size, tree.files)

    def load_with(self, load: Load) -> Load:
        """Reads what was found here, and of `load` what was not."""

        def load_all(digests: Sequence[str]) -> list[bytes]:
            for digest in digests:
                folder = self._known.pop(digest, None)
                if folder is not None:
                    self.objects |= encode(folder.all()).objects
            others = [digest for digest in digests if digest not in self.objects]
            found = dict(zip(others, load(others), strict=True)) if others else {}
            return [found[d] if d in found else self.objects[d] for d in digests]

        return load_all

    def remember(self, *, stored: bool = False, whole: bool = False) -> None:
        """Let the cache know what was found.

        Args:
            stored: Whether the bytes of all files are in the store.
            whole: Whether the objects of the directories are, too.
        """
        self._remember(dict(self._stamps(stored=stored, whole=whole)))

    def _stamps(self, *, stored: bool, whole: bool) -> Iterator[tuple[bytes, FolderStamp]]:
        for folder in self._folders:
            known = folder.known
            children = [(child.name, child.made.content) for child in folder.folders]
            unstored = set() if stored else folder.unstored
            is_stored = whole or (known is not None and known.made == folder.made
                                   and known.is_stored)  # fmt: skip
            found = FolderStamp(
                folder.stamps, folder.entries, children, folder.made, unstored, is_stored
            )
            if folder.is_sound and found != known:
                yield folder.path, found


def scan(
    root: bytes,
    stamps: Stamps,
    storing: Storing,
    *,
    lenient: bool = False,
    trust: bool = True,
    never: tuple[int, int] | None = None,
) -> Scan:
    """Look at a directory, or at one file, which counts as a directory of that file alone.

    Args:
        root: Absolute, without links in it.
        stamps: What is known of the files.
        storing: Where bytes go.
        lenient: What cannot be stored is no fault; it stands for content that is nowhere.
        trust: Whether files may be taken for what is known of them.
        never: Device and inode of a directory that must not be within.

    Raises:
        BackendError: If bytes could not be stored.
    """
    known = stamps.read(root) if trust else {}
    found = _Scanner(root, storing, lenient, never)
    folders = found.walk(known)
    rest = found.read_files()
    gone = known.keys() - {folder.path for folder in folders}
    return Scan(folders, sorted(found.faults), rest, lambda new: stamps.write(root, new, gone))


class _Scanner:
    def __init__(
        self, root: bytes, storing: Storing, lenient: bool, never: tuple[int, int] | None
    ) -> None:
        self.faults: list[tuple[str, str]] = []
        self._root = root
        self._storing = storing
        self._put: Put = storing.put
        self._lenient = lenient
        self._never = never
        self._settled = time.time_ns() - SETTLED_NS
        self._wanted: list[tuple[_Folder, int]] = []
        self._batch: list[bytes] = []
        self._slots: list[tuple[_Folder, int, str]] = []
        self._size = 0
        self._pending: list[tuple[Future[list[tuple[str, int]]], list[Any]]] = []

    # Names

    def walk(self, known: dict[bytes, FolderStamp]) -> list[_Folder]:
        """All directories, each before those in it; files that must be read are noted."""
        folders = [_Folder(b"", known.get(b""))]
        if not stat.S_ISDIR(os.lstat(self._root).st_mode):
            self._root, _, name = self._root.rpartition(b"/")
            found = os.lstat(self._root + b"/" + name)
            folders[0].stamps = [_stamp(name, found)]
            self._match(folders[0])
            return folders
        for folder in folders:  # it grows meanwhile
            self._list(folder, known)
            folders += folder.folders
        return folders

    def _list(self, folder: _Folder, known: dict[bytes, FolderStamp]) -> None:
        here = folder.path + b"/" if folder.path else b""
        below = []
        try:
            with os.scandir(self._root + b"/" + folder.path) as listing:
                for item in listing:
                    found = item.stat(follow_symlinks=False)
                    if stat.S_ISDIR(found.st_mode):
                        if (found.st_dev, found.st_ino) == self._never:
                            self._fault(folder, item.name, "is the workspace itself")
                        else:
                            below.append(here + item.name)
                    else:
                        folder.stamps.append((
                            item.name, found.st_mode, found.st_size, found.st_mtime_ns,
                            found.st_ctime_ns, found.st_ino,
                        ))  # fmt: skip
        except OSError as error:
            self._fault(folder, b"", error.strerror or str(error))
        folder.stamps.sort()
        below.sort()
        folder.folders = [_Folder(path, known.get(path)) for path in below]
        self._match(folder)

    def _match(self, folder: _Folder) -> None:
        """Take what is known of the files, and note the others."""
        known, stores = folder.known, self._storing.stores
        if known is not None and known.stamps == folder.stamps and not (stores and known.unstored):
            folder.entries = known.entries
            folder.unstored = known.unstored
            return
        before: dict[bytes, tuple[Stamp, Entry]] = {}
        if known is not None:
            pairs = zip(known.stamps, known.entries, strict=True)
            before = {stamp[0]: (stamp, entry) for stamp, entry in pairs}
        for at, stamp in enumerate(folder.stamps):
            name = stamp[0]
            same = before.get(name)
            is_unstored = known is not None and name in known.unstored
            if same is not None and same[0] == stamp and not (stores and is_unstored):
                folder.entries.append(same[1])
                if is_unstored:
                    folder.unstored.add(name)
                continue
            folder.entries.append(_UNREAD)
            if stat.S_ISREG(stamp[1]):
                self._wanted.append((folder, at))
            elif stat.S_ISLNK(stamp[1]):
                self._link(folder, at)
            else:
                self._fault(folder, name, f"is {_SPECIAL.get(stat.S_IFMT(stamp[1]), 'no file')}")
                self._forget(folder, at)

    def _link(self, folder: _Folder, at: int) -> None:
        stamp = folder.stamps[at]
        path = _join(folder.path, stamp[0])
        full = self._root + b"/" + path
        try:
            target = os.readlink(full)
            fault = link_fault(path, target)
            if not fault:
                try:
                    os.stat(full)
                except OSError as error:
                    fault = "is a link that leads in a circle" if error.errno == errno.ELOOP else ""
        except OSError as error:
            fault = error.strerror or str(error)
        if fault:
            self._fault(folder, stamp[0], fault)
            self._forget(folder, at)
            return
        folder.entries[at] = Entry(stamp[0], "l", target, 0, 1)
        self._settle(folder, at, stamp)

    # Bytes

    def read_files(self) -> list[bytes]:
        """Read what is not known, in the order of the directories; the last is not stored yet."""
        for folder, at in self._wanted:
            name = folder.stamps[at][0]
            path = self._root + b"/" + _join(folder.path, name)
            try:
                self._read_twice(folder, at, path)
            except _Unstable:
                self._fault(folder, name, "changed while it was read, twice")
                self._forget(folder, at)
            except OSError as error:
                gone = "was removed meanwhile" if error.errno == errno.ENOENT else ""
                gone = "was replaced by a link" if error.errno == errno.ELOOP else gone
                self._fault(folder, name, gone or error.strerror or str(error))
                self._forget(folder, at)
        for future, slots in self._pending:
            self._take(future.result(), slots)
        self._take(_digests(self._batch), self._slots)
        return self._batch

    def _read_twice(self, folder: _Folder, at: int, path: bytes) -> None:
        try:
            self._read(folder, at, path)
        except _Unstable:
            self._read(folder, at, path)

    def _read(self, folder: _Folder, at: int, path: bytes) -> None:
        name = folder.stamps[at][0]
        handle = os.open(path, _OPEN)
        try:
            before = os.fstat(handle)
            if not stat.S_ISREG(before.st_mode):
                raise _Unstable
            size, is_large = before.st_size, before.st_size > LARGE
            if is_large:
                digest, got = chunked(handle, self._put)
            else:
                data = os.read(handle, size + 1)
                while len(data) < size and (more := os.read(handle, size + 1 - len(data))):
                    data += more
                got = len(data)
            after = os.fstat(handle)
        finally:
            os.close(handle)
        if (
            got != size
            or after.st_mtime_ns != before.st_mtime_ns
            or after.st_ctime_ns != before.st_ctime_ns
            or after.st_size != size
        ):
            raise _Unstable
        self._settle(folder, at, _stamp(name, after))
        if not self._storing.stores:
            folder.unstored.add(name)
        kind = kind_of(before.st_mode, chunked=is_large)
        if is_large:
            folder.entries[at] = Entry(name, kind, bytes.fromhex(digest), size, 1)
            return
        self._batch.append(data)
        self._slots.append((folder, at, kind))
        self._size += size
        if self._size >= _BATCH or len(self._batch) >= _BATCH_FILES:
            self._hand_on()

    def _hand_on(self) -> None:
        if self._batch:
            self._pending.append((self._put(self._batch), self._slots))
            self._batch, self._slots, self._size = [], [], 0
        while len(self._pending) > _WAITING:
            future, slots = self._pending.pop(0)
            self._take(future.result(), slots)

    def _take(self, found: list[tuple[str, int]], slots: list[tuple[_Folder, int, Any]]) -> None:
        for (folder, at, kind), (digest, size) in zip(slots, found, strict=True):
            name = folder.stamps[at][0]
            folder.entries[at] = Entry(name, kind, bytes.fromhex(digest), size, 1)

    def _settle(self, folder: _Folder, at: int, stamp: Stamp) -> None:
        """Remember what a file was like, unless it may change again without a trace."""
        if max(stamp[3], stamp[4]) >= self._settled:
            stamp = (*stamp[:3], -1, *stamp[4:])
        folder.stamps[at] = stamp

    def _forget(self, folder: _Folder, at: int) -> None:
        """Let a path that cannot be stored stand for content that is nowhere."""
        stamp = folder.stamps[at]
        folder.entries[at] = Entry(stamp[0], "f", bytes(32), 0, 1)
        folder.stamps[at] = (*stamp[:3], -1, *stamp[4:])

    def _fault(self, folder: _Folder, name: bytes, message: str) -> None:
        if not self._lenient:
            path = _join(folder.path, name) if name else folder.path
            self.faults.append((shown(path) or ".", message))
        folder.is_sound = folder.is_sound and bool(name)


def kind_of(mode: int, *, chunked: bool) -> Literal["f", "x", "F", "X"]:
    """The kind of a file's entry: whoever owns the file may execute it, or not."""
    if mode & stat.S_IXUSR:
        return "X" if chunked else "x"
    return "F" if chunked else "f"


def _stamp(name: bytes, found: os.stat_result) -> Stamp:
    return (
        name, found.st_mode, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino,
    )  # fmt: skip


def _join(folder: bytes, name: bytes) -> bytes:
    return folder + b"/" + name if folder else name
