"""A workspace that mirrors the datasets of another one, for work beside what is live."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from everloop import settings
from everloop.workspace import Workspace

if TYPE_CHECKING:
    from everloop.data.file_service import FileService
    from everloop.data.mirror import MirrorData
    from everloop.data.sample import Sample

__all__ = ["MirrorWorkspace"]


class MirrorWorkspace(Workspace):
    """A workspace of its own that reads the datasets of another one, which it never changes.

    Args:
        folder: Where it is.
        origin: The other; None mirrors nothing.
        sample: What is kept of each table; None is all.
    """

    def __init__(
        self,
        folder: Path,
        *,
        origin: Workspace | None,
        sample: Sample | None = None,
    ) -> None:
        super().__init__(str(folder), actor=settings.load().actor)
        self.origin = origin
        self._sample = sample

    @cached_property
    def data(self) -> MirrorData:
        """Datasets of the other workspace, and those that were committed here."""
        from everloop.data.mirror import MirrorData, Origin

        theirs = None if self.origin is None else Origin(self.origin.data, self.origin.blobs)
        return MirrorData(self._catalog, self.blobs, self._authorizer, theirs, self._sample)

    @cached_property
    def files(self) -> FileService:
        """Files that are committed here, on top of those of the other workspace."""
        from everloop.data.file_service import FileService

        bring = self.data.bring
        return FileService(self._catalog, self.blobs, self._authorizer, before_commit=bring)
