"""Traces: what one call of an application did, span by span, and what was said of it since."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import msgspec

__all__ = [
    "PROMPTS_TAG",
    "Assessment",
    "AssessmentKind",
    "Span",
    "Trace",
    "TracePage",
    "TraceState",
]

#: The tag with the versions of prompts that a trace used: a list of names and versions, as JSON.
PROMPTS_TAG = "mlflow.linkedPrompts"

TraceState = Literal["unspecified", "in_progress", "ok", "error"]
AssessmentKind = Literal["feedback", "expectation", "issue"]


class Assessment(msgspec.Struct, frozen=True, kw_only=True):
    """What a person, a model or a program said of a trace, or of one span of it.

    Attributes:
        id: Empty until it is stored.
        body: What was said, in the terms of its kind: ``{"value": ...}``, ``{"error": {...}}``.
        overrides: Id of the assessment that this one replaces, or empty.
        valid: False once another one replaced it.
    """

    id: str = ""
    trace_id: str
    span_id: str = ""
    name: str
    kind: AssessmentKind
    body: dict[str, Any] = {}
    source_type: str = ""
    source_id: str = ""
    rationale: str = ""
    metadata: dict[str, str] = {}
    overrides: str = ""
    valid: bool = True
    created_at: datetime | None = None
    updated_at: datetime | None = None


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a trace without its spans.

    Attributes:
        id: ``tr-`` and the 32 hex digits of the trace's id, or whatever its client chose.
        experiment: Id of the experiment that it belongs to.
        client_request_id: The application's own name for the call, or empty.
        request_preview: The beginning of what was asked.
        response_preview: The beginning of what was answered.
        duration_ms: None while it is in progress.
        metadata: Facts that do not change, by key.
        tags: What may change, by key.
    """

    id: str
    experiment: str
    state: TraceState = "unspecified"
    client_request_id: str = ""
    request_preview: str = ""
    response_preview: str = ""
    started_at: datetime
    duration_ms: int | None = None
    metadata: dict[str, str] = {}
    tags: dict[str, str] = {}
    assessments: tuple[Assessment, ...] = ()


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a trace: what is searched for, and all of it in `body`.

    Attributes:
        id: 16 hex digits.
        parent_id: Empty for the root.
        type: ``LLM``, ``TOOL``, ``CHAIN`` and the like.
        status: ``UNSET``, ``OK`` or ``ERROR``.
        started_ns: Nanoseconds since 1970.
        body: The span as OTLP's JSON has it, with ids in base64.
        request: The root's inputs as text, if it says any; likewise `response`.
    """

    trace_id: str
    id: str
    parent_id: str = ""
    name: str = ""
    type: str = ""
    status: str = "UNSET"
    started_ns: int
    ended_ns: int
    body: dict[str, Any]
    request: str = ""
    response: str = ""


class TracePage(msgspec.Struct, frozen=True, kw_only=True):
    """Traces in the order asked for; `next_page_token` is empty at the end."""

    traces: tuple[Trace, ...]
    next_page_token: str = ""
