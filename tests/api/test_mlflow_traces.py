"""Traces by MLflow's calls and by OTLP: as exporters send them, and as nobody should."""

from __future__ import annotations

import base64
import builtins
import gzip
import json
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from starlette.types import ASGIApp

from everloop.api import otlp
from everloop.server import make_app
from everloop.workspace import Workspace
from tests.servers import Answer, ask

API = "/api/3.0/mlflow"
PROTOBUF = "application/x-protobuf"
TRACE = bytes(range(16))
TRACE_ID = f"tr-{TRACE.hex()}"


@pytest.fixture(params=["sqlite", "postgres"])
def both(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ASGIApp]:
    """The application on each database, empty."""
    location = str(tmp_path / ".everloop")
    if request.param == "postgres":
        location = request.getfixturevalue("postgres_database")
    with Workspace(location, objects=str(tmp_path / "objects"), actor="tester") as opened:
        yield make_app(opened)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ASGIApp]:
    with Workspace(str(tmp_path_factory.mktemp("traces") / ".everloop"), actor="t") as opened:
        yield make_app(opened)


def call(app: ASGIApp, method: str, path: str, body: Any = None) -> Answer:
    data = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
    return ask(app, method, f"{API}/{path}", data, headers={"Content-Type": "application/json"})


def export(
    app: ASGIApp, body: bytes, kind: str = PROTOBUF, *, experiment: str = "0", **more: str
) -> Answer:
    headers = {"Content-Type": kind, "x-mlflow-experiment-id": experiment}
    headers |= {name.replace("_", "-"): value for name, value in more.items()}
    return ask(app, "POST", "/v1/traces", body, headers=headers)


def refused(answer: Answer, status: int = 400) -> str:
    assert answer.status == status, answer.text
    assert len(answer.body) < 2000
    return str(answer.json()["message"])


def request_of(*spans: dict[str, Any]) -> ExportTraceServiceRequest:
    made = ExportTraceServiceRequest()
    scope = made.resource_spans.add().scope_spans.add()
    for number, fields in enumerate(spans, 1):
        span = scope.spans.add(
            trace_id=TRACE,
            span_id=number.to_bytes(8, "big"),
            name=f"span {number}",
            start_time_unix_nano=number * 10**9,
            end_time_unix_nano=number * 10**9 + 5_000_000,
        )
        attributes = fields.pop("attributes", {})
        span.attributes.extend(
            KeyValue(key=key, value=AnyValue(**v)) for key, v in attributes.items()
        )
        for name, value in fields.items():
            setattr(span, name, value)
    return made


def json_span(fields: bytes) -> bytes:
    return b'{"resourceSpans": [{"scopeSpans": [{"spans": [{' + fields + b"}]}]}]}"


def info(id_: str, at: str = "2024-01-01T00:00:00Z", **more: Any) -> dict[str, Any]:
    location = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": "0"}}
    fields = {"trace_id": id_, "trace_location": location, "request_time": at, "state": "OK"}
    return {"trace": {"trace_info": fields | more}}


def search(app: ASGIApp, **asked: Any) -> dict[str, Any]:
    locations = [{"mlflow_experiment": {"experiment_id": "0"}}]
    answer = call(app, "POST", "traces/search", {"locations": locations, **asked})
    assert answer.status == 200, answer.text
    return dict(answer.json())


def found(app: ASGIApp, **asked: Any) -> list[str]:
    return [trace["trace_id"] for trace in search(app, **asked).get("traces", [])]


# --- what comes by OTLP -------------------------------------------------------------------------


