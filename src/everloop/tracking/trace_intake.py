"""The part of the trace service that takes in traces of elsewhere, with their ids and times.

What is here stays and what is missing is added, so twice is once. What cannot be stored is refused
by name, and the rest is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import Row, func, select, update

from everloop.access.service import action
from everloop.catalog.engine import Catalog
from everloop.catalog.tables import (
    objects,
    trace_assessments,
    trace_notes,
    trace_runs,
    trace_spans,
    traces,
)
from everloop.catalog.transaction import Transaction
from everloop.core.intake import Refusal, TraceRecord, TraceSize
from everloop.core.trace import Assessment
from everloop.errors import InvalidInput
from everloop.ports.blobs import BlobStore
from everloop.tracking.intake import MAX_TEXT, put_artifacts, sound_files
from everloop.tracking.limits import text_faults
from everloop.tracking.store import chunks
from everloop.tracking.trace_rows import (
    SPANS_TAG,
    check_assessment,
    check_notes,
    check_trace_id,
    put_assessment,
    put_spans,
    put_trace,
    said,
    trace_rows,
)

__all__ = ["PLACE_TAG", "TraceIntake"]

#: Where MLflow's clients look for the files of a trace.
PLACE_TAG = "mlflow.artifactLocation"
_OPEN = ("unspecified", "in_progress")


class TraceIntake:
    """Taking in traces of elsewhere."""

    _catalog: Catalog
    _blobs: BlobStore

    @action("trace:read")
    def trace_sizes(self, ids: list[str]) -> dict[str, TraceSize]:
        """How much is here of each of these traces, for holding against where they came from."""
        found: dict[str, TraceSize] = {}
        tables = {"notes": trace_notes, "spans": trace_spans, "assessments": trace_assessments}
        with self._catalog.read() as tx:
            for part in chunks(ids):
                names = {row.pk: row.id for row in trace_rows(tx, part)}
                counts = {what: _counts(tx, table, list(names)) for what, table in tables.items()}
                for pk, id_ in names.items():
                    sizes = {what: count.get(pk, 0) for what, count in counts.items()}
                    found[id_] = TraceSize(**sizes)
        return found

    @action("trace:import")
    def take_traces(self, records: list[TraceRecord], *, origin: str) -> list[Refusal]:
        """Take in traces in one transaction; returns what could not be taken, piece by piece.

        Args:
            records: A trace that is here gains what it has not; one that goes on here is ended.
            origin: Where they come from, for the event log.
        """
        refused: list[Refusal] = []
        sound = [record for record in records if _is_sound(record, refused)]
        stored = {
            record.trace.id: self._blobs.put(
                msgspec.json.encode([span.body for span in record.spans])
            )
            for record in sound
            if record.spans
        }
        taken: dict[str, int] = {}
        with self._catalog.write() as tx:
            # In the order of their ids, as those who log spans write them too.
            for record in sorted(sound, key=lambda item: item.trace.id):
                row = _put_head(tx, record, refused)
                if row is None:
                    continue
                if record.trace.id in stored:
                    digest, size = stored[record.trace.id]
                    tx.insert_new(objects, {"digest": digest, "size": size, "created_at": tx.now})
                    put_spans(tx, row.pk, record.spans, digest)
                _put_rest(tx, row, record, refused)
                place = record.trace.experiment
                taken[place] = taken.get(place, 0) + 1
            for experiment, count in sorted(taken.items()):
                body = {"origin": origin, "traces": count}
                tx.append("trace.Imported", f"experiment:{experiment}", body)
        return refused


def _is_sound(record: TraceRecord, refused: list[Refusal]) -> bool:
    trace = record.trace
    try:
        check_trace_id(trace.id)
    except InvalidInput as error:
        refused.append(Refusal("trace", trace.id[:80], error.summary))
        return False
    faults = [
        *check_notes("tags", trace.tags),
        *check_notes("metadata", trace.metadata),
        *text_faults("client_request_id", trace.client_request_id),
        *text_faults("request_preview", trace.request_preview),
        *text_faults("response_preview", trace.response_preview),
    ]
    for what, notes in (("tags", trace.tags), ("metadata", trace.metadata)):
        for key, value in notes.items():
            faults += text_faults(f"{what}.{key[:80]}", value, longest=MAX_TEXT)
    refused.extend(Refusal("trace", trace.id, str(fault)) for fault in faults)
    return not faults


def _put_head(tx: Transaction, record: TraceRecord, refused: list[Refusal]) -> Row[Any] | None:
    trace, pk = record.trace, int(record.trace.experiment)
    row = put_trace(tx, trace.id, {"experiment_pk": pk, "told": True, **said(trace)})
    if row.experiment_pk != pk:
        reason = f"is a trace of experiment {row.experiment_pk} here"
        refused.append(Refusal("trace", trace.id, reason))
        return None
    if row.state in _OPEN and trace.state != row.state:
        tx.execute(update(traces).where(traces.c.pk == row.pk).values(told=True, **said(trace)))
    return row


def _put_rest(tx: Transaction, row: Row[Any], record: TraceRecord, refused: list[Refusal]) -> None:
    trace = record.trace
    root = f"mlflow-artifacts:/{row.experiment_pk}/traces/{trace.id}/artifacts"
    tags = {**trace.tags, PLACE_TAG: root}
    if record.spans:
        tags[SPANS_TAG] = "TRACKING_STORE"
    notes = [
        {"trace_pk": row.pk, "kind": kind, "key": key, "value": value}
        for kind, values in (("tag", tags), ("metadata", trace.metadata))
        for key, value in values.items()
    ]
    tx.insert_missing(trace_notes, notes)
    links = [{"trace_pk": row.pk, "run_id": run_id} for run_id in record.run_ids]
    tx.insert_missing(trace_runs, links)
    put_artifacts(tx, sound_files(trace.id, record.artifacts, refused))
    known = _owners(tx, [given.id for given in trace.assessments])
    for given in trace.assessments:
        _put_assessment(tx, row, given, known, refused)


def _put_assessment(
    tx: Transaction,
    row: Row[Any],
    given: Assessment,
    known: dict[str, int],
    refused: list[Refusal],
) -> None:
    if given.id in known:
        if known[given.id] != row.pk:
            refused.append(Refusal("trace", row.id, f"assessment {given.id} is another trace's"))
        return
    try:
        check_assessment(given)
    except InvalidInput as error:
        refused.append(Refusal("trace", row.id, f"assessment {given.id[:80]}: {error}"))
    else:
        put_assessment(tx, row.pk, given)


def _owners(tx: Transaction, ids: Sequence[str]) -> dict[str, int]:
    table = trace_assessments
    if not ids:
        return {}
    rows = tx.all(select(table.c.id, table.c.trace_pk).where(table.c.id.in_(ids)))
    return {row.id: row.trace_pk for row in rows}


def _counts(tx: Transaction, table: Any, pks: Sequence[int]) -> dict[int, int]:
    query = select(table.c.trace_pk, func.count().label("rows"))
    rows = tx.all(query.where(table.c.trace_pk.in_(pks)).group_by(table.c.trace_pk))
    return {row.trace_pk: row.rows for row in rows}
