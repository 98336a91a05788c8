"""Requests with something wrong in them, to be answered alike by both servers.

``<name>`` stands for the id that a record of ``both_doors.py`` has there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Request = tuple[str, str, Any]

_LONG = "x" * 251
_POINT = {"key": "m", "value": 1, "timestamp": 1}
_SOURCE = {"name": "d", "digest": "g", "source_type": "s", "source": "s"}
_VERSION = {"name": "reg", "version": "1"}
_WRONG_KEYS = [{"key": ""}, {"key": _LONG}, {"key": "a#b"}]
_WRONG_POINTS: list[dict[str, Any]] = [
    *_WRONG_KEYS,
    *({"key": key} for key in ("../a", "a//b", "/a", "a/", ".", 5)),
    *({"value": value} for value in ("x", None, "NaN", "Infinity", "1.5")),
    *({"timestamp": value} for value in ("x", -1, None)),
    {"step": "x"},
    {"step": -5},
]


def _texts(count: int) -> list[dict[str, str]]:
    return [{"key": f"k{number}", "value": "1"} for number in range(count)]


#: Method, path, a body that is good, and changes to it; each of its fields is also left out.
_CALLS: list[tuple[str, str, dict[str, Any], list[dict[str, Any]]]] = [
    (
        "POST",
        "experiments/create",
        {"name": "mine"},
        [{"name": name} for name in ("", None, 5, "x" * 501)]
        + [{"name": "e", "artifact_location": "runs:/a/b"}, {"name": "e", "tags": "x"}],
    ),
    ("GET", "experiments/get", {"experiment_id": "999"}, [{"experiment_id": ""}]),
    ("GET", "experiments/get-by-name", {"experiment_name": "none"}, []),
    ("POST", "experiments/delete", {"experiment_id": "999"}, []),
    ("POST", "experiments/restore", {"experiment_id": "999"}, []),
    ("POST", "experiments/update", {"experiment_id": "<o_>", "new_name": ""}, []),
    (
        "POST",
        "experiments/set-experiment-tag",
        {"experiment_id": "<o_>", "key": "k", "value": "v"},
        [*_WRONG_KEYS, {"value": 5}, {"value": "x" * 20_001}, {"experiment_id": "999"}],
    ),
    ("POST", "experiments/delete-experiment-tag", {"experiment_id": "<o_>", "key": "none"}, []),
    (
        "POST",
        "experiments/search",
        {"max_results": 50_001},
        [{"max_results": 0}, {"max_results": -1}, {"max_results": 1, "page_token": "x"}],
    ),
    ("POST", "runs/create", {"experiment_id": "999"}, [{"experiment_id": "x"}]),
    ("GET", "runs/get", {"run_id": "none"}, [{"run_id": ""}, {"run_id": "a b"}]),
    ("POST", "runs/update", {"run_id": "none", "status": "FINISHED"}, []),
    ("POST", "runs/delete", {"run_id": "none"}, []),
    ("POST", "runs/restore", {"run_id": "none"}, []),
    ("POST", "runs/log-metric", {"run_id": "<r4>", **_POINT}, _WRONG_POINTS),
    (
        "POST",
        "runs/log-parameter",
        {"run_id": "<r4>", "key": "p", "value": "1"},
        [*_WRONG_KEYS, {"value": "2"}, {"value": 5}, {"run_id": "none"}],
    ),
    (
        "POST",
        "runs/set-tag",
        {"run_id": "<r4>", "key": "t", "value": "1"},
        [*_WRONG_KEYS, {"value": 5}, {"run_id": "none"}],
    ),
    ("POST", "runs/delete-tag", {"run_id": "<r4>", "key": "none"}, []),
    (
        "POST",
        "runs/log-batch",
        {"run_id": "<r4>"},
        [{"metrics": [{**_POINT, "step": 0, **wrong}]} for wrong in _WRONG_POINTS]
        + [{"metrics": [_POINT] * 1001}, {"params": _texts(101)}, {"tags": _texts(101)}]
        + [{"metrics": [_POINT] * 950, "params": _texts(60)}, {"metrics": "x"}]
        + [{"params": [{"key": "n", "value": "1"}, {"key": "n", "value": "2"}]}]
        + [{"params": [{"key": "p", "value": "9"}]}, {"tags": [{"value": "a"}]}],
    ),
    (
        "POST",
        "runs/log-inputs",
        {"run_id": "<r4>", "datasets": [{"dataset": _SOURCE}]},
        [
            {"datasets": [{"dataset": {**_SOURCE, "name": "x" * 501}}]},
            {"datasets": [{"dataset": {**_SOURCE, "digest": "x" * 37}}]},
            {"datasets": "x"},
            {"run_id": "none"},
        ],
    ),
    ("GET", "metrics/get-history", {"run_id": "<r0>", "metric_key": "none"}, []),
    (
        "GET",
        "metrics/get-history-bulk-interval",
        {"run_ids": "<r0>", "metric_key": "acc", "max_results": "2501"},
        [{"max_results": "0"}, {"max_results": "1", "start_step": "1"}],
    ),
    ("GET", "artifacts/list", {"run_id": "none"}, [{"run_id": "<r0>", "path": "../a"}]),
    (
        "POST",
        "logged-models",
        {"experiment_id": "999"},
        [{"experiment_id": "<mine>", "name": "a/b"}, {"experiment_id": "<mine>", "name": 5}],
    ),
    ("POST", "logged-models/search", {"experiment_ids": ["<mine>"], "page_token": ""}, []),
    (
        "POST",
        "registered-models/create",
        {"name": "reg"},
        [{"name": name} for name in ("", " ", "a/b", "a:b", ".", 5)]
        + [{"name": "n", "tags": [{"key": _LONG, "value": "a"}]}],
    ),
    ("GET", "registered-models/get", {"name": "none"}, [{"name": ""}]),
    ("PATCH", "registered-models/update", {"name": "none"}, []),
    (
        "POST",
        "registered-models/rename",
        {"name": "none", "new_name": "q"},
        [{"name": "reg", "new_name": name} for name in ("other", "a/b", "")],
    ),
    ("DELETE", "registered-models/delete", {"name": "none"}, []),
    ("POST", "registered-models/get-latest-versions", {"name": "reg", "stages": ["x"]}, []),
    (
        "POST",
        "registered-models/set-tag",
        {"name": "none", "key": "k", "value": "v"},
        [{"name": "reg", **wrong} for wrong in ({"key": ""}, {"key": _LONG}, {"value": 5})],
    ),
    ("DELETE", "registered-models/delete-tag", {"name": "none", "key": "k"}, []),
    (
        "POST",
        "registered-models/alias",
        {"name": "reg", "alias": "a", "version": "99"},
        [{"version": "x"}, {"name": "none"}]
        + [
            {"alias": alias, "version": "1"}
            for alias in ("latest", "Latest", "v1", "V12", "a/b", "x" * 256, "", "é", "a b", "1")
        ],
    ),
    ("GET", "registered-models/alias", {"name": "reg", "alias": "none"}, [{"name": "none"}]),
    ("DELETE", "registered-models/alias", {"name": "none", "alias": "a"}, []),
    (
        "POST",
        "model-versions/create",
        {"name": "reg", "source": ""},
        [
            {"source": source}
            for source in (
                *("/etc/passwd", "file:///etc", "runs:/abc/m", "models:/m-1", "s3://b/../x"),
                *("s3://b/%2e%2e/x", "mlflow-artifacts:/a/../b", "models:/none/1", "./a"),
            )
        ],
    ),
    *(
        ("GET", f"model-versions/{call}", {"name": "reg", "version": "99"}, [{"version": "x"}])
        for call in ("get", "get-download-uri")
    ),
    ("PATCH", "model-versions/update", {"name": "reg", "version": "99"}, [{"version": "x"}]),
    ("DELETE", "model-versions/delete", {"name": "reg", "version": "99"}, [{"version": "x"}]),
    (
        "POST",
        "model-versions/set-tag",
        {**_VERSION, "key": "k", "value": "v"},
        [{"version": "99"}, {"version": "x"}, {"key": _LONG}],
    ),
    ("DELETE", "model-versions/delete-tag", {**_VERSION, "key": "none"}, [{"version": "99"}]),
    (
        "POST",
        "model-versions/transition-stage",
        {**_VERSION, "stage": "bogus", "archive_existing_versions": False},
        [{"version": "99", "stage": "None"}, {"archive_existing_versions": "x"}],
    ),
    ("GET", "webhooks/none", {}, []),
    ("DELETE", "webhooks/none", {}, []),
    (
        "POST",
        "runs/search",
        {"experiment_ids": [], "max_results": -1},
        [{"experiment_ids": ["<mine>"], "max_results": size} for size in (0, 50_001)]
        + [{"experiment_ids": ["<mine>"], "max_results": 5, "page_token": "x"}],
    ),
    ("GET", "/api/3.0/mlflow/traces/batchGet", {"trace_ids": "none"}, []),
    ("GET", "/api/3.0/mlflow/traces/get", {"trace_id": "none"}, []),
    ("DELETE", "/api/3.0/mlflow/traces/<t1>/assessments/none", {}, []),
    ("DELETE", "/api/3.0/mlflow/traces/<t1>/tags", {"key": "none"}, []),
    (
        "POST",
        "/api/3.0/mlflow/traces/delete-traces",
        {"experiment_id": "<mine>", "request_ids": ["none"]},
        [{"max_traces": 1}, {"max_timestamp_millis": 1}],
    ),
]


def requests() -> Iterator[Request]:
    """Each call: without each of its fields, as it is, and with each change."""
    for method, path, body, changes in _CALLS:
        for left_out in body:
            yield method, path, {key: body[key] for key in body if key != left_out}
        yield method, path, body
        for change in changes:
            yield method, path, {**body, **change}
