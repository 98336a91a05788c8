"""What a step is, as stored: the parts of its key and the stored form of its result."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import msgspec

__all__ = [
    "Explanation",
    "Memo",
    "PartChange",
    "Rerun",
    "StepComparison",
    "StepKey",
    "StoredValue",
]


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


class StepComparison(msgspec.Struct, frozen=True, kw_only=True):
    """One call of a step in a run and in its repetition.

    Attributes:
        before: Digest of the output then.
        now: Digest of the output now.
        verdict: ``equal``; ``not deterministic`` where the same inputs gave another output;
            ``follows`` where the inputs differed already; ``only then`` and ``only now`` where one
            run did not get there; ``not compared`` where the output has no stored form.
        changes: Parts of the key in which the two differ.
    """

    step: str
    before: str
    now: str
    verdict: Literal[
        "equal", "not deterministic", "follows", "only then", "only now", "not compared"
    ]
    changes: tuple[PartChange, ...] = ()


class Rerun(msgspec.Struct, frozen=True, kw_only=True):
    """A run compared with its exact repetition.

    Attributes:
        run: The first run.
        rerun: The run that repeated it.
        equal: Whether every step gave what it gave then, and the run ended as it did.
        state: How the repetition ended.
        steps: In the order of the first run.
        environment: What is not as it was.
    """

    run: str
    rerun: str
    equal: bool
    state: str
    steps: tuple[StepComparison, ...]
    environment: tuple[PartChange, ...] = ()


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
