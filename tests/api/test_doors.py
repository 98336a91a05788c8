"""No way in goes past the decision point: each route is open by name, or a service refuses it."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Iterator
from datetime import datetime
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import msgspec
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

import everloop as ev
from everloop.access.service import actions_of
from everloop.api import mlflow, native
from everloop.core.access import Principal
from everloop.errors import NotAllowed
from everloop.registry.service import RegistryService
from everloop.server import make_app
from everloop.workspace import AREAS, Workspace
from tests.servers import ask, serve

#: What anybody may ask: it tells nothing of what is kept here.
OPEN = {
    "/health",
    "/version",
    "/api/openapi.json",
    "/api/3.0/mlflow/server-info",
    "/ajax-api/3.0/mlflow/server-info",
    "/static",
}
MLFLOW = [
    (method, path, call) for door in mlflow.DOORS for (method, path), call in door.calls.items()
]


class NobodyMay:
    """Refuses everything and remembers what was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def authorize(self, principal: Principal | None, action: str, object_: str) -> None:
        self.asked.append(action)
        raise NotAllowed(f"nobody may {action}")


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    location = str(tmp_path_factory.mktemp("closed") / ".everloop")
    with Workspace(location, authorizer=NobodyMay()) as workspace:
        yield workspace


@pytest.fixture(scope="module")
def app(closed: Workspace) -> ASGIApp:
    return make_app(closed)


@pytest.fixture(scope="module")
def open_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ASGIApp]:
    with ev.open(tmp_path_factory.mktemp("open") / ".everloop", actor="tester") as workspace:
        yield make_app(workspace)


def value_of(hint: Any) -> Any:
    """Something that decodes as `hint`."""
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return body_of(hint)
    if hint is datetime or typing.get_args(hint)[:1] == (datetime,):
        return "2026-01-01T00:00:00Z"
    if typing.get_origin(hint) is dict:
        return {}
    if hint == list[str]:
        return ["1"]
    for kind, value in ((int, 1), (float, 1.0), (str, "1"), (bytes, "eA==")):
        if hint is kind or typing.get_args(hint)[:1] == (kind,):
            return value
    return []


def body_of(asked: type) -> dict[str, Any]:
    fields = msgspec.structs.fields(asked)
    body = {field.name: value_of(field.type) for field in fields if field.required}
    if "run_id" in {field.name for field in fields}:
        body["run_id"] = "1"
    if "experiment_ids" in {field.name for field in fields}:
        body["experiment_ids"] = ["0"]
    return body


@pytest.mark.parametrize(
    ("method", "path", "call"),
    MLFLOW,
    ids=lambda value: value if isinstance(value, str) else "call",
)
def test_every_call_of_mlflow_asks_the_decision_point(
    app: ASGIApp, method: str, path: str, call: Any
) -> None:
    body = body_of(call.asked)
    if "model_json" in body:
        body["model_json"] = '{"artifact_path": "", "utc_time_created": "", "flavors": {}}'
    if (method, path) == ("POST", "mlflow/traces"):
        body |= {"experiment_id": "0", "timestamp_ms": 1}  # as clients of MLflow 2 begin one
    if path == "mlflow/traces/{trace_id}/assessments":
        body["assessment"]["feedback"] = {"value": 1}
    if path == "mlflow/metrics/get-history-bulk":
        body["metric_key"] = "auc"
    if path == "mlflow/model-versions/create":
        body["source"] = "s3://bucket/model"
    if method == "PATCH" and path.endswith("{model_id}"):
        body["status"] = "LOGGED_MODEL_READY"
    target = f"/api/2.0/{re.sub(r'{[a-z_]+}', 'm-1', path)}"
    if method == "GET":
        query = "&".join(
            f"{key}={item}"
            for key, value in body.items()
            for item in (value if isinstance(value, list) else [value])
        )
        answer = ask(app, "GET", f"{target}?{query}")
    else:
        answer = ask(app, method, target, body)
    assert (answer.status, answer.json()["error_code"]) == (403, "PERMISSION_DENIED"), answer.text


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_artifacts_ask_the_decision_point(app: ASGIApp, method: str) -> None:
    base = "/api/2.0/mlflow-artifacts/artifacts"
    assert ask(app, method, f"{base}/0/run/file", b"x").status == 403
    assert ask(app, "GET", f"{base}?path=0").status == 403


