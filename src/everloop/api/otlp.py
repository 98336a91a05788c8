"""OTLP over HTTP: ``POST /v1/traces``, as MLflow's clients and OpenTelemetry's exporters send it.

A body is protobuf or JSON, plain or gzipped. Decoding is left to protobuf and to the message types
that OpenTelemetry publishes, an optional dependency: without it the door answers 501 and MLflow's
clients fall back to the copy of the spans that they store as a file.
"""

from __future__ import annotations

import base64
import re
import zlib
from typing import Any

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from everloop.api.mlflow_wire import error_answer
from everloop.core.context import acting
from everloop.core.trace import Span
from everloop.errors import EverloopError, InvalidInput, MissingExtra, TooLarge
from everloop.workspace import Workspace

__all__ = ["routes", "spans_of"]

_MAX_BODY = 32 << 20
_MAX_PLAIN = 64 << 20
_MAX_SPANS = 20_000
_PROTOBUF, _JSON = "application/x-protobuf", "application/json"
_HEX_IDS = {"traceId", "spanId", "parentSpanId", "trace_id", "span_id", "parent_span_id"}
_INTEGERS = {"start_time_unix_nano", "end_time_unix_nano", "time_unix_nano", "int_value"}
_STATUS = {0: "UNSET", 1: "OK", 2: "ERROR"}
_INT64 = 1 << 63
_TRACE_ID = re.compile(r"tr-[0-9a-f]{32}")


def routes(workspace: Workspace) -> list[Route]:
    """The routes of the OTLP door."""

    async def traces(request: Request) -> Response:
        try:
            kind = _media_type(request)
            experiment = request.headers.get("x-mlflow-experiment-id", "")
            if not experiment:
                raise InvalidInput(
                    "Missing value for required header 'x-mlflow-experiment-id'.",
                    hint="set OTEL_EXPORTER_OTLP_HEADERS=x-mlflow-experiment-id=<id>",
                )
            body = await _read(request)
            encoding = request.headers.get("content-encoding", "identity").strip().lower()
            run_id = request.headers.get("x-mlflow-run-id", "")
            await run_in_threadpool(_store, workspace, body, encoding, kind, experiment, run_id)
        except EverloopError as error:
            status, told = error_answer(error)
            return Response(msgspec.json.encode(told), status, media_type=_JSON)
        return Response(b"{}" if kind == _JSON else b"", media_type=kind)

    return [Route("/v1/traces", traces, methods=["POST"])]


def _media_type(request: Request) -> str:
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind not in (_PROTOBUF, _JSON):
        raise InvalidInput(f"Content-Type must be {_PROTOBUF} or {_JSON}, got {kind!r:.80}")
    return kind


async def _read(request: Request) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > _MAX_BODY:
            raise TooLarge(f"The body of the request is above {_MAX_BODY} bytes")
        parts.append(part)
    return b"".join(parts)


def _store(
    workspace: Workspace, body: bytes, encoding: str, kind: str, experiment: str, run_id: str
) -> None:
    spans = spans_of(_plain_body(body, encoding), kind)
    with acting(actor=workspace.actor):
        workspace.traces.log_spans(experiment, spans, run_id=run_id)


def _plain_body(body: bytes, encoding: str) -> bytes:
    if encoding in ("", "identity"):
        return body
    if encoding != "gzip":
        raise InvalidInput(f"Content-Encoding must be gzip or none, got {encoding[:40]!r}")
    unpacker = zlib.decompressobj(wbits=31)
    try:
        plain = unpacker.decompress(body, _MAX_PLAIN + 1)
    except zlib.error:
        raise InvalidInput("The body of the request is no valid gzip") from None
    if len(plain) > _MAX_PLAIN:
        raise TooLarge(f"The unpacked body of the request is above {_MAX_PLAIN} bytes")
    if not unpacker.eof:
        raise InvalidInput("The body of the request is no whole gzip")
    return plain


