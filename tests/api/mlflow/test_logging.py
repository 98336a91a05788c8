"""What is logged to runs and read back: numbers, limits at the border and one over, histories."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import pytest

from tests.api.mlflow.door import Door

LARGEST = 1.7976931348623157e308


def metric(**fields: Any) -> dict[str, Any]:
    return {"key": "m", "value": 1.5, "timestamp": 1000, **fields}


def history(door: Door, run_id: str, key: str = "m") -> list[dict[str, Any]]:
    found = door.get("metrics/get-history", run_id=run_id, metric_key=key)
    points: list[dict[str, Any]] = found.get("metrics", [])
    return points


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("1.5", 1.5),
        ('"1.5"', 1.5),
        ("-0.0", 0.0),
        ('"NaN"', "NaN"),
        ("NaN", "NaN"),
        ('"Infinity"', LARGEST),
        ("-Infinity", -LARGEST),
        ("100000000000000000000000000000", 1e29),
    ],
)
def test_values_that_are_numbers(door: Door, sent: str, shown: object) -> None:
    run_id = door.run()
    body = f'{{"run_id": "{run_id}", "key": "m", "value": {sent}, "timestamp": 7}}'
    assert door.post("runs/log-metric", body.encode()) == {}
    assert history(door, run_id) == [{"key": "m", "value": shown, "timestamp": 7, "step": 0}]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"value": "abc"}, "Invalid value \"abc\" for parameter 'value' supplied"),
        ({"value": [1]}, "Invalid value [1] for parameter 'value' supplied"),
        ({"value": {}}, "Invalid value {} for parameter 'value' supplied"),
        ({"value": None}, "Missing value for required parameter 'value'."),
        ({"value": ""}, "Missing value for required parameter 'value'."),
        ({"value": 10**400}, "for parameter 'value' supplied"),
        ({"timestamp": None}, "Missing value for required parameter 'timestamp'."),
        ({"timestamp": "x"}, "Invalid value \"x\" for parameter 'timestamp' supplied"),
        ({"timestamp": -1}, "Invalid value -1 for parameter 'timestamp' supplied"),
        ({"timestamp": 2**63}, "for parameter 'timestamp' supplied"),
        ({"timestamp": 1.5}, "for parameter 'timestamp' supplied"),
        ({"step": "x"}, "Invalid value \"x\" for parameter 'step' supplied"),
        ({"step": 2**63}, "for parameter 'step' supplied"),
        ({"step": -(2**63) - 1}, "for parameter 'step' supplied"),
        ({"step": []}, "for parameter 'step' supplied"),
        ({"key": None}, "Missing value for required parameter 'key'."),
        ({"key": ""}, "Missing value for required parameter 'key'."),
        ({"key": 5}, "Invalid value 5 for parameter 'key' supplied"),
        ({"key": "k" * 251}, "'key' exceeds the maximum length of 250 characters"),
        ({"dataset_name": "d"}, "dataset_digest must be given together"),
        ({"dataset_digest": "g"}, "dataset_name and dataset_digest must be given"),
    ],
)
def test_a_metric_that_is_wrong_is_refused_whole(
    door: Door, fields: dict[str, Any], said: str
) -> None:
    run_id = door.run()
    body = {"run_id": run_id, **metric(**fields)}
    assert said in door.refused(door.send("POST", "runs/log-metric", body))
    batch = {"run_id": run_id, "metrics": [metric(key="first"), metric(**fields)]}
    assert "metrics[1]." in door.refused(door.send("POST", "runs/log-batch", batch))
    assert "metrics" not in door.get("runs/get", run_id=run_id)["run"]["data"]


@pytest.mark.parametrize("step", [0, -5, 2**63 - 1, -(2**63), "7", 2.0])
@pytest.mark.parametrize("timestamp", [0, 2**63 - 1, "5"])
def test_whole_numbers_of_64_bits(door: Door, step: Any, timestamp: Any) -> None:
    run_id = door.run()
    door.post("runs/log-metric", {"run_id": run_id, **metric(step=step, timestamp=timestamp)})
    [point] = history(door, run_id)
    assert (point["step"], point["timestamp"]) == (int(step), int(timestamp))


def test_latest_is_by_step_then_time_then_value(door: Door) -> None:
    run_id = door.run()
    points = [(3, 1, 1.0), (1, 9, 7.0), (3, 2, 0.5), (3, 2, 2.0), (2, 99, 99.0), (3, 2, math.nan)]
    for step, at, value in points:
        shown = "NaN" if math.isnan(value) else value
        body = {"run_id": run_id, **metric(step=step, timestamp=at, value=shown)}
        door.post("runs/log-metric", body)
    [latest] = door.get("runs/get", run_id=run_id)["run"]["data"]["metrics"]
    assert latest == {"key": "m", "value": 2.0, "timestamp": 2, "step": 3}


def test_params_never_change(door: Door) -> None:
    run_id = door.run()
    for value in ("1", "1"):
        body = {"run_id": run_id, "key": "p", "value": value}
        assert door.post("runs/log-parameter", body) == {}
    message = door.refused(door.send("POST", "runs/log-parameter", {**body, "value": "2"}))
    assert message.startswith("Changing param values is not allowed")
    assert "'1'" in message
    batch = {
        "run_id": run_id,
        "params": [{"key": "p", "value": "2"}],
        "metrics": [metric()],
        "tags": [{"key": "t", "value": ""}],
    }
    door.refused(door.send("POST", "runs/log-batch", batch))
    data = door.get("runs/get", run_id=run_id)["run"]["data"]
    assert data["params"] == [{"key": "p", "value": "1"}]
    assert "metrics" not in data


@pytest.mark.parametrize(("value", "kept"), [("", 0), (None, 0), ("é" * 6000, 6000), (6001, 6000)])
def test_long_params_are_cut(door: Door, value: Any, kept: int) -> None:
    run_id = door.run()
    text = "v" * value if isinstance(value, int) else value
    for _ in range(2):
        door.post("runs/log-parameter", {"run_id": run_id, "key": "p", "value": text})
    [param] = door.get("runs/get", run_id=run_id)["run"]["data"]["params"]
    assert len(param["value"]) == kept


@pytest.mark.parametrize("length", [8000, 8001])
def test_long_tags_of_runs_are_cut(door: Door, length: int) -> None:
    run_id = door.run()
    door.post("runs/set-tag", {"run_id": run_id, "key": "t", "value": "v" * length})
    tags = door.get("runs/get", run_id=run_id)["run"]["data"]["tags"]
    [value] = [tag["value"] for tag in tags if tag["key"] == "t"]
    assert len(value) == 8000


def test_deleting_a_tag_twice_is_404(door: Door) -> None:
    run_id = door.run(tags=[{"key": "t", "value": "1"}])
    gone = {"run_id": run_id, "key": "t"}
    assert door.post("runs/delete-tag", gone) == {}
    answer = door.send("POST", "runs/delete-tag", gone)
    message = door.refused(answer, ("RESOURCE_DOES_NOT_EXIST", 404))
    assert message == f"No tag with name: t in run with id {run_id}"


def _params(count: int) -> list[dict[str, str]]:
    return [{"key": f"p{i}", "value": ""} for i in range(count)]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"metrics": [metric(key=f"m{i}") for i in range(1000)]}, ""),
        (
            {"metrics": [metric(key=f"m{i}") for i in range(1001)]},
            "request can contain at most 1000 metrics",
        ),
        ({"params": _params(100)}, ""),
        ({"params": _params(101)}, "at most 100 params"),
        ({"tags": _params(100)}, ""),
        ({"tags": _params(101)}, "at most 100 tags"),
        ({"metrics": [metric()] * 900, "params": _params(100)}, ""),
        ({"metrics": [metric()] * 901, "params": _params(100)}, "at most 1000 metrics, params"),
        ({"params": [*_params(2), *_params(1)]}, "Duplicate parameter keys"),
        ({"tags": [*_params(2), *_params(1)]}, ""),
        ({}, ""),
        ({"metrics": [], "params": None}, ""),
        ({"metrics": {}}, "Invalid value {} for parameter 'metrics' supplied"),
        ({"metrics": [5]}, "metrics[0]"),
        ({"params": [{"value": "v"}]}, "Missing value for required parameter 'params[0].key'."),
        ({"params": [{"key": "k", "value": 5}]}, "params[0].value"),
    ],
)
def test_limits_of_a_batch(door: Door, fields: dict[str, Any], said: str) -> None:
    answer = door.send("POST", "runs/log-batch", {"run_id": door.run(), **fields})
    if said:
        assert said in door.refused(answer)
    else:
        assert door.good(answer) == {}


def test_a_batch_of_a_million_bytes_and_one_more(door: Door) -> None:
    run_id = door.run()
    for spare, status in ((0, 200), (1, 400)):
        body = json.dumps({"run_id": run_id, "tags": [{"key": "t", "value": "@"}]})
        body = body.replace("@", "x" * (1_000_000 - len(body) + 1 + spare))
        assert door.send("POST", "runs/log-batch", body.encode()).status == status


POINTS = [(10, 0, 1.0), (5, 1, 2.0), (7, 2, "NaN"), (7, 2, 3.0), (100, -1, 5.0), (5, 1, 1.5)]
SORTED = sorted(POINTS, key=lambda p: (p[0], p[1], 0.0 if p[2] == "NaN" else p[2]))


@pytest.fixture(scope="module")
def charted(door: Door) -> str:
    run_id = door.run()
    for at, step, value in [*POINTS, *POINTS]:
        body = {"run_id": run_id, **metric(timestamp=at, step=step, value=value)}
        door.post("runs/log-metric", body)
    steps = [metric(key="s", timestamp=i, step=2 * i, value=i) for i in range(20)]
    door.post("runs/log-batch", {"run_id": run_id, "metrics": steps})
    return run_id


def _places(points: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(point["timestamp"], point["step"], point["value"]) for point in points]


def test_history_is_by_time_step_value_and_each_point_once(door: Door, charted: str) -> None:
    assert _places(history(door, charted)) == SORTED
    assert history(door, charted, "none") == []
    assert history(door, "no-run") == []


@pytest.mark.parametrize("size", [1, 2, 5, 6, 25_000, 25_001])
def test_pages_of_a_history(door: Door, charted: str, size: int) -> None:
    seen: list[Any] = []
    token = ""
    while True:
        asked = {"run_id": charted, "metric_key": "m", "max_results": size, "page_token": token}
        page = door.get("metrics/get-history", **asked)
        assert len(page["metrics"]) <= size
        seen += _places(page["metrics"])
        token = page.get("next_page_token", "")
        if not token:
            break
    assert seen == SORTED


def test_a_token_belongs_to_its_metric(door: Door, charted: str) -> None:
    asked = {"run_id": charted, "metric_key": "m", "max_results": 2}
    token = door.get("metrics/get-history", **asked)["next_page_token"]
    for change in (
        {"metric_key": "s"},
        {"run_id": door.run()},
        {"page_token": token[:-4]},
        {"page_token": "x"},
        {"page_token": "eyJvZmZzZXQiOiAtMX0="},
    ):
        query = "&".join(f"{k}={v}" for k, v in {**asked, "page_token": token, **change}.items())
        answer = door.send("GET", f"metrics/get-history?{query}")
        assert "Invalid page token" in door.refused(answer)


@pytest.mark.parametrize(
    ("asked", "steps"),
    [
        ({}, list(range(0, 40, 2))),
        ({"start_step": 4, "end_step": 10}, [4, 6, 8, 10]),
        ({"start_step": -5, "end_step": 0}, [0]),
        ({"start_step": 100, "end_step": 200}, []),
        ({"max_results": 2500}, list(range(0, 40, 2))),
        ({"max_results": 2}, [0, 38]),
        ({"max_results": 1}, [38]),
        ({"max_results": 20}, list(range(0, 40, 2))),
    ],
)
def test_sampled_history(door: Door, charted: str, asked: dict[str, int], steps: list[int]) -> None:
    path = "metrics/get-history-bulk-interval"
    found = door.get(path, run_ids=[charted], metric_key="s", **asked).get("metrics", [])
    assert [point["step"] for point in found] == steps
    assert {point["run_id"] for point in found} <= {charted}


@pytest.mark.parametrize("count", [3, 5, 7, 11, 19])
def test_samples_are_even_with_first_and_last(door: Door, charted: str, count: int) -> None:
    path = "metrics/get-history-bulk-interval"
    found = door.get(path, run_ids=charted, metric_key="s", max_results=count)["metrics"]
    steps = [point["step"] for point in found]
    assert (steps[0], steps[-1], len(steps)) == (0, 38, count)
    gaps = [b - a for a, b in itertools.pairwise(steps)]
    assert max(gaps) - min(gaps) <= 2


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"max_results": 0}, "max_results must be between 1 and 2500"),
        ({"max_results": -1}, "max_results must be between 1 and 2500"),
        ({"max_results": 2501}, "max_results must be between 1 and 2500"),
        ({"start_step": 1}, "both must be specified"),
        ({"end_step": 1}, "If either start step or end step are specified"),
        ({"start_step": 2, "end_step": 1}, "end_step must be greater than start_step. "),
        ({"start_step": "x", "end_step": 1}, "for parameter 'start_step' supplied"),
        ({"run_ids": [f"r{i}" for i in range(101)]}, "request must specify at most 100 run_ids."),
        ({"run_ids": []}, "Missing value for required parameter 'run_ids'."),
        ({"metric_key": ""}, "Missing value for required parameter 'metric_key'."),
    ],
)
def test_sampled_history_refuses(
    door: Door, charted: str, asked: dict[str, Any], said: str
) -> None:
    query = {"run_ids": [charted], "metric_key": "s", **asked}
    text = "&".join(
        f"{key}={one}"
        for key, value in query.items()
        for one in (value if isinstance(value, list) else [value])
    )
    assert said in door.refused(door.send("GET", f"metrics/get-history-bulk-interval?{text}"))


def test_history_of_many_runs_for_the_pages(door: Door, charted: str) -> None:
    path = "/ajax-api/2.0/mlflow/metrics/get-history-bulk"
    other = door.run()
    door.post("runs/log-metric", {"run_id": other, **metric(key="s", step=1)})
    found = door.get(path, run_id=[charted, other], metric_key="s")["metrics"]
    assert len(found) == 21
    assert {point["run_id"] for point in found} == {charted, other}
    assert len(door.get(path, run_id=charted, metric_key="s", max_results=3)["metrics"]) == 3
    assert door.get(path, run_id=charted, metric_key="s", max_results=0) == {"metrics": []}
    assert door.get(path, run_id="none", metric_key="s") == {"metrics": []}
    many = "&".join(f"run_id=r{i}" for i in range(101))
    for query, said in (
        ("run_id=a", "must specify a metric_key"),
        ("run_id=a&metric_key=", "must specify a metric_key"),
        ("metric_key=s", "must specify at least one run_id"),
        (f"metric_key=s&{many}", "cannot specify more than 100 run_ids"),
    ):
        message = door.refused(door.send("GET", f"{path}?{query}"))
        assert message.startswith(f"GetMetricHistoryBulk request {said}")


def test_cut_values_are_named_in_a_tag(door: Door) -> None:
    run_id = door.run(tags=[{"key": "whole", "value": "x" * 8000}])
    for name in ("b", "a", "b"):
        body = {"run_id": run_id, "key": name, "value": "v" * 6001}
        door.post("runs/log-parameter", body)
    door.post("runs/set-tag", {"run_id": run_id, "key": "t", "value": "v" * 8001})
    run = door.workspace.tracking.run(run_id)
    assert run.tags["everloop.truncated"] == "b, a, t"
    assert "everloop.truncated" not in door.workspace.tracking.run(door.run()).tags
