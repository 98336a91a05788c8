"""Claims: who computes a thing now, so that nobody else computes the same beside them.

A claim is held by a process and ends with it, however it ends: nothing has to be renewed and
nothing is left behind. Beside SQLite it is the lock of one byte in a file, whose place in the file
is the key; in PostgreSQL it is an advisory lock of a session.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

__all__ = ["Claims", "FileClaims", "OwnClaims", "number_of"]


class Claims(Protocol):
    """Takes and releases keys: hexadecimal digests of at least 16 digits."""

    def take(self, keys: Iterable[str]) -> set[str]:
        """Those of `keys` that nobody held, and that are ours now."""
        ...

    def release(self, keys: Iterable[str]) -> None:
        """Give up claims of ours; others are left alone."""
        ...


class OwnClaims:
    """Claims among the threads of this process, where others cannot be asked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken: set[str] = set()

    def take(self, keys: Iterable[str]) -> set[str]:
        with self._lock:
            free = set(keys) - self._taken
            self._taken |= free
            return free

    def release(self, keys: Iterable[str]) -> None:
        with self._lock:
            self._taken.difference_update(keys)


class FileClaims:
    """Claims of all processes of one machine that have the catalog at a path open."""

    def __init__(self, path: Path) -> None:
        self._file = _file_of(path)

    def take(self, keys: Iterable[str]) -> set[str]:
        return {key for key in keys if self._file.take(number_of(key))}

    def release(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._file.release(number_of(key))


class _LockFile:
    # The locks belong to the process and end when it closes *any* descriptor of the file: so there
    # is one for each file, which stays open.
    def __init__(self, path: Path) -> None:
        self._path = path
        self.forget()

    def forget(self) -> None:
        self._lock = threading.Lock()
        self._taken: set[int] = set()
        self._descriptor = -1

    def take(self, place: int) -> bool:
        with self._lock:
            if place in self._taken:  # by another thread: to the system we are all one
                return False
            if self._descriptor < 0:
                self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
            except (BlockingIOError, PermissionError):
                return False
            self._taken.add(place)
            return True

    def release(self, place: int) -> None:
        with self._lock:
            if place in self._taken:
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, place)
                self._taken.discard(place)


_files: dict[str, _LockFile] = {}
_files_lock = threading.Lock()


def _file_of(path: Path) -> _LockFile:
    name = os.path.realpath(path)
    with _files_lock:
        return _files.setdefault(name, _LockFile(path))


def number_of(key: str) -> int:
    """A key as a number of 60 bits."""
    return int(key[:15], 16)


def _forget_in_child() -> None:
    # What the parent holds, the child does not.
    global _files_lock
    _files_lock = threading.Lock()
    for file in _files.values():
        if file._descriptor >= 0:
            os.close(file._descriptor)
        file.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
