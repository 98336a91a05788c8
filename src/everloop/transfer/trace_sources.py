"""Where each kind of store keeps its traces: folders, tables, or the routes of a server."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import Row

from everloop.core.run import Experiment
from everloop.core.trace import Assessment, Span
from everloop.errors import BackendError, EverloopError, InvalidInput, NotFound
from everloop.transfer.http import MlflowServer
from everloop.transfer.meta import read_tree
from everloop.transfer.source import Fail, FoundTrace, SourceFile, Stream
from everloop.transfer.trace_wire import (
    PLACE_TAG,
    SPANS_TAG,
    assessment_of,
    spans_of,
    trace_of,
)

__all__ = ["FileTraces", "RestTraces", "SqlTraces", "spans_in_files"]

_BATCH = 100
#: The file in which the spans of a trace are where no table has them.
_FILE = "traces.json"
_MAX_FILE = 1 << 30
_TAG_COLUMNS = {"mlflow.traceName": "trace_name"}
_METADATA_COLUMNS = {"mlflow.trace.session": "session_id"}
_TOKENS = (
    "input_tokens",
    "output_tokens",
    "total_tokens",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
    "cache_creation_input_tokens_above_1hr",
)
_COSTS = ("input_cost", "output_cost", "total_cost")


def spans_in_files(found: FoundTrace, files: Iterable[SourceFile], fail: Fail) -> list[Span]:
    """The spans of a trace by the file beside it; none if there is none, told if it is broken."""
    for file in files:
        if file.path != _FILE:
            continue
        try:
            document = json.loads(_content(file))
            return spans_of(document["spans"], found.trace.id)
        except (ValueError, KeyError, TypeError, RecursionError):
            fail("trace", found.trace.id, f"its {_FILE} is broken; it came as a file")
        except InvalidInput as error:
            fail("trace", found.trace.id, f"its {_FILE}: {error.summary}; it came as a file")
        except OSError as error:
            fail("trace", found.trace.id, f"its {_FILE} cannot be read: {error.strerror}")
    return []


def _content(file: SourceFile) -> bytes:
    opened = file.open()
    if isinstance(opened, Stream):
        with closing(opened):
            return opened.read(_MAX_FILE)
    return b"".join(opened)


class FileTraces:
    """Below an experiment's folder: ``traces/<id>/trace_info.yaml`` and folders beside it."""

    def __init__(
        self,
        read: Callable[[str, Path, Callable[[Path], Any]], Any],
        texts: Callable[[str, Path, str], dict[str, str]],
        fail: Fail,
    ) -> None:
        self._read = read
        self._texts = texts
        self._fail = fail

    def found(self, folder: Path, experiment: Experiment) -> FoundTrace | None:
        """The trace in a folder; None, and told, if it cannot be read."""
        found: FoundTrace | None = self._read("trace", folder, lambda at: self._one(at, experiment))
        return found

    def _one(self, folder: Path, experiment: Experiment) -> FoundTrace:
        said = read_tree((folder / "trace_info.yaml").read_text(encoding="utf-8"))
        tags = self._texts("trace", folder, "tags")
        trace = trace_of(
            said,
            experiment.id,
            tags=tags,
            metadata=self._texts("trace", folder, "request_metadata"),
            assessments=tuple(self._assessments(folder)),
        )
        if trace.id != folder.name:
            raise InvalidInput(f"its trace_info.yaml is of the trace {trace.id}")
        return FoundTrace(trace=trace, root=tags.get(PLACE_TAG, ""))

    def _assessments(self, folder: Path) -> Iterator[Assessment]:
        for path in sorted((folder / "assessments").glob("*.yaml")):
            try:
                said = read_tree(path.read_text(encoding="utf-8"))
                yield assessment_of(said, folder.name)
            except (OSError, UnicodeDecodeError) as error:
                self._fail("trace", folder.name, f"{path.name} cannot be read: {error}")
            except InvalidInput as error:
                self._fail("trace", folder.name, f"{path.name}: {error.summary}")


