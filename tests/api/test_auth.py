"""Doors that refuse: without credentials nothing but health is answered, by any path or trick."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.types import ASGIApp

import everloop as ev
from everloop.access import secrets
from everloop.access.directory import Directory
from everloop.access.roles import is_allowed
from everloop.access.throttle import FREE_OF_NAME
from everloop.api import auth, mlflow
from everloop.api.serving import WorkerInference
from everloop.core.artifact import ModelArtifact
from everloop.core.time import ManualClock
from everloop.errors import BackendError, GateRefused, InvalidInput, NotAllowed, NotAuthenticated
from everloop.server import make_app
from everloop.serving.log import PredictionLog
from everloop.serving.metrics import ServingMetrics
from everloop.workspace import Workspace
from tests.servers import Answer, ask, serve
from tests.unit.serving_fakes import FakeSink, router
from tests.workspaces import START

PASSWORD = "correct horse battery"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
JSON = {"content-type": "application/json"}


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quick hash: how slow it is is not what is tried here."""
    monkeypatch.setattr(secrets, "_LOG_N", 4)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START)


@pytest.fixture
def ws(tmp_path: Path, clock: ManualClock) -> Iterator[Workspace]:
    with ev.open(tmp_path / ".everloop", clock=clock, actor="server") as workspace:
        for name, role in (("ann", "admin"), ("bob", "contributor"), ("vic", "viewer")):
            workspace.access.create_user(name, role, password=f"{PASSWORD} {name}")
        workspace.access.create_user("max", "maintainer")
        yield workspace


@pytest.fixture
def app(ws: Workspace) -> ASGIApp:
    return make_app(ws)


def basic(name: str, password: str | None = None) -> dict[str, str]:
    pair = f"{name}:{f'{PASSWORD} {name}' if password is None else password}"
    return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


def bearer(ws: Workspace, user: str, **options: Any) -> dict[str, str]:
    return {"Authorization": f"Bearer {ws.access.create_token(user, **options).secret}"}


def paths_of(app: ASGIApp) -> list[str]:
    """An address for every route that there is, in any layer."""
    framework: Any = app
    while not isinstance(framework, Starlette):
        framework = getattr(framework, "_app", None) or framework._framework
    found = [re.sub(r"{[^}]*}", "1", getattr(route, "path", "")) for route in framework.routes]
    for door in mlflow.DOORS:
        for _, path in door.calls:
            found += [f"/{api}/2.0/{re.sub(r'{[^}]*}', '1', path)}" for api in ("api", "ajax-api")]
    described = ask(app, "GET", "/api/openapi.json", headers=basic("ann")).json()
    found += described["paths"]
    found += ["/static/everloop.css", "/static/", "/nothing", "/v2/nothing", "/docs", "//", "*"]
    found += ["/v2", "/v2/models/m", "/v2/models/m/ready", "/v2/models/m/infer", "/v2/models/stats"]
    found += ["/v2/repository/index", "/invocations", "/invocations/m", "/ping"]
    return sorted(set(found) - auth.OPEN)


def test_nothing_is_answered_without_credentials(app: ASGIApp) -> None:
    paths = paths_of(app)
    assert len(paths) > 300
    for path, method in itertools.product(paths, METHODS):
        answer = ask(app, method, path)
        assert answer.status == 401, f"{method} {path}"
        if method == "POST" and path.startswith("/hooks/"):
            continue  # by a signature, which no browser can be asked for
        assert "www-authenticate" in answer.headers


def test_health_is_open(ws: Workspace) -> None:
    with serve(ws) as url, httpx.Client(base_url=url) as client:
        for path in sorted(auth.OPEN):
            assert client.get(path).status_code == 200
            wrong = {"Authorization": "Bearer wrong"}
            assert client.get(path, headers=wrong).status_code == 200


