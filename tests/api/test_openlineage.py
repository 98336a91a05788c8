"""The OpenLineage door in: what Spark, Airflow and dbt send becomes a part of the graph."""

from __future__ import annotations

import copy
import gzip
import json
from itertools import permutations
from typing import Any

import httpx
import pytest

import everloop as ev
from everloop.api import openlineage
from everloop.errors import InvalidInput, NotFound
from everloop.server import make_app
from everloop.workspace import Workspace
from tests.api import openlineage_events as events
from tests.servers import Answer, ask

PATH = "/api/v1/lineage"
SPARK_JOB = "job:spark/clean_flights.execute_insert_into_hadoop_fs_relation_command.flights_clean"
DAG, TASK = (
    "job:http://airflow-host:8081/nightly",
    "job:http://airflow-host:8081/nightly.clean_flights",
)
STORY = [events.airflow_dag, events.airflow_task, events.spark, events.dbt]


def post(ws: Workspace, event: Any, **headers: str) -> Answer:
    body = event if isinstance(event, bytes) else json.dumps(event).encode()
    if ws.is_remote:
        got = httpx.post(f"{ws.location}{PATH}", content=body, headers=headers)
        return Answer(got.status_code, dict(got.headers), got.content)
    return ask(make_app(ws), "POST", PATH, body, headers=headers)


def told(ws: Workspace) -> int:
    return len(ws.lineage.events(kind="lineage.Reported"))


def test_model_reaches_the_jobs_and_tables_behind_its_data(ws: Workspace) -> None:
    made = ev.commit("flights", {"flight": [1, 2]}, sources=["s3://lake/flights/clean"])
    model = ws.registry.register("delay", _artifact({"flights": made.number}))
    for event in (events.airflow_dag(), events.airflow_task(), events.spark()):
        assert post(ws, event).status == 201
    found = ws.lineage.upstream(f"model:{model.ref}")
    assert found.of_kind("job") == (SPARK_JOB, TASK, DAG)
    assert {"external:s3://raw/flights", "external:s3://raw/carriers"} <= set(found.refs)
    below = ws.lineage.downstream("external:s3://raw/carriers")
    assert f"model:{model.ref}" in below.refs
    # dbt calls the same data by the name of its table.
    assert post(ws, events.dbt()).status == 201
    after = ws.lineage.downstream("external:s3://raw/flights")
    assert "external:postgres://db:5432/lake.analytics.delays" in after.refs


def _artifact(data: dict[str, int]) -> Any:
    from everloop.core.artifact import ModelArtifact

    return ModelArtifact(flavor="onnx", files={"model.onnx": b"x"}, data=data)


def test_facets_are_kept_as_they_came(ws: Workspace) -> None:
    event = events.spark()
    post(ws, event)
    run = ws.lineage.external(f"job_run:{events.SPARK_RUN}")
    assert run.facets == event["run"]["facets"]
    assert run.state == "COMPLETE"
    lake = ws.lineage.external("external:s3://lake/flights/clean")
    out = event["outputs"][0]
    assert lake.facets == out["facets"] | out["outputFacets"]
    assert (lake.namespace, lake.name) == ("s3://lake", "flights/clean")
    assert [one.name for one in ws.lineage.externals("job")] == [
        "nightly", "nightly.clean_flights", event["job"]["name"],
    ]  # fmt: skip
    with pytest.raises(NotFound):
        ws.lineage.external("external:s3://nothing")


def test_event_that_comes_twice_changes_nothing(ws: Workspace) -> None:
    for event in (events.spark("START", "2013-03-30T02:01:00Z"), events.spark(), events.dbt()):
        assert post(ws, event).status == 201
        before = told(ws), ws.lineage.downstream("external:s3://raw/flights")
        assert post(ws, event).status == 201
        assert (told(ws), ws.lineage.downstream("external:s3://raw/flights")) == before


def test_order_of_arrival_does_not_matter(tmp_path: Any) -> None:
    start = events.spark("START", "2013-03-30T02:01:00Z")
    start["inputs"], start["outputs"] = [], []
    later = events.spark("COMPLETE", "2013-03-31T02:09:00Z")
    later["outputs"][0]["facets"]["schema"]["fields"] = [{"name": "flight", "type": "int"}]
    seen = []
    for n, order in enumerate(permutations([start, events.spark(), later, events.airflow_task()])):
        with ev.open(tmp_path / str(n)) as ws:
            for event in order:
                assert post(ws, event).status == 201
        with ev.open(tmp_path / str(n)) as ws:
            graph = ws.lineage.upstream("external:s3://lake/flights/clean")
            known = {
                one.ref: (one.state, one.facets, one.at)
                for kind in ("dataset", "job", "run")
                for one in ws.lineage.externals(kind)  # type: ignore[arg-type]
            }
            seen.append((graph, known))
    assert all(one == seen[0] for one in seen)
    fields = seen[0][1]["external:s3://lake/flights/clean"][1]["schema"]["fields"]
    assert fields == [{"name": "flight", "type": "int"}]


def test_run_that_ended_stays_ended(ws: Workspace) -> None:
    post(ws, events.spark("FAIL", "2013-03-30T02:09:00Z"))
    post(ws, events.spark("START", "2013-03-30T02:10:00Z"))
    assert ws.lineage.external(f"job_run:{events.SPARK_RUN}").state == "FAIL"


