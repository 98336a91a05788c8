"""The inference door in process: the protocol, the MLflow form, and everything that is refused."""

from __future__ import annotations

import asyncio
import gzip
import struct
import zlib
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from everloop.api.oip import InferenceApp
from everloop.api.oip_codec import decode_infer
from everloop.core.model import Signature
from everloop.core.schema import Field, Schema
from everloop.errors import BackendError, InvalidInput
from everloop.serving.loader import RouteLoader, Router
from everloop.serving.log import PredictionLog
from everloop.serving.metrics import ServingMetrics
from everloop.serving.route import ServedFeatures
from tests.unit.serving_fakes import (
    OUTPUTS,
    FakeDeployments,
    FakeModels,
    FakeSink,
    HourLookup,
    deployment,
    load,
    router,
)

INFER = "/v2/models/delay/infer"


class Client:
    """Speaks ASGI to an app, a body in any number of pieces."""

    def __init__(self, made: Router, sink: FakeSink | None = None, **options: Any) -> None:
        self.log = PredictionLog(sink) if sink is not None else None
        self.app = InferenceApp(made, self.log, ServingMetrics(CollectorRegistry()), **options)

    def call(
        self,
        method: str,
        path: str,
        body: bytes | list[bytes] = b"",
        headers: dict[str, str] | None = None,
    ) -> tuple[int, Any, dict[str, str]]:
        pieces = body if isinstance(body, list) else [body]
        messages: list[dict[str, Any]] = [
            {"type": "http.request", "body": piece, "more_body": i < len(pieces) - 1}
            for i, piece in enumerate(pieces)
        ]
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            if not messages:
                await asyncio.sleep(3600)
            return messages.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        found = {"host": "127.0.0.1:80", **(headers or {})}
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "headers": [(k.encode(), v.encode()) for k, v in found.items()],
        }
        asyncio.run(self.app(scope, receive, send))
        own = {k.decode(): v.decode() for k, v in sent[0]["headers"]}
        content = sent[1]["body"]
        is_json = own["content-type"] == "application/json" and content not in (b"", b"\n")
        parsed = orjson.loads(content) if is_json and path != "/version" else content
        return sent[0]["status"], parsed, own

    def infer(self, document: Any, path: str = INFER, **headers: str) -> tuple[int, Any]:
        body = document if isinstance(document, bytes) else orjson.dumps(document)
        status, answer, _ = self.call("POST", path, body, headers)
        return status, answer

    def invoke(self, document: Any, kind: str = "application/json") -> tuple[int, Any]:
        body = document if isinstance(document, bytes) else orjson.dumps(document)
        status, answer, _ = self.call("POST", "/invocations", body, {"content-type": kind})
        return status, answer


def tensor(name: str, data: Any, datatype: str = "FP64", **more: Any) -> dict[str, Any]:
    return {"name": name, "shape": [len(data)], "datatype": datatype, "data": data, **more}


def request(x: Any = (1.0,), y: Any = (2.0,), **more: Any) -> dict[str, Any]:
    return {"inputs": [tensor("x", list(x)), tensor("y", list(y))], **more}


@pytest.fixture
def client() -> Client:
    return Client(router())


def outputs(answer: dict[str, Any]) -> dict[str, Any]:
    return {one["name"]: one["data"] for one in answer["outputs"]}


def test_one_row_is_answered_and_named(client: Client) -> None:
    status, answer, headers = client.call(
        "POST", INFER, orjson.dumps(request(id="flight-1", parameters={"any": 1}))
    )
    assert status == 200
    found = outputs(answer)
    assert found["late"] == [1021.0]
    assert found["model_version"] == [1]
    assert answer["model_name"] == "delay"
    assert answer["model_version"] == "1"
    assert answer["id"] == "flight-1"
    assert answer["parameters"]["prediction_id"] == found["prediction_id"][0]
    assert headers["everloop-prediction-id"] == found["prediction_id"][0]
    assert headers["x-everloop-revision"] == "1"