@pytest.mark.parametrize("path", [
    "/health/", "/health/..", "//health", "/%68ealth", "/health%2f", "/HEALTH", "/health;x",
    "/health%00",
    "/v2/health%2Flive", "/v2/health/live/../../models", "/v2//health/live", "/v2/health/live%2F..",
    "/health/../api/2.0/mlflow/experiments/search", "/v2/health/ready/x", "/api/v1/health", "/ping",
])  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_only_looks_like_health_is_closed(app: ASGIApp, method: str, path: str) -> None:
    assert ask(app, method, path).status == 401


def test_each_door_refuses_in_its_own_words(app: ASGIApp) -> None:
    answer = ask(app, "GET", "/api/2.0/mlflow/experiments/search")
    assert answer.headers["www-authenticate"] == 'Basic realm="mlflow"'
    assert answer.json()["error_code"] == "UNAUTHENTICATED"
    answer = ask(app, "POST", "/v2/models/m/infer", {})
    assert set(answer.json()) == {"error"}
    answer = ask(app, "POST", "/api/v1/registry/models", {})
    assert answer.json()["error_code"] == "not_authenticated"
    for path in ("/", "/metrics", "/api/v1/lineage", "/v2", "/static/everloop.css"):
        headers = _headers(app, path)
        assert b'Bearer realm="everloop"' in headers
        assert b'Basic realm="everloop", charset="UTF-8"' in headers


def _headers(app: ASGIApp, path: str) -> list[bytes]:
    sent: list[Any] = []

    async def run() -> None:
        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        host = (b"host", b"127.0.0.1")
        scope = {
            "type": "http", "method": "GET", "path": path, "raw_path": path.encode(),
            "query_string": b"", "headers": [host], "scheme": "http", "client": None,
        }  # fmt: skip
        await app(scope, receive, send)

    asyncio.run(run())
    return [value for name, value in sent[0]["headers"] if name == b"www-authenticate"]


@pytest.mark.parametrize("given", [
    "", "Basic", "Basic ", "Basic !!!", "Basic YW5u", "Bearer", "Bearer ", "Digest x", "Token x",
    "Bearer evl_", "Basic " + "A" * 5000, "Bearer " + "A" * 5000, "Basic OnBhc3N3b3Jk", "\xff\xfe",
])  # fmt: skip
def test_credentials_that_are_none_are_401(app: ASGIApp, given: str) -> None:
    assert ask(app, "GET", "/", headers={"Authorization": given}).status == 401


def test_two_headers_are_401(app: ASGIApp) -> None:
    pairs = [("Authorization", "Bearer x"), *basic("ann").items()]
    assert ask(app, "GET", "/", headers=pairs).status == 401


@pytest.mark.parametrize(("name", "password", "status"), [
    ("ann", None, 200), ("vic", None, 200), ("ann", "wrong password", 401), ("ann", "", 401),
    ("Ann", f"{PASSWORD} ann", 401), ("eve", "wrong password", 401), ("", "", 401),
    ("max", "", 401), ("max", "wrong password", 401), ("ann", f"{PASSWORD} vic", 401),
])  # fmt: skip
def test_name_and_password(app: ASGIApp, name: str, password: str | None, status: int) -> None:
    for _ in range(2):
        assert ask(app, "GET", "/overview.json", headers=basic(name, password)).status == status


def test_wrong_names_and_passwords_are_told_alike(app: ASGIApp) -> None:
    told = {
        ask(app, "GET", "/", headers=basic(name, "wrong")).text for name in ("ann", "eve", "max")
    }
    assert len(told) == 1


def test_a_token_lives_until_it_is_revoked(app: ASGIApp, ws: Workspace) -> None:
    made = ws.access.create_token("max")
    headers = {"Authorization": f"bearer {made.secret}"}
    assert ask(app, "GET", "/overview.json", headers=headers).status == 200
    ws.access.revoke_token(made.token.id)
    assert ask(app, "GET", "/overview.json", headers=headers).status == 401


