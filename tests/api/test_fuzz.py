"""Whatever is sent, no door answers with a 5xx that is a fault of ours, and none with a traceback.

Each call of the native API is asked by its own OpenAPI document, each call of MLflow's door by the
struct that it decodes; values fit mostly, so that calls come far, and are wrong now and then.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import msgspec
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.types import ASGIApp

import everloop as ev
from everloop.api import mlflow
from everloop.api.native import openapi
from everloop.core.artifact import ModelArtifact
from everloop.core.run import Metric
from everloop.server import make_app
from everloop.workspace import AREAS, Workspace
from tests.api.fuzz import Names, values
from tests.servers import Answer, ask

#: Answers that say what is missing or not served: nobody's fault.
_HONEST = (501,)
#: Areas of which some call must get through, or the fuzz has stopped at the door.
_OFTEN_RIGHT = ("tracking", "registry", "data", "lineage")
_RELAXED = settings(
    max_examples=6, deadline=None, suppress_health_check=list(HealthCheck), derandomize=False
)


def filled(ws: Workspace) -> Names:
    """A workspace with one of each; the names of what is in it."""
    experiment = ws.tracking.create_experiment("e")
    run = ws.tracking.create_run("e", params={"lr": "1"}, tags={"k": "v"})
    ws.tracking.log(run.id, [Metric(key="loss", value=1.0)])
    path = f"{experiment.id}/{run.id}/artifacts/f.txt"
    ws.tracking.put_artifact(path, b"text")
    ws.data.commit("d", pa.table({"x": [1]}))
    logged = ws.tracking.create_logged_model(experiment.id, name="lm", source_run_id=run.id)
    for text in (b"1", b"2"):
        ws.registry.register("m", ModelArtifact(flavor="x", files={"f": text}), alias="champion")
    names = ("e", "m", "d", "champion", "0", "1", experiment.id, run.id, logged.id, path)
    return (*names, "loss", "lr", "k", "f", "model:m/1", "dataset:d@1", f"run:{run.id}")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[tuple[Workspace, ASGIApp, Names]]:
    # One for each test: a call that goes through may change what is asked of all others.
    with ev.open(tmp_path / ".everloop", actor="fuzz") as ws:
        yield ws, make_app(ws), filled(ws)


def judge(answer: Answer, what: str, body: object) -> None:
    said = answer.body[:2000].decode(errors="replace")
    shown = f"{what} {str(body)[:500]}: {answer.status} {said}"
    assert answer.status < 500 or answer.status in _HONEST, shown
    assert "Traceback" not in said, shown
    assert "sqlalchemy" not in said.lower(), shown


def sent(value: object) -> bytes:
    # Half a surrogate pair is escaped, as clients in other languages send it.
    return json.dumps(value).encode()


@pytest.mark.parametrize("area", AREAS)
def test_native_api_has_no_5xx(area: str, place: tuple[Workspace, ASGIApp, Names]) -> None:
    ws, app, names = place
    document = openapi(ws)
    components = document["components"]["schemas"]
    calls = {
        path: values(
            call["post"]["requestBody"]["content"]["application/json"]["schema"],
            components,
            names,
        )
        for path, call in document["paths"].items()
        if path.startswith(f"/api/v1/{area}/")
    }

    statuses: set[int] = set()

    @_RELAXED
    @given(st.fixed_dictionaries(calls))
    def fuzz(bodies: dict[str, Any]) -> None:
        for path, body in bodies.items():
            answer = ask(app, "POST", path, sent(body))
            judge(answer, path, body)
            statuses.add(answer.status)

    fuzz()
    assert area not in _OFTEN_RIGHT or 200 in statuses, f"nothing got through: {statuses}"


#: Method, path and struct of every call of MLflow's door.
MLFLOW = sorted(
    (
        (method, path, call.asked)
        for door in mlflow.DOORS
        for (method, path), call in door.calls.items()
    ),
    key=lambda item: item[:2],
)


def request_of(method: str, path: str, body: Any, segments: list[str]) -> tuple[str, bytes]:
    """Target and body of a call; a GET has its fields in the query."""
    given_names = iter(segments)
    filled_in = re.sub(r"\{\w+\}", lambda _: quote(next(given_names), safe=""), path)
    target = f"/api/2.0/{filled_in}"
    if method != "GET" or not isinstance(body, dict):
        return target, sent(body)
    fields = {key: value if isinstance(value, list) else str(value) for key, value in body.items()}
    return f"{target}?{urlencode(fields, doseq=True, errors='replace')}", b""


@pytest.mark.parametrize("part", range(4))
def test_mlflow_door_has_no_5xx(part: int, place: tuple[Workspace, ASGIApp, Names]) -> None:
    _, app, names = place
    chosen = MLFLOW[part::4]
    schemas, components = msgspec.json.schema_components(
        [asked for *_, asked in chosen], ref_template="#/{name}"
    )
    bodies = st.tuples(*[values(schema, components, names) for schema in schemas])
    segments = st.lists(st.sampled_from(names), min_size=4, max_size=4)

    @_RELAXED
    @given(bodies, segments)
    def fuzz(bodies: tuple[Any, ...], segments: list[str]) -> None:
        for (method, path, _), body in zip(chosen, bodies, strict=True):
            target, data = request_of(method, path, body, segments)
            headers = {"Content-Type": "application/json"}
            judge(ask(app, method, target, data, headers=headers), f"{method} {path}", body)

    fuzz()


def test_spans_that_could_not_be_read_again_are_refused(
    place: tuple[Workspace, ASGIApp, Names],
) -> None:
    _, app, _ = place
    span = {"trace_id": "tr-x", "id": "0000000000000001", "started_ns": 1, "ended_ns": 2}
    for body in ({}, {"span_id": 7}, {"span_id": "?"}, {"span_id": "AAAAAAAAAAI="}):
        asked = {"experiment": "0", "spans": [{**span, "body": body}]}
        answer = ask(app, "POST", "/api/v1/traces/log_spans", sent(asked))
        assert answer.status == 400
        assert "spans[0].body.span_id" in answer.text


@pytest.mark.parametrize("lease_s", [1e308, -1, 7 * 86400 + 1])
def test_lease_that_would_hide_a_dead_owner_is_refused(
    place: tuple[Workspace, ASGIApp, Names], lease_s: float
) -> None:
    _, app, _ = place
    for path in ("tracking/create_run", "pipelines/start"):
        asked = {"experiment": "e", "pipeline": "p", "owner": "o", "lease_s": lease_s}
        if path == "pipelines/start":
            del asked["experiment"]
        answer = ask(app, "POST", f"/api/v1/{path}", sent(asked))
        assert (answer.status, "lease_s" in answer.text) == (400, True), answer.text


def test_time_before_the_first_year_is_refused(place: tuple[Workspace, ASGIApp, Names]) -> None:
    _, app, _ = place
    early = "0001-01-01T00:00:00+14:00"
    asked = {"deployment": "x", "since": early, "until": early}
    answer = ask(app, "POST", "/api/v1/monitoring/measure", sent(asked))
    assert answer.status == 400
    assert "years 1 to 9999" in answer.text
