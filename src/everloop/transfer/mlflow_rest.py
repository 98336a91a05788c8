"""A running server of MLflow's, by its REST interface; so also another Everloop."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from everloop.core.intake import ModelRecord, VersionRecord
from everloop.core.run import Experiment, LoggedModel, Metric, Run, RunOutput
from everloop.core.trace import Span
from everloop.errors import EverloopError, NotFound
from everloop.settings import MlflowLogin
from everloop.transfer.http import MlflowServer
from everloop.transfer.source import (
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
from everloop.transfer.trace_sources import RestTraces

__all__ = ["RestSource"]

_API = "/api/2.0/mlflow"
_AJAX = "/ajax-api/2.0/mlflow"
_PROXY = "/api/2.0/mlflow-artifacts/artifacts"
_SCHEME = "mlflow-artifacts:"
_RUNS, _MODELS, _VERSIONS, _EXPERIMENTS = 500, 50, 1000, 1000
#: As many runs a server takes in one question for the points of a metric, and points it answers.
_BULK_RUNS, _BULK_POINTS = 100, 25_000
_PROMPTS = "tags.`mlflow.prompt.is_prompt` = 'true'"
_STATUS = {
    "LOGGED_MODEL_PENDING": "pending",
    "LOGGED_MODEL_READY": "ready",
    "LOGGED_MODEL_UPLOAD_FAILED": "failed",
}


class RestSource:
    """The server at `url`."""

    def __init__(self, url: str, login: MlflowLogin, fail: Fail) -> None:
        self._server = MlflowServer(url, login)
        self.label = self._server.label
        self._fail = fail
        self._has_bulk = True
        self._traces = RestTraces(self._server, fail)
        self._ids: list[str] = []

    def experiments(self) -> Iterator[Experiment]:
        pages = self._pages(
            "POST", "experiments/search", "experiments", view_type="ALL", max_results=_EXPERIMENTS
        )
        for said in pages:
            created = instant(said.get("creation_time"))
            self._ids.append(str(said["experiment_id"]))
            yield Experiment(
                id=str(said["experiment_id"]),
                name=said["name"],
                lifecycle="deleted" if said.get("lifecycle_stage") == "deleted" else "active",
                tags=_texts(said.get("tags")),
                location=said.get("artifact_location") or "",
                created_at=created,
                updated_at=instant(said.get("last_update_time"), created),
            )

    def runs(self, experiment: Experiment) -> Iterator[FoundRun]:
        pages = self._pages(
            "POST",
            "runs/search",
            "runs",
            experiment_ids=[experiment.id],
            run_view_type="ALL",
            order_by=["attributes.start_time ASC"],
            max_results=_RUNS,
        )
        for said in pages:
            yield _run(said, experiment)

    def details(self, found: Sequence[FoundRun]) -> list[FoundRun]:
        return list(found)

    def points(self, found: Sequence[FoundRun]) -> Iterator[tuple[str, list[Metric]]]:
        # By metric and not by run: a hundred runs are asked for at once.
        wanted: dict[str, list[str]] = defaultdict(list)
        for item in found:
            for key in item.keys:
                wanted[key].append(item.run.id)
        for key, ids in wanted.items():
            for start in range(0, len(ids), _BULK_RUNS):
                yield from self._metric(key, ids[start : start + _BULK_RUNS])

    def _metric(self, key: str, ids: list[str]) -> Iterator[tuple[str, list[Metric]]]:
        said = self._bulk(key, ids) if self._has_bulk and len(ids) > 1 else None
        if said is None or len(said) >= _BULK_POINTS:
            for id_ in ids:  # there may be more than one answer holds
                pages = self._pages(
                    "GET", "metrics/get-history", "metrics", run_id=id_, metric_key=key,
                    max_results=_BULK_POINTS,
                )  # fmt: skip
                yield id_, [_point(point) for point in pages]
            return
        by_run: dict[str, list[Metric]] = defaultdict(list)
        for point in said:
            by_run[point["run_id"]].append(_point(point))
        yield from by_run.items()

    def _bulk(self, key: str, ids: list[str]) -> list[dict[str, Any]] | None:
        try:
            path = f"{_AJAX}/metrics/get-history-bulk"
            answer = self._server.get(path, run_id=ids, metric_key=key, max_results=_BULK_POINTS)
        except NotFound:
            self._has_bulk = False
            return None
        found: list[dict[str, Any]] = answer.get("metrics", [])
        return found

    def run_files(self, found: FoundRun) -> Iterator[SourceFile]:
        id_ = found.run.id
        yield from self._tree(
            id_,
            found.root,
            lambda path: self._server.get(f"{_API}/artifacts/list", run_id=id_, path=path),
            lambda path: self._server.stream("/get-artifact", run_id=id_, path=path),
        )

    def models(self, experiment: Experiment) -> Iterator[FoundModel]:
        try:
            pages = list(
                self._pages(
                    "POST",
                    "logged-models/search",
                    "models",
                    experiment_ids=[experiment.id],
                    max_results=_MODELS,
                )
            )
        except NotFound:
            return  # a server before MLflow 3 has none
        for said in pages:
            yield _model(said, experiment)

    def model_files(self, found: FoundModel) -> Iterator[SourceFile]:
        base = f"logged-models/{found.model.id}/artifacts"
        yield from self._tree(
            found.model.id,
            found.root,
            lambda path: self._server.get(
                f"{_API}/{base}/directories", artifact_directory_path=path
            ),
            lambda path: self._server.stream(f"{_AJAX}/{base}/files", artifact_file_path=path),
        )

    def traces(self, experiment: Experiment) -> Iterator[FoundTrace]:
        return self._traces.found(experiment)

    def spans(self, found: Sequence[FoundTrace]) -> dict[str, list[Span]]:
        return self._traces.spans(found)

    def trace_files(self, found: FoundTrace) -> Iterator[SourceFile]:
        if found.root.startswith(_SCHEME):
            yield from self._proxied(found.trace.id, found.root)
        elif found.root:
            reason = f"its files are at {found.root}, which the server does not hand out"
            self._fail("files", found.trace.id, reason)

    def registered(self) -> Iterator[ModelRecord]:
        versions: dict[str, dict[int, VersionRecord]] = defaultdict(dict)
        for said in self._with_prompts("model-versions/search", "model_versions"):
            version = _version(said)
            versions[said["name"]][version.version] = version
        models = self._with_prompts("registered-models/search", "registered_models")
        for said in {found["name"]: found for found in models}.values():
            created = instant(said.get("creation_timestamp"))
            own = [version for _, version in sorted(versions[said["name"]].items())]
            yield ModelRecord(
                name=said["name"],
                description=said.get("description") or "",
                tags=_texts(said.get("tags")),
                aliases={item["alias"]: int(item["version"]) for item in said.get("aliases", [])},
                latest=max((item.version for item in own), default=0),
                created_at=created,
                updated_at=instant(said.get("last_updated_timestamp"), created),
                versions=tuple(own),
            )

    def version_files(self, source: str) -> Iterator[SourceFile]:
        if source.startswith(_SCHEME):
            yield from self._proxied(source, source)
        else:
            reason = (
                "it is neither a run's nor a logged model's, and the server does not hand it out"
            )
            self._fail("files", source, reason)

    def left_out(self) -> dict[str, int]:
        """Of webhooks, scorers and evaluation datasets a server tells; of the rest it may not."""
        counts = {
            "webhooks": self._count("GET", "2.0/mlflow/webhooks", "webhooks"),
            "scorers": sum(
                self._count("GET", "3.0/mlflow/scorers/list", "scorers", experiment_id=id_)
                for id_ in self._ids
            ),
            "evaluation datasets": self._count(
                "POST", "3.0/mlflow/datasets/search", "datasets", experiment_ids=self._ids
            ),
        }
        return {what: count for what, count in counts.items() if count}

    def _count(self, method: str, path: str, field: str, **asked: Any) -> int:
        ask = self._server.get if method == "GET" else self._server.post
        try:
            return len(ask(f"/api/{path}", **asked).get(field, []))
        except EverloopError as error:
            if error.details.get("unreachable"):
                raise
            return 0  # it has none of them, or this caller may not see them

    def close(self) -> None:
        self._server.close()

    # Reading

    def _with_prompts(self, path: str, field: str) -> Iterator[dict[str, Any]]:
        """What a search of the registry finds; prompts are models, and told of only when asked."""
        yield from self._pages("GET", path, field, max_results=_VERSIONS)
        yield from self._pages("GET", path, field, max_results=_VERSIONS, filter=_PROMPTS)

    def _pages(self, method: str, path: str, field: str, **asked: Any) -> Iterator[dict[str, Any]]:
        token = ""
        ask = self._server.get if method == "GET" else self._server.post
        while True:
            answer = ask(f"{_API}/{path}", **asked, page_token=token)
            yield from answer.get(field, [])
            token = answer.get("next_page_token", "")
            if not token:
                return

    def _proxied(self, owner: str, root: str) -> Iterator[SourceFile]:
        base = root.removeprefix(_SCHEME)
        base = base.lstrip("/") if not base.startswith("//") else base[2:].partition("/")[2]

        def listed(path: str) -> dict[str, Any]:
            answer = self._server.get(_PROXY, path=f"{base}/{path}".rstrip("/"))
            files = answer.get("files", [])
            below = [{**file, "path": f"{path}/{file['path']}".lstrip("/")} for file in files]
            return {"files": below}

        def read(path: str) -> Iterator[bytes]:
            return self._server.stream(f"{_PROXY}/{self._server.quoted(f'{base}/{path}')}")

        yield from self._listed(owner, listed, read)

    def _tree(
        self,
        owner: str,
        root: str,
        listed: Callable[[str], dict[str, Any]],
        read: Callable[[str], Iterator[bytes]],
    ) -> Iterator[SourceFile]:
        """The files of a run or model: through the artifact proxy, else as the pages show them."""
        if root.startswith(_SCHEME):
            yield from self._proxied(owner, root)
        else:
            yield from self._listed(owner, listed, read)

    def _listed(
        self,
        owner: str,
        listed: Callable[[str], dict[str, Any]],
        read: Callable[[str], Iterator[bytes]],
    ) -> Iterator[SourceFile]:
        todo = [""]
        while todo:
            folder = todo.pop()
            try:
                files = listed(folder).get("files", [])
            except EverloopError as error:
                self._fail("files", f"{owner} {folder}".strip(), error.message)
                continue
            for file in files:
                if file.get("is_dir"):
                    todo.append(file["path"])
                else:
                    size = int(file.get("file_size", -1))
                    yield SourceFile(file["path"], size, partial(read, file["path"]))


def _run(said: dict[str, Any], experiment: Experiment) -> FoundRun:
    info, data = said["info"], said.get("data", {})
    inputs, tags = said.get("inputs", {}), _texts(data.get("tags"))
    end = info.get("end_time")
    return FoundRun(
        root=info.get("artifact_uri") or "",
        keys=tuple(point["key"] for point in data.get("metrics", [])),
        models_read=tuple(item["model_id"] for item in inputs.get("model_inputs", [])),
        run=Run(
            id=info.get("run_id") or info["run_uuid"],
            experiment=experiment.id,
            name=info.get("run_name") or tags.get("mlflow.runName", ""),
            state=state_of(info.get("status")),
            actor=info.get("user_id") or "",
            lifecycle="deleted" if info.get("lifecycle_stage") == "deleted" else "active",
            params=_texts(data.get("params")),
            tags=tags,
            inputs=tuple(
                run_input(item["dataset"], _texts(item.get("tags")))
                for item in inputs.get("dataset_inputs", [])
            ),
            outputs=tuple(
                RunOutput(model_id=item["model_id"], step=int(item.get("step", 0)))
                for item in said.get("outputs", {}).get("model_outputs", [])
            ),
            started_at=instant(info.get("start_time"), experiment.created_at),
            ended_at=None if end is None else instant(end),
        ),
    )


def _model(said: dict[str, Any], experiment: Experiment) -> FoundModel:
    info, data = said["info"], said.get("data", {})
    created = instant(info.get("creation_timestamp_ms"))
    source = info.get("source_run_id") or ""
    points: dict[str, list[Metric]] = defaultdict(list)
    for point in data.get("metrics", []):
        points[point.get("run_id") or source].append(_point(point, model_id=info["model_id"]))
    return FoundModel(
        root=info.get("artifact_uri") or "",
        points=dict(points),
        model=LoggedModel(
            id=info["model_id"],
            experiment=experiment.id,
            name=info.get("name") or info["model_id"],
            model_type=info.get("model_type") or "",
            source_run_id=source,
            status=_STATUS.get(str(info.get("status")), "pending"),  # type: ignore[arg-type]
            params=_texts(data.get("params")),
            tags=_texts(info.get("tags")),
            created_at=created,
            updated_at=instant(info.get("last_updated_timestamp_ms"), created),
        ),
    )


def _version(said: dict[str, Any]) -> VersionRecord:
    created = instant(said.get("creation_timestamp"))
    tags = _texts(said.get("tags"))
    return VersionRecord(
        version=int(said["version"]),
        source=said.get("source") or "",
        run_id=said.get("run_id") or "",
        description=said.get("description") or "",
        tags=version_tags(tags, said.get("status")),
        stage=said.get("current_stage") or "None",
        run_link=said.get("run_link") or "",
        actor=said.get("user_id") or "",
        created_at=created,
        updated_at=instant(said.get("last_updated_timestamp"), created),
    )


def _point(said: dict[str, Any], model_id: str = "") -> Metric:
    return Metric(
        key=said["key"],
        value=float(said["value"]),
        step=int(said.get("step", 0)),
        at_ms=int(said["timestamp"]),
        model_id=model_id,
        dataset=said.get("dataset_name") or "",
        digest=said.get("dataset_digest") or "",
    )


def _texts(pairs: list[dict[str, str]] | None) -> dict[str, str]:
    return {pair["key"]: pair.get("value") or "" for pair in pairs or ()}
