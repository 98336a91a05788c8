"""Small objects together in one key of a bucket, in the form of ``pack_format``.

Each process holds a list of what lies where, some 200 bytes for each object. The lists are read
from the ends of the packs, once for each machine: then they are in its cache.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from everloop.backends.blobs.pack_format import (
    ENTRY_SIZE,
    TAIL_SIZE,
    Entries,
    count_in,
    entries_in,
    laid_out,
    listing,
)
from everloop.backends.blobs.s3_bucket import Absent, Bucket, Entry, side_by_side
from everloop.backends.blobs.s3_marks import Mark, Marks
from everloop.core.ids import new_id
from everloop.errors import BackendError

__all__ = ["Pack", "Packs"]

_log = logging.getLogger(__name__)
PACKS = "packs"
_TRIES = 20
#: The end of a pack that is read at once: the list of 1,300 objects.
_END = 64 << 10
#: Ranges of one pack that are less apart than this come with one request of at most so many bytes.
_GAP, _RANGE = 64 << 10, 8 << 20


class Pack:
    """One pack: where each object is in it, and its mark as last seen.

    `at` is when it was written, 0 until it was listed; a look at the bucket that began before
    `turn` may not have seen it yet.
    """

    __slots__ = ("at", "entries", "key", "mark", "turn")

    def __init__(self, key: str, entries: Entries, at: float, turn: int) -> None:
        self.key = key
        self.entries = entries
        self.at = at
        self.turn = turn
        self.mark = Mark()

    @property
    def age(self) -> float:
        """When it was last wanted."""
        return self.mark.at if self.mark.e_tag else self.at

    def holds(self, digest: bytes) -> bool:
        """Whether an object is in it, as far as is known."""
        return digest in self.entries and not self.mark.dead and digest not in self.mark.gone


class Packs:
    """The packs of a bucket. `folder` keeps their lists on this machine."""

    def __init__(self, bucket: Bucket, marks: Marks, folder: Path) -> None:
        self._bucket = bucket
        self._marks = marks
        self._folder = folder
        self._lock = threading.Lock()
        self._turn = 0
        self._packs: dict[str, Pack] = {}
        self._places: dict[bytes, tuple[Pack, ...]] = {}

    def put(self, objects: Mapping[str, bytes]) -> Pack:
        """Write a pack of these objects, by digest."""
        entries = laid_out(objects)
        key = f"{PACKS}/{new_id()}"
        end = listing(entries)
        self._bucket.put(key, b"".join((*objects.values(), end)))
        self._remember(key, end)
        with self._lock:
            pack = Pack(key, entries, 0.0, self._turn)
            self._take(pack)
        return pack

    def holding(self, digest: str) -> list[Pack]:
        """The packs that have an object, as far as is known here."""
        key = bytes.fromhex(digest)
        return [pack for pack in self._places.get(key, ()) if pack.holds(key)]

    def by_pack(self, digests: Iterable[str]) -> dict[Pack, list[bytes]]:
        """Those of the objects that are known to be in packs, by one pack of each."""
        found: dict[Pack, list[bytes]] = {}
        for digest in digests:
            if packs := self.holding(digest):
                found.setdefault(packs[0], []).append(bytes.fromhex(digest))
        return found

    def all(self) -> list[Pack]:
        """Every pack that is known."""
        return list(self._packs.values())

    def refresh(self) -> None:
        """Bring what is known up to what is in the bucket: two lists, and what is new in them."""
        with self._lock:
            self._turn += 1
            turn = self._turn
        # Marks first: one whose pack is not in the later list is of a pack that was removed.
        states = self._marks.all(PACKS)
        packs = {entry.key: entry for entry in self._bucket.list(PACKS)}
        fresh = [entry for key, entry in packs.items() if key not in self._packs]
        opened = side_by_side(lambda entry: self._open(entry, turn), fresh)
        with self._lock:
            for key in self._packs.keys() - packs.keys():
                if self._packs[key].turn < turn:
                    self._drop(self._packs[key])
            for pack in opened:
                if pack is not None and pack.key not in self._packs:
                    self._take(pack)
            for key, pack in self._packs.items():
                if key in packs:
                    pack.at = packs[key].at
                now = states.get(key, Mark())
                # What is gone stays so; what we have just heard may be newer than the list.
                pack.mark = now._replace(
                    gone=now.gone | pack.mark.gone, dead=now.dead or pack.mark.dead
                )

    def read(self, pack: Pack, digests: Collection[bytes]) -> dict[str, bytes]:
        """The bytes, unchecked, of objects of a pack; none at all if it is gone meanwhile."""
        spans: list[list[tuple[int, int, bytes]]] = []
        for start, size, key in sorted((*pack.entries[key], key) for key in digests):
            if spans and _fits(spans[-1], start, size):
                spans[-1].append((start, size, key))
            else:
                spans.append([(start, size, key)])
        try:
            parts = side_by_side(lambda span: self._read_span(pack, span), spans)
        except Absent:
            self.drop(pack)
            return {}
        return {digest: data for part in parts for digest, data in part.items()}

    def _read_span(self, pack: Pack, span: list[tuple[int, int, bytes]]) -> dict[str, bytes]:
        first = span[0][0]
        end = max(start + size for start, size, _ in span)
        data = self._bucket.span(pack.key, first, end - first)
        return {key.hex(): data[start - first : start - first + size] for start, size, key in span}

    def keep(self, pack: Pack, digests: Collection[bytes]) -> set[bytes]:
        """Make a pack young; those of its objects `digests` that are not in it any more."""
        gone = self._marks.keep(pack.key, digests)
        if gone:
            pack.mark = pack.mark._replace(gone=pack.mark.gone | gone)
        return gone

    def remove(self, pack: Pack, digests: set[bytes], before: float | None) -> bool:
        """Remove objects of a pack, unless it was wanted since `before`; whether it did."""
        if not pack.at and before is not None:
            return False  # it was put after we looked
        mark = self._marks.remove(pack.key, pack.at, digests, before)
        if mark is None:
            return False
        pack.mark = mark
        self.compact(pack)
        return True

    def compact(self, pack: Pack) -> None:
        """Move what is left of a pack to a new one if that is less than half of it.

        The new one is there before the old one is said to be gone: whoever is refused by the old
        one finds it.
        """
        if not self._is_sparse(pack):
            return
        pack.mark = self._marks.read(pack.key)
        if not pack.mark.dead and self._is_sparse(pack):
            self._move(pack, set())

    def erase(self, digests: set[bytes]) -> None:
        """Move every pack that has bytes of these objects, removed ones too, without them."""
        for _ in range(_TRIES):
            self.refresh()
            packs = [pack for pack in self.all() if not digests.isdisjoint(pack.entries)]
            if not packs:
                return
            for pack in packs:
                pack.mark = self._marks.read(pack.key)
                if pack.mark.dead:
                    self._delete(pack)  # its remover died half-way, or is doing the same
                else:
                    self._move(pack, digests)  # again in the next turn, if it was kept meanwhile
        raise BackendError(
            f"what is to be erased from {self._bucket.place} is kept by others all the time",
            hint="do it again",
        )

    def _move(self, pack: Pack, without: set[bytes]) -> bool:
        """Move what is left of a pack to a new one, if its mark stays as it is; whether it did."""
        moved = None
        gone = pack.mark.gone | without
        if left := [key for key in pack.entries if key not in gone]:
            try:
                data = self._bucket.get(pack.key)[0]
            except Absent:  # another collection moved it
                self.drop(pack)
                return True
            places = {key: pack.entries[key] for key in left}
            moved = self.put(
                {key.hex(): data[at : at + size] for key, (at, size) in places.items()}
            )
        if self._marks.retire(pack.key, pack.mark):
            self._delete(pack)
            return True
        if moved is not None and self._marks.retire(moved.key, Mark()):
            # More of the old one was kept or removed meanwhile, and nobody wanted the new one.
            self._delete(moved)
        return False

    def _is_sparse(self, pack: Pack) -> bool:
        left = sum(size for key, (_, size) in pack.entries.items() if key not in pack.mark.gone)
        whole = sum(size for _, size in pack.entries.values())
        is_empty = pack.entries.keys() <= pack.mark.gone
        return bool(pack.entries) and (is_empty or left < whole / 2)  # none are of a damaged one

    def _delete(self, pack: Pack) -> None:
        """Delete a pack that is marked as removed, then its mark."""
        self._bucket.delete([pack.key])
        self._marks.forget([pack.key])
        self.drop(pack)

    def drop(self, pack: Pack) -> None:
        """Forget a pack that is gone from the bucket."""
        with self._lock:
            self._drop(pack)
        (self._folder / pack.key.rpartition("/")[2]).unlink(missing_ok=True)

    # Under the lock

    def _take(self, pack: Pack) -> None:
        self._packs[pack.key] = pack
        alone = (pack,)  # one for all of them, as most objects are in one pack
        for key in pack.entries:
            others = self._places.get(key)
            self._places[key] = (*others, pack) if others else alone

    def _drop(self, pack: Pack) -> None:
        if self._packs.pop(pack.key, None) is None:
            return
        for key in pack.entries:
            rest = tuple(other for other in self._places.get(key, ()) if other is not pack)
            if rest:
                self._places[key] = rest
            else:
                self._places.pop(key, None)

    # The lists

    def _open(self, entry: Entry, turn: int) -> Pack | None:
        name = entry.key.rpartition("/")[2]
        try:
            end = (self._folder / name).read_bytes()
        except OSError:
            end = b""
        entries = entries_in(end)
        for _ in range(2):  # what was damaged on its way is asked for once more
            if entries is not None:
                break
            try:
                end = self._end(entry)
            except Absent:
                return None  # moved since it was listed
            entries = entries_in(end)
            if entries is not None:
                self._remember(entry.key, end)
        if entries is None:
            # Its objects count as missing, and putting one again stores it anew.
            _log.error(
                "the pack %s in %s is damaged: its list of objects is not what it was; restore this"
                " key from an older version or a copy",
                entry.key,
                self._bucket.place,
            )
            entries = {}
        return Pack(entry.key, entries, entry.at, turn)

    def _end(self, entry: Entry) -> bytes:
        end = self._bucket.tail(entry.key, _END)
        count = count_in(end)
        size = 0 if count is None else count * ENTRY_SIZE + TAIL_SIZE
        if len(end) < size <= entry.size:
            end = self._bucket.tail(entry.key, size)
        return end[-size:] if size else b""

    def _remember(self, key: str, end: bytes) -> None:
        file = self._folder / key.rpartition("/")[2]
        temporary = file.with_name(f".{new_id()}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(end)
            os.replace(temporary, file)
        except OSError:  # a cache: the next process reads the list again
            temporary.unlink(missing_ok=True)


def _fits(span: list[tuple[int, int, bytes]], start: int, size: int) -> bool:
    first, end = span[0][0], span[-1][0] + span[-1][1]
    return start - end <= _GAP and start + size - first <= _RANGE
