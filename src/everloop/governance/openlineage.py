"""Facts of the event log as OpenLineage events: runs, and the data, features and models they made.

An event is made from the log and from what the catalog holds, so made again it is the same as long
as nothing was deleted. What is gone is told without its facets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from everloop.core.events import Event
from everloop.core.ids import uuid_of
from everloop.core.run import PARENT_TAG, Run
from everloop.errors import NotFound
from everloop.governance import facets

if TYPE_CHECKING:
    from everloop.data.service import DataService
    from everloop.features.service import FeatureService
    from everloop.lineage.service import LineageService
    from everloop.registry.service import RegistryService
    from everloop.tracking.service import TrackingService

__all__ = ["EventMaker", "Told"]

_SPEC = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs"
_RUNS = {
    "run.Started": "START",
    "run.Resumed": "RUNNING",
    "run.Finished": "COMPLETE",
    "run.Failed": "FAIL",
    "run.Lost": "ABORT",
}
_OVER = frozenset({"COMPLETE", "FAIL", "ABORT"})
_NOTE_TAG = "mlflow.note.content"
_T = TypeVar("_T")


class Told(Protocol):
    """What is asked of a workspace to tell of its events."""

    @property
    def data(self) -> DataService: ...
    @property
    def features(self) -> FeatureService: ...
    @property
    def lineage(self) -> LineageService: ...
    @property
    def registry(self) -> RegistryService: ...
    @property
    def tracking(self) -> TrackingService: ...


class EventMaker:
    """Makes OpenLineage events.

    Args:
        workspace: What the log belongs to.
        namespace: Of our jobs and datasets; one for each workspace that reports to one server.
    """

    def __init__(self, workspace: Told, namespace: str = "everloop") -> None:
        self._ws = workspace
        self._namespace = namespace
        self._makers: dict[str, Callable[[Event], list[dict[str, Any]]]] = {
            **dict.fromkeys(_RUNS, self._run),
            "dataset.VersionCommitted": self._committed,
            "feature.Applied": self._applied,
            "model.Registered": self._registered,
        }

    def of(self, event: Event) -> list[dict[str, Any]]:
        """The OpenLineage events that tell of a fact; none for most facts."""
        make = self._makers.get(event.kind)
        return [] if make is None else make(event)

    # --- runs ---------------------------------------------------------------------------------

    def _run(self, event: Event) -> list[dict[str, Any]]:
        run = _if_there(lambda: self._ws.tracking.run(_name_of(event)))
        if run is None:
            return []
        state = _RUNS[event.kind]
        if event.body.get("state") == "killed":
            state = "ABORT"
        over = state in _OVER
        return [
            self._run_event(
                event,
                run,
                state,
                inputs=self._inputs(run) if over else [],
                outputs=self._outputs(run) if over else [],
            )
        ]

    def _run_event(
        self,
        event: Event,
        run: Run,
        state: str,
        *,
        inputs: list[dict[str, Any]],
        outputs: list[dict[str, Any]],
    ) -> dict[str, Any]:
        return {
            "eventType": state,
            **self._frame(event, "RunEvent"),
            "run": {"runId": uuid_of(run.id), "facets": self._run_facets(run, state)},
            "job": self._job(run),
            "inputs": inputs,
            "outputs": outputs,
        }

    def _run_facets(self, run: Run, state: str) -> dict[str, Any]:
        found = {
            "processing_engine": facets.facet(
                "ProcessingEngineRunFacet",
                "1-1-1",
                version=facets.VERSION,
                name="everloop",
                openlineageAdapterVersion=facets.VERSION,
            )
        }
        parent = self._parent(run)
        if parent is not None:
            found["parent"] = facets.facet("ParentRunFacet", "1-2-0", **parent)
        if run.error and state in ("FAIL", "ABORT"):
            found["errorMessage"] = facets.facet(
                "ErrorMessageRunFacet",
                "1-0-1",
                message=run.error.strip().splitlines()[-1],
                programmingLanguage="PYTHON",
                stackTrace=run.error,
            )
        return found

    def _parent(self, run: Run) -> dict[str, Any] | None:
        """The firing of the loop, or the run, that started this one."""
        if run.trigger:
            job = {"namespace": self._namespace, "name": f"loops/{self._loop(run.trigger)}"}
            return {"run": {"runId": uuid_of(run.trigger)}, "job": job}
        above = run.tags.get(PARENT_TAG)
        parent = _if_there(lambda: self._ws.tracking.run(above)) if above else None
        if parent is None:
            return None
        job = {"namespace": self._namespace, "name": self._job_name(parent)}
        return {"run": {"runId": uuid_of(parent.id)}, "job": job}

    def _loop(self, firing: str) -> str:
        fired = self._ws.lineage.events(kind="trigger.Fired", subject=f"firing:{firing}", limit=1)
        return str(fired[0].body["loop"]) if fired else "unknown"

    def _job(self, run: Run) -> dict[str, Any]:
        found = {
            "jobType": facets.job_type("PIPELINE" if run.pipeline else "EXPERIMENT"),
            "ownership": facets.ownership(run.actor or "unknown", job=True, role="EXECUTOR"),
        }
        code = facets.source_code(run)
        if code is not None:
            found["sourceCodeLocation"] = code
        if note := run.tags.get(_NOTE_TAG):
            found["documentation"] = facets.documentation(note, job=True)
        return {"namespace": self._namespace, "name": self._job_name(run), "facets": found}

    def _job_name(self, run: Run) -> str:
        if run.pipeline:
            return run.pipeline
        experiment = _if_there(lambda: self._ws.tracking.experiment(run.experiment))
        return f"experiments/{experiment.name if experiment else run.experiment}"

    def _inputs(self, run: Run) -> list[dict[str, Any]]:
        ours = dict.fromkeys((one.dataset, one.version) for one in run.inputs if one.version)
        above = self._ws.lineage.upstream(f"run:{run.id}", depth=1)
        return [
            *(self._dataset(name, number, for_input=True) for name, number in ours),
            *(self._external(ref) for ref in above.of_kind("external")),
        ]

    def _outputs(self, run: Run) -> list[dict[str, Any]]:
        made = self._ws.lineage.downstream(f"run:{run.id}", depth=1)
        found = []
        for ref in made.refs[1:]:
            kind, _, name = ref.partition(":")
            if kind == "dataset":
                dataset, _, number = name.rpartition("@")
                found.append(self._dataset(dataset, int(number)))
            elif kind == "model":
                model, _, number = name.rpartition("/")
                found.append(self._model(model, int(number)))
        return found

    # --- what was made ------------------------------------------------------------------------

    def _committed(self, event: Event) -> list[dict[str, Any]]:
        name, number = str(event.body["dataset"]), int(event.body["number"])
        made = self._dataset(name, number)
        above = self._ws.lineage.upstream(f"dataset:{name}@{number}", depth=1)
        sources = [self._external(ref) for ref in above.of_kind("external")]
        return self._made(event, made, sources, run_id=event.body["run_id"], job=f"commit/{name}")

    def _registered(self, event: Event) -> list[dict[str, Any]]:
        name, _, number = _name_of(event).rpartition("/")
        read = [self._dataset(n, at, for_input=True) for n, at in event.body["data"].items()]
        if feature_set := event.body.get("feature_set"):
            named = {"namespace": self._namespace, "facets": {}}
            read.append(named | {"name": f"feature_sets/{feature_set.partition('@')[0]}"})
        made = self._model(name, int(number))
        return self._made(event, made, read, run_id=event.body["run"], job=f"register/{name}")

    def _made(
        self,
        event: Event,
        made: dict[str, Any],
        inputs: list[dict[str, Any]],
        *,
        run_id: str,
        job: str,
    ) -> list[dict[str, Any]]:
        """Of a run it is told as its output; else as what a job makes, or alone."""
        run = _if_there(lambda: self._ws.tracking.run(run_id)) if run_id else None
        if run is not None:
            return [self._run_event(event, run, "OTHER", inputs=inputs, outputs=[made])]
        if inputs:
            named = {"namespace": self._namespace, "name": job, "facets": {}}
            frame = self._frame(event, "JobEvent")
            return [{**frame, "job": named, "inputs": inputs, "outputs": [made]}]
        alone = {key: made[key] for key in ("namespace", "name", "facets")}
        return [{**self._frame(event, "DatasetEvent"), "dataset": alone}]

    def _applied(self, event: Event) -> list[dict[str, Any]]:
        kind, _, name = event.subject.partition(":")
        digest = f"{name}@{event.body['digest'][:16]}"
        features = self._ws.features
        found = _if_there(
            lambda: (
                features.view(digest) if kind == "feature_view" else features.feature_set(digest)
            )
        )
        told: dict[str, Any] = {"version": facets.version(event.body["digest"])}
        if found is not None:
            told["schema"] = facets.schema_of_features(found.features)
            told["columnLineage"] = facets.column_lineage(found, self._namespace)
            told |= _of_people(found.owner, found.description)
        dataset = {"namespace": self._namespace, "name": f"{kind}s/{name}", "facets": told}
        return [{**self._frame(event, "DatasetEvent"), "dataset": dataset}]

    # --- datasets -----------------------------------------------------------------------------

    def _dataset(self, name: str, number: int, *, for_input: bool = False) -> dict[str, Any]:
        told: dict[str, Any] = {
            "dataSource": facets.source(self._namespace, f"urn:everloop:dataset:{name}@{number}"),
            "version": facets.version(number),
        }
        found = {"namespace": self._namespace, "name": name, "facets": told}
        made = _if_there(lambda: self._ws.data.version(name, number))
        if made is None:
            return found
        if made.kind == "table":
            told["schema"] = facets.schema_of_fields(made.schema)
        about = next((one for one in self._ws.data.datasets() if one.name == name), None)
        told |= _of_people(about.owner if about else "", about.description if about else made.note)
        if for_input:
            changes = self._ws.data.changes(scope=f"dataset:{made.ref}")
            found["inputFacets"] = {
                "dataQualityMetrics": facets.quality(made, for_input=True),
                "dataQualityAssertions": facets.assertions(made.schema, changes),
            }
            return found
        told["dataQualityMetrics"] = facets.quality(made)
        rows, size, files = facets.extent(made)
        statistics = facets.facet(
            "OutputStatisticsOutputDatasetFacet",
            "1-0-2",
            rowCount=rows,
            size=size,
            fileCount=files,
        )
        found["outputFacets"] = {"outputStatistics": statistics}
        return found

    def _model(self, name: str, number: int) -> dict[str, Any]:
        told: dict[str, Any] = {
            "dataSource": facets.source(self._namespace, f"urn:everloop:model:{name}/{number}"),
            "datasetType": facets.facet("DatasetTypeDatasetFacet", "1-0-1", datasetType="MODEL"),
            "version": facets.version(number),
        }
        model = _if_there(lambda: self._ws.registry.model(name))
        made = _if_there(lambda: self._ws.registry.version(name, number))
        if made is not None:
            told["schema"] = facets.schema_of_fields(made.signature.inputs)
        if model is not None:
            told |= _of_people(model.owner, model.description)
        return {"namespace": self._namespace, "name": f"models/{name}", "facets": told}

    def _external(self, ref: str) -> dict[str, Any]:
        known = _if_there(lambda: self._ws.lineage.external(ref))
        if known is not None:
            return {"namespace": known.namespace, "name": known.name, "facets": {}}
        uri = ref.partition(":")[2]
        scheme, mark, rest = uri.partition("://")
        place, _, path = rest.partition("/")
        if not (mark and path):
            return {"namespace": self._namespace, "name": f"external/{uri}", "facets": {}}
        namespace = f"{scheme}://{place}" if place else scheme
        return {"namespace": namespace, "name": path if place else f"/{path}", "facets": {}}

    def _frame(self, event: Event, kind: str) -> dict[str, Any]:
        return {
            "eventTime": facets.iso(event.at),
            "producer": facets.PRODUCER,
            "schemaURL": f"{_SPEC}/{kind}",
        }


def _name_of(event: Event) -> str:
    return event.subject.partition(":")[2]


def _of_people(owner: str, description: str) -> dict[str, Any]:
    found = {}
    if owner:
        found["ownership"] = facets.ownership(owner)
    if description:
        found["documentation"] = facets.documentation(description)
    return found


def _if_there(ask: Callable[[], _T]) -> _T | None:
    """The answer, or None for what was deleted since."""
    try:
        return ask()
    except NotFound:
        return None
