"""BlobStore: immutable bytes under the blake3 digest of their content."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol, runtime_checkable

__all__ = ["BlobStore", "CanErase", "CanRepair", "HasAges", "HasParts", "HasPaths", "ObjectAge"]


class BlobStore(Protocol):
    """Keeps bytes by content. A digest is 64 hex digits of blake3.

    Every method may be called by many threads and processes at once. When ``put`` has returned,
    the bytes survive a power cut; a reader never sees a part of an object. Putting bytes that are
    there already stores nothing, but their age starts anew: whoever is about to name an object in
    the catalog has put or kept it lately, and what is old and named nowhere may be removed.
    """

    def put(self, data: bytes | Iterable[bytes] | BinaryIO) -> tuple[str, int]:
        """Store `data` and return its digest and size.

        A list of pieces may be read twice: first for its digest, and then, if it is not there yet,
        to store it. Any other iterable is read once.

        Raises:
            BackendError: If it could not be stored (disk full, no right); nothing is left behind.
        """
        ...

    def put_many(self, data: Sequence[bytes]) -> list[tuple[str, int]]:
        """Store several objects, which takes far less time than one by one; as ``put`` for each."""
        ...

    def get(self, digest: str) -> bytes:
        """All bytes of an object, checked against the digest.

        Raises:
            NotFound: If there is no such object.
            BackendError: If the stored bytes are not what the digest says.
        """
        ...

    def get_many(self, digests: Sequence[str]) -> list[bytes]:
        """Several objects, which takes far less time than one by one; as ``get`` for each.

        All of them are in memory at once.
        """
        ...

    def stream(self, digest: str, chunk: int = 1 << 20) -> Iterator[bytes]:
        """The bytes in pieces; the check comes with the last one, same errors as ``get``."""
        ...

    def exists(self, digest: str) -> bool:
        """Whether the object is there."""
        ...

    def keep(self, digest: str) -> bool:
        """Say that an object is wanted: its age starts anew. False if it is not there."""
        ...

    def keep_many(self, digests: Sequence[str]) -> list[str]:
        """As ``keep`` for each, in far less time; those that are not there."""
        ...

    def delete(self, digest: str) -> None:
        """Remove an object; removing what is not there does nothing."""
        ...

    def digests(self) -> Iterator[str]:
        """All digests, in no order."""
        ...


@runtime_checkable
class HasPaths(Protocol):
    """A store whose objects are files on this machine, so that readers may map them."""

    def path(self, digest: str) -> Path:
        """The file of an object, read-only; raises as ``get``.

        It is verified once per process, and again when its size changed. A large object that this
        process has just stored may be taken for whole.
        """
        ...


class ObjectAge(NamedTuple):
    """An object as a store lists it: `put_at` is in seconds since 1970, by the store's clock."""

    digest: str
    size: int
    put_at: float


@runtime_checkable
class HasAges(Protocol):
    """A store that knows when each object was last put or kept, so that rubbish can be removed.

    ``remove_old`` and ``put`` or ``keep`` of the same object exclude each other: either the object
    was renewed first and stays, or it is gone and ``put`` stores it anew.
    """

    def ages(self) -> Iterator[ObjectAge]:
        """All objects with their ages, in no order; what goes meanwhile may be left out."""
        ...

    def remove_old(self, digest: str, before: float) -> bool:
        """Remove an object that nobody put or kept since `before`; whether it was removed."""
        ...

    def remove_old_many(self, digests: Sequence[str], before: float) -> list[str]:
        """As ``remove_old`` for each, where it can in less time; those that were removed."""
        ...

    def missing(self, digests: Sequence[str]) -> list[str]:
        """Those that are not there, as ``exists`` says of each; no age starts anew."""
        ...

    def remove_leftovers(self, before: float) -> tuple[int, int]:
        """Remove what writers that died before `before` left half-done: how many, and bytes."""
        ...


@runtime_checkable
class CanErase(Protocol):
    """A store that can remove objects for good, and not only from its lists."""

    def erase(self, digests: Sequence[str]) -> None:
        """Remove objects so that no file of the store has a byte of them, at once.

        Safe to do again after it was broken off; what is not there is passed over. What writers
        that died long ago left half-done goes as well.

        Raises:
            BackendError: If a file could not be written or removed.
        """
        ...


@runtime_checkable
class CanRepair(Protocol):
    """A store that can be mended."""

    def damaged_packs(self) -> list[str]:
        """Files of several objects of which the list of objects is damaged, by name."""
        ...

    def salvage(self) -> dict[str, int]:
        """Store the objects anew that can still be found in damaged packs.

        The packs are moved out of the way. By name how many objects were found in each.
        """
        ...

    def doubled(self) -> list[str]:
        """Objects of which there is more than one copy, of which readers may take either."""
        ...

    def quarantine(self, digest: str) -> bool:
        """Move a copy of an object that is damaged out of the way; whether there was one.

        A whole copy stays.
        """
        ...


@runtime_checkable
class HasParts(Protocol):
    """A store that takes a large object in parts, in any order and again, over days if need be.

    What is there of an upload survives a restart; uploads that nobody went on with for a week may
    be dropped.
    """

    def begin_parts(self, purpose: str) -> str:
        """Begin an upload and return its id, which cannot be guessed.

        Args:
            purpose: What it is for; the later calls must say the same.
        """
        ...

    def put_part(self, upload: str, number: int, data: Iterable[bytes]) -> str:
        """Store one part, over an earlier one of this number; its blake3 digest."""
        ...

    def join_parts(self, upload: str, purpose: str, parts: dict[int, str]) -> tuple[str, int]:
        """Make one object of these parts, in the order of their numbers.

        The parts stay until ``drop_parts``: the caller first makes the object known.

        Args:
            upload: Its id.
            purpose: As given when it began.
            parts: Number -> digest; an empty digest is not compared.

        Raises:
            NotFound: If there is no such upload.
            InvalidInput: If a part is missing or another; the upload can go on.
        """
        ...

    def drop_parts(self, upload: str, purpose: str) -> None:
        """End an upload and forget its parts; raises NotFound if there is none."""
        ...
