"""Locks on files that end with the process that holds them, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["held"]


@contextlib.contextmanager
def held(path: Path, wait_s: float = 0.0) -> Iterator[int | None]:
    """Hold the lock on a file or a folder within the block.

    The lock lasts until every process that has the descriptor open has closed it or died: a child
    that inherits it holds it too.

    Args:
        path: A folder, or a file, which is made if it is not there.
        wait_s: How long to wait for whoever holds it.

    Yields:
        The descriptor, or None if somebody else holds the lock.
    """
    options = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    descriptor = os.open(path, options, 0o644)
    try:
        yield descriptor if _take(descriptor, time.monotonic() + wait_s) else None
    finally:
        os.close(descriptor)


def _take(descriptor: int, deadline: float) -> bool:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)
