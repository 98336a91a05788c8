"""Objects in a bucket of S3, or of a server that speaks its protocol (ADR 16 has the protocol).

Below the prefix lie ``objects/ab/<digest>/<unique>`` (one large object each), ``packs/<unique>``
(small ones together), ``marks/...`` (what was renewed or removed), ``uploads/...`` (parts of
uploads under way) and ``store``, which says whose it is. A key of an object or a pack is written
once, and its name is never used again. What is read goes through a cache on this machine.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from blake3 import blake3

from everloop.backends.blobs.cache import FileCache
from everloop.backends.blobs.digests import check_digests, digest_of_pieces
from everloop.backends.blobs.pack_format import portions
from everloop.backends.blobs.s3_bucket import PIECE, Absent, Bucket, Entry, Refused, side_by_side
from everloop.backends.blobs.s3_marks import Mark, Marks
from everloop.backends.blobs.s3_packs import Pack, Packs
from everloop.backends.blobs.s3_parts import PartKeys
from everloop.core.ids import new_id
from everloop.errors import BackendError, EverloopError, NotFound, StateError
from everloop.ports.blobs import ObjectAge

__all__ = ["S3Blobs"]

_CHUNK = 1 << 20
#: Objects up to this size are packed; a pack grows to about that.
_SMALL, _PACK = 256 << 10, 16 << 20
_OBJECTS, _STORE, _PROBE = "objects", "store", "probe"
#: More objects than this are looked for by their first two digits, not one by one.
_SHARDS = 256
_FORMAT = 1
#: Whoever has not gone on for so long is dead.
_DEAD_S = 900
_CACHE_BYTES = 10 << 30


class S3Blobs:
    """A BlobStore in a bucket (contract: ``everloop.testing.blobs``).

    Args:
        url: ``s3://bucket/prefix``; credentials and region are in the environment (``AWS_...``).
        folder: Where this machine keeps a cache of it; it may be shared and thrown away.
        endpoint: URL of the server, if it is not Amazon's.
        owner: Whose objects these are: another owner is refused, as either would collect what
            the other one needs.
        cache_bytes: How large the cache may grow.
        retries: How often a request that failed is sent again.
        timeout_s: How long one request, and all its repetitions, may take.

    Raises:
        InvalidInput: If `url` is no such place.
        MissingExtra: Without obstore.
    """

    def __init__(
        self,
        url: str,
        folder: Path,
        *,
        endpoint: str = "",
        owner: str = "",
        cache_bytes: int = _CACHE_BYTES,
        retries: int = 4,
        timeout_s: float = 60,
    ) -> None:
        self._bucket = Bucket(url, endpoint=endpoint, retries=retries, timeout_s=timeout_s)
        self._marks = Marks(self._bucket)
        self._packs = Packs(self._bucket, self._marks, folder / "packs")
        self._cache = FileCache(folder / "objects", cache_bytes)
        self._parts = PartKeys(self._bucket, self._spool)
        self._owner = owner
        self._lock = threading.Lock()
        self._is_ours = False

    # Putting

    def put(self, data: bytes | Iterable[bytes] | BinaryIO) -> tuple[str, int]:
        self._claim()
        if isinstance(data, bytes | bytearray | memoryview):
            data = bytes(data)
            digest, size = blake3(data, max_threads=blake3.AUTO).hexdigest(), len(data)
            if not self._keep_whole(digest, size):
                self._upload(digest, data)
            return digest, size
        if isinstance(data, list):
            # Seen twice: what is there already is only read, however large it is.
            digest, size = digest_of_pieces(data)
            if not self._keep_whole(digest, size):
                if size <= PIECE:
                    self._upload(digest, b"".join(data))
                else:
                    self._bucket.put_pieces(_new_key(digest), data)
            return digest, size
        pieces = iter(lambda: data.read(_CHUNK), b"") if hasattr(data, "read") else data
        file, digest, size = self._spool(pieces)
        try:
            if not self._keep_whole(digest, size):
                self._bucket.put(_new_key(digest), file)
                self._cache.take(file, digest, size)
        finally:
            file.unlink(missing_ok=True)
        return digest, size

    def _upload(self, digest: str, data: bytes) -> None:
        self._bucket.put(_new_key(digest), data)
        if len(data) > _SMALL:  # whoever stores a block or a model reads it soon
            self._cache.add(digest, data)

    def _spool(self, pieces: Iterable[bytes], *, head: int = 0) -> tuple[Path, str, int]:
        """Write pieces to a file beside the cache: its path, digest and size.

        With `head` the file begins with that many bytes of the digest.
        """
        file = self._cache.waiting()
        hasher, size = blake3(), 0
        try:
            with open(file, "xb") as target:
                target.write(bytes(head))
                for piece in pieces:
                    hasher.update(piece)
                    size += len(piece)
                    target.write(piece)
                target.seek(0)
                target.write(hasher.digest()[:head])
        except OSError as error:
            file.unlink(missing_ok=True)
            raise self._cache.failed(error) from error
        except BaseException:  # Ctrl-C too, and whatever the caller's pieces raise: nothing stays
            file.unlink(missing_ok=True)
            raise
        return file, hasher.hexdigest(), size

    def put_many(self, data: Sequence[bytes]) -> list[tuple[str, int]]:
        found = [(blake3(item).hexdigest(), len(item)) for item in data]
        fresh = {digest: item for (digest, _), item in zip(found, data, strict=True)}
        if not fresh:
            return found
        self._claim()
        small = {digest: item for digest, item in fresh.items() if len(item) <= _SMALL}
        if len(small) > 1:
            # A copy that is by itself is not looked for: that would be a request for each.
            lacking, _ = self._keep_packed(small, is_new=True)
            parts = list(portions({digest: small[digest] for digest in lacking}, _PACK))
            side_by_side(self._packs.put, parts)
        else:
            small = {}
        side_by_side(self.put, [fresh[digest] for digest in fresh.keys() - small.keys()])
        return found

    # Reading

    def get(self, digest: str) -> bytes:
        check_digests((digest,))
        found = self._cache.read(digest)
        if found is None:
            found = self._fetch(digest)
            self._cache.add(digest, found)
        return found

    def _fetch(self, digest: str) -> bytes:
        damaged = ""
        for turn in range(3):
            for key, read in self._sources(digest, refresh=turn > 0):
                try:
                    data: bytes | None = read()
                except Absent:
                    continue  # moved or removed since we looked
                if data is not None and blake3(data).hexdigest() == digest:
                    return data
                damaged = damaged if data is None else key
        raise self._corrupt(digest, damaged) if damaged else NotFound(f"no object {digest}")

    def _sources(self, digest: str, *, refresh: bool) -> Iterator[tuple[str, Any]]:
        """The keys that have an object, each with what reads it."""
        if refresh:
            self._packs.refresh()
        key = bytes.fromhex(digest)
        for pack in self._packs.holding(digest):
            yield pack.key, lambda pack=pack: self._packs.read(pack, [key]).get(digest)
        for entry in self._own(digest):
            yield (
                entry.key,
                lambda entry=entry: b"".join(self._bucket.pieces(entry.key, 0, entry.size)),
            )

    def get_many(self, digests: Sequence[str]) -> list[bytes]:
        check_digests(digests)
        found: dict[str, bytes] = {}
        for digest in dict.fromkeys(digests):
            data = self._cache.read(digest)
            if data is not None:
                found[digest] = data
        rest = [digest for digest in dict.fromkeys(digests) if digest not in found]
        if any(not self._packs.holding(digest) for digest in rest):
            self._packs.refresh()
        by_pack = list(self._packs.by_pack(rest).items())
        for part in side_by_side(lambda pair: self._packs.read(*pair), by_pack):
            for digest, data in part.items():
                if blake3(data).hexdigest() == digest:
                    found[digest] = data
                    self._cache.add(digest, data)
        rest = [digest for digest in rest if digest not in found]
        found.update(zip(rest, side_by_side(self.get, rest), strict=True))
        return [found[digest] for digest in digests]

    def stream(self, digest: str, chunk: int = _CHUNK) -> Iterator[bytes]:
        check_digests((digest,))
        file = self._cache.path(digest)
        if file is None and self._packs.holding(digest):
            pieces: Iterable[bytes] = [self.get(digest)]
        elif file is None and (own := self._own(digest)):
            pieces = self._flow(digest, own[0])
        else:
            # In a pack that is not known here yet, or nowhere.
            pieces = self._cached(digest, file) if file is not None else [self.get(digest)]
        for piece in pieces:
            yield from (piece[at : at + chunk] for at in range(0, len(piece), chunk))

    def _cached(self, digest: str, file: Path) -> Iterator[bytes]:
        hasher = blake3()
        with open(file, "rb", buffering=0) as source:
            while piece := source.read(_CHUNK):
                hasher.update(piece)
                yield piece
        if hasher.hexdigest() != digest:
            self._cache.drop([digest])
            raise BackendError(
                f"the copy of object {digest} in {file} was damaged",
                hint="do it again: it is fetched anew",
                details={"digest": digest},
            )

    def _flow(self, digest: str, entry: Entry) -> Iterator[bytes]:
        """The pieces of a large object, which is then in the cache unless it is too large."""
        file = self._cache.waiting() if entry.size <= self._cache.bound / 4 else None
        hasher = blake3()
        try:
            with open(file or os.devnull, "wb") as target:
                for piece in self._bucket.pieces(entry.key, 0, entry.size):
                    hasher.update(piece)
                    target.write(piece)
                    yield piece
            if hasher.hexdigest() != digest:
                raise self._corrupt(digest, entry.key)
            if file is not None:
                self._cache.take(file, digest, entry.size)
        except Absent:
            raise NotFound(f"no object {digest}", hint="it was removed while it was read") from None
        except OSError as error:
            raise self._cache.failed(error) from error
        finally:
            if file is not None:
                file.unlink(missing_ok=True)

    def path(self, digest: str) -> Path:
        check_digests((digest,))
        damage: EverloopError
        for _ in range(2):  # what was damaged on its way is asked for once more
            file = self._cache.path(digest)
            if file is not None:
                return file
            file = self._cache.waiting()
            try:
                return self._cache.take(file, digest, self._receive(digest, file))
            except OSError as error:
                raise self._cache.failed(error) from error
            except EverloopError as error:
                damage = error
            finally:
                file.unlink(missing_ok=True)
        raise damage

    def _receive(self, digest: str, file: Path) -> int:
        """Write an object to a file, piece by piece; its size."""
        own = [] if self._packs.holding(digest) else self._own(digest)
        if not own:
            return file.write_bytes(self._fetch(digest))
        hasher = blake3()
        try:
            with open(file, "wb") as target:
                for piece in self._bucket.pieces(own[0].key, 0, own[0].size):
                    hasher.update(piece)
                    target.write(piece)
        except Absent:
            raise NotFound(f"no object {digest}", hint="it was removed while it was read") from None
        if hasher.hexdigest() != digest:
            raise self._corrupt(digest, own[0].key)
        return own[0].size

    # What is there

    def exists(self, digest: str) -> bool:
        check_digests((digest,))
        key = bytes.fromhex(digest)
        for pack in self._packs.holding(digest):
            mark = self._marks.read(pack.key)
            if not mark.dead and key not in mark.gone and self._bucket.head(pack.key):
                return True
        if any(not self._marks.read(entry.key).dead for entry in self._own(digest)):
            return True
        self._packs.refresh()
        return bool(self._packs.holding(digest))

    def missing(self, digests: Sequence[str]) -> list[str]:
        check_digests(digests)
        self._packs.refresh()
        rest = [digest for digest in digests if not self._packs.holding(digest)]
        dead = {key for key, mark in self._marks.all(_OBJECTS).items() if mark.dead}
        own = self._find_own(rest)
        is_own = {d for d, entries in own.items() if any(e.key not in dead for e in entries)}
        return [digest for digest in rest if digest not in is_own]

    def keep(self, digest: str) -> bool:
        return not self.keep_many([digest])

    def keep_many(self, digests: Sequence[str]) -> list[str]:
        check_digests(digests)
        if not digests:
            return []
        self._claim()
        rest, is_fresh = list(dict.fromkeys(digests)), False
        if len(rest) > 2 or self._packs.holding(rest[0]):
            rest, is_fresh = self._keep_packed(rest, is_new=False)
        rest = self._keep_own(self._find_own(rest))
        if rest and not is_fresh:
            rest, _ = self._keep_packed(rest, is_new=True)
        lacking = set(rest)
        return [digest for digest in digests if digest in lacking]

    def _keep_packed(self, digests: Iterable[str], *, is_new: bool) -> tuple[list[str], bool]:
        """Keep what is in packs: those that are in none, and whether all packs were looked at.

        Args:
            digests: The objects.
            is_new: Whether to look at once for packs that came since.
        """
        wanted, rest = list(digests), list(digests)
        for turn in range(3):
            is_fresh = is_new or turn > 0
            if is_fresh:
                self._packs.refresh()
            by_pack = list(self._packs.by_pack(rest).items())
            gone = side_by_side(lambda pair: self._packs.keep(*pair), by_pack)
            kept = {
                key.hex()
                for (_, keys), lost in zip(by_pack, gone, strict=True)
                for key in keys
                if key not in lost
            }
            rest = [digest for digest in rest if digest not in kept]
            # What moved to another pack meanwhile is there before it goes from the old one.
            if not rest or (is_fresh and not any(gone)):
                break
        return [digest for digest in wanted if digest in set(rest)] if rest else [], is_fresh

    def _keep_own(self, found: dict[str, list[Entry]]) -> list[str]:
        kept = side_by_side(
            lambda entries: any(self._keep_key(entry) for entry in entries), list(found.values())
        )
        return [digest for digest, is_kept in zip(found, kept, strict=True) if not is_kept]

    def _keep_key(self, entry: Entry) -> bool:
        return not self._marks.keep(entry.key, [_ALL])

    def _keep_whole(self, digest: str, size: int) -> bool:
        """As `keep`; an object that was cut off is as good as none, and is put anew."""
        key = bytes.fromhex(digest)
        for pack in self._packs.holding(digest):
            if not self._packs.keep(pack, [key]):
                return True
        return any(self._keep_key(entry) for entry in self._own(digest) if entry.size == size)

    def digests(self) -> Iterator[str]:
        return iter({age.digest for age in self.ages()})

    def ages(self) -> Iterator[ObjectAge]:
        self._packs.refresh()
        marks = self._marks.all(_OBJECTS)
        found: dict[str, ObjectAge] = {}
        for entry in self._bucket.list(_OBJECTS):
            mark = marks.get(entry.key, Mark())
            if not mark.dead and (digest := _digest_in(entry.key)):
                _note(found, ObjectAge(digest, entry.size, mark.at if mark.e_tag else entry.at))
        for pack in self._packs.all():
            for key, (_, size) in pack.entries.items():
                if pack.holds(key):
                    _note(found, ObjectAge(key.hex(), size, pack.age))
        return iter(found.values())

    # Removing

    def delete(self, digest: str) -> None:
        check_digests((digest,))
        self._claim()
        self._remove([digest], None)

    def remove_old(self, digest: str, before: float) -> bool:
        return bool(self.remove_old_many([digest], before))

    def remove_old_many(self, digests: Sequence[str], before: float) -> list[str]:
        check_digests(digests)
        self._claim()
        return self._remove(list(dict.fromkeys(digests)), before)

    def _remove(self, digests: list[str], before: float | None) -> list[str]:
        if not digests:
            return []
        self._packs.refresh()
        marks = self._marks.all(_OBJECTS)
        young: set[str] = set()
        own: dict[str, list[Entry]] = {}
        packs: dict[Pack, set[bytes]] = {}
        for digest, entries in self._find_own(digests).items():
            own[digest] = [e for e in entries if not marks.get(e.key, Mark()).dead]
            holding = self._packs.holding(digest)
            ages = [pack.age for pack in holding]
            ages += [marks[e.key].at if e.key in marks else e.at for e in own[digest]]
            # A copy that is young keeps all of them: then the object is here or gone, as a whole.
            if not ages or (before is not None and max(ages) + 1 > before):
                young.add(digest)
                continue
            for pack in holding:
                packs.setdefault(pack, set()).add(bytes.fromhex(digest))
        jobs = [(d, entry) for d, entries in own.items() if d not in young for entry in entries]
        is_dead = side_by_side(
            lambda job: self._marks.remove(job[1].key, job[1].at, None, before) is not None, jobs
        )
        dead = [entry.key for (_, entry), done in zip(jobs, is_dead, strict=True) if done]
        kept = young | {digest for (digest, _), done in zip(jobs, is_dead, strict=True) if not done}
        # In this order: a mark must not go before what it is of.
        self._bucket.delete(dead)
        self._marks.forget(dead)
        pairs = list(packs.items())
        is_gone = side_by_side(lambda pair: self._packs.remove(pair[0], pair[1], before), pairs)
        for (_, keys), done in zip(pairs, is_gone, strict=True):
            kept |= set() if done else {key.hex() for key in keys}
        removed = [digest for digest in digests if digest not in kept]
        self._cache.drop(removed)
        return removed

    def remove_leftovers(self, before: float) -> tuple[int, int]:
        self._claim()
        # Marks first: one whose carrier is not in the later lists is of one that was removed.
        marks = self._marks.all("")
        there = {e.key: e for folder in (_OBJECTS, "packs") for e in self._bucket.list(folder)}
        rubbish = [e for e in self._bucket.list(_PROBE) if e.at + 1 <= before]
        # Removers that died left what they had marked.
        rubbish += [there[key] for key, mark in marks.items() if mark.dead and key in there]
        self._bucket.delete([entry.key for entry in rubbish])
        self._marks.forget([key for key, mark in marks.items() if mark.dead or key not in there])
        self._packs.refresh()
        for pack in self._packs.all():
            self._packs.compact(pack)
        return len(rubbish), sum(entry.size for entry in rubbish)

    def erase(self, digests: Sequence[str]) -> None:
        """Remove objects so that no key has a byte of them, at once, and no copy on this machine.

        Copies in the caches of other machines stay until they are let go of.
        """
        check_digests(digests)
        self._claim()
        entries = [e for found in self._find_own(digests).values() for e in found]
        side_by_side(lambda entry: self._marks.remove(entry.key, entry.at, None, None), entries)
        self._bucket.delete([entry.key for entry in entries])
        self._marks.forget([entry.key for entry in entries])
        self._packs.erase({bytes.fromhex(digest) for digest in digests})
        self._cache.drop(digests)
        self.remove_leftovers(time.time() - _DEAD_S)

    # Parts

    def begin_parts(self, purpose: str) -> str:
        self._claim()
        return self._parts.begin(purpose)

    def put_part(self, upload: str, number: int, data: Iterable[bytes]) -> str:
        return self._parts.put(upload, number, data)

    def join_parts(self, upload: str, purpose: str, parts: dict[int, str]) -> tuple[str, int]:
        return self.put(self._parts.read(upload, purpose, parts))

    def drop_parts(self, upload: str, purpose: str) -> None:
        self._parts.drop(self._parts.check(upload, purpose))

    # Single objects by themselves

    def _own(self, digest: str) -> list[Entry]:
        """The keys of an object that is by itself: one, unless two writers put it at once."""
        return self._bucket.list(f"{_OBJECTS}/{digest[:2]}/{digest}")

    def _find_own(self, digests: Sequence[str]) -> dict[str, list[Entry]]:
        """As `_own` for each; of many, all that begin alike come with one list."""
        if len(digests) <= _SHARDS:
            return dict(zip(digests, side_by_side(self._own, digests), strict=True))
        found: dict[str, list[Entry]] = {digest: [] for digest in digests}
        folders = [f"{_OBJECTS}/{shard}" for shard in sorted({digest[:2] for digest in digests})]
        for entries in side_by_side(self._bucket.list, folders):
            for entry in entries:
                if (digest := _digest_in(entry.key)) in found:
                    found[digest].append(entry)
        return found

    # Whose it is

    def _claim(self) -> None:
        """Before the first change: see that the place is ours and that the server can be relied on.

        Raises:
            StateError: If these are the objects of another workspace.
            BackendError: If the server takes conditional puts for plain ones.
        """
        with self._lock:
            if self._is_ours:
                return
            for _ in range(3):
                try:
                    said = self._said(self._bucket.get(_STORE)[0])
                except Absent:
                    self._probe()
                    body = json.dumps({"format": _FORMAT, "owner": self._owner}).encode()
                    try:
                        self._bucket.swap(_STORE, body, "")
                    except Refused:
                        continue  # somebody else was first, or it was us and the answer was lost
                    said = self._owner
                if said != self._owner:
                    raise StateError(
                        f"{self._bucket.place} holds the objects of another workspace",
                        hint="use another prefix: each would collect what the other one needs",
                    )
                self._is_ours = True
                return
            raise StateError(f"{self._bucket.place}: the key {_STORE!r} comes and goes")

    def _said(self, data: bytes) -> str:
        try:
            said = json.loads(data)
            form, owner = int(said["format"]), str(said["owner"])
        except (ValueError, KeyError, TypeError):
            raise BackendError(
                f"the key {_STORE!r} in {self._bucket.place} is none of ours or damaged",
                hint="use another prefix, or restore that key",
            ) from None
        if form > _FORMAT:
            raise BackendError(
                f"{self._bucket.place} was made by a newer Everloop",
                hint="pip install -U everloop",
            )
        return owner

    def _probe(self) -> None:
        """Two puts that must be refused, as the whole protocol rests on it."""
        key = f"{_PROBE}/{secrets.token_hex(8)}"
        wrong = '"00000000000000000000000000000000"'
        refused = 0
        self._bucket.put(key, b"1")
        try:
            for e_tag in ("", wrong):
                try:
                    self._bucket.swap(key, b"2", e_tag)
                except Refused:
                    refused += 1
        except BackendError as error:
            if error.details["code"] not in ("NotImplemented", "501"):
                raise
        finally:
            self._bucket.delete([key])
        if refused < 2:
            raise BackendError(
                f"the server of {self._bucket.place} does not do conditional puts"
                " (If-None-Match and If-Match), so several writers cannot work on it safely",
                hint="use a server that does, such as Amazon S3 or a recent MinIO, Ceph or R2",
            )

    def _corrupt(self, digest: str, key: str) -> BackendError:
        return BackendError(
            f"object {digest} in {self._bucket.place} is damaged: its bytes are not what its name"
            f" says (key {key})",
            hint="restore this key from an older version or a copy",
            details={"digest": digest, "key": key},
        )


#: Stands for the whole of a carrier that is one object.
_ALL = b""


def _new_key(digest: str) -> str:
    return f"{_OBJECTS}/{digest[:2]}/{digest}/{new_id()}"


def _digest_in(key: str) -> str:
    parts = key.split("/")
    return parts[2] if len(parts) == 4 else ""


def _note(found: dict[str, ObjectAge], age: ObjectAge) -> None:
    known = found.get(age.digest)
    if known is None or known.put_at < age.put_at:
        found[age.digest] = age
