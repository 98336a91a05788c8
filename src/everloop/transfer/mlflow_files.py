"""MLflow's file store: a folder ``mlruns`` with a folder for each experiment, run and model.

Layout, old and 3.x alike: ``<experiment>/meta.yaml``, ``<experiment>/<run>/meta.yaml`` with folders
``params``, ``tags``, ``metrics``, ``inputs``, ``outputs``, ``artifacts``; ``.trash`` for deleted
experiments; ``<experiment>/models/<m-...>`` for logged models; ``models/<name>/version-<n>`` for
registered ones. A metric is a file with a line a point: time, value, step, dataset, digest.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from everloop.core.intake import ModelRecord, VersionRecord
from everloop.core.run import Experiment, LoggedModel, Metric, Run, RunInput, RunOutput
from everloop.core.trace import Span
from everloop.errors import InvalidInput
from everloop.transfer.meta import Meta, read_meta
from everloop.transfer.places import Places
from everloop.transfer.source import (
    CHUNK,
    Fail,
    FoundModel,
    FoundRun,
    FoundTrace,
    SourceFile,
    instant,
    run_input,
    state_of,
    version_tags,
)
from everloop.transfer.trace_sources import FileTraces, spans_in_files

__all__ = ["FileSource"]

_T = TypeVar("_T")
_MODELS, _TRACES, _TRASH = "models", "traces", ".trash"
_STATUS = {"1": "pending", "2": "ready", "3": "failed"}


class FileSource:
    """The file store in `folder`."""

    def __init__(self, folder: Path, fail: Fail, artifacts: Path | None = None) -> None:
        self.label = str(folder)
        self._folder = folder
        self._fail = fail
        roots = [*([artifacts] if artifacts else []), folder, folder / _TRASH]
        self._places = Places(roots, folder.parent)
        self._homes: dict[str, Path] = {}

    def experiments(self) -> Iterator[Experiment]:
        for folder in self._folders(self._folder) + self._folders(self._folder / _TRASH):
            if folder.name in (_MODELS, _TRASH):
                continue
            found = self._read("experiment", folder, self._experiment)
            if found is not None:
                self._homes[found.id] = folder
                yield found

    def _experiment(self, folder: Path) -> Experiment:
        meta = _meta(folder)
        created = instant(meta.get("creation_time"))
        return Experiment(
            id=str(meta.get("experiment_id") or folder.name),
            name=_text(meta, "name"),
            lifecycle="deleted" if meta.get("lifecycle_stage") == "deleted" else "active",
            tags=self._texts("experiment", folder, "tags"),
            location=str(meta.get("artifact_location") or ""),
            created_at=created,
            updated_at=instant(meta.get("last_update_time"), created),
        )

    def runs(self, experiment: Experiment) -> Iterator[FoundRun]:
        for folder in self._folders(self._homes[experiment.id]):
            # Old stores have no folders beside the runs; new ones keep models, datasets and traces.
            if folder.name in (_MODELS, _TRACES, "datasets", "tags", "assessments"):
                continue
            found = self._read("run", folder, lambda path: self._run(path, experiment))
            if found is not None:
                yield found

    def _run(self, folder: Path, experiment: Experiment) -> FoundRun:
        meta = _meta(folder)
        id_ = str(meta.get("run_id") or meta.get("run_uuid") or folder.name)
        if id_ != folder.name:
            raise InvalidInput(f"its meta.yaml is of the run {id_}")
        end = meta.get("end_time")
        return FoundRun(
            root=str(meta.get("artifact_uri") or ""),
            run=Run(
                id=id_,
                experiment=experiment.id,
                name=str(meta.get("run_name") or meta.get("name") or ""),
                state=state_of(meta.get("status")),
                actor=str(meta.get("user_id") or ""),
                lifecycle="deleted" if meta.get("lifecycle_stage") == "deleted" else "active",
                started_at=instant(meta.get("start_time"), experiment.created_at),
                ended_at=None if end is None else instant(end),
            ),
        )

    def details(self, found: Sequence[FoundRun]) -> list[FoundRun]:
        return [self._detailed(item) for item in found]

    def _detailed(self, found: FoundRun) -> FoundRun:
        run = found.run
        folder = self._homes[run.experiment] / run.id
        tags = self._texts("run", folder, "tags")
        datasets: list[RunInput] = []
        models: list[str] = []
        for path in self._folders(folder / "inputs"):
            meta = self._read("input", path, _meta) or {}
            source = str(meta.get("source_id") or "")
            if meta.get("source_type") == "DATASET":
                dataset = self._homes[run.experiment] / "datasets" / source
                said = self._read("dataset", dataset, _meta)
                if said is not None:
                    datasets.append(run_input(dict(said), _mapping(meta, "tags")))
            elif source.startswith("m-"):
                models.append(source)
        outputs = []
        for path in self._folders(folder / "outputs"):
            meta = self._read("output", path, _meta) or {}
            outputs.append(RunOutput(model_id=path.name, step=_whole(meta.get("step"))))
        return msgspec.structs.replace(
            found,
            models_read=tuple(models),
            run=msgspec.structs.replace(
                run,
                name=run.name or tags.get("mlflow.runName", ""),
                params=self._texts("run", folder, "params"),
                tags=tags,
                inputs=tuple(datasets),
                outputs=tuple(outputs),
            ),
        )

    def points(self, found: Sequence[FoundRun]) -> Iterator[tuple[str, list[Metric]]]:
        for item in found:
            run = item.run
            folder = self._homes[run.experiment] / run.id / "metrics"
            points: list[Metric] = []
            for key, path in _files(folder):
                for point in self._metric(run.id, key, path):
                    points.append(point)
                    if len(points) >= CHUNK:
                        yield run.id, points
                        points = []
            if points:
                yield run.id, points

    def _metric(self, run_id: str, key: str, path: Path) -> Iterator[Metric]:
        broken = []
        try:
            with open(path, encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    point = _point(key, line)
                    if point is not None:
                        yield point
                    elif line.strip():
                        broken.append(number)
        except (OSError, UnicodeDecodeError) as error:
            self._fail("run", run_id, f"metric {key!r} cannot be read: {error}")
        if broken:
            shown = ", ".join(map(str, broken[:5]))
            reason = f"metric {key!r} has {len(broken)} lines that are no points (line {shown})"
            self._fail("run", run_id, reason)

    def run_files(self, found: FoundRun) -> Iterator[SourceFile]:
        run = found.run
        beside = self._homes[run.experiment] / run.id / "artifacts"
        return self._places.files(found.root, beside, run.id, self._fail)

    def models(self, experiment: Experiment) -> Iterator[FoundModel]:
        for folder in self._folders(self._homes[experiment.id] / _MODELS):
            found = self._read("logged model", folder, lambda path: self._model(path, experiment))
            if found is not None:
                yield found

    def _model(self, folder: Path, experiment: Experiment) -> FoundModel:
        meta = _meta(folder)
        created = instant(meta.get("creation_timestamp"), experiment.created_at)
        run_id = str(meta.get("source_run_id") or "")
        points: dict[str, list[Metric]] = {}
        for key, path in _files(folder / "metrics"):
            for line in path.read_text(encoding="utf-8").splitlines():
                of_model = _model_point(key, line)
                if of_model is None:
                    reason = f"metric {key!r} has a line that is no point: {line[:60]!r}"
                    self._fail("logged model", folder.name, reason)
                else:
                    points.setdefault(of_model[0] or run_id, []).append(
                        msgspec.structs.replace(of_model[1], model_id=folder.name)
                    )
        model = LoggedModel(
            id=folder.name,
            experiment=experiment.id,
            name=str(meta.get("name") or folder.name),
            model_type=str(meta.get("model_type") or ""),
            source_run_id=run_id,
            status=_STATUS.get(str(meta.get("status")), "pending"),  # type: ignore[arg-type]
            params=self._texts("logged model", folder, "params"),
            tags=self._texts("logged model", folder, "tags"),
            created_at=created,
            updated_at=instant(meta.get("last_updated_timestamp"), created),
        )
        return FoundModel(
            model=model,
            points=points,
            deleted=meta.get("lifecycle_stage") == "deleted",
            root=str(meta.get("artifact_location") or ""),
        )

    def model_files(self, found: FoundModel) -> Iterator[SourceFile]:
        model = found.model
        beside = self._homes[model.experiment] / _MODELS / model.id / "artifacts"
        return self._places.files(found.root, beside, model.id, self._fail)

    def traces(self, experiment: Experiment) -> Iterator[FoundTrace]:
        reader = FileTraces(self._read, self._texts, self._fail)
        for folder in self._folders(self._homes[experiment.id] / _TRACES):
            found = reader.found(folder, experiment)
            if found is not None:
                yield found

    def spans(self, found: Sequence[FoundTrace]) -> dict[str, list[Span]]:
        return {
            item.trace.id: spans
            for item in found
            if (spans := spans_in_files(item, self.trace_files(item), self._fail))
        }

    def trace_files(self, found: FoundTrace) -> Iterator[SourceFile]:
        trace = found.trace
        beside = self._homes[trace.experiment] / _TRACES / trace.id / "artifacts"
        return self._places.files(found.root, beside, trace.id, self._fail)

    def registered(self) -> Iterator[ModelRecord]:
        for folder in self._folders(self._folder / _MODELS):
            found = self._read("model", folder, self._registered)
            if found is not None:
                yield found

    def _registered(self, folder: Path) -> ModelRecord:
        meta = _meta(folder)
        created = instant(meta.get("creation_timestamp"))
        versions, latest = [], 0
        for path in self._folders(folder, "version-"):
            number = _whole(path.name.removeprefix("version-"))
            latest = max(latest, number)
            version = self._read("version", path, lambda at: self._version(at, folder.name))
            if version is not None and version.source:
                versions.append(version)
        aliases = self._texts("model", folder, "aliases") or _mapping(meta, "aliases")
        return ModelRecord(
            name=str(meta.get("name") or folder.name),
            description=str(meta.get("description") or ""),
            tags=self._texts("model", folder, "tags"),
            aliases={alias: _whole(number.strip()) for alias, number in aliases.items()},
            latest=latest,
            created_at=created,
            updated_at=instant(meta.get("last_updated_timestamp"), created),
            versions=tuple(sorted(versions, key=lambda item: item.version)),
        )

    def _version(self, folder: Path, name: str) -> VersionRecord:
        """A version; one without a source was deleted and only keeps its number taken."""
        meta = _meta(folder)
        created = instant(meta.get("creation_timestamp"))
        deleted = meta.get("current_stage") == "Deleted_Internal"
        tags = self._texts("version", folder, "tags")
        return VersionRecord(
            version=_whole(meta.get("version") or folder.name.removeprefix("version-")),
            source="" if deleted else _text(meta, "source"),
            run_id=str(meta.get("run_id") or ""),
            description=str(meta.get("description") or ""),
            tags=version_tags(tags, meta.get("status")),
            stage=str(meta.get("current_stage") or "None"),
            run_link=str(meta.get("run_link") or ""),
            actor=str(meta.get("user_id") or ""),
            created_at=created,
            updated_at=instant(meta.get("last_updated_timestamp"), created),
        )

    def version_files(self, source: str) -> Iterator[SourceFile]:
        return self._places.files(source, None, source, self._fail)

    def left_out(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        self._homes.clear()

    # Reading

    def _folders(self, folder: Path, prefix: str = "") -> list[Path]:
        try:
            names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
        except FileNotFoundError:
            return []
        except OSError as error:
            self._fail("folder", str(folder), error.strerror or "cannot be read")
            return []
        return [folder / name for name in names if name.startswith(prefix)]

    def _read(self, kind: str, folder: Path, reader: Callable[[Path], _T]) -> _T | None:
        """What `reader` makes of a folder; None and a fault if it cannot."""
        try:
            return reader(folder)
        except FileNotFoundError as error:
            self._fail(kind, folder.name, f"there is no {Path(error.filename).name} in it")
        except (OSError, UnicodeDecodeError) as error:
            self._fail(kind, folder.name, f"cannot be read: {error}")
        except InvalidInput as error:
            self._fail(kind, folder.name, f"meta.yaml: {error.summary}")
        return None

    def _texts(self, kind: str, folder: Path, what: str) -> dict[str, str]:
        """The files of a folder as texts, by path; what is no text is told and left out."""
        found = {}
        for key, path in _files(folder / what):
            try:
                found[key] = path.read_bytes().decode()
            except (OSError, UnicodeDecodeError) as error:
                self._fail(kind, folder.name, f"{what} {key!r} cannot be read: {error}")
        return found


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """The files below a folder, by path with ``/``: names of metrics may hold slashes."""
    for here, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(here, name)
            yield path.relative_to(folder).as_posix(), path


def _meta(folder: Path) -> Meta:
    return read_meta((folder / "meta.yaml").read_text(encoding="utf-8"))


def _text(meta: Meta, key: str) -> str:
    value = meta.get(key)
    if value is None or isinstance(value, dict):
        raise InvalidInput(f"there is no field {key!r}")
    return str(value)


def _mapping(meta: Meta, key: str) -> dict[str, str]:
    value = meta.get(key)
    return {k: str(v) for k, v in value.items()} if isinstance(value, dict) else {}


def _whole(value: object) -> int:
    text = str(value)
    return int(text) if text.lstrip("-").isdecimal() else 0


def _point(key: str, line: str) -> Metric | None:
    """``time value [step [dataset digest]]``; None if it is none."""
    parts = line.split()
    if len(parts) < 2 or len(parts) == 4:
        return None
    try:
        return Metric(
            key=key,
            value=float(parts[1]),
            step=int(parts[2]) if len(parts) > 2 else 0,
            at_ms=int(parts[0]),
            # A name of a dataset may hold blanks; a digest never does.
            dataset=" ".join(parts[3:-1]),
            digest=parts[-1] if len(parts) > 4 else "",
        )
    except ValueError:
        return None


def _model_point(key: str, line: str) -> tuple[str, Metric] | None:
    """``time value step run [dataset digest]``, and the run; None if it is none."""
    parts = line.split()
    if len(parts) < 4:
        return None
    point = _point(key, " ".join(parts[:3] + parts[4:]))
    return None if point is None else (parts[3], point)
