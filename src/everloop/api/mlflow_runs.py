"""MLflow's runs: made, found, ended, deleted. What is logged to them is in ``mlflow_log``."""

from __future__ import annotations

from typing import Any

import msgspec

from everloop.api.mlflow_calls import Calls
from everloop.api.mlflow_experiments import view_of
from everloop.api.mlflow_log import NAME_TAG, OfRun, input_fields, metric_fields
from everloop.api.mlflow_places import location_of, locations, run_uri
from everloop.api.mlflow_wire import (
    Int64,
    KeyValue,
    Page,
    bare,
    choice,
    experiment_key,
    from_ms,
    pairs,
    tags_of,
    to_ms,
)
from everloop.core.machines import RunState
from everloop.core.run import Metric, Run
from everloop.errors import InvalidInput
from everloop.tracking.limits import check_page
from everloop.workspace import Workspace

__all__ = ["calls"]

calls = Calls()

_STATUS: dict[RunState, str] = {
    "queued": "SCHEDULED",
    "running": "RUNNING",
    "waiting": "SCHEDULED",
    "finished": "FINISHED",
    "failed": "FAILED",
    "killed": "KILLED",
    "lost": "FAILED",
}
_STATE: dict[str, RunState] = {
    "SCHEDULED": "queued",
    "RUNNING": "running",
    "FINISHED": "finished",
    "FAILED": "failed",
    "KILLED": "killed",
}
#: In the order of their numbers on the wire.
_STATUS_NAMES = ("RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED")


class _Create(msgspec.Struct):
    experiment_id: str | None = ""
    user_id: str | None = ""
    run_name: str | None = ""
    start_time: Int64 | None = None
    tags: list[KeyValue] | None = None


class _Update(OfRun, kw_only=True):
    status: str | int | None = ""
    end_time: Int64 | None = None
    run_name: str | None = ""


class _Search(Page):
    experiment_ids: list[str] | None = None
    run_view_type: str | int | None = ""


def info_fields(run: Run, location: str) -> dict[str, Any]:
    """The ``RunInfo`` of a run."""
    return bare(
        run_id=run.id,
        run_uuid=run.id,
        run_name=run.name,
        experiment_id=run.experiment,
        user_id=run.actor,
        status=_STATUS[run.state],
        start_time=to_ms(run.started_at),
        end_time=to_ms(run.ended_at),
        artifact_uri=run_uri(run, location),
        lifecycle_stage=run.lifecycle,
    )


def run_fields(run: Run, latest: list[Metric], location: str) -> dict[str, Any]:
    """A run as MLflow shows it."""
    return {
        "info": info_fields(run, location),
        "data": bare(
            metrics=[metric_fields(metric) for metric in latest],
            params=pairs(run.params),
            tags=pairs(run.tags),
        ),
        "inputs": bare(
            dataset_inputs=[input_fields(item) for item in run.inputs],
            model_inputs=[{"model_id": model_id} for model_id in run.model_inputs],
        ),
        "outputs": bare(
            model_outputs=[{"model_id": out.model_id, "step": out.step} for out in run.outputs]
        ),
    }


@calls.on("POST", "mlflow/runs/create")
def _create(workspace: Workspace, asked: _Create) -> dict[str, Any]:
    tags = tags_of(asked.tags)
    named = tags.get(NAME_TAG, "")
    if asked.run_name and named and asked.run_name != named:
        raise InvalidInput(
            f"Both 'run_name' and the tag '{NAME_TAG}' are given, with different values"
        )
    started_at = None if not asked.start_time else from_ms(asked.start_time, "start_time")
    experiment_id = experiment_key(asked.experiment_id or "0")
    # An id, never the name of an experiment to be made.
    location = location_of(workspace.tracking.experiment(experiment_id))
    run = workspace.tracking.create_run(
        experiment_id,
        name=asked.run_name or named,
        tags=tags,
        actor=asked.user_id or "",
        started_at=started_at,
    )
    if run.tags.get(NAME_TAG) != run.name:
        workspace.tracking.set_tag(run.id, NAME_TAG, run.name)
        run = workspace.tracking.run(run.id)
    return {"run": run_fields(run, [], location)}


@calls.on("GET", "mlflow/runs/get")
def _get(workspace: Workspace, asked: OfRun) -> dict[str, Any]:
    run = workspace.tracking.run(asked.id)
    latest = workspace.tracking.latest_metrics([run.id]) if run.metrics else {}
    return {"run": run_fields(run, latest.get(run.id, []), _location(workspace, run))}


@calls.on("POST", "mlflow/runs/update")
def _update(workspace: Workspace, asked: _Update) -> dict[str, Any]:
    status = choice(asked.status, _STATUS_NAMES, "status")
    run = workspace.tracking.update_run(
        asked.id,
        state=_STATE[status] if status else None,
        ended_at=None if asked.end_time is None else from_ms(asked.end_time, "end_time"),
        name=asked.run_name or "",
        tags={NAME_TAG: asked.run_name} if asked.run_name else {},
    )
    return {"run_info": info_fields(run, _location(workspace, run))}


def _location(workspace: Workspace, run: Run) -> str:
    return location_of(workspace.tracking.experiment(run.experiment))


@calls.on("POST", "mlflow/runs/delete")
def _delete(workspace: Workspace, asked: OfRun) -> dict[str, Any]:
    workspace.tracking.delete_run(asked.id)
    return {}


@calls.on("POST", "mlflow/runs/restore")
def _restore(workspace: Workspace, asked: OfRun) -> dict[str, Any]:
    workspace.tracking.restore_run(asked.id)
    return {}


@calls.on("POST", "mlflow/runs/search")
def _search(workspace: Workspace, asked: _Search) -> dict[str, Any]:
    limit = 1000 if asked.max_results is None else asked.max_results
    if not asked.experiment_ids:
        check_page(limit)
        return {}
    page = workspace.tracking.runs(
        [experiment_key(id_) for id_ in asked.experiment_ids],
        filter=asked.filter or "",
        order_by=asked.order_by or [],
        lifecycle=view_of(asked.run_view_type, "run_view_type"),
        limit=limit,
        page_token=asked.page_token or "",
        and_only=True,
    )
    latest = workspace.tracking.latest_metrics([run.id for run in page.runs if run.metrics])
    where = locations(workspace, (run.experiment for run in page.runs))
    return bare(
        runs=[run_fields(run, latest.get(run.id, []), where[run.experiment]) for run in page.runs],
        next_page_token=page.next_page_token,
    )
