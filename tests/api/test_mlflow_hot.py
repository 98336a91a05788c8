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

    for name in ("log_known", "log"):  # a group of points, and one that goes the other way
        monkeypatch.setattr(workspace.tracking, name, broken)
        answer = post(
            app, "runs/log-metric", {"run_id": run_id, "key": name, "value": 1, "timestamp": 1}
        )
        assert (answer.status, answer.json()["error_code"]) == (500, "INTERNAL_ERROR")
        assert "secret" not in answer.text
        monkeypatch.undo()


def test_points_that_come_at_once_are_few_commits_and_each_is_answered_for_itself(
    app: ASGIApp, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, run_id: str
) -> None:
    post(app, "runs/log-metric", {"run_id": run_id, "key": "m", "value": 0, "timestamp": 1})
    commits = []
    hot = workspace.catalog.hot

    def counted(work: Any) -> Any:
        commits.append(1)
        return hot(work)

    monkeypatch.setattr(workspace.catalog, "hot", counted)
    asked = [{"run_id": run_id, "key": "m", "value": n, "timestamp": n} for n in range(1, 61)]
    asked[7]["run_id"] = "nobody"
    asked[8]["key"] = "a new name"
    asked[9]["key"] = "#"
    asked[10]["value"] = "x"
    asked[11] |= {"run_id": "", "run_uuid": run_id}

    async def one(fields: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        sent: list[Message] = []
        body = json.dumps(fields).encode()
        coming = [{"type": "http.request", "body": body}]

        async def receive() -> Message:
            return coming.pop(0) if coming else await asyncio.Event().wait()  # type: ignore

        async def send(message: Message) -> None:
            sent.append(message)

        headers = [
            (b"host", b"localhost"),
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ]
        path = f"{API}/runs/log-metric"
        scope = {"type": "http", "method": "POST", "scheme": "http", "path": path}
        scope |= {"headers": headers, "query_string": b"", "client": ("127.0.0.1", 1)}
        await app(scope, receive, send)
        return sent[0]["status"], json.loads(sent[1]["body"])

    async def all_of_them() -> list[tuple[int, dict[str, Any]]]:
        return list(await asyncio.gather(*map(one, asked)))

    answers = asyncio.run(all_of_them())
    wrong = {index: answer for index, answer in enumerate(answers) if answer != (200, {})}
    assert {index: status for index, (status, _) in wrong.items()} == {7: 404, 9: 400, 10: 400}
    assert wrong[7][1]["message"] == "Run with id=nobody not found"
    # The first alone, all that came meanwhile, and the one with a run that is not there again.
    assert len(commits) <= 4
    history = workspace.tracking.history(run_id, "m", limit=100)
    assert len(history) == 61 - 4
    assert [point.value for point in workspace.tracking.history(run_id, "a new name")] == [9]


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