def test_a_token_lives_until_it_expires(app: ASGIApp, ws: Workspace, clock: ManualClock) -> None:
    headers = bearer(ws, "max", expires="1h")
    assert ask(app, "GET", "/overview.json", headers=headers).status == 200
    clock.advance(minutes=59)
    assert ask(app, "GET", "/overview.json", headers=headers).status == 200
    clock.advance(minutes=1)
    assert ask(app, "GET", "/overview.json", headers=headers).status == 401


def test_a_disabled_user_is_out_with_all_tokens(app: ASGIApp, ws: Workspace) -> None:
    both = (bearer(ws, "bob"), basic("bob"))
    for disabled, status in ((False, 200), (True, 401), (False, 200)):
        ws.access.disable("bob", disabled)
        for headers in both:
            assert ask(app, "GET", "/overview.json", headers=headers).status == status


def test_a_new_password_ends_the_one_before_at_once(app: ASGIApp, ws: Workspace) -> None:
    assert ask(app, "GET", "/", headers=basic("bob")).status == 200
    ws.access.set_password("bob", "quite another one")
    assert ask(app, "GET", "/", headers=basic("bob")).status == 401
    assert ask(app, "GET", "/", headers=basic("bob", "quite another one")).status == 200


def test_a_lower_role_counts_at_once(app: ASGIApp, ws: Workspace) -> None:
    path, headers = "/api/v1/tracking/create_experiment", bearer(ws, "bob")
    assert ask(app, "POST", path, {"name": "one"}, headers=headers).status == 200
    ws.access.set_role("bob", "viewer")
    assert ask(app, "POST", path, {"name": "two"}, headers=headers).status == 403


def test_what_another_process_takes_away_is_heeded_within_seconds(
    app: ASGIApp, ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = ws.access.create_token("max")
    headers = {"Authorization": f"Bearer {made.secret}"}
    assert ask(app, "GET", "/overview.json", headers=headers).status == 200
    with ev.open(ws.location) as other:
        other.access.revoke_token(made.token.id)
    deadline = time.monotonic() + 5
    while ask(app, "GET", "/overview.json", headers=headers).status == 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)


# Roles, at every door


WRITES: list[tuple[str, str, Any, dict[str, str]]] = [
    ("POST", "/api/2.0/mlflow/experiments/create", {"name": "new"}, {}),
    ("POST", "/api/2.0/mlflow/runs/log-metric",
     {"run_id": "RUN", "key": "a", "value": 1, "timestamp": 1}, {}),
    ("POST", "/ajax-api/2.0/mlflow/runs/log-batch",
     {"run_id": "RUN", "metrics": [{"key": "b", "value": 1, "timestamp": 1}]}, {}),
    ("PUT", "/api/2.0/mlflow-artifacts/artifacts/0/x/file.txt", b"bytes", {}),
    ("POST", "/ajax-api/2.0/mlflow/upload-artifact?run_uuid=RUN&path=x", b"bytes", {}),
    ("POST", "/api/2.0/mlflow-artifacts/mpu/create/0", {"path": "x", "num_parts": 1}, {}),
    ("POST", "/api/v1/tracking/create_run", {"experiment": "native"}, {}),
    ("POST", "/api/v1/lineage",
     {"eventTime": "2013-01-01T00:00:00Z", "dataset": {"namespace": "a", "name": "b"}}, {}),
    ("POST", "/v1/traces", {"resourceSpans": [{"scopeSpans": [{"spans": [{
        "traceId": "ab" * 16, "spanId": "cd" * 8, "name": "n",
        "startTimeUnixNano": "1", "endTimeUnixNano": "2"}]}]}]}, {"x-mlflow-experiment-id": "0"}),
]  # fmt: skip


