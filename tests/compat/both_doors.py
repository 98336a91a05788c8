"""MLflow's server and ours, holding the same records; their answers are held together."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from everloop.server import make_app
from everloop.workspace import Workspace
from tests.servers import ask

API = "/api/2.0/mlflow"
_SCRIPT = Path(__file__).with_name("mlflow_answers.py")


class Said(NamedTuple):
    """One side's answer."""

    status: int
    body: Any

    @property
    def code(self) -> str:
        """The code of an error; empty for what was answered well."""
        return "" if self.status == 200 else str(self.body["error_code"])


class Theirs:
    """MLflow's server, in a process of its own, without a socket."""

    def __init__(self, folder: Path) -> None:
        with (folder / "log").open("w") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-W", "ignore", str(_SCRIPT), str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def send(self, method: str, target: str, body: Any = None, **headers: str) -> Said:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        data = base64.b64encode(body).decode() if isinstance(body, bytes) else body
        self._child.stdin.write(json.dumps([method, target, data, headers]) + "\n")
        self._child.stdin.flush()
        status, told = json.loads(self._child.stdout.readline())
        if isinstance(told, str) and target.startswith("/api") and told.strip() in ("{}", ""):
            told = {}
        return Said(status, told)

    def close(self) -> None:
        self._child.communicate(timeout=60)


class Ours:
    """Our door, in this process."""

    def __init__(self, workspace: Workspace) -> None:
        self._app = make_app(workspace)

    def send(self, method: str, target: str, body: Any = None, **headers: str) -> Said:
        given = headers or {"Content-Type": "application/json"}
        data = body if isinstance(body, bytes) else json.dumps(body).encode() if body else b""
        answer = ask(self._app, method, target, data, headers=given)
        is_json = answer.headers.get("content-type") == "application/json"
        return Said(answer.status, answer.json() if is_json else answer.text)


