"""The requests that MLflow's clients for Java and R send, and their answers read as they read them.

The Java client prints and parses protobuf's JSON; MLflow's own messages parse its answers here. The
R client sends every value as a text and reads plain JSON; it uses the oldest of the prefixes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
from google.protobuf import json_format
from mlflow.protos import model_registry_pb2 as registry
from mlflow.protos import service_pb2 as service
from starlette.types import ASGIApp

from everloop.server import make_app
from everloop.workspace import Workspace
from tests.servers import Answer, ask

JSON = "application/json; charset=UTF-8"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ASGIApp]:
    folder = tmp_path_factory.mktemp("languages")
    with Workspace(str(folder / ".everloop"), actor="tester") as workspace:
        yield make_app(workspace)


class Java:
    """Sends as ``org.mlflow.tracking.MlflowClient`` does: snake case, int64 as texts."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def get(self, path: str, kind: Any, **query: Any) -> Any:
        return self._read(self._send("GET", f"{path}?{urlencode(query, doseq=True)}", b""), kind)

    def post(self, path: str, message: Any, kind: Any = None, *, method: str = "POST") -> Any:
        text = json_format.MessageToJson(message, preserving_proto_field_name=True)
        return self._read(self._send(method, path, text.encode()), kind)

    def _send(self, method: str, path: str, body: bytes) -> Answer:
        headers = {"User-Agent": "mlflow-java-client/2.22.0"}
        headers |= {"Content-Type": "application/json"} if body else {}
        return ask(self._app, method, f"/api/2.0/mlflow/{path}", body, headers=headers)

    def _read(self, answer: Answer, kind: Any) -> Any:
        assert answer.status == 200, answer.text
        if kind is None:
            return json.loads(answer.text)
        return json_format.Parse(answer.text, kind(), ignore_unknown_fields=True)


def test_java_client_tracks_and_registers(app: ASGIApp) -> None:
    java = Java(app)
    made = java.post(
        "experiments/create",
        service.CreateExperiment(name="of java"),
        service.CreateExperiment.Response,
    )
    id_ = made.experiment_id
    by_name = java.get(
        "experiments/get-by-name",
        service.GetExperimentByName.Response,
        experiment_name="of java",
    )
    assert by_name.experiment.experiment_id == id_
    tags = [service.RunTag(key="mlflow.source.type", value="LOCAL")]
    asked = service.CreateRun(
        experiment_id=id_, user_id="ann", start_time=1_700_000_000_000, tags=tags
    )
    run = java.post("runs/create", asked, service.CreateRun.Response).run
    run_id = run.info.run_id
    assert (run.info.run_uuid, run.info.start_time) == (run_id, 1_700_000_000_000)
    assert run.info.status == service.RunStatus.RUNNING
    for step, value in enumerate((0.5, float("nan"), float("inf"), -(2.0**60))):
        point = service.LogMetric(
            run_uuid=run_id, run_id=run_id, key="loss", value=value, timestamp=2**53 + 1, step=step
        )
        assert java.post("runs/log-metric", point) == {}
    pair = {"run_uuid": run_id, "run_id": run_id, "key": "k", "value": "v å"}
    assert java.post("runs/log-parameter", service.LogParam(**pair)) == {}
    assert java.post("runs/set-tag", service.SetTag(**pair)) == {}
    batch = service.LogBatch(
        run_id=run_id,
        metrics=[service.Metric(key="auc", value=1, timestamp=-0, step=-(2**63))],
        params=[service.Param(key="p", value="")],
        tags=[service.RunTag(key="t", value="")],
    )
    assert java.post("runs/log-batch", batch) == {}
    history = java.get(
        "metrics/get-history", service.GetMetricHistory.Response, run_id=run_id, metric_key="loss"
    ).metrics
    assert [point.step for point in history] == [0, 1, 2, 3]
    assert {point.timestamp for point in history} == {2**53 + 1}
    assert repr(history[1].value) == "nan"
    found = java.post(
        "runs/search",
        service.SearchRuns(
            experiment_ids=[id_],
            filter="metrics.auc = 1 and tags.k = 'v å'",
            run_view_type=service.ViewType.ACTIVE_ONLY,
            max_results=5,
            order_by=["metrics.auc DESC"],
        ),
        service.SearchRuns.Response,
    )
    assert [item.info.run_id for item in found.runs] == [run_id]
    assert found.runs[0].data.metrics[0].step == -(2**63)
    ended = service.UpdateRun(
        run_uuid=run_id, run_id=run_id, status="FINISHED", end_time=1_700_000_000_001
    )
    info = java.post("runs/update", ended, service.UpdateRun.Response).run_info
    assert (info.status, info.end_time) == (service.RunStatus.FINISHED, 1_700_000_000_001)
    assert java.post("runs/delete-tag", service.DeleteTag(run_id=run_id, key="t")) == {}
    name = "java model"
    java.post("registered-models/create", registry.CreateRegisteredModel(name=name))
    version = java.post(
        "model-versions/create",
        registry.CreateModelVersion(name=name, run_id=run_id, source=f"runs:/{run_id}/model"),
        registry.CreateModelVersion.Response,
    ).model_version
    assert (version.version, version.status) == ("1", registry.ModelVersionStatus.READY)
    java.post(
        "model-versions/update",
        registry.UpdateModelVersion(name=name, version="1", description="d"),
        method="PATCH",
    )
    moved = java.post(
        "model-versions/transition-stage",
        registry.TransitionModelVersionStage(name=name, version="1", stage="Staging"),
        registry.TransitionModelVersionStage.Response,
    )
    assert moved.model_version.current_stage == "Staging"
    latest = java.get(
        "registered-models/get-latest-versions",
        registry.GetLatestVersions.Response,
        name=name,
        stages=["Staging", "None"],
    )
    assert [item.description for item in latest.model_versions] == ["d"]
    uri = java.get(
        "model-versions/get-download-uri",
        registry.GetModelVersionDownloadUri.Response,
        name=name,
        version="1",
    )
    assert uri.artifact_uri == f"runs:/{run_id}/model"
    gone = ask(app, "GET", "/api/2.0/mlflow/runs/get?run_id=nobody")
    assert (gone.status, gone.json()["error_code"]) == (404, "RESOURCE_DOES_NOT_EXIST")


