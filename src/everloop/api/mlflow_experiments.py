"""MLflow's experiments."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from everloop.api.mlflow_calls import Calls
from everloop.api.mlflow_wire import KeyValue, Page, Text, bare, pairs, tags_of, to_ms
from everloop.core.run import Experiment
from everloop.errors import Conflict, InvalidInput, NotFound
from everloop.workspace import Workspace

__all__ = ["calls", "location_of", "view_of"]

calls = Calls()

_Lifecycle = Literal["active", "deleted", "all"]

_VIEWS: dict[str, _Lifecycle] = {
    "": "active",
    "ACTIVE_ONLY": "active",
    "DELETED_ONLY": "deleted",
    "ALL": "all",
}


class _Create(msgspec.Struct):
    name: Text
    artifact_location: str | None = ""
    tags: list[KeyValue] | None = None


class _ById(msgspec.Struct):
    experiment_id: Text


class _ByName(msgspec.Struct):
    experiment_name: Text


class _Search(Page):
    view_type: str | None = ""


class _Update(msgspec.Struct):
    experiment_id: Text
    new_name: Text


class _SetTag(msgspec.Struct):
    experiment_id: Text
    key: Text
    value: str | None = ""


class _DeleteTag(msgspec.Struct):
    experiment_id: Text
    key: Text


def location_of(experiment_id: str) -> str:
    """Where clients put the artifacts of an experiment: always through this server."""
    return f"mlflow-artifacts:/{experiment_id}"


def view_of(view: str | None) -> _Lifecycle:
    """Our word for a ``ViewType``.

    Raises:
        InvalidInput: If there is no such view.
    """
    if (view or "") not in _VIEWS:
        raise InvalidInput(f"Invalid value for parameter 'view_type' supplied: {view!r:.40}")
    return _VIEWS[view or ""]


def experiment_fields(experiment: Experiment) -> dict[str, Any]:
    """An experiment as MLflow shows it."""
    return bare(
        experiment_id=experiment.id,
        name=experiment.name,
        artifact_location=location_of(experiment.id),
        lifecycle_stage=experiment.lifecycle,
        creation_time=to_ms(experiment.created_at),
        last_update_time=to_ms(experiment.updated_at),
        tags=pairs(experiment.tags),
    )


@calls.on("POST", "mlflow/experiments/create")
def _create(workspace: Workspace, asked: _Create) -> dict[str, Any]:
    if asked.artifact_location and not asked.artifact_location.startswith("mlflow-artifacts:"):
        raise InvalidInput(
            "Invalid value for parameter 'artifact_location' supplied: artifacts are kept by this "
            "server; leave it empty"
        )
    try:
        made = workspace.tracking.create_experiment(asked.name, tags_of(asked.tags))
    except Conflict as error:
        raise Conflict(f"Experiment(name={asked.name}) already exists") from error
    return {"experiment_id": made.id}


@calls.on("GET", "mlflow/experiments/get")
def _get(workspace: Workspace, asked: _ById) -> dict[str, Any]:
    return {"experiment": experiment_fields(workspace.tracking.experiment(asked.experiment_id))}


@calls.on("GET", "mlflow/experiments/get-by-name")
def _get_by_name(workspace: Workspace, asked: _ByName) -> dict[str, Any]:
    try:
        found = workspace.tracking.experiment_by_name(asked.experiment_name)
    except NotFound as error:
        name = asked.experiment_name
        raise NotFound(f"Could not find experiment with name '{name}'") from error
    return {"experiment": experiment_fields(found)}


@calls.on("GET", "mlflow/experiments/search")
@calls.on("POST", "mlflow/experiments/search")
def _search(workspace: Workspace, asked: _Search) -> dict[str, Any]:
    page = workspace.tracking.search_experiments(
        asked.filter or "",
        order_by=asked.order_by or [],
        lifecycle=view_of(asked.view_type),
        limit=1000 if asked.max_results is None else asked.max_results,
        page_token=asked.page_token or "",
        and_only=True,
    )
    return bare(
        experiments=[experiment_fields(found) for found in page.experiments],
        next_page_token=page.next_page_token,
    )


@calls.on("POST", "mlflow/experiments/update")
def _update(workspace: Workspace, asked: _Update) -> dict[str, Any]:
    try:
        workspace.tracking.update_experiment(asked.experiment_id, name=asked.new_name)
    except Conflict as error:
        raise Conflict(f"Experiment(name={asked.new_name}) already exists") from error
    return {}


@calls.on("POST", "mlflow/experiments/delete")
def _delete(workspace: Workspace, asked: _ById) -> dict[str, Any]:
    workspace.tracking.delete_experiment(asked.experiment_id)
    return {}


@calls.on("POST", "mlflow/experiments/restore")
def _restore(workspace: Workspace, asked: _ById) -> dict[str, Any]:
    workspace.tracking.restore_experiment(asked.experiment_id)
    return {}


@calls.on("POST", "mlflow/experiments/set-experiment-tag")
def _set_tag(workspace: Workspace, asked: _SetTag) -> dict[str, Any]:
    tags = {asked.key: asked.value or ""}
    workspace.tracking.update_experiment(asked.experiment_id, tags=tags)
    return {}


@calls.on("POST", "mlflow/experiments/delete-experiment-tag")
def _delete_tag(workspace: Workspace, asked: _DeleteTag) -> dict[str, Any]:
    workspace.tracking.update_experiment(asked.experiment_id, delete_tag=asked.key)
    return {}
