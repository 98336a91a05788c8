"""Claims: who computes a thing now, so that nobody else computes the same beside them.

A claim is held by a process and ends with it, however it ends: nothing has to be renewed and
nothing is left behind. Beside SQLite it is the lock of one byte in a file, whose place in the file
is the key; in PostgreSQL it is an advisory lock of a session.
"""

from __future__ import annotations

import fcntl
import os
import threading
import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

__all__ = ["Claims", "FileClaims", "OwnClaims", "SessionClaims"]


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
        return {key for key in keys if self._file.take(_number(key))}

    def release(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._file.release(_number(key))


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


class SessionClaims:
    """Claims of all processes, of any machine, that use one PostgreSQL database.

    They end with their session. Where the server drops it, others may compute the same beside us;
    whoever commits first is the one that counts, as ever.

    Args:
        engine: Gives the connection.
        within: Around each use of it; tells faults in our words.
    """

    def __init__(self, engine: Engine, within: Callable[[], AbstractContextManager[None]]) -> None:
        self._engine = engine
        self._within = within
        self.forget()
        _sessions.add(self)

    def forget(self) -> None:
        self._lock = threading.Lock()
        self._taken: set[int] = set()
        self._connection: Connection | None = None

    def take(self, keys: Iterable[str]) -> set[str]:
        with self._lock, self._within():
            numbers = {-1 - _number(key): key for key in keys}
            # A session may take its own lock again, so the threads are told apart here.
            wanted = [number for number in numbers if number not in self._taken]
            if not wanted:
                return set()
            try:
                taken = self._ask("pg_try_advisory_lock", wanted)
            except DBAPIError as error:
                if not error.connection_invalidated:
                    raise
                taken = self._ask("pg_try_advisory_lock", wanted)  # in a new session
            self._taken |= taken
            return {numbers[number] for number in taken}

    def release(self, keys: Iterable[str]) -> None:
        with self._lock, self._within():
            held = [n for n in (-1 - _number(key) for key in keys) if n in self._taken]
            if not held:
                return
            try:
                self._ask("pg_advisory_unlock", held)
            except DBAPIError as error:
                if not error.connection_invalidated:
                    raise
                self._taken.clear()  # they ended with their session
            self._taken.difference_update(held)

    def _ask(self, function: str, numbers: list[int]) -> set[int]:
        # Negative numbers, so that none is one of the catalog's own locks.
        query = text(f"SELECT n FROM unnest(CAST(:n AS bigint[])) AS n WHERE {function}(n)")
        return set(self._open().execute(query, {"n": numbers}).scalars())

    def _open(self) -> Connection:
        if self._connection is None or self._connection.closed or self._connection.invalidated:
            self._taken.clear()  # a new session has none of the old one's locks
            connection = self._engine.connect()
            self._connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        return self._connection

    def close(self) -> None:
        """Give up all claims."""
        with self._lock:
            self._taken.clear()
            if self._connection is not None:
                # Back in the pool the session would keep its locks.
                self._connection.invalidate()
                self._connection.close()
                self._connection = None


def _number(key: str) -> int:
    return int(key[:15], 16)


_sessions: weakref.WeakSet[SessionClaims] = weakref.WeakSet()


def _forget_in_child() -> None:
    # What the parent holds, the child does not.
    global _files_lock
    _files_lock = threading.Lock()
    for file in _files.values():
        if file._descriptor >= 0:
            os.close(file._descriptor)
        file.forget()
    for session in list(_sessions):
        session.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
