"""The inference door: Open Inference Protocol v2 and MLflow scoring as one raw ASGI app.

No framework stands on the hot path. A request takes the route once and keeps it to the end. Bad
input is a 4xx with ``{"error": ...}`` naming every fault, never an echo of the input, never a
traceback. What is loaded is decided by deployments alone: the repository's load and unload are
refused.

Choices where the protocol leaves room:

- A model's name is its deployment's; ``/versions/{v}`` asks for the arm that serves version v.
- One tensor ``[n]`` or ``[n, 1]`` for each field of the request. A BYTES tensor ``request_id``
  names the rows; else the request's ``id`` does (``id/0``, ``id/1``... where there are several).
- Outputs are the prediction (FP64), ``prediction_id`` (BYTES) and ``model_version`` (INT32), which
  may differ by row under a canary; the head has ``model_version`` where all rows agree.
- ``/invocations`` serves the only deployment; ``/invocations/{name}`` serves one of several.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import numpy as np
import orjson

from everloop.api import invocations, oip_models
from everloop.api.oip_body import MAX_BODY, BadRequest, ClientGone, inflate, read_body
from everloop.api.oip_codec import OutputTensor, decode_infer, encode_infer
from everloop.errors import BackendError, EverloopError, InvalidInput, NotFound
from everloop.serving.loader import Router
from everloop.serving.log import PredictionLog
from everloop.serving.metrics import ServingMetrics
from everloop.serving.route import Answers, RouteSnapshot
from everloop.serving.signature import Columns, Where, where_in

__all__ = ["InferenceApp"]

_logger = logging.getLogger(__name__)

Headers = list[tuple[bytes, bytes]]
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_JSON = (b"content-type", b"application/json")
_BINARY = (b"content-type", b"application/octet-stream")
_TEXT = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
_CLOSE = (b"connection", b"close")

#: A call that takes longer than this leaves the event loop, microseconds.
_INLINE_US = 2_000

#: A body longer than this is handled off the event loop, bytes.
_INLINE_BODY = 64 << 10

#: Calls that may wait for the worker's model thread.
_QUEUE = 64


@dataclass(slots=True)
class Reply:
    """An answer: status, body and headers beyond length and connection."""

    status: int
    body: bytes
    headers: Headers


class _ModelFailed(EverloopError):
    code = "model_failed"
    status = 500


class InferenceApp:
    """The ASGI app of one process that answers.

    Args:
        router: The routes; somebody else refreshes them.
        log: Takes over what was answered; None keeps nothing.
        metrics: Counts what was answered.
        max_body: Longest body, bytes.
        body_timeout_s: Time for a body to arrive.
    """

    def __init__(
        self,
        router: Router,
        log: PredictionLog | None,
        metrics: ServingMetrics,
        *,
        max_body: int = MAX_BODY,
        body_timeout_s: float = 30.0,
    ) -> None:
        self._router = router
        self._log = log
        self._metrics = metrics
        self._max_body = max_body
        self._body_timeout_s = body_timeout_s
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._waiting = 0
        #: Set when the worker is about to stop: not ready, and connections close after an answer.
        self.draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        try:
            reply = await self._reply(scope, headers, receive)
        except ClientGone:
            return
        closing = self.draining or reply.status in (408, 413)
        sent = [(b"content-length", b"%d" % len(reply.body)), *reply.headers]
        if closing:
            sent.append(_CLOSE)
        await send({"type": "http.response.start", "status": reply.status, "headers": sent})
        await send({"type": "http.response.body", "body": reply.body})

    def close(self) -> None:
        """Let the model's thread end; what still waits for it is not answered."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            else:
                self.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _reply(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive) -> Reply:
        """Answer, or make the error that the door speaks."""
        parts = _path(scope)
        door = oip_models.door_of(parts)
        try:
            if door == "infer":
                _need(scope, "POST")
                return await self._infer(parts, headers, receive)
            if door == "invocations":
                _need(scope, "POST")
                return await self._invocations(parts, headers, receive)
            body = await self._body(headers, receive)
            return self._about(door, parts, scope["method"], body)
        except EverloopError as error:
            return self._refusal(error, door, parts)
        except (asyncio.CancelledError, ClientGone):
            raise
        except Exception:  # a fault of ours: told to the log, not the client
            _logger.exception("the inference door failed")
            return self._refusal(EverloopError("internal error"), door, parts)

    # What the hot path does ----------------------------------------------------------------------

    async def _infer(
        self, parts: list[str], headers: dict[bytes, bytes], receive: Receive
    ) -> Reply:
        route = self._router.route(parts[2])
        version = oip_models.pinned_version(parts, route)
        body = await self._body(headers, receive)
        return await self._run(
            route, len(body), lambda: self._do_infer(route, version, headers, body)
        )

    def _do_infer(
        self, route: RouteSnapshot, version: int | None, headers: dict[bytes, bytes], body: bytes
    ) -> Reply:
        body = inflate(body, _text(headers, b"content-encoding"), limit=self._max_body)
        request = decode_infer(
            body, headers.get(b"inference-header-content-length"), route.validator.binary
        )
        if request.outputs is not None:
            oip_models.check_outputs(route, [name for name, _ in request.outputs])
        ids = _row_names(route, request.columns, request.id, request.rows)
        answers = self._answer(
            route, request.columns, request.rows, ids, version, where_in("inputs")
        )
        head: dict[str, Any] = {"model_name": route.deployment}
        versions = answers.versions
        if len(answers) and (versions == versions[0]).all():
            head["model_version"] = str(versions[0])
        if request.id:
            head["id"] = request.id
        extra = _own_headers(answers)
        if len(answers) == 1:
            head["parameters"] = {"prediction_id": answers.ids[0]}
        tensors = {
            route.output: OutputTensor(route.output, "FP64", answers.values),
            "prediction_id": OutputTensor("prediction_id", "BYTES", answers.ids),
            "model_version": OutputTensor("model_version", "INT32", versions),
        }
        wanted = request.outputs
        if wanted is None:
            wanted = [(name, request.binary) for name in tensors]
        encoded, head_length = encode_infer(head, [(tensors[name], b) for name, b in wanted])
        if head_length is None:
            return Reply(200, encoded, [_JSON, *extra])
        length = (b"inference-header-content-length", b"%d" % head_length)
        return Reply(200, encoded, [_BINARY, length, *extra])

    async def _invocations(
        self, parts: list[str], headers: dict[bytes, bytes], receive: Receive
    ) -> Reply:
        route = self._only_route(parts)
        body = await self._body(headers, receive)
        return await self._run(route, len(body), lambda: self._do_invocation(route, headers, body))

    def _do_invocation(
        self, route: RouteSnapshot, headers: dict[bytes, bytes], body: bytes
    ) -> Reply:
        body = inflate(body, _text(headers, b"content-encoding"), limit=self._max_body)
        content_type = _text(headers, b"content-type")
        frame = invocations.decode_frame(body, content_type, route.validator.schema)
        columns: dict[str, Any] = dict(frame.columns)
        ids = _row_names(route, columns, "", frame.rows)
        answers = self._answer(route, columns, frame.rows, ids, None, frame.where)
        body = invocations.encode_predictions(answers)
        return Reply(200, body, [_JSON, *_own_headers(answers)])

    def _answer(
        self,
        route: RouteSnapshot,
        columns: dict[str, Any],
        rows: int,
        ids: list[str] | None,
        version: int | None,
        where: Where,
    ) -> Answers:
        checked: Columns = route.validator.columns(columns, where=where, rows=rows)
        answers = route.answer(checked, ids, rows=rows, version=version)
        self._metrics.answered(answers)
        if self._log is not None:
            self._log.append(answers)
        if answers.errors:
            kinds = ", ".join(sorted(set(answers.errors.values())))
            _logger.error("%s failed on %s: %s", route.deployment, answers.ids[0], kinds)
            raise _ModelFailed(f"the model failed; the prediction {answers.ids[0]} tells more")
        return answers

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        return await read_body(
            receive,
            headers.get(b"content-length"),
            limit=self._max_body,
            timeout_s=self._body_timeout_s,
        )

    async def _run(self, route: RouteSnapshot, size: int, work: Callable[[], Reply]) -> Reply:
        """Quick work here, long work in the one model thread, so that others are answered."""
        if size <= _INLINE_BODY and route.cost_us(1) <= _INLINE_US:
            return work()
        if self._waiting >= _QUEUE:
            raise BadRequest(429, "too many requests wait for the model; try again later")
        self._waiting += 1
        try:
            context = contextvars.copy_context()
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._executor, context.run, work)
        finally:
            self._waiting -= 1

    # The rest ------------------------------------------------------------------------------------

    def _only_route(self, parts: list[str]) -> RouteSnapshot:
        if len(parts) == 2:
            return self._router.route(parts[1])
        routes = self._router.routes
        if len(routes) == 1:
            return next(iter(routes.values()))
        if not routes:
            raise NotFound.named("model", "", ())
        raise InvalidInput(
            "several models are served here",
            hint=f"post to /invocations/{{name}}; there are: {', '.join(sorted(routes))}",
        )

    def _about(self, door: str, parts: list[str], method: str, body: bytes) -> Reply:
        """Health, metadata, index, statistics, metrics."""
        if door in ("live", "ready", "ping", "health"):
            _need_read(method)
            ready = door == "live" or (self._router.is_ready and not self.draining)
            if door in ("live", "ready"):
                return _json(200 if ready else 503, {door: ready})
            served = ready and bool(self._router.routes)
            return Reply(200 if served else 404, b"\n", [_JSON])
        if door == "metrics":
            _need_read(method)
            return Reply(200, self._metrics.exposition(), [_TEXT])
        if door in ("load", "unload"):
            raise BadRequest(
                403, "deployments decide what is loaded; change the deployment instead"
            )
        if method not in (("POST",) if door == "index" else ("GET", "HEAD")):
            raise BadRequest(405, f"{method[:16]} is not allowed here")
        document = oip_models.describe(door, parts, self._router, self._metrics, body)
        if isinstance(document, bytes):
            return Reply(200, document, [_JSON])
        return _json(200, document)

    def _refusal(self, error: EverloopError, door: str, parts: list[str]) -> Reply:
        status = error.status
        name = parts[2] if door == "infer" and len(parts) > 2 else ""
        self._metrics.refused(name if self._router.get(name) else "", status)
        headers: Headers = [_JSON]
        if isinstance(error, BackendError) or status == 429:
            headers.append((b"retry-after", b"1"))
        if isinstance(error, BackendError):
            _logger.error("the inference door: %s", error)
            error = BackendError("a store behind this server failed; try again later")
        if door == "invocations":
            return Reply(status, invocations.error_body(error), headers)
        return Reply(status, orjson.dumps({"error": str(error)}), headers)