@pytest.mark.parametrize(
    ("method", "target", "body"),
    [
        ("GET", "/get-artifact?run_id=1&path=x", b""),
        ("GET", "/model-versions/get-artifact?name=a&version=1&path=x", b""),
        ("POST", "/ajax-api/2.0/mlflow/upload-artifact?run_uuid=1&path=x", b"x"),
        ("GET", "/api/2.0/mlflow/logged-models/m-1/artifacts/files?artifact_file_path=x", b""),
        ("GET", "/api/2.0/mlflow-artifacts/presigned/0/x", b""),
        ("POST", "/api/2.0/mlflow-artifacts/mpu/create/0", {"path": "x", "num_parts": 1}),
        (
            "POST",
            "/api/2.0/mlflow-artifacts/mpu/complete/0",
            {"path": "x", "upload_id": "1", "parts": [{"part_number": 1}]},
        ),
        ("POST", "/api/2.0/mlflow-artifacts/mpu/abort/0", {"path": "x", "upload_id": "1"}),
    ],
)
def test_files_of_mlflow_ask_the_decision_point(
    app: ASGIApp, method: str, target: str, body: Any
) -> None:
    answer = ask(app, method, target, body)
    assert (answer.status, answer.json()["error_code"]) == (403, "PERMISSION_DENIED"), answer.text


def test_a_part_is_taken_only_for_an_upload_that_was_allowed(app: ASGIApp) -> None:
    path = f"/api/2.0/mlflow-artifacts/mpu/parts/{'0' * 32}/1"
    assert ask(app, "PUT", path, b"x").status == 404


def test_every_native_method_is_served_and_declares_its_action(
    app: ASGIApp, closed: Workspace
) -> None:
    described = ask(app, "GET", "/api/openapi.json").json()["paths"]
    expected = {}
    for area in AREAS:
        for name, action in actions_of(type(closed.service(area))).items():
            assert re.fullmatch(r"[a-z_]+:[a-z_]+", action)
            expected[f"/api/v1/{area}/{name}"] = action
    assert {path: told["post"]["x-everloop-action"] for path, told in described.items()} == expected
    for path in described:  # before the body is read: it may be large
        assert ask(app, "POST", path, b"no JSON").status == 403, path


def test_every_native_method_names_the_arguments_that_it_lacks(open_app: ASGIApp) -> None:
    for path, told in ask(open_app, "GET", "/api/openapi.json").json()["paths"].items():
        schema = told["post"]["requestBody"]["content"]["application/json"]["schema"]
        if schema["required"]:
            answer = ask(open_app, "POST", path, b"{}")
            missing = {fault["path"] for fault in answer.json()["faults"]}
            assert (answer.status, missing) == (400, set(schema["required"])), path


def test_description_refers_only_to_what_it_holds(app: ASGIApp) -> None:
    text = ask(app, "GET", "/api/openapi.json").text
    schemas = json.loads(text)["components"]["schemas"]
    referred = set(re.findall(r'"#/components/schemas/([^"]+)"', text))
    assert referred
    assert referred <= schemas.keys()
    assert {"Run", "ModelVersion", "Verdict", "LoopSpec"} <= schemas.keys()


PAGES = (
    "/", "/overview.json", "/loops/x", "/loops/x.json", "/loops/x/maturity", "/datasets/x/profile",
    "/datasets/x/ledger", "/datasets/x/sheet", "/data-tests", "/data-tests/x", "/worklist",
    "/worklist/x",
)  # fmt: skip


@pytest.mark.parametrize(
    "path",
    [*PAGES, *(f"{p}.json" for p in ("/loops/x/maturity", "/datasets/x/sheet", "/data-tests/x"))],
)
def test_pages_ask_the_decision_point(app: ASGIApp, path: str) -> None:
    assert ask(app, "GET", path).status == 403


def test_forms_ask_the_decision_point(app: ASGIApp) -> None:
    assert ask(app, "POST", "/approvals/x", b"answer=approve").status == 403


def test_spans_ask_the_decision_point(app: ASGIApp) -> None:
    times = {"startTimeUnixNano": "1", "endTimeUnixNano": "2"}
    span = {"traceId": "ab" * 16, "spanId": "cd" * 8, **times}
    body = {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}
    headers = {"x-mlflow-experiment-id": "0"}
    assert ask(app, "POST", "/v1/traces", body, headers=headers).status == 403


def test_lineage_events_ask_the_decision_point(app: ASGIApp) -> None:
    event = {"eventTime": "2013-01-01T00:00:00Z", "dataset": {"namespace": "a", "name": "b"}}
    assert ask(app, "POST", "/api/v1/lineage", event).status == 403


