"""Erasure of a subject: what it would do, and the receipt of what it did."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

__all__ = [
    "ErasedVersion",
    "Erasure",
    "Hold",
    "Receipt",
    "ReplacedObject",
    "Verification",
]

FORMAT = "everloop.erasure/1"


class ErasedVersion(msgspec.Struct, frozen=True, kw_only=True):
    """A version that rows were erased from.

    Attributes:
        ref: ``name@number``.
        digest: What it is named by, before and after.
        content: The digest of what is left.
        before, after: Its rows.
    """

    ref: str
    digest: str
    content: str
    before: int
    after: int


class ReplacedObject(msgspec.Struct, frozen=True, kw_only=True):
    """An object of the store that held the subject.

    Attributes:
        kind: ``block``, ``row hashes``, ``layout``, ``ledger``, ``predictions``, ``labels``,
            ``artifact``, ``result`` (of a step) or ``unnamed``.
        before: Its digest; there is no such object any more.
        after: The object in its place, empty if there is none.
        rows: How many rows it lost.
    """

    kind: str
    before: str
    after: str = ""
    rows: int = 0


class Erasure(msgspec.Struct, frozen=True, kw_only=True):
    """What an erasure did, or would do.

    Attributes:
        rows: Rows of distinct objects; the same row in ten versions that share it counts once.
        versions: Those that hold the subject, of all datasets.
        objects: What is or was replaced or removed.
        counts: Other places by name, with the number of entries: results of steps that were
            dropped, values in the catalog, entities in the online store.
        unreached: What may hold the subject and was not, or cannot be, changed from here.
        models: Model versions that came of a version with the subject: told, never changed.
        holds: Legal holds in the way; an erasure is refused while there is one.
    """

    rows: int = 0
    versions: tuple[ErasedVersion, ...] = ()
    objects: tuple[ReplacedObject, ...] = ()
    counts: dict[str, int] = {}
    unreached: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    holds: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether the subject is nowhere within reach."""
        return not (self.objects or self.counts)


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """The signed proof of one erasure. It holds no value of the subject.

    Attributes:
        id: Of the erasure; empty for a dry run.
        dataset: What it was restricted to, empty for everything.
        columns: Those that the subject was named by.
        values: How many values were named.
        subject: Keyed hash of all that was asked, so that the same question has the same hash.
        subjects: Keyed hash of each value, sorted; left out where there are more than 1,000.
        actor: Who asked.
        asked_at, done_at: When, in UTC.
        key: Id of the key; `mac` is the signature by it over all the rest.
    """

    format: str = FORMAT
    id: str = ""
    dataset: str = ""
    columns: tuple[str, ...]
    values: int
    subject: str
    subjects: tuple[str, ...] = ()
    reason: str = ""
    actor: str = ""
    asked_at: datetime
    done_at: datetime | None = None
    dry_run: bool = False
    erased: Erasure
    key: str = ""
    scheme: str = ""
    mac: str = ""


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """What a receipt is worth here.

    Attributes:
        signature: ``valid``, ``invalid``, or ``unknown key``: the key of this workspace is another.
        present: Erased objects that are in the store again, as somebody saved the same bytes since.
        matches: Whether the receipt is of the subject that was asked about; None if none was.
    """

    signature: Literal["valid", "invalid", "unknown key"]
    present: tuple[str, ...] = ()
    matches: bool | None = None

    @property
    def is_good(self) -> bool:
        """Whether the signature holds and, if a subject was asked about, the receipt is of it."""
        return self.signature == "valid" and self.matches is not False


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    """Data that must stay; no dataset means all of them."""

    name: str
    dataset: str = ""
    reason: str
    actor: str
    created_at: datetime
