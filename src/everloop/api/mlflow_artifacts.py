"""MLflow's proxied artifacts: streamed in and out, listed, removed.

Bytes are never parsed, whatever their content type says, and always leave as an attachment.
"""

from __future__ import annotations

import mimetypes
import posixpath
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import quote

import msgspec
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse

from everloop.api.mlflow_streams import pieces_of
from everloop.api.mlflow_wire import bare
from everloop.core.context import acting
from everloop.core.run import Artifact
from everloop.ports.blobs import HasPaths
from everloop.workspace import Workspace

__all__ = ["content", "listed", "listing"]

Handler = Callable[[Request], Awaitable[Response]]

#: An artifact is another's file: no script in it may run as this site.
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox; default-src 'none'",
}


class _Download(FileResponse):
    # Each piece costs a change of threads: the framework's 64 kB are too small for models.
    chunk_size = 1 << 20


def listing(workspace: Workspace) -> Handler:
    """``GET artifacts?path=``: what lies directly under a folder."""

    async def handler(request: Request) -> Response:
        path = request.query_params.get("path", "")
        found = await run_in_threadpool(workspace.tracking.list_artifacts, path)
        files = [_file_fields(item) for item in found]
        return _json({"files": files} if files else {})

    return handler


def listed(workspace: Workspace, root: str, path: str) -> dict[str, Any]:
    """What lies directly under `path` within `root`, by paths relative to `root`."""
    found = workspace.tracking.list_artifacts(f"{root}/{path}".rstrip("/"))
    files = [{**_file_fields(item), "path": item.path.removeprefix(f"{root}/")} for item in found]
    return bare(root_uri=f"mlflow-artifacts:/{root}", files=files)


def content(workspace: Workspace) -> Handler:
    """``GET``, ``PUT`` and ``DELETE`` of ``artifacts/<path>``."""

    async def handler(request: Request) -> Response:
        path = request.path_params["path"]
        if request.method == "PUT":
            await run_in_threadpool(_store, workspace, path, request.stream())
            return _json({})
        if request.method == "DELETE":
            await run_in_threadpool(_remove, workspace, path)
            return _json({})
        return await _send(workspace, await run_in_threadpool(_find, workspace, path))

    return handler


def _store(workspace: Workspace, path: str, body: AsyncIterator[bytes]) -> None:
    workspace.tracking.list_artifacts(path)  # refuses a bad path before anything is read
    digest, size = workspace.blobs.put(pieces_of(body))
    with acting(actor=workspace.actor):
        workspace.tracking.link_artifact(path, digest, size)


def _remove(workspace: Workspace, path: str) -> None:
    with acting(actor=workspace.actor):
        workspace.tracking.delete_artifacts(path)


def _find(workspace: Workspace, path: str) -> Artifact:
    return workspace.tracking.artifact_info(path)


async def _send(workspace: Workspace, found: Artifact) -> Response:
    name = posixpath.basename(found.path)
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    blobs = workspace.blobs
    if isinstance(blobs, HasPaths):
        file = await run_in_threadpool(blobs.path, found.digest)
        headers = {**_HEADERS, "ETag": f'"{found.digest}"'}
        return _Download(file, headers=headers, media_type=kind, filename=name)
    disposition = f"attachment; filename*=UTF-8''{quote(name, safe='')}"
    headers = {
        **_HEADERS,
        "Content-Disposition": disposition,
        "Content-Length": str(found.size),
    }
    pieces = iterate_in_threadpool(blobs.stream(found.digest))
    return StreamingResponse(pieces, headers=headers, media_type=kind)


def _file_fields(item: Artifact) -> dict[str, Any]:
    fields: dict[str, Any] = {"path": posixpath.basename(item.path), "is_dir": not item.digest}
    return {**fields, "file_size": item.size} if item.digest else fields


def _json(value: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