def send(
    app: ASGIApp, write: tuple[str, str, Any, dict[str, str]], run: str, who: dict[str, str]
) -> Answer:
    method, target, body, headers = write
    if isinstance(body, dict):
        body = {key: run if value == "RUN" else value for key, value in body.items()}
    return ask(app, method, target.replace("RUN", run), body, headers={**headers, **who})


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write[1].split("?")[0])
def test_a_viewer_changes_nothing_and_a_contributor_does(
    app: ASGIApp, ws: Workspace, write: tuple[str, str, Any, dict[str, str]]
) -> None:
    run = ws.tracking.create_run("e").id
    for who in (basic("vic"), bearer(ws, "bob", role="viewer")):
        answer = send(app, write, run, who)
        assert answer.status == 403, answer.text
        assert answer.json()["error_code"] in ("PERMISSION_DENIED", "not_allowed")
    assert send(app, write, run, basic("bob")).status in (200, 201)


def test_no_way_around_who_may_promote(ws: Workspace) -> None:
    files = {"model.txt": b"1"}
    contributor = ws.access.create_token("bob").secret
    with serve(ws) as url, ev.open(url, token=contributor) as bob:
        made = ModelArtifact(flavor="lightgbm", files=files)
        with pytest.raises(NotAllowed, match="model:promote"):
            bob.registry.register("churn", made, alias="champion")
        version = bob.registry.register("churn", made)
        assert (version.version, version.actor) == (1, "bob")
        for move in (
            lambda: bob.registry.set_alias("churn", "champion", 1),
            lambda: bob.registry.set_stage("churn", 1, "Production"),
            lambda: bob.registry.set_state("churn", 1, "candidate"),
            lambda: bob.registry.delete_version("churn", 1),
        ):
            with pytest.raises(NotAllowed):
                move()


def test_every_native_method_heeds_the_table(app: ASGIApp, ws: Workspace) -> None:
    described = ask(app, "GET", "/api/openapi.json", headers=basic("vic")).json()["paths"]
    known = {"viewer": basic("vic"), "contributor": basic("bob"), "maintainer": bearer(ws, "max")}
    for path, told in described.items():
        needed = told["post"]["x-everloop-action"]
        for role, who in known.items():
            # A body that is none: whoever may, gets as far as being told so.
            answer = ask(app, "POST", path, b"no JSON", headers=who)
            assert (answer.status == 403) is not is_allowed(role, needed), (path, role)


def test_pages_and_metrics_are_for_viewers(app: ASGIApp) -> None:
    for path in ("/", "/overview.json", "/metrics", "/version", "/static/everloop.css"):
        assert ask(app, "GET", path, headers=basic("vic")).status == 200


def test_inference_is_for_viewers_and_opens_in_the_name_of_the_server(ws: Workspace) -> None:
    with serve(ws) as url, httpx.Client(base_url=url, headers=basic("vic")) as client:
        assert client.get("/v2").status_code == 200
        assert client.post("/v2/models/none/infer", json={}).status_code == 404


# Who acts


def test_a_header_cannot_state_another_name(app: ASGIApp, ws: Workspace) -> None:
    for who in (basic("bob"), bearer(ws, "bob")):
        body = {"experiment": "e"}
        headers = {**who, "Everloop-Actor": "ann"}
        answer = ask(app, "POST", "/api/v1/tracking/create_run", body, headers=headers)
        assert ws.lineage.events(newest=True, limit=1)[0].actor == "bob"
        assert ws.tracking.run(answer.json()["value"]["id"]).actor == "bob"
    body = {"run_name": "x", "experiment_id": "0", "user_id": "ann"}
    ask(app, "POST", "/api/2.0/mlflow/runs/create", body, headers=basic("bob"))
    assert ws.lineage.events(newest=True, limit=1)[0].actor == "bob"


