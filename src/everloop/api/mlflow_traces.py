"""MLflow's traces: logged, read, searched, tagged and assessed. Spans come by ``otlp.py``."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec

from everloop.api.mlflow_calls import Calls
from everloop.api.mlflow_traces_old import OldStart, begin, found
from everloop.api.mlflow_wire import Int64, Page, Text, bare, from_ms, missing
from everloop.core.trace import PROMPTS_TAG, Assessment, AssessmentKind, Trace, TraceState
from everloop.errors import InvalidInput, NotFound
from everloop.workspace import Workspace

__all__ = ["calls"]

calls = Calls()

_BASE = "mlflow/traces"
_STATES: dict[str, TraceState] = {
    "STATE_UNSPECIFIED": "unspecified",
    "IN_PROGRESS": "in_progress",
    "OK": "ok",
    "ERROR": "error",
}
_STATE_NAMES = {state: name for name, state in _STATES.items()}
_DURATION = re.compile(r"(\d{1,12})(?:\.(\d{1,9}))?s", re.ASCII)

_Time = Annotated[datetime, msgspec.Meta(tz=True)]


class _Experiment(msgspec.Struct):
    experiment_id: Text


class _Location(msgspec.Struct):
    mlflow_experiment: _Experiment


class _Source(msgspec.Struct):
    source_type: str | None = ""
    source_id: str | None = ""


class _Assessment(msgspec.Struct):
    assessment_name: str | None = ""
    assessment_id: str | None = ""
    span_id: str | None = ""
    source: _Source | None = None
    create_time: _Time | None = None
    last_update_time: _Time | None = None
    feedback: dict[str, Any] | None = None
    expectation: dict[str, Any] | None = None
    issue: dict[str, Any] | None = None
    rationale: str | None = ""
    metadata: dict[str, str] | None = None
    overrides: str | None = ""
    valid: bool | None = None


class _Info(msgspec.Struct):
    trace_id: Text
    trace_location: _Location
    request_time: _Time
    client_request_id: str | None = ""
    execution_duration: str | None = None
    state: str | None = "STATE_UNSPECIFIED"
    request_preview: str | None = ""
    response_preview: str | None = ""
    trace_metadata: dict[str, str] | None = None
    tags: dict[str, str] | None = None
    assessments: list[_Assessment] | None = None


class _Trace(msgspec.Struct):
    trace_info: _Info


class _Start(OldStart, kw_only=True):
    trace: _Trace | None = None


class _ById(msgspec.Struct):
    trace_id: Text


class _ByRequest(msgspec.Struct):
    request_id: Text


class _Batch(msgspec.Struct):
    trace_ids: list[str]
    experiment_ids: list[str] | None = None


class _Search(Page):
    locations: list[_Location]


class _SetTag(msgspec.Struct):
    trace_id: Text
    key: Text
    value: str | None = ""


class _DeleteTag(msgspec.Struct):
    trace_id: Text
    key: Text


class _Assess(msgspec.Struct):
    trace_id: Text
    assessment: _Assessment


class _AssessmentById(msgspec.Struct):
    trace_id: Text
    assessment_id: Text


class _ChangeAssessment(msgspec.Struct):
    trace_id: Text
    assessment_id: Text
    assessment: _Assessment
    update_mask: str | None = ""


class _Link(msgspec.Struct):
    run_id: Text
    trace_ids: list[Text] = []


class _Prompt(msgspec.Struct):
    name: Text
    version: Text


class _LinkPrompts(msgspec.Struct):
    trace_id: Text
    prompt_versions: list[_Prompt] = []


class _Delete(msgspec.Struct):
    experiment_id: Text
    max_timestamp_millis: Int64 | None = None
    max_traces: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)] | None = None
    request_ids: list[str] | None = None


# --- to our terms -----------------------------------------------------------------------------


def _duration(text: str | None) -> int | None:
    if text is None:
        return None
    found = _DURATION.fullmatch(text)
    if found is None:
        raise InvalidInput(
            f"Invalid value {text[:40]!r} for parameter 'execution_duration' supplied"
        )
    return int(found[1]) * 1000 + int((found[2] or "").ljust(3, "0")[:3])


def _said(given: _Assessment) -> tuple[AssessmentKind, dict[str, Any]]:
    kinds: tuple[AssessmentKind, ...] = ("feedback", "expectation", "issue")
    found = [(kind, getattr(given, kind)) for kind in kinds if getattr(given, kind) is not None]
    if len(found) != 1:
        raise InvalidInput("Invalid assessment: give one of feedback, expectation and issue")
    return found[0]


def _assessment(given: _Assessment, trace_id: str) -> Assessment:
    kind, body = _said(given)
    source = given.source or _Source()
    return Assessment(
        id=given.assessment_id or "",
        trace_id=trace_id,
        span_id=given.span_id or "",
        name=given.assessment_name or ("issue" if kind == "issue" else ""),
        kind=kind,
        body=body,
        source_type=source.source_type or "",
        source_id=source.source_id or "",
        rationale=given.rationale or "",
        metadata=given.metadata or {},
        overrides=given.overrides or "",
        valid=given.valid is not False,
        created_at=given.create_time,
        updated_at=given.last_update_time,
    )


def _state(name: str | None) -> TraceState:
    found = _STATES.get(name or "STATE_UNSPECIFIED")
    if found is None:
        raise InvalidInput(f"Invalid value {str(name)[:40]!r} for parameter 'state' supplied")
    return found


# --- to MLflow's terms --------------------------------------------------------------------------


def _time(at: datetime | None) -> str | None:
    if at is None:
        return None
    # As protobuf writes it: no fraction where there is none.
    digits = "milliseconds" if at.microsecond >= 1000 else "seconds"
    return at.astimezone(UTC).replace(tzinfo=None).isoformat(timespec=digits) + "Z"


def _span(ms: int | None) -> str | None:
    if ms is None:
        return None
    return f"{ms // 1000}.{ms % 1000:03}s" if ms % 1000 else f"{ms // 1000}s"


def _assessment_fields(given: Assessment) -> dict[str, Any]:
    return {
        **bare(
            assessment_id=given.id,
            assessment_name=given.name,
            trace_id=given.trace_id,
            span_id=given.span_id,
            source=bare(source_type=given.source_type, source_id=given.source_id),
            create_time=_time(given.created_at),
            last_update_time=_time(given.updated_at),
            rationale=given.rationale,
            metadata=given.metadata,
            overrides=given.overrides,
        ),
        given.kind: given.body,
        "valid": given.valid,
    }


def _info(trace: Trace) -> dict[str, Any]:
    return bare(
        trace_id=trace.id,
        client_request_id=trace.client_request_id,
        trace_location={
            "type": "MLFLOW_EXPERIMENT",
            "mlflow_experiment": {"experiment_id": trace.experiment},
        },
        request_preview=trace.request_preview,
        response_preview=trace.response_preview,
        request_time=_time(trace.started_at),
        execution_duration=_span(trace.duration_ms),
        state=_STATE_NAMES[trace.state],
        trace_metadata=trace.metadata,
        assessments=[_assessment_fields(given) for given in trace.assessments],
        tags=trace.tags,
    )


# --- calls ------------------------------------------------------------------------------------


@calls.on("POST", _BASE)
def _start(workspace: Workspace, asked: _Start) -> dict[str, Any]:
    if asked.trace is None:
        if not asked.experiment_id:
            raise missing("trace")
        return begin(workspace, asked)
    info = asked.trace.trace_info
    trace = Trace(
        id=info.trace_id,
        experiment=info.trace_location.mlflow_experiment.experiment_id,
        state=_state(info.state),
        client_request_id=info.client_request_id or "",
        request_preview=info.request_preview or "",
        response_preview=info.response_preview or "",
        started_at=info.request_time,
        duration_ms=_duration(info.execution_duration),
        metadata=info.trace_metadata or {},
        tags=info.tags or {},
        assessments=tuple(_assessment(item, info.trace_id) for item in info.assessments or ()),
    )
    return {"trace": {"trace_info": _info(workspace.traces.log(trace))}}


@calls.on("GET", f"{_BASE}/{{trace_id}}")
def _get_info(workspace: Workspace, asked: _ById) -> dict[str, Any]:
    return {"trace": {"trace_info": _info(workspace.traces.trace(asked.trace_id))}}


@calls.on("GET", f"{_BASE}/get")
def _get(workspace: Workspace, asked: _ById) -> dict[str, Any]:
    trace = workspace.traces.trace(asked.trace_id)
    spans = workspace.traces.spans([trace.id]).get(trace.id, [])
    return {"trace": bare(trace_info=_info(trace), spans=spans)}


@calls.on("GET", f"{_BASE}/batchGet")
def _batch_get(workspace: Workspace, asked: _Batch) -> dict[str, Any]:
    found = _of(workspace, asked)
    spans = workspace.traces.spans([trace.id for trace in found])
    return bare(
        traces=[bare(trace_info=_info(trace), spans=spans.get(trace.id)) for trace in found]
    )


@calls.on("POST", f"{_BASE}/batchGetInfos")
def _batch_get_infos(workspace: Workspace, asked: _Batch) -> dict[str, Any]:
    return bare(trace_infos=[_info(trace) for trace in _of(workspace, asked)])


def _of(workspace: Workspace, asked: _Batch) -> list[Trace]:
    found = workspace.traces.traces(asked.trace_ids)
    wanted = asked.experiment_ids
    return [trace for trace in found if wanted is None or trace.experiment in wanted]


@calls.on("POST", f"{_BASE}/search")
def _search(workspace: Workspace, asked: _Search) -> dict[str, Any]:
    experiments = [location.mlflow_experiment.experiment_id for location in asked.locations]
    return found(workspace, experiments, asked, _info)


@calls.on("PATCH", f"{_BASE}/{{trace_id}}/tags")
def _set_tag(workspace: Workspace, asked: _SetTag) -> dict[str, Any]:
    workspace.traces.set_tag(asked.trace_id, asked.key, asked.value or "")
    return {}


@calls.on("DELETE", f"{_BASE}/{{trace_id}}/tags")
def _delete_tag(workspace: Workspace, asked: _DeleteTag) -> dict[str, Any]:
    workspace.traces.delete_tag(asked.trace_id, asked.key)
    return {}


@calls.on("POST", f"{_BASE}/{{trace_id}}/assessments")
def _assess(workspace: Workspace, asked: _Assess) -> dict[str, Any]:
    given = workspace.traces.assess(_assessment(asked.assessment, asked.trace_id))
    return {"assessment": _assessment_fields(given)}


@calls.on("GET", f"{_BASE}/{{trace_id}}/assessments/{{assessment_id}}")
def _get_assessment(workspace: Workspace, asked: _AssessmentById) -> dict[str, Any]:
    found = workspace.traces.assessment(asked.trace_id, asked.assessment_id)
    return {"assessment": _assessment_fields(found)}


@calls.on("PATCH", f"{_BASE}/{{trace_id}}/assessments/{{assessment_id}}")
def _change_assessment(workspace: Workspace, asked: _ChangeAssessment) -> dict[str, Any]:
    given = asked.assessment
    # A mask names the fields that count, in either spelling; without one all that are there do.
    mask = {part.strip().replace("assessmentName", "name") for part in _masked(asked.update_mask)}
    mask = {part.removeprefix("assessment_") for part in mask}

    def counts(field: str) -> bool:
        return not mask or field in mask

    body = None
    if any(counts(kind) and getattr(given, kind) is not None for kind in _KINDS):
        body = _said(given)[1]
    changed = workspace.traces.change_assessment(
        asked.trace_id,
        asked.assessment_id,
        name=given.assessment_name or None if counts("name") else None,
        body=body,
        rationale=given.rationale or None if counts("rationale") else None,
        metadata=given.metadata if counts("metadata") else None,
        valid=given.valid if counts("valid") else None,
    )
    return {"assessment": _assessment_fields(changed)}


_KINDS: tuple[Literal["feedback", "expectation", "issue"], ...] = (
    "feedback",
    "expectation",
    "issue",
)


def _masked(mask: str | None) -> list[str]:
    return mask.split(",") if mask else []


@calls.on("DELETE", f"{_BASE}/{{trace_id}}/assessments/{{assessment_id}}")
def _delete_assessment(workspace: Workspace, asked: _AssessmentById) -> dict[str, Any]:
    workspace.traces.trace(asked.trace_id)
    with suppress(NotFound):  # as MLflow does: what is gone is gone
        workspace.traces.delete_assessment(asked.trace_id, asked.assessment_id)
    return {}


@calls.on("POST", f"{_BASE}/link-to-run")
def _link(workspace: Workspace, asked: _Link) -> dict[str, Any]:
    workspace.traces.link_run(asked.trace_ids, asked.run_id)
    return {}


@calls.on("POST", f"{_BASE}/link-prompts")
def _link_prompts(workspace: Workspace, asked: _LinkPrompts) -> dict[str, Any]:
    prompts = [{"name": item.name, "version": item.version} for item in asked.prompt_versions]
    text = msgspec.json.encode(prompts).decode()
    workspace.traces.set_tag(asked.trace_id, PROMPTS_TAG, text)
    return {}


@calls.on("POST", f"{_BASE}/delete-traces")
def _delete(workspace: Workspace, asked: _Delete) -> dict[str, Any]:
    before = asked.max_timestamp_millis
    if asked.request_ids and asked.max_traces is not None:
        raise InvalidInput("`max_traces` can't be specified if `trace_ids` is specified.")
    deleted = workspace.traces.delete(
        asked.experiment_id,
        asked.request_ids or None,
        before=None if before is None else from_ms(before, "max_timestamp_millis"),
        limit=asked.max_traces or 0,
    )
    return {"traces_deleted": deleted}


@calls.on("GET", "mlflow/get-trace-artifact")
def _artifact(workspace: Workspace, asked: _ByRequest) -> dict[str, Any]:
    """The spans of a trace as the file ``traces.json`` has them."""
    trace = workspace.traces.trace(asked.request_id)
    if spans := workspace.traces.spans([trace.id]).get(trace.id):
        return {"spans": [_file_span(span) for span in spans]}
    file = f"{trace.experiment}/traces/{trace.id}/artifacts/traces.json"
    try:
        return msgspec.json.decode(workspace.tracking.artifact(file), type=dict[str, Any])
    except msgspec.DecodeError:
        raise NotFound(f"Trace data is corrupted for trace with ID {trace.id!r}") from None


def _file_span(span: dict[str, Any]) -> dict[str, Any]:
    attributes = {
        item["key"]: msgspec.json.encode(_plain(item.get("value", {}))).decode()
        for item in span.get("attributes", ())
    }
    return {"parent_span_id": None, "events": [], **span, "attributes": attributes}


def _plain(value: dict[str, Any]) -> Any:
    """A value of OTLP's JSON as plain JSON."""
    for kind, inner in value.items():
        if kind == "array_value":
            return [_plain(item) for item in inner.get("values", ())]
        if kind == "kvlist_value":
            pairs = inner.get("values", ())
            return {item.get("key", ""): _plain(item.get("value", {})) for item in pairs}
        return inner
    return None
