"""MLflow's wire, asked as its clients do and as nobody should: never a 5xx for what was sent."""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.sql import SQL, Identifier
from starlette.types import ASGIApp

from everloop.api import mlflow
from everloop.ports.blobs import HasPaths
from everloop.server import make_app
from everloop.workspace import Workspace
from tests.servers import Answer, ask

API = "/api/2.0/mlflow"
FILES = "/api/2.0/mlflow-artifacts/artifacts"


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def workspace(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Workspace]:
    folder = tmp_path_factory.mktemp("mlflow")
    with contextlib.ExitStack() as stack:
        location = str(folder / ".everloop")
        if request.param == "postgres":
            location = stack.enter_context(database(request.getfixturevalue("postgres_url")))
        objects = str(folder / ".everloop" / "objects")
        yield stack.enter_context(Workspace(location, objects=objects, actor="tester"))


@contextlib.contextmanager
def database(url: str) -> Iterator[str]:
    """A database for the whole module, dropped at its end."""
    name = f"everloop_test_{secrets.token_hex(6)}"
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(SQL("CREATE DATABASE {}").format(Identifier(name)))
        yield urlunsplit(urlsplit(url)._replace(path=f"/{name}"))
        admin.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(name)))


@pytest.fixture(scope="module")
def app(workspace: Workspace) -> ASGIApp:
    return make_app(workspace)


@pytest.fixture
def run_id(app: ASGIApp) -> str:
    made = post(app, "runs/create", {"experiment_id": "0", "run_name": "r"}).json()
    return str(made["run"]["info"]["run_id"])


def post(app: ASGIApp, path: str, body: Any, method: str = "POST") -> Answer:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return ask(app, method, f"{API}/{path}", data, headers={"Content-Type": "application/json"})


def get(app: ASGIApp, path: str) -> Answer:
    return ask(app, "GET", f"{API}/{path}")


def refused(answer: Answer, code: str = "INVALID_PARAMETER_VALUE", status: int = 400) -> str:
    assert (answer.status, answer.json()["error_code"]) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/json"
    return str(answer.json()["message"])


# --- the shape of answers -----------------------------------------------------------------------


def test_empty_fields_are_left_out(app: ASGIApp, run_id: str) -> None:
    info = get(app, f"runs/get?run_id={run_id}").json()["run"]
    assert info["info"]["status"] == "RUNNING"
    assert "end_time" not in info["info"]
    assert info["inputs"] == info["outputs"] == {}
    assert post(app, "runs/search", {"experiment_ids": []}).json() == {}
    assert get(app, f"metrics/get-history?run_id={run_id}&metric_key=none").json() == {}


def test_the_same_calls_under_every_prefix(app: ASGIApp) -> None:
    for base in ("/api/2.0/mlflow", "/ajax-api/2.0/mlflow", "/api/2.0/preview/mlflow"):
        answer = ask(app, "GET", f"{base}/experiments/get?experiment_id=0")
        assert answer.json()["experiment"]["name"] == "Default"


def test_service_endpoints(app: ASGIApp) -> None:
    assert ask(app, "GET", "/health").text == "OK"
    assert ask(app, "GET", "/version").text.split(".")[0] == "3"
    info = ask(app, "GET", "/api/3.0/mlflow/server-info").json()
    assert info["multipart_uploads_enabled"] is True


def test_the_old_name_of_the_run_id_will_do(app: ASGIApp, run_id: str) -> None:
    assert (
        post(app, "runs/log-parameter", {"run_uuid": run_id, "key": "a", "value": ""}).json() == {}
    )
    run = get(app, f"runs/get?run_uuid={run_id}").json()["run"]
    assert run["data"]["params"] == [{"key": "a", "value": ""}]
    assert run["info"]["run_uuid"] == run_id


