"""TraceService: traces of applications with their spans, tags and assessments.

Spans lie in the object store, one object for each upload and trace, as OTLP's JSON has them. The
catalog keeps small rows with what a search needs; of a span's content that is its first 4,096
characters. As with metric points, no event is appended for each trace: there are too many.
"""

from __future__ import annotations

import base64
import uuid
from datetime import datetime
from itertools import groupby
from typing import Any

import msgspec
from sqlalchemy import Row, delete, select, update

from everloop.access.policy import Authorizer
from everloop.access.service import Service, action
from everloop.catalog.engine import Catalog
from everloop.catalog.tables import (
    artifacts,
    objects,
    trace_assessments,
    trace_notes,
    trace_runs,
    trace_spans,
    traces,
)
from everloop.catalog.transaction import Transaction
from everloop.core.time import from_micros
from everloop.core.trace import Assessment, Span, Trace, TracePage
from everloop.errors import Conflict, Fault, InvalidInput, NotFound, StateError
from everloop.ports.blobs import BlobStore
from everloop.tracking.experiments import experiment_row, make_default
from everloop.tracking.limits import check_page, text_faults
from everloop.tracking.store import chunks, run_row
from everloop.tracking.trace_intake import TraceIntake
from everloop.tracking.trace_rows import (
    SPANS_TAG,
    assessment_of,
    check_assessment,
    check_notes,
    check_trace_id,
    put_assessment,
    put_notes,
    put_spans,
    put_trace,
    read_traces,
    remove_traces,
    said,
    seen,
    trace_rows,
)
from everloop.tracking.trace_search import page_of_traces

__all__ = ["TraceService"]

_MAX_PAGE, _MAX_IDS = 500, 1000
_HERE = "TRACKING_STORE"


