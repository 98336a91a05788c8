"""Bodies of requests as streams for worker threads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import anyio.from_thread

__all__ = ["pieces_of"]


def pieces_of(body: AsyncIterator[bytes]) -> Iterator[bytes]:
    """A streamed body in a worker thread; it is read on the event loop, a piece at a time."""
    while (piece := anyio.from_thread.run(anext, body, None)) is not None:
        yield piece
