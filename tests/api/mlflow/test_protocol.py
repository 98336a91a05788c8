"""What holds for every call: prefixes, methods, bodies, queries, headers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everloop.api import mlflow
from tests.api.mlflow.door import API, JSON, Door
from tests.servers import ask

UNKNOWN = ("ENDPOINT_NOT_FOUND", 404)


@pytest.mark.parametrize(
    "base",
    [
        "/api/2.0/mlflow",
        "/ajax-api/2.0/mlflow",
        "/api/2.0/preview/mlflow",
        "/ajax-api/2.0/preview/mlflow",
    ],
)
def test_the_same_under_every_prefix(door: Door, base: str) -> None:
    shown = door.get(f"{base}/experiments/get", experiment_id="0")
    assert shown == door.get("experiments/get", experiment_id="0")
    body = {"experiment_ids": ["0"], "max_results": 1}
    assert door.post(f"{base}/runs/search", body) == door.post("runs/search", body)


def test_headers_of_answers(door: Door) -> None:
    for target in ("experiments/get?experiment_id=0", "experiments/get", "nothing"):
        headers = door.send("GET", target).headers
        assert headers["content-type"] == "application/json"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "SAMEORIGIN"
        assert headers["vary"] == "Origin"


def test_head_is_get_without_a_body(door: Door) -> None:
    path = "experiments/get?experiment_id=0"
    got, head = door.send("GET", path), door.send("HEAD", path)
    assert (head.status, head.headers["content-length"]) == (200, str(len(got.body)))


@pytest.mark.parametrize("authorization", ["Basic YW5uOnNlY3JldA==", "Bearer token", "x"])
def test_credentials_are_welcome_where_nobody_needs_to_log_in(
    door: Door, authorization: str
) -> None:
    headers = {**JSON, "Authorization": authorization, "X-MLFLOW-WORKSPACE": "default"}
    body = {"experiment_id": "0"}
    assert door.send("POST", "runs/create", body, headers=headers).status == 200


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("POST", "nothing"),
        ("GET", "experiments/list"),
        ("GET", "experiments/get/"),
        ("GET", "/api/2.0/"),
        ("GET", "/api/9.0/mlflow/experiments/get"),
        ("GET", "users/get?username=a"),
        ("POST", "users/create"),
        ("POST", "experiments/permissions/create"),
        ("POST", "registered-models/permissions/create"),
        ("GET", "/api/3.0/mlflow/roles/list"),
        ("POST", "/graphql"),
        ("GET", "/graphql"),
    ],
)
def test_what_is_not_served_is_404_as_json(door: Door, method: str, target: str) -> None:
    answer = door.send(method, target, b"{}")
    assert answer.status == 404
    assert isinstance(answer.json()["error_code"], str)
    if "/api/9.0" not in target:
        door.refused(answer, UNKNOWN)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("gateway/endpoints/create", "AI gateway"),
        ("/api/3.0/mlflow/gateway/secrets/create", "AI gateway"),
        ("gateway-proxy", "AI gateway"),
        ("/ajax-api/2.0/mlflow/runs/create-promptlab-run", "prompt lab"),
        ("/api/3.0/mlflow/scorers/register", "scorers"),
        ("/api/3.0/mlflow/workspaces", "Workspaces"),
        ("/graphql", "GraphQL"),
    ],
)
def test_what_mlflow_has_beyond_is_named(door: Door, target: str, said: str) -> None:
    message = door.refused(door.send("POST", target, b"{}"), UNKNOWN)
    assert said in message
    assert "not served here" in message


@pytest.mark.parametrize(
    ("method", "call", "allowed"),
    [
        ("POST", "runs/get", "GET"),
        ("DELETE", "runs/get", "GET"),
        ("GET", "runs/create", "POST"),
        ("PUT", "experiments/search", "GET, POST"),
        ("POST", "registered-models/update", "PATCH"),
        ("GET", "logged-models/m-1/tags", "PATCH"),
        ("POST", "/api/2.0/mlflow-artifacts/artifacts/a/b", "GET, PUT, DELETE"),
        ("GET", "upload-artifact", "POST"),
    ],
)
def test_wrong_methods_are_405_as_json(door: Door, method: str, call: str, allowed: str) -> None:
    answer = door.send(method, call, b"{}")
    assert (answer.status, answer.headers["allow"]) == (405, allowed)
    assert answer.json()["error_code"] == "ENDPOINT_NOT_FOUND"
    answer = door.send("OPTIONS", call)
    assert (answer.status, answer.headers["allow"], answer.body) == (204, allowed, b"")


# --- bodies -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["application/json", "application/json; charset=utf-8", "Application/JSON"]
)
def test_content_types_of_json(door: Door, kind: str) -> None:
    headers = {"Content-Type": kind}
    assert door.send("POST", "runs/create", b'{"experiment_id": "0"}', headers).status == 200


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "text/json", ""]
)
@pytest.mark.parametrize("method", ["POST", "PATCH", "DELETE"])
def test_other_content_types(door: Door, method: str, kind: str) -> None:
    call = {"POST": "create", "PATCH": "update", "DELETE": "delete"}[method]
    answer = door.send(
        method, f"registered-models/{call}", b'{"name": "a"}', {"Content-Type": kind}
    )
    assert "Content-Type must be" in door.refused(answer)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"5",
        b"\xff\xfe",
        b"{}garbage",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"name": ' + b"[" * 2000 + b"]" * 2000 + b"}",
        b'{"name": "\\ud800"}',
        b'{"name": "a\\u0000b"}',
        '{"name": "a\\u0000b"}'.encode("utf-16"),
        b'{"x": NaN, "y": "unclosed ' + b'\\"' * 50_000,
    ],
)
@pytest.mark.parametrize(
    ("call", "first"),
    [("experiments/create", "name"), ("runs/log-batch", "run_id"), ("runs/log-metric", "run_id")],
)
def test_bodies_that_are_none(door: Door, call: str, first: str, body: bytes) -> None:
    answer = door.send("POST", call, body)
    message = door.refused(answer)
    assert len(message) < 1000
    read = first == "name" and b'"name"' in body and b"\xff" not in body
    assert read or first in message or "NUL" in message


@pytest.mark.parametrize("body", [b"{", b"[]", b"5", b"\xff", b"[" * 100_000])
def test_a_body_cut_short_makes_no_run(door: Door, body: bytes) -> None:
    count = len(door.post("runs/search", {"experiment_ids": ["0"]}).get("runs", []))
    door.refused(door.send("POST", "runs/create", body))
    assert len(door.post("runs/search", {"experiment_ids": ["0"]}).get("runs", [])) == count


def test_unknown_fields_are_ignored(door: Door) -> None:
    body = {"name": door.name(), "unknown": {"deep": [1, {"a": None}]}, "tags": None}
    assert door.send("POST", "experiments/create", body).status == 200


def test_a_body_that_was_encoded_twice_is_read(door: Door) -> None:
    name = door.name()
    body = json.dumps(json.dumps({"name": name})).encode()
    assert door.good(door.send("POST", "experiments/create", body))["experiment_id"]
    body = json.dumps({"tags": [{"key": "a", "value": "b"}], "model_id": "x"})
    path = f"logged-models/{door.logged_model()}/tags"
    assert door.send("PATCH", path, json.dumps(body).encode()).status == 200


def test_bodies_that_are_too_large(door: Door) -> None:
    parts = [b"x" * (1 << 20)] * 17
    answer = door.send("POST", "runs/create", parts)
    assert (answer.status, answer.json()["error_code"]) == (413, "BAD_REQUEST")


def test_path_parameters_win_over_the_body(door: Door) -> None:
    id_ = door.logged_model(name="mine")
    answer = door.send("GET", f"logged-models/{id_}?model_id=other")
    assert door.good(answer)["model"]["info"]["name"] == "mine"
    tags = {"model_id": "other", "tags": [{"key": "k", "value": "v"}]}
    assert door.send("PATCH", f"logged-models/{id_}/tags", tags).status == 200
    answer = door.send("DELETE", f"logged-models/{id_}/tags/k", {"tag_key": "other"})
    assert door.good(answer) == {}


# --- queries ------------------------------------------------------------------------------------


def test_the_first_of_repeated_fields_counts_unless_it_is_a_list(door: Door) -> None:
    shown = door.send("GET", "experiments/get?experiment_id=0&experiment_id=77")
    assert door.good(shown)["experiment"]["experiment_id"] == "0"
    found = door.send(
        "GET", "experiments/search?max_results=5&order_by=name%20DESC&order_by=experiment_id"
    )
    assert door.good(found)["experiments"]


def test_a_get_may_carry_its_fields_in_a_body(door: Door) -> None:
    shown = door.send("GET", "experiments/get", {"experiment_id": "0"})
    assert door.good(shown)["experiment"]["name"] == "Default"
    both = door.send("GET", "experiments/get?experiment_id=0", {"experiment_id": "77"})
    assert door.good(both)["experiment"]["experiment_id"] == "0"


@pytest.mark.parametrize(
    "query",
    ["experiment_name=%ff", "experiment_name=%00", "experiment_name=" + "a=1&" * 1001, "%", ""],
)
def test_queries_that_are_none(door: Door, query: str) -> None:
    door.refused(ask(door.app, "GET", f"{API}/experiments/get-by-name?{query}"))


# --- anything at all ----------------------------------------------------------------------------

_CALLS = sorted({*mlflow._EXACT, *((m, p.pattern) for m, p, _ in mlflow._PATTERNS)})
_IDS = st.sampled_from(["0", "1", "", "x", "m-0", "champion", "9" * 25, "../x", "a\x00", "é"])
_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | _IDS
    | st.sampled_from(["metrics.a > 1", "name = 'a'", "name ASC", "READY", "Staging"])
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["key", "value"]), inner)
    ),
    max_leaves=6,
)
# fmt: off
_FIELDS = [
    "run_id", "run_uuid", "run_ids", "experiment_id", "experiment_ids", "experiment_name", "name",
    "new_name", "key", "value", "timestamp", "step", "metrics", "params", "tags", "filter",
    "order_by", "max_results", "page_token", "version", "alias", "source", "stage", "stages",
    "archive_existing_versions", "status", "start_time", "end_time", "datasets", "models",
    "model_id", "tag_key", "model_json", "metric_key", "start_step", "end_step", "path",
    "view_type", "run_view_type", "artifact_location", "artifact_directory_path", "description",
    "run_link",
]
# fmt: on


@settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    call=st.sampled_from(_CALLS),
    body=st.dictionaries(st.sampled_from(_FIELDS), _VALUES, max_size=6),
    known=st.booleans(),
)
def test_no_request_whatever_makes_a_5xx(
    door: Door, call: tuple[str, str], body: dict[str, Any], known: bool
) -> None:
    method, path = call
    target = "/api/2.0/" + path.replace("(?P<model_id>[^/]+)", "m-0").replace(
        "(?P<tag_key>[^/]+)", "k"
    )
    if known:
        body = {"run_id": "r", "name": "n", "key": "k", "version": "1", **body}
    answer = door.send(method, target, body)
    assert answer.status < 500 or answer.status == 501, answer.text
    assert "Traceback" not in answer.text
    assert "SELECT" not in answer.text
    assert answer.headers["content-type"] == "application/json"
    answer.json()
