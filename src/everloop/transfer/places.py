"""Finds the files that a store names by URI: where it says, else beside the store.

Stores are moved and copied; the absolute paths within them are not. So a folder that is not where
it is said to be is looked for under the folders given, by the end of its path.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from everloop.transfer.source import Fail, SourceFile

__all__ = ["Places"]


class Places:
    """Folders in which the files of one store may be.

    Args:
        roots: Folders that hold ``<experiment>/<run>/artifacts``, in the order to look.
        base: The folder that relative paths are meant from.
    """

    def __init__(self, roots: list[Path], base: Path) -> None:
        self._roots = roots
        self._base = base

    def folder(self, uri: str) -> Path | None:
        """The folder of a URI; None if it is not on this machine."""
        parts = urlsplit(uri)
        if parts.scheme in ("", "file") or len(parts.scheme) == 1:
            said = Path(unquote(parts.path) if parts.scheme == "file" else uri)
            path = said if said.is_absolute() else self._base / said
            if path.exists():
                return path
        elif parts.scheme != "mlflow-artifacts":
            return None
        names = [name for name in unquote(parts.path).split("/") if name]
        if ".." in names:
            return None
        # From the longest end to <experiment>/<run>/artifacts, which names one run and no other.
        for start in range(max(len(names) - 2, 0)):
            for root in self._roots:
                path = root.joinpath(*names[start:])
                if path.exists():
                    return path
        return None

    def files(self, uri: str, beside: Path | None, owner: str, fail: Fail) -> Iterator[SourceFile]:
        """The files below a URI, else in the folder `beside`; none and no fault if none are said.

        Args:
            uri: As the store says it.
            beside: The folder where its files are in a store that was not told otherwise.
            owner: Whose files they are, such as ``run 4bad...``.
            fail: Told what cannot be read.
        """
        folder = self.folder(uri) if uri else None
        if beside is not None and (folder is None or not folder.is_dir()):
            folder = beside if beside.is_dir() and any(beside.iterdir()) else None
        if folder is None:
            if uri and not self._is_never_made(uri):
                fail("files", owner, f"its files are at {uri}, which cannot be read from here")
            return
        yield from _walk(folder, owner, fail)

    def _is_never_made(self, uri: str) -> bool:
        # A run that logged no file has no folder; one whose store is elsewhere may have had files.
        parts = urlsplit(uri)
        if parts.scheme not in ("", "file", "mlflow-artifacts"):
            return False
        if any(root.is_dir() for root in self._roots):
            return True
        path = Path(unquote(parts.path) if parts.scheme == "file" else uri)
        return parts.scheme != "mlflow-artifacts" and (self._base / path).parent.is_dir()


def _walk(folder: Path, owner: str, fail: Fail) -> Iterator[SourceFile]:
    def unreadable(error: OSError) -> None:
        fail("files", f"{owner} {error.filename}", str(error.strerror))

    for here, folders, names in os.walk(folder, onerror=unreadable):
        folders.sort()
        for name in folders:
            if os.path.islink(os.path.join(here, name)):
                fail("files", f"{owner} {name}", "is a link to a folder and is not followed")
        for name in sorted(names):
            path = Path(here, name)
            shown = path.relative_to(folder).as_posix()
            try:
                size = path.stat().st_size
            except OSError as error:
                fail("files", f"{owner} {shown}", error.strerror or "cannot be read")
                continue
            yield SourceFile(shown, size, partial(_open, path))


def _open(path: Path) -> BinaryIO:
    return open(path, "rb")
