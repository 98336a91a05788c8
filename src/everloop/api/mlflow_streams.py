"""Bodies of requests as streams for worker threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import anyio.from_thread

__all__ = ["pieces_of"]

#: The network gives some 64 kB at a time; each change of threads costs as much as handling these.
_AT_ONCE = 1 << 20


def pieces_of(body: AsyncIterator[bytes]) -> Iterator[bytes]:
    """A streamed body in a worker thread; the event loop reads on while a piece is worked on."""
    loop = anyio.from_thread.run_sync(asyncio.get_running_loop)
    coming = asyncio.run_coroutine_threadsafe(_gathered(body), loop)
    try:
        while pieces := coming.result():
            coming = asyncio.run_coroutine_threadsafe(_gathered(body), loop)
            yield from pieces
    finally:
        coming.cancel()


async def _gathered(body: AsyncIterator[bytes]) -> list[bytes]:
    pieces, size = [], 0
    async for piece in body:
        pieces.append(piece)
        size += len(piece)
        if size >= _AT_ONCE:
            break
    return pieces