def test_rows_carry_the_clients_names_into_the_log() -> None:
    sink = FakeSink()
    client = Client(router(), sink)
    client.infer(request([1, 2], [0, 0], id="req"))
    named = request([3, 4], [0, 0])
    named["inputs"].append(tensor("request_id", ["a", "b"], "BYTES"))
    client.infer(named)
    status, answer = client.infer(request([5], [0]))
    assert client.log is not None
    client.log.flush()
    assert status == 200
    own = answer["parameters"]["prediction_id"]
    assert [row["request_id"] for row in sink.rows] == ["req/0", "req/1", "a", "b", own]
    assert sink.rows[-1]["id"] == own


@pytest.mark.parametrize("datatype", ["FP32", "FP64", "INT8", "INT64", "UINT16"])
def test_numbers_of_any_width_are_widened(client: Client, datatype: str) -> None:
    document = {"inputs": [tensor("x", [3], datatype), tensor("y", [1], datatype)]}
    assert outputs(client.infer(document)[1])["late"] == [1013.0]


def test_columns_of_shape_n_by_1_are_rows(client: Client) -> None:
    document = request([1, 2], [0, 0])
    document["inputs"][0] |= {"shape": [2, 1], "data": [[1], [2]]}
    document["inputs"][1] |= {"shape": [2, 1]}
    assert outputs(client.infer(document)[1])["late"] == [1001.0, 1002.0]


def test_no_rows_answer_no_values_of_the_right_type(client: Client) -> None:
    status, answer = client.infer(request([], []))
    assert status == 200
    assert [(one["datatype"], one["shape"]) for one in answer["outputs"]] == [
        ("FP64", [0]), ("BYTES", [0]), ("INT32", [0]),
    ]  # fmt: skip


def test_outputs_come_in_the_order_asked_for(client: Client) -> None:
    wanted = [{"name": "prediction_id"}, {"name": "late"}]
    _, answer = client.infer(request(outputs=wanted))
    assert [one["name"] for one in answer["outputs"]] == ["prediction_id", "late"]


SCALARS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**63), 2**64 - 1),
    st.booleans(), st.none(), st.text(max_size=4),
)  # fmt: skip
TENSORS = st.builds(
    lambda name, kind, data: tensor(name, data, kind),
    st.sampled_from(["x", "y", 'q"']),
    st.sampled_from(["FP64", "FP32", "INT8", "UINT64", "BOOL", "BYTES", "ODD"]),
    st.lists(SCALARS, max_size=2) | st.lists(st.integers(0, 9), min_size=9, max_size=12),
)


@given(
    st.lists(TENSORS, max_size=3),
    st.fixed_dictionaries(
        {},
        optional={
            "id": st.text(max_size=3) | st.integers(0, 9),
            "parameters": st.just({"binary_data_output": True}) | st.just({"a": "b"}),
            "other": st.integers(0, 9),
        },
    ),
)
def test_quick_and_careful_reading_agree(tensors: list[Any], more: dict[str, Any]) -> None:
    body = orjson.dumps({"inputs": tensors, **more})

    def outcome(head_length: bytes | None) -> Any:
        try:
            found = decode_infer(body, head_length)
        except InvalidInput as error:
            return str(error)
        columns = {name: [str(one) for one in column] for name, column in found.columns.items()}
        return found.id, found.rows, found.outputs, found.binary, columns

    # A head's length sends the same body through the careful reader.
    assert outcome(None) == outcome(b"%d" % len(body))


def binary_request(values: np.ndarray, **more: Any) -> tuple[bytes, int]:
    raw = values.tobytes()
    head = orjson.dumps(
        {
            "inputs": [
                {
                    "name": name,
                    "shape": [len(values)],
                    "datatype": "FP64",
                    "parameters": {"binary_data_size": len(raw)},
                }
                for name in ("x", "y")
            ],
            **more,
        }
    )
    return head + raw + raw, len(head)


