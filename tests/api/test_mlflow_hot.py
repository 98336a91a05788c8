"""The calls that are answered before the framework: as the others, and never with a traceback."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.types import ASGIApp, Message

from everloop.server import make_app
from everloop.workspace import Workspace
from tests.servers import Answer, ask

API = "/api/2.0/mlflow"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    with Workspace(str(tmp_path_factory.mktemp("hot") / ".everloop"), actor="tester") as made:
        yield made


@pytest.fixture(scope="module")
def app(workspace: Workspace) -> ASGIApp:
    return make_app(workspace)


@pytest.fixture
def run_id(app: ASGIApp) -> str:
    made = post(app, "runs/create", {"experiment_id": "0"}).json()
    return str(made["run"]["info"]["run_id"])


def post(app: ASGIApp, path: str, body: Any) -> Answer:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return ask(app, "POST", f"{API}/{path}", data, headers={"Content-Type": "application/json"})


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("log-metric", {"key": "m", "value": 1.5, "timestamp": 1, "step": 3}),
        ("log-metric", {"key": "m", "value": "NaN", "timestamp": 1}),
        ("log-metric", {"key": "..", "value": 1.5, "timestamp": 1}),
        ("log-metric", {"key": "m", "value": {}, "timestamp": 1}),
        ("log-metric", {"key": "m\0", "value": 1, "timestamp": 1}),
        ("log-metric", {"run_id": "nobody", "key": "m", "value": 1, "timestamp": 1}),
        ("log-batch", {"metrics": [{"key": "m", "value": 2, "timestamp": 1}]}),
        ("log-batch", {"params": [{"key": "a", "value": "1"}, {"key": "a", "value": "2"}]}),
        ("log-batch", {"metrics": [{"key": "m", "timestamp": 1}]}),
    ],
)
def test_hot_calls_answer_as_the_same_calls_the_usual_way(
    app: ASGIApp, run_id: str, path: str, fields: dict[str, Any]
) -> None:
    body = json.dumps({"run_id": run_id, **fields}).encode()
    usual = ask(
        app,
        "POST",
        f"/api/2.0/preview/mlflow/runs/{path}",
        body,
        headers={"Content-Type": "application/json"},
    )
    hot = post(app, f"runs/{path}", body)
    assert (hot.status, hot.text) == (usual.status, usual.text)
    assert hot.headers.items() >= {"content-type": "application/json"}.items()
    assert hot.headers["x-content-type-options"] == "nosniff"


def test_hot_call_that_fails_shows_no_traceback(
    app: ASGIApp, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, run_id: str
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret inside")

    monkeypatch.setattr(workspace.tracking, "log", broken)
    answer = post(
        app, "runs/log-metric", {"run_id": run_id, "key": "m", "value": 1, "timestamp": 1}
    )
    assert (answer.status, answer.json()["error_code"]) == (500, "INTERNAL_ERROR")
    assert "secret" not in answer.text


def test_a_hot_call_whose_client_goes_away_logs_nothing(app: ASGIApp, run_id: str) -> None:
    body = json.dumps({"run_id": run_id, "key": "m", "value": 1, "timestamp": 1}).encode()
    sent: list[Message] = []
    coming = [{"type": "http.request", "body": body[:9], "more_body": True}]

    async def receive() -> Message:
        return coming.pop(0) if coming else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "scheme": "http",
        "path": f"{API}/runs/log-metric",
        "query_string": b"",
        "headers": [
            (b"host", b"127.0.0.1"),
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ],
    }
    asyncio.run(app(scope, receive, send))
    assert sent == []
    assert "metrics" not in ask(app, "GET", f"{API}/runs/get?run_id={run_id}").json()["run"].get(
        "data", {}
    )
