"""The server: every HTTP door and the pages, composed into one application on one port.

The serving paths (``/v2``, ``/invocations``, ``/ping``) go to the raw ASGI application of
``everloop.api.oip`` before any framework sees them.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from everloop.api import errors, hooks, mlflow, native, openlineage, otlp, stream
from everloop.api.auth import SERVING, Authentication
from everloop.api.guard import Guard
from everloop.api.mlflow_hot import HotCalls
from everloop.core.context import authenticated
from everloop.errors import EverloopError
from everloop.ui import pages
from everloop.workspace import Workspace

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from everloop.api.serving import ServerInference

__all__ = ["make_app"]

_log = logging.getLogger(__name__)

#: Between two looks for runs whose process died, seconds.
REAP_S = 15.0


class _Doors:
    """Sends serving requests past the framework."""

    def __init__(self, serving: ASGIApp, pages_and_api: ASGIApp) -> None:
        self._serving = serving
        self._framework = pages_and_api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_serving = scope["type"] == "http" and scope["path"].startswith(SERVING)
        await (self._serving if is_serving else self._framework)(scope, receive, send)


class _Serving:
    """The serving door, opened when the first request for it comes."""

    def __init__(self, workspace: Workspace, registry: Callable[[], CollectorRegistry]) -> None:
        self._workspace = workspace
        self._registry = registry
        self._opening = threading.Lock()
        self._opened: ServerInference | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        opened = self._opened
        if opened is None:
            opened = await run_in_threadpool(self._open)
        await opened.app(scope, receive, send)

    def close(self) -> None:
        """Store what was answered."""
        with self._opening:
            if self._opened is not None:
                self._opened.close()

    def _open(self) -> ServerInference:
        from everloop.api.serving import ServerInference

        with self._opening:
            if self._opened is None:
                # The server's own work, whoever's request it is that makes it begin.
                with authenticated(None):
                    self._opened = ServerInference(self._workspace, self._registry())
            return self._opened


@contextmanager
def _delivering(workspace: Workspace) -> Iterator[None]:
    """Deliver to the webhooks in a thread of its own, so that no request ever waits for one."""
    stop = threading.Event()
    courier = workspace.courier()
    thread = threading.Thread(
        target=courier.run_forever, args=(stop,), name="everloop-courier", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


async def _reap(workspace: Workspace) -> None:
    """Mark runs as lost whose process died, and finish erasures that one had begun.

    A server may run without a supervisor.
    """

    def look_after() -> None:
        workspace.tracking.reap()
        workspace.data.finish_erasures()

    while True:
        await asyncio.sleep(REAP_S)
        try:
            await run_in_threadpool(look_after)
        except EverloopError:
            _log.exception("what dead processes left could not be looked for; it is tried again")


def make_app(
    workspace: Workspace, *, host: str = "127.0.0.1", names: Iterable[str] = ()
) -> ASGIApp:
    """The application over `workspace`.

    Args:
        workspace: Embedded; closed when the application shuts down.
        host: The address that the server is bound to; other names in ``Host`` are refused.
        names: Further names that it answers under.
    """
    made: list[CollectorRegistry] = []
    making = threading.Lock()

    def registry() -> CollectorRegistry:
        # Loaded when somebody asks for metrics or is served.
        from prometheus_client import CollectorRegistry

        from everloop.api.metrics import StateCollector

        with making:
            if not made:
                made.append(CollectorRegistry())
                made[0].register(StateCollector(workspace))
        return made[0]

    serving = _Serving(workspace, registry)

    async def health(request: Request) -> Response:
        return PlainTextResponse("OK")

    async def prometheus(request: Request) -> Response:
        from everloop.api import metrics

        text = await run_in_threadpool(lambda: metrics.render(registry()))
        return Response(text, media_type=metrics.CONTENT_TYPE)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        reaping = asyncio.create_task(_reap(workspace))
        with _delivering(workspace):
            yield
        reaping.cancel()
        try:
            await run_in_threadpool(hot.close)
            await run_in_threadpool(serving.close)
            authentication.close()
        finally:
            workspace.close()

    framework = Starlette(
        routes=[
            Route("/health", health),
            Route("/metrics", prometheus),
            *openlineage.routes(workspace),
            *hooks.routes(workspace),
            *native.routes(workspace),
            *stream.routes(workspace),
            *mlflow.routes(workspace),
            *otlp.routes(workspace),
            *pages.routes(workspace),
        ],
        exception_handlers={
            EverloopError: errors.on_everloop_error,
            HTTPException: errors.on_http_exception,
            Exception: errors.on_unknown_error,
        },
        lifespan=lifespan,
    )
    hot = HotCalls(workspace, framework)
    authentication = Authentication(_Doors(serving, hot), workspace.login)
    return Guard(authentication, host=host, names=names)
