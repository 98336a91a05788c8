"""Writing one file durably, hashed on its way."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from blake3 import blake3

__all__ = ["write_durably"]

#: Of a large file the disk gets this much at a time while the rest is still coming.
_AHEAD = 32 << 20


def write_durably(file: Path, data: Iterable[bytes], digest: str = "") -> tuple[str, int]:
    """Write a file that is not there yet and wait for the disk; returns its blake3 digest and size.

    The name in its folder is the caller's to make durable.

    Args:
        file: Where to.
        data: The bytes in pieces.
        digest: Of all of it, where that is known already.
    """
    hasher = blake3()
    size = begun = 0
    syncing: Future[None] | None = None
    with open(file, "xb") as target, ThreadPoolExecutor(1) as disk:
        for piece in data:
            if not digest:
                hasher.update(piece)
            size += len(piece)
            target.write(piece)
            if size - begun >= _AHEAD and (syncing is None or syncing.done()):
                _check(syncing)
                syncing, begun = disk.submit(os.fsync, target.fileno()), size
        target.flush()
        _check(syncing)
        os.fsync(target.fileno())
    return digest or hasher.hexdigest(), size


def _check(syncing: Future[None] | None) -> None:
    # The system tells a fault of the disk once: whoever was told must not forget it.
    if syncing is not None:
        syncing.result()
