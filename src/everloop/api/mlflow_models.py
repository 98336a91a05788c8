"""MLflow's logged models: what a run produced, before or without being registered."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from everloop.api.mlflow_calls import Calls
from everloop.api.mlflow_log import metric_fields
from everloop.api.mlflow_places import location_of, locations, model_uri
from everloop.api.mlflow_wire import (
    Int64,
    KeyValue,
    Text,
    bare,
    choice,
    experiment_key,
    invalid,
    missing,
    pairs,
    tags_of,
    to_ms,
)
from everloop.core.run import LoggedModel, ModelOrder
from everloop.workspace import Workspace

__all__ = ["calls"]

calls = Calls()

_BASE = "mlflow/logged-models"
_STATUS = {
    "pending": "LOGGED_MODEL_PENDING",
    "ready": "LOGGED_MODEL_READY",
    "failed": "LOGGED_MODEL_UPLOAD_FAILED",
}
#: In the order of their numbers on the wire.
_STATUS_NAMES = ("LOGGED_MODEL_PENDING", "LOGGED_MODEL_READY", "LOGGED_MODEL_UPLOAD_FAILED")
_MOST_PARAMS = 100


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
    status: str | int


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
    dataset_name: str | None = ""
    dataset_digest: str | None = ""


class _Dataset(msgspec.Struct):
    dataset_name: Text
    dataset_digest: str | None = ""


class _Search(msgspec.Struct):
    experiment_ids: list[str]
    datasets: list[_Dataset] | None = None
    filter: str | None = ""
    order_by: list[_OrderBy] | None = None
    max_results: Int64 | None = None
    page_token: str | None = ""


def _fields(workspace: Workspace, model: LoggedModel, location: str = "") -> dict[str, Any]:
    where = location or location_of(workspace.tracking.experiment(model.experiment))
    texts = {"model_type": model.model_type, "source_run_id": model.source_run_id}
    return {
        "info": texts
        | bare(
            model_id=model.id,
            experiment_id=model.experiment,
            name=model.name,
            creation_timestamp_ms=to_ms(model.created_at),
            last_updated_timestamp_ms=to_ms(model.updated_at),
            artifact_uri=model_uri(model, where),
            status=_STATUS[model.status],
            tags=pairs(model.tags),
        ),
        "data": bare(
            params=pairs(model.params),
            metrics=[metric_fields(metric, metric.run_id) for metric in model.metrics],
        ),
    }


@calls.on("POST", _BASE)
def _create(workspace: Workspace, asked: _Create) -> dict[str, Any]:
    model = workspace.tracking.create_logged_model(
        experiment_key(asked.experiment_id),
        name=asked.name or "",
        model_type=asked.model_type or "",
        source_run_id=asked.source_run_id or "",
        params=tags_of(asked.params),
        tags=tags_of(asked.tags),
    )
    return {"model": _fields(workspace, model)}


@calls.on("GET", f"{_BASE}/{{model_id}}")
def _get(workspace: Workspace, asked: _ById) -> dict[str, Any]:
    return {"model": _fields(workspace, workspace.tracking.logged_model(asked.model_id))}


@calls.on("DELETE", f"{_BASE}/{{model_id}}")
def _delete(workspace: Workspace, asked: _ById) -> dict[str, Any]:
    workspace.tracking.delete_logged_model(asked.model_id)
    return {}


@calls.on("PATCH", f"{_BASE}/{{model_id}}")
def _finish(workspace: Workspace, asked: _Finish) -> dict[str, Any]:
    status = choice(asked.status, _STATUS_NAMES, "status")
    if not status:
        raise missing("status")
    if status == "LOGGED_MODEL_PENDING":
        raise invalid("status", status, "a model is finished as READY or UPLOAD_FAILED")
    done: Literal["ready", "failed"] = "ready" if status == "LOGGED_MODEL_READY" else "failed"
    model = workspace.tracking.finish_logged_model(asked.model_id, done)
    return {"model": _fields(workspace, model)}


@calls.on("POST", f"{_BASE}/search")
def _search(workspace: Workspace, asked: _Search) -> dict[str, Any]:
    order_by: list[str | ModelOrder] = [
        ModelOrder(
            by=item.field_name,
            descending=item.ascending is False,
            dataset=item.dataset_name or "",
            digest=item.dataset_digest or "",
        )
        for item in asked.order_by or ()
    ]
    page = workspace.tracking.search_logged_models(
        [experiment_key(id_) for id_ in asked.experiment_ids],
        filter=asked.filter or "",
        order_by=order_by,
        datasets=[(item.dataset_name, item.dataset_digest or "") for item in asked.datasets or ()],
        limit=100 if asked.max_results is None else asked.max_results,
        page_token=asked.page_token or "",
        and_only=True,
    )
    where = locations(workspace, (model.experiment for model in page.models))
    return bare(
        models=[_fields(workspace, model, where[model.experiment]) for model in page.models],
        next_page_token=page.next_page_token,
    )


@calls.on("PATCH", f"{_BASE}/{{model_id}}/tags")
def _set_tags(workspace: Workspace, asked: _SetTags) -> dict[str, Any]:
    model = workspace.tracking.update_logged_model(asked.model_id, tags=tags_of(asked.tags))
    return {"model": _fields(workspace, model)}


@calls.on("DELETE", f"{_BASE}/{{model_id}}/tags/{{tag_key}}")
def _delete_tag(workspace: Workspace, asked: _DeleteTag) -> dict[str, Any]:
    workspace.tracking.update_logged_model(asked.model_id, delete_tag=asked.tag_key)
    return {}


@calls.on("POST", f"{_BASE}/{{model_id}}/params")
def _log_params(workspace: Workspace, asked: _LogParams) -> dict[str, Any]:
    params = tags_of(asked.params)
    if len(params) > _MOST_PARAMS:
        raise invalid("params", len(params), f"at most {_MOST_PARAMS} in one request")
    workspace.tracking.update_logged_model(asked.model_id, params=params)
    return {}
