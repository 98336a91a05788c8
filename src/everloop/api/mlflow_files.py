"""Artifacts of MLflow's runs, logged models and versions: listed, and read by its pages."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from everloop.api.mlflow_artifacts import listed, send_file, store_file
from everloop.api.mlflow_calls import Answering, Calls, answer_json
from everloop.api.mlflow_log import OfRun
from everloop.api.mlflow_places import below, location_of, model_uri, run_uri, stored
from everloop.api.mlflow_sources import stored_uri
from everloop.api.mlflow_versions import OfVersion, told_as_version
from everloop.api.mlflow_wire import Int64, NotServed, Text, decode_query, missing
from everloop.errors import InvalidInput
from everloop.workspace import Workspace

__all__ = ["calls", "pages", "routes"]

calls = Calls()

_MAX_UPLOAD = 10 << 20
_MODEL = "mlflow/logged-models/{model_id}"


class _List(OfRun, kw_only=True):
    path: str | None = ""


class _Directory(msgspec.Struct):
    model_id: Text
    artifact_directory_path: str | None = ""


class _File(OfRun, kw_only=True):
    path: Text


class _Upload(OfRun, kw_only=True):
    path: str | None = ""


class _VersionFile(OfVersion, kw_only=True):
    path: Text


class _ModelFile(msgspec.Struct):
    model_id: Text
    artifact_file_path: Text


class _PresignedUpload(msgspec.Struct):
    path: Text
    run_id: str | None = ""
    model_id: str | None = ""
    expiration: Int64 | None = None


def _root_of_run(workspace: Workspace, run_id: str) -> str:
    run = workspace.tracking.run(run_id)
    return run_uri(run, location_of(workspace.tracking.experiment(run.experiment)))


def _root_of_model(workspace: Workspace, model_id: str) -> str:
    model = workspace.tracking.logged_model(model_id)
    return model_uri(model, location_of(workspace.tracking.experiment(model.experiment)))


@calls.on("GET", "mlflow/artifacts/list")
def _list(workspace: Workspace, asked: _List) -> dict[str, Any]:
    path = below(asked.path or "")
    return listed(workspace, stored(_root_of_run(workspace, asked.id)), path)


@calls.on("GET", f"{_MODEL}/artifacts/directories")
def _list_of_model(workspace: Workspace, asked: _Directory) -> dict[str, Any]:
    path = below(asked.artifact_directory_path or "")
    return listed(workspace, stored(_root_of_model(workspace, asked.model_id)), path)


@calls.on("POST", "mlflow/artifacts/presigned-upload-url")
@calls.on("POST", "mlflow/artifacts/presigned-download-url")
def _presigned(workspace: Workspace, asked: _PresignedUpload) -> dict[str, Any]:
    if asked.run_id:
        workspace.tracking.run(asked.run_id)
    elif asked.model_id:
        workspace.tracking.logged_model(asked.model_id)
    else:
        raise missing("run_id")
    raise NotServed("Presigned URLs are not supported for proxied artifact storage")


def pages(workspace: Workspace) -> dict[str, Answering]:
    """The paths outside the API from which MLflow's pages read files."""

    def of_run(query: bytes) -> str:
        asked = decode_query(query, _File, {})
        path = below(asked.path)
        return f"{stored(_root_of_run(workspace, asked.id))}/{path}"

    def of_version(query: bytes) -> str:
        asked = decode_query(query, _VersionFile, {})
        path = below(asked.path)
        with told_as_version(asked):
            root = stored(stored_uri(workspace, asked.name, asked.number))
        return f"{root.rstrip('/')}/{path}"

    async def run_file(request: Request) -> Response:
        path = await run_in_threadpool(of_run, request.scope["query_string"])
        return await send_file(workspace, path, request)

    async def version_file(request: Request) -> Response:
        path = await run_in_threadpool(of_version, request.scope["query_string"])
        return await send_file(workspace, path, request)

    return {"/get-artifact": run_file, "/model-versions/get-artifact": version_file}


def routes(workspace: Workspace, base: str) -> list[tuple[str, Answering, list[str]]]:
    """Path, handler and methods of the routes below `base` that carry bytes."""

    def of_model(query: bytes, model_id: str) -> str:
        asked = decode_query(query, _ModelFile, {"model_id": model_id})
        path = below(asked.artifact_file_path)
        return f"{stored(_root_of_model(workspace, model_id))}/{path}"

    async def model_file(request: Request) -> Response:
        model_id, query = request.path_params["model_id"], request.scope["query_string"]
        return await send_file(
            workspace, await run_in_threadpool(of_model, query, model_id), request
        )

    async def upload(request: Request) -> Response:
        asked = decode_query(request.scope["query_string"], _Upload, {})
        if not (asked.run_uuid or asked.run_id):
            raise InvalidInput("Request must specify run_uuid.")
        if not asked.path:
            raise InvalidInput("Request must specify path.")
        path = below(asked.path)
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > _MAX_UPLOAD:
                raise InvalidInput("Artifact size is too large. Max size is 10MB.")
        if not body:
            raise InvalidInput("Request must specify data.")
        root = await run_in_threadpool(_root_of_run, workspace, asked.id)

        async def whole() -> Any:
            yield bytes(body)

        await store_file(workspace, f"{stored(root)}/{path}", whole())
        return answer_json({})

    return [
        (f"{base}/upload-artifact", upload, ["POST"]),
        (f"{base}/logged-models/{{model_id}}/artifacts/files", model_file, ["GET"]),
    ]
