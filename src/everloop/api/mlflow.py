"""The MLflow door: its REST surface over our services, so that every MLflow client works here.

One route takes all calls of a version of the API and finds the handler in a table: a call costs
one look-up, however many there are. Handlers are in the modules beside this one; each decodes,
calls a service and encodes. What is not served answers 404 as JSON.
"""

from __future__ import annotations

import re

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from everloop.api import (
    mlflow_artifacts,
    mlflow_experiments,
    mlflow_files,
    mlflow_history,
    mlflow_log,
    mlflow_models,
    mlflow_registry,
    mlflow_runs,
    mlflow_traces,
    mlflow_traces_old,
    mlflow_versions,
    mlflow_webhooks,
)
from everloop.api.mlflow_absent import GRAPHQL, why_absent
from everloop.api.mlflow_calls import Answering, Call, answer_json, told
from everloop.api.mlflow_wire import decode_body, decode_query
from everloop.core.context import acting
from everloop.errors import InvalidInput, TooLarge
from everloop.ports.blobs import HasParts
from everloop.workspace import Workspace

__all__ = ["API_LEVEL", "DOORS", "routes"]

#: The release of MLflow whose clients this door was tried with; some compare it with their own.
API_LEVEL = "3.17.2"

_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]
_ROUTED = [*_METHODS, "OPTIONS"]
_MAX_BODY = 16 << 20
_MAX_BATCH = 1_000_000

_EXACT: dict[tuple[str, str], Call] = {}
_PATTERNS: list[tuple[str, re.Pattern[str], Call]] = []

#: The modules with the handlers.
DOORS = (
    mlflow_experiments,
    mlflow_runs,
    mlflow_log,
    mlflow_history,
    mlflow_models,
    mlflow_registry,
    mlflow_versions,
    mlflow_files,
    mlflow_traces,
    mlflow_traces_old,
    mlflow_webhooks,
)
for _door in DOORS:
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
        info = {**_SERVER_INFO, "multipart_uploads_enabled": isinstance(workspace.blobs, HasParts)}
        return answer_json(info)

    async def call(request: Request) -> Response:
        path = request.path_params["rest"].removeprefix("preview/")
        method = "GET" if request.method == "HEAD" else request.method
        found, given = _find(method, path)
        if found is None:
            return _unknown(method, path)
        asked = await _asked(request, path, found, given)
        answer = await run_in_threadpool(_work, found, asked)
        return answer_json(answer, headers=_FILES.get(path))

    def _work(found: Call, asked: object) -> object:
        with acting(actor=workspace.actor):
            return found.handler(workspace, asked)

    made = [Route("/version", version), Route("/graphql", _no_graphql, methods=_METHODS)]
    for path, handler in mlflow_files.pages(workspace).items():
        made.append(Route(path, told(handler)))
    for api in ("/api", "/ajax-api"):
        made.append(Route(f"{api}/3.0/mlflow/server-info", server_info))
        for level in ("2.0", "3.0"):
            base = f"{api}/{level}"
            files = mlflow_files.routes(workspace, f"{base}/mlflow")
            files += mlflow_artifacts.routes(workspace, f"{base}/mlflow-artifacts")
            made += [Route(path, told(handler), methods=on) for path, handler, on in files]
            made += [Route(path, _other_than(on), methods=_ROUTED) for path, _, on in files]
            made.append(Route(f"{base}/{{rest:path}}", told(call), methods=_ROUTED))
    return made


async def _asked(request: Request, path: str, found: Call, given: dict[str, str]) -> object:
    limit = _MAX_BATCH if path == "mlflow/runs/log-batch" else _MAX_BODY
    query = request.scope["query_string"]
    if request.method in ("GET", "HEAD"):
        # MLflow reads the body of a GET that has no query.
        body = b"" if query else await _read(request, limit)
        if not body:
            return decode_query(query, found.asked, given)
    else:
        body = await _read(request, limit)
    return decode_body(body, found.asked, given)


#: Calls whose answer is a file's content.
_FILES = {
    "mlflow/get-trace-artifact": {"Content-Disposition": "attachment; filename=traces.json"},
}
_SERVER_INFO = {
    "store_type": "SqlStore",
    "workspaces_enabled": False,
    "trace_archival_enabled": False,
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
        raise InvalidInput(
            f"Bad Request. Content-Type must be one of ['application/json'], got {kind!r:.80}"
        )
    return b"".join(parts)


def _unknown(method: str, path: str) -> Response:
    """The answer for a call that is not there: 405 where another method would do."""
    allowed = [other for other in _METHODS if _find(other, path)[0] is not None]
    if allowed:
        return _wrong_method(method, allowed)
    body = {"error_code": "ENDPOINT_NOT_FOUND", "message": why_absent(path)}
    return answer_json(body, 404)


def _wrong_method(method: str, allowed: list[str]) -> Response:
    headers = {"Allow": ", ".join(allowed)}
    if method == "OPTIONS":
        return Response(status_code=204, headers=headers)
    message = f"This endpoint takes {' and '.join(allowed)} alone."
    return answer_json({"error_code": "ENDPOINT_NOT_FOUND", "message": message}, 405, headers)


def _other_than(allowed: list[str]) -> Answering:
    """What answers methods that a path of files does not take."""

    async def handler(request: Request) -> Response:
        return _wrong_method(request.method, allowed)

    return handler


async def _no_graphql(request: Request) -> Response:
    return answer_json({"error_code": "ENDPOINT_NOT_FOUND", "message": GRAPHQL}, 404)
