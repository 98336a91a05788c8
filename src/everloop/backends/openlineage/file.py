"""FileSink: events as lines of JSON at the end of a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from everloop.errors import BackendError

__all__ = ["FileSink"]

_BLOCK = 1 << 16


class FileSink:
    """Appends to `path`, one event a line; the folder is made if it is not there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None

    def send(self, event: bytes) -> None:
        """Append one event."""
        try:
            self._opened().write(event + b"\n")
        except OSError as error:
            raise self._failed(error) from error

    def flush(self) -> None:
        """Bring what was appended to the disk and close the file."""
        if self._file is None:
            return
        try:
            with self._file as file:
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._failed(error) from error
        finally:
            self._file = None

    def _opened(self) -> BinaryIO:
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a+b")
            _cut_torn_line(self._file)
        return self._file

    def _failed(self, error: OSError) -> BackendError:
        return BackendError(f"cannot write {self._path}: {error.strerror or error}")


def _cut_torn_line(file: BinaryIO) -> None:
    """Drop what a writer that died left after the last end of line; it is sent again."""
    end = file.seek(0, os.SEEK_END)
    at = end
    while at:
        start = max(0, at - _BLOCK)
        file.seek(start)
        newline = file.read(at - start).rfind(b"\n")
        if newline >= 0:
            at = start + newline + 1
            break
        at = start
    if at < end:
        file.truncate(at)