def test_spans_of_any_exporter_make_a_trace(both: ASGIApp) -> None:
    child = {"parent_span_id": (1).to_bytes(8, "big")}
    value = {"mlflow.spanInputs": {"string_value": "what?"}, "n": {"int_value": 2**40}}
    body = request_of({"attributes": value}, child).SerializeToString()
    # The child alone first, as exporters send batches in any order.
    made = export(both, request_of({}, child).SerializeToString())
    assert (made.status, made.body, made.headers["content-type"]) == (200, b"", PROTOBUF)
    assert export(both, gzip.compress(body, mtime=0), content_encoding="gzip").status == 200
    trace = call(both, "GET", f"traces/get?trace_id={TRACE_ID}").json()["trace"]
    assert trace["trace_info"] == {
        "trace_id": TRACE_ID,
        "trace_location": {
            "type": "MLFLOW_EXPERIMENT",
            "mlflow_experiment": {"experiment_id": "0"},
        },
        "request_preview": "what?",
        "request_time": "1970-01-01T00:00:01Z",
        "execution_duration": "0.005s",
        "state": "OK",
        "tags": {"mlflow.trace.spansLocation": "TRACKING_STORE", "mlflow.traceName": "span 1"},
    }
    [root, second] = trace["spans"]
    assert root["trace_id"] == base64.b64encode(TRACE).decode()
    assert root["start_time_unix_nano"] == 10**9
    assert {"key": "n", "value": {"int_value": 2**40}} in root["attributes"]
    assert second["name"] == "span 2"
    sent = call(both, "GET", f"get-trace-artifact?request_id={TRACE_ID}")
    assert sent.headers["content-disposition"] == "attachment; filename=traces.json"
    file = sent.json()
    assert file["spans"][0]["attributes"] == {"mlflow.spanInputs": '"what?"', "n": str(2**40)}


def test_json_is_the_same_as_protobuf(app: ASGIApp) -> None:
    span = {
        "traceId": "ab" * 16,
        "spanId": "cd" * 8,
        "name": "by json",
        "startTimeUnixNano": "1700000000000000000",
        "endTimeUnixNano": "1700000001000000000",
        "status": {"code": 2},
        "attributes": [{"key": "k", "value": {"stringValue": "v"}}],
        "unknown": 1,
    }
    body = {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}
    answer = export(app, json.dumps(body).encode(), "application/json; charset=utf-8")
    assert (answer.status, answer.json()) == (200, {})
    trace = call(app, "GET", f"traces/tr-{'ab' * 16}").json()["trace"]["trace_info"]
    assert trace["state"] == "ERROR"
    assert trace["execution_duration"] == "1s"


def test_trace_and_spans_may_come_in_either_order(app: ASGIApp) -> None:
    body = request_of({"trace_id": b"\2" * 16, "name": "from spans"}).SerializeToString()
    said = {
        "tags": {"mlflow.traceName": "from client"},
        "execution_duration": "1.5s",
        "client_request_id": "c",
    }
    answers = []
    for first_trace in (True, False):
        id_ = f"tr-{(b'2' if first_trace else b'3').hex() * 16}"
        spans = ExportTraceServiceRequest.FromString(body)
        spans.resource_spans[0].scope_spans[0].spans[0].trace_id = bytes.fromhex(id_[3:])
        steps = [
            lambda id_=id_: call(app, "POST", "traces", info(id_, **said)),
            lambda spans=spans: export(app, spans.SerializeToString()),
        ]
        for step in steps if first_trace else reversed(steps):
            assert step().status == 200
        trace = call(app, "GET", f"traces/get?trace_id={id_}").text.replace(id_, "ID")
        trace = trace.replace(base64.b64encode(bytes.fromhex(id_[3:])).decode(), "ID")
        answers.append(json.loads(trace))
    assert answers[0] == answers[1]
    assert answers[0]["trace"]["trace_info"]["tags"]["mlflow.traceName"] == "from client"


def test_trace_and_spans_at_once_are_one_trace(both: ASGIApp) -> None:
    body = request_of({}, {}).SerializeToString()
    named = {"tags": {"mlflow.traceName": "from client"}}

    def send(number: int) -> int:
        if number % 2:
            return export(both, body).status
        return call(both, "POST", "traces", info(TRACE_ID, **named)).status

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(send, range(16))) == {200}
    assert found(both, filter="name = 'from client'") == [TRACE_ID]
    trace = call(both, "GET", f"traces/get?trace_id={TRACE_ID}").json()["trace"]
    assert [span["name"] for span in trace["spans"]] == ["span 1", "span 2"]


