"""Runs, call by call: answers, defaults, states, errors."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.mlflow.door import ABSENT, INVALID, Door


def test_create_answers_the_whole_run(door: Door) -> None:
    body = {
        "experiment_id": "0",
        "run_name": "one",
        "user_id": "ann",
        "start_time": 1_700_000_000_000,
        "tags": [{"key": "a", "value": "b"}],
    }
    run = door.post("runs/create", body)["run"]
    run_id = run["info"]["run_id"]
    assert run["info"] == {
        "run_id": run_id,
        "run_uuid": run_id,
        "run_name": "one",
        "experiment_id": "0",
        "user_id": "ann",
        "status": "RUNNING",
        "start_time": 1_700_000_000_000,
        "artifact_uri": f"mlflow-artifacts:/0/{run_id}/artifacts",
        "lifecycle_stage": "active",
    }
    assert len(run_id) == 32
    tags = run["data"]["tags"]
    assert {"key": "a", "value": "b"} in tags
    assert {"key": "mlflow.runName", "value": "one"} in tags


def test_a_name_is_made_up_and_is_a_tag(door: Door) -> None:
    run = door.post("runs/create", {"experiment_id": "0"})["run"]
    name = run["info"]["run_name"]
    assert name.count("-") == 2
    assert run["data"]["tags"] == [{"key": "mlflow.runName", "value": name}]


@pytest.mark.parametrize("length", [1, 500, 501, 8000])
def test_long_names_of_runs_are_taken(door: Door, length: int) -> None:
    run_id = door.run(run_name="x" * length)
    assert door.get("runs/get", run_id=run_id)["run"]["info"]["run_name"] == "x" * length


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"experiment_id": "abc"}, "Invalid experiment ID 'abc'"),
        ({"experiment_id": 0}, "Invalid value 0 for parameter 'experiment_id' supplied"),
        ({"start_time": "x"}, "Invalid value \"x\" for parameter 'start_time' supplied"),
        ({"start_time": 2**63}, "for parameter 'start_time' supplied"),
        ({"start_time": -(2**63) - 1}, "for parameter 'start_time' supplied"),
        ({"start_time": 1.5}, "for parameter 'start_time' supplied"),
        ({"run_name": "x" * 8001}, "'run_name' exceeds the maximum length"),
        ({"run_name": "a", "tags": [{"key": "mlflow.runName", "value": "b"}]}, "run_name"),
        ({"tags": [{"key": "a#", "value": ""}]}, "tags[0].key"),
        ({"tags": ["a"]}, "tags[0]"),
    ],
)
def test_create_refuses(door: Door, fields: dict[str, Any], said: str) -> None:
    answer = door.send("POST", "runs/create", {"experiment_id": "0", **fields})
    assert said in door.refused(answer)


def test_either_spelling_of_the_id_will_do(door: Door) -> None:
    run_id = door.run()
    assert door.get("runs/get", run_uuid=run_id) == door.get("runs/get", run_id=run_id)
    both = door.get("runs/get", run_id=run_id, run_uuid="other")
    assert both["run"]["info"]["run_id"] == run_id


@pytest.mark.parametrize("id_", ["nope", "a/../b", "x" * 300, "bad#id", "' OR 1=1", "é"])
def test_unknown_runs(door: Door, id_: str) -> None:
    for call, body in (
        ("update", {"status": "FINISHED"}),
        ("delete", {}),
        ("restore", {}),
        ("log-metric", {"key": "k", "value": 1, "timestamp": 1}),
        ("log-parameter", {"key": "k", "value": "1"}),
        ("set-tag", {"key": "k", "value": "1"}),
        ("delete-tag", {"key": "k"}),
        ("log-batch", {}),
        ("log-inputs", {"datasets": []}),
        ("outputs", {"models": []}),
    ):
        answer = door.send("POST", f"runs/{call}", {"run_id": id_, **body})
        assert door.refused(answer, ABSENT) == f"Run with id={id_} not found"
    answer = door.send("GET", "runs/get", {"run_id": id_})
    assert door.refused(answer, ABSENT) == f"Run with id={id_} not found"


_WRITES = ("update", "delete", "restore", "log-metric", "log-parameter", "set-tag", "delete-tag")
_WRITES += ("log-batch", "log-inputs", "outputs", "log-model")


@pytest.mark.parametrize("given", [{}, {"run_id": ""}, {"run_id": None}, {"run_uuid": ""}])
@pytest.mark.parametrize("call", _WRITES)
def test_the_id_is_the_first_thing_missed(door: Door, call: str, given: dict[str, Any]) -> None:
    message = door.refused(door.send("POST", f"runs/{call}", given))
    assert "Missing value for required parameter 'run_id'." in message


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        ("RUNNING", "RUNNING"),
        ("SCHEDULED", "SCHEDULED"),
        ("FINISHED", "FINISHED"),
        ("FAILED", "FAILED"),
        ("KILLED", "KILLED"),
        (1, "RUNNING"),
        (3, "FINISHED"),
        ("5", "KILLED"),
    ],
)
def test_states(door: Door, status: str | int, shown: str) -> None:
    body = {"run_id": door.run(), "status": status, "end_time": 1_700_000_000_001}
    info = door.post("runs/update", body)["run_info"]
    assert (info["status"], info["end_time"]) == (shown, 1_700_000_000_001)


@pytest.mark.parametrize("status", ["DONE", "finished", 0.5, 6, 99, "0", -1, [], "9" * 30])
def test_states_that_are_none(door: Door, status: Any) -> None:
    answer = door.send("POST", "runs/update", {"run_id": door.run(), "status": status})
    assert "'status'" in door.refused(answer)


def test_rename_by_update_and_by_tag(door: Door) -> None:
    run_id = door.run(run_name="old")
    assert (
        door.post("runs/update", {"run_id": run_id, "run_name": "new"})["run_info"]["run_name"]
        == "new"
    )
    tag = {"run_id": run_id, "key": "mlflow.runName", "value": "newer"}
    door.post("runs/set-tag", tag)
    run = door.get("runs/get", run_id=run_id)["run"]
    assert run["info"]["run_name"] == "newer"
    assert run["data"]["tags"] == [{"key": "mlflow.runName", "value": "newer"}]
    answer = door.send("POST", "runs/update", {"run_id": run_id, "run_name": "x" * 8001})
    door.refused(answer)


def test_delete_and_restore_may_be_said_twice(door: Door) -> None:
    by_id = {"run_id": door.run()}
    for call, stage in (("delete", "deleted"), ("restore", "active")):
        for _ in range(2):
            assert door.post(f"runs/{call}", by_id) == {}
        info = door.get("runs/get", **by_id)["run"]["info"]
        assert info["lifecycle_stage"] == stage


@pytest.mark.parametrize(
    ("call", "body"),
    [
        ("log-metric", {"key": "a", "value": 1, "timestamp": 1}),
        ("log-parameter", {"key": "a", "value": "1"}),
        ("set-tag", {"key": "a", "value": "1"}),
        ("delete-tag", {"key": "a"}),
        ("log-batch", {"metrics": [{"key": "a", "value": 1, "timestamp": 1}]}),
        ("log-inputs", {"datasets": [], "models": [{"model_id": "m-1"}]}),
        ("outputs", {"models": [{"model_id": "m-9", "step": 1}]}),
        ("update", {"status": "FINISHED"}),
        (
            "log-model",
            {"model_json": '{"artifact_path": "a", "utc_time_created": "t", "flavors": {}}'},
        ),
    ],
)
def test_deleted_runs_take_no_writes(door: Door, call: str, body: dict[str, Any]) -> None:
    run_id = door.run()
    door.post("runs/delete", {"run_id": run_id})
    message = door.refused(door.send("POST", f"runs/{call}", {"run_id": run_id, **body}))
    assert message.startswith(f"The run {run_id} must be in the 'active' state")


def test_inputs_and_outputs_are_there_also_without_any(door: Door) -> None:
    run = door.get("runs/get", run_id=door.run())["run"]
    assert (run["inputs"], run["outputs"]) == ({}, {})


def test_outputs_and_model_inputs_come_back(door: Door) -> None:
    run_id = door.run()
    for step in (3, 4):
        models = [{"model_id": "m-1", "step": step}, {"model_id": "m-2"}]
        assert door.post("runs/outputs", {"run_id": run_id, "models": models}) == {}
    for _ in range(2):
        models = [{"model_id": "m-7"}, {"model_id": "m-5"}]
        assert door.post("runs/log-inputs", {"run_id": run_id, "models": models}) == {}
    run = door.get("runs/get", run_id=run_id)["run"]
    outputs = [{"model_id": "m-1", "step": 4}, {"model_id": "m-2", "step": 0}]
    assert run["outputs"]["model_outputs"] == outputs
    assert run["inputs"]["model_inputs"] == [{"model_id": "m-5"}, {"model_id": "m-7"}]
    answer = door.send("POST", "runs/outputs", {"run_id": run_id})
    assert "'models'" in door.refused(answer)


def test_a_dataset_is_an_input_once(door: Door) -> None:
    run_id = door.run()
    dataset = {"name": "d", "digest": "g", "source_type": "local", "source": "{}"}
    for role in ("train", "eval"):
        item = {"dataset": dataset, "tags": [{"key": "mlflow.data.context", "value": role}]}
        door.post("runs/log-inputs", {"run_id": run_id, "datasets": [item, item]})
    [found] = door.get("runs/get", run_id=run_id)["run"]["inputs"]["dataset_inputs"]
    assert found["tags"] == [{"key": "mlflow.data.context", "value": "train"}]


def test_history_of_logged_models_is_a_tag(door: Door) -> None:
    run_id = door.run()
    said = '{"artifact_path": "a", "utc_time_created": "2020", "flavors": {}}'
    for _ in range(2):
        assert door.post("runs/log-model", {"run_id": run_id, "model_json": said}) == {}
    tags = door.get("runs/get", run_id=run_id)["run"]["data"]["tags"]
    [history] = [tag["value"] for tag in tags if tag["key"] == "mlflow.log-model.history"]
    assert history.count('"artifact_path":"a"') == 2
    for bad in ("{", "[]", "{}", "[" * 5000, "null", '{"artifact_path": "a"}'):
        door.refused(door.send("POST", "runs/log-model", {"run_id": run_id, "model_json": bad}))


@pytest.mark.parametrize(
    ("field", "longest"), [("name", 500), ("digest", 36), ("source", 65_535), ("schema", 1_048_575)]
)
def test_limits_of_datasets(door: Door, field: str, longest: int) -> None:
    run_id = door.run()
    whole = {"name": "d", "digest": "g", "source_type": "local", "source": "s", "schema": "{}"}
    for length, error in ((longest, None), (longest + 1, INVALID)):
        dataset = {**whole, field: "x" * length}
        answer = door.send(
            "POST", "runs/log-inputs", {"run_id": run_id, "datasets": [{"dataset": dataset}]}
        )
        if error is None:
            assert door.good(answer) == {}
        else:
            said = f"'datasets[0].dataset.{field}' exceeds the maximum length of {longest}"
            assert said in door.refused(answer)


@pytest.mark.parametrize(("key", "value"), [("k" * 256, "v"), ("k", "v" * 501)])
def test_limits_of_tags_of_inputs(door: Door, key: str, value: str) -> None:
    item = {"dataset": {"name": "d", "digest": "g"}, "tags": [{"key": key, "value": value}]}
    answer = door.send("POST", "runs/log-inputs", {"run_id": door.run(), "datasets": [item]})
    assert "exceeds the maximum length" in door.refused(answer)
    item["tags"] = [{"key": key[:255], "value": value[:500]}]
    door.post("runs/log-inputs", {"run_id": door.run(), "datasets": [item]})
