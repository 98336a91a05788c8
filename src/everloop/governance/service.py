"""GovernanceService: charters, model cards, the story of a loop, and why a prediction was made."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import msgspec
import pyarrow as pa

from everloop.access.policy import Authorizer
from everloop.access.service import Service, action
from everloop.catalog import lineage, loops
from everloop.catalog.engine import Catalog
from everloop.core.dataset import RowChangeSummary
from everloop.core.erase import Receipt
from everloop.core.gate import Verdict
from everloop.core.model import ModelVersion
from everloop.core.personal import DatasetTerms
from everloop.core.policy import Charter, LoopSpec, MeasuredLevel
from everloop.core.run import Run, RunInput
from everloop.errors import Fault, InvalidInput, NotFound
from everloop.governance.card import make_card
from everloop.governance.maturity import Maturity, grade
from everloop.governance.maturity_records import Sources, collect
from everloop.governance.records import DatasetUse, Neighbours, StoryLine, Why
from everloop.governance.rows import feature_set_body, feature_values, source_rows
from everloop.governance.sheet import DataSheet, make_sheet
from everloop.governance.story import tell
from everloop.monitoring.levels import measure_levels
from everloop.ports.blobs import BlobStore

if TYPE_CHECKING:
    from everloop.data.service import DataService
    from everloop.deployment.predictions import PredictionService
    from everloop.deployment.service import DeploymentService
    from everloop.evaluation.service import EvaluationService
    from everloop.registry.service import RegistryService
    from everloop.tracking.service import TrackingService

__all__ = ["GovernanceService"]

#: How far down a data sheet looks for what came of a dataset, and how many edges it follows.
_FAR, _EDGES = 6, 2000


class GovernanceService(Service):
    """Tells what is, why, and who answers for it. It changes nothing but charters."""

    area = "governance"

    def __init__(
        self,
        catalog: Catalog,
        blobs: BlobStore,
        authorizer: Authorizer,
        data: DataService,
        tracking: TrackingService,
        registry: RegistryService,
        evaluation: EvaluationService,
        deployment: DeploymentService,
        predictions: PredictionService,
    ) -> None:
        self._catalog = catalog
        self._blobs = blobs
        self._authorizer = authorizer
        self._data = data
        self._tracking = tracking
        self._registry = registry
        self._evaluation = evaluation
        self._deployment = deployment
        self._predictions = predictions

    @action("charter:write", on="project")
    def set_charter(self, project: str, charter: Charter) -> Charter:
        """State why a project (its loop) exists; a declaration without a charter keeps it.

        Raises:
            NotFound: If there is no such loop.
            InvalidInput: If it says no problem, value or owner.
        """
        wanted = ("problem", "value", "owner")
        faults = [Fault(n, "must say something") for n in wanted if not getattr(charter, n).strip()]
        if faults:
            raise InvalidInput("the charter is wrong", faults)
        with self._catalog.write() as tx:
            spec = loops.loop(tx, project)
            if spec.charter != charter:
                loops.put_loop(
                    tx, msgspec.structs.replace(spec, charter=charter, updated_at=tx.now)
                )
                tx.append("charter.Set", f"loop:{project}", {"owner": charter.owner})
        return charter

    @action("charter:read", on="project")
    def charter(self, project: str) -> Charter:
        """The charter of a project (its loop); NotFound with near names."""
        with self._catalog.read() as tx:
            return loops.loop(tx, project).charter

    @action("model:read", on="model")
    def card(self, model: str, version: int) -> str:
        """The card of a version, Markdown; what nobody stated is listed as not stated.

        Raises:
            NotFound: If there is no such version.
        """
        found = self._registry.version(model, version)
        loop = self._loop(model)
        run = self._run(found)
        return make_card(
            self._registry.model(model),
            found,
            loop=loop,
            run=run,
            verdicts=sorted(self._evaluation.verdicts(model, version), key=lambda v: v.id),
            datasets=self._datasets(found, run),
            levels=self.service_levels(model) if loop is not None else (),
        )

    @action("dataset:read", on="name")
    def data_sheet(self, name: str, number: int | None = None) -> DataSheet:
        """The data sheet of a version: all that is known of it, and what nobody stated.

        A table is read for it: its rules are judged, its columns counted, and a sample of its rows
        is looked through for personal data. No value of a row is told.

        Args:
            name: The dataset.
            number: The version; None is the latest.

        Raises:
            NotFound: If there is no such dataset or version.
        """
        data, version = self._data, self._data.version(name, number)
        is_table = version.kind == "table"
        subject = f"dataset:{version.ref}"
        with self._catalog.read() as tx:
            before, _ = lineage.walk(tx, subject, upstream=True, depth=1, limit=_EDGES)
            after, _ = lineage.walk(tx, subject, upstream=False, depth=_FAR, limit=_EDGES)
        return make_sheet(
            next(dataset for dataset in data.datasets() if dataset.name == name),
            version,
            terms=data.terms(name),
            personal=data.personal(name, version.number),
            versions=data.versions(name, branch=None),
            profile=data.profile(name, version.number) if is_table else None,
            report=data.check(name, None, version.number, rows=0) if is_table else None,
            pii=data.find_pii(name, version.number) if is_table else None,
            run=self._run_of(version.run_id),
            changes=data.changes(dataset=name),
            rule=next((rule for rule in data.retention() if rule.dataset == name), None),
            holds=[hold for hold in data.holds() if hold.dataset in ("", name)],
            receipts=[r for r in data.receipts() if _is_about(r, name)],
            before=[edge for edge, _ in before],
            after=[edge for edge, _ in after],
        )

    @action("prediction:read", on="prediction_id")
    def why(self, prediction_id: str) -> Why:
        """Walk from a prediction to everything that led to it.

        Raises:
            NotFound: If there is no such prediction.
        """
        prediction = self._predictions.get(prediction_id)
        deployment = self._deployment.deployment(prediction.deployment)
        version = self._registry.version(deployment.model, prediction.version)
        run, loop = self._run(version), self._loop(deployment.name)
        with self._catalog.read() as tx:
            features = feature_set_body(tx, version.feature_set)
        datasets = self._datasets(version, run)
        owners = {
            "loop": loop.owner if loop is not None else "",
            "deployment": deployment.owner,
            "model": self._registry.model(version.name).owner,
            "features": str(features.get("owner", "")),
        } | {f"dataset {use.name}": use.owner for use in datasets}
        stated = {f"owner of {what}": who for what, who in owners.items()} | {
            "run": version.run_id,
            "code snapshot": version.code or (run.code if run is not None else ""),
            "training period": "given" if version.trained_until is not None else "",
            "feature set": version.feature_set,
            "training data": "given" if datasets else "",
        }
        return Why(
            prediction=prediction,
            deployment=deployment.name,
            loop=loop.name if loop is not None else "",
            version=version,
            verdict=self._verdict(version),
            run=run,
            features=feature_values(prediction, features),
            rows=source_rows(prediction, features, self._data),
            datasets=tuple(datasets),
            changes=tuple(self._changes(version, datasets)),
            owners={what: who for what, who in owners.items() if who},
            not_stated=tuple(what for what, said in stated.items() if not said),
        )

    @action("prediction:read", on="prediction_id")
    def neighbours(self, prediction_id: str, count: int = 5) -> Neighbours:
        """The rows that the model learned from and that are most like what it was asked here.

        Each with its row in the source, what rules did to it, and who answers for it.

        Args:
            prediction_id: Of a logged prediction.
            count: How many, 1 to 100.

        Raises:
            NotFound: If there is no such prediction, the run of the model is not known, or no
                table of it has every feature.
            InvalidInput: If `count` is not in its range.
        """
        from everloop.governance.neighbours import find_neighbours

        prediction = self._predictions.get(prediction_id)
        deployment = self._deployment.deployment(prediction.deployment)
        version = self._registry.version(deployment.model, prediction.version)
        return find_neighbours(
            self._catalog, self._blobs, version.run_id, prediction.features, count
        )

    @action("loop:read", on="loop")
    def story(self, loop: str) -> list[StoryLine]:
        """What happened in a loop, and because of what; NotFound with near names."""
        with self._catalog.read() as tx:
            loops.loop(tx, loop)
        try:
            verdicts = self._evaluation.verdicts(loop)
        except NotFound:  # no model yet, so no verdict either
            verdicts = []
        with self._catalog.read() as tx:
            return tell(tx, loop, verdicts)

    @action("loop:read", on="loop")
    def service_levels(self, loop: str) -> list[MeasuredLevel]:
        """The promises of a loop's charter beside what was measured; NotFound with near names."""
        with self._catalog.read() as tx:
            spec = loops.loop(tx, loop)
            return measure_levels(tx, spec, lambda *span: self._latencies(loop, *span))

    @action("loop:read", on="loop")
    def maturity(self, loop: str = "") -> Maturity:
        """How far a loop (the only one if not given) has come, item by item, from what is recorded.

        Raises:
            NotFound: If there is no such loop, with near names, or none at all.
            InvalidInput: If there are several and none is named.
        """
        sources = Sources(
            self._data, self._tracking, self._registry, self._evaluation, self._deployment
        )
        return grade(collect(self._catalog, loop, sources))

    # --- inside ----------------------------------------------------------------------------------

    def _latencies(self, name: str, since: datetime, until: datetime) -> pa.Table | None:
        try:
            return self._predictions.read(
                name, since=since, until=until, columns=["latency_us", "arm"]
            )
        except NotFound:
            return None

    def _loop(self, name: str) -> LoopSpec | None:
        with self._catalog.read() as tx:
            try:
                return loops.loop(tx, name)
            except NotFound:
                return None

    def _run(self, version: ModelVersion) -> Run | None:
        return self._run_of(version.run_id)

    def _run_of(self, run_id: str) -> Run | None:
        try:
            return self._tracking.run(run_id) if run_id else None
        except NotFound:
            return None

    def _verdict(self, version: ModelVersion) -> Verdict | None:
        given = self._evaluation.verdicts(version.name, version.version)
        return max((v for v in given if v.passed), key=lambda v: v.id, default=None)

    def _datasets(self, version: ModelVersion, run: Run | None) -> list[DatasetUse]:
        """What the version says it was trained on, and what its run read besides."""
        wanted = [RunInput(dataset=n, version=v, digest="") for n, v in version.data.items()]
        if run is not None:
            wanted += [i for i in run.inputs if version.data.get(i.dataset) != i.version]
        owners = {dataset.name: dataset.owner for dataset in self._data.datasets()}
        found = []
        for item in wanted:
            terms = DatasetTerms(dataset=item.dataset)
            try:
                stored = self._data.version(item.dataset, item.version)
                rows, files, digest = stored.rows, stored.files, stored.digest
                terms = self._data.terms(item.dataset)
            except NotFound:  # data of another tracking system is known by name alone
                rows, files, digest = 0, 0, item.digest
            found.append(
                DatasetUse(
                    name=item.dataset,
                    version=item.version,
                    digest=digest,
                    rows=rows,
                    owner=owners.get(item.dataset, ""),
                    role=item.role,
                    files=files,
                    purpose=terms.purpose,
                    licence=terms.licence,
                )
            )
        return found

    def _changes(self, version: ModelVersion, datasets: list[DatasetUse]) -> list[RowChangeSummary]:
        """What rules did on the way: at the commits up to the version used, and in the run."""
        found = []
        for use in datasets:
            for change in self._data.changes(dataset=use.name):
                number = change.scope.rpartition("@")[2]
                is_commit = change.scope.startswith("dataset:") and number.isdigit()
                if is_commit and int(number) <= use.version:
                    found.append(change)
        if version.run_id:
            found += self._data.changes(scope=f"run:{version.run_id}")
        return found


def _is_about(receipt: Receipt, name: str) -> bool:
    """Whether an erasure was of this dataset, or took rows from it."""
    touched = {found.ref.partition("@")[0] for found in receipt.erased.versions}
    return receipt.dataset == name or name in touched