def test_binary_tensors_in_and_out(client: Client) -> None:
    body, head = binary_request(np.array([1.0, 2.0]), parameters={"binary_data_output": True})
    status, answer, headers = client.call(
        "POST", INFER, body, {"inference-header-content-length": str(head)}
    )
    assert status == 200
    size = int(headers["inference-header-content-length"])
    document = orjson.loads(answer[:size])
    sizes = [one["parameters"]["binary_data_size"] for one in document["outputs"]]
    assert sum(sizes) == len(answer) - size
    assert np.frombuffer(answer, "<f8", 2, size).tolist() == [1011.0, 1022.0]
    length = struct.unpack_from("<I", answer, size + 16)
    assert length == (26,)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "raw"])
def test_compressed_bodies_count_the_plain_head(client: Client, encoding: str) -> None:
    body, head = binary_request(np.array([1.0]))
    if encoding == "gzip":
        packed = gzip.compress(body, mtime=0)
    else:
        packer = zlib.compressobj(wbits=15 if encoding == "deflate" else -15)
        packed = packer.compress(body) + packer.flush()
    headers = {
        "content-encoding": "gzip" if encoding == "gzip" else "deflate",
        "inference-header-content-length": str(head),
    }
    status, answer, _ = client.call("POST", INFER, packed, headers)
    assert (status, outputs(answer)["late"]) == (200, [1011.0])


def test_body_in_pieces_is_put_together(client: Client) -> None:
    body = orjson.dumps(request())
    status, answer, _ = client.call("POST", INFER, [body[:5], b"", body[5:9], body[9:]])
    assert (status, outputs(answer)["late"]) == (200, [1021.0])


