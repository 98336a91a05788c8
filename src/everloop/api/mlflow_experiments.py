"""MLflow's experiments."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from everloop.api.mlflow_calls import Calls
from everloop.api.mlflow_places import location_of
from everloop.api.mlflow_wire import (
    Int64,
    KeyValue,
    Page,
    Text,
    bare,
    choice,
    experiment_key,
    of_one,
    pairs,
    tags_of,
    to_ms,
)
from everloop.core.run import Experiment
from everloop.errors import Conflict, InvalidInput, NotFound
from everloop.workspace import Workspace

__all__ = ["calls", "view_of"]

calls = Calls()

_Lifecycle = Literal["active", "deleted", "all"]

_VIEWS: dict[str, _Lifecycle] = {
    "": "active",
    "ACTIVE_ONLY": "active",
    "DELETED_ONLY": "deleted",
    "ALL": "all",
}
_VIEW_NAMES = ("ACTIVE_ONLY", "DELETED_ONLY", "ALL")
_MOST_EXPERIMENTS = 20
#: Where every experiment is as long as a server says that it has no workspaces.
_WORKSPACE = "default"


class _Create(msgspec.Struct):
    name: Text
    artifact_location: str | None = ""
    tags: list[KeyValue] | None = None


class _ById(msgspec.Struct):
    experiment_id: Text

    @property
    def id(self) -> str:
        return experiment_key(self.experiment_id)


class _ByName(msgspec.Struct):
    experiment_name: Text


class _Search(Page, kw_only=True):
    max_results: Int64
    view_type: str | int | None = ""


class _Datasets(msgspec.Struct):
    experiment_ids: list[str] = []


class _Update(_ById):
    new_name: Text


class _SetTag(_ById):
    key: Text
    value: str | None = ""


class _DeleteTag(_ById):
    key: Text


def view_of(view: str | int | None, field: str = "view_type") -> _Lifecycle:
    """Our word for a ``ViewType``.

    Raises:
        InvalidInput: If there is no such view.
    """
    return _VIEWS[choice(view, _VIEW_NAMES, field)]


def experiment_fields(experiment: Experiment) -> dict[str, Any]:
    """An experiment as MLflow shows it."""
    return bare(
        experiment_id=experiment.id,
        name=experiment.name,
        artifact_location=location_of(experiment),
        lifecycle_stage=experiment.lifecycle,
        creation_time=to_ms(experiment.created_at),
        last_update_time=to_ms(experiment.updated_at),
        tags=pairs(experiment.tags),
        workspace=_WORKSPACE,
    )


@calls.on("POST", "mlflow/experiments/create")
def _create(workspace: Workspace, asked: _Create) -> dict[str, Any]:
    try:
        made = workspace.tracking.create_experiment(
            asked.name, tags_of(asked.tags), location=asked.artifact_location or ""
        )
    except Conflict as error:
        raise Conflict(f"Experiment(name={asked.name}) already exists") from error
    return {"experiment_id": made.id}


@calls.on("GET", "mlflow/experiments/get")
def _get(workspace: Workspace, asked: _ById) -> dict[str, Any]:
    return {"experiment": experiment_fields(workspace.tracking.experiment(asked.id))}


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
        limit=asked.max_results,
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
        workspace.tracking.update_experiment(asked.id, name=asked.new_name)
    except Conflict as error:
        raise Conflict(f"Experiment(name={asked.new_name}) already exists") from error
    return {}


def _must_be(workspace: Workspace, id_: str, lifecycle: str) -> None:
    # MLflow knows no deleted experiment to delete, and no active one to restore.
    if workspace.tracking.experiment(id_).lifecycle != lifecycle:
        raise NotFound(f"No Experiment with id={id_} exists")


@calls.on("POST", "mlflow/experiments/delete")
def _delete(workspace: Workspace, asked: _ById) -> dict[str, Any]:
    _must_be(workspace, asked.id, "active")
    workspace.tracking.delete_experiment(asked.id)
    return {}


@calls.on("POST", "mlflow/experiments/restore")
def _restore(workspace: Workspace, asked: _ById) -> dict[str, Any]:
    _must_be(workspace, asked.id, "deleted")
    workspace.tracking.restore_experiment(asked.id)
    return {}


@calls.on("POST", "mlflow/experiments/set-experiment-tag")
def _set_tag(workspace: Workspace, asked: _SetTag) -> dict[str, Any]:
    tags = {asked.key: asked.value or ""}
    with of_one("tags"):
        workspace.tracking.update_experiment(asked.id, tags=tags)
    return {}


@calls.on("POST", "mlflow/experiments/delete-experiment-tag")
def _delete_tag(workspace: Workspace, asked: _DeleteTag) -> dict[str, Any]:
    workspace.tracking.update_experiment(asked.id, delete_tag=asked.key)
    return {}


@calls.on("POST", "mlflow/experiments/search-datasets")
def _search_datasets(workspace: Workspace, asked: _Datasets) -> dict[str, Any]:
    if not asked.experiment_ids:
        raise InvalidInput("SearchDatasets request must specify at least one experiment_id.")
    if len(asked.experiment_ids) > _MOST_EXPERIMENTS:
        raise InvalidInput(
            f"SearchDatasets request cannot specify more than {_MOST_EXPERIMENTS} experiment_ids. "
            f"Received {len(asked.experiment_ids)} experiment_ids"
        )
    found = workspace.tracking.datasets_of([experiment_key(id_) for id_ in asked.experiment_ids])
    return bare(
        dataset_summaries=[
            {
                "experiment_id": used.experiment,
                "name": used.dataset,
                "digest": used.digest,
                **bare(context=used.role),
            }
            for used in found
        ]
    )
