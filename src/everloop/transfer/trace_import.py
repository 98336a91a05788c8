"""Traces in an import from MLflow: heads first, then the spans of those that are not whole here."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from everloop.core.intake import TraceRecord, TraceSize
from everloop.core.run import Artifact
from everloop.core.trace import Span, Trace
from everloop.tracking.service import TrackingService
from everloop.tracking.traces import TraceService
from everloop.transfer.files import FileStore, Wanted
from everloop.transfer.report import Findings
from everloop.transfer.source import FoundTrace, Source

__all__ = ["TRACE_BATCH", "TraceImporter"]

TRACE_BATCH = 100
#: As the spans name a file that lies beside them.
_ATTACHED = b"mlflow-attachment://"


class TraceImporter:
    """Takes in batches of traces; what is whole here is not read again."""

    def __init__(
        self,
        source: Source,
        tracking: TrackingService,
        traces: TraceService,
        files: FileStore,
        findings: Findings,
    ) -> None:
        self._source = source
        self._tracking = tracking
        self._traces = traces
        self._files = files
        self._findings = findings

    def take(self, found: Sequence[FoundTrace], experiment: str) -> None:
        """Take in traces of one experiment, by its id here, and read back what came."""
        self._findings.add("trace", found=len(found))
        ids = [item.trace.id for item in found]
        here = {trace.id: trace for trace in self._traces.traces(ids)}
        sizes = self._traces.trace_sizes(ids)
        rest = [
            item
            for item in found
            if not _is_whole(item, here.get(item.trace.id), sizes.get(item.trace.id))
        ]
        self._findings.add("trace", there=len(found) - len(rest))
        if not rest:
            return
        spans = self._source.spans(rest)
        files = self._keep_files(rest, spans, experiment)
        records = [
            TraceRecord(
                trace=msgspec.structs.replace(item.trace, experiment=experiment),
                spans=spans.get(item.trace.id, []),
                run_ids=item.run_ids,
                artifacts=tuple(files.get(item.trace.id, ())),
            )
            for item in rest
        ]
        for refusal in self._traces.take_traces(records, origin=self._source.label):
            self._findings.fail(refusal.kind, refusal.name, refusal.reason)
        self._verify(records, set(here))

    def _keep_files(
        self, found: Sequence[FoundTrace], spans: dict[str, list[Span]], experiment: str
    ) -> dict[str, list[Artifact]]:
        """The files of traces; their spans as a file only where they could not be read as spans."""
        return self._files.keep(
            Wanted(id_, f"{experiment}/traces/{id_}/artifacts/{file.path}", file)
            for item in found
            for id_ in [item.trace.id]
            if not spans.get(id_) or _ATTACHED in msgspec.json.encode(spans[id_])
            for file in self._source.trace_files(item)
            if not (spans.get(id_) and file.path == "traces.json")
        )

    def _verify(self, records: list[TraceRecord], before: set[str]) -> None:
        ids = [record.trace.id for record in records]
        kept = self._traces.spans(ids)
        here = {trace.id: trace for trace in self._traces.traces(ids)}
        artifacts = [file for record in records for file in record.artifacts]
        self._files.check(artifacts, self._tracking.find_artifacts([f.path for f in artifacts]))
        for record in records:
            trace = record.trace
            found = here.get(trace.id)
            if self._findings.touched(trace.id):
                continue
            if found is None:
                self._findings.fail("trace", trace.id, "is not here")
                continue
            bodies = [span.body for span in record.spans]
            lost = [body for body in bodies if body not in kept.get(trace.id, [])]
            if trace.id not in before and lost:
                reason = (
                    f"{len(bodies)} spans are there, {len(bodies) - len(lost)} came as they are"
                )
                self._findings.fail("trace", trace.id, reason)
                continue
            for what, there, is_here in (
                ("tags", trace.tags, found.tags),
                ("metadata", trace.metadata, found.metadata),
                ("assessments", _ids(trace), _ids(found)),
            ):
                missing = [key for key in there if key not in is_here]
                if missing:
                    reason = f"{len(there)} {what} are there, {missing[0]!r} did not come"
                    self._findings.fail("trace", trace.id, reason)
            if not self._findings.touched(trace.id):
                is_new = trace.id not in before
                self._findings.add("trace", imported=is_new, there=not is_new)
                spans = len(record.spans)
                self._findings.add("spans", found=spans, imported=spans)
                told = len(trace.assessments)
                self._findings.add("assessment", found=told, imported=told)


def _ids(trace: Trace) -> list[str]:
    return [given.id for given in trace.assessments]


def _is_whole(found: FoundTrace, here: Trace | None, size: TraceSize | None) -> bool:
    """Whether nothing of a trace is missing here; one that goes on may gain spans."""
    there = found.trace
    if here is None or size is None or there.state in ("unspecified", "in_progress"):
        return False
    return (
        here.state == there.state
        and bool(size.spans)
        and set(_ids(there)) <= set(_ids(here))
        and there.tags.keys() <= here.tags.keys()
        and there.metadata.keys() <= here.metadata.keys()
    )
