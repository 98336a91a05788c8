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
from typing import NamedTuple

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from everloop.api.mlflow_calls import Call
from everloop.api.mlflow_log import calls, point_of
from everloop.api.mlflow_wire import decode_body, error_answer, of_one
from everloop.core.context import acting, current_principal
from everloop.core.run import Metric
from everloop.errors import EverloopError
from everloop.workspace import Workspace

__all__ = ["HotCalls"]

_log = logging.getLogger(__name__)

_HOT = {
    f"{api}/2.0/{path}": calls["POST", path]
    for api in ("/api", "/ajax-api")
    for path in ("mlflow/runs/log-metric", "mlflow/runs/log-batch")
}
_LOG_METRIC = calls["POST", "mlflow/runs/log-metric"]
_OK = (200, b"{}")
#: A point is decoded between other requests; what is longer than any sound one is not.
_MAX_POINT = 4 << 10
#: Longer bodies go the usual way, which knows the limits.
_MAX_BODY = 256 << 10
#: As many callers as this write in one commit.
_THREADS = 16


class _Asked(NamedTuple):
    """A point that somebody waits to see written."""

    context: contextvars.Context
    run_id: str
    points: list[Metric]
    done: asyncio.Future[tuple[int, bytes]]


class HotCalls:
    """Answers the hot calls itself and passes all others on to `app`.

    Single points that come while others are being written are written together: one change of
    threads and one commit for all of them.
    """

    def __init__(self, workspace: Workspace, app: ASGIApp) -> None:
        self._workspace = workspace
        self._app = app
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="log")
        self._waiting: list[_Asked] = []
        self._is_writing = False

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
        if call is _LOG_METRIC and len(body) <= _MAX_POINT:
            status, answer = await self._log_point(body)
        else:
            context = contextvars.copy_context()  # who asks must be known in the thread, too
            status, answer = await asyncio.get_running_loop().run_in_executor(
                self._threads, context.run, self._work, call, body
            )
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(answer)),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    # One point

    async def _log_point(self, body: bytes) -> tuple[int, bytes]:
        try:
            run_id, point = point_of(body)
        except EverloopError as error:
            return _told(error)
        loop = asyncio.get_running_loop()
        done: asyncio.Future[tuple[int, bytes]] = loop.create_future()
        self._waiting.append(_Asked(contextvars.copy_context(), run_id, [point], done))
        if not self._is_writing:
            self._begin(loop)
        return await done

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        group, self._waiting = self._waiting, []
        self._is_writing = True
        self._threads.submit(self._write, loop, group)

    def _write(self, loop: asyncio.AbstractEventLoop, group: list[_Asked]) -> None:
        answers = [_OK] * len(group)
        try:
            for members in _by_caller(group):
                context = group[members[0]].context
                for index, answer in context.run(self._write_of, group, members):
                    answers[index] = answer
        except Exception as error:  # noqa: BLE001 - each caller is told; no traceback goes out
            answers = [_told(error)] * len(group)
        try:
            loop.call_soon_threadsafe(self._finish, loop, group, answers)
        except RuntimeError:  # the loop ended: nobody waits any more
            self._is_writing = False

    def _write_of(
        self, group: list[_Asked], members: list[int]
    ) -> list[tuple[int, tuple[int, bytes]]]:
        """Write the points of one caller; the answers to those that went wrong."""
        tracking = self._workspace.tracking
        failed: list[tuple[int, tuple[int, bytes]]] = []
        with acting(actor=self._workspace.actor):
            written = tracking.log_known([(group[i].run_id, group[i].points) for i in members])
            for index, is_written in zip(members, written, strict=True):
                if not is_written:
                    try:
                        with of_one("metrics"):
                            tracking.log(group[index].run_id, metrics=group[index].points)
                    except Exception as error:  # noqa: BLE001 - its caller alone is told
                        failed.append((index, _told(error)))
        return failed

    def _finish(
        self,
        loop: asyncio.AbstractEventLoop,
        group: list[_Asked],
        answers: list[tuple[int, bytes]],
    ) -> None:
        self._is_writing = False
        if self._waiting:
            self._begin(loop)
        for asked, answer in zip(group, answers, strict=True):
            if not asked.done.done():  # a client that went away waits no more
                asked.done.set_result(answer)

    # A batch

    def _work(self, call: Call, body: bytes) -> tuple[int, bytes]:
        try:
            asked: object = decode_body(body, call.asked, {})
            with acting(actor=self._workspace.actor):
                return 200, msgspec.json.encode(call.handler(self._workspace, asked))
        except Exception as error:  # noqa: BLE001 - logged; no traceback goes out
            return _told(error)

    def close(self) -> None:
        """Let the threads end."""
        self._threads.shutdown()


def _by_caller(group: list[_Asked]) -> list[list[int]]:
    """The places in a group of each principal's points: what is allowed is asked for each."""
    found: dict[int, list[int]] = {}
    for index, asked in enumerate(group):
        found.setdefault(id(asked.context.run(current_principal)), []).append(index)
    return list(found.values())


def _told(error: Exception) -> tuple[int, bytes]:
    """An error as MLflow's clients read it; one that nobody expected is logged."""
    if isinstance(error, EverloopError):
        status, fields = error_answer(error)
        return status, msgspec.json.encode(fields)
    _log.error("logging failed", exc_info=error)
    fields = {
        "error_code": "INTERNAL_ERROR",
        "message": "the server failed; its log has the traceback",
    }
    return 500, msgspec.json.encode(fields)


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
