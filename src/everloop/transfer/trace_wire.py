"""Traces as MLflow writes them: in files, in rows, and on the wire, to the structs of this house.

A span in a file has its attributes as a mapping of JSON texts; one on the wire has them as OTLP's
JSON does, which is how they are kept here. Files of MLflow 2 have other names for the same.
"""

from __future__ import annotations

import base64
import json
import math
import re
from datetime import datetime
from typing import Any

import msgspec

from everloop.core.time import to_micros
from everloop.core.trace import Assessment, AssessmentKind, Span, Trace, TraceState
from everloop.errors import InvalidInput
from everloop.transfer.source import instant

__all__ = ["PLACE_TAG", "SPANS_TAG", "assessment_of", "spans_of", "trace_of"]

PLACE_TAG, SPANS_TAG = "mlflow.artifactLocation", "mlflow.trace.spansLocation"
_STATES: dict[str, TraceState] = {"OK": "ok", "ERROR": "error", "IN_PROGRESS": "in_progress"}
_KINDS: tuple[AssessmentKind, ...] = ("feedback", "expectation", "issue")
_STATUS = {"STATUS_CODE_UNSET": "UNSET", "STATUS_CODE_OK": "OK", "STATUS_CODE_ERROR": "ERROR"}
_DURATION = re.compile(r"(\d{1,12})(?:\.(\d{1,9}))?s", re.ASCII)
_HEX = re.compile(r"(?:0x|tr-)?([0-9a-f]+)", re.ASCII)
_INT64 = 1 << 63


# --- heads ------------------------------------------------------------------------------------


def trace_of(
    said: dict[str, Any],
    experiment: str,
    *,
    tags: dict[str, str],
    metadata: dict[str, str],
    assessments: tuple[Assessment, ...] = (),
) -> Trace:
    """A trace from its fields, as MLflow 2 or 3 names them; where its files were is not a tag here.

    Raises:
        InvalidInput: If it has no id.
    """
    id_ = str(said.get("trace_id") or said.get("request_id") or "")
    if not id_:
        raise InvalidInput("there is no field 'trace_id'")
    return Trace(
        id=id_,
        experiment=experiment,
        state=_STATES.get(str(said.get("state") or said.get("status") or ""), "unspecified"),
        client_request_id=_text(said, "client_request_id"),
        request_preview=_text(said, "request_preview"),
        response_preview=_text(said, "response_preview"),
        started_at=_instant(said.get("request_time", said.get("timestamp_ms"))),
        duration_ms=_milliseconds(said),
        tags={key: text for key, text in tags.items() if key not in (PLACE_TAG, SPANS_TAG)},
        metadata=metadata,
        assessments=assessments,
    )


def assessment_of(said: dict[str, Any], trace_id: str) -> Assessment:
    """An assessment as a file or the wire has it.

    Raises:
        InvalidInput: If it says nothing.
    """
    kind = next((kind for kind in _KINDS if said.get(kind) is not None), None)
    if kind is None or not isinstance(said[kind], dict):
        raise InvalidInput("it is neither feedback nor expectation nor issue")
    source = said.get("source") or {}
    return Assessment(
        id=_text(said, "assessment_id"),
        trace_id=trace_id,
        span_id=_text(said, "span_id"),
        name=_text(said, "assessment_name") or ("issue" if kind == "issue" else ""),
        kind=kind,
        body=said[kind],
        source_type=_text(source, "source_type"),
        source_id=_text(source, "source_id"),
        rationale=_text(said, "rationale"),
        metadata={str(key): str(text) for key, text in (said.get("metadata") or {}).items()},
        overrides=_text(said, "overrides"),
        valid=said.get("valid") is not False,
        created_at=_instant(said.get("create_time")),
        updated_at=_instant(said.get("last_update_time", said.get("create_time"))),
    )


def _text(said: dict[str, Any], key: str) -> str:
    value = said.get(key)
    return "" if value is None else str(value)


