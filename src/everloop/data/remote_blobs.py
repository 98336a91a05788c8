"""RemoteBlobs: the object store behind a server, through its ObjectService."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO

from blake3 import blake3

from everloop.data.objects import ObjectService
from everloop.errors import BackendError, NotFound, StateError

__all__ = ["RemoteBlobs"]

#: Bytes that one call takes to the server, about.
_AT_ONCE = 8 << 20


class RemoteBlobs:
    """A BlobStore whose bytes lie on a server. What was read once is kept out of memory again."""

    def __init__(self, objects: ObjectService) -> None:
        self._objects = objects

    def put(self, data: bytes | Iterable[bytes] | BinaryIO) -> tuple[str, int]:
        if not isinstance(data, bytes | bytearray | memoryview):
            data = data.read() if hasattr(data, "read") else b"".join(data)
        return self._objects.put(bytes(data)), len(data)

    def put_many(self, data: Sequence[bytes]) -> list[tuple[str, int]]:
        found = [(blake3(item).hexdigest(), len(item)) for item in data]
        lacking = set(self.keep_many([digest for digest, _ in found]))
        part: list[bytes] = []
        size = 0
        for (digest, _), item in zip(found, data, strict=True):
            if digest in lacking:
                lacking.discard(digest)
                part.append(bytes(item))
                size += len(item)
            if size >= _AT_ONCE:
                self._objects.put_many(part)
                part, size = [], 0
        if part:
            self._objects.put_many(part)
        return found

    def get(self, digest: str) -> bytes:
        data = self._objects.get(digest)
        if blake3(data).hexdigest() != digest:
            raise BackendError(f"object {digest} was damaged on its way")
        return data

    def get_many(self, digests: Sequence[str]) -> list[bytes]:
        found = self._objects.get_many(list(digests)) if digests else []
        for digest, data in zip(digests, found, strict=True):
            if blake3(data).hexdigest() != digest:
                raise BackendError(f"object {digest} was damaged on its way")
        return found

    def stream(self, digest: str, chunk: int = 1 << 20) -> Iterator[bytes]:
        data = self.get(digest)
        for start in range(0, len(data), chunk):
            yield data[start : start + chunk]

    def exists(self, digest: str) -> bool:
        try:
            self._objects.get(digest)
        except NotFound:
            return False
        return True

    def keep(self, digest: str) -> bool:
        return self._objects.keep(digest)

    def keep_many(self, digests: Sequence[str]) -> list[str]:
        return self._objects.keep_many(list(digests)) if digests else []

    def delete(self, digest: str) -> None:
        raise StateError("objects are deleted where the store is")

    def digests(self) -> Iterator[str]:
        raise StateError("objects are listed where the store is")
