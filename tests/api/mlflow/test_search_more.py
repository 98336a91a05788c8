"""What searches refuse, and searches of what is matched in memory."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.mlflow.door import Door
from tests.api.mlflow.filled import Filled


@pytest.fixture(scope="module")
def filled(door: Door) -> Filled:
    return Filled(door)


@pytest.mark.parametrize(
    ("filter_", "at"),
    [
        ("metrics.acc > 0.4 OR metrics.acc < 0.6", 18),
        ("(metrics.acc > 0.4)", 0),
        ("NOT metrics.acc > 1", 0),
        ("metrics.acc > 'x'", 14),
        ("metrics.acc LIKE '1'", 0),
        ("metrics.acc IS NULL", 0),
        ("metrics.acc > 1e400", 14),
        ("params.lr = 0.1", 12),
        ("params.lr > '0'", 0),
        ("params.lr IN ('0.1')", 0),
        ("tags.tg = 5", 10),
        ("start_time > 'x'", 13),
        ("start_time LIKE '1'", 0),
        (f"start_time > {2**63}", 13),
        ("attributes.bogus = 'a'", 0),
        ("bogus = 'a'", 0),
        ("model.x = '1'", 0),
        ("dataset.profile = 'x'", 0),
        ("dataset.name > 'a'", 0),
        ("metrics.acc", 11),
        ("metrics.acc >", 13),
        ("> 0.4", 0),
        ("metrics. > 1", 9),
        ("metrics.acc == 0.5", 13),
        ("metrics.acc <> 0.5", 13),
        ("metrics.acc ~ 0.5", 12),
        ("metrics.acc > 0.4 AND AND metrics.acc < 1", 22),
        ("metrics.acc > 0.4, params.lr = '1'", 17),
        ("metrics.acc > 0.4; drop table runs", 17),
        ("params.lr = 'a' --", 16),
        ("status IN ('FINISHED'", 21),
        ("status IN ()", 11),
        ("'", 0),
    ],
)
def test_faults_in_filters_say_where(filled: Filled, filter_: str, at: int) -> None:
    answer = filled.door.send("POST", "runs/search", filled.asked(filter=filter_))
    message = filled.door.refused(answer)
    assert message.startswith("Invalid clause(s) in filter string")
    assert f"at {at}: " in message


@pytest.mark.parametrize(
    "order",
    [
        ["bogus"],
        ["attributes.bogus"],
        ["metrics.acc", "metrics.acc"],
        ["start_time", "start_time DESC"],
        ["metrics.acc foo"],
        ["metrics.acc ASC DESC"],
        [""],
        ["dataset.name"],
        ["metrics.a b/c DESC"],
        ["metrics.acc, params.lr"],
        [5],
        "start_time",
    ],
)
def test_orders_that_are_wrong(filled: Filled, order: Any) -> None:
    answer = filled.door.send("POST", "runs/search", filled.asked(order_by=order))
    assert "order_by" in filled.door.refused(answer)


@pytest.mark.parametrize(
    "change",
    [
        {"filter": "metrics.acc > 0"},
        {"order_by": ["start_time"]},
        {"run_view_type": "ALL"},
        {"experiment_ids": ["0"]},
        {"page_token": "garbage"},
        {"page_token": "eyJvZmZzZXQiOiAyfQ=="},
        {"page_token": "W10="},
        {"page_token": "é"},
    ],
)
def test_a_token_belongs_to_its_search(filled: Filled, change: dict[str, Any]) -> None:
    asked = filled.asked(max_results=2)
    token = filled.door.post("runs/search", asked)["next_page_token"]
    answer = filled.door.send("POST", "runs/search", {**asked, "page_token": token, **change})
    assert "Invalid page token" in filled.door.refused(answer)


@pytest.mark.parametrize("size", [0, -1, 50_001, 2**40, "x", 1.5, [], True])
def test_sizes_of_pages_that_are_refused(filled: Filled, size: Any) -> None:
    for call in ("runs/search", "experiments/search"):
        body = filled.asked(max_results=size)
        assert "'max_results'" in filled.door.refused(filled.door.send("POST", call, body))


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ({"experiment_ids": []}, ""),
        ({"experiment_ids": None}, ""),
        ({"experiment_ids": ["999999"]}, ""),
        ({"max_results": "2"}, "q4 q3"),
        ({"run_view_type": 1}, "q4 q3 q2 q1 q0"),
        ({"run_view_type": "DELETED_ONLY"}, ""),
        ({"run_view_type": ""}, "q4 q3 q2 q1 q0"),
    ],
)
def test_what_else_a_search_may_say(filled: Filled, asked: dict[str, Any], names: str) -> None:
    assert filled.names(**asked) == names


@pytest.mark.parametrize("asked", [{"experiment_ids": ["x"]}, {"run_view_type": "SOME"}])
def test_what_a_search_may_not_say(filled: Filled, asked: dict[str, Any]) -> None:
    filled.door.refused(filled.door.send("POST", "runs/search", filled.asked(**asked)))


# --- experiments --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filter_", "count"),
    [
        ("name = '<a>'", 1),
        ("name LIKE '<A>'", 0),
        ("name ILIKE '<A>'", 1),
        ("attribute.name = '<a>'", 1),
        ("name != '<a>' AND name = '<a>'", 0),
        ("name = '<a>' AND tags.t = '1'", 1),
        ("name = '<a>' AND tags.`t` != '1'", 0),
        ("name = '<a>' AND tag.u IS NULL", 1),
        ("name = '<a>' AND tags.t IS NOT NULL", 1),
        ("name = '<a>' AND creation_time > 5", 1),
        ("name = '<a>' AND last_update_time <= 5", 0),
        ("experiment_id IN ('<id>')", 1),
    ],
)
def test_filters_of_experiments(door: Door, filter_: str, count: int) -> None:
    name = door.name("exp-x")
    id_ = door.experiment(name=name, tags=[{"key": "t", "value": "1"}])
    text = filter_.replace("<a>", name).replace("<A>", name.upper()).replace("<id>", id_)
    for found in (
        door.post("experiments/search", {"filter": text, "max_results": 10}),
        door.get("experiments/search", filter=text, max_results=10),
    ):
        assert len(found.get("experiments", [])) == count


def test_orders_and_pages_of_experiments(door: Door) -> None:
    names = [door.name("paged") for _ in range(3)]
    ids = [door.experiment(name=name) for name in names]
    asked = {"filter": "name LIKE 'paged-%'", "max_results": 2, "order_by": ["experiment_id DESC"]}
    first = door.post("experiments/search", asked)
    second = door.post("experiments/search", {**asked, "page_token": first["next_page_token"]})
    shown = [item["experiment_id"] for item in first["experiments"] + second["experiments"]]
    assert sorted(shown, key=int) == ids
    other = {**asked, "page_token": first["next_page_token"], "order_by": ["name"]}
    door.refused(door.send("POST", "experiments/search", other))


@pytest.mark.parametrize("asked", [{}, {"max_results": None}])
def test_the_size_of_a_page_of_experiments_must_be_said(door: Door, asked: dict[str, Any]) -> None:
    message = door.refused(door.send("POST", "experiments/search", asked))
    assert "'max_results'" in message


# --- the registry -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(door: Door) -> str:
    name = "Searched-model"
    door.post("registered-models/create", {"name": name, "tags": [{"key": "a", "value": "1"}]})
    for source, run_id in (("s3://b/1", "run-1"), ("s3://b/2", "run-2"), ("dbfs:/3", "")):
        body = {"name": name, "source": source, "run_id": run_id}
        door.post("model-versions/create", body)
    door.post("model-versions/set-tag", {"name": name, "version": "2", "key": "t", "value": "v"})
    return name


@pytest.mark.parametrize(
    ("filter_", "count"),
    [
        ("name = 'Searched-model'", 1),
        ("name = 'searched-model'", 0),
        ("name LIKE 'Searched%'", 1),
        ("name LIKE 'searched%'", 0),
        ("name ILIKE 'searched%'", 1),
        ("name IN ('Searched-model', 'b')", 1),
        ("name = 'Searched-model' AND tags.a = '1'", 1),
        ("name = 'Searched-model' AND tags.a != '1'", 0),
        ("name = 'Searched-model' AND tags.none != '1'", 0),
        ("name = 'Searched-model' AND tags.`mlflow.prompt.is_prompt` != 'true'", 1),
    ],
)
def test_filters_of_models(door: Door, model: str, filter_: str, count: int) -> None:
    found = door.get("registered-models/search", filter=filter_)
    assert len(found.get("registered_models", [])) == count


@pytest.mark.parametrize(
    ("filter_", "numbers"),
    [
        ("name = 'Searched-model'", "321"),
        ("name = 'Searched-model' AND run_id = 'run-1'", "1"),
        ("run_id IN ('run-1', 'run-2')", "21"),
        ("run_id != 'run-1' AND name = 'Searched-model'", "32"),
        ("source_path = 'dbfs:/3'", "3"),
        ("source_path LIKE 's3://b/%'", "21"),
        ("source_path ILIKE 'S3://B/%'", "21"),
        ("name = 'Searched-model' AND version_number > 1", "32"),
        ("name = 'Searched-model' AND version_number != 2", "31"),
        ("name IN ('Searched-model') AND tags.t = 'v'", "2"),
    ],
)
def test_filters_of_versions(door: Door, model: str, filter_: str, numbers: str) -> None:
    found = door.get("model-versions/search", filter=filter_).get("model_versions", [])
    assert "".join(version["version"] for version in found) == numbers


@pytest.mark.parametrize(
    ("order", "numbers"),
    [
        (["version_number"], "123"),
        (["version_number DESC"], "321"),
        (["name"], "321"),
        (["creation_timestamp", "version_number ASC"], "123"),
        (["last_updated_timestamp DESC"], "231"),
    ],
)
def test_orders_of_versions(door: Door, model: str, order: list[str], numbers: str) -> None:
    asked = {"filter": f"name = '{model}'", "order_by": order}
    found = door.get("model-versions/search", **asked)["model_versions"]
    assert "".join(version["version"] for version in found) == numbers


@pytest.mark.parametrize(
    ("call", "most"), [("registered-models/search", 1000), ("model-versions/search", 200_000)]
)
def test_searches_of_the_registry_refuse(door: Door, call: str, most: int) -> None:
    door.get(call, max_results=most)
    for query in (
        f"max_results={most + 1}",
        "max_results=0",
        "max_results=-1",
        "max_results=x",
        "page_token=x",
        "filter=bogus%20%3D%20'a'",
        "filter=name%20%3E%20'a'",
        "filter=name%20%3D%205",
        "filter=name%20%3D%20'a'%20OR%20name%20%3D%20'b'",
        "order_by=bogus",
        "order_by=name&order_by=name%20DESC",
        "order_by=name%20sideways",
    ):
        door.refused(door.send("GET", f"{call}?{query}"))