def test_four_eyes_see_through_a_token(ws: Workspace) -> None:
    by_token, by_password = ws.access.create_token("max").secret, f"{PASSWORD} ann"
    with serve(ws) as url:
        host = url.removeprefix("http://")
        with (
            ev.open(url, token=by_token, actor="somebody else") as max_,
            ev.open(f"http://ann:{by_password.replace(' ', '%20')}@{host}") as ann,
        ):
            files = {"model.txt": b"1"}
            max_.registry.register("churn", ModelArtifact(flavor="lightgbm", files=files))
            max_.registry.protect("churn", "champion", approvals=1)
            with pytest.raises(NotAllowed, match="max made churn/1"):
                max_.registry.approve("churn", 1)
            with pytest.raises(GateRefused):
                max_.registry.set_alias("churn", "champion", 1)
            assert ann.registry.approve("churn", 1).actor == "ann"
            max_.registry.set_alias("churn", "champion", 1)


def test_the_server_acts_for_nobody_where_nobody_logs_in(tmp_path: Path) -> None:
    with ev.open(tmp_path / "laptop", actor="server") as laptop:
        app = make_app(laptop)
        headers = {"Everloop-Actor": "ann", "Authorization": "Bearer of-something-else"}
        body = {"experiment": "e"}
        answer = ask(app, "POST", "/api/v1/tracking/create_run", body, headers=headers)
        assert answer.json()["value"]["actor"] == "ann"
        laptop.access.create_user("ann", "admin")
        assert ask(app, "POST", "/api/v1/tracking/create_run", body).status == 401


# What it costs


