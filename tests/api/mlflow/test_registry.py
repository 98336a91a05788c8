"""Registered models, versions, aliases and stages, call by call."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.mlflow.door import ABSENT, INVALID, TAKEN, Door

SOURCE = "s3://bucket/model"


def version(door: Door, name: str, number: str) -> dict[str, Any]:
    shown = door.get("model-versions/get", name=name, version=number)["model_version"]
    assert isinstance(shown, dict)
    return shown


def test_create_then_get_shows_all_fields(door: Door) -> None:
    name = door.name("shown")
    body = {"name": name, "description": "d", "tags": [{"key": "a", "value": "1"}]}
    model = door.post("registered-models/create", body)["registered_model"]
    assert model.pop("creation_timestamp") == model.pop("last_updated_timestamp")
    assert model == {
        "name": name,
        "description": "d",
        "tags": [{"key": "a", "value": "1"}],
    }
    run_id = door.run()
    body = {
        "name": name,
        "source": SOURCE,
        "run_id": run_id,
        "run_link": "http://elsewhere/run",
        "description": "first",
        "tags": [{"key": "b", "value": ""}],
    }
    made = door.post("model-versions/create", body)["model_version"]
    assert made.pop("creation_timestamp") == made.pop("last_updated_timestamp")
    assert made == {
        "name": name,
        "version": "1",
        "current_stage": "None",
        "description": "first",
        "source": SOURCE,
        "run_id": run_id,
        "run_link": "http://elsewhere/run",
        "status": "READY",
        "tags": [{"key": "b", "value": ""}],
        "user_id": "tester",
    }
    shown = door.get("registered-models/get", name=name)["registered_model"]
    assert [found["version"] for found in shown["latest_versions"]] == ["1"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "Missing value for required parameter 'name'."),
        ({"name": ""}, "Missing value for required parameter 'name'."),
        ({"name": 5}, "Invalid value 5 for parameter 'name' supplied"),
        ({"name": " "}, "Missing value for required parameter 'name'."),
        ({"name": "a/b"}, "Invalid model name 'a/b'. Names cannot contain '/' or ':'."),
        ({"name": "a:b"}, "Invalid model name 'a:b'. Names cannot contain '/' or ':'."),
        ({"name": "."}, "name"),
        ({"name": ".."}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "x" * 257}, "256"),
        ({"name": "t", "tags": [{"key": "k" * 251}]}, "maximum length of 250"),
        ({"name": "t", "tags": [{"key": "k", "value": "v" * 100_001}]}, "length of 100000"),
        ({"name": "t", "tags": [{"key": "a//b"}]}, "tags[0].key"),
    ],
)
def test_create_refuses(door: Door, body: dict[str, Any], said: str) -> None:
    assert said in door.refused(door.send("POST", "registered-models/create", body))


def test_limits_are_reached_and_not_passed(door: Door) -> None:
    tags = [{"key": "k" * 250, "value": "v" * 100_000}]
    name = "é" * 256
    door.post("registered-models/create", {"name": name, "tags": tags})
    message = door.refused(door.send("POST", "registered-models/create", {"name": name}), TAKEN)
    assert message.startswith(f"Registered Model (name={name}) already exists")
    body = {"name": name, "source": SOURCE, "tags": tags}
    assert door.post("model-versions/create", body)["model_version"]["tags"] == tags


@pytest.mark.parametrize(
    ("method", "call"),
    [
        ("GET", "registered-models/get"),
        ("PATCH", "registered-models/update"),
        ("POST", "registered-models/rename"),
        ("DELETE", "registered-models/delete"),
        ("POST", "registered-models/get-latest-versions"),
        ("POST", "registered-models/set-tag"),
        ("DELETE", "registered-models/delete-tag"),
        ("GET", "registered-models/alias"),
        ("DELETE", "registered-models/alias"),
        ("POST", "model-versions/create"),
    ],
)
def test_models_that_are_not_there(door: Door, method: str, call: str) -> None:
    body = {"new_name": door.name(), "key": "k", "value": "v", "alias": "a", "source": SOURCE}
    answer = door.send(method, call, {"name": "nobody", **body})
    assert door.refused(answer, ABSENT) == "Registered Model with name=nobody not found"
    message = door.refused(door.send(method, call, {"name": "a/b", **body}))
    assert "Names cannot contain '/' or ':'" in message
    assert "'name'" in door.refused(door.send(method, call, body))


@pytest.mark.parametrize(
    ("number", "error", "said"),
    [
        ("99", ABSENT, "Model Version (name=@, version=99) not found"),
        ("0", ABSENT, "Model Version (name=@, version=0) not found"),
        ("-1", ABSENT, "Model Version (name=@, version=-1) not found"),
        (str(2**40), ABSENT, f"Model Version (name=@, version={2**40}) not found"),
        ("x", INVALID, "Parameter 'version' must be an integer, got 'x'."),
        ("1.0", INVALID, "Parameter 'version' must be an integer"),
        ("\u0661", INVALID, "Parameter 'version' must be an integer"),
        ("9" * 30, INVALID, "Parameter 'version' must be an integer"),
        ("", INVALID, "Missing value for required parameter 'version'."),
        (1, INVALID, "Invalid value 1 for parameter 'version' supplied"),
    ],
)
@pytest.mark.parametrize(
    ("method", "call"),
    [
        ("GET", "model-versions/get"),
        ("GET", "model-versions/get-download-uri"),
        ("PATCH", "model-versions/update"),
        ("DELETE", "model-versions/delete"),
        ("POST", "model-versions/set-tag"),
        ("DELETE", "model-versions/delete-tag"),
        ("POST", "model-versions/transition-stage"),
        ("POST", "registered-models/alias"),
    ],
)
def test_versions_that_are_not_there(
    door: Door, method: str, call: str, number: Any, error: tuple[str, int], said: str
) -> None:
    name = door.model(SOURCE)
    body = {"name": name, "version": number, "key": "k", "stage": "Staging", "alias": "a"}
    message = door.refused(door.send(method, call, body), error)
    assert message.startswith(said.replace("@", name))
    if error is ABSENT and call != "registered-models/alias":
        message = door.refused(door.send(method, call, {**body, "name": "nobody"}), ABSENT)
        assert message == said.replace("@", "nobody")


def test_description_and_tags(door: Door) -> None:
    name = door.model(SOURCE)
    for call, body in (
        ("registered-models/{}", {"name": name}),
        ("model-versions/{}", {"name": name, "version": "1"}),
    ):
        for text in ("new", "", None):
            answer = door.send("PATCH", call.format("update"), {**body, "description": text})
            [shown] = door.good(answer).values()
            assert shown.get("description", "") == (text or "")
        for _ in range(2):
            tag = {**body, "key": "t", "value": "1"}
            assert door.post(call.format("set-tag"), tag) == {}
        for _ in range(2):  # what is gone already may be deleted again
            gone = door.send("DELETE", call.format("delete-tag"), {**body, "key": "t"})
            assert door.good(gone) == {}


def test_rename_takes_versions_and_aliases_along(door: Door) -> None:
    name, new = door.model(SOURCE, SOURCE), door.name("renamed")
    door.post("registered-models/alias", {"name": name, "alias": "champion", "version": "1"})
    shown = door.post("registered-models/rename", {"name": name, "new_name": new})
    assert shown["registered_model"]["name"] == new
    assert shown["registered_model"]["aliases"] == [{"alias": "champion", "version": "1"}]
    door.refused(door.send("GET", "registered-models/get", {"name": name}), ABSENT)
    assert version(door, new, "2")["version"] == "2"
    taken = {"name": new, "new_name": door.model()}
    message = door.refused(door.send("POST", "registered-models/rename", taken), TAKEN)
    assert message.startswith(f"Registered Model (name={taken['new_name']}) already exists")
    for bad in ("", " ", "a/b", "x" * 257):
        body = {"name": new, "new_name": bad}
        door.refused(door.send("POST", "registered-models/rename", body))


def test_numbers_are_never_used_again(door: Door) -> None:
    name = door.model(SOURCE, SOURCE)
    door.good(door.send("DELETE", "model-versions/delete", {"name": name, "version": "2"}))
    made = door.post("model-versions/create", {"name": name, "source": SOURCE})
    assert made["model_version"]["version"] == "3"
    door.good(door.send("DELETE", "registered-models/delete", {"name": name}))
    door.refused(door.send("DELETE", "registered-models/delete", {"name": name}), ABSENT)
    door.post("registered-models/create", {"name": name})
    made = door.post("model-versions/create", {"name": name, "source": SOURCE})
    assert made["model_version"]["version"] == "4"


@pytest.mark.parametrize("alias", ["champion", "a-b_c", "A1", "1", "v", "v1a", "é", "x" * 255])
def test_aliases_that_are_good(door: Door, alias: str) -> None:
    name = door.model(SOURCE, SOURCE)
    for number in ("1", "2"):
        body = {"name": name, "alias": alias, "version": number}
        assert door.post("registered-models/alias", body) == {}
        found = door.get("registered-models/alias", name=name, alias=alias)["model_version"]
        assert (found["version"], found["aliases"]) == (number, [alias])
    assert "aliases" not in version(door, name, "1")
    gone = {"name": name, "alias": alias}
    for _ in range(2):
        assert door.good(door.send("DELETE", "registered-models/alias", gone)) == {}
    answer = door.send("GET", "registered-models/alias", gone)
    assert door.refused(answer) == f"Registered model alias {alias} not found."


@pytest.mark.parametrize(
    "alias", ["latest", "LATEST", "v1", "V12", "a/b", "a b", "a.b", "a:b", "@", "x" * 256, "", None]
)
def test_aliases_that_are_bad(door: Door, alias: Any) -> None:
    body = {"name": door.model(SOURCE), "alias": alias, "version": "1"}
    door.refused(door.send("POST", "registered-models/alias", body))
    door.refused(door.send("DELETE", "registered-models/alias", body))


def test_latest_is_an_alias_for_reading(door: Door) -> None:
    name = door.model(SOURCE, SOURCE)
    found = door.get("registered-models/alias", name=name, alias="latest")["model_version"]
    assert found["version"] == "2"
    door.refused(
        door.send("GET", "registered-models/alias", {"name": door.model(), "alias": "latest"})
    )


def test_an_alias_goes_with_its_version(door: Door) -> None:
    name = door.model(SOURCE)
    door.post("registered-models/alias", {"name": name, "alias": "a", "version": "1"})
    door.good(door.send("DELETE", "model-versions/delete", {"name": name, "version": "1"}))
    assert "aliases" not in door.get("registered-models/get", name=name)["registered_model"]


# --- stages -------------------------------------------------------------------------------------


def move(door: Door, name: str, number: str, stage: str, archive: Any = False) -> dict[str, Any]:
    body = {"name": name, "version": number, "stage": stage, "archive_existing_versions": archive}
    moved = door.post("model-versions/transition-stage", body)["model_version"]
    assert isinstance(moved, dict)
    return moved


def stages(door: Door, name: str, count: int) -> list[str]:
    return [version(door, name, str(n))["current_stage"] for n in range(1, count + 1)]


@pytest.mark.parametrize(
    ("said", "stage"),
    [
        ("Staging", "Staging"),
        ("sTaGiNg", "Staging"),
        ("PRODUCTION", "Production"),
        ("archived", "Archived"),
        ("none", "None"),
    ],
)
def test_stages_in_any_case(door: Door, said: str, stage: str) -> None:
    name = door.model(SOURCE)
    for _ in range(2):
        assert move(door, name, "1", said)["current_stage"] == stage


def test_archiving_those_that_were_there(door: Door) -> None:
    name = door.model(SOURCE, SOURCE, SOURCE)
    move(door, name, "1", "Production")
    move(door, name, "2", "Production")
    assert stages(door, name, 3) == ["Production", "Production", "None"]
    move(door, name, "3", "Production", archive=True)
    assert stages(door, name, 3) == ["Archived", "Archived", "Production"]
    move(door, name, "3", "Production", archive=True)
    assert stages(door, name, 3) == ["Archived", "Archived", "Production"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"stage": "bogus"},
            "Invalid Model Version stage: bogus. Value must be one of None, Staging",
        ),
        ({"stage": ""}, "Missing value for required parameter 'stage'."),
        ({"stage": None}, "Missing value for required parameter 'stage'."),
        ({"stage": 5}, "Invalid value 5 for parameter 'stage' supplied"),
        ({"stage": "None", "archive_existing_versions": True}, "not out of None"),
        ({"stage": "Archived", "archive_existing_versions": True}, "not out of Archived"),
        ({"stage": "Staging", "archive_existing_versions": "true"}, "must be true or false"),
        ({"stage": "Staging", "archive_existing_versions": 1}, "must be true or false"),
    ],
)
def test_transitions_that_are_refused(door: Door, fields: dict[str, Any], said: str) -> None:
    name = door.model(SOURCE)
    body = {"name": name, "version": "1", **fields}
    assert said in door.refused(door.send("POST", "model-versions/transition-stage", body))
    assert stages(door, name, 1) == ["None"]


@pytest.mark.parametrize(
    ("asked", "numbers"),
    [
        (None, ["2", "3", "4"]),
        ([], ["2", "3", "4"]),
        (["Production"], ["2"]),
        (["none", "PRODUCTION"], ["2", "4"]),
        (["Archived"], []),
    ],
)
def test_latest_version_of_each_stage(door: Door, asked: Any, numbers: list[str]) -> None:
    name = door.model(SOURCE, SOURCE, SOURCE, SOURCE)
    move(door, name, "1", "Production")
    move(door, name, "2", "Production")
    move(door, name, "3", "Staging")
    path = "registered-models/get-latest-versions"
    answers = [door.post(path, {"name": name, "stages": asked})]
    if asked != []:
        answers.append(door.get(path, name=name, **({"stages": asked} if asked else {})))
    for found in answers:
        assert [v["version"] for v in found.get("model_versions", [])] == numbers
    if not asked:
        shown = door.get("registered-models/get", name=name)["registered_model"]
        assert [v["version"] for v in shown["latest_versions"]] == numbers


def test_latest_of_stages_that_are_none(door: Door) -> None:
    body = {"name": door.model(SOURCE), "stages": ["bogus"]}
    message = door.refused(door.send("POST", "registered-models/get-latest-versions", body))
    assert "Invalid Model Version stage" in message


def test_a_move_is_a_fact_in_the_log(door: Door) -> None:
    name = door.model(SOURCE)
    move(door, name, "1", "Staging")
    move(door, name, "1", "Staging")
    events = door.workspace.lineage.events(kind="model.StageChanged")
    told = [event.body for event in events if event.subject == f"model:{name}/1"]
    assert told == [{"from": "None", "to": "Staging", "archived_others": False}]


def test_prompt_has_no_files_and_none_of_others(door: Door) -> None:
    name = door.name("prompt")
    marked = [{"key": "mlflow.prompt.is_prompt", "value": "true"}]
    door.post("registered-models/create", {"name": name, "tags": marked})
    for source in ("dummy-source", "prompt-template"):
        made = door.post("model-versions/create", {"name": name, "source": source, "tags": marked})
        assert made["model_version"]["source"] == source
    for source in ("/etc/passwd", "s3://bucket/x", "mlflow-artifacts:/0/x"):
        body = {"name": name, "source": source, "tags": marked}
        assert "prompt source" in door.refused(door.send("POST", "model-versions/create", body))
    body = {"name": name, "source": "dummy-source"}  # not marked: a version like any other
    door.refused(door.send("POST", "model-versions/create", body))
    body = {"name": door.model(), "source": f"models:/{name}/1"}
    assert "prompt" in door.refused(door.send("POST", "model-versions/create", body))


@pytest.mark.parametrize("name", ["a b", "a/b", "-a", "a.", "é", "a" * 64, "a\n"])
def test_names_of_webhooks_that_are_bad(door: Door, name: str) -> None:
    events = [{"entity": "MODEL_VERSION", "action": "CREATED"}]
    body = {"name": "a._-" * 15 + "abc", "url": "https://8.8.8.8/x", "events": events}
    id_ = door.post("webhooks", body)["webhook"]["webhook_id"]
    message = door.refused(door.send("POST", "webhooks", {**body, "name": name}))
    assert message.startswith(f"Webhook name {name!r} is invalid")
    assert door.refused(door.send("PATCH", f"webhooks/{id_}", {"name": name})) == message