def test_run_of_the_header_is_linked(app: ASGIApp) -> None:
    run = ask(app, "POST", "/api/2.0/mlflow/runs/create", {"experiment_id": "0"}).json()
    run_id = run["run"]["info"]["run_id"]
    body = request_of({"trace_id": b"\4" * 16}).SerializeToString()
    assert export(app, body, x_mlflow_run_id=run_id).status == 200
    assert found(app, filter=f"trace.run_id = '{run_id}'") == [f"tr-{'04' * 16}"]
    assert "not found" in refused(export(app, body, x_mlflow_run_id="none"), 404)


@pytest.mark.parametrize(
    ("body", "kind", "more"),
    [
        (b"", PROTOBUF, {}),
        (b"\xff" * 50, PROTOBUF, {}),
        (b"{}", "application/json", {}),
        (b"[]", "application/json", {}),
        (b"{", "application/json", {}),
        (b"\xff", "application/json", {}),
        (b"[" * 100_000, "application/json", {}),
        (b'{"resourceSpans":' * 5000, "application/json", {}),
        (json_span(b'"traceId": "xyz"'), "application/json", {}),
        (b'{"resourceSpans": {"a": 1}}', "application/json", {}),
        (json_span(b'"name": "\\ud800"'), "application/json", {}),
        (b"{}", "text/plain", {}),
        (b"{}", "", {}),
        (b"nothing packed", PROTOBUF, {"content_encoding": "gzip"}),
        (gzip.compress(b"x" * 100, mtime=0)[:-9], PROTOBUF, {"content_encoding": "gzip"}),
        (b"", PROTOBUF, {"content_encoding": "br"}),
        (request_of({"trace_id": b"short"}).SerializeToString(), PROTOBUF, {}),
        (request_of({"trace_id": bytes(16)}).SerializeToString(), PROTOBUF, {}),
        (request_of({"span_id": b""}).SerializeToString(), PROTOBUF, {}),
        (request_of({"start_time_unix_nano": 2**64 - 1}).SerializeToString(), PROTOBUF, {}),
        (request_of({}).SerializeToString(), PROTOBUF, {"experiment": ""}),
    ],
)  # fmt: skip
def test_what_is_no_export_is_400(
    app: ASGIApp, body: bytes, kind: str, more: dict[str, str]
) -> None:
    refused(export(app, body, kind, **more))


def test_unknown_experiment_is_404(app: ASGIApp) -> None:
    refused(export(app, request_of({}).SerializeToString(), experiment="77"), 404)
    refused(export(app, request_of({}).SerializeToString(), experiment="no"), 404)


def test_bodies_above_the_limits_are_413(app: ASGIApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp, "_MAX_PLAIN", 10_000)
    bomb = gzip.compress(bytes(10_000_000))
    assert len(bomb) < 10_000
    assert "10000" in refused(export(app, bomb, content_encoding="gzip"), 413)
    monkeypatch.setattr(otlp, "_MAX_SPANS", 1)
    refused(export(app, request_of({}, {}).SerializeToString()), 413)
    monkeypatch.setattr(otlp, "_MAX_BODY", 10)
    refused(export(app, b"x" * 11), 413)


def test_missing_library_is_told(app: ASGIApp, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    answer = export(app, request_of({}).SerializeToString())
    assert "everloop[otlp]" in refused(answer, 501)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**32), changes=st.integers(1, 8))
def test_damaged_protobuf_is_never_a_5xx(app: ASGIApp, seed: int, changes: int) -> None:
    value = {"k": {"string_value": "v" * 20}, "mlflow.traceRequestId": {"string_value": "tr-x"}}
    body = bytearray(request_of({"attributes": value}, {}).SerializeToString())
    chance = random.Random(seed)
    for _ in range(changes):
        body[chance.randrange(len(body))] = chance.randrange(256)
    answer = export(app, bytes(body[: chance.randrange(1, len(body) + 1)]))
    assert answer.status < 500, answer.text


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["resourceSpans", "scopeSpans", "spans", "traceId", "attributes", "value"]
            )
            | st.text(max_size=4),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(value=_VALUES)
