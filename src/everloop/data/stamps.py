"""What is known of files on this machine by size, times and inode, so that they need not be read.

One SQLite file in ``cache/`` of the workspace's folder, a row for each directory. It is a cache:
deleted, damaged or locked it costs time only, and no version relies on what it says, for a commit
looks whether the objects are there.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec
from blake3 import blake3

from everloop.data.tree import Entry

__all__ = ["SETTLED_NS", "FolderStamp", "Stamp", "Stamps"]

#: A file changed so short a time before it is read may change again within the same tick of its
#: clock: it is read again next time. Some file systems count in steps of two seconds.
SETTLED_NS = 2_000_000_000

#: Name, mode, bytes, time of content and of inode (ns), inode.
Stamp = tuple[bytes, int, int, int, int, int]

_BUSY_S = 5


class FolderStamp(msgspec.Struct, array_like=True, gc=False):
    """A directory as it was.

    Attributes:
        stamps: Of its files and links, by name; a time of -1 never fits.
        entries: What they were, in the same order.
        folders: Names and digests of the directories in it.
        made: Its own entry.
        unstored: Names in it whose bytes were digested and not stored.
        is_stored: Whether its own object was stored.
    """

    stamps: list[Stamp]
    entries: list[Entry]
    folders: list[tuple[bytes, bytes]]
    made: Entry
    unstored: set[bytes]
    is_stored: bool


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(FolderStamp).decode


_CHECK = 8


def _checked(data: bytes) -> bytes:
    return blake3(data).digest(_CHECK) + data


def _is_whole(data: bytes) -> bool:
    return blake3(data[_CHECK:]).digest(_CHECK) == data[:_CHECK]


class Stamps:
    """The cache in a folder; None keeps nothing."""

    def __init__(self, folder: Path | None) -> None:
        self._file = None if folder is None else folder / "files.sqlite"

    def read(self, root: bytes) -> dict[bytes, FolderStamp]:
        """What is known below `root`, by path from there."""
        if self._file is None or not self._file.exists():
            return {}
        try:
            with contextlib.closing(self._open()) as connection:
                query = "SELECT path, stamp FROM folders WHERE root = ?"
                rows = connection.execute(query, (root,)).fetchall()
            return {path: _decode(stamp[_CHECK:]) for path, stamp in rows if _is_whole(stamp)}
        except sqlite3.OperationalError:  # in use, or not to be opened
            return {}
        except (sqlite3.Error, msgspec.MsgspecError):
            self._drop()
            return {}

    def write(self, root: bytes, found: Mapping[bytes, FolderStamp], gone: Iterable[bytes]) -> None:
        """Remember directories, and forget those that are gone."""
        gone = list(gone)
        if self._file is None or not (found or gone):
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(self._open()) as connection, connection:
                if b"" in found:  # a directory that may be new here: others may be gone for good
                    roots = connection.execute("SELECT DISTINCT root FROM folders").fetchall()
                    lost = [row for row in roots if not os.path.lexists(row[0])]
                    connection.executemany("DELETE FROM folders WHERE root = ?", lost)
                connection.executemany(
                    "DELETE FROM folders WHERE root = ? AND path = ?", [(root, p) for p in gone]
                )
                connection.executemany(
                    "INSERT OR REPLACE INTO folders VALUES (?, ?, ?)",
                    [(root, path, _checked(_encode(stamp))) for path, stamp in found.items()],
                )
        except (sqlite3.OperationalError, OSError):
            pass
        except sqlite3.Error:
            self._drop()

    def _open(self) -> sqlite3.Connection:
        assert self._file is not None
        connection = sqlite3.connect(self._file, timeout=_BUSY_S)
        # A crash may lose it, or tear a row, which its digest tells.
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS folders"
            " (root BLOB, path BLOB, stamp BLOB, PRIMARY KEY (root, path)) WITHOUT ROWID"
        )
        return connection

    def _drop(self) -> None:
        assert self._file is not None
        for file in (self._file, self._file.with_name(f"{self._file.name}-journal")):
            with contextlib.suppress(OSError):
                os.unlink(file)
