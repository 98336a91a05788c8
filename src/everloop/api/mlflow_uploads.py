"""MLflow's uploads in parts: begun, each part PUT to a URL of ours, then joined to one object.

Whoever begins one must be allowed to write there; the URL of a part is the right to send that part,
as it holds the id of its upload, which cannot be guessed. Parts lie in the object
store's temporary folder until the joined file has its path, so a call cut short is simply
repeated.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from everloop.api.mlflow_calls import Answering, answer_json
from everloop.api.mlflow_streams import pieces_of
from everloop.api.mlflow_wire import NotServed, Text, decode_body
from everloop.core.context import acting
from everloop.errors import InvalidInput, TooLarge
from everloop.ports.blobs import HasParts
from everloop.tracking.limits import clean_path
from everloop.workspace import Workspace

__all__ = ["upload_routes"]

_MAX_BODY = 4 << 20
_Count = Annotated[int, msgspec.Meta(ge=1, le=10_000)]


class _Begin(msgspec.Struct):
    path: Text
    num_parts: _Count


class _Part(msgspec.Struct):
    part_number: _Count
    etag: str | None = ""


class _Complete(msgspec.Struct):
    path: Text
    upload_id: Text
    parts: list[_Part]


class _Abort(msgspec.Struct):
    path: Text
    upload_id: Text


def upload_routes(workspace: Workspace, base: str) -> list[tuple[str, Answering, list[str]]]:
    """Path, handler and methods of each route below `base`."""
    steps: list[tuple[str, type, Callable[..., dict[str, Any]]]] = [
        ("create", _Begin, _begin),
        ("complete", _Complete, _complete),
        ("abort", _Abort, _abort),
    ]
    made: list[tuple[str, Answering, list[str]]] = [
        (f"{base}/mpu/parts/{{upload}}/{{number:int}}", _part(workspace), ["PUT"])
    ]
    for name, kind, work in steps:
        handler = _step(workspace, kind, work, f"{base}/mpu/parts")
        for path in (f"{base}/mpu/{name}", f"{base}/mpu/{name}/{{folder:path}}"):
            made.append((path, handler, ["POST"]))
    return made


def _step(
    workspace: Workspace, kind: type, work: Callable[..., dict[str, Any]], parts: str
) -> Answering:
    async def handler(request: Request) -> Response:
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > _MAX_BODY:
                raise TooLarge(f"The body of the request is above {_MAX_BODY} bytes")
        asked: Any = decode_body(bytes(body), kind, {})
        folder = request.path_params.get("folder", "")
        path = _target(folder, asked.path)
        url = f"{str(request.base_url).rstrip('/')}{parts}"

        def act() -> dict[str, Any]:
            with acting(actor=workspace.actor):
                return work(workspace, path, asked, url)

        return answer_json(await run_in_threadpool(act))

    return handler


def _target(folder: str, local: str) -> str:
    """Where the joined file goes: clients send its name on their own machine."""
    if ".." in local.split("/"):
        raise InvalidInput("Invalid path", [("path", repr(local[:200]))])
    return clean_path(posixpath.join(folder, posixpath.basename(local)))


def _check_store(workspace: Workspace) -> HasParts:
    if not isinstance(workspace.blobs, HasParts):
        raise NotServed("Multipart upload is not supported for the current artifact repository")
    return workspace.blobs


def _begin(workspace: Workspace, path: str, asked: _Begin, url: str) -> dict[str, Any]:
    _check_store(workspace)
    upload = workspace.tracking.begin_upload(path)
    credentials = [
        {"url": f"{url}/{upload}/{number}", "part_number": number, "headers": {}}
        for number in range(1, asked.num_parts + 1)
    ]
    return {"upload_id": upload, "credentials": credentials}


def _complete(workspace: Workspace, path: str, asked: _Complete, url: str) -> dict[str, Any]:
    if not asked.parts:
        raise InvalidInput("Invalid value [] for parameter 'parts' supplied: there are none")
    digests = {part.part_number: (part.etag or "").strip('"') for part in asked.parts}
    _check_store(workspace)
    workspace.tracking.complete_upload(path, asked.upload_id, digests)
    return {}


def _abort(workspace: Workspace, path: str, asked: _Abort, url: str) -> dict[str, Any]:
    _check_store(workspace)
    workspace.tracking.abort_upload(path, asked.upload_id)
    return {}


def _part(workspace: Workspace) -> Answering:
    """``PUT`` of one part; its digest is its ETag."""

    async def handler(request: Request) -> Response:
        upload, number = request.path_params["upload"], request.path_params["number"]
        body = request.stream()

        def store() -> str:
            return _check_store(workspace).put_part(upload, number, pieces_of(body))

        digest = await run_in_threadpool(store)
        return answer_json({}, headers={"ETag": f'"{digest}"'})

    return handler