class SqlTraces:
    """Tables ``trace_info``, ``spans`` and the like, as far as a schema has them."""

    def __init__(
        self,
        rows: Callable[..., Iterator[Row[Any]]],
        pairs: Callable[..., dict[Any, dict[str, str]]],
        fail: Fail,
    ) -> None:
        self._rows = rows
        self._pairs = pairs
        self._fail = fail

    def found(self, experiment: Experiment) -> Iterator[FoundTrace]:
        """The traces of an experiment without their spans."""
        rows = self._rows("trace_info", "experiment_id", [int(experiment.id)], order="request_id")
        while part := list(islice(rows, _BATCH)):
            ids = [row.request_id for row in part]
            tags = self._pairs("trace_tags", "request_id", ids)
            metadata = self._pairs("trace_request_metadata", "request_id", ids)
            told = self._assessments(ids)
            runs: dict[str, list[str]] = defaultdict(list)
            for row in self._rows("entity_associations", "source_id", ids):
                if (row.source_type, row.destination_type) == ("trace", "run"):
                    runs[row.source_id].append(row.destination_id)
            for row in part:
                id_ = row.request_id
                trace = trace_of(
                    dict(row._mapping),
                    experiment.id,
                    tags=tags[id_] | _texts_of(row, _TAG_COLUMNS),
                    metadata=metadata[id_]
                    | _texts_of(row, _METADATA_COLUMNS)
                    | _numbers_of(row, "mlflow.trace.tokenUsage", _TOKENS)
                    | _numbers_of(row, "mlflow.trace.cost", _COSTS),
                    assessments=tuple(told[id_]),
                )
                if tags[id_].get(SPANS_TAG) == "ARCHIVE_REPO":
                    reason = "its spans are archived; import it from the running server"
                    self._fail("trace", id_, reason)
                place = tags[id_].get(PLACE_TAG, "")
                yield FoundTrace(trace=trace, root=place, run_ids=tuple(sorted(runs[id_])))

    def _assessments(self, ids: list[str]) -> dict[str, list[Assessment]]:
        found: dict[str, list[Assessment]] = defaultdict(list)
        for row in self._rows("assessments", "trace_id", ids):
            try:
                found[row.trace_id].append(assessment_of(_assessment_row(row), row.trace_id))
            except (ValueError, TypeError, AttributeError) as error:
                reason = f"assessment {row.assessment_id} is broken ({type(error).__name__})"
                self._fail("trace", row.trace_id, reason)
        return found

    def spans(self, found: Sequence[FoundTrace]) -> dict[str, list[Span]]:
        """The spans that are in the table, by the ids of the traces."""
        said: dict[str, list[Any]] = defaultdict(list)
        for row in self._rows("spans", "trace_id", [item.trace.id for item in found]):
            try:
                said[row.trace_id].append(json.loads(row.content))
            except (ValueError, RecursionError):
                self._fail("trace", row.trace_id, f"span {row.span_id} is no JSON")
        kept = {}
        for id_, items in said.items():
            try:
                kept[id_] = spans_of(items, id_)
            except InvalidInput as error:
                self._fail("trace", id_, error.summary)
        return kept


def _texts_of(row: Row[Any], columns: dict[str, str]) -> dict[str, str]:
    """Tags or metadata that newer schemas keep in columns of the trace's own."""
    found = {key: row._mapping.get(column) for key, column in columns.items()}
    return {key: text for key, text in found.items() if text is not None}


def _numbers_of(row: Row[Any], key: str, columns: tuple[str, ...]) -> dict[str, str]:
    """Metadata that is a JSON object of numbers, each of which has a column there."""
    found = {column: row._mapping.get(column) for column in columns}
    given = {column: number for column, number in found.items() if number is not None}
    return {key: json.dumps(given)} if given else {}


def _assessment_row(row: Row[Any]) -> dict[str, Any]:
    """A row of the table ``assessments`` as the wire has it."""
    value = json.loads(row.value)
    body: dict[str, Any] = {"value": value}
    if row.assessment_type == "expectation" and isinstance(value, dict | list):
        text = {"serialization_format": "JSON_FORMAT", "value": row.value}
        body = {"serialized_value": text}
    elif row.assessment_type == "issue":
        body = value
    if row.error:
        body["error"] = json.loads(row.error)
    return {
        "assessment_id": row.assessment_id,
        "assessment_name": row.name,
        "span_id": row.span_id,
        "source": {"source_type": row.source_type, "source_id": row.source_id},
        "create_time": row.created_timestamp,
        "last_update_time": row.last_updated_timestamp,
        row.assessment_type: body,
        "rationale": row.rationale,
        "metadata": json.loads(row.assessment_metadata or "null"),
        "overrides": row.overrides,
        "valid": bool(row.valid),
    }