@pytest.mark.parametrize(
    ("sent", "answered"),
    [
        ('"NaN"', "NaN"),
        ("NaN", "NaN"),
        ('"Infinity"', 1.7976931348623157e308),
        ("-Infinity", -1.7976931348623157e308),
        ('"0.25"', 0.25),
        ("-0.0", 0.0),
    ],
)
def test_numbers_that_json_lacks(app: ASGIApp, run_id: str, sent: str, answered: object) -> None:
    body = f'{{"run_id": "{run_id}", "key": "m", "value": {sent}, "timestamp": "5", "step": -3}}'
    assert post(app, "runs/log-metric", body.encode()).status == 200
    [point] = get(app, f"metrics/get-history?run_id={run_id}&metric_key=m").json()["metrics"]
    assert point == {"key": "m", "value": answered, "timestamp": 5, "step": -3}


def test_bare_nan_inside_a_text_is_left_alone(app: ASGIApp, run_id: str) -> None:
    body = (
        f'{{"run_id": "{run_id}", "metrics": [{{"key": "m", "value": NaN, "timestamp": 1}}], '
        '"tags": [{"key": "t", "value": "a \\" NaN, Infinity"}]}'
    )
    assert post(app, "runs/log-batch", body.encode()).status == 200
    tags = get(app, f"runs/get?run_id={run_id}").json()["run"]["data"]["tags"]
    assert {"key": "t", "value": 'a " NaN, Infinity'} in tags


def test_history_in_pages(app: ASGIApp, run_id: str) -> None:
    points = [{"key": "m", "value": i, "timestamp": 10 - i, "step": i} for i in range(5)]
    points.append(points[0])  # the same point again is one
    assert post(app, "runs/log-batch", {"run_id": run_id, "metrics": points}).status == 200
    seen, token = [], ""
    while True:
        path = f"metrics/get-history?run_id={run_id}&metric_key=m&max_results=2&page_token={token}"
        page = get(app, path).json()
        seen += [point["timestamp"] for point in page["metrics"]]
        token = page.get("next_page_token", "")
        if not token:
            break
    assert seen == [6, 7, 8, 9, 10]


def test_name_tag_renames_the_run(app: ASGIApp, run_id: str) -> None:
    tag = {"run_id": run_id, "key": "mlflow.runName", "value": "renamed"}
    assert post(app, "runs/set-tag", tag).status == 200
    assert get(app, f"runs/get?run_id={run_id}").json()["run"]["info"]["run_name"] == "renamed"
    update = {
        "run_id": run_id,
        "run_name": "again",
        "status": "FINISHED",
        "end_time": 1700000000000,
    }
    info = post(app, "runs/update", update).json()["run_info"]
    assert (info["run_name"], info["status"], info["end_time"]) == (
        "again",
        "FINISHED",
        1700000000000,
    )
    tags = get(app, f"runs/get?run_id={run_id}").json()["run"]["data"]["tags"]
    assert {"key": "mlflow.runName", "value": "again"} in tags


def test_dataset_inputs_come_back(app: ASGIApp, run_id: str) -> None:
    dataset = {"name": "d", "digest": "abc", "source_type": "local", "source": "{}", "schema": "[]"}
    tags = [{"key": "mlflow.data.context", "value": "train"}, {"key": "x", "value": "y"}]
    body = {"run_id": run_id, "datasets": [{"dataset": dataset, "tags": tags}]}
    for _ in range(2):
        assert post(app, "runs/log-inputs", body).status == 200
    run = get(app, f"runs/get?run_id={run_id}").json()["run"]
    assert run["inputs"]["dataset_inputs"] == [{"dataset": dataset, "tags": tags}]


def test_deleted_experiment_keeps_its_name_and_takes_no_run(app: ASGIApp) -> None:
    made = post(app, "experiments/create", {"name": "doomed"}).json()["experiment_id"]
    assert post(app, "experiments/delete", {"experiment_id": made}).json() == {}
    refused(post(app, "experiments/create", {"name": "doomed"}), "RESOURCE_ALREADY_EXISTS")
    refused(post(app, "runs/create", {"experiment_id": made}))
    found = get(app, "experiments/get-by-name?experiment_name=doomed").json()["experiment"]
    assert found["lifecycle_stage"] == "deleted"
    assert post(app, "experiments/restore", {"experiment_id": made}).json() == {}


