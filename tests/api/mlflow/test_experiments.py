"""Experiments, call by call: answers, defaults, limits, errors."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.mlflow.door import ABSENT, INVALID, TAKEN, Door


def test_create_then_get_shows_all_fields(door: Door) -> None:
    name = door.name("shown")
    tags = [{"key": "a", "value": "1"}, {"key": "empty", "value": ""}]
    made = door.post("experiments/create", {"name": name, "tags": tags, "unknown": [1]})
    shown = door.get("experiments/get", experiment_id=made["experiment_id"])["experiment"]
    assert shown.pop("creation_time") == shown.pop("last_update_time")
    assert shown == {
        "experiment_id": made["experiment_id"],
        "name": name,
        "artifact_location": f"mlflow-artifacts:/{made['experiment_id']}",
        "lifecycle_stage": "active",
        "tags": tags,
        "workspace": "default",
    }
    assert door.get("experiments/get-by-name", experiment_name=name)["experiment"]["name"] == name


def test_default_experiment_is_there_from_the_start(door: Door) -> None:
    assert door.get("experiments/get", experiment_id="0")["experiment"]["name"] == "Default"


@pytest.mark.parametrize(
    ("location", "uri"),
    [
        ("s3://bucket/some/place", "s3://bucket/some/place"),
        ("s3://bucket/slash/", "s3://bucket/slash"),
        ("mlflow-artifacts:/team/a", "mlflow-artifacts:/team/a"),
        ("/mnt/shared", "/mnt/shared"),
        ("file:///mnt/shared", "file:///mnt/shared"),
    ],
)
def test_location_is_kept_and_runs_lie_below_it(door: Door, location: str, uri: str) -> None:
    id_ = door.experiment(artifact_location=location)
    shown = door.get("experiments/get", experiment_id=id_)["experiment"]
    assert shown["artifact_location"] == uri
    run_id = door.run(id_)
    info = door.get("runs/get", run_id=run_id)["run"]["info"]
    assert info["artifact_uri"] == f"{uri}/{run_id}/artifacts"
    [found] = door.post("runs/search", {"experiment_ids": [id_]})["runs"]
    assert found["info"]["artifact_uri"] == info["artifact_uri"]
    by_uri = {"experiment_ids": [id_], "filter": f"artifact_uri = '{info['artifact_uri']}'"}
    assert len(door.post("runs/search", by_uri)["runs"]) == 1
    model = door.get(f"logged-models/{door.logged_model(id_)}")["model"]["info"]
    assert model["artifact_uri"] == f"{uri}/models/{model['model_id']}/artifacts"


@pytest.mark.parametrize(
    "location",
    [
        "runs:/0123/model",
        "RUNS:/0123/model",
        "models:/m/1",
        "s3://bucket/p?versionId=1",
        "s3://bucket/p#part",
        "http://host/p;x",
        "s3://bucket/../other",
        "s3://bucket/%2e%2e/other",
        "s3://bucket/%252e%252e/other",
        "mlflow-artifacts:/../x",
        "mlflow-artifacts://other-host/x",
        "mlflow-artifacts:x",
        "mlflow-artifacts:/a//b",
        "..\\x",
        " ",
    ],
)
def test_tricky_locations_are_refused(door: Door, location: str) -> None:
    body = {"name": door.name(), "artifact_location": location}
    assert "artifact_location" in door.refused(door.send("POST", "experiments/create", body))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "Missing value for required parameter 'name'."),
        ({"name": ""}, "Missing value for required parameter 'name'."),
        ({"name": None}, "Missing value for required parameter 'name'."),
        ({"name": 5}, "Invalid value 5 for parameter 'name' supplied"),
        ({"name": True}, "Invalid value true for parameter 'name' supplied"),
        ({"name": "x" * 501}, "'name' exceeds the maximum length of 500 characters"),
        ({"name": "t", "tags": {"key": "k"}}, "for parameter 'tags' supplied"),
        ({"name": "t", "tags": [{"value": "v"}]}, "tags[0].key"),
        ({"name": "t", "tags": [{"key": "a#", "value": "v"}]}, 'Invalid value "a#"'),
        (
            {"name": "t", "tags": [{"key": "k" * 251}]},
            "'tags[0].key' exceeds the maximum length of 250 characters",
        ),
        (
            {"name": "t", "tags": [{"key": "k", "value": "v" * 20_001}]},
            "'tags[0].value' exceeds the maximum length of 20000 characters",
        ),
    ],
)
def test_create_refuses(door: Door, body: dict[str, Any], said: str) -> None:
    assert said in door.refused(door.send("POST", "experiments/create", body))


def test_limits_are_reached_and_not_passed(door: Door) -> None:
    id_ = door.experiment(name="x" * 500, tags=[{"key": "k" * 250, "value": "v" * 20_000}])
    tags = [{"key": f"t{i}", "value": ""} for i in range(150)]
    assert door.experiment(tags=tags) != id_


@pytest.mark.parametrize(
    ("id_", "error", "said"),
    [
        ("999999", ABSENT, "No Experiment with id=999999 exists"),
        ("-1", ABSENT, "No Experiment with id=-1 exists"),
        (str(2**63 - 1), ABSENT, f"No Experiment with id={2**63 - 1} exists"),
        (str(2**63), INVALID, "Experiment ID must be a valid integer"),
        ("9" * 400, INVALID, "Experiment ID must be a valid integer"),
        ("abc", INVALID, "Invalid experiment ID 'abc'"),
        ("1.0", INVALID, "Experiment ID must be a valid integer"),
        ("\u0663", INVALID, "Experiment ID must be a valid integer"),
        ("", INVALID, "Missing value for required parameter 'experiment_id'."),
    ],
)
@pytest.mark.parametrize("call", ["get", "delete", "restore", "update", "set-experiment-tag"])
def test_ids_that_name_no_experiment(
    door: Door, call: str, id_: str, error: tuple[str, int], said: str
) -> None:
    body = {"experiment_id": id_, "new_name": door.name(), "key": "k", "value": "v"}
    if call == "get":
        answer = door.send("GET", "experiments/get", body)
    else:
        answer = door.send("POST", f"experiments/{call}", body)
    assert said in door.refused(answer, error)


def test_delete_takes_the_runs_along_and_restore_brings_them_back(door: Door) -> None:
    name = door.name("doomed")
    id_ = door.experiment(name=name)
    run_id = door.run(id_)
    by_id = {"experiment_id": id_}
    assert door.post("experiments/delete", by_id) == {}
    assert door.refused(door.send("POST", "experiments/delete", by_id), ABSENT)
    info = door.get("runs/get", run_id=run_id)["run"]["info"]
    assert info["lifecycle_stage"] == "deleted"
    for call, body in (
        ("experiments/update", {**by_id, "new_name": door.name()}),
        ("experiments/set-experiment-tag", {**by_id, "key": "k", "value": "v"}),
        ("experiments/delete-experiment-tag", {**by_id, "key": "k"}),
        ("runs/create", by_id),
        ("logged-models", by_id),
        ("runs/log-metric", {"run_id": run_id, "key": "m", "value": 1, "timestamp": 1}),
    ):
        assert "must be in the 'active' state" in door.refused(door.send("POST", call, body))
    message = door.refused(door.send("POST", "experiments/create", {"name": name}), TAKEN)
    assert message.startswith(f"Experiment(name={name}) already exists")
    shown = door.get("experiments/get-by-name", experiment_name=name)["experiment"]
    assert shown["lifecycle_stage"] == "deleted"
    assert door.post("experiments/restore", by_id) == {}
    assert door.refused(door.send("POST", "experiments/restore", by_id), ABSENT)
    assert door.get("runs/get", run_id=run_id)["run"]["info"]["lifecycle_stage"] == "active"


def test_rename(door: Door) -> None:
    id_, taken = door.experiment(), door.name("taken")
    door.experiment(name=taken)
    new = door.name("renamed")
    assert door.post("experiments/update", {"experiment_id": id_, "new_name": new}) == {}
    assert door.get("experiments/get", experiment_id=id_)["experiment"]["name"] == new
    body = {"experiment_id": id_, "new_name": taken}
    door.refused(door.send("POST", "experiments/update", body), TAKEN)


def test_tags_are_set_over_and_deleted(door: Door) -> None:
    id_ = door.experiment(tags=[{"key": "a", "value": "1"}])
    for value in ("2", ""):
        body = {"experiment_id": id_, "key": "a", "value": value}
        assert door.post("experiments/set-experiment-tag", body) == {}
        shown = door.get("experiments/get", experiment_id=id_)["experiment"]
        assert shown["tags"] == [{"key": "a", "value": value}]
    gone = {"experiment_id": id_, "key": "a"}
    assert door.post("experiments/delete-experiment-tag", gone) == {}
    answer = door.send("POST", "experiments/delete-experiment-tag", gone)
    assert door.refused(answer, ABSENT) == f"No tag with name: a in experiment with id {id_}"


@pytest.mark.parametrize("key", ["a b.c-d_e/f:g", "é", "日本", "k" * 250])
def test_keys_that_are_good(door: Door, key: str) -> None:
    id_ = door.experiment()
    body = {"experiment_id": id_, "key": key, "value": "v" * 20_000}
    assert door.post("experiments/set-experiment-tag", body) == {}


@pytest.mark.parametrize(
    "key", ["a#", "a@b", "a\\b", "a\nb", "/a", "a/", "a//b", "./a", "a/../b", "..", ".", "k" * 251]
)
def test_keys_that_are_bad_everywhere(door: Door, key: str) -> None:
    run_id, model = door.run(), door.model("s3://b/m")
    for call, body in (
        ("experiments/set-experiment-tag", {"experiment_id": "0", "key": key, "value": "v"}),
        ("runs/set-tag", {"run_id": run_id, "key": key, "value": "v"}),
        ("runs/log-parameter", {"run_id": run_id, "key": key, "value": "v"}),
        ("runs/log-metric", {"run_id": run_id, "key": key, "value": 1, "timestamp": 1}),
        ("registered-models/set-tag", {"name": model, "key": key, "value": "v"}),
        ("model-versions/set-tag", {"name": model, "version": "1", "key": key, "value": "v"}),
    ):
        message = door.refused(door.send("POST", call, body))
        assert ("'key' exceeds the maximum" in message) == (len(key) > 250)
        assert ("for parameter 'key' supplied" in message) == (len(key) <= 250)


def test_datasets_of_experiments(door: Door) -> None:
    id_ = door.experiment()
    dataset = {"name": "d", "digest": "g", "source_type": "local", "source": "{}"}
    for role in ("train", "eval"):
        tags = [{"key": "mlflow.data.context", "value": role}]
        body = {"run_id": door.run(id_), "datasets": [{"dataset": dataset, "tags": tags}]}
        door.post("runs/log-inputs", body)
    door.post("runs/log-inputs", body)
    fields = {"experiment_id": id_, "name": "d", "digest": "g"}
    for base in ("/api/2.0/mlflow", "/ajax-api/2.0/mlflow"):
        found = door.post(f"{base}/experiments/search-datasets", {"experiment_ids": [id_, "77"]})
        assert found["dataset_summaries"] == [
            {**fields, "context": "eval"},
            {**fields, "context": "train"},
        ]
    assert door.post("experiments/search-datasets", {"experiment_ids": ["0"] * 20}) == {}
    for ids, said in (
        ([], "SearchDatasets request must specify at least one experiment_id."),
        (["0"] * 21, "SearchDatasets request cannot specify more than 20 experiment_ids"),
        (["x"], "Experiment ID must be a valid integer"),
        ("0", "'experiment_ids'"),
        (None, "'experiment_ids'"),
    ):
        answer = door.send("POST", "experiments/search-datasets", {"experiment_ids": ids})
        assert said in door.refused(answer)
    message = door.refused(door.send("POST", "experiments/search-datasets", {}))
    assert "at least one experiment_id" in message