class RestTraces:
    """The routes of a server: of MLflow 3 where it has them, else of MLflow 2."""

    def __init__(self, server: MlflowServer, fail: Fail) -> None:
        self._server = server
        self._fail = fail
        self._has_batches = True

    def found(self, experiment: Experiment) -> Iterator[FoundTrace]:
        """The traces of an experiment; none of a server that knows none."""
        try:
            pages = self._pages(experiment.id)
            first = next(pages, None)
        except NotFound:
            pages = self._old_pages(experiment.id)
            try:
                first = next(pages, None)
            except NotFound:
                return
        while first is not None:
            for said in first:
                if one := self._one(said, experiment):
                    yield one
            first = next(pages, None)

    def _pages(self, id_: str) -> Iterator[list[dict[str, Any]]]:
        place = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": id_}}
        token = ""
        while True:
            answer = self._server.post(
                "/api/3.0/mlflow/traces/search",
                locations=[place],
                max_results=_BATCH,
                page_token=token,
            )
            yield answer.get("traces", [])
            token = answer.get("next_page_token", "")
            if not token:
                return

    def _old_pages(self, id_: str) -> Iterator[list[dict[str, Any]]]:
        token = ""
        while True:
            answer = self._server.get(
                "/api/2.0/mlflow/traces", experiment_ids=[id_], max_results=_BATCH, page_token=token
            )
            yield answer.get("traces", [])
            token = answer.get("next_page_token", "")
            if not token:
                return

    def _one(self, said: dict[str, Any], experiment: Experiment) -> FoundTrace | None:
        tags = _texts(said.get("tags"))
        id_ = str(said.get("trace_id") or said.get("request_id") or "")
        told = []
        for item in said.get("assessments", []):
            try:
                told.append(assessment_of(item, id_))
            except InvalidInput as error:
                self._fail("trace", id_, f"an assessment: {error.summary}")
        try:
            metadata = _texts(said.get("trace_metadata") or said.get("request_metadata"))
            trace = trace_of(
                said, experiment.id, tags=tags, metadata=metadata, assessments=tuple(told)
            )
        except InvalidInput as error:
            self._fail("trace", id_, error.summary)
            return None
        return FoundTrace(trace=trace, root=tags.get(PLACE_TAG, ""))

    def spans(self, found: Sequence[FoundTrace]) -> dict[str, list[Span]]:
        """The spans of traces, wherever their server has them."""
        kept: dict[str, list[Span]] = {}
        for id_, said in self._batch([item.trace.id for item in found]).items():
            self._keep(kept, id_, said)
        for item in found:
            id_ = item.trace.id
            if id_ in kept:
                continue
            try:
                answer = self._server.get("/ajax-api/2.0/mlflow/get-trace-artifact", request_id=id_)
            except NotFound:
                continue  # it has none, or is in progress
            except BackendError as error:
                if error.details.get("unreachable"):
                    raise
                self._fail("trace", id_, f"its spans cannot be read: {error.message}")
            else:
                self._keep(kept, id_, answer.get("spans"))
        return kept

    def _keep(self, kept: dict[str, list[Span]], id_: str, said: Any) -> None:
        try:
            if spans := spans_of(said or [], id_):
                kept[id_] = spans
        except InvalidInput as error:
            self._fail("trace", id_, error.summary)

    def _batch(self, ids: list[str]) -> dict[str, Any]:
        """Spans by the ids of their traces, of those that the server has in its tables."""
        if not self._has_batches:
            return {}
        found: dict[str, Any] = {}
        for start in range(0, len(ids), 10):
            part = ids[start : start + 10]
            try:
                answer = self._server.get("/api/3.0/mlflow/traces/batchGet", trace_ids=part)
            except NotFound:
                self._has_batches = False
                return found
            except EverloopError as error:
                if error.details.get("unreachable"):
                    raise
                continue  # one of them cannot be read: each is asked for by itself
            for trace in answer.get("traces", []):
                if trace.get("spans"):
                    found[str(trace["trace_info"]["trace_id"])] = trace["spans"]
        return found


def _texts(said: Any) -> dict[str, str]:
    """Pairs as MLflow 3 has them, a mapping, or as MLflow 2 did, a list."""
    if isinstance(said, dict):
        return {key: str(value) for key, value in said.items()}
    return {pair["key"]: pair.get("value") or "" for pair in said or ()}