# --- logged models and the registry -------------------------------------------------------------


def test_logged_model_from_pending_to_ready(app: ASGIApp, run_id: str) -> None:
    body = {"experiment_id": "0", "name": "clf", "source_run_id": run_id}
    model = post(app, "logged-models", body).json()["model"]["info"]
    path = f"logged-models/{model['model_id']}"
    assert model["status"] == "LOGGED_MODEL_PENDING"
    assert model["artifact_uri"] == f"mlflow-artifacts:/0/models/{model['model_id']}/artifacts"
    answer = post(app, path, {"status": "LOGGED_MODEL_READY"}, "PATCH")
    assert answer.json()["model"]["info"]["status"] == "LOGGED_MODEL_READY"
    refused(post(app, path, {"status": "READY"}, "PATCH"))
    assert (
        post(app, f"{path}/tags", {"tags": [{"key": "a.b", "value": "1"}]}, "PATCH").status == 200
    )
    assert post(app, f"{path}/tags/a.b", {}, "DELETE").json() == {}
    assert post(app, f"{path}/params", {"params": [{"key": "p", "value": "1"}]}).json() == {}
    found = post(app, "logged-models/search", {"experiment_ids": ["0"]}).json()["models"]
    assert model["model_id"] in [item["info"]["model_id"] for item in found]
    assert post(app, path, {}, "DELETE").json() == {}
    refused(get(app, path), "RESOURCE_DOES_NOT_EXIST", 404)


def test_versions_and_aliases(app: ASGIApp) -> None:
    assert post(app, "registered-models/create", {"name": "churn"}).status == 200
    message = refused(
        post(app, "registered-models/create", {"name": "churn"}), "RESOURCE_ALREADY_EXISTS"
    )
    assert message.startswith("Registered Model (name=churn) already exists")
    for number in ("1", "2"):
        body = {"name": "churn", "source": "s3://bucket/first"}
        made = post(app, "model-versions/create", body).json()["model_version"]
        assert made["version"] == number
    alias = {"name": "churn", "alias": "champion", "version": "2"}
    assert post(app, "registered-models/alias", alias).json() == {}
    found = get(app, "registered-models/alias?name=churn&alias=champion").json()
    assert found["model_version"]["aliases"] == ["champion"]
    assert "not found" in refused(get(app, "registered-models/alias?name=churn&alias=nobody"))
    version = {"name": "churn", "version": "2"}
    assert post(app, "model-versions/delete", version, "DELETE").json() == {}
    assert "aliases" not in get(app, "registered-models/get?name=churn").json()["registered_model"]
    message = refused(
        get(app, "model-versions/get?name=churn&version=2"), "RESOURCE_DOES_NOT_EXIST", 404
    )
    assert message == "Model Version (name=churn, version=2) not found"
    body = {"name": "churn", "source": "s3://bucket/model"}
    made = post(app, "model-versions/create", body).json()["model_version"]
    assert made["version"] == "3"
    latest = post(app, "registered-models/get-latest-versions", {"name": "churn"}).json()
    assert [found["version"] for found in latest["model_versions"]] == ["3"]


def test_a_protected_alias_is_refused_with_what_is_missing(
    app: ASGIApp, workspace: Workspace
) -> None:
    post(app, "registered-models/create", {"name": "guarded"})
    for _ in range(2):
        body = {"name": "guarded", "source": "s3://bucket/model"}
        post(app, "model-versions/create", body)
    alias = {"name": "guarded", "alias": "champion", "version": "1"}
    assert post(app, "registered-models/alias", alias).json() == {}
    workspace.registry.protect("guarded", "champion", ["threshold:auc"], approvals=2)
    message = refused(
        post(app, "registered-models/alias", {**alias, "version": "2"}), "PERMISSION_DENIED", 403
    )
    assert "gate threshold:auc was never judged" in message
    assert "2 of 2 approvals" in message
    found = get(app, "registered-models/alias?name=guarded&alias=champion").json()
    assert found["model_version"]["version"] == "1"
    message = refused(
        post(app, "registered-models/alias", {"name": "guarded", "alias": "champion"}, "DELETE")
    )
    assert "protected" in message
    for path, body in (
        ("model-versions/delete", {"name": "guarded", "version": "1"}),
        ("registered-models/delete", {"name": "guarded"}),
    ):
        assert "protected" in refused(post(app, path, body, "DELETE"))


