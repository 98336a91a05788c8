"""Traces as clients of MLflow 2 log them: begun, ended, read and searched by their request id."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgspec

from everloop.api.mlflow_calls import Calls
from everloop.api.mlflow_wire import (
    Int64,
    KeyValue,
    Page,
    Text,
    bare,
    choice,
    from_ms,
    pairs,
    tags_of,
    to_ms,
)
from everloop.core.trace import Trace, TraceState
from everloop.workspace import Workspace

__all__ = ["OldStart", "begin", "calls", "found"]

calls = Calls()

_BASE = "mlflow/traces"
# In the order of their numbers, beginning with 1.
_STATES: dict[str, TraceState] = {"OK": "ok", "ERROR": "error", "IN_PROGRESS": "in_progress"}
_NAMES = {state: name for name, state in _STATES.items()}


class OldStart(msgspec.Struct, kw_only=True):
    """What begins a trace; a client of MLflow 3 sends a whole trace in its place."""

    experiment_id: str | None = ""
    timestamp_ms: Int64 = 0
    request_metadata: list[KeyValue] | None = None
    tags: list[KeyValue] | None = None


class _End(msgspec.Struct):
    request_id: Text
    timestamp_ms: Int64
    status: str | int | None = "OK"
    request_metadata: list[KeyValue] | None = None
    tags: list[KeyValue] | None = None


class _ById(msgspec.Struct):
    request_id: Text


class _Search(Page):
    experiment_ids: list[str]


def _info(trace: Trace) -> dict[str, Any]:
    return bare(
        request_id=trace.id,
        experiment_id=trace.experiment,
        timestamp_ms=to_ms(trace.started_at),
        execution_time_ms=trace.duration_ms,
        status=_NAMES.get(trace.state, "TRACE_STATUS_UNSPECIFIED"),
        request_metadata=pairs(trace.metadata),
        tags=pairs(trace.tags),
    )


def begin(workspace: Workspace, asked: OldStart) -> dict[str, Any]:
    """Begin a trace under an id of ours."""
    trace = Trace(
        id=f"tr-{uuid.uuid4().hex}",
        experiment=asked.experiment_id or "",
        state="in_progress",
        started_at=from_ms(asked.timestamp_ms, "timestamp_ms"),
        metadata=tags_of(asked.request_metadata),
        tags=tags_of(asked.tags),
    )
    return {"trace_info": _info(workspace.traces.log(trace))}


@calls.on("PATCH", f"{_BASE}/{{request_id}}")
def _end(workspace: Workspace, asked: _End) -> dict[str, Any]:
    begun = workspace.traces.trace(asked.request_id)
    took = from_ms(asked.timestamp_ms, "timestamp_ms") - begun.started_at
    ended = msgspec.structs.replace(
        begun,
        state=_STATES[choice(asked.status or "OK", tuple(_STATES), "status")],
        duration_ms=max(0, took // timedelta(milliseconds=1)),
        metadata=begun.metadata | tags_of(asked.request_metadata),
        tags=begun.tags | tags_of(asked.tags),
    )
    return {"trace_info": _info(workspace.traces.log(ended))}


@calls.on("GET", f"{_BASE}/{{request_id}}/info")
def _get_info(workspace: Workspace, asked: _ById) -> dict[str, Any]:
    return {"trace_info": _info(workspace.traces.trace(asked.request_id))}


@calls.on("GET", _BASE)
def _search(workspace: Workspace, asked: _Search) -> dict[str, Any]:
    return found(workspace, asked.experiment_ids, asked, _info)


def found(
    workspace: Workspace,
    experiments: list[str],
    asked: Page,
    shown: Callable[[Trace], dict[str, Any]],
) -> dict[str, Any]:
    """The answer to a search of traces, each as `shown` has it."""
    page = workspace.traces.search(
        experiments,
        filter=asked.filter or "",
        order_by=asked.order_by or [],
        limit=100 if asked.max_results is None else asked.max_results,
        page_token=asked.page_token or "",
    )
    return bare(
        traces=[shown(trace) for trace in page.traces], next_page_token=page.next_page_token
    )
