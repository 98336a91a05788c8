"""Ids that sort by time: ULIDs (26 letters of Crockford's base 32, 48 bits of ms, 80 random).

Within one process ids are strictly increasing, even within a millisecond and when the clock
steps back; across processes they sort by the millisecond.

Source: the ULID specification, section "Monotonicity".
"""

from __future__ import annotations

import os
import threading
import time
import uuid

__all__ = ["is_id", "new_id", "new_ids", "time_ms_of", "uuid_of"]

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_VALUE = {letter: index for index, letter in enumerate(_ALPHABET)}
_PAIRS = [a + b for a in _ALPHABET for b in _ALPHABET]
_RANDOM_BITS = 80
_LOW_BITS = 40
_LOW = (1 << _LOW_BITS) - 1

_lock = threading.Lock()
_last = 0


def _reset_after_fork() -> None:
    # A forked child must not continue its parent's sequence: both would give the same ids.
    global _last, _lock
    _lock = threading.Lock()
    _last = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)


def _encode(value: int, letters: int) -> str:
    # Two letters (10 bits) at a time halve the work.
    parts = []
    for _ in range(letters // 2):
        parts.append(_PAIRS[value & 1023])
        value >>= 10
    return "".join(reversed(parts))


def new_ids(count: int) -> list[str]:
    """Return `count` new ids, increasing."""
    global _last
    with _lock:
        fresh = (int(time.time() * 1000) << _RANDOM_BITS) | int.from_bytes(os.urandom(10))
        first = fresh if fresh > _last else _last + 1
        _last = first + max(count - 1, 0)
    ids: list[str] = []
    value, end = first, first + count
    while value < end:
        # Ids in a row share all but their last eight letters.
        stop = min(end, (value | _LOW) + 1)
        head = _encode(value >> _LOW_BITS, 18)
        ids += [head + _encode(low, 8) for low in range(value & _LOW, (stop - 1 & _LOW) + 1)]
        value = stop
    return ids


def new_id() -> str:
    """Return one new id."""
    return new_ids(1)[0]


def is_id(text: str) -> bool:
    """Whether `text` has the form of an id."""
    return len(text) == 26 and text[0] < "8" and all(letter in _VALUE for letter in text)


def time_ms_of(identifier: str) -> int:
    """Milliseconds since 1970 (UTC) at which the id was made."""
    value = 0
    for letter in identifier[:10]:
        value = value * 32 + _VALUE[letter]
    return value


def uuid_of(identifier: str) -> str:
    """The UUID for where only UUIDs are taken: the same 128 bits, where the id has so many."""
    if is_id(identifier):
        value = 0
        for letter in identifier:
            value = value * 32 + _VALUE[letter]
        return str(uuid.UUID(int=value))
    try:
        return str(uuid.UUID(identifier))
    except ValueError:
        return str(uuid.uuid5(uuid.NAMESPACE_OID, identifier))