class Side:
    """One of the two with the records that every search is made among.

    Attributes:
        ids: Name of a record -> the id that it has here.
    """

    def __init__(self, door: Theirs | Ours) -> None:
        self.door = door
        self.ids: dict[str, str] = {}
        self._fill()

    def post(self, path: str, body: dict[str, Any], level: str = "2.0") -> Any:
        said = self.door.send("POST", f"/api/{level}/mlflow/{path}", body)
        assert said.status == 200, said
        return said.body

    def ask(self, method: str, path: str, fields: dict[str, Any]) -> Said:
        """Send a request, whose path and fields may name ids as ``<name>``."""
        target, text = path if path.startswith("/") else f"{API}/{path}", json.dumps(fields)
        for name, id_ in self.ids.items():
            target, text = target.replace(f"<{name}>", id_), text.replace(f"<{name}>", id_)
        if method != "GET":
            return self.door.send(method, target, json.loads(text))
        return self.door.send(method, f"{target}?{urlencode(json.loads(text))}")

    def search(self, kind: str, filter_: str, order_by: list[str] | None = None) -> Said:
        """Search, and name what was found; the text may name ids as ``<name>``."""
        for name, id_ in self.ids.items():
            filter_ = filter_.replace(f"<{name}>", id_)
        asked: dict[str, Any] = {"filter": filter_, "max_results": 50}
        if order_by:
            asked["order_by"] = order_by
        experiment = self.ids["mine"]
        if kind == "experiments":
            said = self.door.send("POST", f"{API}/experiments/search", asked)
            return self._named(said, "experiments", lambda item: item["name"])
        if kind == "runs":
            asked["experiment_ids"] = [experiment]
            said = self.door.send("POST", f"{API}/runs/search", asked)
            return self._named(said, "runs", lambda item: item["info"]["run_name"])
        if kind == "logged models":
            asked["experiment_ids"] = [experiment]
            said = self.door.send("POST", f"{API}/logged-models/search", asked)
            return self._named(said, "models", lambda item: item["info"]["name"])
        if kind == "traces":
            asked["locations"] = [
                {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": experiment}}
            ]
            said = self.door.send("POST", "/api/3.0/mlflow/traces/search", asked)
            return self._named(said, "traces", lambda item: item["trace_id"][-1])
        call, key = {
            "models": ("registered-models", "registered_models"),
            "versions": ("model-versions", "model_versions"),
        }[kind]
        said = self.door.send("GET", f"{API}/{call}/search?{urlencode(asked, doseq=True)}")
        return self._named(said, key, lambda item: item["name"] + item.get("version", ""))

    @staticmethod
    def _named(said: Said, key: str, name: Any) -> Said:
        if said.status != 200:
            return said
        return said._replace(body=[name(item) for item in said.body.get(key, [])])

    def _fill(self) -> None:
        self._experiments()
        self._runs()
        self._logged_models()
        self._registry()
        self._traces()

    def _experiments(self) -> None:
        for name, tags in {"mine": {"t": "1", "a.b": "x"}, "Mine 2": {"t": "it"}, "o_": {}}.items():
            made = self.post("experiments/create", {"name": name, "tags": _pairs(tags)})
            self.ids[name] = made["experiment_id"]

    def _runs(self) -> None:
        runs: dict[str, tuple[Any, ...]] = {
            "r0": ({"acc": 0.5, "a b": 1}, {"lr": "0.1", "x.y": "a"}, {"tg": "x"}),
            "r1": ({"acc": 0.9, "a b": 2}, {"lr": "0.01", "x.y": "A"}, {"tg": "Xy", "a.b": "1"}),
            "r2": ({"acc": "NaN"}, {"lr": "1", "x.y": "a_b"}, {"tg": "100%"}),
            "R3": ({}, {"lr": ""}, {"tg": ""}),
            "r4": ({"acc": -1, "a b": -3.5}, {}, {}),
        }
        for number, (name, (metrics, params, tags)) in enumerate(runs.items()):
            asked = {
                "experiment_id": self.ids["mine"],
                "run_name": name,
                "start_time": 1000 + number,
                "user_id": f"u{number % 2}",
            }
            run = self.post("runs/create", asked)["run"]["info"]["run_id"]
            self.ids[name] = run
            points = [{"key": k, "value": v, "timestamp": 1} for k, v in metrics.items()]
            batch = {"metrics": points, "params": _pairs(params), "tags": _pairs(tags)}
            self.post("runs/log-batch", {"run_id": run, **batch})
        for name, status, end in (("r1", "FINISHED", 5000), ("r2", "FAILED", 6000)):
            body = {"run_id": self.ids[name], "status": status, "end_time": end}
            self.post("runs/update", body)
        for name, dataset, role in (("r0", "ds", "train"), ("r1", "ds2", "test"), ("r1", "ds", "")):
            source = {"name": dataset, "digest": f"{dataset}-g", "source_type": "s", "source": "s"}
            tags = _pairs({"mlflow.data.context": role} if role else {})
            inputs = [{"dataset": source, "tags": tags}]
            self.post("runs/log-inputs", {"run_id": self.ids[name], "datasets": inputs})

    def _logged_models(self) -> None:
        models: dict[str, tuple[dict[str, str], dict[str, str], dict[str, float]]] = {
            "m0": ({"lr": "0.1", "k": "a"}, {"t": "x"}, {"acc": 0.5}),
            "m1": ({"lr": "0.01", "k": "b"}, {"t": "y", "a.b": "1"}, {"acc": 0.9, "f": 1}),
            "M2": ({"k": "A"}, {}, {}),
        }
        for number, (name, (params, tags, metrics)) in enumerate(models.items()):
            asked = {
                "experiment_id": self.ids["mine"],
                "name": name,
                "model_type": f"type{number % 2}",
                "source_run_id": self.ids["r0"],
                "params": _pairs(params),
                "tags": _pairs(tags),
            }
            id_ = self.post("logged-models", asked)["model"]["info"]["model_id"]
            self.ids[name] = id_
            points = [
                {"key": k, "value": v, "timestamp": 1, "model_id": id_} for k, v in metrics.items()
            ]
            self.post("runs/log-batch", {"run_id": self.ids["r0"], "metrics": points})

    def _registry(self) -> None:
        for name, tags in {
            "reg": {"a": "1"},
            "Reg-2": {"a": "it", "a.b": "x"},
            "other": {},
        }.items():
            self.post("registered-models/create", {"name": name, "tags": _pairs(tags)})
        for name, source, run, tags in (
            ("reg", "s3://b/1", "r0", {"t": "v"}),
            ("reg", "s3://b/2", "r1", {"t": "V", "a.b": "1"}),
            ("reg", "s3://c/3", "", {}),
            ("Reg-2", "S3://b/1", "r0", {"t": "%"}),
        ):
            asked = {"name": name, "source": source, "tags": _pairs(tags)}
            if run:
                asked["run_id"] = self.ids[run]
            self.post("model-versions/create", asked)

    def _traces(self) -> None:
        where = {
            "type": "MLFLOW_EXPERIMENT",
            "mlflow_experiment": {"experiment_id": self.ids["mine"]},
        }
        traces: dict[str, dict[str, Any]] = {
            "1": {
                "tags": {"mlflow.traceName": "ask", "t": "x1"},
                "trace_metadata": {"m": "a"},
                "execution_duration": "0.5s",
            },
            "2": {
                "tags": {"mlflow.traceName": "Answer", "t": "Y22", "a.b": "1"},
                "trace_metadata": {"m": "B", "mlflow.sourceRun": self.ids["r0"]},
                "state": "ERROR",
                "client_request_id": "c1",
                "execution_duration": "0.5s",
            },
            "3": {"execution_duration": "2s", "client_request_id": "c2"},
        }
        for number, (name, fields) in enumerate(traces.items(), 1):
            id_ = f"tr-{'0' * 31}{name}"
            self.ids[f"t{name}"] = id_
            info = {
                "trace_id": id_,
                "trace_location": where,
                "request_time": f"2024-01-01T00:00:0{number}Z",
                "state": "OK",
                **fields,
            }
            self.post("traces", {"trace": {"trace_info": info}}, level="3.0")
        for name, value in (("1", 0.5), ("2", "good"), ("3", True)):
            said = {
                "assessment_name": "score",
                "trace_id": self.ids[f"t{name}"],
                "source": {"source_type": "HUMAN", "source_id": "me"},
                "feedback": {"value": value},
                "create_time": "2024-01-01T00:00:00Z",
                "last_update_time": "2024-01-01T00:00:00Z",
            }
            path = f"traces/{self.ids[f't{name}']}/assessments"
            self.post(path, {"assessment": said}, level="3.0")
        said = self.door.send(
            "POST",
            "/v1/traces",
            _spans(),
            **{
                "content-type": "application/x-protobuf",
                "x-mlflow-experiment-id": self.ids["mine"],
            },
        )
        assert said.status == 200, said


def _pairs(values: dict[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in values.items()]


def _spans() -> bytes:
    """Two spans of the first trace, one of the second."""
    made = ExportTraceServiceRequest()
    scope = made.resource_spans.add().scope_spans.add()
    for trace, number, name, kind, model in (
        (1, 1, "root", "CHAIN", "gpt-4"),
        (1, 2, "call llm", "LLM", "gpt-4o mini"),
        (2, 3, "Root", "LLM", "other"),
    ):
        span = scope.spans.add(
            trace_id=trace.to_bytes(16, "big"),
            span_id=number.to_bytes(8, "big"),
            parent_span_id=(1).to_bytes(8, "big") if number == 2 else b"",
            name=name,
            start_time_unix_nano=1_704_067_200_000_000_000 + trace * 10**9,
            end_time_unix_nano=1_704_067_200_500_000_000 + trace * 10**9,
        )
        for key, value in (("mlflow.spanType", kind), ("model", model)):
            span.attributes.append(KeyValue(key=key, value=AnyValue(string_value=value)))
    return made.SerializeToString()
