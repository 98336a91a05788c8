"""Logged models, call by call."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.mlflow.door import ABSENT, Door


def test_a_model_from_pending_to_ready(door: Door) -> None:
    run_id = door.run()
    body = {
        "experiment_id": "0",
        "name": "clf",
        "model_type": "classifier",
        "source_run_id": run_id,
        "params": [{"key": "p", "value": "1"}],
        "tags": [{"key": "t", "value": "1"}],
    }
    model = door.post("logged-models", body)["model"]
    id_ = model["info"]["model_id"]
    at = model["info"].pop("creation_timestamp_ms")
    assert model["info"].pop("last_updated_timestamp_ms") == at
    assert model == {
        "info": {
            "model_id": id_,
            "experiment_id": "0",
            "name": "clf",
            "artifact_uri": f"mlflow-artifacts:/0/models/{id_}/artifacts",
            "status": "LOGGED_MODEL_PENDING",
            "model_type": "classifier",
            "source_run_id": run_id,
            "tags": [{"key": "t", "value": "1"}],
        },
        "data": {"params": [{"key": "p", "value": "1"}]},
    }
    assert id_.startswith("m-")
    assert len(id_) == 34
    done = door.good(door.send("PATCH", f"logged-models/{id_}", {"status": "LOGGED_MODEL_READY"}))
    assert done["model"]["info"]["status"] == "LOGGED_MODEL_READY"


@pytest.mark.parametrize("name", ["a/b", "a:b", "a.b", "a%b", 'a"b', "a'b", 5, []])
def test_bad_names(door: Door, name: Any) -> None:
    answer = door.send("POST", "logged-models", {"experiment_id": "0", "name": name})
    assert "name" in door.refused(answer)


@pytest.mark.parametrize("name", ["", None, "dup", "é ü", "x" * 500])
def test_good_names_need_not_be_unique(door: Door, name: str | None) -> None:
    body = {"experiment_id": "0", "name": name}
    door.post("logged-models", body)
    model = door.post("logged-models", body)["model"]["info"]
    assert model["name"] == name if name else model["name"].count("-") == 2


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        ("LOGGED_MODEL_UPLOAD_FAILED", "LOGGED_MODEL_UPLOAD_FAILED"),
        (2, "LOGGED_MODEL_READY"),
        ("LOGGED_MODEL_PENDING", ""),
        ("LOGGED_MODEL_STATUS_UNSPECIFIED", ""),
        ("READY", ""),
        ("", ""),
        (None, ""),
        (99, ""),
    ],
)
def test_how_a_model_may_be_finished(door: Door, status: Any, shown: str) -> None:
    id_ = door.logged_model()
    answer = door.send("PATCH", f"logged-models/{id_}", {"status": status, "model_id": "m-else"})
    if shown:
        assert door.good(answer)["model"]["info"]["status"] == shown
    else:
        assert "'status'" in door.refused(answer)


def test_tags_and_params_of_a_model(door: Door) -> None:
    path = f"logged-models/{door.logged_model(params=[{'key': 'p', 'value': '1'}])}"
    tags = [{"key": "a.b", "value": "x"}, {"key": "c"}]
    door.good(door.send("PATCH", f"{path}/tags", {"tags": tags}))
    assert door.good(door.send("DELETE", f"{path}/tags/a.b")) == {}
    door.refused(door.send("DELETE", f"{path}/tags/a.b"), ABSENT)
    many = [{"key": f"q{i}", "value": "1"} for i in range(100)]
    assert door.post(f"{path}/params", {"params": many}) == {}
    assert door.post(f"{path}/params", {"params": many}) == {}
    over = [{"key": f"r{i}", "value": "1"} for i in range(101)]
    door.refused(door.send("POST", f"{path}/params", {"params": over}))
    answer = door.send("POST", f"{path}/params", {"params": [{"key": "p", "value": "2"}]})
    assert "Changing param values is not allowed" in door.refused(answer)
    model = door.get(path)["model"]
    assert model["info"]["tags"] == [{"key": "c", "value": ""}]
    assert len(model["data"]["params"]) == 101


def test_a_deleted_model_is_gone(door: Door) -> None:
    path = f"logged-models/{door.logged_model()}"
    assert door.good(door.send("DELETE", path)) == {}
    for answer in (
        door.send("GET", path),
        door.send("DELETE", path),
        door.send("PATCH", path, {"status": "LOGGED_MODEL_READY"}),
        door.send("PATCH", f"{path}/tags", {"tags": []}),
        door.send("POST", f"{path}/params", {"params": []}),
        door.send("GET", f"{path}/artifacts/directories"),
    ):
        assert "not found" in door.refused(answer, ABSENT)


@pytest.fixture(scope="module")
def measured(door: Door) -> str:
    """An experiment with three models: a and b measured on datasets, c on none."""
    experiment_id = door.experiment()
    run_id = door.run(experiment_id)
    a = door.logged_model(experiment_id, name="a", source_run_id=run_id, model_type="x")
    b = door.logged_model(experiment_id, name="b", params=[{"key": "p", "value": "1"}])
    door.logged_model(experiment_id, name="c", tags=[{"key": "t.u", "value": "v"}])
    points = [(a, "d1", 0.5, 0), (a, "d1", 0.7, 1), (b, "d1", 0.6, 0), (b, "d2", 0.9, 0)]
    for model_id, dataset, value, step in points:
        point = {
            "key": "acc",
            "value": value,
            "timestamp": 1,
            "step": step,
            "model_id": model_id,
            "dataset_name": dataset,
            "dataset_digest": f"g-{dataset}",
        }
        door.post("runs/log-metric", {"run_id": run_id, **point})
    bad = {"key": "nan", "value": "NaN", "timestamp": 1, "model_id": a}
    door.post("runs/log-batch", {"run_id": run_id, "metrics": [bad]})
    return experiment_id


def names(door: Door, experiment_id: str, **asked: Any) -> list[str]:
    found = door.post("logged-models/search", {"experiment_ids": [experiment_id], **asked})
    return [model["info"]["name"] for model in found.get("models", [])]


def test_metrics_of_a_model_say_run_and_dataset(door: Door, measured: str) -> None:
    [found] = door.post(
        "logged-models/search", {"experiment_ids": [measured], "filter": "name = 'b'"}
    )["models"]
    [first, second] = found["data"]["metrics"]
    assert (first["dataset_name"], second["dataset_digest"]) == ("d1", "g-d2")
    assert set(first) >= {"key", "value", "timestamp", "step", "model_id", "run_id"}


@pytest.mark.parametrize(
    ("filter_", "found"),
    [
        ("name = 'a'", "a"),
        ("name != 'a'", "cb"),
        ("name LIKE '_'", "cba"),
        ("name ILIKE 'A'", "a"),
        ("name IN ('a', 'b')", "ba"),
        ("name NOT IN ('a', 'b')", "c"),
        ("attributes.name = 'a'", "a"),
        ("model_type = 'x'", "a"),
        ("status = 'PENDING'", "cba"),
        ("creation_timestamp > 0", "cba"),
        ("creation_time > 0 AND name = 'a'", "a"),
        ("metrics.acc > 0.65", "ba"),
        ("metrics.acc > 0.8", "b"),
        ("metrics.acc < 0.6", ""),
        ("metrics.nan > 0", ""),
        ("params.p = '1'", "b"),
        ("params.p != '2'", "b"),
        ("tags.`t.u` = 'v'", "c"),
        ("", "cba"),
    ],
)
def test_filters(door: Door, measured: str, filter_: str, found: str) -> None:
    assert names(door, measured, filter=filter_) == list(found)


@pytest.mark.parametrize(
    "filter_",
    ["bogus = 'a'", "metrics.acc > '1'", "name = a", "name = 'a' OR name = 'b'", "(name = 'a')"],
)
def test_filters_that_are_wrong(door: Door, filter_: str) -> None:
    asked = {"experiment_ids": ["0"], "filter": filter_}
    message = door.refused(door.send("POST", "logged-models/search", asked))
    assert "Invalid clause(s) in filter string" in message


@pytest.mark.parametrize(
    ("order", "found"),
    [
        ({"field_name": "name"}, "abc"),
        ({"field_name": "name", "ascending": False}, "cba"),
        ({"field_name": "creation_timestamp", "ascending": True}, "abc"),
        ({"field_name": "metrics.acc", "dataset_name": "d1"}, "bac"),
        ({"field_name": "metrics.acc", "dataset_name": "d1", "ascending": False}, "abc"),
        ({"field_name": "metrics.acc", "dataset_digest": "g-d2"}, "bca"),
        ({"field_name": "metrics.nan", "ascending": False}, "acb"),
    ],
)
def test_orders(door: Door, measured: str, order: dict[str, Any], found: str) -> None:
    assert names(door, measured, order_by=[order]) == list(found)


@pytest.mark.parametrize(
    ("datasets", "filter_", "found"),
    [
        ([{"dataset_name": "d1"}], "", "ba"),
        ([{"dataset_name": "d2"}], "", "b"),
        ([{"dataset_name": "d1", "dataset_digest": "g-d1"}], "metrics.acc > 0.65", "a"),
        ([{"dataset_name": "d1", "dataset_digest": "other"}], "", ""),
        ([{"dataset_name": "d1"}, {"dataset_name": "d2"}], "metrics.acc > 0.8", "b"),
    ],
)
def test_only_metrics_on_these_datasets_count(
    door: Door, measured: str, datasets: list[Any], filter_: str, found: str
) -> None:
    assert names(door, measured, datasets=datasets, filter=filter_) == list(found)


def test_pages_are_bound_to_their_search(door: Door, measured: str) -> None:
    asked = {"experiment_ids": [measured], "max_results": 2}
    first = door.post("logged-models/search", asked)
    token = first["next_page_token"]
    rest = door.post("logged-models/search", {**asked, "page_token": token})
    shown = [m["info"]["name"] for m in first["models"] + rest["models"]]
    assert (shown, rest.get("next_page_token")) == (["c", "b", "a"], None)
    for change in (
        {"filter": "name = 'a'"},
        {"order_by": [{"field_name": "name"}]},
        {"datasets": [{"dataset_name": "d1"}]},
        {"experiment_ids": ["0"]},
        {"page_token": "x"},
        {"page_token": token[:-2]},
    ):
        answer = door.send("POST", "logged-models/search", {**asked, "page_token": token, **change})
        assert "Invalid page token" in door.refused(answer)


@pytest.mark.parametrize(
    "asked",
    [
        {"experiment_ids": None},
        {"experiment_ids": ["x"]},
        {"experiment_ids": "0"},
        {"max_results": 0},
        {"max_results": -1},
        {"max_results": "x"},
        {"order_by": ["name"]},
        {"order_by": [{}]},
        {"order_by": [{"field_name": "bogus"}]},
        {"order_by": [{"field_name": "name"}, {"field_name": "name", "ascending": False}]},
        {"datasets": [{}]},
        {"datasets": [{"dataset_digest": "g"}]},
    ],
)
def test_searches_that_are_wrong(door: Door, asked: dict[str, Any]) -> None:
    body = {"experiment_ids": ["0"], **asked}
    door.refused(door.send("POST", "logged-models/search", body))


def test_no_experiments_find_nothing(door: Door) -> None:
    assert door.post("logged-models/search", {"experiment_ids": []}) == {}
    assert door.post("logged-models/search", {"experiment_ids": ["12345"]}) == {}
