"""What a step is, as stored: the parts of its key and the stored form of its result."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

__all__ = ["Explanation", "Memo", "PartChange", "StepKey", "StoredValue"]


class StepKey(msgspec.Struct, frozen=True, kw_only=True):
    """What decides whether a stored result may be used.

    Attributes:
        digest: blake3 over all the parts.
        parts: ``{"code:name": digest, "param:x": digest, "input:rows": digest,
            "dist:numpy": version}``; kept, so that a hit or a miss can be explained.
        notes: What could not be followed, and what was used instead.
    """

    step: str
    digest: str
    parts: dict[str, str]
    notes: tuple[str, ...] = ()


class StoredValue(msgspec.Struct, frozen=True, kw_only=True):
    """A result at rest: how it is encoded, the digest of its bytes, and facts about it."""

    kind: str
    digest: str
    size: int
    meta: dict[str, Any] = {}


class Memo(msgspec.Struct, frozen=True, kw_only=True):
    """A stored result of a step."""

    key: StepKey
    value: StoredValue
    run_id: str
    created_at: datetime


class PartChange(msgspec.Struct, frozen=True, kw_only=True):
    """One part of a key that differs; empty where there is no such part."""

    part: str
    before: str
    now: str


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Why one call of a step ran or was taken from the store.

    Attributes:
        outcome: ``ran``, ``cached`` or ``failed``.
        reason: The sentence that says it.
        changes: Parts in which its key differs from the nearest one stored before it.
        compared_run: The run that stored that nearest one, or empty.
        parts: All parts of its key.
    """

    step: str
    seq: int
    outcome: str
    reason: str
    changes: tuple[PartChange, ...] = ()
    compared_run: str = ""
    notes: tuple[str, ...] = ()
    parts: dict[str, str] = {}