def test_json_whatever_is_never_a_5xx(app: ASGIApp, value: Any) -> None:
    spans = {"resourceSpans": [{"scopeSpans": [{"spans": [value]}]}]}
    for body in (value, spans):
        answer = export(app, json.dumps(body).encode(), "application/json")
        assert answer.status < 500, answer.text
        assert "Traceback" not in answer.text


#: What is asked of one trace with two spans -> whether it is found.
_ASKED = {
    "span.name = 'span 1' AND span.attributes.k = 'v \"q\" é'": True,
    "span.name = 'span 2' AND span.attributes.k = 'v \"q\" é'": False,
    "span.name IN ('span 2', 'x') AND span.attributes.`a.b` != 'x'": True,
    "span.attributes.k LIKE 'v%é'": True,
    "span.attributes.k LIKE '%2%'": False,
    "span.attributes.k LIKE 'v _q_ _'": True,
    "span.attributes.k LIKE 'V%'": False,
    "span.attributes.k ILIKE 'V%'": True,
    "span.attributes.k RLIKE '^v.+é$'": True,
    "span.attributes.k RLIKE 'q|z'": True,
    "span.attributes.k RLIKE '^q'": False,
    "span.attributes.n = '12'": True,
    "span.attributes.n LIKE '1_'": True,
    "span.attributes.n = '1'": False,
    "span.attributes.json = 'text'": True,
    "span.attributes.k IN ('x', 'y')": False,
    "span.attributes.k NOT IN ('x', 'y')": True,
    "span.attributes.none != 'x'": False,
    "span.attributes.none IS NULL": True,
    "span.attributes.k IS NOT NULL AND span.name = 'span 2'": True,
    "feedback.score > 0.4 AND feedback.score <= 5e-1": True,
    "feedback.score > 0.5": False,
    "feedback.said > 0": False,
    "issue.id = 'i-1'": True,
    "issue.id = 'i-2'": False,
    "prompt = 'greet/2'": True,
    "prompt = 'greet/1'": False,
    "text RLIKE 'span [0-9]'": True,
}


def test_what_is_asked_of_spans(both: ASGIApp) -> None:
    first = {
        "k": {"string_value": 'v "q" é'},
        "n": {"int_value": 12},
        "json": {"string_value": '"text"'},
    }
    second = {"a.b": {"string_value": "y"}, "n": {"int_value": 2}}
    body = request_of({"attributes": first}, {"attributes": second})
    assert export(both, body.SerializeToString()).status == 200
    for name, said in (
        ("score", {"feedback": {"value": 0.5}}),
        ("said", {"feedback": {"value": "much"}}),
        ("i-1", {"issue": {"issue_name": "slow"}}),
    ):
        given = {"assessment_name": name, "trace_id": TRACE_ID, **said}
        done = call(both, "POST", f"traces/{TRACE_ID}/assessments", {"assessment": given})
        assert done.status == 200, done.text
    linked = {"trace_id": TRACE_ID, "prompt_versions": [{"name": "greet", "version": "2"}]}
    assert call(both, "POST", "traces/link-prompts", linked).status == 200
    assert {asked: found(both, filter=asked) == [TRACE_ID] for asked in _ASKED} == _ASKED


def test_patterns_that_a_database_does_not_know_are_400_there(both: ASGIApp) -> None:
    made = call(both, "POST", "traces", info("a", tags={"t": "é"}))
    assert made.status == 200
    for pattern in (r"\pL", "(?P<n>é)", "[[:word:]]", "(?i)É", "é{1,3}", r"\Qé\E"):
        locations = [{"mlflow_experiment": {"experiment_id": "0"}}]
        asked = {"locations": locations, "filter": f"tags.t RLIKE '{pattern}'"}
        answer = call(both, "POST", "traces/search", asked)
        assert answer.status in (200, 400), answer.text
        assert answer.status == 200 or "regular expression" in refused(answer)


