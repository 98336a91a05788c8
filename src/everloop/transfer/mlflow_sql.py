"""MLflow's SQL store: SQLite or PostgreSQL, of any version of its schema since 1.0.

Tables are read as they are found: a column that an older schema has not is taken as empty.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import (
    URL,
    Engine,
    MetaData,
    Row,
    Table,
    create_engine,
    func,
    inspect,
    make_url,
    select,
)
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from everloop.core.intake import ModelRecord, VersionRecord
from everloop.core.run import Experiment, LoggedModel, Metric, Run, RunOutput
from everloop.core.trace import Span
from everloop.errors import BackendError, InvalidInput, MissingExtra
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
from everloop.transfer.trace_sources import SqlTraces, spans_in_files

__all__ = ["SqlSource"]

_STATUS = {1: "pending", 2: "ready", 3: "failed"}
#: What has no place here: counted, so that nobody believes it came along.
_LEFT_OUT = {
    "webhooks": "webhooks",
    "evaluation datasets": "evaluation_datasets",
    "scorers": "scorers",
    "issues": "issues",
    "label schemas": "label_schemas",
    "review queues": "review_queues",
    "gateway endpoints": "endpoints",
    "gateway secrets": "secrets",
    "budget policies": "budget_policies",
    "guardrails": "guardrails",
    "MCP servers": "mcp_servers",
}


class SqlSource:
    """The store at `url`; `artifacts` says where its files are, if not where they were written."""

    def __init__(self, url: str, fail: Fail, artifacts: Path | None = None) -> None:
        self._engine, self.label, folder = _connect(url)
        self._fail = fail
        self._tables: dict[str, Table] = {}
        try:
            self._names = set(inspect(self._engine).get_table_names())
        except DBAPIError as error:
            raise _unreachable(self.label, error) from error
        if not {"experiments", "runs", "metrics"} <= self._names:
            raise InvalidInput(
                f"{self.label} is no store of MLflow's: it has no tables experiments, runs, metrics"
            )
        roots = [*([artifacts] if artifacts else []), folder / "mlartifacts", folder / "mlruns"]
        self._places = Places([*roots, folder], folder)
        self._traces = SqlTraces(self._rows, self._pairs, fail)

    def experiments(self) -> Iterator[Experiment]:
        tags = self._pairs("experiment_tags", "experiment_id")
        for row in self._rows("experiments", order="experiment_id"):
            created = instant(_get(row, "creation_time"))
            yield Experiment(
                id=str(row.experiment_id),
                name=_in_workspace(row, "/"),
                lifecycle="deleted" if row.lifecycle_stage == "deleted" else "active",
                tags=tags[row.experiment_id],
                location=row.artifact_location or "",
                created_at=created,
                updated_at=instant(_get(row, "last_update_time"), created),
            )

    def runs(self, experiment: Experiment) -> Iterator[FoundRun]:
        for row in self._rows("runs", "experiment_id", [int(experiment.id)], order="run_uuid"):
            yield FoundRun(
                root=row.artifact_uri or "",
                run=Run(
                    id=row.run_uuid,
                    experiment=experiment.id,
                    name=row.name or "",
                    state=state_of(row.status),
                    actor=row.user_id or "",
                    lifecycle="deleted" if row.lifecycle_stage == "deleted" else "active",
                    started_at=instant(row.start_time, experiment.created_at),
                    ended_at=None if row.end_time is None else instant(row.end_time),
                ),
            )

    def details(self, found: Sequence[FoundRun]) -> list[FoundRun]:
        ids = [item.run.id for item in found]
        params = self._pairs("params", "run_uuid", ids)
        tags = self._pairs("tags", "run_uuid", ids)
        datasets, read = self._inputs(ids)
        outputs: dict[str, list[RunOutput]] = defaultdict(list)
        for row in self._rows("inputs", "source_id", ids):
            if row.source_type == "RUN_OUTPUT":
                step = _get(row, "step") or 0
                output = RunOutput(model_id=row.destination_id, step=step)
                outputs[row.source_id].append(output)
        return [
            msgspec.structs.replace(
                item,
                models_read=tuple(read[item.run.id]),
                run=msgspec.structs.replace(
                    item.run,
                    name=item.run.name or tags[item.run.id].get("mlflow.runName", ""),
                    params=params[item.run.id],
                    tags=tags[item.run.id],
                    inputs=tuple(datasets[item.run.id]),
                    outputs=tuple(outputs[item.run.id]),
                ),
            )
            for item in found
        ]

    def _inputs(self, ids: list[str]) -> tuple[dict[str, list[Any]], dict[str, list[str]]]:
        read: dict[str, list[str]] = defaultdict(list)
        for row in self._rows("inputs", "source_id", ids):
            if row.source_type == "RUN_INPUT":
                read[row.source_id].append(row.destination_id)
        rows = [
            r for r in self._rows("inputs", "destination_id", ids) if r.source_type == "DATASET"
        ]
        tags = self._pairs("input_tags", "input_uuid", [row.input_uuid for row in rows], key="name")
        wanted = list({row.source_id for row in rows})
        known = {row.dataset_uuid: row for row in self._rows("datasets", "dataset_uuid", wanted)}
        datasets: dict[str, list[Any]] = defaultdict(list)
        for row in rows:
            said = known.get(row.source_id)
            if said is None:
                self._fail("run", row.destination_id, f"its dataset {row.source_id} is not there")
                continue
            fields: dict[str, object] = {
                "name": said.name,
                "digest": said.digest,
                "source_type": said.dataset_source_type,
                "source": said.dataset_source,
                "schema": said.dataset_schema,
                "profile": said.dataset_profile,
            }
            datasets[row.destination_id].append(run_input(fields, tags[row.input_uuid]))
        return datasets, read

    def points(self, found: Sequence[FoundRun]) -> Iterator[tuple[str, list[Metric]]]:
        table = self._table("metrics")
        if table is None:
            return
        ids = [item.run.id for item in found]
        columns = [
            table.c[name]
            for name in ("run_uuid", "key", "value", "timestamp", "step", "is_nan")
            if name in table.c
        ]
        query = select(*columns).where(table.c.run_uuid.in_(ids)).order_by(table.c.run_uuid)
        owner, points = "", list[Metric]()
        for row in self._stream(query):
            if points and (row.run_uuid != owner or len(points) >= CHUNK):
                yield owner, points
                points = []
            owner = row.run_uuid
            is_nan = bool(_get(row, "is_nan"))
            points.append(
                Metric(
                    key=row.key,
                    value=float("nan") if is_nan or row.value is None else row.value,
                    step=_get(row, "step") or 0,
                    at_ms=row.timestamp,
                )
            )
        if points:
            yield owner, points

    def run_files(self, found: FoundRun) -> Iterator[SourceFile]:
        return self._places.files(found.root, None, found.run.id, self._fail)

    def models(self, experiment: Experiment) -> Iterator[FoundModel]:
        rows = list(self._rows("logged_models", "experiment_id", [int(experiment.id)]))
        ids = [row.model_id for row in rows]
        params = self._pairs("logged_model_params", "model_id", ids, "param_key", "param_value")
        tags = self._pairs("logged_model_tags", "model_id", ids, "tag_key", "tag_value")
        points: dict[str, dict[str, list[Metric]]] = defaultdict(lambda: defaultdict(list))
        for row in self._rows("logged_model_metrics", "model_id", ids):
            points[row.model_id][row.run_id].append(
                Metric(
                    key=row.metric_name,
                    value=float("nan") if row.metric_value is None else row.metric_value,
                    step=row.metric_step,
                    at_ms=row.metric_timestamp_ms,
                    model_id=row.model_id,
                    dataset=row.dataset_name or "",
                    digest=row.dataset_digest or "",
                )
            )
        for row in rows:
            created = instant(row.creation_timestamp_ms)
            yield FoundModel(
                root=row.artifact_location or "",
                deleted=row.lifecycle_stage == "deleted",
                points=dict(points[row.model_id]),
                model=LoggedModel(
                    id=row.model_id,
                    experiment=experiment.id,
                    name=row.name,
                    model_type=row.model_type or "",
                    source_run_id=row.source_run_id or "",
                    status=_STATUS.get(row.status, "pending"),  # type: ignore[arg-type]
                    params=params[row.model_id],
                    tags=tags[row.model_id],
                    created_at=created,
                    updated_at=instant(row.last_updated_timestamp_ms, created),
                ),
            )

    def model_files(self, found: FoundModel) -> Iterator[SourceFile]:
        owner = found.model.id
        return self._places.files(found.root, None, owner, self._fail)

    def traces(self, experiment: Experiment) -> Iterator[FoundTrace]:
        return self._traces.found(experiment)

    def spans(self, found: Sequence[FoundTrace]) -> dict[str, list[Span]]:
        kept = self._traces.spans(found)
        for item in found:
            if item.trace.id not in kept:
                spans = spans_in_files(item, self.trace_files(item), self._fail)
                kept |= {item.trace.id: spans} if spans else {}
        return kept

    def trace_files(self, found: FoundTrace) -> Iterator[SourceFile]:
        return self._places.files(found.root, None, found.trace.id, self._fail)

    def registered(self) -> Iterator[ModelRecord]:
        for row in self._rows("registered_models", order="name"):
            tags = self._of_model("registered_model_tags", row)
            aliases = self._of_model("registered_model_aliases", row)
            versions = list(self._of_model("model_versions", row))
            created = instant(row.creation_time)
            yield ModelRecord(
                name=_in_workspace(row, "."),
                description=_get(row, "description") or "",
                tags={tag.key: tag.value or "" for tag in tags},
                aliases={item.alias: item.version for item in aliases},
                latest=max((item.version for item in versions), default=0),
                created_at=created,
                updated_at=instant(row.last_updated_time, created),
                versions=tuple(self._versions(row, versions)),
            )

    def _versions(self, model: Row[Any], rows: list[Row[Any]]) -> Iterator[VersionRecord]:
        tags: dict[int, dict[str, str]] = defaultdict(dict)
        for tag in self._of_model("model_version_tags", model):
            tags[tag.version][tag.key] = tag.value or ""
        for row in sorted(rows, key=lambda item: int(item.version)):
            stage = _get(row, "current_stage")
            if stage == "Deleted_Internal":
                continue  # the row only keeps its number from being used again
            created = instant(row.creation_time)
            yield VersionRecord(
                version=row.version,
                source=row.source or "",
                run_id=row.run_id or "",
                description=_get(row, "description") or "",
                tags=version_tags(tags[row.version], _get(row, "status")),
                stage=stage or "None",
                run_link=_get(row, "run_link") or "",
                actor=_get(row, "user_id") or "",
                created_at=created,
                updated_at=instant(row.last_updated_time, created),
            )

    def version_files(self, source: str) -> Iterator[SourceFile]:
        return self._places.files(source, None, source, self._fail)

    def left_out(self) -> dict[str, int]:
        found = {}
        for what, name in _LEFT_OUT.items():
            table = self._table(name)
            if table is not None:
                [row] = self._stream(select(func.count().label("rows")).select_from(table))
                found[what] = int(row.rows)
        return {what: count for what, count in found.items() if count}

    def close(self) -> None:
        self._engine.dispose()

    # Reading

    def _table(self, name: str) -> Table | None:
        if name not in self._names:
            return None
        if name not in self._tables:
            made = Table(name, MetaData(), autoload_with=self._engine, resolve_fks=False)
            self._tables[name] = made
        return self._tables[name]

    def _stream(self, query: Any) -> Iterator[Row[Any]]:
        try:
            with self._engine.connect() as connection:
                streamed = connection.execution_options(stream_results=True, yield_per=10_000)
                yield from streamed.execute(query)
        except DBAPIError as error:
            raise _unreachable(self.label, error) from error

    def _rows(
        self, name: str, column: str = "", values: list[Any] | None = None, order: str = ""
    ) -> Iterator[Row[Any]]:
        """The rows of a table, of some `values` of a column; none if there is no such table."""
        table = self._table(name)
        if table is None or (column and not values):
            return
        query = select(table)
        if column:
            query = query.where(table.c[column].in_(values or []))
        yield from self._stream(query.order_by(table.c[order]) if order else query)

    def _pairs(
        self,
        name: str,
        owner: str,
        ids: list[Any] | None = None,
        key: str = "key",
        value: str = "value",
    ) -> dict[Any, dict[str, str]]:
        found: dict[Any, dict[str, str]] = defaultdict(dict)
        for row in self._rows(name, owner if ids is not None else "", ids):
            found[row._mapping[owner]][row._mapping[key]] = row._mapping[value] or ""
        return found

    def _of_model(self, name: str, model: Row[Any]) -> Iterator[Row[Any]]:
        workspace = _get(model, "workspace")
        for row in self._rows(name, "name", [model.name]):
            if _get(row, "workspace") == workspace:
                yield row


def _connect(url: str) -> tuple[Engine, str, Path]:
    """A connection that never writes, its name for people, the folder that files may be beside."""
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() != "sqlite":
            if parsed.drivername in ("postgres", "postgresql", "postgresql+psycopg2"):
                parsed = parsed.set(drivername="postgresql+psycopg")
            return create_engine(parsed), parsed.render_as_string(hide_password=True), Path.cwd()
    except ModuleNotFoundError as error:
        raise MissingExtra.of("postgres", "a store on PostgreSQL") from error
    except (ArgumentError, NoSuchModuleError) as error:
        raise InvalidInput(
            f"{url.split('@')[-1]!r} is no address of a database that can be read",
            hint="use sqlite:///mlflow.db or postgresql://user@host/database",
        ) from error
    path = Path(parsed.database or "").absolute()
    if not path.is_file():
        raise InvalidInput(f"there is no file {path}")
    query = {"mode": "ro", "uri": "true"}
    readonly = URL.create("sqlite", database=f"file:{path.as_posix()}", query=query)
    return create_engine(readonly), str(path), path.parent


def _get(row: Row[Any], column: str) -> Any:
    return row._mapping.get(column)


def _in_workspace(row: Row[Any], separator: str) -> str:
    """The name; of another workspace than the default one with that before it."""
    workspace = _get(row, "workspace")
    is_default = workspace in (None, "", "default")
    return str(row.name) if is_default else f"{workspace}{separator}{row.name}"


def _unreachable(label: str, error: DBAPIError) -> BackendError:
    cause = str(error.orig).strip().splitlines()[0]
    return BackendError(f"{label} cannot be read: {cause}", hint="check the address and the rights")
