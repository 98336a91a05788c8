"""Where the objects of a workspace are: in its folder, in one that is said, or at a URL.

A URL is remembered, so that whoever opens the catalog finds the objects; a folder is a matter of
the machine and is not. With the URL goes a random name of the owner, by which the place itself can
tell its workspace from others.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from everloop.catalog.direct import Direct
from everloop.catalog.engine import Catalog
from everloop.core.ids import new_id
from everloop.core.time import to_micros
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
    with catalog.direct(write=False) as tx:
        found = _place(tx, given, folder)
    if not found.is_url or found.owner:
        return found
    check(found)
    with catalog.direct(write=True) as tx:
        found = _place(tx, given, folder)
        if found.owner:
            return found  # another process was first
        owner = new_id()
        tx.run(
            "INSERT INTO object_store (name, url, owner, updated_at) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (name) DO UPDATE SET url = excluded.url, owner = excluded.owner,"
            " updated_at = excluded.updated_at",
            (_NAME, found.where, owner, to_micros(tx.now)),
        )
        tx.append("workspace.ObjectsPlaced", "workspace", {"url": found.where})
        return ObjectPlace(found.where, owner)


def _place(tx: Direct, given: str, folder: Path) -> ObjectPlace:
    row = tx.run("SELECT url, owner FROM object_store WHERE name = ?", (_NAME,)).fetchone()
    known = None if row is None else ObjectPlace(*row)
    said = given.rstrip("/") if "://" in given else given
    if known is not None and said in ("", known.where):
        return known
    if "://" in said or known is not None:
        if tx.run("SELECT 1 FROM objects LIMIT 1").fetchone() is not None:
            place = known.where if known is not None else f"{folder}/objects (or EVERLOOP_OBJECTS)"
            raise StateError(
                f"the objects of this workspace are in {place}, not in {said}",
                hint="they stay where they are; for a workspace with its objects elsewhere make a"
                " new one there and `everloop merge` this one into it",
            )
        if "://" in said:
            return ObjectPlace(said)
    return ObjectPlace(str(Path(said).absolute() if said else folder / "objects"))
