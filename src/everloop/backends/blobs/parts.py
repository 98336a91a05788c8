"""Uploads in parts as files: ``tmp/parts/<id>/<number>``, whole or not there."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from blake3 import blake3

from everloop.backends.blobs.files import write_durably
from everloop.core.ids import new_id
from everloop.errors import BackendError, InvalidInput, NotFound

__all__ = ["PartFiles"]

_CHUNK = 1 << 20
_KEPT_S = 7 * 24 * 3600
_MOST_PARTS = 10_000


class PartFiles:
    """The parts of uploads under way, below one folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def begin(self, purpose: str) -> str:
        """A new upload; old ones that nobody goes on with are dropped."""
        self._drop_old()
        upload = secrets.token_hex(16)
        folder = self._root / upload
        try:
            folder.mkdir(parents=True, mode=0o700)
            _write(folder, "purpose", [purpose.encode()])
        except OSError as error:
            raise self._failed(error) from error
        return upload

    def put(self, upload: str, number: int, data: Iterable[bytes]) -> str:
        """Store one part; its digest."""
        folder = self._folder(upload)
        if not 1 <= number <= _MOST_PARTS:
            raise InvalidInput(f"there is no part {number}: they count from 1 to {_MOST_PARTS}")
        try:
            return _write(folder, str(number), data)
        except FileNotFoundError:
            raise _gone(upload) from None
        except OSError as error:
            raise self._failed(error) from error

    def read(self, upload: str, purpose: str, parts: dict[int, str]) -> Iterator[bytes]:
        """The parts in order, in pieces; checked to be there and the same before the first."""
        folder = self.check(upload, purpose)
        faults = []
        for number, digest in sorted(parts.items()):
            file = folder / str(number)
            if not file.exists():
                faults.append((f"parts[{number}]", "was never uploaded"))
            elif digest and _digest(file) != digest:
                faults.append((f"parts[{number}]", "is not what its etag says"))
        if faults:
            raise InvalidInput("The upload cannot be completed", faults)
        return _pieces([folder / str(number) for number in sorted(parts)])

    def check(self, upload: str, purpose: str) -> Path:
        """The folder of an upload; raises NotFound if it is not of this purpose."""
        folder = self._folder(upload)
        try:
            said = (folder / "purpose").read_text()
        except FileNotFoundError:
            raise _gone(upload) from None
        if said != purpose:
            raise _gone(upload)
        return folder

    def drop(self, folder: Path) -> None:
        """End an upload."""
        shutil.rmtree(folder, ignore_errors=True)

    def _folder(self, upload: str) -> Path:
        if len(upload) != 32 or set(upload) - set("0123456789abcdef"):
            raise _gone(upload)
        return self._root / upload

    def _drop_old(self) -> None:
        oldest = time.time() - _KEPT_S
        for folder in self._root.glob("*"):
            try:
                is_old = folder.stat().st_mtime < oldest
            except FileNotFoundError:
                continue  # its client has just ended it
            if is_old:
                self.drop(folder)

    def _failed(self, error: OSError) -> BackendError:
        return BackendError(
            f"could not store a part in {self._root}: {error.strerror or error}",
            hint="free space or check the rights of the folder, then do it again",
        )


def _write(folder: Path, name: str, data: Iterable[bytes]) -> str:
    temporary = folder / f".{new_id()}"
    try:
        digest, _ = write_durably(temporary, data)
        os.rename(temporary, folder / name)
    finally:
        temporary.unlink(missing_ok=True)
    return digest


def _digest(file: Path) -> str:
    return blake3(max_threads=blake3.AUTO).update_mmap(file).hexdigest()


def _pieces(files: list[Path]) -> Iterator[bytes]:
    for path in files:
        with open(path, "rb") as file:
            while piece := file.read(_CHUNK):
                yield piece


def _gone(upload: str) -> NotFound:
    return NotFound(f"no upload {upload[:40]!r} is under way", hint="begin it again")
