"""The MLflow door: its REST surface over our services, so that every MLflow client works here.

One route takes all calls of a version of the API and finds the handler in a table: a call costs
one look-up, however many there are. Handlers are in the modules beside this one; each decodes,
calls a service and encodes. What is not served answers 404 as JSON.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from everloop.api import (
    mlflow_artifacts,
    mlflow_experiments,
    mlflow_log,
    mlflow_models,
    mlflow_registry,
    mlflow_runs,
    mlflow_traces,
    mlflow_webhooks,
)
from everloop.api.mlflow_calls import Call
from everloop.api.mlflow_wire import decode_body, decode_query, error_answer
from everloop.core.context import acting
from everloop.errors import EverloopError, InvalidInput, TooLarge
from everloop.workspace import Workspace

__all__ = ["API_LEVEL", "routes"]

#: The release of MLflow whose clients this door was tried with; some compare it with their own.
API_LEVEL = "3.17.2"

_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]
_MAX_BODY = 16 << 20
_MAX_BATCH = 1_000_000

_EXACT: dict[tuple[str, str], Call] = {}
_PATTERNS: list[tuple[str, re.Pattern[str], Call]] = []

for _door in (
    mlflow_experiments,
    mlflow_runs,
    mlflow_log,
    mlflow_models,
    mlflow_registry,
    mlflow_traces,
    mlflow_webhooks,
):
    for (_method, _path), _call in _door.calls.items():
        if "{" in _path:
            _pattern = re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", _path))
            _PATTERNS.append((_method, _pattern, _call))
        else:
            _EXACT[_method, _path] = _call


def routes(workspace: Workspace) -> list[Route]:
    """The routes of the MLflow door."""

    async def version(request: Request) -> Response:
        return PlainTextResponse(API_LEVEL)

    async def server_info(request: Request) -> Response:
        return _json(_SERVER_INFO)

    async def call(request: Request) -> Response:
        path = request.path_params["rest"].removeprefix("preview/")
        found, given = _find(request.method, path)
        if found is None:
            return _unknown()
        asked: object
        if request.method == "GET":
            asked = decode_query(request.scope["query_string"], found.asked, given)
        else:
            limit = _MAX_BATCH if path == "mlflow/runs/log-batch" else _MAX_BODY
            asked = decode_body(await _read(request, limit), found.asked, given)
        return _json(await run_in_threadpool(_work, found, asked))

    def _work(found: Call, asked: object) -> object:
        with acting(actor=workspace.actor):
            return found.handler(workspace, asked)

    made = [Route("/version", version)]
    for api in ("/api", "/ajax-api"):
        made.append(Route(f"{api}/3.0/mlflow/server-info", server_info))
        for level in ("2.0", "3.0"):
            base = f"{api}/{level}/mlflow-artifacts"
            made += [
                Route(f"{base}/artifacts", _told(mlflow_artifacts.listing(workspace))),
                Route(
                    f"{base}/artifacts/{{path:path}}",
                    _told(mlflow_artifacts.content(workspace)),
                    methods=["GET", "PUT", "DELETE"],
                ),
                Route(f"{api}/{level}/{{rest:path}}", _told(call), methods=_METHODS),
            ]
    return made


_SERVER_INFO = {
    "store_type": "SqlStore",
    "workspaces_enabled": False,
    "trace_archival_enabled": False,
    "multipart_uploads_enabled": False,
    "multipart_downloads_enabled": False,
    "presigned_upload_run_id_supported": False,
    "presigned_upload_model_id_supported": False,
    "features_enabled": {"gateway": False},
}


def _find(method: str, path: str) -> tuple[Call | None, dict[str, str]]:
    found = _EXACT.get((method, path))
    if found is not None:
        return found, {}
    for wanted, pattern, call in _PATTERNS:
        if wanted == method and (match := pattern.fullmatch(path)):
            return call, match.groupdict()
    return None, {}


def _told(
    handler: Callable[[Request], Awaitable[Response]],
) -> Callable[[Request], Awaitable[Response]]:
    """`handler` with deliberate errors told in MLflow's shape."""

    async def told(request: Request) -> Response:
        try:
            return await handler(request)
        except EverloopError as error:
            status, body = error_answer(error)
            return _json(body, status)

    return told


async def _read(request: Request, limit: int) -> bytes:
    kind = request.headers.get("content-type", "application/json").split(";")[0].strip().lower()
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            # MLflow answers 400 for a batch that is too large.
            refusal = InvalidInput if limit == _MAX_BATCH else TooLarge
            raise refusal(f"The body of the request is above {limit} bytes")
        parts.append(part)
    if size and kind != "application/json":
        raise InvalidInput(f"Bad Request. Content-Type must be application/json, got {kind!r:.80}")
    return b"".join(parts)


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def _unknown() -> Response:
    body = {"error_code": "ENDPOINT_NOT_FOUND", "message": "This endpoint is not served here."}
    return _json(body, 404)
