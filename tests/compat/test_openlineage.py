"""OpenLineage's own Python client: it sends to this server, and its classes take our events."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from openlineage.client import OpenLineageClient, event_v2
from openlineage.client.facet_v2 import schema_dataset
from openlineage.client.transport.http import HttpCompression, HttpConfig, HttpTransport
from openlineage.client.uuid import generate_new_uuid

import everloop as ev
from everloop.core.run import RunInput
from everloop.core.schema import Check, Field, Schema
from everloop.errors import BackendError, NotFound
from everloop.features.define import agg, col, feature_set, feature_view, source
from everloop.governance.export import everything
from everloop.workspace import Workspace
from tests.compat.openlineage_check import checked
from tests.servers import serve

FLIGHTS = Schema(
    (
        Field("flight", "int64", nullable=False, description="its number"),
        Field("distance", "float64", ge=0.0, unit="mile", on_fail="drop"),
    ),
    checks=(Check("short", "distance < 10000", on_fail="warn"),),
    key=("flight",),
)


@ev.step
def doubled(rows: ev.Table) -> ev.Table:
    return rows


@ev.pipeline
def good() -> None:
    doubled(ev.read("flights"))


@ev.pipeline
def bad() -> None:
    raise ValueError("no wheels")


def live(ws: Workspace) -> None:
    """A short life: data with broken rules, features, a run that ends well, one that does not."""
    rows = {"flight": [1, 2, 3], "distance": [100.0, -1.0, 20_000.0]}
    ev.commit(
        "flights", rows, schema=FLIGHTS, owner="ann@example.org", sources=["s3://lake/flights"]
    )
    view = feature_view(
        "near",
        entity=("flight",),
        source=source("flights"),
        features={"far": col.distance * 2, "distance": col.distance},
        owner="bea@example.org",
        description="how far",
    )
    late = feature_view(
        "late",
        entity=("flight",),
        source=source("legs", time="at"),
        features={"mean": agg.mean(col.delay, "24h")},
    )
    ws.features.apply(
        feature_set("set", view, late, time="t", request={"flight": int, "t": "timestamp"})
    )
    good.run()
    with pytest.raises(Exception, match="no wheels"):
        bad.run()
    run = ws.tracking.create_run(
        "trials", tags={"mlflow.source.git.repoURL": "https://git.example.org/x"}
    )
    child = ws.tracking.create_run("trials", tags={"mlflow.parentRunId": run.id})
    told = {"source_type": "s3", "source": '{"uri": "s3://lake/extra"}'}
    ws.tracking.log_inputs(run.id, [RunInput(dataset="x", version=0, digest="d", source=told)])
    ws.tracking.update_run(child.id, state="killed")
    ws.tracking.update_run(run.id, state="finished")


def exported(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def of_type(found: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in found if event.get("eventType") == kind]


def test_every_event_is_what_the_client_would_send(ws: Workspace, tmp_path: Path) -> None:
    live(ws)
    done = ws.lineage_exporter(str(tmp_path / "out.ndjson")).run_once()
    found = exported(tmp_path / "out.ndjson")
    assert (done.sent, done.refused) == (len(found), 0)
    facets: set[str] = set()
    for event in found:
        facets |= set(checked(event))
    assert facets >= {
        "schema", "dataSource", "version", "ownership", "documentation", "columnLineage",
        "dataQualityMetrics", "dataQualityAssertions", "outputStatistics", "parent", "jobType",
        "processing_engine", "errorMessage", "sourceCodeLocation",
    }  # fmt: skip
    assert [len(of_type(found, kind)) for kind in ("START", "COMPLETE", "FAIL", "ABORT")] == [
        4, 2, 1, 1,
    ]  # fmt: skip
    assert json.dumps(found).count("everloop") > 0
    assert [json.loads(line) for line in everything(ws)] == found


def test_complete_run_names_its_data_and_their_checks(ws: Workspace, tmp_path: Path) -> None:
    live(ws)
    ws.lineage_exporter(str(tmp_path / "out")).run_once()
    found = exported(tmp_path / "out")
    complete = of_type(found, "COMPLETE")[0]
    assert complete["job"]["name"] == good.name
    (flights,) = complete["inputs"]
    assert (flights["namespace"], flights["name"]) == ("everloop", "flights")
    assert flights["facets"]["version"]["datasetVersion"] == "1"
    assert flights["inputFacets"]["dataQualityMetrics"]["rowCount"] == 2
    assertions = {
        one["name"]: one["success"]
        for one in flights["inputFacets"]["dataQualityAssertions"]["assertions"]
    }
    assert assertions == {
        "flight.not_null": True, "distance.ge": False, "key.unique": True, "short": False,
    }  # fmt: skip
    failed = of_type(found, "FAIL")[0]
    message = failed["run"]["facets"]["errorMessage"]
    assert "no wheels" in message["message"] + message["stackTrace"]
    outside = of_type(found, "COMPLETE")[1]
    assert [(one["namespace"], one["name"]) for one in outside["inputs"]] == [
        ("s3://lake", "extra")
    ]
    killed = of_type(found, "ABORT")[0]
    assert killed["run"]["facets"]["parent"]["run"]["runId"] == outside["run"]["runId"]
    committed = next(e for e in found if e["schemaURL"].endswith("JobEvent"))
    assert committed["inputs"][0]["name"] == "flights"
    assert committed["outputs"][0]["outputFacets"]["outputStatistics"]["rowCount"] == 2


def test_columns_of_features_lead_back_to_their_data(ws: Workspace) -> None:
    live(ws)
    found = {
        event["dataset"]["name"]: event["dataset"]["facets"]
        for event in map(json.loads, everything(ws))
        if "dataset" in event
    }
    near = found["feature_views/near"]["columnLineage"]["fields"]
    (far,) = near["far"]["inputFields"]
    assert (far["name"], far["field"]) == ("flights", "distance")
    assert far["transformations"][0]["subtype"] == "TRANSFORMATION"
    late = found["feature_views/late"]["columnLineage"]["fields"]["mean"]["inputFields"]
    assert late[0]["transformations"][0]["subtype"] == "AGGREGATION"
    of_set = found["feature_sets/set"]["columnLineage"]["fields"]["mean"]["inputFields"][0]
    assert (of_set["name"], of_set["field"]) == ("feature_views/late", "mean")


def test_export_goes_on_where_it_was(ws: Workspace, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    live(ws)
    first = ws.lineage_exporter(str(out)).run_once()
    assert ws.lineage_exporter(str(out)).run_once().sent == 0
    ev.commit("other", {"x": [1]})
    assert ws.lineage_exporter(str(out)).run_once().sent == 1
    assert len(exported(out)) == first.sent + 1
    # A writer that died within a line: what it left is cut, and told again.
    with out.open("ab") as file:
        file.write(b'{"eventType": "STA')
    ev.commit("third", {"x": [1]})
    ws.lineage_exporter(str(out)).run_once()
    assert [event["dataset"]["name"] for event in exported(out)[-2:]] == ["other", "third"]


class Receiver(BaseHTTPRequestHandler):
    """A server that answers with the statuses that it was told to."""

    statuses: list[int]
    got: list[tuple[str, str, dict[str, Any]]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status = self.statuses.pop(0) if self.statuses else 201
        if status == 201:
            self.got.append((self.path, self.headers.get("Authorization", ""), json.loads(body)))
        self.send_response(status)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[tuple[str, type[Receiver]]]:
    handler = type("Handler", (Receiver,), {"statuses": [], "got": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", handler
        server.shutdown()
        thread.join()


def test_events_are_posted_once_the_receiver_is_there(
    ws: Workspace, receiver: tuple[str, type[Receiver]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, handler = receiver
    monkeypatch.setenv("EVERLOOP_OPENLINEAGE_KEY", "secret")
    for name in ("a", "b", "c"):
        ev.commit(name, {"x": [1]})
    handler.statuses = [201, 503, 503]
    exporter = ws.lineage_exporter(url)
    for _ in range(2):
        with pytest.raises(BackendError, match="503"):
            exporter.run_once()
    # A restart knows where it was: what was taken is not sent again, what never will be is not.
    handler.statuses = [422]
    done = ws.lineage_exporter(url).run_once()
    assert (done.sent, done.refused) == (1, 1)
    assert [body["dataset"]["name"] for _, _, body in handler.got] == ["a", "c"]
    assert {(path, key) for path, key, _ in handler.got} == {("/api/v1/lineage", "Bearer secret")}


def test_receiver_that_is_away_stops_nobody(ws: Workspace) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        exporter = ws.lineage_exporter(f"http://127.0.0.1:{nobody.getsockname()[1]}")
        ev.commit("a", {"x": [1]})
        with pytest.raises(BackendError, match="did not answer"):
            exporter.run_once()
        stop = threading.Event()
        thread = threading.Thread(target=exporter.run_forever, args=(stop, 0.01))
        thread.start()
        assert ev.commit("b", {"x": [1]}).number == 1
        stop.set()
        thread.join(60)
        assert not thread.is_alive()


def test_client_sends_to_the_server(ws: Workspace) -> None:
    if ws.is_remote:
        send_and_look(ws.location, ws)
        return
    with serve(ws) as url:
        send_and_look(url, ws)


def send_and_look(url: str, ws: Workspace) -> None:
    for compression in (None, HttpCompression.GZIP):
        config = HttpConfig(url=url, compression=compression)
        client = OpenLineageClient(transport=HttpTransport(config))
        run = event_v2.Run(str(generate_new_uuid()))
        job = event_v2.Job("etl", "nightly")
        fields = [schema_dataset.SchemaDatasetFacetFields("flight", "int")]
        made = event_v2.OutputDataset(
            "s3://lake", "flights", facets={"schema": schema_dataset.SchemaDatasetFacet(fields)}
        )
        read = event_v2.InputDataset("s3://raw", "flights")
        for state in (event_v2.RunState.START, event_v2.RunState.COMPLETE):
            client.emit(
                event_v2.RunEvent(
                    eventTime="2013-03-30T02:00:00Z",
                    eventType=state,
                    run=run,
                    job=job,
                    inputs=[read],
                    outputs=[made],
                    producer="https://example.org/etl",
                )
            )
        client.close()
        assert ws.lineage.external(f"job_run:{run.runId}").state == "COMPLETE"
    found = ws.lineage.upstream("external:s3://lake/flights")
    assert found.refs[1:] == ("job:etl/nightly", "external:s3://raw/flights")
    with pytest.raises(NotFound):
        ws.lineage.external("job:etl/weekly")


def test_our_own_events_may_come_back_in(ws: Workspace, tmp_path: Path) -> None:
    """What one workspace exports another one understands."""
    from everloop.api.openlineage import report_of

    live(ws)
    with ev.open(tmp_path / "other") as other:
        for event in everything(ws):
            other.lineage.report(report_of(event))
        found = other.lineage.upstream("external:everloop/flights")
        assert "external:s3://lake/flights" in found.refs
