"""Digests of files and folders that steps take, remembered by inode, size and time."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

from blake3 import blake3

__all__ = ["content_of_path"]

# A file written this short a time ago may be written again within the same tick of its clock.
_SETTLED_NS = 2_000_000_000

_memo: dict[tuple[int, int, int, int], str] = {}


def content_of_path(path: Path) -> str:
    """Digest of a file, or of the names and files of a folder; ``absent`` if there is nothing."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return "absent"
    if not stat.S_ISDIR(found.st_mode):
        return _file(path, found)
    hasher = blake3()
    for child in sorted(path.rglob("*")):
        if child.is_file():
            name = child.relative_to(path).as_posix()
            hasher.update(f"{len(name)}:{name}:{_file(child, child.stat())}".encode())
    return f"folder:{hasher.hexdigest()}"


def _file(path: Path, found: os.stat_result) -> str:
    key = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    digest = _memo.get(key)
    if digest is None:
        digest = blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest()
        if time.time_ns() - found.st_mtime_ns > _SETTLED_NS:
            _memo[key] = digest
    return digest