def test_a_deleted_model_frees_its_name(app: ASGIApp, workspace: Workspace) -> None:
    for _ in range(2):
        assert post(app, "registered-models/create", {"name": "fleeting"}).status == 200
        assert post(app, "registered-models/delete", {"name": "fleeting"}, "DELETE").json() == {}
    assert len(workspace.registry.deleted("fleeting")) == 2


@pytest.mark.parametrize(
    "source",
    [
        "/etc/passwd",
        "file:///etc/passwd",
        "C:\\models",
        "models",
        "s3://bucket/%2e%2e/other",
        "s3://bucket/%252e%252e%252fother",
        "mlflow-artifacts:/../../etc",
        "runs:/0123/model",
    ],
)
def test_forged_model_sources_are_refused(app: ASGIApp, source: str) -> None:
    post(app, "registered-models/create", {"name": "forged"})
    refused(post(app, "model-versions/create", {"name": "forged", "source": source}))


@pytest.mark.parametrize("alias", ["latest", "LATEST", "v3", "a/b", "", "x" * 256, "a b"])
def test_reserved_aliases_are_refused(app: ASGIApp, alias: str) -> None:
    post(app, "registered-models/create", {"name": "named"})
    post(app, "model-versions/create", {"name": "named", "source": "s3://b/m"})
    body = {"name": "named", "alias": alias, "version": "1"}
    refused(post(app, "registered-models/alias", body))


def test_pages_of_registered_models(app: ASGIApp) -> None:
    for index in range(3):
        post(app, "registered-models/create", {"name": f"paged-{index}"})
    base = "registered-models/search?max_results=2&filter=name%20LIKE%20'paged-%25'"
    first = get(app, base).json()
    assert [model["name"] for model in first["registered_models"]] == ["paged-0", "paged-1"]
    token = first["next_page_token"]
    second = get(app, f"{base}&page_token={token}").json()
    assert [model["name"] for model in second["registered_models"]] == ["paged-2"]
    refused(get(app, f"registered-models/search?max_results=2&page_token={token}"))
    for limit in (0, -1, 1001):
        refused(get(app, f"registered-models/search?max_results={limit}"))


def test_versions_of_many_clients_are_dense(app: ASGIApp) -> None:
    post(app, "registered-models/create", {"name": "raced"})

    def register(_: int) -> int:
        body = {"name": "raced", "source": "s3://bucket/model"}
        return int(post(app, "model-versions/create", body).json()["model_version"]["version"])

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(register, range(24))) == list(range(1, 25))


# --- artifacts ----------------------------------------------------------------------------------


def test_artifacts_go_in_streamed_and_come_out_as_attachments(app: ASGIApp) -> None:
    parts = [b'{"a": ', b"not json", b""]
    headers = {"Content-Type": "application/json"}
    assert ask(app, "PUT", f"{FILES}/0/r/artifacts/a%20b.json", parts, headers=headers).json() == {}
    answer = ask(app, "GET", f"{FILES}/0/r/artifacts/a%20b.json")
    assert answer.body == b'{"a": not json'
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]
    some = ask(app, "GET", f"{FILES}/0/r/artifacts/a%20b.json", headers={"Range": "bytes=6-8"})
    assert (some.status, some.body) == (206, b"not")