def test_facet_that_is_taken_back_is_gone(ws: Workspace) -> None:
    post(ws, events.dataset_event())
    gone = events.dataset_event() | {"eventTime": "2013-03-30T00:00:00Z"}
    gone["dataset"]["facets"] = {"ownership": {"_producer": "p", "_deleted": True}}
    post(ws, gone)
    assert ws.lineage.external("external:s3://raw/airports").facets == {}
    post(ws, events.dataset_event())  # late, and again
    assert ws.lineage.external("external:s3://raw/airports").facets == {}


def test_job_and_dataset_events_are_taken(ws: Workspace) -> None:
    assert post(ws, events.job_event()).status == 201
    assert post(ws, events.dataset_event()).status == 201
    found = ws.lineage.upstream("external:postgres://db:5432/lake.analytics.airports")
    assert found.refs[1:] == ("job:dbt/lake.analytics.airports.run", "external:s3://raw/airports")
    owners = ws.lineage.external("external:s3://raw/airports").facets["ownership"]["owners"]
    assert owners == [{"name": "ann"}]


def test_partial_events_are_taken(ws: Workspace) -> None:
    least = {
        "eventTime": "2013-03-30T02:09:36.109123456Z",
        "run": {"runId": events.DBT_RUN},
        "job": {"namespace": "dbt", "name": "x"},
        "inputs": None,
    }
    assert post(ws, least).status == 201
    assert ws.lineage.external(f"job_run:{events.DBT_RUN}").state == "OTHER"
    assert post(ws, least | {"eventTime": "2013-03-30T02:09:36"}).status == 201


def test_packed_event_is_taken(ws: Workspace) -> None:
    body = gzip.compress(json.dumps(events.dbt()).encode())
    assert post(ws, body, **{"Content-Encoding": "gzip"}).status == 201
    assert ws.lineage.external(f"job_run:{events.DBT_RUN}").state == "COMPLETE"


def test_faults_are_told_with_their_paths() -> None:
    event = copy.deepcopy(events.spark())
    event["eventTime"] = "yesterday"
    event["eventType"] = "DONE"
    event["run"]["runId"] = "7"
    event["job"]["namespace"] = ""
    event["inputs"][1]["name"] = 7
    event["outputs"][0]["facets"]["schema"] = "text"
    event["outputs"].append("s3://x")
    with pytest.raises(InvalidInput) as got:
        openlineage.report_of(json.dumps(event).encode())
    assert sorted(fault.path for fault in got.value.faults) == [
        "eventTime", "eventType", "inputs[1].name", "job.namespace",
        "outputs[0].facets.schema", "outputs[1]", "run.runId",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"", 400, "no JSON"),
        (b"[]", 400, "must be an object"),
        (b"{}", 400, "eventTime"),
        (b"\xff\xfe", 400, "no JSON"),
        (b"[" * 100_000, 400, "no JSON"),
        (b'{"eventTime":"2013-01-01T00:00:00Z"}', 400, "needs job"),
        (b'{"eventTime":"2013-01-01T00:00:00Z","run":{}}', 400, "a run is of a job"),
        (b'{"eventTime":"2013-01-01T00:00:00Z","dataset":{"namespace":"a\\u0000","name":"b"}}',
         400, "control characters"),
        (b'{"eventTime":"2013-01-01T00:00:00Z","dataset":{"namespace":"a","name":"\\ud800"}}',
         400, ""),
        (b"x" * (openlineage.MAX_BODY + 1), 413, "above"),
    ],
)  # fmt: skip
def test_bad_event_is_refused(ws: Workspace, body: bytes, status: int, says: str) -> None:
    answer = post(ws, body)
    assert answer.status == status
    assert says in answer.text
    assert told(ws) == 0


def test_bomb_and_broken_packing_are_refused(tmp_path: Any) -> None:
    bomb = gzip.compress(b" " * (openlineage.MAX_BODY + 1))
    cases = [
        (bomb, "gzip", 413), (b"no gzip", "gzip", 400), (bomb[:100], "gzip", 400),
        (b"{}", "br", 400),
    ]  # fmt: skip
    for body, packed, status in cases:
        with ev.open(tmp_path) as ws:
            assert post(ws, body, **{"Content-Encoding": packed}).status == status


def test_too_many_datasets_are_refused() -> None:
    event = events.job_event()
    event["inputs"] = event["inputs"] * (openlineage.MAX_DATASETS + 1)
    with pytest.raises(InvalidInput, match="at most"):
        openlineage.report_of(json.dumps(event).encode())


def test_longest_names_have_their_place(ws: Workspace) -> None:
    event = events.job_event()
    long = "\u00e9" * openlineage.MAX_NAME
    event["outputs"] = [{"namespace": long, "name": long}]
    event["inputs"] = [{"namespace": "s3://x", "name": long[1:] + end} for end in "ab"]
    event["job"] = {"namespace": long, "name": long}
    assert post(ws, event).status == 201
    job = ws.lineage.externals("job")[0]
    found = ws.lineage.upstream(job.ref)
    assert len(found.edges) == 2
    assert {ws.lineage.external(ref).name for ref in found.refs[1:]} == {
        long[1:] + end for end in "ab"
    }
