"""``POST /hooks/NAME``: webhooks of others, known by their signature and not by a login."""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from everloop.automation.hooks import MAX_BODY
from everloop.core.context import authenticated
from everloop.errors import TooLarge
from everloop.workspace import Workspace

__all__ = ["routes"]


def routes(workspace: Workspace) -> list[Route]:
    """The route; it goes before those of the services."""

    async def receive(request: Request) -> Response:
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY:
                raise TooLarge(f"the body is above {MAX_BODY} bytes")
        name = request.path_params["name"]
        given = [_header(request, field) for field in ("id", "timestamp", "signature")]

        def work() -> bool:
            # Who signs it is let in by that; the door has asked for nothing else.
            with authenticated(None):
                return workspace.hooks.receive(name, bytes(body), *given)

        is_new = await run_in_threadpool(work)
        return JSONResponse({"received": True, "duplicate": not is_new}, 202 if is_new else 200)

    return [Route("/hooks/{name:str}", receive, methods=["POST"])]


#: What our own webhooks send, by what the specification calls it.
_OURS = {
    "id": "X-MLflow-Delivery-Id",
    "timestamp": "X-MLflow-Timestamp",
    "signature": "X-MLflow-Signature",
}


def _header(request: Request, field: str) -> str:
    return request.headers.get(f"webhook-{field}") or request.headers.get(_OURS[field], "")
