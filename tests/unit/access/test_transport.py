"""The client's end of the native door: connections are kept, and none outlives the transport."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from everloop.access.remote import Transport


class Slow(BaseHTTPRequestHandler):
    """Answers when it is told to, and notes when its connection ends."""

    protocol_version = "HTTP/1.1"
    asked = threading.Event()
    answer = threading.Event()
    ended = threading.Event()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.set()
        assert self.answer.wait(60)
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def finish(self) -> None:
        super().finish()
        self.ended.set()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def slow() -> Iterator[str]:
    for event in (Slow.asked, Slow.answer, Slow.ended):
        event.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield f"http://127.0.0.1:{server.server_port}"
        Slow.answer.set()
        server.shutdown()
        serving.join()


def test_a_call_in_flight_when_the_transport_closes_leaves_no_connection(slow: str) -> None:
    transport = Transport(slow)
    call = threading.Thread(target=transport.call, args=("/x", b"", 0))
    call.start()
    assert Slow.asked.wait(60)
    transport.close()
    Slow.answer.set()
    call.join(60)
    assert Slow.ended.wait(60), "the connection was kept open by a closed transport"


def test_an_open_transport_keeps_its_connection(slow: str) -> None:
    transport = Transport(slow)
    Slow.answer.set()
    assert transport.call("/x", b"", 0) == (b"ok", 2)
    assert not Slow.ended.wait(0.2)
    transport.close()
    assert Slow.ended.wait(60)