def test_streams_ask_the_decision_point(app: ASGIApp) -> None:
    assert ask(app, "GET", "/api/v1/runs/a/stream?key=loss").status == 403


def test_every_route_is_open_by_name_or_known_here(app: ASGIApp) -> None:
    checked = re.compile(
        r"/api/v1/\{area\}/\{method\}|/(ajax-)?api/[23]\.0/(mlflow-artifacts/artifacts(/\{path:path\})?"
        r"|mlflow-artifacts/presigned/\{path:path\}"
        r"|mlflow-artifacts/mpu/(create|complete|abort)(/\{folder:path\})?"
        r"|mlflow-artifacts/mpu/parts/\{upload\}/\{number:int\}"
        r"|mlflow/upload-artifact|mlflow/logged-models/\{model_id\}/artifacts/files"
        r"|\{rest:path\})|/(model-versions/)?get-artifact|/graphql|/|/overview\.json|/loops/\{name\}(/maturity)?(\.json)?|/datasets/\{name\}/(profile|ledger|sheet)(\.json)?|/worklist(/\{name\})?(\.json)?|/data-tests(/\{name\})?(\.json)?|/approvals/\{run_id\}|/metrics|/v1/traces|/api/v1/lineage|/api/v1/runs/\{id\}/stream"
        r"|/hooks/\{name:str\}"  # by a signature: test_hooks.py
    )
    framework: Any = app
    while not isinstance(framework, Starlette):
        framework = getattr(framework, "_app", None) or framework._framework
    for route in framework.routes:
        assert isinstance(route, Route | Mount)
        assert route.path in OPEN or checked.fullmatch(route.path), route.path


@pytest.mark.parametrize("path", [*sorted(OPEN - {"/static"}), "/static/everloop.css"])
def test_open_routes_are_open(app: ASGIApp, path: str) -> None:
    assert ask(app, "GET", path).status == 200


@pytest.mark.parametrize("path", ["/nothing", "/static/nothing.css", "/static/../pages.py", "/api"])
def test_unknown_paths_are_404(app: ASGIApp, path: str) -> None:
    answer = ask(app, "GET", path)
    assert answer.status == 404
    assert answer.headers["content-type"] == "application/json"
    assert ask(app, "DELETE", "/health").status == 405


def test_plain_json_drives_the_services(open_app: ASGIApp) -> None:
    def call(path: str, **arguments: Any) -> Any:
        answer = ask(open_app, "POST", f"/api/v1/{path}", arguments)
        assert answer.status == 200, answer.text
        return answer.json()["value"]

    run = call("tracking/create_run", experiment="curl", params={"lr": "0.1"})
    point = {"key": "auc", "value": 0.75, "step": 1, "at_ms": 5}
    call("tracking/log", id=run["id"], metrics=[point])
    assert call("tracking/run", id=run["id"])["metrics"] == {"auc": 0.75}
    call("registry/create_model", name="churn", owner="ops@example.org")
    assert [model["name"] for model in call("registry/models")] == ["churn"]
    kinds = [event["kind"] for event in call("lineage/events")]
    assert kinds == ["run.Started", "model.Created"]


def test_host_and_origin_are_checked_before_every_door(open_app: ASGIApp) -> None:
    for path in ("/", "/health", "/api/v1/registry/models", "/v2/health/live", "/static/x"):
        assert ask(open_app, "GET", path, host="rebound.example").status == 403
    headers = {"Origin": "https://evil.example"}
    answer = ask(open_app, "POST", "/api/v1/registry/models", {}, headers=headers)
    assert answer.status == 403


def test_calls_of_the_native_door_are_all_by_post() -> None:
    [call, _] = native.routes(None)  # type: ignore[arg-type]
    assert call.methods == {"POST"}


def test_a_fault_of_ours_tells_nothing(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object) -> None:
        raise RuntimeError("SELECT secret FROM t")

    monkeypatch.setattr(RegistryService, "models", fail)
    with ev.open(tmp_path_factory.mktemp("broken") / ".everloop") as workspace:
        with serve(workspace) as url, pytest.raises(HTTPError) as caught:
            urlopen(f"{url}/overview.json")
        assert caught.value.code == 503
        text = caught.value.read().decode()
        assert json.loads(text)["error_code"] == "backend"
        assert "SELECT" not in text
        assert "Traceback" not in text
