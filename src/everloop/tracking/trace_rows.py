"""Statements on traces. Functions here act within a given transaction."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from sqlalchemy import Row, delete, select, update

from everloop.catalog.tables import (
    trace_assessments,
    trace_notes,
    trace_runs,
    trace_spans,
    traces,
)
from everloop.catalog.transaction import Transaction
from everloop.core.time import from_micros
from everloop.core.trace import Assessment, Span, Trace
from everloop.errors import Fault, InvalidInput, NotFound
from everloop.tracking.limits import cut, text_faults
from everloop.tracking.store import chunks

__all__ = [
    "MAX_CONTENT",
    "NAME_TAG",
    "RUN_NOTE",
    "SPANS_TAG",
    "assessment_of",
    "check_assessment",
    "check_notes",
    "check_trace_id",
    "put_assessment",
    "put_notes",
    "put_spans",
    "put_trace",
    "read_traces",
    "remove_traces",
    "said",
    "seen",
    "trace_rows",
]

#: Where MLflow's clients keep the name of a trace, its run, and where its spans are.
NAME_TAG, RUN_NOTE, SPANS_TAG = "mlflow.traceName", "mlflow.sourceRun", "mlflow.trace.spansLocation"

#: Characters of a span that a search sees; all of it is in the object store.
MAX_CONTENT = 4096
_MAX_KEY, _MAX_VALUE, _MAX_NOTES = 250, 8000, 500
_MAX_PREVIEW, _MAX_TEXT, _MAX_SAID = 10_000, 65_535, 1 << 20
_ID = re.compile(r"[A-Za-z0-9][\w-]{0,255}", re.ASCII)
_ZERO = re.compile("[\x00\ud800-\udfff]")


def check_trace_id(id_: str) -> None:
    """Refuse what cannot be the id of a trace."""
    if not _ID.fullmatch(id_):
        raise InvalidInput(f"Invalid value {id_[:80]!r} for parameter 'trace_id' supplied")


def check_notes(path: str, notes: dict[str, str]) -> Iterable[Fault]:
    """What keeps tags or metadata from being stored; long values are cut later."""
    if len(notes) > _MAX_NOTES:
        yield Fault(path, f"holds {len(notes)} entries, at most {_MAX_NOTES} are allowed")
    for key, value in notes.items():
        yield from text_faults(f"{path}.{key[:80]}", key, longest=_MAX_KEY, empty=False)
        yield from text_faults(f"{path}.{key[:80]}", value)


def check_assessment(given: Assessment) -> None:
    """Refuse what is too large or no text.

    Raises:
        InvalidInput: With everything that is wrong.
    """
    faults = [
        *text_faults("assessment_id", given.id, longest=_MAX_KEY),
        *text_faults("name", given.name, longest=_MAX_KEY, empty=False),
        *text_faults("rationale", given.rationale, longest=_MAX_TEXT),
        *text_faults("source.source_id", given.source_id, longest=_MAX_KEY),
        *text_faults("source.source_type", given.source_type, longest=_MAX_KEY),
        *text_faults("span_id", given.span_id, longest=_MAX_KEY),
        *text_faults("overrides", given.overrides, longest=_MAX_KEY),
        *check_notes("metadata", given.metadata),
    ]
    if len(msgspec.json.encode(given.body)) > _MAX_SAID:
        faults.append(Fault(given.kind, f"is larger than {_MAX_SAID} bytes"))
    if faults:
        raise InvalidInput("Invalid assessment", faults)


def trace_rows(tx: Transaction, ids: Sequence[str]) -> list[Row[Any]]:
    """The rows of traces, in the order of `ids`; those that are not there are left out."""
    found: dict[str, Row[Any]] = {}
    for part in chunks(list(dict.fromkeys(ids))):
        found.update((row.id, row) for row in tx.all(select(traces).where(traces.c.id.in_(part))))
    return [found[id_] for id_ in ids if id_ in found]


def put_trace(tx: Transaction, id_: str, values: dict[str, Any]) -> Row[Any]:
    """Make a trace unless it is there; its row either way, which nobody else writes until we end.

    The other writer may be the same client: it sends a trace and its spans at once.
    """
    tx.insert_new(traces, {"id": id_, **values})
    row = tx.first(select(traces).where(traces.c.id == id_).with_for_update())
    if row is None:  # deleted between the two
        raise NotFound(f"Trace with ID '{id_}' not found.")
    return row


def put_notes(tx: Transaction, pk: int, kind: str, notes: dict[str, str]) -> None:
    """Write tags or metadata over what they were."""
    rows = [
        {"trace_pk": pk, "kind": kind, "key": key, "value": cut(value, _MAX_VALUE)}
        for key, value in sorted(notes.items())
    ]
    tx.upsert(trace_notes, rows, ["trace_pk", "kind", "key"])


def put_spans(tx: Transaction, pk: int, spans: Sequence[Span], digest: str) -> None:
    """Write what is searched of spans; all of them is in the object `digest`."""
    rows = {
        span.id: {
            "trace_pk": pk,
            "span_id": span.id,
            "name": _plain(span.name, _MAX_PREVIEW),
            "type": _plain(span.type, _MAX_KEY),
            "status": span.status,
            "started_ns": span.started_ns,
            "digest": digest,
            "content": cut(msgspec.json.encode(span.body).decode(), MAX_CONTENT),
        }
        for span in spans
    }
    tx.upsert(trace_spans, list(rows.values()), ["trace_pk", "span_id"])


def said(trace: Trace) -> dict[str, Any]:
    """The columns that a trace's client says."""
    return {
        "state": trace.state,
        "client_request_id": cut(trace.client_request_id, _MAX_KEY),
        "request_preview": cut(trace.request_preview, _MAX_PREVIEW),
        "response_preview": cut(trace.response_preview, _MAX_PREVIEW),
        "started_at": trace.started_at,
        "duration_ms": trace.duration_ms,
    }


