"""An HTTP proxy before a server, in this process: it counts requests and does harm when told to."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

__all__ = ["Asked", "FaultProxy", "proxy_before"]


class Asked(NamedTuple):
    """A request; `key` is the path without the bucket."""

    method: str
    key: str
    query: str
    headers: dict[str, str]


#: What is done to a request: nothing, or ``refuse`` (503), ``drop`` (the connection, before it gets
#: through), ``lose`` (the answer), ``half`` (the second half of the body), ``flip`` (a bit of the
#: body), ``hang`` (no answer for a while), ``forbid`` (403), ``blind`` (without its conditions).
Harm = Callable[[Asked], str | None]


class FaultProxy:
    """`harm` decides what happens to each request; `asked` are all that came."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.asked: list[Asked] = []
        self.harm: Harm = lambda asked: None
        self.hang_s = 3.0

    def first(self, count: int, kind: str, match: Callable[[Asked], bool]) -> None:
        """Do harm to the first `count` requests that match."""
        left, lock = [count], threading.Lock()

        def harm(asked: Asked) -> str | None:
            with lock:
                if left[0] and match(asked):
                    left[0] -= 1
                    return kind
            return None

        self.harm = harm

    def counted(self) -> int:
        """How many requests came since this was asked last."""
        count = len(self.asked)
        self.asked.clear()
        return count


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    proxy: FaultProxy
    upstream: str
    stop: threading.Event

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _pass_on(self) -> None:
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        key = unquote(parts.path).lstrip("/").partition("/")[2]
        asked = Asked(self.command, key, unquote(parts.query), headers)
        self.proxy.asked.append(asked)
        kind = self.proxy.harm(asked)
        if kind in ("drop", "hang"):
            self.stop.wait(self.proxy.hang_s if kind == "hang" else 0)
            self._cut()
        elif kind in ("refuse", "forbid"):
            status, code = (503, "SlowDown") if kind == "refuse" else (403, "SignatureDoesNotMatch")
            told = f"<Error><Code>{code}</Code><AWSAccessKeyId>an-id</AWSAccessKeyId></Error>"
            self._answer(status, {"Content-Type": "application/xml"}, told.encode())
        else:
            conditions = ("if-match", "if-none-match") if kind == "blind" else ()
            sent = {name: value for name, value in headers.items() if name not in conditions}
            status, answered, data = self._ask(body, sent)
            if kind == "lose":
                self._cut()
            else:
                data = bytes([data[0] ^ 1]) + data[1:] if kind == "flip" and data else data
                self._answer(status, answered, data, half=kind == "half")

    def _ask(self, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.upstream, timeout=60)
        with contextlib.closing(connection):
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            data = answer.read()
            hop = ("transfer-encoding", "connection", "content-length", "server", "date")
            kept = {n: v for n, v in answer.getheaders() if n.lower() not in hop}
            if self.command == "HEAD":
                kept["Content-Length"] = answer.getheader("Content-Length") or "0"
            return answer.status, kept, data

    def _answer(
        self, status: int, headers: dict[str, str], data: bytes, *, half: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.command != "HEAD" and status != 204:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if half else data)
        if half:
            self._cut()

    def _cut(self) -> None:
        self.wfile.flush()
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on  # noqa: N815


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: Any) -> None:
        """A client that went is what some tests are about."""


@contextlib.contextmanager
def proxy_before(url: str) -> Iterator[FaultProxy]:
    """A proxy before the server at `url`, within the block."""
    stop = threading.Event()
    handler = type("Handler", (_Handler,), {"upstream": urlsplit(url).netloc, "stop": stop})
    server = _Server(("127.0.0.1", 0), handler)
    proxy = handler.proxy = FaultProxy(f"http://127.0.0.1:{server.server_port}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield proxy
    finally:
        stop.set()
        server.shutdown()
        thread.join()
        server.server_close()