def _path(scope: Scope) -> list[str]:
    """The parts of the path, decoded after the split: a name may hold an encoded slash."""
    raw = scope.get("raw_path") or scope["path"].encode()
    parts = [part for part in raw.split(b"?", 1)[0].decode("latin-1").split("/") if part]
    return [unquote(part) if "%" in part else part for part in parts]


def _need(scope: Scope, method: str) -> None:
    if scope["method"] != method:
        raise BadRequest(405, f"use {method} here")


def _need_read(method: str) -> None:
    if method not in ("GET", "HEAD"):
        raise BadRequest(405, "use GET here")


def _text(headers: dict[bytes, bytes], name: bytes) -> str:
    return headers.get(name, b"").decode("latin-1").strip()


def _row_names(
    route: RouteSnapshot, columns: dict[str, Any], request_id: str, rows: int
) -> list[str] | None:
    """What the client calls its rows; None if it does not."""
    given = columns.get("request_id")
    if given is not None:
        if "request_id" not in route.validator.schema.names:
            del columns["request_id"]
        values = given.tolist() if isinstance(given, np.ndarray) else given
        faults = [
            (f"request_id[{row}]", "expected text of at most 250 characters")
            for row, value in enumerate(values)
            if not isinstance(value, str) or len(value) > 250
        ]
        if len(values) != rows:
            faults = [("request_id", f"has {len(values)} values where there are {rows} rows")]
        if faults:
            raise InvalidInput("the names of the rows are wrong", faults[:1_000])
        return list(values)
    if not request_id:
        return None
    return [request_id] if rows == 1 else [f"{request_id}/{row}" for row in range(rows)]


def _own_headers(answers: Answers) -> Headers:
    found = [(b"x-everloop-revision", b"%d" % answers.snapshot.revision)]
    if len(answers) == 1:
        found.append((b"everloop-prediction-id", answers.ids[0].encode()))
    return found


def _json(status: int, document: Any) -> Reply:
    return Reply(status, json.dumps(document).encode(), [_JSON])