def seen(tx: Transaction, row: Row[Any], spans: Sequence[Span]) -> None:
    """Bring a trace that only its spans tell of up to what they say."""
    first = min(span.started_ns for span in spans) // 1000
    started = min(row.started_at, from_micros(first))
    values: dict[str, Any] = {"started_at": started}
    root = next((span for span in spans if not span.parent_id), None)
    if root is not None:
        values |= {
            "state": "error" if root.status == "ERROR" else "ok",
            "duration_ms": max(0, (root.ended_ns - root.started_ns) // 1_000_000),
            "request_preview": _plain(root.request, 1000),
            "response_preview": _plain(root.response, 1000),
        }
        put_notes(tx, row.pk, "tag", {NAME_TAG: _plain(root.name, _MAX_VALUE)})
    tx.execute(update(traces).where(traces.c.pk == row.pk).values(**values))


def _plain(text: str, length: int) -> str:
    return _ZERO.sub("\ufffd", cut(text, length))


def put_assessment(tx: Transaction, pk: int, given: Assessment) -> None:
    """Write an assessment, over what it was."""
    row = {
        "id": given.id,
        "trace_pk": pk,
        "span_id": given.span_id,
        "name": given.name,
        "kind": given.kind,
        "body": given.body,
        "text": cut(_ZERO.sub("\ufffd", _value_text(given.body)), _MAX_TEXT),
        "source_type": given.source_type,
        "source_id": given.source_id,
        "rationale": given.rationale,
        "metadata": given.metadata,
        "overrides": given.overrides,
        "valid": given.valid,
        "created_at": given.created_at,
        "updated_at": given.updated_at,
    }
    tx.upsert(trace_assessments, row, ["id"])


def _value_text(body: dict[str, Any]) -> str:
    """What a filter compares: a text as it is, anything else as JSON."""
    value = body.get("value", body.get("serialized_value"))
    if isinstance(value, dict) and isinstance(value.get("value"), str):
        value = value["value"]
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def assessment_of(row: Row[Any], trace_id: str) -> Assessment:
    """An assessment from its row."""
    values = row._asdict()
    for column in ("trace_pk", "text"):
        values.pop(column)
    return Assessment(trace_id=trace_id, **values)


def read_traces(tx: Transaction, rows: Sequence[Row[Any]]) -> list[Trace]:
    """Traces from their rows, in the same order."""
    notes: dict[str, dict[int, dict[str, str]]] = {
        "tag": defaultdict(dict),
        "metadata": defaultdict(dict),
    }
    given: dict[int, list[Assessment]] = defaultdict(list)
    ids = {row.pk: row.id for row in rows}
    for keys in chunks(list(ids)):
        query = select(trace_notes).where(trace_notes.c.trace_pk.in_(keys))
        for row in tx.all(query.order_by(trace_notes.c.key)):
            notes[row.kind][row.trace_pk][row.key] = row.value
        table = trace_assessments
        wanted = select(table).where(table.c.trace_pk.in_(keys))
        for row in tx.all(wanted.order_by(table.c.created_at, table.c.id)):
            given[row.trace_pk].append(assessment_of(row, ids[row.trace_pk]))
    return [
        Trace(
            id=row.id,
            experiment=str(row.experiment_pk),
            state=row.state,
            client_request_id=row.client_request_id,
            request_preview=row.request_preview,
            response_preview=row.response_preview,
            started_at=row.started_at,
            duration_ms=row.duration_ms,
            metadata=notes["metadata"][row.pk],
            tags=notes["tag"][row.pk],
            assessments=tuple(given[row.pk]),
        )
        for row in rows
    ]


def remove_traces(tx: Transaction, keys: Sequence[int]) -> None:
    """Delete traces with all that belongs to them."""
    for part in chunks(keys):
        for table in (trace_notes, trace_spans, trace_runs, trace_assessments):
            tx.execute(delete(table).where(table.c.trace_pk.in_(part)))
        tx.execute(delete(traces).where(traces.c.pk.in_(part)))