def _instant(value: Any) -> datetime:
    """Milliseconds since 1970, or a text with a time zone; 1970 for neither."""
    if isinstance(value, str) and "T" in value:
        try:
            found = msgspec.convert(value, datetime)
        except msgspec.ValidationError:
            return instant(None)
        return instant(to_micros(found) // 1000) if found.tzinfo else instant(None)
    return instant(value)


def _milliseconds(said: dict[str, Any]) -> int | None:
    for key in ("execution_duration_ms", "execution_time_ms", "execution_duration"):
        value = said.get(key)
        if value is None:
            continue
        text = str(value)
        if text.isdecimal():
            return int(text)
        if found := _DURATION.fullmatch(text):
            return int(found[1]) * 1000 + int((found[2] or "").ljust(3, "0")[:3])
    return None


# --- spans ------------------------------------------------------------------------------------


def spans_of(said: Any, trace_id: str) -> list[Span]:
    """The spans of a trace, each once: the last of one id counts.

    Args:
        said: The list that stands below ``spans`` in a file or an answer.
        trace_id: Of the trace that they belong to.

    Raises:
        InvalidInput: Naming the first that is not understood.
    """
    found: dict[str, Span] = {}
    for index, item in enumerate(said if isinstance(said, list) else [None]):
        try:
            span = _span(item, trace_id)
            msgspec.json.encode(span.body)  # fails for halves of surrogate pairs
        except (
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
            OverflowError,
            RecursionError,
        ) as error:
            reason = f"span {index} is not understood ({type(error).__name__})"
            raise InvalidInput(reason) from None
        found[span.id] = span
    return list(found.values())


def _span(said: dict[str, Any], trace_id: str) -> Span:
    old = said.get("context")
    if old is not None:
        said = {
            **said,
            "trace_id": old["trace_id"],
            "span_id": old["span_id"],
            "parent_span_id": said.get("parent_id"),
            "start_time_unix_nano": said["start_time"],
            "end_time_unix_nano": said.get("end_time"),
            "status": {
                "code": f"STATUS_CODE_{said.get('status_code') or 'UNSET'}",
                "message": said.get("status_message"),
            },
            "events": [
                {**event, "time_unix_nano": event["timestamp"]} for event in said.get("events", [])
            ],
        }
    id_, parent = _id(said["span_id"], 8), said.get("parent_span_id")
    started, ended = int(said["start_time_unix_nano"]), int(said.get("end_time_unix_nano") or 0)
    if not (0 <= started < _INT64 and 0 <= ended < _INT64):
        raise ValueError("a time that is none")
    attributes, plain = _attributes(said.get("attributes"))
    status = said.get("status") or {}
    code = str(status.get("code") or "UNSET")
    code = code if code.startswith("STATUS_CODE_") else f"STATUS_CODE_{code}"
    body: dict[str, Any] = {
        "trace_id": _base64(_id(said["trace_id"], 16)),
        "span_id": _base64(id_),
        "name": said.get("name") or "",
        "start_time_unix_nano": started,
        "attributes": attributes,
        "status": {"code": code} | _given(message=status.get("message")),
    }
    if parent:
        body["parent_span_id"] = _base64(_id(parent, 8))
    if ended:
        body["end_time_unix_nano"] = ended
    if events := [_event(event) for event in said.get("events") or []]:
        body["events"] = events
    if links := [_link(link) for link in said.get("links") or []]:
        body["links"] = links
    body |= _given(**{key: said.get(key) for key in ("kind", "trace_state", "flags")})
    return Span(
        trace_id=trace_id,
        id=id_,
        parent_id=_id(parent, 8) if parent else "",
        name=body["name"],
        type=_shown(plain.get("mlflow.spanType")),
        status=_STATUS.get(code, "UNSET"),
        started_ns=started,
        ended_ns=ended or started,
        body=body,
        request=_shown(plain.get("mlflow.spanInputs")),
        response=_shown(plain.get("mlflow.spanOutputs")),
    )


def _given(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value}


def _id(value: str, size: int) -> str:
    """An id in hex: written so, with or without a head, or in base64."""
    if found := _HEX.fullmatch(value):
        digits = found[1]
        if len(digits) <= 2 * size and (len(digits) == 2 * size or value.startswith("0x")):
            return digits.rjust(2 * size, "0")
    data = base64.b64decode(value, validate=True)
    if len(data) != size:
        raise ValueError("an id of another length")
    return data.hex()


def _base64(digits: str) -> str:
    return base64.b64encode(bytes.fromhex(digits)).decode()


def _event(said: dict[str, Any]) -> dict[str, Any]:
    attributes, _ = _attributes(said.get("attributes"), are_json=False)
    return {"time_unix_nano": int(said["time_unix_nano"]), "name": said["name"]} | _given(
        attributes=attributes
    )


def _link(said: dict[str, Any]) -> dict[str, Any]:
    attributes, _ = _attributes(said.get("attributes"), are_json=False)
    return {
        "trace_id": _base64(_id(said["trace_id"], 16)),
        "span_id": _base64(_id(said["span_id"], 8)),
    } | _given(attributes=attributes)


def _attributes(said: Any, *, are_json: bool = True) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Attributes as OTLP's JSON has them, and plain by name."""
    if isinstance(said, list):  # they are OTLP's already
        kept = [{"key": item["key"], "value": _whole(item.get("value") or {})} for item in said]
        return kept, {item["key"]: _plain(item["value"]) for item in kept}
    plain = {
        key: _loads(value) if are_json and isinstance(value, str) else value
        for key, value in (said or {}).items()
    }
    return [{"key": key, "value": _any(value)} for key, value in plain.items()], plain


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _any(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if isinstance(value, bool):
        return {"bool_value": value}
    if isinstance(value, str):
        return {"string_value": value}
    if isinstance(value, int):
        is_small = -_INT64 <= value < _INT64
        return {"int_value": value} if is_small else {"string_value": str(value)}
    if isinstance(value, float):
        return {"double_value": value if math.isfinite(value) else _ODD[str(value)]}
    if isinstance(value, list):
        return {"array_value": _given(values=[_any(item) for item in value])}
    pairs = [{"key": str(key), "value": _any(item)} for key, item in value.items()]
    return {"kvlist_value": _given(values=pairs)}


#: As protobuf's JSON writes the numbers that JSON has not.
_ODD = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def _whole(value: dict[str, Any]) -> dict[str, Any]:
    """A value of OTLP's JSON with int64 as a number, wherever it stands."""
    kind, inner = _kind(value)
    if kind == "int_value":
        return {kind: int(inner)}
    if kind == "array_value":
        return {kind: _given(values=[_whole(item) for item in inner.get("values", ())])}
    if kind == "kvlist_value":
        pairs = inner.get("values", ())
        kept = [{"key": pair["key"], "value": _whole(pair.get("value") or {})} for pair in pairs]
        return {kind: _given(values=kept)}
    return value


def _kind(value: dict[str, Any]) -> tuple[str, Any]:
    """The one field that a value of OTLP has; nothing for null."""
    for kind, inner in value.items():
        return kind, inner
    return "", None


def _plain(value: dict[str, Any]) -> Any:
    kind, inner = _kind(value)
    if kind == "array_value":
        return [_plain(item) for item in inner.get("values", ())]
    if kind == "kvlist_value":
        return {pair["key"]: _plain(pair["value"]) for pair in inner.get("values", ())}
    return inner


def _shown(value: Any) -> str:
    """A value as a preview shows it: a text as it is, anything else as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