@pytest.fixture
def r(app: ASGIApp) -> Callable[..., Any]:
    """Sends as the R client: the old prefix, no charset, texts for numbers, as ``1e+05``."""

    def send(path: str, data: Any = None, query: dict[str, str] | None = None) -> Any:
        target = f"/api/2.0/preview/mlflow/{path}"
        headers = {"User-Agent": "mlflow-r-client/2.22.0", "Accept": "application/json, */*"}
        if data is None:
            answer = ask(app, "GET", f"{target}?{urlencode(query or {})}", headers=headers)
        else:
            headers["Content-Type"] = "application/json"
            answer = ask(app, "POST", target, json.dumps(data).encode(), headers=headers)
        assert answer.status == 200, answer.text
        assert answer.headers["content-type"].startswith("application/json")
        return answer.json()

    return send


def test_r_client_tracks(r: Callable[..., Any]) -> None:
    id_ = r("experiments/create", {"name": "of R", "artifact_location": "", "tags": []})
    shown = r("experiments/get", query=id_)["experiment"]
    assert (shown["name"], shown["lifecycle_stage"]) == ("of R", "active")
    asked = {**id_, "user_id": "unknown", "start_time": "1.7e+12", "tags": []}
    run_id = r("runs/create", asked)["run"]["info"]["run_uuid"]
    both = {"run_uuid": run_id, "run_id": run_id}
    for value in ("0.1", "NaN", "Infinity", "-Infinity", "1e-300"):
        point = {**both, "key": "m", "value": value, "timestamp": "1700000000123", "step": "1e+05"}
        assert r("runs/log-metric", point) == {}
    batch = [{"key": "b", "value": "1", "step": "2", "timestamp": "1.7e+12"}]
    assert r("runs/log-batch", {"run_id": run_id, "metrics": batch, "params": [], "tags": []}) == {}
    assert r("runs/log-parameter", {**both, "key": "alpha", "value": "0.5"}) == {}
    assert r("runs/set-tag", {**both, "key": "team", "value": "growth"}) == {}
    run = r("runs/get", query=both)["run"]
    assert run["info"]["start_time"] == 1_700_000_000_000
    assert run["data"]["params"] == [{"key": "alpha", "value": "0.5"}]
    history = r("metrics/get-history", query={**both, "metric_key": "m"})["metrics"]
    assert {point["step"] for point in history} == {100_000}
    assert [set(point) >= {"key", "value", "timestamp", "step"} for point in history] == [True] * 5
    found = r(
        "runs/search",
        {
            "experiment_ids": [id_["experiment_id"]],
            "filter": "tags.team = 'growth'",
            "run_view_type": "ACTIVE_ONLY",
            "order_by": ["metrics.b DESC"],
        },
    )["runs"]
    assert [item["info"]["run_id"] for item in found] == [run_id]
    listed = r("artifacts/list", query=both)
    assert listed["root_uri"] == run["info"]["artifact_uri"]
    ended = r("runs/update", {**both, "status": "FINISHED", "end_time": "1700000001000"})
    assert ended["run_info"]["run_uuid"] == run_id
    assert r("runs/delete", {"run_id": run_id}) == r("runs/restore", {"run_id": run_id}) == {}


@pytest.mark.parametrize(
    ("path", "kind", "camel"),
    [
        ("runs/log-metric", service.LogMetric, {"key": "c", "value": 1, "timestamp": "5"}),
        ("runs/search", service.SearchRuns, {"experimentIds": ["0"], "runViewType": "ALL"}),
        (
            "runs/log-batch",
            service.LogBatch,
            {"metrics": [{"key": "c", "value": "NaN", "timestamp": "1", "modelId": ""}]},
        ),
        (
            "runs/log-inputs",
            service.LogInputs,
            {
                "datasets": [
                    {
                        "tags": [{"key": "aB", "value": "x"}],
                        "dataset": {"name": "d", "digest": "1", "sourceType": "t", "source": "s"},
                    }
                ]
            },
        ),
    ],
)
def test_fields_may_be_in_camel_case_as_in_all_json_of_protobuf(
    app: ASGIApp, r: Callable[..., Any], path: str, kind: Any, camel: dict[str, Any]
) -> None:
    run_id = r("runs/create", {"experiment_id": "0"})["run"]["info"]["run_id"]
    body = {"runId": run_id, **camel} if path != "runs/search" else camel
    assert json_format.ParseDict(body, kind())  # as MLflow itself would
    answer = r(path, body)
    if path == "runs/search":
        assert run_id in {run["info"]["run_id"] for run in answer["runs"]}
        return
    run = r("runs/get", query={"run_id": run_id})["run"]
    if path == "runs/log-inputs":
        [found] = run["inputs"]["dataset_inputs"]
        assert (found["dataset"]["source_type"], found["tags"][0]["key"]) == ("t", "aB")
    else:
        assert [point["key"] for point in run["data"]["metrics"]] == ["c"]
