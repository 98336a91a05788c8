"""A stored directory written back to this machine: only what differs, never outside its target.

Every directory is opened from the one above it and never through a link, and a file gets its name
when it is whole. Files are copies: what a user does to them cannot reach the store.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

from everloop.core.ids import new_id
from everloop.data.chunks import stream
from everloop.data.tree import Change, Entry, Load, changes, find, shown
from everloop.errors import BackendError, Conflict

__all__ = ["Local", "Written", "write_out"]

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
#: Bytes and number of small files that are read from the store at once.
_BYTES, _FILES = 16 << 20, 2000
_SHOWN = 20


class Local(NamedTuple):
    """What is at the target.

    Attributes:
        digest: Of the directory there, as a scan found it.
        load: Reads its objects, and those of the store.
    """

    digest: str
    load: Load


class Written(NamedTuple):
    """What a checkout did, by path.

    Attributes:
        left: Local files that no version has; they stay.
    """

    written: int
    removed: int
    left: list[str]


def write_out(
    local: Local, root: str, target: bytes, *, known: Callable[[], Iterable[str]], force: bool
) -> Written:
    """Make `target` the directory `root`.

    Args:
        local: What is there now; the digest of an absent target is empty.
        root: Digest of a stored directory.
        target: Absolute path.
        known: Roots of versions: a local file that one of them has may be replaced or removed.
        force: Replace what no version has as well.

    Raises:
        Conflict: If local changes are in the way; all of them are listed and nothing is written.
        BackendError: If the store is damaged or the disk fails; every file is whole or was not
            touched.
    """
    wanted = list(changes(local.load, local.digest, root))  # checked before anything is written
    if not os.path.lexists(target):
        with _failing(target):
            _make_whole(local.load, wanted, target)
        return Written(len(wanted), 0, [])
    mine = _mine(local, wanted, known)
    blocked = {change.path for change in wanted if change.new is not None}
    blocked |= {above for path in blocked for above in _above(path)}
    files = {change.path for change in wanted if change.new is not None and change.new.kind != "d"}
    conflicts = sorted(
        path for path in mine if path in blocked or any(above in files for above in _above(path))
    )
    if conflicts and not force:
        listed = "".join(f"\n  - {shown(path)}" for path in conflicts[:_SHOWN])
        more = len(conflicts) - _SHOWN
        raise Conflict(
            f"{len(conflicts)} local changes are in the way:{listed}"
            + (f"\n  ... and {more} more" if more > 0 else ""),
            hint="add them as a version first, or give them up with --force (force=True)",
            details={"paths": [shown(path) for path in conflicts]},
        )
    left = mine - set(conflicts)
    gone = [c for c in wanted if c.new is None and c.path not in left]
    fresh = [c for c in wanted if c.new is not None]
    with _failing(target), _Target(target, local.load) as there:
        there.remove([*gone, *(c for c in fresh if _is_in_the_way(c))], root)
        there.write(fresh)
    return Written(len(fresh), len(gone), sorted(shown(path) for path in left))


@contextmanager
def _failing(target: bytes) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BackendError(
            f"could not check out to {shown(target)}: {error.strerror or error}",
            hint="free space or check the rights, then do it again: it goes on where it was",
        ) from error


def _mine(local: Local, wanted: Sequence[Change], known: Callable[[], Iterable[str]]) -> set[bytes]:
    """Paths whose local content no version has."""
    mine = {change.path for change in wanted if change.old is not None}
    if mine:
        for root in known():
            found = changes(local.load, local.digest, root)
            mine &= {change.path for change in found if change.old is not None}
            if not mine:
                break
    return mine


def _is_in_the_way(change: Change) -> bool:
    """Whether no rename can replace the old by the new: one of them is a directory."""
    return change.old is not None and "d" in (change.old.kind, getattr(change.new, "kind", ""))


def _above(path: bytes) -> Iterator[bytes]:
    while b"/" in path:
        path = path.rpartition(b"/")[0]
        yield path


def _make_whole(load: Load, fresh: Sequence[Change], target: bytes) -> None:
    """Write a new directory beside its place, and put it there when it is whole."""
    parent = target.rpartition(b"/")[0]
    os.makedirs(parent or b"/", exist_ok=True)
    beside = parent + b"/.everloop-" + new_id().encode()
    os.mkdir(beside)
    try:
        with _Target(beside, load, is_new=True) as there:
            there.write(fresh)
        os.rename(beside, target)
    except BaseException:  # Ctrl-C too: nothing half-written stays beside it
        shutil.rmtree(beside, ignore_errors=True)
        raise


class _Target:
    """The directory that is written to."""

    def __init__(self, path: bytes, load: Load, *, is_new: bool = False) -> None:
        self._load = load
        self._is_new = is_new
        self._root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> _Target:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._root)

    @contextmanager
    def _folder(self, path: bytes, *, make: bool) -> Iterator[int]:
        """A directory below, opened step by step; what is in its place was removed before."""
        handle = os.dup(self._root)
        try:
            for name in path.split(b"/") if path else ():
                if make:
                    with suppress(FileExistsError):
                        os.mkdir(name, dir_fd=handle)
                inner = os.open(name, _FOLDER, dir_fd=handle)
                os.close(handle)
                handle = inner
            yield handle
        finally:
            os.close(handle)

    def remove(self, gone: Sequence[Change], root: str) -> None:
        """Remove paths, then those directories that are empty without them and not in `root`."""
        emptied: set[bytes] = set()
        for change in gone:
            folder, _, name = change.path.rpartition(b"/")
            assert change.old is not None
            if change.old.kind == "d":
                emptied.add(change.path)
                continue
            with self._folder(folder, make=False) as handle, suppress(FileNotFoundError):
                os.unlink(name, dir_fd=handle)
            emptied.update(_above(change.path))
        for path in sorted(emptied, key=lambda path: path.count(b"/"), reverse=True):
            stays = find(self._load, root, path)
            if stays is not None and stays.kind == "d":
                continue
            folder, _, name = path.rpartition(b"/")
            with suppress(OSError), self._folder(folder, make=False) as handle:
                os.rmdir(name, dir_fd=handle)  # which refuses one that is not empty

    def write(self, fresh: Sequence[Change]) -> None:
        """Write what is new or changed."""
        by_folder: dict[bytes, list[tuple[bytes, Entry]]] = {}
        for change in fresh:
            folder, _, name = change.path.rpartition(b"/")
            assert change.new is not None
            by_folder.setdefault(folder, []).append((name, change.new))
        same = [shown(name) for name in _same_but_for_case(by_folder)]
        if same and self._ignores_case():
            raise BackendError(
                f"{len(same)} names differ from others only by case, and this file system keeps one"
                f" of each: {', '.join(same[:_SHOWN])}",
                hint="check out to a file system that tells them apart",
            )
        for folder in sorted(by_folder):
            with self._folder(folder, make=True) as handle:
                for part in _batches(by_folder[folder]):
                    self._write_some(handle, part)

    def _ignores_case(self) -> bool:
        name = b".everloop-" + new_id().lower().encode()
        os.mkdir(name, dir_fd=self._root)
        try:
            os.stat(name.upper(), dir_fd=self._root)
        except FileNotFoundError:
            return False
        else:
            return True
        finally:
            os.rmdir(name, dir_fd=self._root)

    def _write_some(self, folder: int, items: list[tuple[bytes, Entry]]) -> None:
        small = [entry.digest for _, entry in items if entry.kind in "fx"]
        held = dict(zip(small, self._load(small), strict=True)) if small else {}
        for name, entry in items:
            if entry.kind == "d":
                with suppress(FileExistsError):
                    os.mkdir(name, dir_fd=folder)
            elif self._is_new:
                self._make(folder, name, entry, held)
            else:
                self._replace(folder, name, entry, held)

    def _replace(self, folder: int, name: bytes, entry: Entry, held: dict[str, bytes]) -> None:
        beside = b".everloop-" + new_id().encode()
        try:
            self._make(folder, beside, entry, held)
            os.rename(beside, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:  # Ctrl-C too: nothing half-written stays beside it
            with suppress(FileNotFoundError):
                os.unlink(beside, dir_fd=folder)
            raise

    def _make(self, folder: int, name: bytes, entry: Entry, held: dict[str, bytes]) -> None:
        if entry.kind == "l":
            os.symlink(entry.content, name, dir_fd=folder)
            return
        mode = 0o777 if entry.kind in "xX" else 0o666
        handle = os.open(name, _NEW, mode, dir_fd=folder)
        try:
            if entry.kind in "fx":
                _write(handle, held[entry.digest])
            else:
                for piece in stream(self._load, entry.digest):
                    _write(handle, piece)
        finally:
            os.close(handle)


def _same_but_for_case(by_folder: dict[bytes, list[tuple[bytes, Entry]]]) -> list[bytes]:
    """Paths, of files or of directories above them, that another one is but for case."""
    paths = {
        folder + b"/" + name if folder else name
        for folder in by_folder
        for name, _ in by_folder[folder]
    }
    paths |= {above for path in paths for above in _above(path)}
    met: set[str] = set()
    same = []
    for path in sorted(paths):
        folded = path.decode("utf-8", "surrogateescape").casefold()
        if folded in met:
            same.append(path)
        met.add(folded)
    return same


def _batches(items: Sequence[tuple[bytes, Entry]]) -> Iterator[list[tuple[bytes, Entry]]]:
    some: list[tuple[bytes, Entry]] = []
    size = 0
    for item in items:
        some.append(item)
        size += item[1].size if item[1].kind in "fx" else 0
        if size >= _BYTES or len(some) >= _FILES:
            yield some
            some, size = [], 0
    if some:
        yield some


def _write(handle: int, data: bytes) -> None:
    done = os.write(handle, data)
    while done < len(data):
        done += os.write(handle, memoryview(data)[done:])
