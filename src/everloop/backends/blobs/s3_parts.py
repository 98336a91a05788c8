"""Uploads in parts as keys: ``uploads/<id>/<number>``, whole or not there."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from blake3 import blake3

from everloop.backends.blobs.s3_bucket import Absent, Bucket, Entry, side_by_side
from everloop.errors import InvalidInput, NotFound

__all__ = ["PartKeys", "Spool"]

_FOLDER = "uploads"
_KEPT_S = 7 * 24 * 3600
_MOST_PARTS = 10_000
#: A part begins with the digest of the rest.
_HEAD = 32


class Spool(Protocol):
    """Writes pieces to a file of this machine: its path, digest and size."""

    def __call__(self, pieces: Iterable[bytes], *, head: int = 0) -> tuple[Path, str, int]: ...


class PartKeys:
    """The parts of uploads under way, below one prefix."""

    def __init__(self, bucket: Bucket, spool: Spool) -> None:
        self._bucket = bucket
        self._spool = spool

    def begin(self, purpose: str) -> str:
        """A new upload; old ones that nobody goes on with are dropped."""
        self._drop_old()
        upload = secrets.token_hex(16)
        self._bucket.put(f"{_FOLDER}/{upload}/purpose", purpose.encode())
        return upload

    def put(self, upload: str, number: int, data: Iterable[bytes]) -> str:
        """Store one part; its digest."""
        folder = _folder(upload)
        if not 1 <= number <= _MOST_PARTS:
            raise InvalidInput(f"there is no part {number}: they count from 1 to {_MOST_PARTS}")
        if self._bucket.head(f"{folder}/purpose") is None:
            raise _gone(upload)
        file, digest, _ = self._spool(data, head=_HEAD)
        try:
            self._bucket.put(f"{folder}/{number}", file)
        finally:
            file.unlink(missing_ok=True)
        return digest

    def read(self, upload: str, purpose: str, parts: dict[int, str]) -> Iterator[bytes]:
        """The parts in order, in pieces; checked to be there and the same before the first.

        That a part's bytes are what its digest says is checked as they are read.
        """
        folder = self.check(upload, purpose)
        there = {entry.key: entry for entry in self._bucket.list(folder)}
        numbers = sorted(parts)
        entries = [there.get(f"{folder}/{number}") for number in numbers]
        heads = side_by_side(self._head, entries)
        faults = []
        for number, head in zip(numbers, heads, strict=True):
            if head is None:
                faults.append((f"parts[{number}]", "was never uploaded"))
            elif parts[number] and head.hex() != parts[number]:
                faults.append((f"parts[{number}]", "is not what its etag says"))
        if faults:
            raise InvalidInput("The upload cannot be completed", faults)
        found = [(n, e, h) for n, e, h in zip(numbers, entries, heads, strict=True) if e and h]
        return self._pieces(found)

    def _head(self, entry: Entry | None) -> bytes | None:
        try:
            return self._bucket.span(entry.key, 0, _HEAD) if entry is not None else None
        except Absent:
            return None

    def _pieces(self, parts: list[tuple[int, Entry, bytes]]) -> Iterator[bytes]:
        for number, entry, digest in parts:
            hasher = blake3()
            for piece in self._bucket.pieces(entry.key, _HEAD, entry.size - _HEAD):
                hasher.update(piece)
                yield piece
            if hasher.digest() != digest:
                told = [
                    (f"parts[{number}]", "is damaged, or was put again meanwhile: send it again")
                ]
                raise InvalidInput("The upload cannot be completed", told)

    def check(self, upload: str, purpose: str) -> str:
        """The folder of an upload; raises NotFound if it is not of this purpose."""
        folder = _folder(upload)
        try:
            said, _ = self._bucket.get(f"{folder}/purpose")
        except Absent:
            raise _gone(upload) from None
        if said != purpose.encode():
            raise _gone(upload)
        return folder

    def drop(self, folder: str) -> None:
        """End an upload; first its purpose, without which it is none."""
        self._bucket.delete([f"{folder}/purpose"])
        self._bucket.delete([entry.key for entry in self._bucket.list(folder)])

    def _drop_old(self) -> None:
        newest: dict[str, float] = {}
        for entry in self._bucket.list(_FOLDER):
            folder = entry.key.rpartition("/")[0]
            newest[folder] = max(entry.at, newest.get(folder, 0))
        for folder, at in newest.items():
            if at < time.time() - _KEPT_S:
                self.drop(folder)


def _folder(upload: str) -> str:
    if len(upload) != 32 or set(upload) - set("0123456789abcdef"):
        raise _gone(upload)
    return f"{_FOLDER}/{upload}"


def _gone(upload: str) -> NotFound:
    return NotFound(f"no upload {upload[:40]!r} is under way", hint="begin it again")
