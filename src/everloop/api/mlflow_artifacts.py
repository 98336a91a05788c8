"""MLflow's proxied artifacts: streamed in and out, listed, removed, or sent in parts.

Bytes are never parsed, whatever their content type says, and always leave as an attachment.
"""

from __future__ import annotations

import mimetypes
import posixpath
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse

from everloop.api.mlflow_calls import Answering, answer_json
from everloop.api.mlflow_places import below
from everloop.api.mlflow_streams import pieces_of
from everloop.api.mlflow_uploads import upload_routes
from everloop.api.mlflow_wire import NotServed, bare
from everloop.core.context import acting
from everloop.core.run import Artifact
from everloop.errors import InvalidInput, NotFound
from everloop.ports.blobs import HasPaths
from everloop.tracking.artifacts import SMALL
from everloop.tracking.limits import clean_path
from everloop.workspace import Workspace

__all__ = ["listed", "routes", "send_file", "store_file"]

#: An artifact is another's file: no script in it may run as this site.
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox; default-src 'none'",
}


class _Download(FileResponse):
    # Each piece costs a change of threads: the framework's 64 kB are too small for models.
    chunk_size = 1 << 20


def routes(workspace: Workspace, base: str) -> list[tuple[str, Answering, list[str]]]:
    """Path, handler and methods of each route below `base`."""
    return [
        (f"{base}/artifacts", _listing(workspace), ["GET"]),
        (f"{base}/artifacts/{{path:path}}", _content(workspace), ["GET", "PUT", "DELETE"]),
        (f"{base}/presigned/{{path:path}}", _presigned(workspace), ["GET"]),
        *upload_routes(workspace, base),
    ]


def _listing(workspace: Workspace) -> Answering:
    """``GET artifacts?path=``: what lies directly under a folder."""

    async def handler(request: Request) -> Response:
        path = below(request.query_params.get("path", ""))
        found = await run_in_threadpool(workspace.tracking.list_artifacts, path)
        files = [_file_fields(item) for item in found]
        return answer_json({"files": files} if files else {})

    return handler


def listed(workspace: Workspace, root: str, path: str) -> dict[str, Any]:
    """What lies directly under a clean `path` within `root`, by paths relative to `root`."""
    found = workspace.tracking.list_artifacts(f"{root}/{path}".rstrip("/"))
    files = [{**_file_fields(item), "path": item.path.removeprefix(f"{root}/")} for item in found]
    return bare(root_uri=f"mlflow-artifacts:/{root}", files=files)


def _content(workspace: Workspace) -> Answering:
    """``GET``, ``PUT`` and ``DELETE`` of ``artifacts/<path>``."""

    async def handler(request: Request) -> Response:
        path = below(request.path_params["path"])
        if request.method == "PUT":
            await store_file(workspace, path, request.stream(), _length(request))
            return answer_json({})
        if request.method == "DELETE":
            await run_in_threadpool(_remove, workspace, path)
            return answer_json({})
        return await send_file(workspace, path, request)

    return handler


def _presigned(workspace: Workspace) -> Answering:
    async def handler(request: Request) -> Response:
        await run_in_threadpool(workspace.tracking.list_artifacts, request.path_params["path"])
        raise NotServed("Multipart download is not supported for the current artifact repository")

    return handler


def _length(request: Request) -> int:
    """How long the body is said to be; -1 if it is not said."""
    said = request.headers.get("content-length", "")
    return int(said) if said.isdecimal() and len(said) < 16 else -1


async def store_file(
    workspace: Workspace, path: str, body: AsyncIterator[bytes], length: int = -1
) -> None:
    """Store what `body` streams under `path`; a small file with others that come at once."""
    workspace.authorize("artifact:write", path)  # before anything is read
    if 0 <= length <= SMALL:
        clean_path(path)
        data = b"".join([piece async for piece in body])
        if len(data) != length:
            raise InvalidInput(f"{length} bytes of the file were announced, {len(data)} came")

        def put() -> None:
            with acting(actor=workspace.actor):
                workspace.tracking.put_artifact(path, data)

        await run_in_threadpool(put)
        return

    def store() -> None:
        workspace.tracking.list_artifacts(path)  # refuses a bad path before anything is read
        digest, size = workspace.blobs.put(pieces_of(body))
        with acting(actor=workspace.actor):
            workspace.tracking.link_artifact(path, digest, size)

    await run_in_threadpool(store)


def _remove(workspace: Workspace, path: str) -> None:
    with acting(actor=workspace.actor):
        workspace.tracking.delete_artifacts(path)


def _find(workspace: Workspace, path: str) -> Artifact:
    try:
        return workspace.tracking.artifact_info(path)
    except NotFound:
        if workspace.tracking.list_artifacts(path):
            raise InvalidInput(
                f"Artifact path refers to a directory, not a file: {path[:200]!r}"
            ) from None
        raise


def _read(workspace: Workspace, path: str, is_whole: bool) -> tuple[Artifact, bytes | None]:
    """A file, and its bytes if they are few and all are wanted."""
    found = _find(workspace, path)
    is_read = is_whole and found.size <= SMALL
    return found, workspace.blobs.get(found.digest) if is_read else None


async def send_file(workspace: Workspace, path: str, request: Request) -> Response:
    """The file at `path` as an attachment, or the part of it that a ``Range`` asks for."""
    is_whole = request.method == "GET" and "range" not in request.headers
    found, data = await run_in_threadpool(_read, workspace, path, is_whole)
    name = posixpath.basename(found.path)
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    blobs = workspace.blobs
    headers = {**_HEADERS, "ETag": f'"{found.digest}"'}
    if isinstance(blobs, HasPaths):
        headers["Accept-Ranges"] = "bytes"
        if data is None:
            file = await run_in_threadpool(blobs.path, found.digest)
            return _Download(file, headers=headers, media_type=kind, filename=name)
    headers["Content-Disposition"] = _attached(name)
    if data is not None:
        return Response(data, headers=headers, media_type=kind)
    headers["Content-Length"] = str(found.size)
    pieces = iterate_in_threadpool(blobs.stream(found.digest))
    return StreamingResponse(pieces, headers=headers, media_type=kind)


def _attached(name: str) -> str:
    quoted = quote(name, safe="")
    is_plain = quoted == name
    return (
        f'attachment; filename="{name}"' if is_plain else f"attachment; filename*=utf-8''{quoted}"
    )


def _file_fields(item: Artifact) -> dict[str, Any]:
    fields: dict[str, Any] = {"path": posixpath.basename(item.path), "is_dir": not item.digest}
    return {**fields, "file_size": item.size} if item.digest else fields
