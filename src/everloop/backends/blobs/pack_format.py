"""The form of a pack: the bytes of its objects, a list of them, and what tells if it is whole.

The list has 48 bytes for each object: digest, offset, size. Behind it stand its length, its digest
and the sign of this form. A pack never changes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

from blake3 import blake3

__all__ = [
    "ENTRY_SIZE",
    "TAIL_SIZE",
    "Entries",
    "count_in",
    "entries_in",
    "entries_left",
    "laid_out",
    "listing",
    "portions",
]

_ENTRY = struct.Struct("<32sQQ")
_TAIL = struct.Struct("<Q32s8s")
_MAGIC = b"EVPACK01"
#: So many entries in a row may be damaged until a list is taken to have begun.
_MISSES = 64
ENTRY_SIZE, TAIL_SIZE = _ENTRY.size, _TAIL.size

#: Digest (32 bytes) -> offset and size.
Entries = dict[bytes, tuple[int, int]]


def laid_out(objects: Mapping[str, bytes]) -> Entries:
    """Where each object lies, when they are written one after the other."""
    entries: Entries = {}
    offset = 0
    for digest, data in objects.items():
        entries[bytes.fromhex(digest)] = (offset, len(data))
        offset += len(data)
    return entries


def listing(entries: Entries) -> bytes:
    """What stands behind the objects."""
    listed = b"".join(_ENTRY.pack(key, *place) for key, place in entries.items())
    return listed + _TAIL.pack(len(entries), blake3(listed).digest(), _MAGIC)


def count_in(end: bytes) -> int | None:
    """How many objects the pack with these last bytes has; None if they are not those of one."""
    if len(end) < TAIL_SIZE:
        return None
    count, _, magic = _TAIL.unpack(end[-TAIL_SIZE:])
    return int(count) if magic == _MAGIC else None


def entries_in(listed: bytes) -> Entries | None:
    """Reads what `listing` wrote; None if it is damaged."""
    count = count_in(listed)
    if count is None or len(listed) != count * ENTRY_SIZE + TAIL_SIZE:
        return None
    _, digest, _ = _TAIL.unpack(listed[-TAIL_SIZE:])
    body = listed[:-TAIL_SIZE]
    if blake3(body).digest() != digest:
        return None
    return {key: (offset, length) for key, offset, length in _ENTRY.iter_unpack(body)}


def entries_left(data: bytes) -> Entries:
    """What a damaged list still says rightly: each object is where its entry says, or it is not.

    The list stands before the tail; how long it is shows where its first object's entry is.
    """
    found: Entries = {}
    misses = 0
    at = len(data) - _TAIL.size - _ENTRY.size
    while at >= 0 and misses < _MISSES:
        key, offset, size = _ENTRY.unpack_from(data, at)
        piece = data[offset : offset + size] if offset + size <= at else None
        if piece is not None and blake3(piece).digest() == key:
            found[key] = (offset, size)
            misses = 0
            if offset == 0 and size:
                break
        else:
            misses += 1
        at -= _ENTRY.size
    return found


def portions(objects: Mapping[str, bytes], size: int) -> Iterator[dict[str, bytes]]:
    """The objects in groups, each for one pack, that reach about `size` bytes."""
    group: dict[str, bytes] = {}
    length = 0
    for digest, item in objects.items():
        group[digest] = item
        length += len(item)
        if length >= size:
            yield group
            group, length = {}, 0
    if group:
        yield group
