"""What names an object."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from blake3 import blake3

from everloop.errors import InvalidInput

__all__ = ["check_digests", "digest_of_pieces"]

_HEX = frozenset("0123456789abcdef")


def check_digests(digests: Iterable[str]) -> None:
    """Raise InvalidInput unless each is 64 hex digits; nothing else becomes a part of a path."""
    for digest in digests:
        if len(digest) != 64 or not _HEX.issuperset(digest):
            raise InvalidInput(f"{digest!r} is no object digest")


def digest_of_pieces(pieces: Sequence[bytes]) -> tuple[str, int]:
    """Digest and size of pieces, one after the other."""
    hasher, size = blake3(max_threads=blake3.AUTO), 0
    for piece in pieces:
        hasher.update(piece)
        size += len(piece)
    return hasher.hexdigest(), size
