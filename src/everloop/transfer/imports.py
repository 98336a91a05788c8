"""What a workspace takes in from elsewhere: MLflow's stores, DVC repositories, workspaces."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from everloop import settings

if TYPE_CHECKING:
    from everloop.catalog.engine import Catalog
    from everloop.catalog.stores import ObjectPlace
    from everloop.core.time import Clock
    from everloop.data.file_service import FileService
    from everloop.data.service import DataService
    from everloop.ports.blobs import BlobStore
    from everloop.registry.service import RegistryService
    from everloop.tracking.service import TrackingService
    from everloop.tracking.traces import TraceService
    from everloop.transfer.report import TransferReport

__all__ = ["Imports"]


class Imports:
    """The part of a workspace that takes in what others kept."""

    if TYPE_CHECKING:

        @property
        def tracking(self) -> TrackingService: ...

        @property
        def traces(self) -> TraceService: ...

        @property
        def registry(self) -> RegistryService: ...

        @property
        def data(self) -> DataService: ...

        @property
        def files(self) -> FileService: ...

        @property
        def blobs(self) -> BlobStore: ...

        @property
        def clock(self) -> Clock: ...

        @property
        def _catalog(self) -> Catalog: ...

        def _local(self, what: str) -> Path: ...

        def _opened(self, place: ObjectPlace) -> BlobStore: ...

    def import_mlflow(
        self, source: str, *, artifacts: str = "", tell: Callable[[str], None] | None = None
    ) -> TransferReport:
        """Take in a store of MLflow's; doing it again goes on and changes nothing that is here.

        Args:
            source: A folder ``mlruns``, a file ``mlflow.db``, the URL of a database or a server.
            artifacts: Where the files are, if not where the store says.
            tell: Called with a line of progress now and then.

        Raises:
            InvalidInput: If the source is none of these.
            BackendError: If source or workspace is gone in the middle.
        """
        from everloop.transfer.importer import IMPORTED, Importer
        from everloop.transfer.mlflow import open_source
        from everloop.transfer.report import Findings

        findings = Findings(IMPORTED)
        place = Path(artifacts) if artifacts else None
        opened = open_source(source, settings.mlflow_login(), findings.fail, place)
        try:
            importer = Importer(
                opened,
                self.tracking,
                self.registry,
                self.blobs,
                self.traces,
                findings,
                tell or _silent,
            )
            return importer.run()
        finally:
            opened.close()

    def import_dvc(
        self,
        repo: str | os.PathLike[str],
        *,
        revisions: Sequence[str] = (),
        names: dict[str, str] | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> TransferReport:
        """Take in the data of a DVC repository from its cache; twice is once.

        Args:
            repo: Its folder, which is only read.
            revisions: Tags, branches or commits of Git, oldest first, each a version; tags stay
                tags. None is the working tree.
            names: Path of an output -> name of its dataset.
            tell: Called with a line of progress now and then.

        Raises:
            InvalidInput: If it is no such repository.
            NotFound: If there is no such revision.
        """
        from everloop.transfer.dvc import DvcImporter

        importer = DvcImporter(Path(repo), self, names or {}, tell or _silent)
        return importer.run(revisions)

    def merge(
        self, folder: str | os.PathLike[str], *, tell: Callable[[str], None] | None = None
    ) -> TransferReport:
        """Take in the runs, datasets and models of another workspace's folder; twice is once.

        Args:
            folder: Its ``.everloop`` folder, which is only read.
            tell: Called with a line of progress now and then.

        Raises:
            InvalidInput: If it is no workspace.
            StateError: If it is being written, or this workspace is remote.
            BackendError: If it was made by a newer Everloop.
        """
        from everloop.catalog.stores import find_place
        from everloop.transfer.folder import catalog_copy
        from everloop.transfer.merge import MERGED, Merger
        from everloop.transfer.report import Findings

        home, place = self._local("what takes in a folder"), Path(folder)
        _ = self.tracking  # makes the experiment "0", which every workspace has
        with catalog_copy(place, home, self.clock) as copy:
            there = self._opened(find_place(copy, "", place.absolute()))
            merger = Merger(str(place), copy, there, self._catalog, self.blobs, Findings(MERGED))
            return merger.run(tell or _silent)


def _silent(_: str) -> None:
    """Progress that nobody wants to see."""
