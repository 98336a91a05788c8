"""The part of a workspace that looks after its store: checks, repairs, backups."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from everloop.errors import InvalidInput
from everloop.ports.blobs import BlobStore

if TYPE_CHECKING:
    from everloop.catalog.engine import Catalog
    from everloop.core.backup import BackedUp
    from everloop.core.fsck import Checked

__all__ = ["Upkeep", "copies_in"]


def copies_in(folder: Path) -> Path:
    """Where a workspace keeps versions as plain files."""
    return folder.absolute() / "cache" / "parquet"


class Upkeep:
    """What is done where the store is, and by nobody else."""

    if TYPE_CHECKING:

        @property
        def _catalog(self) -> Catalog: ...

        @property
        def blobs(self) -> BlobStore: ...

        def _local(self, what: str) -> Path: ...

        def blobs_at(self, folder: Path) -> BlobStore: ...

        def authorize(self, action: str, subject: str = "") -> None: ...

    def fsck(
        self,
        *,
        read_data: bool = False,
        repair: bool = False,
        origin: str | os.PathLike[str] | None = None,
    ) -> Checked:
        """Hold the store against the catalog; mend what can be mended.

        Args:
            read_data: Read every object and hold it against its name; else only look whether what
                the catalog names is there.
            repair: Take what is damaged from another copy, or make it anew; move what cannot be
                repaired to ``objects/quarantine``, so that it can be stored again.
            origin: The ``.everloop`` folder of another workspace or a backup to take objects from.

        Raises:
            InvalidInput: If `origin` has no objects.
            StateError: If this workspace is remote.
        """
        from everloop.data.fsck import fsck

        self._local("the check of the store")
        self.authorize("workspace:collect")
        others: list[BlobStore] = []
        if origin is not None:
            place = Path(origin) / "objects"
            if not place.is_dir():
                raise InvalidInput(
                    f"{os.fspath(origin)} is no workspace: there are no objects in it",
                    hint="name the .everloop folder itself, or a backup",
                )
            others.append(self.blobs_at(place))
        return fsck(self._catalog, self.blobs, read_data=read_data, repair=repair, others=others)

    def backup(self, place: str | os.PathLike[str]) -> BackedUp:
        """Copy the workspace to a folder, while others write to it; again only what is new.

        The folder opens as a workspace of that moment: catalog, objects and keys. The online store
        is not in it, it is pushed again. What was erased here goes from it with the next backup.

        Args:
            place: A folder that is empty or was made by this; best on another disk.

        Raises:
            InvalidInput: If it is something else.
            StateError: If another backup to it is under way, or this workspace is remote.
            BackendError: If it could not be written; an earlier backup is as it was.
        """
        from everloop.data.backup import back_up

        home = self._local("a backup")
        self.authorize("workspace:collect")
        folder = Path(place).expanduser().absolute()
        return back_up(self._catalog, self.blobs, home, folder, self.blobs_at(folder / "objects"))