def test_a_pattern_takes_no_more_time_than_the_text_is_long(both: ASGIApp) -> None:
    assert call(both, "POST", "traces", info("long", tags={"t": "a" * 4000})).status == 200
    began = time.perf_counter()
    assert found(both, filter="tags.t RLIKE '^(a+)+b'") == []
    assert time.perf_counter() - began < 5


# --- what comes by MLflow's calls ---------------------------------------------------------------


def test_search_orders_and_pages(both: ASGIApp) -> None:
    day = {"a": "2024-01-03", "b": "2024-01-01", "c": "2024-01-02", "d": "2024-01-02"}
    for id_, at in day.items():
        more: dict[str, Any] = {} if id_ == "d" else {"execution_duration": f"{ord(id_) - 96}.25s"}
        tags = {"t": id_ * 2, "mlflow.traceName": f"N{id_}"} if id_ != "b" else {}
        made = call(both, "POST", "traces", info(id_, f"{at}T00:00:00Z", tags=tags, **more))
        assert made.status == 200, made.text
    assert found(both) == ["a", "c", "d", "b"]
    assert found(both, order_by=["timestamp_ms ASC"]) == ["b", "c", "d", "a"]
    assert found(both, order_by=["execution_time_ms DESC"]) == ["c", "b", "a", "d"]
    assert found(both, order_by=["tags.t DESC"]) == ["d", "c", "a", "b"]
    assert found(both, order_by=["end_time ASC", "request_id"]) == ["b", "c", "a", "d"]
    assert found(both, filter="execution_time_ms >= 2250") == ["c", "b"]
    end = int(datetime.fromisoformat("2024-01-02T00:00:03.250+00:00").timestamp() * 1000)
    assert found(both, filter=f"end_time = {end}") == ["c"]
    assert found(both, filter="tags.t LIKE 'a%' OR NOT tags.t IS NOT NULL") == ["a", "b"]
    assert found(both, filter="name ILIKE 'na'") == ["a"]
    assert found(both, filter="tags.t LIKE 'A%'") == []
    assert found(both, filter="request_id IN ('a', 'b')") == ["a", "b"]
    assert found(both, filter="request_id NOT IN ('a', 'b')") == ["c", "d"]
    assert found(both, filter="tags.t RLIKE '^[ac]+$'") == ["a", "c"]
    assert found(both, filter="name RLIKE 'N(a|d)' AND request_id RLIKE '[b-z]'") == ["d"]
    assert found(both, filter="name IS NULL") == ["b"]
    assert found(both, filter="execution_time_ms = '1250'") == ["a"]
    for order in ([], ["tags.t DESC"], ["execution_time_ms ASC"], ["name DESC", "status"]):
        pages, token = [], ""
        while not pages or token:
            page = search(both, order_by=order, max_results=1, page_token=token)
            pages += [trace["trace_id"] for trace in page["traces"]]
            token = page.get("next_page_token", "")
        assert pages == found(both, order_by=order)
    told = call(both, "GET", "traces/batchGet?trace_ids=b&trace_ids=none&trace_ids=a").json()
    assert [trace["trace_info"]["trace_id"] for trace in told["traces"]] == ["b", "a"]
    asked = {"trace_ids": ["a", "b"], "experiment_ids": ["7"]}
    assert call(both, "POST", "traces/batchGetInfos", asked).json() == {}
    gone = {"experiment_id": "0", "max_timestamp_millis": end, "max_traces": 2}
    assert call(both, "POST", "traces/delete-traces", gone).json() == {"traces_deleted": 2}
    assert found(both) == ["a", "d"]


