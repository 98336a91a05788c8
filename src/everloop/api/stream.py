"""``GET /api/v1/runs/{id}/stream``: the points of a run as they come, as server-sent events.

Each event carries its cursor as its id, so that a browser that lost the connection goes on where
it was (``Last-Event-ID``). A stream ends with the run, or after ten minutes: the client comes back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from everloop.api.auth import RECHECK
from everloop.core.context import acting
from everloop.core.run import Metric, PointPage
from everloop.errors import BackendError, InvalidInput, NotAllowed, Throttled
from everloop.workspace import Workspace

__all__ = ["routes"]

#: Streams at once; each costs a look at the catalog every so often.
MAX_STREAMS = 64
#: Metrics that one stream follows: its cursor holds a place in each, and travels in a header.
MAX_KEYS = 50
#: Points of one event.
PAGE = 1000
LOOK_S, KEEP_ALIVE_S, LONGEST_S = 0.5, 15.0, 600.0

_FOLLOWED = ("running", "queued")


def routes(workspace: Workspace) -> list[Route]:
    """The route."""
    streams = _Streams(workspace)
    return [Route("/api/v1/runs/{id}/stream", streams.open, methods=["GET"])]


class _Streams:
    """All streams of a server."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._open = 0

    async def open(self, request: Request) -> Response:
        keys = request.query_params.getlist("key")
        if not 1 <= len(keys) <= MAX_KEYS:
            fault = ("key", f"{len(keys)} given, 1 to {MAX_KEYS} are allowed")
            raise InvalidInput("name the metrics to follow", [fault], hint="?key=loss&key=auc")
        cursor = request.headers.get("Last-Event-ID") or request.query_params.get("cursor", "")
        if self._open >= MAX_STREAMS:
            raise BackendError(
                f"{MAX_STREAMS} streams are open, which is the most",
                hint="close one, or ask POST /api/v1/tracking/points_after now and then",
            )
        actor = request.headers.get("Everloop-Actor") or self._workspace.actor
        run_id = request.path_params["id"]
        first = await self._look(actor, run_id, cursor, keys)  # an error is an answer, no stream
        self._open += 1
        recheck = request.scope.get(RECHECK)
        return _Stream(self._events(actor, run_id, first, keys, recheck), self._closed)

    def _closed(self) -> None:
        self._open -= 1

    async def _look(self, actor: str, run_id: str, cursor: str, keys: list[str]) -> PointPage:
        def work() -> PointPage:
            with acting(actor=actor):
                return self._workspace.tracking.points_after(run_id, cursor, keys=keys, limit=PAGE)

        return await run_in_threadpool(work)

    async def _events(
        self,
        actor: str,
        run_id: str,
        page: PointPage,
        keys: list[str],
        recheck: Callable[[], Awaitable[object]] | None,
    ) -> AsyncIterator[bytes]:
        began = told = time.monotonic()
        while True:
            if page.points:
                told = time.monotonic()
                yield _event("points", [_fields(point) for point in page.points], page.cursor)
            if not page.has_more:
                if page.state not in _FOLLOWED:
                    yield _event("end", {"state": page.state}, page.cursor)
                    return
                if time.monotonic() - began > LONGEST_S:
                    return
                if time.monotonic() - told > KEEP_ALIVE_S:
                    told = time.monotonic()
                    yield b": still here\n\n"
                await asyncio.sleep(LOOK_S)
                if recheck is not None and not await _is_still_known(recheck):
                    return
            page = await self._look(actor, run_id, page.cursor, keys)


async def _is_still_known(recheck: Callable[[], Awaitable[object]]) -> bool:
    """Whether the one who follows may still log in: a stream outlives many a token."""
    try:
        await recheck()
    except (NotAllowed, Throttled):
        return False
    return True


class _Stream(StreamingResponse):
    """Says when it is over, however it ended."""

    def __init__(self, events: AsyncIterator[bytes], closed: Callable[[], None]) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._closed = closed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._closed()


def _fields(point: Metric) -> dict[str, object]:
    # JSON has no NaN and no infinities.
    number = point.value if abs(point.value) < float("inf") else str(point.value)
    return {"key": point.key, "value": number, "step": point.step, "at_ms": point.at_ms}


def _event(kind: str, data: object, cursor: str) -> bytes:
    return b"event: %s\nid: %s\ndata: %s\n\n" % (
        kind.encode(),
        cursor.encode(),
        msgspec.json.encode(data),
    )
