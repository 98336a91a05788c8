"""Marks: what decides, without a lock, whether a stored thing was renewed or removed first.

A *carrier* is a key that holds objects: a pack, or one large object. Its name is never used again.
Its mark, a small key beside it, says when it was last wanted and what of it is removed. Whoever
renews or removes replaces the mark by a conditional put, so that one of two is refused and looks
again. Without a mark a carrier is as old as its own key. The protocol is that of ADR 16.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from typing import Any, NamedTuple

from everloop.backends.blobs.s3_bucket import Absent, Bucket, Entry, Refused, side_by_side
from everloop.errors import BackendError

__all__ = ["FOLDER", "Mark", "Marks"]

FOLDER = "marks"
#: Bytes of a mark that says "wanted" and nothing else: its own time is the age.
_PLAIN = 32
_TRIES = 50


class Mark(NamedTuple):
    """What is known of a carrier.

    Attributes:
        e_tag: Names this state; empty if there is no mark.
        at: When the carrier was last wanted, in seconds since 1970; 0 if there is no mark.
        gone: Digests (32 bytes each) of what is removed from it.
        dead: Whether all of it is removed.
    """

    e_tag: str = ""
    at: float = 0.0
    gone: frozenset[bytes] = frozenset()
    dead: bool = False


class Marks:
    """The marks of the carriers in a bucket."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        #: Bodies that say more than "wanted", by carrier, as they do not change under an ETag.
        self._read: dict[str, Mark] = {}

    def read(self, carrier: str) -> Mark:
        """The mark of a carrier as it is now."""
        try:
            data, entry = self._bucket.get(_key(carrier))
        except Absent:
            return Mark()
        return self._decoded(data, entry)

    def all(self, folder: str) -> dict[str, Mark]:
        """The marks of the carriers below a folder; what was read of one before is not again."""
        entries = {entry.key[len(FOLDER) + 1 :]: entry for entry in self._bucket.list(_key(folder))}
        found = {carrier: Mark(entry.e_tag, entry.at) for carrier, entry in entries.items()}
        longer = [carrier for carrier, entry in entries.items() if entry.size != _PLAIN]
        unread = [
            carrier
            for carrier in longer
            if carrier not in self._read or self._read[carrier].e_tag != found[carrier].e_tag
        ]
        self._read.update(zip(unread, side_by_side(self.read, unread), strict=True))
        return found | {carrier: self._read[carrier] for carrier in longer}

    def keep(self, carrier: str, wanted: Iterable[bytes]) -> set[bytes]:
        """Make a carrier young; those of the objects `wanted` of it that are removed.

        All of them if the carrier is: then it is as if it had never been there.
        """
        wanted, before = set(wanted), Mark()
        for turn in range(_TRIES):
            mark = self.read(carrier)
            gone = wanted if mark.dead else wanted & mark.gone
            if gone == wanted:
                return gone
            if turn and before.e_tag and mark.e_tag not in ("", before.e_tag) and not mark.gone:
                return gone  # somebody else renewed it while we tried
            if self._swap(carrier, mark, mark.gone):
                # Made new, the mark may have come after carrier and older mark were removed.
                if not mark.e_tag and self._bucket.head(carrier) is None:
                    self._bucket.delete([_key(carrier)])
                    return wanted
                return gone
            before = mark
        raise self._busy(carrier)

    def remove(
        self, carrier: str, at: float, removed: set[bytes] | None, before: float | None
    ) -> Mark | None:
        """Say that objects of a carrier are removed, unless it was wanted since `before`.

        Args:
            carrier: The key.
            at: When it was written.
            removed: Which of its objects; None means all of it.
            before: None removes whatever its age.

        Returns:
            Its mark now; None if it was wanted lately or is removed already.
        """
        for _ in range(_TRIES):
            mark = self.read(carrier)
            last = mark.at if mark.e_tag else at
            # Times are told in whole seconds, so it may have been wanted up to one later.
            if mark.dead or (before is not None and last + 1 > before):
                return None
            gone = mark.gone | removed if removed is not None else mark.gone
            if self._swap(carrier, mark, gone, dead=removed is None, at=last):
                return mark._replace(gone=gone, dead=removed is None, at=last)
        raise self._busy(carrier)

    def retire(self, carrier: str, mark: Mark) -> bool:
        """Say that all of a carrier is removed, if its mark is still this one; whether it was."""
        return self._swap(carrier, mark, mark.gone, dead=True, at=mark.at)

    def forget(self, carriers: Iterable[str]) -> None:
        """Drop the marks of carriers that are not there any more."""
        self._bucket.delete([_key(carrier) for carrier in carriers])

    def _swap(
        self,
        carrier: str,
        mark: Mark,
        gone: frozenset[bytes],
        *,
        dead: bool = False,
        at: float | None = None,
    ) -> bool:
        # An ETag is of the content: without the nonce two marks would be one state.
        nonce = secrets.token_hex(_PLAIN // 2)
        body = nonce.encode()
        if gone or dead or at is not None:
            said = {"nonce": nonce, "dead": dead, "at": at, "gone": b"".join(sorted(gone)).hex()}
            body = json.dumps(said).encode()
        try:
            self._bucket.swap(_key(carrier), body, mark.e_tag)
        except Refused:
            # A put whose answer was lost is sent again, and refused by what it wrote itself.
            try:
                return self._bucket.get(_key(carrier))[0] == body
            except Absent:
                return False
        except Absent:
            return False
        return True

    def _decoded(self, data: bytes, entry: Entry) -> Mark:
        if len(data) == _PLAIN:
            return Mark(entry.e_tag, entry.at)
        try:
            said: dict[str, Any] = json.loads(data)
            gone = bytes.fromhex(said["gone"])
            at = entry.at if said["at"] is None else float(said["at"])
            dead = bool(said["dead"])
        except (ValueError, KeyError, TypeError):
            raise BackendError(
                f"the mark {entry.key} in {self._bucket.place} is damaged",
                hint="delete this key while nothing writes; then nothing of it counts as removed",
            ) from None
        parts = frozenset(gone[n : n + 32] for n in range(0, len(gone), 32))
        return Mark(entry.e_tag, at, parts, dead)

    def _busy(self, carrier: str) -> BackendError:
        return BackendError(
            f"{carrier} in {self._bucket.place} was changed by others {_TRIES} times in a row",
            hint="do it again",
        )


def _key(carrier: str) -> str:
    return f"{FOLDER}/{carrier}"
