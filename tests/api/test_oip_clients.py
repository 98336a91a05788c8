"""The inference door over the network: the protocol's own client, and plain sockets."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
import pytest
import tritonclient.http as triton

from tests.e2e.serving_rig import Rig

BODY = orjson.dumps(
    {"inputs": [{"name": n, "shape": [1], "datatype": "FP64", "data": [1]} for n in ("x", "y")]}
)
HEAD = b"POST /v2/models/delay/infer HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    made = Rig(tmp_path_factory.mktemp("serving"), workers=1)
    yield made
    made.stop()


@pytest.fixture
def client(rig: Rig) -> Iterator[Any]:
    with triton.InferenceServerClient(f"127.0.0.1:{rig.port}") as made:
        yield made


def inputs(binary: bool, datatype: str = "FP64", rows: int = 3) -> list[Any]:
    found = []
    for name in ("x", "y"):
        tensor = triton.InferInput(name, [rows], datatype)
        values = np.arange(rows).astype(triton.triton_to_np_dtype(datatype))
        tensor.set_data_from_numpy(values, binary_data=binary)
        found.append(tensor)
    return found


@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("datatype", ["FP64", "FP32", "INT32", "UINT8"])
def test_infer(client: Any, binary_in: bool, binary_out: bool, datatype: str) -> None:
    names = ("late", "prediction_id", "model_version")
    outputs = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in names]
    result = client.infer("delay", inputs(binary_in, datatype), outputs=outputs, request_id="r")
    assert result.as_numpy("late").tolist() == [1000.0, 1011.0, 1022.0]
    assert result.as_numpy("model_version").tolist() == [1, 1, 1]
    assert len({bytes(one, "ascii") if isinstance(one, str) else one
                for one in result.as_numpy("prediction_id").tolist()}) == 3  # fmt: skip
    assert result.get_response()["id"] == "r"


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_infer_compressed_pinned_and_with_defaults(client: Any, algorithm: str) -> None:
    result = client.infer(
        "delay",
        inputs(binary=True),
        model_version="1",
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )
    assert result.as_numpy("late").tolist() == [1000.0, 1011.0, 1022.0]


def test_half_precision_travels_in_binary(client: Any) -> None:
    result = client.infer("delay", inputs(binary=True, datatype="FP16"))
    assert result.as_numpy("late").tolist() == [1000.0, 1011.0, 1022.0]


def test_everything_about_the_server(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("delay")
    assert client.is_model_ready("delay", "1")
    assert not client.is_model_ready("nope")
    assert client.get_server_metadata()["name"] == "everloop"
    assert client.get_model_metadata("delay", "1")["versions"] == ["1"]
    assert client.get_model_config("delay")["name"] == "delay"
    assert client.get_model_repository_index()[0]["state"] == "READY"
    client.infer("delay", inputs(binary=True))
    stats = client.get_inference_statistics("delay", "1")["model_stats"][0]
    assert stats["inference_count"] >= 3


def test_errors_are_told_in_the_protocols_form(client: Any) -> None:
    with pytest.raises(triton.InferenceServerException, match="no model 'nope'"):
        client.infer("nope", inputs(binary=True))
    with pytest.raises(triton.InferenceServerException, match=r"inputs\.y: missing"):
        client.infer("delay", inputs(binary=True)[:1])
    with pytest.raises(triton.InferenceServerException, match="deployments decide"):
        client.unload_model("delay")


def exchange(rig: Rig, *pieces: bytes, until: bytes = b"") -> bytes:
    """Send `pieces` and read until the connection closes, or `until` has come."""
    with socket.create_connection(("127.0.0.1", rig.port), timeout=20) as connection:
        for piece in pieces:
            connection.sendall(piece)
        received = b""
        while not until or until not in received:
            data = connection.recv(65536)
            if not data:
                break
            received += data
    return received


def framed(body: bytes, *headers: bytes) -> bytes:
    lines = [*headers, b"Content-Length: %d" % len(body)]
    return HEAD + b"\r\n".join(lines) + b"\r\n\r\n" + body


def test_pipelined_requests_are_answered_in_order(rig: Rig) -> None:
    closing = framed(BODY, b"Connection: close")
    received = exchange(rig, framed(BODY) + framed(b"{}") + closing)
    assert re.findall(rb"HTTP/1\.1 (\d+)", received) == [b"200", b"400", b"200"]


def test_chunked_body_and_continue_work(rig: Rig) -> None:
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in (BODY[:9], BODY[9:])) + b"0\r\n\r\n"
    head = HEAD + b"Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n"
    received = exchange(rig, head + b"Connection: close\r\n\r\n", chunks)
    assert b"100 Continue" in received
    assert b"200 OK" in received


@pytest.mark.parametrize(
    "bad",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello\r\n\r\n",
        b"GET\r\n\r\n",
        HEAD + b"Content-Length: x\r\n\r\n",
        HEAD + b"Content-Length: -5\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        HEAD + b"X: a\0b\r\n\r\n",
    ],
)
def test_broken_http_is_refused_and_closed(rig: Rig, bad: bytes) -> None:
    received = exchange(rig, bad)
    assert received == b"" or received.startswith(b"HTTP/1.1 400")


def test_announced_flood_is_refused_before_it_is_read(rig: Rig) -> None:
    received = exchange(rig, HEAD + b"Content-Length: 99999999999\r\n\r\n" + b" " * 1000)
    assert received.startswith(b"HTTP/1.1 413")


def test_client_that_leaves_half_way_harms_nobody(rig: Rig) -> None:
    for size in (0, 10, len(BODY) - 1):
        with socket.create_connection(("127.0.0.1", rig.port), timeout=20) as connection:
            connection.sendall(framed(BODY)[: -len(BODY)] + BODY[:size])
    assert b"200 OK" in exchange(rig, framed(BODY, b"Connection: close"))


def test_worker_answers_after_all_of_this_with_the_same_process(rig: Rig) -> None:
    before = rig.pids
    flood = b"".join(b"X-%d: y\r\n" % i for i in range(5_000))
    exchange(rig, HEAD + flood + b"Connection: close\r\nContent-Length: 0\r\n\r\n")
    assert b"200 OK" in exchange(rig, framed(BODY, b"Connection: close"))
    assert rig.pids == before
