"""The server: every HTTP door and the pages, composed into one application on one port.

The serving paths (``/v2``, ``/invocations``, ``/ping``) go to the raw ASGI application of
``everloop.api.oip`` before any framework sees them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from everloop.api import errors, metrics, mlflow, native
from everloop.api.guard import Guard
from everloop.errors import EverloopError
from everloop.ui import pages
from everloop.workspace import Workspace

__all__ = ["make_app"]

_SERVING = ("/v2", "/invocations", "/ping")


class _Doors:
    """Sends serving requests past the framework; opens the route when the first one comes."""

    def __init__(self, workspace: Workspace, pages_and_api: ASGIApp, registry: CollectorRegistry):
        self._workspace = workspace
        self._framework = pages_and_api
        self._registry = registry
        self._serving: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(_SERVING):
            if self._serving is None:
                self._serving = await run_in_threadpool(self._open)
            await self._serving(scope, receive, send)
            return
        await self._framework(scope, receive, send)

    def _open(self) -> ASGIApp:
        from everloop.api.serving import serving_app

        return serving_app(self._workspace, self._registry)


def make_app(workspace: Workspace, *, host: str = "127.0.0.1") -> ASGIApp:
    """The application over `workspace`.

    Args:
        workspace: Embedded; closed when the application shuts down.
        host: The address that the server is bound to; other names in ``Host`` are refused.
    """
    registry = CollectorRegistry()
    registry.register(metrics.StateCollector(workspace))

    async def health(request: Request) -> Response:
        return PlainTextResponse("OK")

    async def prometheus(request: Request) -> Response:
        return Response(
            await run_in_threadpool(metrics.render, registry), media_type=metrics.CONTENT_TYPE
        )

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        workspace.close()

    framework = Starlette(
        routes=[
            Route("/health", health),
            Route("/metrics", prometheus),
            *native.routes(workspace),
            *mlflow.routes(workspace),
            *pages.routes(workspace),
        ],
        exception_handlers={
            EverloopError: errors.on_everloop_error,
            HTTPException: errors.on_http_exception,
            Exception: errors.on_unknown_error,
        },
        lifespan=lifespan,
    )
    return Guard(_Doors(workspace, framework, registry), host=host)