def spans_of(body: bytes, kind: str) -> list[Span]:
    """The spans of an export request.

    Raises:
        InvalidInput: If the body is no such request, or a span has no valid ids or times.
        MissingExtra: Without the libraries that decode it.
    """
    try:
        from google.protobuf import json_format
        from google.protobuf.message import DecodeError
        from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
    except ImportError as error:
        raise MissingExtra.of("otlp", "taking in spans by OTLP") from error
    asked = trace_service_pb2.ExportTraceServiceRequest()
    try:
        if kind == _JSON:
            fields = _with_base64_ids(msgspec.json.decode(body))
            json_format.ParseDict(fields, asked, ignore_unknown_fields=True)
        else:
            asked.ParseFromString(body)
    except (DecodeError, json_format.ParseError, RecursionError, ValueError, TypeError) as error:
        # Their messages quote the input; what kind of fault it is must do.
        raise InvalidInput(f"Invalid OpenTelemetry format ({type(error).__name__})") from None
    found: list[Span] = []
    for resource in asked.resource_spans:
        for scope in resource.scope_spans:
            found += (_span(span, json_format.MessageToDict) for span in scope.spans)
            if len(found) > _MAX_SPANS:
                raise TooLarge(f"The request holds more than {_MAX_SPANS} spans")
    if not found:
        raise InvalidInput("Invalid OpenTelemetry format - no spans found")
    return found


def _with_base64_ids(value: Any) -> Any:
    """OTLP's JSON has ids in hex, where protobuf's JSON has bytes in base64.

    Raises:
        ValueError: If an id is no hex.
    """
    if isinstance(value, list):
        return [_with_base64_ids(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: base64.b64encode(bytes.fromhex(item)).decode()
        if key in _HEX_IDS and isinstance(item, str)
        else _with_base64_ids(item)
        for key, item in value.items()
    }


def _span(span: Any, to_dict: Any) -> Span:
    faults = []
    if len(span.trace_id) != 16 or not any(span.trace_id):
        faults.append(("trace_id", "must be 16 bytes, not all zero"))
    if len(span.span_id) != 8 or not any(span.span_id):
        faults.append(("span_id", "must be 8 bytes, not all zero"))
    if max(span.start_time_unix_nano, span.end_time_unix_nano) >= _INT64:
        faults.append(("start_time_unix_nano", "is beyond the year 2262"))
    if faults:
        raise InvalidInput("Invalid OpenTelemetry span", faults)
    attributes = {item.key: item.value for item in span.attributes}
    return Span(
        trace_id=_trace_id(span, attributes),
        id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        name=span.name,
        type=_text(attributes.get("mlflow.spanType")),
        status=_STATUS.get(span.status.code, "UNSET"),
        started_ns=span.start_time_unix_nano,
        ended_ns=span.end_time_unix_nano,
        body=_with_numbers(to_dict(span, preserving_proto_field_name=True)),
        request=_text(attributes.get("mlflow.spanInputs")),
        response=_text(attributes.get("mlflow.spanOutputs")),
    )


def _trace_id(span: Any, attributes: dict[str, Any]) -> str:
    """The id that MLflow's client gave the trace, else the one that it would give."""
    named = _text(attributes.get("mlflow.traceRequestId")).strip('"')
    return named if _TRACE_ID.fullmatch(named) else f"tr-{span.trace_id.hex()}"


def _with_numbers(value: Any) -> Any:
    """Protobuf's JSON with int64 as numbers, as MLflow answers them."""
    if isinstance(value, list):
        return [_with_numbers(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: int(item) if key in _INTEGERS and isinstance(item, str) else _with_numbers(item)
        for key, item in value.items()
    }


def _text(value: Any) -> str:
    """A value of OTLP as text: a text as it is, anything else as JSON."""
    if value is None:
        return ""
    plain = _plain(value)
    return plain if isinstance(plain, str) else msgspec.json.encode(plain).decode()


def _plain(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    inner = getattr(value, kind)
    if kind == "array_value":
        return [_plain(item) for item in inner.values]
    if kind == "kvlist_value":
        return {item.key: _plain(item.value) for item in inner.values}
    return base64.b64encode(inner).decode() if kind == "bytes_value" else inner