def test_assessments_on_each_database(both: ASGIApp) -> None:
    call(both, "POST", "traces", info("a"))
    given_ = {"assessment_name": "score", "feedback": {"value": 0.5}, "trace_id": "a"}
    made = call(both, "POST", "traces/a/assessments", {"assessment": given_}).json()["assessment"]
    assert found(both, filter="feedback.score = '0.5'") == ["a"]
    over = {**given_, "feedback": {"value": {"x": [None]}}, "overrides": made["assessment_id"]}
    second = call(both, "POST", "traces/a/assessments", {"assessment": over}).json()["assessment"]
    assert second["feedback"] == {"value": {"x": [None]}}
    assert found(both, filter="feedback.score = '0.5'") == []
    path = f"traces/a/assessments/{second['assessment_id']}"
    body = {"assessment": {"rationale": "r", "feedback": {"value": 9}}, "update_mask": "rationale"}
    changed = call(both, "PATCH", path, body).json()["assessment"]
    assert (changed["rationale"], changed["feedback"]) == ("r", {"value": {"x": [None]}})
    assert call(both, "DELETE", path).json() == {}
    assert found(both, filter="feedback.score = '0.5'") == ["a"]
    refused(call(both, "GET", path), 404)


def test_trace_sent_again_is_one_trace(app: ASGIApp) -> None:
    own = {"assessment_name": "ok", "feedback": {"value": True}}
    answers = [call(app, "POST", "traces", info("again", assessments=[own])) for _ in range(2)]
    first, second = (answer.json()["trace"]["trace_info"] for answer in answers)
    assert len(second["assessments"]) == 1
    assert first["assessments"][0]["assessment_id"] == second["assessments"][0]["assessment_id"]
    stolen = {**own, "assessment_id": first["assessments"][0]["assessment_id"]}
    told = refused(call(app, "POST", "traces", info("other", assessments=[stolen])))
    assert "of another trace" in told


_LOCATION = {"mlflow_experiment": {"experiment_id": "0"}}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("traces", {}),
        ("traces", info("../x")),
        ("traces", info("a" * 300)),
        ("traces", info("ok", at="yesterday")),
        ("traces", info("ok", at="2024-01-01T00:00:00")),
        ("traces", info("ok", execution_duration="-1s")),
        ("traces", info("ok", execution_duration="1e5s")),
        ("traces", info("ok", execution_duration="9" * 30 + "s")),
        ("traces", info("ok", state="FINE")),
        ("traces", info("ok", tags={"k": 1})),
        ("traces", info("ok", tags={"k" * 300: "v"})),
        ("traces", info("ok", tags={f"k{n}": "v" for n in range(600)})),
        ("traces", info("ok", assessments=[{"assessment_name": "x"}])),
        ("traces", {"trace": {"trace_info": {"trace_id": "x", "request_time": "2024-01-01Z"}}}),
        ("traces/search", {}),
        ("traces/search", {"locations": [_LOCATION], "filter": "status ="}),
        ("traces/search", {"locations": [_LOCATION], "filter": "span.bogus = 'v'"}),
        ("traces/search", {"locations": [_LOCATION], "filter": "experiment_id = '0'"}),
        ("traces/search", {"locations": [_LOCATION], "filter": "timestamp_ms > 'x'"}),
        ("traces/search", {"locations": [_LOCATION], "filter": "tags.t RLIKE '('"}),
        ("traces/search", {"locations": [_LOCATION], "filter": "tags.t RLIKE '(a)\\1'"}),
        ("traces/search", {"locations": [_LOCATION], "filter": f"name RLIKE '{'a' * 1001}'"}),
        ("traces/search", {"locations": [_LOCATION], "filter": "prompt = 'nameless'"}),
        ("traces/search", {"locations": [_LOCATION], "filter": "prompt LIKE 'p/1'"}),
        ("traces/search", {"locations": [_LOCATION], "filter": "issue.name = 'a'"}),
        ("traces/search", {"locations": [_LOCATION], "filter": "feedback.f > 'x'"}),
        ("traces/search", {"locations": [_LOCATION], "order_by": ["text"]}),
        ("traces/search", {"locations": [_LOCATION], "order_by": ["span.name"]}),
        ("traces/search", {"locations": [_LOCATION], "max_results": 501}),
        ("traces/search", {"locations": [_LOCATION], "page_token": "AAAA"}),
        ("traces/delete-traces", {"experiment_id": "0"}),
        (
            "traces/delete-traces",
            {"experiment_id": "0", "request_ids": ["a"], "max_timestamp_millis": 1},
        ),
        ("traces/delete-traces", {"experiment_id": "0", "max_timestamp_millis": 2**62}),
        (
            "traces/delete-traces",
            {"experiment_id": "0", "max_timestamp_millis": 9, "max_traces": 0},
        ),
        ("traces/batchGetInfos", {"trace_ids": ["x"] * 1001}),
    ],
)
def test_bad_calls_are_400(app: ASGIApp, path: str, body: dict[str, Any]) -> None:
    refused(call(app, "POST", path, body))


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "traces/none", {}),
        ("GET", "traces/get?trace_id=none", {}),
        ("PATCH", "traces/none/tags", {"key": "k", "value": "v"}),
        ("DELETE", "traces/none/tags", {"key": "k"}),
        ("POST", "traces/none/assessments", {"assessment": {"assessment_name": "a", "issue": {}}}),
        ("GET", "traces/none/assessments/a", {}),
        ("POST", "traces/link-to-run", {"trace_ids": [], "run_id": "none"}),
        ("GET", "get-trace-artifact?request_id=none", {}),
    ],
)
def test_what_is_not_there_is_404(
    app: ASGIApp, method: str, path: str, body: dict[str, Any]
) -> None:
    refused(call(app, method, path, body), 404)


