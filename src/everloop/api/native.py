"""The native door: ``POST /api/v1/<area>/<method>`` for every service method, and its OpenAPI."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from functools import cache
from typing import Any
from urllib.parse import unquote

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from everloop import __version__
from everloop.access.service import actions_of
from everloop.access.wire import HEAD_LENGTH, decode_call, encode_result, hints_of
from everloop.core.context import acting
from everloop.errors import InvalidInput, NotFound, TooLarge
from everloop.workspace import AREAS, Workspace

__all__ = ["openapi", "routes"]

#: Bodies above this are refused; streams of artifacts have a door of their own.
MAX_BODY = 1 << 30


def routes(workspace: Workspace) -> list[Route]:
    """The routes of the native door."""

    async def call(request: Request) -> Response:
        area, name = request.path_params["area"], request.path_params["method"]
        method = _method(workspace, area, name)
        # Before the body is read; the method asks again, of the object that it is about.
        workspace.authorize(actions_of(type(workspace.service(area)))[name])
        body, head_length = _framed(request, await _read(request))
        actor = unquote(request.headers.get("Everloop-Actor", "")) or workspace.actor
        cause = request.headers.get("Everloop-Cause", "")

        def work() -> tuple[bytes, int]:
            arguments = decode_call(method, body, head_length)
            with acting(actor=actor, cause=cause):
                return encode_result(method(**arguments))

        data, head = await run_in_threadpool(work)
        return Response(data, media_type="application/json", headers={HEAD_LENGTH: str(head)})

    async def description(request: Request) -> Response:
        return Response(msgspec.json.encode(openapi(workspace)), media_type="application/json")

    return [
        Route("/api/v1/{area}/{method}", call, methods=["POST"]),
        Route("/api/openapi.json", description, methods=["GET"]),
    ]


def _method(workspace: Workspace, area: str, name: str) -> Callable[..., Any]:
    if area not in AREAS:
        raise NotFound.named("area", area, AREAS)
    service = workspace.service(area)
    known = actions_of(type(service))
    if name not in known:
        raise NotFound.named("method", f"{area}.{name}", [f"{area}.{key}" for key in known])
    return typing.cast("Callable[..., Any]", getattr(service, name))


def _framed(request: Request, body: bytes) -> tuple[bytes, int]:
    given = request.headers.get(HEAD_LENGTH)
    if given is None:  # people and curl send the arguments alone: {"name": "flights"}
        whole = b'{"value":' + (body or b"{}") + b"}"
        return whole, len(whole)
    if not (given.isascii() and given.isdigit() and len(given) < 19):
        raise InvalidInput(f"{HEAD_LENGTH} must be a number")
    return body, int(given)


async def _read(request: Request) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY:
            raise TooLarge(f"the body is above {MAX_BODY} bytes")
        parts.append(part)
    return b"".join(parts)


def openapi(workspace: Workspace) -> dict[str, Any]:
    """OpenAPI 3.1 of the native door, made from the services' annotations."""
    methods = []
    for area in AREAS:
        service = type(workspace.service(area))
        for name, action in actions_of(service).items():
            methods.append((area, name, action, getattr(service, name)))
    hints = [hint for *_, method in methods for hint in _types(method)[0].values()]
    hints += [_types(method)[1] for *_, method in methods]
    schemas, components = msgspec.json.schema_components(
        hints, schema_hook=_foreign, ref_template="#/components/schemas/{name}"
    )
    made = iter(schemas)
    bodies = [{key: next(made) for key in _types(method)[0]} for *_, method in methods]
    results = [next(made) for _ in methods]
    paths = {}
    for (area, name, action, method), body, result in zip(methods, bodies, results, strict=True):
        paths[f"/api/v1/{area}/{name}"] = {
            "post": _operation(area, name, action, method, body, result)
        }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Everloop", "version": __version__},
        "paths": paths,
        "components": {"schemas": components},
    }


def _operation(
    area: str,
    name: str,
    action: str,
    method: Callable[..., Any],
    body: dict[str, Any],
    result: dict[str, Any],
) -> dict[str, Any]:
    required = [
        key
        for key, parameter in inspect.signature(method).parameters.items()
        if key != "self" and parameter.default is inspect.Parameter.empty
    ]
    schema = {"type": "object", "properties": body, "required": required}
    answer = {"type": "object", "properties": {"value": result}}
    return {
        "operationId": f"{area}.{name}",
        "summary": (inspect.getdoc(method) or name).splitlines()[0],
        "tags": [area],
        "x-everloop-action": action,
        "requestBody": {"content": {"application/json": {"schema": schema}}},
        "responses": {
            "200": {"description": "done", "content": {"application/json": {"schema": answer}}}
        },
    }


@cache
def _types(method: Callable[..., Any]) -> tuple[dict[str, Any], Any]:
    hints = hints_of(method)
    result = hints.pop("return", Any)
    return hints, result


def _foreign(kind: type) -> dict[str, Any]:
    if kind.__module__ == "pyarrow.lib" and kind.__name__ == "Table":
        return {"type": "object", "description": "an Arrow IPC stream, sent as an attachment"}
    raise NotFound(f"no description of {kind.__name__}")