def test_listing_is_relative_and_empty_for_files(app: ASGIApp) -> None:
    for path in ("m/MLmodel", "m/data/model.pkl"):
        ask(app, "PUT", f"{FILES}/0/listed/{path}", b"x")
    found = ask(app, "GET", f"{FILES}?path=0/listed/m").json()["files"]
    assert found == [
        {"path": "MLmodel", "is_dir": False, "file_size": 1},
        {"path": "data", "is_dir": True},
    ]
    assert ask(app, "GET", f"{FILES}?path=0/listed/m/MLmodel").json() == {}
    assert ask(app, "GET", f"{FILES}?path=0/nothing").json() == {}
    run_id = post(app, "runs/create", {"experiment_id": "0"}).json()["run"]["info"]["run_id"]
    ask(app, "PUT", f"{FILES}/0/{run_id}/artifacts/m/MLmodel", b"x")
    listed = get(app, f"artifacts/list?run_id={run_id}&path=m").json()
    assert listed["root_uri"] == f"mlflow-artifacts:/0/{run_id}/artifacts"
    assert listed["files"] == [{"path": "m/MLmodel", "is_dir": False, "file_size": 1}]
    assert ask(app, "DELETE", f"{FILES}/0/listed/m").json() == {}
    refused(ask(app, "GET", f"{FILES}/0/listed/m/MLmodel"), "RESOURCE_DOES_NOT_EXIST", 404)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
@pytest.mark.parametrize(
    "path",
    [
        "../secret",
        "a/../../secret",
        "%2e%2e/secret",
        "%252e%252e/secret",
        "a/%25252e%25252e/secret",
        "/etc/passwd",
        "%2fetc/passwd",
        "C:/secret",
        "a%5c..%5csecret",
        "a%00b",
        "....//x",
        "",
    ],
)
def test_paths_that_climb_are_refused(app: ASGIApp, method: str, path: str) -> None:
    assert "Invalid path" in refused(ask(app, method, f"{FILES}/{path}", b"x"))


def test_a_cut_upload_leaves_nothing(app: ASGIApp, workspace: Workspace) -> None:
    import asyncio

    from starlette.requests import ClientDisconnect

    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": b"half", "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        raise AssertionError("nobody is there to be answered")

    path = f"{FILES}/0/cut/file"
    scope = {
        "type": "http",
        "method": "PUT",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1")],
        "server": ("127.0.0.1", 80),
    }
    with pytest.raises((ClientDisconnect, AssertionError)):
        asyncio.run(app(scope, receive, send))
    refused(ask(app, "GET", path), "RESOURCE_DOES_NOT_EXIST", 404)
    assert isinstance(workspace.blobs, HasPaths)
    stored, _ = workspace.blobs.put(b"whole")
    assert list((workspace.blobs.path(stored).parents[1] / "tmp").iterdir()) == []


