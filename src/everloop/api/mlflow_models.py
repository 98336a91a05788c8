"""MLflow's logged models: what a run produced, before or without being registered."""

from __future__ import annotations

from typing import Any

import msgspec

from everloop.api.mlflow_artifacts import listed
from everloop.api.mlflow_calls import Calls
from everloop.api.mlflow_log import metric_fields
from everloop.api.mlflow_wire import Int64, KeyValue, Text, bare, pairs, tags_of, to_ms
from everloop.core.run import LoggedModel
from everloop.errors import InvalidInput
from everloop.workspace import Workspace

__all__ = ["artifacts_of", "calls"]

calls = Calls()

_BASE = "mlflow/logged-models"
_STATUS = {
    "pending": "LOGGED_MODEL_PENDING",
    "ready": "LOGGED_MODEL_READY",
    "failed": "LOGGED_MODEL_UPLOAD_FAILED",
}


class _Create(msgspec.Struct):
    experiment_id: Text
    name: str | None = ""
    model_type: str | None = ""
    source_run_id: str | None = ""
    params: list[KeyValue] | None = None
    tags: list[KeyValue] | None = None


class _ById(msgspec.Struct):
    model_id: Text


class _Finish(msgspec.Struct):
    model_id: Text
    status: Text


class _SetTags(msgspec.Struct):
    model_id: Text
    tags: list[KeyValue] | None = None


class _DeleteTag(msgspec.Struct):
    model_id: Text
    tag_key: Text


class _LogParams(msgspec.Struct):
    model_id: Text
    params: list[KeyValue] | None = None


class _OrderBy(msgspec.Struct):
    field_name: Text
    ascending: bool | None = None


class _Search(msgspec.Struct):
    experiment_ids: list[str]
    filter: str | None = ""
    order_by: list[_OrderBy] | None = None
    max_results: Int64 | None = None
    page_token: str | None = ""


class _Directory(msgspec.Struct):
    model_id: Text
    artifact_directory_path: str | None = ""


def artifacts_of(model: LoggedModel) -> str:
    """Path of a model's files in the store of artifacts."""
    return f"{model.experiment}/models/{model.id}/artifacts"


def _fields(model: LoggedModel) -> dict[str, Any]:
    return {
        "info": bare(
            model_id=model.id,
            experiment_id=model.experiment,
            name=model.name,
            creation_timestamp_ms=to_ms(model.created_at),
            last_updated_timestamp_ms=to_ms(model.updated_at),
            artifact_uri=f"mlflow-artifacts:/{artifacts_of(model)}",
            status=_STATUS[model.status],
            model_type=model.model_type,
            source_run_id=model.source_run_id,
            tags=pairs(model.tags),
        ),
        "data": bare(
            params=pairs(model.params), metrics=[metric_fields(metric) for metric in model.metrics]
        ),
    }


@calls.on("POST", _BASE)
def _create(workspace: Workspace, asked: _Create) -> dict[str, Any]:
    model = workspace.tracking.create_logged_model(
        asked.experiment_id,
        name=asked.name or "",
        model_type=asked.model_type or "",
        source_run_id=asked.source_run_id or "",
        params=tags_of(asked.params),
        tags=tags_of(asked.tags),
    )
    return {"model": _fields(model)}


@calls.on("GET", f"{_BASE}/{{model_id}}")
def _get(workspace: Workspace, asked: _ById) -> dict[str, Any]:
    return {"model": _fields(workspace.tracking.logged_model(asked.model_id))}


@calls.on("DELETE", f"{_BASE}/{{model_id}}")
def _delete(workspace: Workspace, asked: _ById) -> dict[str, Any]:
    workspace.tracking.delete_logged_model(asked.model_id)
    return {}


@calls.on("PATCH", f"{_BASE}/{{model_id}}")
def _finish(workspace: Workspace, asked: _Finish) -> dict[str, Any]:
    if asked.status == "LOGGED_MODEL_READY":
        model = workspace.tracking.finish_logged_model(asked.model_id, "ready")
    elif asked.status == "LOGGED_MODEL_UPLOAD_FAILED":
        model = workspace.tracking.finish_logged_model(asked.model_id, "failed")
    else:
        raise InvalidInput(f"Invalid value {asked.status[:40]!r} for parameter 'status' supplied")
    return {"model": _fields(model)}


@calls.on("POST", f"{_BASE}/search")
def _search(workspace: Workspace, asked: _Search) -> dict[str, Any]:
    order_by = [
        f"{item.field_name} {'DESC' if item.ascending is False else 'ASC'}"
        for item in asked.order_by or ()
    ]
    page = workspace.tracking.search_logged_models(
        asked.experiment_ids,
        filter=asked.filter or "",
        order_by=order_by,
        limit=100 if asked.max_results is None else asked.max_results,
        page_token=asked.page_token or "",
        and_only=True,
    )
    return bare(
        models=[_fields(model) for model in page.models], next_page_token=page.next_page_token
    )


@calls.on("PATCH", f"{_BASE}/{{model_id}}/tags")
def _set_tags(workspace: Workspace, asked: _SetTags) -> dict[str, Any]:
    model = workspace.tracking.update_logged_model(asked.model_id, tags=tags_of(asked.tags))
    return {"model": _fields(model)}


@calls.on("DELETE", f"{_BASE}/{{model_id}}/tags/{{tag_key}}")
def _delete_tag(workspace: Workspace, asked: _DeleteTag) -> dict[str, Any]:
    workspace.tracking.update_logged_model(asked.model_id, delete_tag=asked.tag_key)
    return {}


@calls.on("POST", f"{_BASE}/{{model_id}}/params")
def _log_params(workspace: Workspace, asked: _LogParams) -> dict[str, Any]:
    workspace.tracking.update_logged_model(asked.model_id, params=tags_of(asked.params))
    return {}


@calls.on("GET", f"{_BASE}/{{model_id}}/artifacts/directories")
def _list_files(workspace: Workspace, asked: _Directory) -> dict[str, Any]:
    root = artifacts_of(workspace.tracking.logged_model(asked.model_id))
    return listed(workspace, root, asked.artifact_directory_path or "")
