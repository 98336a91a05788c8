"""The application for tests: under uvicorn on a free loopback port, or asked in this process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote

import uvicorn
from starlette.types import ASGIApp, Message

from everloop.workspace import Workspace

START_TIMEOUT_S = 120


@contextlib.contextmanager
def serve(workspace: Workspace) -> Iterator[str]:
    """Serve `workspace` within the block; yields ``http://127.0.0.1:<port>``.

    The server closes the workspace when it ends.
    """
    from everloop.server import make_app

    config = uvicorn.Config(
        make_app(workspace), log_config=None, access_log=False, timeout_graceful_shutdown=5
    )
    server = uvicorn.Server(config)
    # asyncio sets TCP_NODELAY only on a socket that says it is TCP; without it each call after the
    # first on a connection waits for the client's delayed acknowledgement, 40 ms.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while not server.started:
                assert thread.is_alive(), "the server ended while starting"
                assert time.monotonic() < deadline, "the server did not start"
                time.sleep(0.005)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(START_TIMEOUT_S)
            assert not thread.is_alive(), "the server did not end"


class Answer(NamedTuple):
    """What an application answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    app: ASGIApp,
    method: str,
    target: str,
    body: bytes | dict[str, Any] | list[bytes] = b"",
    *,
    headers: Sequence[tuple[str, str]] | dict[str, str] = (),
    host: str = "127.0.0.1:7410",
) -> Answer:
    """Send one request to `app` without a socket, exactly as given; an error of it is raised.

    Args:
        app: Any ASGI application.
        method: Of the request.
        target: Path with query, percent-encoded.
        body: Bytes (with their length), a list of bytes (sent in parts), or an object (as JSON).
        headers: In addition to ``Host``.
        host: The ``Host`` header; empty leaves it out.
    """
    path, _, query = target.partition("?")
    pairs = list(headers.items() if isinstance(headers, dict) else headers)
    if isinstance(body, dict):
        body = json.dumps(body).encode()
        pairs.append(("Content-Type", "application/json"))
    if host:
        pairs.insert(0, ("Host", host))
    parts = body if isinstance(body, list) else [body]
    if isinstance(body, bytes) and body:  # as real clients do; what is sent in parts is chunked
        pairs.append(("Content-Length", str(len(body))))
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(name.lower().encode(), value.encode()) for name, value in pairs],
        "client": ("127.0.0.1", 50_000),
        "server": ("127.0.0.1", 7410),
    }
    return asyncio.run(_exchange(app, scope, parts))


async def _exchange(app: ASGIApp, scope: dict[str, Any], parts: list[bytes]) -> Answer:
    waiting = [
        {"type": "http.request", "body": part, "more_body": index + 1 < len(parts)}
        for index, part in enumerate(parts)
    ]
    sent: list[Message] = []

    async def receive() -> Message:
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    start = sent[0]
    headers = {name.decode().lower(): value.decode() for name, value in start["headers"]}
    return Answer(start["status"], headers, b"".join(m.get("body", b"") for m in sent[1:]))
