"""What MLflow's clients log to a run: metrics, parameters, tags, inputs, outputs."""

from __future__ import annotations

import base64
from typing import Any

import msgspec

from everloop.api.mlflow_calls import Calls
from everloop.api.mlflow_wire import (
    Int64,
    KeyValue,
    Text,
    bare,
    missing,
    number,
    pairs,
    tags_of,
)
from everloop.core.run import Metric, RunInput, RunOutput
from everloop.errors import InvalidInput
from everloop.workspace import Workspace

__all__ = ["NAME_TAG", "OfRun", "calls", "input_fields", "metric_fields"]

calls = Calls()

NAME_TAG = "mlflow.runName"

_ROLE_TAG = "mlflow.data.context"
_HISTORY_TAG = "mlflow.log-model.history"
#: Points of a page of a history, and of a sampled one where nothing is asked.
_PAGE, _SAMPLED = 25_000, 320
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
    models: list[_ModelOutput] | None = None


class _LogModel(OfRun, kw_only=True):
    model_json: Text


class _History(OfRun, kw_only=True):
    metric_key: Text
    page_token: str | None = ""
    max_results: Int64 | None = None


class _Intervals(msgspec.Struct):
    run_ids: list[str]
    metric_key: Text
    start_step: Int64 | None = None
    end_step: Int64 | None = None
    max_results: Int64 | None = None


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


@calls.on("POST", "mlflow/runs/log-metric")
def _log_metric(workspace: Workspace, asked: _LogMetric) -> dict[str, Any]:
    workspace.tracking.log(_either(asked.run_id, asked.run_uuid), metrics=[asked.metric()])
    return {}


@calls.on("POST", "mlflow/runs/log-parameter")
def _log_parameter(workspace: Workspace, asked: _Pair) -> dict[str, Any]:
    workspace.tracking.log(asked.id, params={asked.key: asked.value or ""})
    return {}


@calls.on("POST", "mlflow/runs/set-tag")
def _set_tag(workspace: Workspace, asked: _Pair) -> dict[str, Any]:
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
            f"Duplicate parameter keys have been submitted: {', '.join(repeated)[:200]}"
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
    return {}


@calls.on("POST", "mlflow/runs/outputs")
def _log_outputs(workspace: Workspace, asked: _LogOutputs) -> dict[str, Any]:
    outputs = [RunOutput(model_id=m.model_id, step=m.step or 0) for m in asked.models or ()]
    workspace.tracking.log_outputs(asked.id, outputs)
    return {}


@calls.on("POST", "mlflow/runs/log-model")
def _log_model(workspace: Workspace, asked: _LogModel) -> dict[str, Any]:
    try:
        said = msgspec.json.decode(asked.model_json, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidInput("Malformed model info: 'model_json' is no JSON object") from None
    absent = sorted({"artifact_path", "utc_time_created", "flavors"} - said.keys())
    if absent:
        raise InvalidInput(f"Malformed model info: {', '.join(absent)} is missing in 'model_json'")
    before = workspace.tracking.run(asked.id).tags.get(_HISTORY_TAG, "[]")
    history = [*msgspec.json.decode(before, type=list[Any]), said]
    workspace.tracking.set_tag(asked.id, _HISTORY_TAG, msgspec.json.encode(history).decode())
    return {}


@calls.on("GET", "mlflow/metrics/get-history")
def _get_history(workspace: Workspace, asked: _History) -> dict[str, Any]:
    limit = _PAGE if asked.max_results is None else asked.max_results
    if not 1 <= limit <= _PAGE:
        raise InvalidInput(f"Invalid value {limit} for parameter 'max_results' supplied")
    after = _after(asked.page_token, asked.metric_key) if asked.page_token else None
    found = workspace.tracking.history(asked.id, asked.metric_key, limit=limit + 1, after=after)
    token = _token(found[limit - 1]) if len(found) > limit else ""
    points = [metric_fields(point) for point in found[:limit]]
    return bare(metrics=points, next_page_token=token)


def _token(last: Metric) -> str:
    place = msgspec.json.encode([last.at_ms, last.step, repr(last.value)])
    return base64.urlsafe_b64encode(place).decode()


def _after(token: str, key: str) -> Metric:
    try:
        place = base64.b64decode(token, altchars=b"-_", validate=True)
        at_ms, step, value = msgspec.json.decode(place, type=tuple[Int64, Int64, str])
        return Metric(key=key, value=float(value), step=step, at_ms=at_ms)
    except ValueError:  # of base64, msgspec and float alike
        raise InvalidInput("Invalid page_token supplied: it is none of this server's") from None


@calls.on("GET", "mlflow/metrics/get-history-bulk-interval")
def _get_history_bulk_interval(workspace: Workspace, asked: _Intervals) -> dict[str, Any]:
    if (asked.start_step is None) != (asked.end_step is None):
        raise InvalidInput("Give both 'start_step' and 'end_step', or neither")
    found = workspace.tracking.sampled_history(
        asked.run_ids,
        asked.metric_key,
        points=_SAMPLED if asked.max_results is None else asked.max_results,
        start_step=asked.start_step,
        end_step=asked.end_step,
    )
    return bare(
        metrics=[metric_fields(p, run_id) for run_id, points in found.items() for p in points]
    )
