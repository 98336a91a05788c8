"""Where the objects of a workspace are: in its folder, in one that is said, or at a URL.

A URL is remembered, so that whoever opens the catalog finds the objects; a folder is a matter of
the machine and is not. With the URL goes a random name of the owner, by which the place itself can
tell its workspace from others.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import select

from everloop.catalog import tables
from everloop.catalog.engine import Catalog, Transaction
from everloop.core.ids import new_id
from everloop.errors import StateError

__all__ = ["ObjectPlace", "find_place"]

_NAME = "objects"


class ObjectPlace(NamedTuple):
    """A folder or URL.

    Attributes:
        owner: Of what is at the URL; empty for a folder, or if the URL is not remembered yet.
    """

    where: str
    owner: str = ""

    @property
    def is_url(self) -> bool:
        """Whether it is a URL."""
        return "://" in self.where


def find_place(
    catalog: Catalog,
    given: str,
    folder: Path,
    *,
    check: Callable[[ObjectPlace], object] = lambda place: None,
) -> ObjectPlace:
    """Where the objects are; a URL that is given for the first time is remembered.

    Args:
        catalog: Of the workspace.
        given: What the caller or the environment says: a folder, a URL or nothing.
        folder: Of the workspace.
        check: Raises for a URL that is no place, before it is remembered.

    Raises:
        StateError: If the objects are known to be elsewhere than the caller says.
    """
    with catalog.read() as tx:
        found = _place(tx, given, folder)
    if not found.is_url or found.owner:
        return found
    check(found)
    with catalog.write() as tx:
        found = _place(tx, given, folder)
        if found.owner:
            return found  # another process was first
        owner = new_id()
        row = {"name": _NAME, "url": found.where, "owner": owner, "updated_at": tx.now}
        tx.upsert(tables.object_store, row, ["name"])
        tx.append("workspace.ObjectsPlaced", "workspace", {"url": found.where})
        return ObjectPlace(found.where, owner)


def _place(tx: Transaction, given: str, folder: Path) -> ObjectPlace:
    table = tables.object_store
    known = tx.first(select(table.c.url, table.c.owner).where(table.c.name == _NAME))
    said = given.rstrip("/") if "://" in given else given
    if known is not None and said in ("", known.url):
        return ObjectPlace(known.url, known.owner)
    if "://" in said or known is not None:
        if tx.first(select(tables.objects.c.digest).limit(1)) is not None:
            place = known.url if known is not None else f"{folder}/objects (or EVERLOOP_OBJECTS)"
            raise StateError(
                f"the objects of this workspace are in {place}, not in {said}",
                hint="they stay where they are; for a workspace with its objects elsewhere make a"
                " new one there and `everloop merge` this one into it",
            )
        if "://" in said:
            return ObjectPlace(said)
    return ObjectPlace(str(Path(said).absolute() if said else folder / "objects"))
