"""Online values in LMDB: one memory-mapped folder, many reading processes, one writer at a time.

A commit is written through to the disk; the pointer to it follows with the next commit, so a power
cut may lose the last write, whole, and never damages what is there. A killed process loses nothing.
"""

from __future__ import annotations

import functools
import hashlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lmdb

from everloop.errors import BackendError, StateError

__all__ = ["LmdbOnline"]

# Address space to begin with; the file grows only by what is written.
_FIRST_SIZE = 256 << 20
_MOST_READERS = 1024
_PREFIX_BYTES = 8
_PLAIN, _HASHED = b"\0", b"\1"


class LmdbOnline:
    """An OnlineStore in a folder (contract: ``everloop.testing.online``).

    Handles on one folder within a process share one environment, as LMDB demands. A handle may be
    used by many threads and is safe to keep over a fork.

    Args:
        path: The folder; made if it is not there.
        readonly: Refuse writes: for processes that serve.
        first_size: Address space to begin with, in bytes; it doubles when it is full.

    Raises:
        BackendError: If the folder cannot be made or opened.
    """

    def __init__(
        self, path: str | Path, *, readonly: bool = False, first_size: int = _FIRST_SIZE
    ) -> None:
        self._path = Path(path)
        self._readonly = readonly
        self._size = first_size
        self._shared: _Environment | None = _acquire(self._path, first_size)

    def write(self, values: Mapping[str, Mapping[bytes, bytes]]) -> None:
        items = sorted(
            (_key(view, key), value) for view, own in values.items() for key, value in own.items()
        )
        environment = self._environment(writing=True)

        def put(transaction: lmdb.Transaction) -> None:
            cursor = transaction.cursor()
            cursor.putmulti(items)
            cursor.close()

        environment.write(put)

    def read(self, view: str, keys: Sequence[bytes]) -> list[bytes | None]:
        prefix = _prefix(view)
        plain = prefix + _PLAIN
        return self._environment().read(
            [plain + key if len(key) < _LONGEST_KEY else _key(view, key) for key in keys]
        )

    def clear(self, view: str) -> None:
        prefix = _prefix(view)

        def delete(transaction: lmdb.Transaction) -> None:
            with transaction.cursor() as cursor:
                found = cursor.set_range(prefix)
                while found and bytes(cursor.key()[:_PREFIX_BYTES]) == prefix:
                    found = cursor.delete()

        self._environment(writing=True).write(delete)

    def close(self) -> None:
        shared, self._shared = self._shared, None
        if shared is not None:
            _release(shared)

    def _environment(self, *, writing: bool = False) -> _Environment:
        if writing and self._readonly:
            raise StateError(
                f"the online store {self._path} was opened to read only",
                hint="push from the process that owns the store",
            )
        if self._shared is None:
            raise StateError(f"the online store {self._path} is closed")
        if self._shared.pid != os.getpid():  # LMDB must not be used on both sides of a fork
            self._shared = _acquire(self._path, self._size)
        return self._shared


# LMDB's keys hold 511 bytes, of which the view and a mark take some.
_LONGEST_KEY = 511 - _PREFIX_BYTES - 1


@functools.lru_cache(maxsize=1024)
def _prefix(view: str) -> bytes:
    return hashlib.blake2b(view.encode(), digest_size=_PREFIX_BYTES).digest()


def _key(view: str, key: bytes) -> bytes:
    if len(key) < _LONGEST_KEY:
        return _prefix(view) + _PLAIN + key
    return _prefix(view) + _HASHED + hashlib.sha256(key).digest()


class _Environment:
    """One LMDB environment of this process, and the gate that lets it grow between reads."""

    def __init__(self, path: Path, first_size: int) -> None:
        self.path = path
        self.pid = os.getpid()
        self.handles = 0
        self._gate = threading.Condition()
        self._readers = 0
        self._growing = False
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._env = self._open(path, first_size)
        except (lmdb.Error, OSError) as error:
            raise BackendError(
                f"cannot open the online store {path}: {error}",
                hint="check that the folder exists and may be written",
            ) from error

    @staticmethod
    def _open(path: Path, first_size: int) -> lmdb.Environment:
        if not os.access(path, os.W_OK):  # a copy on a disk that nobody may write to
            return lmdb.open(str(path), readonly=True, lock=False, readahead=False)
        env = lmdb.open(
            str(path),
            map_size=first_size,
            max_readers=_MOST_READERS,
            metasync=False,
            readahead=False,
        )
        env.reader_check()  # a killed process leaves its place in the table of readers
        return env

    def read(self, keys: list[bytes]) -> list[bytes | None]:
        """The values of `keys`, all as of one state."""
        with self._gate:
            while self._growing:
                self._gate.wait()
            self._readers += 1
        try:
            transaction = self._begin()
            found: list[Any] = list(map(transaction.get, keys))
            transaction.abort()
        except lmdb.Error as error:
            raise self._failed("read", error) from error
        finally:
            self._leave()
        return found

    def _leave(self) -> None:
        with self._gate:
            self._readers -= 1
            if self._growing:
                self._gate.notify_all()

    def _begin(self) -> lmdb.Transaction:
        try:
            return self._env.begin(buffers=False)
        except lmdb.MapResizedError:  # another process made the map larger
            with self._gate:
                self._readers -= 1
            try:
                self._resize(0)
            finally:
                with self._gate:
                    self._readers += 1
        return self._env.begin(buffers=False)

    def write(self, action: Callable[[lmdb.Transaction], None]) -> None:
        """Run `action` in a write transaction, with more space if it asks for it."""
        while True:
            try:
                with self._env.begin(write=True) as transaction:
                    action(transaction)
                return
            except lmdb.MapFullError:
                self._resize(self._env.info()["map_size"] * 2)
            except lmdb.MapResizedError:
                self._resize(0)
            except lmdb.Error as error:
                raise self._failed("write", error) from error

    def _resize(self, size: int) -> None:
        """Set the size of the map while nobody reads; 0 takes what another process has set."""
        with self._gate:
            while self._growing:
                self._gate.wait()
            self._growing = True
            while self._readers:
                self._gate.wait()
        try:
            if size == 0 or size > self._env.info()["map_size"]:
                self._env.set_mapsize(size)
        except lmdb.Error as error:
            raise self._failed("grow", error) from error
        finally:
            with self._gate:
                self._growing = False
                self._gate.notify_all()

    def _failed(self, what: str, error: lmdb.Error) -> BackendError:
        return BackendError(
            f"the online store {self.path} could not {what}: {error}",
            hint="free space or check the rights of the folder, then do it again",
        )

    def close(self) -> None:
        self._env.close()


_lock = threading.Lock()
_open: dict[str, _Environment] = {}


def _acquire(path: Path, first_size: int) -> _Environment:
    name = os.path.realpath(path)
    with _lock:
        found = _open.get(name)
        if found is None or found.pid != os.getpid():
            found = _open[name] = _Environment(path, first_size)
        found.handles += 1
        return found


def _release(shared: _Environment) -> None:
    with _lock:
        shared.handles -= 1
        if shared.handles == 0 and shared.pid == os.getpid():
            _open.pop(os.path.realpath(shared.path), None)
            shared.close()


def _leave_to_parent() -> None:
    # LMDB must not be used on both sides of a fork. Closing in the child takes nothing from the
    # parent: its places in the table of readers go by process. The lock may be held, so a new one.
    global _lock
    _lock = threading.Lock()
    for shared in _open.values():
        shared.close()
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)
