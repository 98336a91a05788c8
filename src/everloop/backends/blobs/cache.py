"""Objects of a distant store as files on this machine: a cache that is bounded in bytes.

It may be thrown away at any time. Several processes share a folder of it: a file comes under its
name as a whole, and each process holds it against that name once before it trusts it. What was
used longest ago goes first. What was used within the last minute stays, as somebody may be about
to open it; so the bound is passed by as much as is in use at once.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterable
from pathlib import Path

from blake3 import blake3

from everloop.core.ids import new_id
from everloop.errors import BackendError

__all__ = ["FileCache"]

_log = logging.getLogger(__name__)
_PIECE = 1 << 20
_IN_USE_S = 60
#: What is half-written for so long was left behind.
_LEFT_S = 24 * 3600
#: The cache is looked through when so much of the bound came since; it then shrinks to 9/10.
_SLACK, _LEAVE = 0.05, 0.9


class FileCache:
    """Files by digest below `root`, of `bound` bytes together."""

    def __init__(self, root: Path, bound: int) -> None:
        self._root = root
        self.bound = bound
        self._verified: dict[str, int] = {}
        self._came = bound  # the first file looks through what earlier processes left

    def path(self, digest: str) -> Path | None:
        """The file of an object, verified; None if it is not here."""
        file = self._file(digest)
        try:
            size = file.stat().st_size
            if self._verified.get(digest) != size and not self._is_whole(file, digest):
                return None
            os.utime(file)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self.failed(error) from error
        self._verified[digest] = size
        return file

    def read(self, digest: str) -> bytes | None:
        """The bytes of an object, verified; None if it is not here."""
        file = self._file(digest)
        try:
            data = file.read_bytes()
            if blake3(data).hexdigest() != digest:
                file.unlink(missing_ok=True)
                return None
            os.utime(file)
        except OSError:  # not here; what cannot be read is as good as not here
            return None
        return data

    def add(self, digest: str, data: bytes) -> None:
        """Take in bytes that have this digest. A disk that is full does not matter here."""
        if len(data) > self.bound:
            return
        temporary = self.waiting()
        try:
            temporary.write_bytes(data)
            self.take(temporary, digest, len(data))
        except OSError as error:
            _log.warning("the cache %s took nothing: %s", self._root, error.strerror or error)
        finally:
            temporary.unlink(missing_ok=True)

    def waiting(self) -> Path:
        """A new name for a file that is not whole yet; raises BackendError."""
        folder = self._root / "tmp"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self.failed(error) from error
        return folder / new_id()

    def take(self, temporary: Path, digest: str, size: int) -> Path:
        """Give a whole file, whose bytes were held against `digest`, its name."""
        file = self._file(digest)
        file.parent.mkdir(parents=True, exist_ok=True)
        os.replace(temporary, file)
        self._verified[digest] = size
        self._came += size
        if self._came > self.bound * _SLACK:
            self._came = 0
            self._shrink()
        return file

    def drop(self, digests: Iterable[str]) -> None:
        """Forget objects that were removed."""
        for digest in digests:
            self._verified.pop(digest, None)
            self._file(digest).unlink(missing_ok=True)

    def _file(self, digest: str) -> Path:
        return self._root / digest[:2] / digest[2:]

    def _is_whole(self, file: Path, digest: str) -> bool:
        hasher = blake3(max_threads=blake3.AUTO)
        with open(file, "rb", buffering=0) as source:
            while piece := source.read(_PIECE):
                hasher.update(piece)
        if hasher.hexdigest() == digest:
            return True
        _log.warning("%s was damaged; it is fetched again", file)
        file.unlink(missing_ok=True)
        return False

    def _shrink(self) -> None:
        """Remove what was used longest ago, if there is more than the bound; one process does."""
        with open(self._root / "lock", "ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            now = time.time()
            for file in (self._root / "tmp").iterdir():
                self._remove_older(file, now - _LEFT_S)
            found, total = [], 0
            for folder in self._root.glob("[0-9a-f][0-9a-f]"):
                with os.scandir(folder) as entries:
                    for entry in entries:
                        try:
                            status = entry.stat()
                        except FileNotFoundError:
                            continue
                        found.append((status.st_mtime, status.st_size, entry.path))
                        total += status.st_size
            if total <= self.bound:
                return
            for used, size, path in sorted(found):
                if total <= self.bound * _LEAVE or used > now - _IN_USE_S:
                    return
                Path(path).unlink(missing_ok=True)
                total -= size

    def _remove_older(self, file: Path, limit: float) -> None:
        try:
            if file.stat().st_mtime < limit:
                file.unlink()
        except FileNotFoundError:
            pass  # its writer lives

    def failed(self, error: OSError) -> BackendError:
        """What is to be said of a fault of this machine's disk."""
        return BackendError(
            f"the cache of objects in {self._root} cannot be used: {error.strerror or error}",
            hint="free space or check the rights of the folder, then do it again",
        )