def counted_scrypt(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    real, calls = hashlib.scrypt, []

    def scrypt(*args: Any, **options: Any) -> bytes:
        calls.append(time.monotonic())
        time.sleep(0.05)
        return real(*args, **options)

    monkeypatch.setattr(hashlib, "scrypt", scrypt)
    return calls


def test_a_password_is_checked_once(
    app: ASGIApp, ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted_scrypt(monkeypatch)
    for _ in range(20):
        assert ask(app, "GET", "/version", headers=basic("ann")).status == 200
    assert len(calls) == 1


def test_many_at_once_share_one_check(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(ws) as url, ThreadPoolExecutor(24) as pool:
        calls = counted_scrypt(monkeypatch)

        def get(number: int) -> int:
            who = ("ann", "bob", "vic")[number % 3]
            return httpx.get(f"{url}/version", auth=(who, f"{PASSWORD} {who}")).status_code

        assert list(pool.map(get, range(48))) == [200] * 48
        assert len(calls) == 3


def test_a_request_asks_no_database_about_users(
    app: ASGIApp, ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    who = (basic("ann"), bearer(ws, "max"))
    for headers in who:
        ask(app, "GET", "/version", headers=headers)
    monkeypatch.setattr(auth, "_FRESH_S", 60.0)
    monkeypatch.setattr(Directory, "refresh", lambda self: pytest.fail("asked"))
    for headers in who * 20:
        assert ask(app, "GET", "/version", headers=headers).status == 200


def test_who_was_known_is_answered_while_the_catalog_is_away(
    app: ASGIApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask(app, "GET", "/version", headers=basic("ann")).status == 200
    asked = []

    def away(self: Directory) -> None:
        asked.append(1)
        raise BackendError("the catalog is away")

    monkeypatch.setattr(Directory, "refresh", away)
    monkeypatch.setattr(auth, "_STALE_S", -1.0)
    monkeypatch.setattr(auth, "_FRESH_S", -1.0)
    for _ in range(5):
        assert ask(app, "GET", "/version", headers=basic("ann")).status == 200
        assert ask(app, "GET", "/version", headers=basic("eve", "wrong one")).status in (401, 429)
    assert asked


def test_a_catalog_that_hangs_holds_up_nobody_for_long(
    app: ASGIApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask(app, "GET", "/version", headers=basic("ann")).status == 200
    let_go = threading.Event()
    monkeypatch.setattr(Directory, "refresh", lambda self: let_go.wait(30))
    monkeypatch.setattr(Directory, "age_s", property(lambda self: 100.0))
    monkeypatch.setattr(auth, "_PATIENCE_S", 0.2)
    try:
        for _ in range(3):
            assert ask(app, "GET", "/version", headers=basic("ann")).status == 200
    finally:
        let_go.set()


def test_a_catalog_that_was_never_read_lets_nobody_in(
    app: ASGIApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(self: Directory) -> None:
        raise BackendError("the catalog is away")

    monkeypatch.setattr(Directory, "refresh", away)
    assert ask(app, "GET", "/version", headers=basic("ann")).status == 503


# Who tries


def test_wrong_passwords_are_throttled_and_the_right_one_still_is_known(app: ASGIApp) -> None:
    assert ask(app, "GET", "/", headers=basic("ann")).status == 200
    seen = [ask(app, "GET", "/", headers=basic("ann", f"wrong {n}")).status for n in range(20)]
    assert seen == [401] * FREE_OF_NAME + [429] * (20 - FREE_OF_NAME)
    assert ask(app, "GET", "/", headers=basic("ann")).status == 200
    answer = ask(app, "GET", "/api/2.0/mlflow/experiments/search", headers=basic("ann", "wrong"))
    assert answer.json()["error_code"] == "REQUEST_LIMIT_EXCEEDED"
    assert int(answer.headers["retry-after"]) >= 1
    assert ask(app, "GET", "/", headers=basic("eve", "wrong")).status == 401


def test_names_that_are_not_there_are_throttled_alike(app: ASGIApp) -> None:
    for name in ("eve", "max", "vic"):
        seen = [ask(app, "GET", "/", headers=basic(name, f"wrong {n}")).status for n in range(8)]
        assert seen == [401] * FREE_OF_NAME + [429] * (8 - FREE_OF_NAME), name


# Odd ends


def test_a_part_of_an_upload_needs_its_own_address_alone(app: ASGIApp, ws: Workspace) -> None:
    body = {"path": "model.bin", "num_parts": 1}
    base = "/api/2.0/mlflow-artifacts/mpu"
    begun = ask(app, "POST", f"{base}/create/0/run", body, headers=basic("bob")).json()
    address = begun["credentials"][0]["url"].partition("127.0.0.1:7410")[2]
    assert ask(app, "PUT", address, b"bytes").status == 200
    assert ask(app, "GET", address).status == 401
    assert ask(app, "PUT", f"{base}/parts/{'0' * 32}/1", b"bytes").status == 404
    for odd in (f"{base}/parts/{'0' * 31}/1", f"{base}/parts/../create/0", f"{base}/parts/a/1"):
        assert ask(app, "PUT", odd, b"bytes").status == 401
    done = {"path": "model.bin", "upload_id": begun["upload_id"], "parts": [{"part_number": 1}]}
    assert ask(app, "POST", f"{base}/complete/0/run", done).status == 401


def test_a_viewers_upload_is_refused_before_it_is_read(app: ASGIApp, ws: Workspace) -> None:
    path = "/api/2.0/mlflow-artifacts/artifacts/0/run/model.bin"
    assert ask(app, "PUT", path, [b"x" * 1000] * 3, headers=basic("vic")).status == 403
    assert ws.tracking.list_artifacts("0") == []


def test_other_protocols_are_refused(ws: Workspace) -> None:
    sent: list[Any] = []

    async def run() -> None:
        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            return {"type": "websocket.connect"}

        await make_app(ws)({"type": "websocket", "path": "/health", "headers": []}, receive, send)

    asyncio.run(run())
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_a_page_of_another_site_cannot_use_a_browsers_login(app: ASGIApp) -> None:
    headers = {**basic("ann"), "Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
    answer = ask(app, "POST", "/api/v1/tracking/create_run", {"experiment": "e"}, headers=headers)
    assert answer.status == 403


def test_further_names_of_the_server_are_answered(ws: Workspace) -> None:
    app = make_app(ws, names=("MLops.example",))
    assert ask(app, "GET", "/health", host="mlops.example:443").status == 200
    assert ask(app, "GET", "/health", host="evil.example").status == 403


def test_a_stream_ends_when_its_token_does(ws: Workspace) -> None:
    made = ws.access.create_token("vic")
    run = ws.tracking.create_run("e").id
    headers = {"Authorization": f"Bearer {made.secret}"}
    with serve(ws) as url, httpx.Client(timeout=20) as client:
        address = f"{url}/api/v1/runs/{run}/stream?key=loss"
        with client.stream("GET", address, headers=headers) as answer:
            assert answer.status_code == 200
            ws.access.revoke_token(made.token.id)
            assert b"event: end" not in answer.read()  # it ended, and the run did not


def test_a_worker_asks_too(ws: Workspace) -> None:
    log = PredictionLog(FakeSink())
    metrics = ServingMetrics(CollectorRegistry())
    worker = WorkerInference(router(), log, metrics, "127.0.0.1", login=ws.login)
    body = {"dataframe_records": [{"x": 1.0, "y": 2.0}]}
    made = ws.access.create_token("vic")
    headers = {"Authorization": f"Bearer {made.secret}"}
    try:
        for path in ("/v2/health/live", "/v2/health/ready", "/health"):
            assert ask(worker, "GET", path).status == 200
        for path in ("/v2", "/metrics", "/ping", "/version", "/v2/models/delay", "/"):
            assert ask(worker, "GET", path).status == 401
        assert ask(worker, "POST", "/invocations", body).status == 401
        assert ask(worker, "POST", "/invocations", body, headers=headers).status == 200
        ws.access.revoke_token(made.token.id)
        assert ask(worker, "POST", "/invocations", body, headers=headers).status == 401
    finally:
        log.close()


# The client


def test_the_client_logs_in_as_it_is_told(
    ws: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = ws.access.create_token("bob").secret
    monkeypatch.delenv("EVERLOOP_TOKEN", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with serve(ws) as url:
        host = url.removeprefix("http://")

        def author(location: str, **options: Any) -> str:
            with ev.open(location, actor="eve", **options) as remote:
                assert PASSWORD not in repr(remote)
                assert "%20" not in repr(remote)
                made = remote.data.commit("flights", pa.table({"a": [time.monotonic()]}))
                return made.author

        with pytest.raises(NotAuthenticated, match="EVERLOOP_TOKEN"):
            author(url)
        with pytest.raises(NotAuthenticated, match="not valid"):
            author(url, token="evl_wrong")
        with pytest.raises(InvalidInput, match="none of ours"):
            author(url, token="line\nbreak")
        assert author(url, token=token) == "bob"
        secret = PASSWORD.replace(" ", "%20")
        assert author(f"http://ann:{secret}%20ann@{host}") == "ann"
        netrc = tmp_path / "netrc"
        netrc.write_text(f'machine 127.0.0.1 login ann password "{PASSWORD} ann"\n')
        monkeypatch.setenv("NETRC", str(netrc))
        assert author(url) == "ann"
        monkeypatch.setenv("EVERLOOP_TOKEN", token)
        assert author(url) == "bob"
        assert author(f"http://ann:{secret}%20ann@{host}") == "ann"
        netrc.write_text("machine")
        monkeypatch.delenv("EVERLOOP_TOKEN")
        with pytest.raises(InvalidInput, match="netrc"):
            author(url)


def test_on_postgres_too(
    postgres_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERLOOP_OBJECTS", str(tmp_path / "objects"))
    with ev.open(postgres_database) as workspace:
        workspace.access.create_user("ann", "admin", password=f"{PASSWORD} ann")
        app = make_app(workspace)
        made = workspace.access.create_token("ann")
        headers = {"Authorization": f"Bearer {made.secret}"}
        assert ask(app, "GET", "/overview.json").status == 401
        assert ask(app, "GET", "/overview.json", headers=headers).status == 200
        assert ask(app, "GET", "/overview.json", headers=basic("ann")).status == 200
        workspace.access.revoke_token(made.token.id)
        assert ask(app, "GET", "/overview.json", headers=headers).status == 401
