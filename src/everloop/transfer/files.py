"""Stores the files of a source: several at once, each read, kept and read back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import NamedTuple

from everloop.core.run import Artifact
from everloop.errors import BackendError, EverloopError
from everloop.ports.blobs import BlobStore, HasPaths
from everloop.transfer.report import Findings
from everloop.transfer.source import SourceFile, Stream

__all__ = ["FileStore", "Wanted"]

_THREADS = 8
_PIECE = 1 << 20


class Wanted(NamedTuple):
    """A file to be stored: whose it is, and the path that it gets here."""

    owner: str
    path: str
    file: SourceFile


class _UnreadableError(Exception):
    """The source, not the store, failed."""


class FileStore:
    """Puts files into `blobs`; the syncing of many small ones overlaps."""

    def __init__(self, blobs: BlobStore, findings: Findings) -> None:
        self._blobs = blobs
        self._findings = findings
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="transfer")
        self._checked: set[str] = set()

    def keep(self, wanted: Iterable[Wanted]) -> dict[str, list[Artifact]]:
        """Store files and return them by owner; what cannot be read is told and left out.

        Raises:
            BackendError: If they cannot be stored, or the source is gone altogether.
        """
        kept: dict[str, list[Artifact]] = {}
        listed = list(wanted)
        for item, artifact in zip(listed, self._threads.map(self._keep, listed), strict=True):
            self._findings.add("files", found=1)
            if artifact is not None:
                kept.setdefault(item.owner, []).append(artifact)
        return kept

    def _keep(self, wanted: Wanted) -> Artifact | None:
        try:
            digest, size = self._blobs.put(_content(wanted.file))
        except _UnreadableError as error:
            self._findings.fail("files", wanted.path, str(error))
            return None
        if wanted.file.size not in (-1, size):
            reason = f"{wanted.file.size} bytes are said to be there, {size} came"
            self._findings.fail("files", wanted.path, reason)
            return None
        return Artifact(path=wanted.path, digest=digest, size=size)

    def check(self, artifacts: list[Artifact], here: list[Artifact]) -> None:
        """Hold what was stored against what the workspace has now, and its bytes against both."""
        found = {item.path: item for item in here}
        for artifact in artifacts:
            if found.get(artifact.path) != artifact:
                self._findings.fail("files", artifact.path, "is not here as it was stored")
        fresh = {item.digest for item in artifacts} - self._checked
        for digest, fault in zip(fresh, self._threads.map(self._read_back, fresh), strict=True):
            if fault:
                self._findings.fail("files", digest, fault)
            self._checked.add(digest)
        sound = [item for item in artifacts if not self._findings.failed("files", item.path)]
        self._findings.add("files", imported=len(sound))
        self._findings.bytes += sum(item.size for item in sound)

    def _read_back(self, digest: str) -> str:
        try:
            if isinstance(self._blobs, HasPaths):
                self._blobs.path(digest)
            else:
                for _ in self._blobs.stream(digest):
                    pass
        except EverloopError as error:
            return error.message
        return ""

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(cancel_futures=True)


def _content(file: SourceFile) -> bytes | Iterator[bytes]:
    """The bytes of a file; whole if they are few, so that what is here already is not written."""
    pieces = _pieces(file)
    if 0 <= file.size <= _PIECE:
        return b"".join(pieces)
    return pieces


def _pieces(file: SourceFile) -> Iterator[bytes]:
    try:
        opened = file.open()
        if isinstance(opened, Stream):
            with closing(opened):
                while piece := opened.read(_PIECE):
                    yield piece
        else:
            yield from opened
    except BackendError as error:
        if error.details.get("unreachable"):
            raise
        raise _UnreadableError(error.message) from error
    except EverloopError as error:
        raise _UnreadableError(error.message) from error
    except OSError as error:
        raise _UnreadableError(f"cannot be read: {error.strerror or error}") from error
