"""A backup: the catalog as of one moment, then the objects that it names.

The store only ever gets objects, so whatever a state of the catalog names is there after it was
read, unless a collection of garbage or an erasure takes it. Collections are held off meanwhile;
after an erasure the backup begins again, from a catalog that does not name what went.

The copy of the catalog takes the place of the earlier one when all of its objects are there: a
backup that is broken off leaves the earlier one as it was.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path

from sqlalchemy import select

from everloop.catalog import references, tables
from everloop.catalog.engine import Catalog
from everloop.catalog.snapshot import plain_file, snapshot
from everloop.catalog.transaction import Transaction
from everloop.core.backup import BackedUp
from everloop.core.ids import new_id
from everloop.data.trees import reachable
from everloop.errors import BackendError, EverloopError, InvalidInput, NotFound, StateError
from everloop.ports.blobs import BlobStore, CanErase

__all__ = ["back_up", "refuse_while_backed_up"]

_LEASE = "backup"
#: For so long a backup is taken to live since it was last heard of.
_ALIVE = timedelta(minutes=10)
_MARK = "everloop-backup"
#: Objects up to this size are read together, up to so many bytes.
_SMALL, _BYTES = 256 << 10, 32 << 20
_ROUNDS = 5
#: Digests that one statement asks for.
_ASKED = 500
#: Files of the folder that belong to the workspace beside catalog and objects.
_KEYS = ("signing.key", "secret.key")


class _Erased(Exception):
    """An object went while it was copied."""


def back_up(
    catalog: Catalog, blobs: BlobStore, home: Path, place: Path, copy: BlobStore
) -> BackedUp:
    """Make or renew the backup in `place`.

    Args:
        home: The folder of the workspace.
        place: A folder that is empty, or has an earlier backup.
        copy: The objects of the backup, in ``objects`` within `place`.

    Raises:
        InvalidInput: If the folder is something else, or within the workspace.
        StateError: If another backup is under way.
        BackendError: If it could not be written.
    """
    _check(home, place)
    try:
        with _alone(place), _held_off(catalog):
            for turn in range(_ROUNDS):
                try:
                    done = _copy(catalog, blobs, place, copy, is_last=turn == _ROUNDS - 1)
                    break
                except _Erased:
                    continue
            for name in _KEYS:
                if (home / name).exists():
                    shutil.copy2(home / name, place / name)
    except OSError as error:
        raise BackendError(
            f"the backup {place} could not be written: {error.strerror or error}",
            hint="check the rights of the folder and the space on the disk, then do it again",
        ) from error
    with catalog.write() as tx:
        told = {"objects": done.objects, "copied": done.copied, "missing": len(done.missing)}
        tx.append("workspace.BackedUp", f"backup:{place}", told)
    return done


def _check(home: Path, place: Path) -> None:
    here, there = home.resolve(), place.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise InvalidInput(
            f"{place} and the workspace {home} lie within each other",
            hint="name a folder elsewhere, best on another disk",
        )
    if place.exists() and not place.is_dir():
        raise InvalidInput(f"{place} is a file, not a folder")
    if place.is_dir() and any(place.iterdir()) and not (place / _MARK).exists():
        raise InvalidInput(
            f"{place} is neither empty nor a backup", hint="name a folder of its own"
        )


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    place.mkdir(parents=True, exist_ok=True)
    handle = os.open(place / _MARK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise StateError(
            f"another backup to {place} is under way", hint="wait until it is done"
        ) from None
    finally:
        os.close(handle)


@contextmanager
def _held_off(catalog: Catalog) -> Iterator[None]:
    """Hold collections of garbage off."""
    leases, holder = tables.leases, new_id()
    with catalog.write() as tx:
        row = {"name": f"{_LEASE}/{holder}", "holder": holder, "fence": 0, "until": tx.now + _ALIVE}
        tx.upsert(leases, row, ("name",))
    try:
        yield
    finally:
        with catalog.write() as tx:
            tx.execute(leases.delete().where(leases.c.holder == holder))


def _renew(catalog: Catalog) -> None:
    leases = tables.leases
    with catalog.write(ordered=False) as tx:
        its = leases.c.name.startswith(f"{_LEASE}/")
        tx.execute(leases.update().where(its).values(until=tx.now + _ALIVE))


def refuse_while_backed_up(tx: Transaction) -> None:
    """Refuse a collection of garbage while a backup is made.

    Raises:
        StateError: If one is.
    """
    leases = tables.leases
    its = (leases.c.name.startswith(f"{_LEASE}/"), leases.c.until > tx.now)
    row = tx.first(select(leases.c.until).where(*its).order_by(leases.c.until.desc()))
    if row is not None:
        raise StateError(
            "a backup is being made, and needs every object until it is done",
            hint=f"collect afterwards; one that died is forgotten at {row.until:%H:%M} UTC",
        )


def _copy(
    catalog: Catalog, blobs: BlobStore, place: Path, copy: BlobStore, *, is_last: bool
) -> BackedUp:
    fresh = place / "catalog.sqlite.new"
    for leftover in place.glob("catalog.sqlite.new*"):
        leftover.unlink()
    snapshot(catalog, fresh)
    with closing(Catalog(f"sqlite:///{fresh}", upgrade=False)) as taken, taken.read() as tx:
        wanted, missing = _named(tx, blobs)
    plain_file(fresh)
    if missing and not is_last:
        _refuse_erased(catalog, missing)
    there = set(copy.digests())
    count = size = 0
    for part in _parts(sorted(wanted.items()), there):
        _renew(catalog)
        got = _read(catalog, blobs, part, missing, is_last=is_last)
        copy.put_many(got)
        count, size = count + len(got), size + sum(map(len, got))
    for digest in sorted(d for d in wanted if wanted[d] > _SMALL and d not in there):
        _renew(catalog)
        try:
            _, length = copy.put(blobs.stream(digest))
        except EverloopError as error:
            _note(catalog, digest, error, missing, is_last=is_last)
            continue
        count, size = count + 1, size + length
    plain_file(place / "catalog.sqlite")  # it may have been opened, and have a log
    os.replace(fresh, place / "catalog.sqlite")
    _sync(place)
    removed = sorted(set(copy.digests()) - wanted.keys())
    if isinstance(copy, CanErase):
        copy.erase(removed)
    return BackedUp(
        place=str(place),
        objects=len(wanted) - len(missing & wanted.keys()),
        copied=count,
        copied_size=size,
        removed=len(removed),
        missing=tuple(sorted(missing)),
    )


def _named(tx: Transaction, blobs: BlobStore) -> tuple[dict[str, int], set[str]]:
    """The objects that the catalog names with their sizes, about, and those that are not there."""
    found = references.find(tx)
    sizes = {row.digest: row.size for row in tx.all(select(tables.objects))}
    there = set(blobs.digests())
    named, missing = set(found.digests), set[str]()
    for digest in found.opened & there:
        named.update(references.digests_in(blobs.get(digest)))
    seen: set[str] = set()
    for root in sorted(found.trees):
        try:
            named.update(reachable(blobs.get_many, root, seen))
        except (NotFound, BackendError) as error:
            missing.add(str(error.details.get("digest", root)))
    # What only looks like a digest was never an object.
    missing |= (named & sizes.keys()) - there
    return {digest: sizes.get(digest, 0) for digest in named & there}, missing


def _parts(wanted: Sequence[tuple[str, int]], there: set[str]) -> Iterator[list[str]]:
    part: list[str] = []
    held = 0
    for digest, size in wanted:
        if size > _SMALL or digest in there:
            continue
        part.append(digest)
        held += size or _SMALL
        if held >= _BYTES:
            yield part
            part, held = [], 0
    if part:
        yield part


def _read(
    catalog: Catalog, blobs: BlobStore, digests: list[str], missing: set[str], *, is_last: bool
) -> list[bytes]:
    try:
        return blobs.get_many(digests)
    except EverloopError:
        found = []
        for digest in digests:
            try:
                found.append(blobs.get(digest))
            except EverloopError as error:
                _note(catalog, digest, error, missing, is_last=is_last)
        return found


def _note(
    catalog: Catalog, digest: str, error: EverloopError, missing: set[str], *, is_last: bool
) -> None:
    """Note an object that cannot be had; begin again if it was erased since the snapshot."""
    if isinstance(error, NotFound) and not is_last:
        _refuse_erased(catalog, {digest})
    missing.add(digest)


def _refuse_erased(catalog: Catalog, digests: set[str]) -> None:
    """Begin again if something that is not there is not named any more either."""
    with catalog.read() as tx:
        table = tables.erased_objects
        query = select(table.c.digest).where(table.c.digest.in_(sorted(digests)[:_ASKED]))
        if tx.first(query) is not None or digests - references.find(tx).digests:
            raise _Erased


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
