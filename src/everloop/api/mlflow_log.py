"""What MLflow's clients log to a run: metrics, parameters, tags, inputs, outputs."""

from __future__ import annotations

from typing import Any

import msgspec

from everloop.api.mlflow_calls import Calls
from everloop.api.mlflow_wire import (
    Int64,
    KeyValue,
    Text,
    bare,
    decode_body,
    missing,
    number,
    of_one,
    pairs,
    tags_of,
)
from everloop.core.run import Metric, RunInput, RunOutput
from everloop.errors import InvalidInput
from everloop.workspace import Workspace

__all__ = ["NAME_TAG", "OfRun", "calls", "input_fields", "metric_fields", "point_of"]

calls = Calls()

NAME_TAG = "mlflow.runName"

_ROLE_TAG = "mlflow.data.context"
_HISTORY_TAG = "mlflow.log-model.history"
_DATASET_FIELDS = ("source_type", "source", "schema", "profile")


class OfRun(msgspec.Struct, kw_only=True):
    """Clients send the id under its old name too; either will do."""

    run_id: str | None = ""
    run_uuid: str | None = ""

    @property
    def id(self) -> str:
        return _either(self.run_id, self.run_uuid)


def _either(run_id: str | None, run_uuid: str | None) -> str:
    found = run_id or run_uuid
    if not found:
        raise missing("run_id")
    return found


class _Point(msgspec.Struct, kw_only=True):
    key: Text
    value: float
    timestamp: Int64
    step: Int64 | None = 0
    model_id: str | None = ""
    dataset_name: str | None = ""
    dataset_digest: str | None = ""

    def metric(self) -> Metric:
        return Metric(
            key=self.key,
            value=self.value,
            step=self.step or 0,
            at_ms=self.timestamp,
            model_id=self.model_id or "",
            dataset=self.dataset_name or "",
            digest=self.dataset_digest or "",
        )


class _LogMetric(_Point, kw_only=True):
    run_id: str | None = ""
    run_uuid: str | None = ""


class _Pair(OfRun, kw_only=True):
    key: Text
    value: str | None = ""


class _Key(OfRun, kw_only=True):
    key: Text


class _LogBatch(OfRun, kw_only=True):
    metrics: list[_Point] | None = None
    params: list[KeyValue] | None = None
    tags: list[KeyValue] | None = None


class _Dataset(msgspec.Struct):
    name: Text
    digest: Text
    source_type: str | None = ""
    source: str | None = ""
    schema: str | None = ""
    profile: str | None = ""


class _DatasetInput(msgspec.Struct):
    dataset: _Dataset
    tags: list[KeyValue] | None = None

    def run_input(self) -> RunInput:
        tags = tags_of(self.tags)
        said = {name: getattr(self.dataset, name) or "" for name in _DATASET_FIELDS}
        return RunInput(
            dataset=self.dataset.name,
            version=0,
            digest=self.dataset.digest,
            role=tags.pop(_ROLE_TAG, ""),
            source=bare(**said, tags=tags),
        )


class _ModelInput(msgspec.Struct):
    model_id: Text


class _LogInputs(OfRun, kw_only=True):
    datasets: list[_DatasetInput] | None = None
    models: list[_ModelInput] | None = None


class _ModelOutput(msgspec.Struct):
    model_id: Text
    step: Int64 | None = 0


class _LogOutputs(OfRun, kw_only=True):
    models: list[_ModelOutput]


class _LogModel(OfRun, kw_only=True):
    model_json: Text


def metric_fields(metric: Metric, run_id: str = "") -> dict[str, Any]:
    """A metric as MLflow shows it."""
    return {
        "key": metric.key,
        "value": number(metric.value),
        "timestamp": metric.at_ms,
        "step": metric.step,
        **bare(
            model_id=metric.model_id,
            dataset_name=metric.dataset,
            dataset_digest=metric.digest,
            run_id=run_id,
        ),
    }


def input_fields(item: RunInput) -> dict[str, Any]:
    """A dataset input as MLflow shows it; a version of ours is called ``name@number``."""
    said = dict(item.source)
    tags = said.pop("tags", {})
    if item.role:
        tags = {_ROLE_TAG: item.role, **tags}
    name = f"{item.dataset}@{item.version}" if item.version else item.dataset
    return bare(dataset=bare(name=name, digest=item.digest, **said), tags=pairs(tags))