# --- as clients of MLflow 2 log them --------------------------------------------------------------


def test_trace_of_an_older_client_is_begun_and_ended(both: ASGIApp) -> None:
    begun = {
        "experiment_id": "0",
        "timestamp_ms": 1000,
        "request_metadata": [{"key": "mlflow.traceInputs", "value": "{}"}],
        "tags": [{"key": "team", "value": "growth"}],
    }
    fresh = call(both, "POST", "traces", begun).json()["trace_info"]
    id_ = fresh["request_id"]
    assert (fresh["status"], fresh["timestamp_ms"]) == ("IN_PROGRESS", 1000)
    tags = {tag["key"]: tag["value"] for tag in fresh["tags"]}
    assert tags["mlflow.artifactLocation"] == f"mlflow-artifacts:/0/traces/{id_}/artifacts"
    over = {
        "timestamp_ms": 3500,
        "status": "ERROR",
        "request_metadata": [{"key": "mlflow.traceOutputs", "value": "[]"}],
        "tags": [{"key": "mlflow.traceName", "value": "answer"}],
    }
    ended = call(both, "PATCH", f"traces/{id_}", over).json()["trace_info"]
    assert (ended["status"], ended["execution_time_ms"]) == ("ERROR", 2500)
    assert {note["key"] for note in ended["request_metadata"]} == {
        "mlflow.traceInputs", "mlflow.traceOutputs",
    }  # fmt: skip
    assert call(both, "GET", f"traces/{id_}/info").json()["trace_info"] == ended
    query = "experiment_ids=0&filter=" + quote("tags.team = 'growth'")
    assert call(both, "GET", f"traces?{query}").json()["traces"] == [ended]
    # And a client of today sees the same trace.
    now = call(both, "GET", f"traces/{id_}").json()["trace"]["trace_info"]
    assert (now["state"], now["execution_duration"]) == ("ERROR", "2.500s")
    assert call(both, "GET", f"traces/{id_}/info").status == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "traces", {"experiment_id": "none", "timestamp_ms": 1}, 404),
        ("POST", "traces", {"experiment_id": "0", "timestamp_ms": 2**62}, 400),
        ("PATCH", "traces/none", {"timestamp_ms": 1}, 404),
        ("GET", "traces/none/info", {}, 404),
        ("GET", "traces", {}, 400),
    ],
)
def test_wrong_calls_of_older_clients_are_refused(
    app: ASGIApp, method: str, path: str, body: dict[str, Any], status: int
) -> None:
    refused(call(app, method, path, body), status)
