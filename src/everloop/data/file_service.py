"""FileService: versions of directories and files where the catalog is.

It loads nothing that tables need: a look at a directory should cost little more than the look.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from everloop.access.policy import Authorizer
from everloop.access.service import Service, action
from everloop.catalog import datasets as statements
from everloop.catalog.engine import Catalog
from everloop.core.dataset import MAIN, DatasetVersion, Verified
from everloop.data.tree import totals
from everloop.data.trees import FilesDraft, publish_files, unstored
from everloop.data.verify import verify
from everloop.data.versions import (
    base_of,
    check_names,
    refuse_kind,
    refuse_other,
    version_of,
    versions_of,
)
from everloop.errors import Conflict, NotFound
from everloop.ports.blobs import BlobStore

__all__ = ["FileService"]

# Each lost race means that another commit succeeded, so this is never reached in earnest.
_RACES = 1000


class FileService(Service):
    """Directories and files as versions of datasets; ``everloop.data.files`` brings the bytes.

    Args:
        before_commit: Told of the dataset that is about to get a version.
    """

    area = "files"

    def __init__(
        self,
        catalog: Catalog,
        blobs: BlobStore,
        authorizer: Authorizer,
        *,
        before_commit: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._before_commit = before_commit
        self._catalog = catalog
        self._blobs = blobs
        self._authorizer = authorizer

    @action("dataset:write", on="name")
    def commit(
        self,
        name: str,
        root: str,
        *,
        kind: Literal["directory", "file"] = "directory",
        owner: str = "",
        note: str = "",
        run_id: str = "",
        sources: list[str] | None = None,
        branch: str = MAIN,
        expect: int | None = None,
    ) -> DatasetVersion:
        """Make a version of a directory or a file whose objects were put already.

        ``ev.commit`` and ``everloop data add`` put them and call this. Content equal to the latest
        version's makes no version. Of two who commit at once both versions are made.

        Args:
            name: Letters, digits, ``_ . -``; at most 200 characters.
            root: Digest of the directory's object; a file is a directory of that file alone.
            kind: Of all versions of the dataset the same.
            owner: Who answers for the dataset; empty leaves it as it is.
            note: For people.
            run_id: The run that made the files.
            sources: Where they come from outside, as URIs.
            branch: The line to commit to; see ``DataService.branch``.
            expect: Number that the latest version of it must have (0: none yet), or None.

        Raises:
            InvalidInput: If the name is none of a dataset.
            NotFound: If objects are not in the store; ``details["missing"]`` names some. Or if
                there is no such branch.
            Conflict: If the dataset is of another kind, or `expect` is not met.
            BackendError: If an object is damaged, or names what no directory can hold.
        """
        check_names(name, sources)
        self._before_commit(name)
        for _ in range(_RACES):
            with self._catalog.read() as tx:
                base = base_of(tx, name, branch)
            refuse_kind(name, base, kind)
            refuse_other(name, base, expect)
            missing, counts = unstored(self._blobs, base.root if base else "", root)
            if missing:
                raise NotFound(
                    f"{len(missing)} objects of the {kind} are not in the store",
                    hint="put them first",
                    details={"missing": missing[:100]},
                )
            size, files = totals(self._blobs.get_many, root)
            draft = FilesDraft(name, kind, root, base, counts, size, files, branch)
            with self._catalog.write() as tx:
                version = publish_files(
                    tx, draft, owner=owner, note=note, run_id=run_id, sources=sources or ()
                )
            if version is not None:
                return version
        raise Conflict(f"others commit to {name} all the time", hint="commit again")

    @action("dataset:read", on="name")
    def version(self, name: str, number: int | None = None) -> DatasetVersion:
        """A version; the latest if `number` is None; raises NotFound."""
        with self._catalog.read() as tx:
            return version_of(tx, name, number)

    @action("dataset:read", on="name")
    def versions(self, name: str) -> list[DatasetVersion]:
        """All versions of a dataset, of all lines, oldest first; raises NotFound."""
        with self._catalog.read() as tx:
            return versions_of(tx, name)

    @action("dataset:read")
    def verify(self, name: str = "") -> Verified:
        """Hold the bytes of every object of all versions, or of those of `name`, against its name.

        Tables are looked at as well.

        Raises:
            NotFound: If there is no such dataset.
        """
        with self._catalog.read() as tx:
            names = [name] if name else statements.names(tx)
            found = [version for one in names for version in versions_of(tx, one)]
        return verify(self._blobs, found)
