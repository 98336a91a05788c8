"""The two calls that training waits for, ``log-metric`` and ``log-batch``, before any framework.

They are what `everloop.api.mlflow` answers under the same paths, by the same decoding, the same
handlers and the same errors; what is left out is the way through the framework's layers, which
costs several times what the work does. Every request that is in any way special goes the usual way.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from concurrent.futures import ThreadPoolExecutor

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from everloop.api.mlflow_calls import Call
from everloop.api.mlflow_log import calls
from everloop.api.mlflow_wire import decode_body, error_answer
from everloop.core.context import acting
from everloop.errors import EverloopError
from everloop.workspace import Workspace

__all__ = ["HotCalls"]

_log = logging.getLogger(__name__)

_HOT = {
    f"{api}/2.0/{path}": calls["POST", path]
    for api in ("/api", "/ajax-api")
    for path in ("mlflow/runs/log-metric", "mlflow/runs/log-batch")
}
#: Longer bodies go the usual way, which knows the limits.
_MAX_BODY = 256 << 10
#: As many callers as this write in one commit.
_THREADS = 16


class HotCalls:
    """Answers the hot calls itself and passes all others on to `app`."""

    def __init__(self, workspace: Workspace, app: ASGIApp) -> None:
        self._workspace = workspace
        self._app = app
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="log")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = _HOT.get(scope["path"]) if scope["type"] == "http" else None
        if call is None or scope["method"] != "POST" or not _is_plain(scope):
            await self._app(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client went away
            body += message.get("body", b"")
            more = message.get("more_body", False)
        loop = asyncio.get_running_loop()
        context = contextvars.copy_context()  # who asks must be known in the thread, too
        status, answer = await loop.run_in_executor(
            self._threads, context.run, self._work, call, body
        )
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(answer)),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    def _work(self, call: Call, body: bytes) -> tuple[int, bytes]:
        try:
            asked: object = decode_body(body, call.asked, {})
            with acting(actor=self._workspace.actor):
                return 200, msgspec.json.encode(call.handler(self._workspace, asked))
        except EverloopError as error:
            status, fields = error_answer(error)
        except Exception:  # noqa: BLE001 - logged; no traceback goes out
            _log.exception("%s failed", call.handler.__name__)
            status = 500
            fields = {
                "error_code": "INTERNAL_ERROR",
                "message": "the server failed; its log has the traceback",
            }
        return status, msgspec.json.encode(fields)

    def close(self) -> None:
        """Let the threads end."""
        self._threads.shutdown()


def _is_plain(scope: Scope) -> bool:
    """Whether the body is JSON of a known, ordinary length."""
    kind = size = b""
    for name, value in scope["headers"]:
        if name == b"content-type":
            kind = value
        elif name == b"content-length":
            size = value
    is_json = kind == b"application/json" or kind.startswith(b"application/json;")
    return is_json and size.isdigit() and len(size) < 8 and 0 < int(size) <= _MAX_BODY