DEEP = b'{"inputs":' + b"[" * 70 + b"]" * 70 + b"}"
REFUSED: list[tuple[str, Any, str]] = [
    ("empty body", b"", "no JSON"),
    ("no JSON", b"{", "no JSON"),
    ("list", [], "must be a JSON object"),
    ("NaN literal", b'{"inputs":[{"name":"x","shape":[1],"data":[NaN]}]}', "no JSON"),
    ("Infinity literal", b'{"inputs":[{"name":"x","shape":[1],"data":[Infinity]}]}', "no JSON"),
    ("lone surrogate", b'{"id":"\\ud800","inputs":[]}', "no JSON"),
    ("no UTF-8", b'{"id":"\xff"}', "no JSON"),
    ("deep", DEEP, "nested deeper"),
    ("very deep", b"[" * 100_000, "nested deeper"),
    ("twin key", b'{"inputs":[],"inputs":[]}', "twice"),
    ("twin key inside", b'{"inputs":[{"name":"x" ,"name":"y"}]}', "twice"),
    ("no inputs", {}, "inputs: expected a list"),
    ("inputs object", {"inputs": {}}, "inputs: expected a list"),
    ("input without name", {"inputs": [1]}, "inputs[0]"),
    ("missing field", {"inputs": [tensor("x", [1.0])]}, "inputs.y: missing"),
    ("unknown field", {"inputs": [*request()["inputs"], tensor("z", [1.0])]}, "inputs.z: no such"),
    ("twice", {"inputs": [*request()["inputs"], tensor("x", [1.0])]}, "more than once"),
    ("text in a number", request(["abc"]), "inputs.x[0]: expected a number, got text"),
    ("bool in a number", request([True]), "got true or false"),
    ("null", request([None]), "inputs.x[0]: must not be"),
    ("count", {"inputs": [tensor("x", [1, 2], shape=[3])]}, "has 2 elements, its shape says 3"),
    ("rows differ", request([1, 2], [1]), "has 1 rows where x has 2"),
    ("negative shape", {"inputs": [tensor("x", [1], shape=[-1])]}, "whole numbers from 0"),
    ("shape of bool", {"inputs": [tensor("x", [1], shape=[True])]}, "whole numbers from 0"),
    ("giant shape", {"inputs": [tensor("x", [1], shape=[10**12])]}, "its shape says"),
    ("shape beyond int64", {"inputs": [tensor("x", [1], shape=[2**63 - 1, 1])]}, "its shape says"),
    ("matrix", {"inputs": [tensor("x", [1, 2], shape=[1, 2])]}, "one tensor for each field"),
    ("no shape", {"inputs": [{"name": "x", "datatype": "FP64", "data": [1]}]}, "inputs.x.shape"),
    ("ragged", {"inputs": [tensor("x", [[1], [1, 2]], shape=[2, 1])]}, "not nested"),
    ("too nested", {"inputs": [tensor("x", [[[1]]], shape=[1, 1])]}, "expected a number"),
    ("INT8 overflow", {"inputs": [tensor("x", [300], "INT8")]}, "outside int8"),
    ("INT64 overflow", {"inputs": [tensor("x", [2**63], "INT64")]}, "outside int64"),
    ("fraction in INT64", {"inputs": [tensor("x", [1.5], "INT64")]}, "expected a whole number"),
    ("unknown datatype", {"inputs": [tensor("x", [1], "FLOAT")]}, "datatype is unknown"),
    ("datatype no text", {"inputs": [tensor("x", [1], 5)]}, "datatype is unknown"),  # type: ignore[arg-type]
    ("FP16 in JSON", {"inputs": [tensor("x", [1], "FP16")]}, "has no JSON form"),
    ("parameters list", request(parameters=[]), "parameters: expected an object"),
    ("parameters nested", request(parameters={"a": {}}), "parameters.a"),
    ("id number", request(id=7), "id: expected text"),
    ("id too long", request(id="x" * 1_000_000), "id: expected text"),
    ("outputs object", request(outputs={}), "outputs: expected a list"),
    ("unknown output", request(outputs=[{"name": "nope"}]), "there is no such output"),
    ("output twice", request(outputs=[{"name": "late"}] * 2), "named twice"),
    ("output no object", request(outputs=[1]), "outputs[0]"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("document", "message"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_bad_requests_get_400_and_say_why(client: Client, document: Any, message: str) -> None:
    status, answer = client.infer(document)
    assert status == 400
    assert list(answer) == ["error"]
    assert message in answer["error"]
    assert len(answer["error"]) < 2_000


@pytest.mark.parametrize(
    ("size", "head"),
    [("8", "x"), ("8", "-1"), ("8", "999999"), ("7", None), ("9", None), ("-1", None),
     ("1.5", None), ('"8"', None), ("true", None)],
)  # fmt: skip
def test_binary_sizes_that_do_not_fit_get_400(client: Client, size: str, head: str | None) -> None:
    document = (
        '{"inputs":[{"name":"x","shape":[1],"datatype":"FP64",'
        f'"parameters":{{"binary_data_size":{size}}}}}]}}'
    ).encode()
    status, answer = client.infer(
        document + b"\0" * 8, **{"inference-header-content-length": head or str(len(document))}
    )
    assert status == 400
    assert "error" in answer


def test_bytes_that_are_no_text_or_no_elements_get_400() -> None:
    served = ServedFeatures(
        Schema((Field("origin", "string", nullable=False),)), ("x", "y"), "", HourLookup()
    )
    loader = RouteLoader(FakeModels(feature_set="f"), load, lambda _n: served)
    made = Router(FakeDeployments({"delay": deployment()}), loader)
    made.refresh()
    client = Client(made)
    for raw in (b"\2\0\0\0\xff\xfe", b"\xff\xff\xff\xffab", b"\1\0\0", b""):
        head = orjson.dumps(
            {"inputs": [{"name": "origin", "shape": [1], "datatype": "BYTES",
                         "parameters": {"binary_data_size": len(raw)}}]}
        )  # fmt: skip
        status, _ = client.infer(head + raw, **{"inference-header-content-length": str(len(head))})
        assert status == 400
    assert client.infer({"inputs": [tensor("origin", ["JFK"], "BYTES")]})[0] == 200


def test_body_over_the_limit_gets_413_and_closes(client: Client) -> None:
    big = b" " * (16 << 20)
    status, answer, headers = client.call("POST", INFER, b"", {"content-length": "99999999999"})
    assert (status, headers["connection"]) == (413, "close")
    assert "limit of 16777216" in answer["error"]
    assert client.call("POST", INFER, [big, b"x"])[0] == 413


def test_inflated_body_over_the_limit_gets_413(client: Client) -> None:
    bomb = gzip.compress(b" " * (20 << 20))
    assert client.call("POST", INFER, bomb, {"content-encoding": "gzip"})[0] == 413


@pytest.mark.parametrize(
    ("encoding", "body", "status"),
    [("gzip", b"junk", 400), ("gzip", gzip.compress(b"{}", mtime=0)[:-4], 400), ("br", b"", 415),
     ("gzip", gzip.compress(b"{}", mtime=0) * 2, 400), ("deflate", b"junk", 400)],
)  # fmt: skip
def test_broken_encodings_are_refused(
    client: Client, encoding: str, body: bytes, status: int
) -> None:
    assert client.call("POST", INFER, body, {"content-encoding": encoding})[0] == status


def test_slow_body_gets_408_and_closes() -> None:
    client = Client(router(), body_timeout_s=0.01)
    status, _, headers = asyncio_never_ends(client)
    assert (status, headers["connection"]) == (408, "close")


def asyncio_never_ends(client: Client) -> tuple[int, Any, dict[str, str]]:
    # The last piece says that more comes, and then nothing comes.
    class Endless(list):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return super().__len__() + 1

    return client.call("POST", INFER, Endless([b"{"]))


def test_unknown_names_get_404_with_near_ones(client: Client) -> None:
    assert client.infer(request(), "/v2/models/dely/infer") == (
        404,
        {"error": "no model 'dely'\n  hint: did you mean 'delay'?"},
    )
    for version in ("9", "x", "-1", "9" * 30):
        assert client.infer(request(), f"/v2/models/delay/versions/{version}/infer")[0] == 404
    assert client.call("GET", "/v2/nothing")[0] == 404
    assert client.call("GET", "/")[0] == 404


def test_pinned_version_answers_though_it_has_no_traffic() -> None:
    client = Client(router(deployment(("champion", 1, 100.0), ("shadow", 2, 0.0))))
    _, answer = client.infer(request(), "/v2/models/delay/versions/2/infer")
    assert (answer["model_version"], outputs(answer)["late"]) == ("2", [2021.0])


def test_rows_of_two_versions_name_theirs() -> None:
    client = Client(router(deployment(("champion", 1, 50.0), ("challenger", 2, 50.0))))
    _, answer = client.infer(request(range(100), [0] * 100))
    found = outputs(answer)
    assert "model_version" not in answer
    assert set(found["model_version"]) == {1, 2}
    assert found["late"] == [1000.0 * v + i for i, v in enumerate(found["model_version"])]


def test_name_may_hold_an_encoded_slash() -> None:
    client = Client(router(deployment(name="team/delay")))
    assert client.infer(request(), "/v2/models/team%2Fdelay/infer")[0] == 200


def test_model_that_fails_gets_500_with_an_id_and_no_trace() -> None:
    sink = FakeSink()
    models = FakeModels(files_of={1: {"model.txt": b"broken"}})
    client = Client(router(models=models), sink)
    status, answer = client.infer(request())
    assert client.log is not None
    client.log.flush()
    assert status == 500
    assert "secret" not in answer["error"]
    assert sink.rows[0]["id"] in answer["error"]
    assert sink.rows[0]["error"] == "RuntimeError"
    stats = client.call("GET", "/v2/models/delay/stats")[1]["model_stats"][0]
    assert stats["inference_stats"]["fail"]["count"] == 1


def test_store_that_fails_gets_503_and_keeps_its_details() -> None:
    class Down:
        def lookup(self, columns: Any, at_us: Any) -> Any:
            raise BackendError("redis://user:secret@host is away")

    served = ServedFeatures(Schema((Field("a", "int64"),)), ("x", "y"), "", Down())
    loader = RouteLoader(FakeModels(feature_set="f"), load, lambda _n: served)
    made = Router(FakeDeployments({"delay": deployment()}), loader)
    made.refresh()
    status, answer, headers = Client(made).call(
        "POST", INFER, orjson.dumps({"inputs": [tensor("a", [1], "INT64")]})
    )
    assert (status, headers["retry-after"]) == (503, "1")
    assert "secret" not in answer["error"]


def test_health_metadata_and_index(client: Client) -> None:
    assert client.call("GET", "/v2/health/live")[:2] == (200, {"live": True})
    assert client.call("GET", "/v2/health/ready")[:2] == (200, {"ready": True})
    assert client.call("GET", "/v2/models/delay/ready")[1] == {"name": "delay", "ready": True}
    assert client.call("GET", "/v2/models/delay/versions/1/ready")[0] == 200
    assert client.call("GET", "/v2/models/delay/versions/4/ready")[0] == 404
    server = client.call("GET", "/v2/")[1]
    assert server["name"] == "everloop"
    assert "binary_tensor_data" in server["extensions"]
    metadata = client.call("GET", "/v2/models/delay")[1]
    assert metadata["versions"] == ["1"]
    assert metadata["inputs"][0] == {"name": "x", "datatype": "FP64", "shape": [-1]}
    for body in (b"", b"{}", b'{"ready":true}'):
        index = client.call("POST", "/v2/repository/index", body)[1]
        assert index == [{"name": "delay", "version": "1", "state": "READY", "reason": ""}]
    assert client.call("POST", "/v2/repository/index", b'{"ready":1}')[0] == 400
    assert client.call("GET", "/v2/models/delay/config")[1]["input"][0]["data_type"] == "TYPE_FP64"


def test_nobody_unloads_a_model(client: Client) -> None:
    for call in ("load", "unload"):
        assert client.call("POST", f"/v2/repository/models/delay/{call}", b"{}")[0] == 403
    assert client.infer(request())[0] == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", INFER), ("PUT", INFER), ("GET", "/invocations"), ("POST", "/v2/models/delay"),
     ("POST", "/metrics"), ("GET", "/v2/repository/index"), ("DELETE", "/v2/health/ready")],
)  # fmt: skip
def test_wrong_method_gets_405(client: Client, method: str, path: str) -> None:
    assert client.call(method, path)[0] == 405


def test_draining_worker_is_not_ready_answers_and_closes(client: Client) -> None:
    client.app.draining = True
    assert client.call("GET", "/v2/health/ready")[0] == 503
    assert client.call("GET", "/v2/health/live")[0] == 200
    status, _, headers = client.call("POST", INFER, orjson.dumps(request()))
    assert (status, headers["connection"]) == (200, "close")


def test_metrics_and_statistics_count_by_version_and_arm(client: Client) -> None:
    client.infer(request([1, 2, 3], [0, 0, 0]))
    client.infer({})
    text = client.call("GET", "/metrics")[1].decode()
    assert 'everloop_predictions_total{arm="champion",deployment="delay",version="1"} 3.0' in text
    assert 'everloop_requests_refused_total{deployment="delay",status="400"} 1.0' in text
    assert (
        'everloop_prediction_seconds_count{arm="champion",deployment="delay",version="1"} 1.0'
        in text
    )
    (stats,) = client.call("GET", "/v2/models/stats")[1]["model_stats"]
    assert (stats["inference_count"], stats["execution_count"]) == (3, 1)


# MLflow -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "document",
    [
        {"dataframe_split": {"columns": ["y", "x"], "data": [[0, 1], [0.0, 2.0]], "index": [0, 1]}},
        {"dataframe_records": [{"x": 1, "y": 0}, {"x": 2, "y": 0}]},
        {"instances": [{"x": 1, "y": 0}, {"x": 2, "y": 0}]},
        {"instances": [[1, 0], [2, 0]]},
        {"instances": {"x": [1, 2], "y": [0, 0]}},
        {"inputs": {"x": [1, 2], "y": [0, 0]}},
        {"inputs": {"x": [[1], [2]], "y": [[0], [0]]}},
        {"inputs": [{"x": 1, "y": 0}, {"x": 2, "y": 0}], "params": {"any": 1}},
    ],
)
def test_every_form_of_invocation_answers_the_same(client: Client, document: Any) -> None:
    status, answer = client.invoke(document)
    assert (status, answer["predictions"]) == (200, [1001.0, 1002.0])
    assert len(set(answer["prediction_ids"])) == 2