# --- calls --------------------------------------------------------------------------------------


def point_of(body: bytes) -> tuple[str, Metric]:
    """The run and the point that the body of a ``log-metric`` holds.

    Raises:
        InvalidInput: Naming the field that is missing or wrong.
    """
    asked = decode_body(body, _LogMetric, {})
    return _either(asked.run_id, asked.run_uuid), asked.metric()


@calls.on("POST", "mlflow/runs/log-metric")
def _log_metric(workspace: Workspace, asked: _LogMetric) -> dict[str, Any]:
    run_id = _either(asked.run_id, asked.run_uuid)
    with of_one("metrics"):
        workspace.tracking.log(run_id, metrics=[asked.metric()])
    return {}


@calls.on("POST", "mlflow/runs/log-parameter")
def _log_parameter(workspace: Workspace, asked: _Pair) -> dict[str, Any]:
    with of_one("params"):
        workspace.tracking.log(asked.id, params={asked.key: asked.value or ""})
    return {}


@calls.on("POST", "mlflow/runs/set-tag")
def _set_tag(workspace: Workspace, asked: _Pair) -> dict[str, Any]:
    with of_one("tags"):
        _write_tags(workspace, asked.id, {asked.key: asked.value or ""})
    return {}


def _write_tags(workspace: Workspace, run_id: str, tags: dict[str, str]) -> None:
    # In MLflow the name of a run is a tag as well: writing that one renames the run.
    if name := tags.get(NAME_TAG):
        workspace.tracking.update_run(run_id, name=name, tags=tags)
    else:
        workspace.tracking.log(run_id, tags=tags)


@calls.on("POST", "mlflow/runs/delete-tag")
def _delete_tag(workspace: Workspace, asked: _Key) -> dict[str, Any]:
    workspace.tracking.delete_tag(asked.id, asked.key)
    return {}


@calls.on("POST", "mlflow/runs/log-batch")
def _log_batch(workspace: Workspace, asked: _LogBatch) -> dict[str, Any]:
    params = [(item.key, item.value or "") for item in asked.params or ()]
    if len(dict(params)) < len(params):
        repeated = sorted({key for key, _ in params if [k for k, _ in params].count(key) > 1})
        raise InvalidInput(
            f"Duplicate parameter keys have been submitted: {', '.join(repeated)[:200]}. "
            "One batch can hold one value of each"
        )
    tags = tags_of(asked.tags)
    workspace.tracking.log(
        asked.id,
        metrics=[point.metric() for point in asked.metrics or ()],
        params=dict(params),
        tags=tags,
    )
    if tags.get(NAME_TAG):
        _write_tags(workspace, asked.id, {NAME_TAG: tags[NAME_TAG]})
    return {}


@calls.on("POST", "mlflow/runs/log-inputs")
def _log_inputs(workspace: Workspace, asked: _LogInputs) -> dict[str, Any]:
    inputs = [item.run_input() for item in asked.datasets or ()]
    workspace.tracking.log_inputs(asked.id, inputs)
    if asked.models:
        model_ids = [model.model_id for model in asked.models]
        workspace.tracking.log_model_inputs(asked.id, model_ids)
    return {}


@calls.on("POST", "mlflow/runs/outputs")
def _log_outputs(workspace: Workspace, asked: _LogOutputs) -> dict[str, Any]:
    outputs = [RunOutput(model_id=m.model_id, step=m.step or 0) for m in asked.models]
    workspace.tracking.log_outputs(asked.id, outputs)
    return {}


@calls.on("POST", "mlflow/runs/log-model")
def _log_model(workspace: Workspace, asked: _LogModel) -> dict[str, Any]:
    run_id = asked.id
    try:
        said = msgspec.json.decode(asked.model_json, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidInput(
            "Malformed model info: 'model_json' is not a valid JSON object"
        ) from None
    absent = sorted({"artifact_path", "utc_time_created", "flavors"} - said.keys())
    if absent:
        raise InvalidInput(
            f"Malformed model info. 'model_json' is missing mandatory fields: {', '.join(absent)}"
        )
    before = workspace.tracking.run(run_id).tags.get(_HISTORY_TAG, "[]")
    history = [*msgspec.json.decode(before, type=list[Any]), said]
    workspace.tracking.set_tag(run_id, _HISTORY_TAG, msgspec.json.encode(history).decode())
    return {}
