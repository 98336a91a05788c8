"""Where the pipeline of a declaration is loaded from: the working tree, or a package."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from everloop.automation.project import ProjectFiles
from everloop.automation.triggers import collecting
from everloop.core.context import using
from everloop.core.package import PACKAGE_TAG, Package, parse_place
from everloop.pipelines.api import Pipeline
from everloop.pipelines.load import load_pipeline
from everloop.pipelines.snapshot import is_whole, read_tree, unpacked
from everloop.pipelines.watcher import Watcher
from everloop.ports.blobs import BlobStore

if TYPE_CHECKING:
    from everloop.packages.service import PackageService
    from everloop.tracking.service import TrackingService

__all__ = ["Loaded", "Places", "folder_of"]


class Workplace(Protocol):
    """What is needed of a workspace."""

    @property
    def blobs(self) -> BlobStore: ...
    @property
    def packages(self) -> PackageService: ...
    @property
    def tracking(self) -> TrackingService: ...


class Loaded(NamedTuple):
    """A pipeline, and what goes along with each run of it."""

    pipeline: Pipeline[Any, Any]
    watcher: Watcher


def folder_of(package: Package, blobs: BlobStore) -> Path:
    """The folder with the code of a package, unpacked once a machine, and looked at each time."""
    code, of = package.manifest.code, f"package {package.ref}"
    folder = unpacked(code, of, blobs)
    if is_whole(folder, read_tree(blobs.get(code))):
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    return unpacked(code, of, blobs)


class Places:
    """Loads pipelines by the paths in declarations.

    Args:
        workspace: Whose; plain functions act in it.
        root: Folder of the working tree, which paths are relative to.
        files: The project's files there, which may be edited between two loads.
    """

    def __init__(self, workspace: Workplace, root: Path, files: ProjectFiles) -> None:
        self._ws = workspace
        self._root = root
        self._files = files

    @contextlib.contextmanager
    def loaded(self, path: str, run_id: str = "") -> Iterator[Loaded]:
        """Within the block the pipeline at `path` can be run, from where its files lie.

        For a package that is the current folder of the process meanwhile.

        Args:
            path: ``file.py:function``, or ``package:NAME@DIGEST/file.py:function``.
            run_id: A run that goes on. If it began with the code of a package it goes on with that
                code, whatever is deployed by now.

        Raises:
            NotFound: If there is no such file, package or function.
            UserCodeError: If the file raises when it is imported.
        """
        place = parse_place(path)
        ref = self._ws.tracking.run(run_id).tags.get(PACKAGE_TAG, "") if run_id else ""
        if not ref and place is not None:
            ref = f"{place.name}@{place.digest}"
        with using(self._ws), collecting():
            if not ref:
                self._files.drop_edited()
                pipeline = load_pipeline(str(self._root / path))
                self._files.note()
                yield Loaded(pipeline, Watcher())
                return
            package = self._ws.packages.package(ref)
            folder = folder_of(package, self._ws.blobs)
            inner = place.path if place is not None else _within(path, package)
            with _importing_from(folder), contextlib.chdir(folder):
                pipeline = load_pipeline(str(folder / inner))
                yield Loaded(pipeline, Watcher(tags={PACKAGE_TAG: ref}, git=package.git))


def _within(path: str, package: Package) -> str:
    """The part of an absolute path that lies within the code of a package."""
    return path.rpartition(f"/{package.manifest.code}/")[2]


@contextlib.contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """Within the block the modules in `folder` are imported from there, and from nowhere else.

    A process of its own works on each firing, so there is mostly nothing to forget; one that works
    off several must not mix the modules of two packages.
    """
    names = {one.name.removesuffix(".py") for one in folder.iterdir()}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        is_here = file is not None and Path(file).is_relative_to(folder)
        if name.partition(".")[0] in names and not is_here:
            del sys.modules[name]
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the code may have tidied up itself
            sys.path.remove(str(folder))