# --- what nobody should send --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("runs/log-metric", {}, "'run_id'"),
        ("runs/log-metric", {"key": "a", "value": 1, "timestamp": 1}, "'run_id'"),
        ("runs/log-metric", {"run_id": "RUN", "key": "a", "value": [1], "timestamp": 1}, "value"),
        ("runs/log-metric", {"run_id": "RUN", "key": "a", "value": {}, "timestamp": 1}, "value"),
        ("runs/log-metric", {"run_id": "RUN", "key": "a", "value": "abc", "timestamp": 1}, "value"),
        ("runs/log-metric", {"run_id": "RUN", "key": "a", "value": None, "timestamp": 1}, "value"),
        ("runs/log-metric", {"run_id": "RUN", "key": "a", "value": 10**400, "timestamp": 1}, ""),
        (
            "runs/log-metric",
            {"run_id": "RUN", "key": "a", "value": 1, "timestamp": -1},
            "timestamp",
        ),
        (
            "runs/log-metric",
            {"run_id": "RUN", "key": "a", "value": 1, "timestamp": 2**63},
            "timest",
        ),
        (
            "runs/log-metric",
            {"run_id": "RUN", "key": "a", "value": 1, "timestamp": 1, "step": 2**63},
            "step",
        ),
        ("runs/log-metric", {"run_id": "RUN", "key": "../a", "value": 1, "timestamp": 1}, "key"),
        ("runs/log-metric", {"run_id": "RUN", "key": "a#b", "value": 1, "timestamp": 1}, "key"),
        ("runs/log-metric", {"run_id": "RUN", "key": "", "value": 1, "timestamp": 1}, "key"),
        ("runs/log-metric", {"run_id": "RUN", "key": "a" * 251, "value": 1, "timestamp": 1}, "250"),
        ("runs/log-metric", {"run_id": 5, "key": "a", "value": 1, "timestamp": 1}, "run_id"),
        (
            "runs/log-batch",
            {"run_id": "RUN", "metrics": [{"key": "a", "value": 1, "timestamp": "x"}]},
            "metrics[0].timestamp",
        ),
        ("runs/log-batch", {"run_id": "RUN", "metrics": [{"key": "a"}]}, "metrics[0].value"),
        (
            "runs/log-batch",
            {"run_id": "RUN", "params": [{"key": "a", "value": "1"}, {"key": "a", "value": "2"}]},
            "Duplicate",
        ),
        (
            "runs/log-batch",
            {"run_id": "RUN", "params": [{"key": f"k{i}", "value": ""} for i in range(101)]},
            "100",
        ),
        ("runs/create", {"experiment_id": "0", "start_time": 2**62}, "start_time"),
        ("runs/create", {"experiment_id": "0", "start_time": -(2**62)}, "start_time"),
        (
            "runs/create",
            {
                "experiment_id": "0",
                "run_name": "a",
                "tags": [{"key": "mlflow.runName", "value": "b"}],
            },
            "run_name",
        ),
        ("runs/update", {"run_id": "RUN", "status": "DONE"}, "status"),
        ("runs/search", {"experiment_ids": ["0"], "max_results": 50_001}, "max_results"),
        ("runs/search", {"experiment_ids": ["0"], "max_results": -1}, "max_results"),
        (
            "runs/search",
            {"experiment_ids": ["0"], "filter": "metrics.a > 1 OR 1"},
            "Invalid clause",
        ),
        ("runs/search", {"experiment_ids": ["0"], "filter": "metrics.a > 'x'"}, ""),
        ("runs/search", {"experiment_ids": ["0"], "filter": "start_time > " + "9" * 400}, ""),
        ("runs/search", {"experiment_ids": ["0"], "page_token": "x"}, ""),
        ("runs/search", {"experiment_ids": ["0"], "run_view_type": "SOME"}, "view_type"),
        ("runs/search", {"experiment_ids": "0"}, "experiment_ids"),
        ("experiments/create", {"name": ""}, "'name'"),
        ("experiments/create", {"name": "x" * 501}, "500"),
        ("experiments/create", {"name": "a", "artifact_location": "s3://b/../c"}, "artifact"),
        ("experiments/create", {"name": ["a"]}, "name"),
        ("experiments/create", {"name": "a", "tags": {"key": 1}}, "tags"),
        ("registered-models/create", {"name": "a/b"}, "name"),
        ("registered-models/create", {"name": " "}, "name"),
        ("runs/log-model", {"run_id": "RUN", "model_json": "{"}, "model_json"),
        ("runs/log-model", {"run_id": "RUN", "model_json": "[" * 5000}, "model_json"),
        ("runs/log-model", {"run_id": "RUN", "model_json": "{}"}, "flavors"),
    ],
)
def test_bad_values_are_400_and_name_the_field(
    app: ASGIApp, run_id: str, path: str, body: dict[str, Any], said: str
) -> None:
    text = json.dumps(body).replace('"RUN"', f'"{run_id}"')
    assert said in refused(post(app, path, text.encode()))


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"name": ' + b"[" * 1000 + b"]" * 1000 + b"}",
        b'{"name": "a\\u0000b"}',
        b'{"name": "\\ud800"}',
        b'{"name": "a", "name": ',
        b'{"a": NaN, "b": "unclosed ' + b'\\"' * 50_000,
    ],
)
@pytest.mark.parametrize("path", ["experiments/create", "runs/search", "logged-models/m-0/tags"])
def test_bodies_that_are_no_json_object_of_ours_are_400(
    app: ASGIApp, path: str, body: bytes
) -> None:
    method = "PATCH" if path.endswith("tags") else "POST"
    answer = post(app, path, body, method)
    if b"name" in body and path != "experiments/create" and answer.status == 200:
        return  # the field is unknown there, and what is unknown is ignored
    assert answer.status in (400, 404), answer.text
    assert len(answer.body) < 1000


