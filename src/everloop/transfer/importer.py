"""Brings a store of MLflow's into a workspace, through the services alone.

Bytes first, then a transaction for a batch of runs: killed at any point, it has whole batches, and
the next import goes on where this one ended. Each batch is read back and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TypeVar
from urllib.parse import unquote, urlsplit

import msgspec

from everloop.core.intake import (
    LoggedModelRecord,
    ModelRecord,
    Refusal,
    RunRecord,
    RunSize,
    VersionRecord,
)
from everloop.core.run import Artifact, Experiment, Metric
from everloop.errors import InvalidInput, NotFound
from everloop.ports.blobs import BlobStore
from everloop.registry.service import RegistryService
from everloop.tracking.limits import MAX_PAGE
from everloop.tracking.service import TrackingService
from everloop.tracking.traces import TraceService
from everloop.transfer.files import FileStore, Wanted
from everloop.transfer.report import Findings, TransferReport
from everloop.transfer.source import CHUNK, FoundModel, FoundRun, Source
from everloop.transfer.trace_import import TRACE_BATCH, TraceImporter

__all__ = ["IMPORTED", "SOURCE_TAG", "Importer"]

_T = TypeVar("_T")
_RUNS, _MODELS = 100, 25
_TELL = 1000
#: Kinds in the order of the report.
IMPORTED = (
    "experiment", "run", "points", "files", "logged model", "trace", "spans", "assessment",
    "model", "version", "alias",
)  # fmt: skip
#: Where the files of a version or an experiment were, when they now lie in this workspace.
SOURCE_TAG = "everloop.imported_from"
#: How MLflow tells prompts from models.
PROMPT_TAG = "mlflow.prompt.is_prompt"
_OURS = ("runs:/", "models:/", "mlflow-artifacts:/")


class Importer:
    """One import of `source`."""

    def __init__(
        self,
        source: Source,
        tracking: TrackingService,
        registry: RegistryService,
        blobs: BlobStore,
        traces: TraceService,
        findings: Findings,
        tell: Callable[[str], None],
    ) -> None:
        self._source = source
        self._tracking = tracking
        self._registry = registry
        self._findings = findings
        self._tell = tell
        self._files = FileStore(blobs, findings)
        self._traces = TraceImporter(source, tracking, traces, self._files, findings)
        self._roots: dict[str, str] = {}

    def run(self) -> TransferReport:
        """Import everything; what fails is told by name and does not stop the rest.

        Raises:
            BackendError: If the source or the workspace is gone; doing it again goes on.
        """
        try:
            for there, here in self._experiments():
                self._import_runs(there, here)
                self._import_models(there, here)
                self._import_traces(there, here)
            for record in self._source.registered():
                self._import_registered(record)
            for what, count in self._source.left_out().items():
                self._findings.note(f"{count} {what} are not imported: they have no place here")
        finally:
            self._files.close()
        return self._findings.report(self._source.label)

    # Experiments

    def _experiments(self) -> list[tuple[Experiment, Experiment]]:
        listed = self._tracking.search_experiments(lifecycle="all", limit=MAX_PAGE).experiments
        known = {experiment.name for experiment in listed}
        pairs = []
        for there in self._source.experiments():
            self._findings.add("experiment", found=1)
            try:
                here = self._tracking.take_experiment(_settled(there))
            except InvalidInput as error:
                self._findings.fail("experiment", f"{there.name} ({there.id})", str(error))
                continue
            is_new = there.name not in known
            self._findings.add("experiment", imported=is_new, there=not is_new)
            if here.id != there.id:
                self._findings.note(f"experiment {there.name!r}: id {there.id} is {here.id} here")
            if here.lifecycle != there.lifecycle:
                state = f"{there.lifecycle} there and {here.lifecycle} here"
                self._findings.note(f"experiment {there.name!r} is {state}; left as it is")
            pairs.append((there, here))
        return pairs

    # Runs

    def _import_runs(self, there: Experiment, here: Experiment) -> None:
        count = 0
        for batch in _batches(self._source.runs(there), _RUNS):
            self._findings.add("run", found=len(batch))
            for found in batch:
                self._remember(found.root, f"runs:/{found.run.id}")
            taken = set(self._tracking.taken_runs([found.run.id for found in batch]))
            self._findings.add("run", there=len(taken))
            rest = [found for found in batch if found.run.id not in taken]
            if rest:
                self._take_runs(self._source.details(rest), here)
            before, count = count, count + len(batch)
            if before // _TELL != count // _TELL:
                self._tell(f"{there.name}: {count} runs")
        if count:
            self._tell(f"{there.name}: {count} runs, done")

    def _take_runs(self, batch: list[FoundRun], here: Experiment) -> None:
        heads = {
            found.run.id: msgspec.structs.replace(found.run, experiment=here.id) for found in batch
        }
        artifacts = self._files.keep(
            Wanted(found.run.id, f"{here.id}/{found.run.id}/artifacts/{file.path}", file)
            for found in batch
            for file in self._source.run_files(found)
        )
        before = self._tracking.run_sizes(list(heads))
        distinct: dict[str, set[tuple[str, int, int, float | None]]] = {}
        rest: dict[str, list[Metric]] = {}
        held = 0
        for id_, points in self._source.points(batch):
            distinct.setdefault(id_, set()).update(map(_identity, points))
            rest.setdefault(id_, []).extend(points)
            held += len(points)
            if held >= CHUNK:
                parts = [
                    RunRecord(run=heads[run_id], points=part, complete=False)
                    for run_id, part in rest.items()
                ]
                self._take(parts)
                rest, held = {}, 0
        whole = [
            RunRecord(
                run=heads[found.run.id],
                points=rest.get(found.run.id, []),
                models_read=found.models_read,
                artifacts=tuple(artifacts.get(found.run.id, ())),
                complete=not self._findings.touched(found.run.id),
            )
            for found in batch
        ]
        self._take(whole)
        self._verify_runs(whole, {i: len(points) for i, points in distinct.items()}, before)

    def _take(self, records: list[RunRecord]) -> None:
        for refusal in self._tracking.take_runs(records, origin=self._source.label):
            self._findings.fail(refusal.kind, refusal.name, refusal.reason)

    def _verify_runs(
        self, records: list[RunRecord], points: dict[str, int], before: dict[str, RunSize]
    ) -> None:
        sizes = self._tracking.run_sizes([record.run.id for record in records])
        self._verify_files([file for record in records for file in record.artifacts])
        for record in records:
            run, size = record.run, sizes.get(record.run.id, RunSize())
            wanted = RunSize(
                params=len(run.params), tags=len(run.tags), points=points.get(run.id, 0)
            )
            old = before.get(run.id, RunSize()).points
            self._findings.add("points", found=wanted.points, imported=size.points - old, there=old)
            if not self._findings.touched(run.id):
                for what in ("params", "tags", "points"):
                    there, is_here = getattr(wanted, what), getattr(size, what)
                    if is_here < there:
                        reason = f"{there} {what} are there, {is_here} came"
                        self._findings.fail("run", run.id, reason)
            if not self._findings.touched(run.id):
                is_new = run.id not in before
                self._findings.add("run", imported=is_new, there=not is_new)

    def _verify_files(self, artifacts: list[Artifact]) -> None:
        found = self._tracking.find_artifacts([item.path for item in artifacts])
        self._files.check(artifacts, found)

    # Logged models

    def _import_models(self, there: Experiment, here: Experiment) -> None:
        for batch in _batches(self._source.models(there), _MODELS):
            self._findings.add("logged model", found=len(batch))
            for found in batch:
                self._remember(found.root, f"models:/{found.model.id}")
            taken = set(self._tracking.taken_models([found.model.id for found in batch]))
            self._findings.add("logged model", there=len(taken))
            rest = [found for found in batch if found.model.id not in taken]
            if rest:
                self._take_models(rest, here)

    def _take_models(self, batch: list[FoundModel], here: Experiment) -> None:
        artifacts = self._files.keep(
            Wanted(found.model.id, f"{here.id}/models/{found.model.id}/artifacts/{file.path}", file)
            for found in batch
            for file in self._source.model_files(found)
        )
        records = [
            LoggedModelRecord(
                model=msgspec.structs.replace(found.model, experiment=here.id),
                points=found.points,
                deleted=found.deleted,
                artifacts=tuple(artifacts.get(found.model.id, ())),
            )
            for found in batch
        ]
        for refusal in self._tracking.take_logged_models(records, origin=self._source.label):
            self._findings.fail(refusal.kind, refusal.name, refusal.reason)
        self._verify_files([file for record in records for file in record.artifacts])
        for record in records:
            if not self._findings.touched(record.model.id):
                self._findings.add("logged model", imported=1)

    # Traces

    def _import_traces(self, there: Experiment, here: Experiment) -> None:
        count = 0
        for batch in _batches(self._source.traces(there), TRACE_BATCH):
            self._traces.take(batch, here.id)
            before, count = count, count + len(batch)
            if before // _TELL != count // _TELL:
                self._tell(f"{there.name}: {count} traces")

    # Registered models

    def _import_registered(self, record: ModelRecord) -> None:
        aliases, known = self._registered_here(record.name)
        self._findings.add("model", found=1)
        versions = [
            version
            if version.version in (known or ()) or _is_prompt(record)
            else self._with_files(record.name, version)
            for version in record.versions
        ]
        given = msgspec.structs.replace(record, versions=tuple(versions))
        refusals = self._registry.take_model(given, origin=self._source.label)
        for refusal in refusals:
            self._findings.fail(refusal.kind, refusal.name, refusal.reason)
        if any(refusal.kind == "model" for refusal in refusals):
            return
        self._findings.add("model", imported=known is None, there=known is not None)
        self._verify_registered(record, set(known or ()), aliases, refusals)

    def _registered_here(self, name: str) -> tuple[dict[str, int], dict[int, str] | None]:
        """The aliases of a model here, and the sources of its versions; None if there is none."""
        try:
            aliases = self._registry.model(name).aliases
        except NotFound:
            return {}, None
        return aliases, {item.version: item.source for item in self._registry.versions(name)}

    def _verify_registered(
        self,
        record: ModelRecord,
        known: set[int],
        aliases: dict[str, int],
        refusals: list[Refusal],
    ) -> None:
        refused = {refusal.name for refusal in refusals}
        _, here = self._registered_here(record.name)
        for version in record.versions:
            name, number = f"{record.name}/{version.version}", version.version
            self._findings.add("version", found=1)
            source = (here or {}).get(number)
            if source is None:
                self._findings.fail("version", name, "is not here")
            elif name not in refused and not (source.startswith(_OURS) or _is_prompt(record)):
                reason = f"its files are at {source} and could not be brought along"
                self._findings.fail("version", name, reason)
            elif name not in refused:
                is_new = number not in known
                self._findings.add("version", imported=is_new, there=not is_new)
        for alias in record.aliases:
            self._findings.add("alias", found=1)
            if f"{record.name}@{alias}" not in refused:
                is_new = alias not in aliases
                self._findings.add("alias", imported=is_new, there=not is_new)

    def _with_files(self, name: str, version: VersionRecord) -> VersionRecord:
        """`version` with a source that can be read here, its files brought along if need be."""
        source = self._here(version.source)
        tags = version.tags
        if not source:
            folder = f"registered/{name}/{version.version}"
            wanted = (
                Wanted(name, f"{folder}/{file.path}", file)
                for file in self._source.version_files(version.source)
            )
            artifacts = self._files.keep(wanted).get(name, [])
            self._tracking.link_artifacts(artifacts)
            self._verify_files(artifacts)
            source = f"mlflow-artifacts:/{folder}" if artifacts else version.source
        if source != version.source:
            tags = {**tags, SOURCE_TAG: version.source}
        return msgspec.structs.replace(version, source=source, tags=tags)

    def _here(self, source: str) -> str:
        """The source by the run or logged model whose files it is, whatever its id is here."""
        if source.startswith(("runs:/", "models:/")):
            return source
        whole = _plain(source)
        root = whole
        while root and root not in self._roots:
            root = root.rpartition("/")[0]
        if not root:
            return ""
        rest = whole[len(root) :].strip("/")
        found = self._roots[root]
        return f"{found}/{rest}" if rest and found.startswith("runs:/") else found

    def _remember(self, root: str, uri: str) -> None:
        if root:
            self._roots[_plain(root)] = uri


def _is_prompt(record: ModelRecord) -> bool:
    """Whether this is a prompt: its text is a tag of each version, and there are no files."""
    return record.tags.get(PROMPT_TAG) == "true"


def _settled(there: Experiment) -> Experiment:
    """The experiment with its files in this workspace; a tag says where they were."""
    tags = dict(there.tags)
    if there.location and not there.location.startswith("mlflow-artifacts:/"):
        tags.setdefault(SOURCE_TAG, there.location)
    return msgspec.structs.replace(there, location="", tags=tags)


def _plain(uri: str) -> str:
    parts = urlsplit(uri)
    path = unquote(parts.path) if parts.scheme == "file" else uri
    return path.rstrip("/")


def _identity(point: Metric) -> tuple[str, int, int, float | None]:
    """What makes two points one: NaN is not equal to itself."""
    value = None if point.value != point.value else point.value
    return point.key, point.step, point.at_ms, value


def _batches(items: Iterator[_T], size: int) -> Iterator[Sequence[_T]]:
    while batch := list(islice(items, size)):
        yield batch