class TraceService(TraceIntake, Service):
    """Traces, as MLflow's clients and OpenTelemetry's exporters send them."""

    area = "traces"

    def __init__(self, catalog: Catalog, blobs: BlobStore, authorizer: Authorizer) -> None:
        self._catalog = catalog
        self._blobs = blobs
        self._authorizer = authorizer
        make_default(catalog)

    @action("trace:write")
    def log(self, trace: Trace) -> Trace:
        """Store what is known of a trace, over what its spans told; sent again it changes nothing.

        Raises:
            NotFound: If there is no such experiment.
            Conflict: If the trace is in another experiment already.
            InvalidInput: With everything that cannot be stored.
        """
        check_trace_id(trace.id)
        faults = [
            *check_notes("tags", trace.tags),
            *check_notes("trace_metadata", trace.metadata),
            *text_faults("client_request_id", trace.client_request_id),
            *text_faults("request_preview", trace.request_preview),
            *text_faults("response_preview", trace.response_preview),
        ]
        if faults:
            raise InvalidInput("Invalid trace", faults)
        for given in trace.assessments:
            check_assessment(given)
        root = f"mlflow-artifacts:/{trace.experiment}/traces/{trace.id}/artifacts"
        with self._catalog.write(ordered=False) as tx:
            experiment = _active_experiment(tx, trace.experiment)
            values = {"experiment_pk": experiment, "told": True, **said(trace)}
            row = put_trace(tx, trace.id, values)
            if row.told and row.experiment_pk != experiment:
                raise Conflict(
                    f"Trace(trace_id={trace.id}) already exists",
                    hint=f"it is in experiment {row.experiment_pk}",
                    details={"winner": str(row.experiment_pk)},
                )
            tx.execute(update(traces).where(traces.c.pk == row.pk).values(**values))
            put_notes(tx, row.pk, "tag", {"mlflow.artifactLocation": root, **trace.tags})
            put_notes(tx, row.pk, "metadata", trace.metadata)
            for index, given in enumerate(trace.assessments):
                _put_own(tx, row, given, index)
            return _one(tx, trace.id)

    @action("trace:write", on="experiment")
    def log_spans(self, experiment: str, spans: list[Span], *, run_id: str = "") -> None:
        """Store spans; a trace that is not there yet is made. A span sent again replaces itself.

        Args:
            experiment: Id of the experiment of new traces.
            spans: Of one trace or of several.
            run_id: A run that the traces belong to.

        Raises:
            NotFound: If there is no such experiment or run.
            InvalidInput: If the body of a span is of another one.
        """
        faults = [
            Fault(f"spans[{index}].body.span_id", f"must be {span.id!r} in base64")
            for index, span in enumerate(spans)
            if _span_id(span.body) != span.id
        ]
        if faults:
            raise InvalidInput("the spans are wrong", faults)
        ordered = sorted(spans, key=lambda span: span.trace_id)
        groups = [(id_, list(group)) for id_, group in groupby(ordered, lambda s: s.trace_id)]
        with self._catalog.read() as tx:
            _active_experiment(tx, experiment)
            if run_id:
                run_row(tx, run_id)
        stored = []
        for id_, group in groups:
            check_trace_id(id_)
            data = msgspec.json.encode([span.body for span in group])
            stored.append((id_, group, *self._blobs.put(data)))
        with self._catalog.write(ordered=False) as tx:
            pk = _active_experiment(tx, experiment)
            # In the order of their ids, so that two who write the same traces cannot lock each
            # other out.
            for id_, group, digest, size in stored:
                row = {"digest": digest, "size": size, "created_at": tx.now}
                tx.insert_new(objects, row)
                self._add(tx, id_, pk, group, digest)
            if run_id:
                _link(tx, [id_ for id_, *_ in stored], run_id)

    def _add(
        self, tx: Transaction, id_: str, experiment: int, spans: list[Span], digest: str
    ) -> None:
        first = min(span.started_ns for span in spans)
        fresh = Trace(
            id=id_,
            experiment=str(experiment),
            state="in_progress",
            started_at=from_micros(first // 1000),
        )
        row = put_trace(tx, id_, {"experiment_pk": experiment, "told": False, **said(fresh)})
        if not row.told:
            seen(tx, row, spans)
        put_spans(tx, row.pk, spans, digest)
        put_notes(tx, row.pk, "tag", {SPANS_TAG: _HERE})

    @action("trace:read", on="id")
    def trace(self, id: str) -> Trace:
        """A trace without its spans.

        Raises:
            NotFound: If there is none.
        """
        with self._catalog.read() as tx:
            return _one(tx, id)

    @action("trace:read")
    def traces(self, ids: list[str]) -> list[Trace]:
        """Traces by id, at most 1,000; those that are not there are left out."""
        _check_count(ids)
        with self._catalog.read() as tx:
            return read_traces(tx, trace_rows(tx, ids))

    @action("trace:read")
    def spans(self, ids: list[str]) -> dict[str, list[dict[str, Any]]]:
        """The spans of traces by the traces' ids, as OTLP's JSON has them, in order of time."""
        _check_count(ids)
        table = trace_spans
        with self._catalog.read() as tx:
            names = {row.pk: row.id for row in trace_rows(tx, ids)}
            query = select(table.c.trace_pk, table.c.span_id, table.c.digest)
            rows = tx.all(
                query.where(table.c.trace_pk.in_(list(names))).order_by(
                    table.c.trace_pk, table.c.started_ns, table.c.span_id
                )
            )
        found: dict[str, list[dict[str, Any]]] = {id_: [] for id_ in names.values()}
        for pk, group in groupby(rows, lambda row: row.trace_pk):
            found[names[pk]] = self._bodies(list(group))
        return found

    def _bodies(self, rows: list[Row[Any]]) -> list[dict[str, Any]]:
        bodies: dict[tuple[str, str], dict[str, Any]] = {}
        for digest in {row.digest for row in rows}:
            kept = msgspec.json.decode(self._blobs.get(digest), type=list[dict[str, Any]])
            bodies.update(((digest, _span_id(body)), body) for body in kept)
        return [bodies[row.digest, row.span_id] for row in rows]

    @action("trace:read")
    def search(
        self,
        experiments: list[str],
        *,
        filter: str = "",
        order_by: list[str] | None = None,
        limit: int = 100,
        page_token: str = "",
    ) -> TracePage:
        """Search the traces of experiments by id; newest first without `order_by`.

        Args:
            experiments: Ids.
            filter: Such as ``trace.status = 'ERROR' AND tags.team = 'growth'``; see
                ``everloop.tracking.search``. Knows request_id, client_request_id, name, run_id,
                status, text, timestamp_ms, execution_time_ms, end_time_ms, tags.x, metadata.x,
                span.name, span.type, span.status, span.content, span.attributes.x, feedback.x,
                expectation.x, issue.id and prompt; RLIKE takes regular expressions of RE2.
            order_by: ``"timestamp_ms DESC"`` and the like.
            limit: Most to return, 1 to 500.
            page_token: Of the page before; only with the same search.

        Raises:
            InvalidInput: If filter, order, limit or token is wrong; says where.
        """
        check_page(limit, _MAX_PAGE)
        keys = [int(id_) for id_ in experiments if id_.isdecimal() and len(id_) < 19]
        with self._catalog.read() as tx:
            return page_of_traces(
                tx,
                experiments=keys,
                filter_=filter,
                order_by=order_by or [],
                limit=limit,
                page_token=page_token,
            )

    @action("trace:write", on="id")
    def set_tag(self, id: str, key: str, value: str) -> None:
        """Set a tag, over what it was."""
        faults = list(check_notes("tags", {key: value}))
        if faults:
            raise InvalidInput("Invalid value supplied", faults)
        with self._catalog.write(ordered=False) as tx:
            put_notes(tx, _row(tx, id).pk, "tag", {key: value})

    @action("trace:write", on="id")
    def delete_tag(self, id: str, key: str) -> None:
        """Delete a tag.

        Raises:
            NotFound: If the trace has none of that key.
        """
        table = trace_notes
        with self._catalog.write(ordered=False) as tx:
            pk = _row(tx, id).pk
            gone = tx.execute(
                delete(table).where(
                    table.c.trace_pk == pk, table.c.kind == "tag", table.c.key == key
                )
            )
            if not gone.rowcount:
                raise NotFound(f"No tag with key {key[:80]!r} in trace with ID {id!r}")

    @action("trace:write", on="run_id")
    def link_run(self, ids: list[str], run_id: str) -> None:
        """Say that traces belong to a run; again does nothing.

        Raises:
            NotFound: If there is no such run, or no such trace.
        """
        _check_count(ids)
        with self._catalog.write(ordered=False) as tx:
            run_row(tx, run_id)
            _link(tx, ids, run_id)

    @action("trace:delete", on="experiment")
    def delete(
        self,
        experiment: str,
        ids: list[str] | None = None,
        *,
        before: datetime | None = None,
        limit: int = 0,
    ) -> int:
        """Delete traces of an experiment: those of `ids`, or the oldest that began by `before`.

        Their objects stay until purged.

        Returns:
            How many were deleted.
        """
        if (ids is None) == (before is None) or limit < 0:
            raise InvalidInput("Give either trace ids or a time, and a limit only with a time")
        _check_count(ids or [])
        with self._catalog.write() as tx:
            pk = int(experiment_row(tx, experiment).id)
            query = select(traces.c.pk, traces.c.id).where(traces.c.experiment_pk == pk)
            if before is not None:
                query = query.where(traces.c.started_at <= before)
                query = query.order_by(traces.c.started_at, traces.c.id)
            else:
                query = query.where(traces.c.id.in_(ids or []))
            rows = tx.all(query.limit(limit) if limit else query)
            remove_traces(tx, [row.pk for row in rows])
            _remove_files(tx, pk, {row.id for row in rows})
            if rows:
                tx.append("trace.Deleted", f"experiment:{pk}", {"traces": len(rows)})
            return len(rows)

    # --- assessments --------------------------------------------------------------------------

    @action("trace:assess")
    def assess(self, assessment: Assessment) -> Assessment:
        """Store what was said of a trace; one that it overrides is no longer valid.

        Raises:
            NotFound: If there is no such trace, or nothing to override.
        """
        check_assessment(assessment)
        with self._catalog.write(ordered=False) as tx:
            pk = _row(tx, assessment.trace_id).pk
            given = _dated(msgspec.structs.replace(assessment, id=""), assessment.trace_id, tx.now)
            if given.overrides:
                found = _assessment(tx, given.trace_id, given.overrides)
                put_assessment(tx, pk, msgspec.structs.replace(found, valid=False))
            put_assessment(tx, pk, given)
            return given

    @action("trace:read", on="trace_id")
    def assessment(self, trace_id: str, id: str) -> Assessment:
        """One assessment; raises NotFound if there is none."""
        with self._catalog.read() as tx:
            return _assessment(tx, trace_id, id)

    @action("trace:assess", on="trace_id")
    def change_assessment(
        self,
        trace_id: str,
        id: str,
        *,
        name: str | None = None,
        body: dict[str, Any] | None = None,
        rationale: str | None = None,
        metadata: dict[str, str] | None = None,
        valid: bool | None = None,
    ) -> Assessment:
        """Change what was said; None leaves it, metadata is added to what is there."""
        changes = {"name": name, "body": body, "rationale": rationale, "valid": valid}
        with self._catalog.write(ordered=False) as tx:
            found = _assessment(tx, trace_id, id)
            changed = msgspec.structs.replace(
                found,
                metadata={**found.metadata, **(metadata or {})},
                updated_at=tx.now,
                **{key: value for key, value in changes.items() if value is not None},
            )
            check_assessment(changed)
            put_assessment(tx, _row(tx, trace_id).pk, changed)
            return changed

    @action("trace:assess", on="trace_id")
    def delete_assessment(self, trace_id: str, id: str) -> None:
        """Delete an assessment; one that it overrode is valid again."""
        table = trace_assessments
        with self._catalog.write(ordered=False) as tx:
            found = _assessment(tx, trace_id, id)
            tx.execute(delete(table).where(table.c.id == id))
            if found.overrides:
                back = update(table).where(table.c.id == found.overrides)
                tx.execute(back.values(valid=True))


def _active_experiment(tx: Transaction, id_: str) -> int:
    found = experiment_row(tx, id_)
    if found.lifecycle != "active":
        raise StateError(f"The experiment {id_} must be in the 'active' state")
    return int(found.id)


def _row(tx: Transaction, id_: str) -> Row[Any]:
    rows = trace_rows(tx, [id_])
    if not rows:
        raise NotFound(f"Trace with ID '{id_}' not found.", details={"kind": "trace", "name": id_})
    return rows[0]


def _one(tx: Transaction, id_: str) -> Trace:
    return read_traces(tx, [_row(tx, id_)])[0]


def _remove_files(tx: Transaction, experiment: int, ids: set[str]) -> None:
    """Forget the files that the clients of deleted traces put beside them."""
    folder = f"{experiment}/traces/"
    inside = tx.within(artifacts.c.path, f"{experiment}/traces")
    paths = [row.path for row in tx.all(select(artifacts.c.path).where(inside))]
    gone = [path for path in paths if path[len(folder) :].partition("/")[0] in ids]
    for part in chunks(gone):
        tx.execute(delete(artifacts).where(artifacts.c.path.in_(part)))


def _check_count(ids: list[str]) -> None:
    if len(ids) > _MAX_IDS:
        raise InvalidInput(f"{len(ids)} traces at once, at most {_MAX_IDS} are allowed")


def _link(tx: Transaction, ids: list[str], run_id: str) -> None:
    for id_ in sorted(set(ids)):
        tx.upsert(trace_runs, {"trace_pk": _row(tx, id_).pk, "run_id": run_id}, _LINK)


_LINK = ("trace_pk", "run_id")


def _put_own(tx: Transaction, row: Row[Any], given: Assessment, index: int) -> None:
    """Store an assessment that came with its trace; sent again it is the same one."""
    place = uuid.uuid5(uuid.NAMESPACE_OID, f"{row.id}/{index}/{given.name}").hex
    id_ = given.id or f"a-{place}"
    table = trace_assessments
    owner = tx.scalar(select(table.c.trace_pk).where(table.c.id == id_))
    if owner is not None and owner != row.pk:
        raise InvalidInput(f"Assessment with ID {id_[:80]!r} is of another trace")
    put_assessment(tx, row.pk, _dated(msgspec.structs.replace(given, id=id_), row.id, tx.now))


def _assessment(tx: Transaction, trace_id: str, id_: str) -> Assessment:
    table = trace_assessments
    row = tx.first(
        select(table).where(table.c.id == id_, table.c.trace_pk == _row(tx, trace_id).pk)
    )
    if row is None:
        raise NotFound(f"Assessment with ID '{id_}' not found for trace '{trace_id}'")
    return assessment_of(row, trace_id)


def _dated(given: Assessment, trace_id: str, now: datetime) -> Assessment:
    return msgspec.structs.replace(
        given,
        id=given.id or f"a-{uuid.uuid4().hex}",
        trace_id=trace_id,
        created_at=given.created_at or now,
        updated_at=given.updated_at or now,
    )


def _span_id(body: dict[str, Any]) -> str:
    """The id of a span in hex; empty if its body has none."""
    try:
        return base64.b64decode(body.get("span_id", ""), validate=True).hex()
    except (ValueError, TypeError):
        return ""