def test_limits_of_bodies(app: ASGIApp, run_id: str) -> None:
    tag = {"key": "k", "value": "x" * 1_000_000}
    assert "1000000" in refused(post(app, "runs/log-batch", {"run_id": run_id, "tags": [tag]}))
    parts = [b"x" * (1 << 20)] * 17
    answer = ask(app, "POST", f"{API}/runs/create", parts)
    assert answer.status == 413
    wrong = ask(app, "POST", f"{API}/runs/create", b"a=b", headers={"Content-Type": "text/plain"})
    assert "Content-Type" in refused(wrong)


@pytest.mark.parametrize(
    "path",
    [
        "runs/get",
        "runs/get?run_id=",
        "experiments/get?experiment_id=",
        "metrics/get-history?run_id=a&metric_key=m&max_results=0",
        "metrics/get-history?run_id=a&metric_key=m&max_results=x",
        "metrics/get-history?run_id=a&metric_key=m&page_token=AAAA",
        "metrics/get-history-bulk-interval?run_ids=a&metric_key=m&start_step=1",
        "metrics/get-history-bulk-interval?metric_key=m",
        "metrics/get-history-bulk-interval?run_ids=a&metric_key=m&max_results=2501",
        "model-versions/get?name=a&version=x",
        "model-versions/get?name=a&version=%D9%A3",
        "registered-models/search?filter=%00",
        "registered-models/search?filter=%ff",
        "registered-models/search?order_by=name&order_by=name",
        "registered-models/search?order_by=secret",
    ],
)
def test_bad_queries_are_400(app: ASGIApp, path: str) -> None:
    refused(get(app, path))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("runs/get?run_id=none", "Run with id=none not found"),
        ("experiments/get?experiment_id=77", "No Experiment with id=77 exists"),
        ("registered-models/get?name=no", "Registered Model with name=no not found"),
    ],
)
def test_unknown_things_are_404_in_the_words_clients_match(
    app: ASGIApp, path: str, message: str
) -> None:
    assert refused(get(app, path), "RESOURCE_DOES_NOT_EXIST", 404) == message


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", f"{API}/nothing"),
        ("GET", "/api/2.0/"),
        ("POST", "/api/3.0/mlflow/traces/metrics/of/all"),
        ("GET", f"{API}/logged-models/a/b/c/d"),
    ],
)
def test_what_is_not_served_is_404_as_json(app: ASGIApp, method: str, path: str) -> None:
    refused(ask(app, method, path, b"{}"), "ENDPOINT_NOT_FOUND", 404)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
_FIELDS = st.sampled_from(
    [
        "run_id",
        "run_uuid",
        "experiment_id",
        "experiment_ids",
        "name",
        "key",
        "value",
        "timestamp",
        "step",
        "metrics",
        "params",
        "tags",
        "filter",
        "order_by",
        "max_results",
        "page_token",
        "version",
        "alias",
        "source",
        "status",
        "start_time",
        "end_time",
        "datasets",
        "models",
        "new_name",
        "tag_key",
        "model_json",
        "trace",
        "assessment",
        "locations",
        "request_ids",
        "trace_ids",
        "events",
        "url",
    ]
)
_CALLS = st.sampled_from(
    [
        (method, path.removeprefix("mlflow/").replace("{model_id}", "m-0"))
        for door in mlflow.DOORS
        for method, path in door.calls
        if method != "GET"
    ]
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(call=_CALLS, body=st.dictionaries(_FIELDS, _JSON, max_size=5))
def test_no_body_whatever_makes_a_5xx(
    app: ASGIApp, run_id: str, call: tuple[str, str], body: dict[str, Any]
) -> None:
    method, path = call
    answer = post(app, path, {"run_id": run_id, "name": "n", "key": "k", **body}, method)
    assert answer.status < 500, answer.text
    assert "Traceback" not in answer.text
    assert "SELECT" not in answer.text