def test_csv_takes_its_types_from_the_signature() -> None:
    schema = Schema((Field("x", "int64"), Field("y", "bool", nullable=False)))
    client = Client(router(models=FakeModels(signature=Signature(schema, OUTPUTS))))
    status, answer = client.invoke(b"y,x\nTrue,1\nFalse,2\n", "text/csv; charset=utf-8")
    assert (status, answer["predictions"]) == (200, [1011.0, 1002.0])
    status, answer = client.invoke(b"y,x\n1,1.5\n,2\n", "text/csv")
    assert status == 400
    for place in ("csv[0].x", "csv[0].y", "csv[1].y: must not be null"):
        assert place in answer["message"]


def test_invocation_names_column_and_row_of_every_fault(client: Client) -> None:
    status, answer = client.invoke(
        {"dataframe_split": {"columns": ["x", "z"], "data": [[1, 1], [None, 1], ["far", 1]]}}
    )
    assert (status, answer["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
    for place in (
        "dataframe_split.data[1].x: must not be null",
        "dataframe_split.data[2].x: expected a number, got text",
        "dataframe_split.data.z: no such column",
        "dataframe_split.data.y: missing",
    ):
        assert place in answer["message"]


@pytest.mark.parametrize(
    ("document", "kind", "status"),
    [
        ({}, "application/json", 400),
        ({"inputs": {}, "instances": []}, "application/json", 400),
        ([], "application/json", 400),
        (b"", "application/json", 400),
        ({"dataframe_records": []}, "application/json", 400),
        ({"dataframe_records": [1]}, "application/json", 400),
        ({"dataframe_split": {"columns": ["x", "x"], "data": []}}, "application/json", 400),
        ({"dataframe_split": {"columns": ["x", "y"], "data": [[1]]}}, "application/json", 400),
        ({"dataframe_split": {"data": [[1]]}}, "application/json", 400),
        ({"instances": [[1]]}, "application/json", 400),
        ({"inputs": 3}, "application/json", 400),
        ({"inputs": None}, "application/json", 400),
        ({"inputs": {"x": {"a": 1}, "y": 1}}, "application/json", 400),
        (b"x,y\n1\n", "text/csv", 400),
        (b"", "text/csv", 400),
        (b"\xff", "text/csv", 400),
        ({}, "", 415),
        ({}, "application/xml", 415),
        ({}, "application/json; charset=latin-1", 415),
        ({}, "application/json; boundary=x", 415),
    ],
)
def test_bad_invocations_are_refused(client: Client, document: Any, kind: str, status: int) -> None:
    found, answer = client.invoke(document, kind)
    assert found == status
    assert set(answer) == {"error_code", "message"}


def test_ping_and_version(client: Client) -> None:
    assert client.call("GET", "/ping")[:2] == (200, b"\n")
    assert client.call("GET", "/health")[:2] == (200, b"\n")
    assert client.call("GET", "/version")[0] == 200


def test_several_deployments_are_told_apart_by_the_path() -> None:
    client = Client(router(deployment(), deployment(("champion", 2, 100.0), name="other")))
    document = {"inputs": {"x": 1, "y": 0}}
    status, answer = client.invoke(document)
    assert status == 400
    assert "/invocations/{name}" in answer["message"]
    headers = {"content-type": "application/json"}
    _, answer, _ = client.call("POST", "/invocations/other", orjson.dumps(document), headers)
    assert answer["predictions"] == [2001.0]
    assert client.call("POST", "/invocations/third", b"{}", headers)[0] == 404
