"""TrackingService: experiments, runs, metrics, parameters, tags, inputs and artifacts."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import delete, update

from everloop.access.policy import Authorizer
from everloop.access.service import Service, action
from everloop.catalog.engine import Catalog
from everloop.catalog.tables import (
    run_model_inputs,
    run_outputs,
    run_tags,
    runs,
)
from everloop.catalog.transaction import Transaction
from everloop.core.context import current_principal
from everloop.core.machines import RunState
from everloop.core.run import Metric, Run, RunInput, RunOutput, RunPage
from everloop.errors import InvalidInput, NotFound, StateError
from everloop.ports.blobs import BlobStore
from everloop.tracking import models as logged
from everloop.tracking.artifacts import ArtifactMethods, FileGroups
from everloop.tracking.experiments import ExperimentMethods, Lifecycle, experiment_row, make_default
from everloop.tracking.groups import PointGroups
from everloop.tracking.intake import IntakeMethods
from everloop.tracking.leases import lease_end
from everloop.tracking.limits import (
    MAX_TAG,
    check_inputs,
    check_log,
    check_page,
    refuse,
    text_faults,
)
from everloop.tracking.owned import OwnedRunMethods
from everloop.tracking.points import MetricWriter, latest_points
from everloop.tracking.runs import page_of_runs
from everloop.tracking.series import history_points, sample_points
from everloop.tracking.store import (
    active_run,
    add_inputs,
    insert_run,
    not_active,
    open_experiment,
    put_params,
    put_tags,
    read_run,
    run_row,
)

__all__ = ["TrackingService"]

_BAD_NAME = "Invalid value for parameter 'run_name' supplied"
_ENDED: dict[str, str] = {
    "finished": "run.Finished",
    "failed": "run.Failed",
    "killed": "run.Failed",
}


class TrackingService(ExperimentMethods, ArtifactMethods, IntakeMethods, OwnedRunMethods, Service):
    """Experiments and runs, as every tracking client knows them."""

    area = "tracking"

    def __init__(self, catalog: Catalog, blobs: BlobStore, authorizer: Authorizer) -> None:
        self._catalog = catalog
        self._blobs = blobs
        self._authorizer = authorizer
        self._metrics = MetricWriter()
        self._groups = PointGroups(catalog, self._metrics)
        self._files = FileGroups(catalog, blobs)
        make_default(catalog)

    # Runs

    @action("run:create", on="experiment")
    def create_run(
        self,
        experiment: str = "Default",
        *,
        name: str = "",
        id: str = "",
        pipeline: str = "",
        params: dict[str, str] | None = None,
        tags: dict[str, str] | None = None,
        code: str = "",
        git: dict[str, str] | None = None,
        environment: dict[str, str] | None = None,
        trigger: str = "",
        actor: str = "",
        started_at: datetime | None = None,
        owner: str = "",
        lease_s: float = 0,
    ) -> Run:
        """Start a run in the experiment of this name (made if new) or id.

        Args:
            experiment: Name; digits alone are the id of an experiment that exists.
            name: For people; made up if not given.
            id: 32 hex digits, made if not given.
            pipeline: For runs of our own engine.
            params: Parameters.
            tags: Tags.
            code: Digest of the code snapshot.
            git: Commit, branch, dirty.
            environment: Python, platform, distributions.
            trigger: Id of the firing that started it.
            actor: Who runs it; whoever is asking if not given, or if they logged in.
            started_at: UTC; now if not given.
            owner: The process that keeps it, as :func:`everloop.core.owner.this_process` says.
            lease_s: Seconds until it counts as lost without a renewal; 0 means never.

        Raises:
            NotFound: If an id names no experiment.
            StateError: If the experiment is deleted.
        """
        check_log([], params or {}, tags or {}, of_client=False)
        refuse(_BAD_NAME, text_faults("run_name", name, longest=MAX_TAG))
        id_ = id or uuid.uuid4().hex
        with self._catalog.write() as tx:
            pk = self._open(tx, experiment)
            # A name that a client states is a name only where nobody logs in.
            values: dict[str, Any] = {"actor": actor} if actor and not current_principal() else {}
            if started_at is not None:
                values["started_at"] = started_at
            if lease_s:
                until = lease_end(tx, lease_s)
                values |= {"owner": owner, "fence": 1, "lease_until": until}
            run = insert_run(
                tx,
                id_,
                pk,
                params=params or {},
                tags=tags or {},
                name=name or logged.made_up_name(id_),
                pipeline=pipeline,
                code=code,
                git=git or {},
                environment=environment or {},
                trigger=trigger,
                **values,
            )
            tx.append("run.Started", f"run:{id_}", {"experiment": str(pk)})
        return run

    def _open(self, tx: Transaction, experiment: str) -> int:
        if not experiment.isdecimal():
            return open_experiment(tx, experiment)
        found = experiment_row(tx, experiment)
        if found.lifecycle != "active":
            raise not_active("experiment", found.id)
        return int(found.id)

    @action("run:read", on="id")
    def run(self, id: str) -> Run:
        """A run with parameters, tags, latest metrics, inputs and outputs.

        Raises:
            NotFound: If there is none.
        """
        with self._catalog.read() as tx:
            return read_run(tx, id)

    @action("run:read")
    def runs(
        self,
        experiments: list[str] | None = None,
        *,
        pipeline: str = "",
        filter: str = "",
        order_by: list[str] | None = None,
        lifecycle: Lifecycle = "active",
        limit: int = 1000,
        page_token: str = "",
        and_only: bool = False,
    ) -> RunPage:
        """Search runs.

        Args:
            experiments: Ids to look in; None for all.
            pipeline: Only runs of this pipeline.
            filter: Such as ``metrics.auc > 0.8 AND params.lr = '0.1'``; see
                ``everloop.tracking.search``.
            order_by: ``"metrics.auc DESC"`` and the like; newest first after those.
            lifecycle: Which to look among.
            limit: Most to return, 1 to 50,000.
            page_token: Of the page before; only with the same search.
            and_only: Refuse OR, NOT and parentheses, as MLflow does.

        Raises:
            InvalidInput: If filter, order, limit or token is wrong; says where.
        """
        check_page(limit)
        with self._catalog.read() as tx:
            return page_of_runs(
                tx,
                experiments=experiments,
                pipeline=pipeline,
                filter_=filter,
                order_by=order_by or [],
                lifecycle=lifecycle,
                limit=limit,
                page_token=page_token,
                and_only=and_only,
            )

    @action("run:write", on="id")
    def update_run(
        self,
        id: str,
        *,
        state: RunState | None = None,
        ended_at: datetime | None = None,
        name: str = "",
        error: str = "",
        tags: dict[str, str] | None = None,
    ) -> Run:
        """Change state, name or tags of a run that its client owns.

        Raises:
            NotFound: If there is none.
            StateError: If it is deleted, or belongs to the engine and `state` is given.
        """
        check_log([], {}, tags or {}, of_client=True)
        refuse(_BAD_NAME, text_faults("run_name", name, longest=MAX_TAG))
        with self._catalog.write() as tx:
            row = active_run(tx, id)
            if state is not None and row.pipeline and state != row.state:
                raise StateError(
                    f"run {id} is of pipeline {row.pipeline}, which keeps its state itself",
                    hint="stop or resume the pipeline",
                )
            values: dict[str, Any] = {}
            if state is not None:
                is_over = state not in ("queued", "running")
                values |= {"state": state, "ended_at": ended_at or (tx.now if is_over else None)}
            elif ended_at is not None:
                values["ended_at"] = ended_at
            values |= {"name": name} if name else {}
            values |= {"error": error} if error else {}
            if values:
                tx.execute(update(runs).where(runs.c.id == id).values(**values))
            put_tags(tx, row.pk, tags or {})
            if state in _ENDED and state != row.state:
                tx.append(_ENDED[state], f"run:{id}", {"state": state})
            return read_run(tx, id)

    @action("run:delete", on="id")
    def delete_run(self, id: str) -> None:
        """Mark a run as deleted; again does nothing."""
        self._mark_run(id, "deleted")

    @action("run:delete", on="id")
    def restore_run(self, id: str) -> None:
        """Bring a deleted run back; again does nothing."""
        self._mark_run(id, "active")

    def _mark_run(self, id_: str, lifecycle: str) -> None:
        with self._catalog.write() as tx:
            row = run_row(tx, id_)
            if row.lifecycle != lifecycle:
                at = tx.now if lifecycle == "deleted" else None
                values = {"lifecycle": lifecycle, "deleted_at": at}
                tx.execute(update(runs).where(runs.c.id == id_).values(**values))
                kind = "run.Deleted" if lifecycle == "deleted" else "run.Restored"
                tx.append(kind, f"run:{id_}")

    # What runs log

    @action("run:write", on="id")
    def log(
        self,
        id: str,
        metrics: list[Metric] | None = None,
        params: dict[str, str] | None = None,
        tags: dict[str, str] | None = None,
    ) -> None:
        """Log a batch in one transaction: all of it or nothing.

        The same point twice is one. Values of params above 6,000 and of tags above 8,000
        characters are cut.

        Raises:
            InvalidInput: With everything that is wrong or too much, or when a parameter changes.
            NotFound: If there is no such run.
            StateError: If it is deleted.
        """
        points = metrics or []
        check_log(points, params or {}, tags or {}, of_client=True)
        if not (params or tags) and self._log_known(id, points):
            return
        with self._catalog.write(ordered=False) as tx:
            row = active_run(tx, id)
            put_params(tx, row.pk, id, params or {})
            keys = self._write_points(tx, row, points)
            put_tags(tx, row.pk, tags or {})
        self._metrics.remember(keys)

    @action("run:write", on="id")
    def set_tag(self, id: str, key: str, value: str) -> None:
        """Set a tag, over what it was."""
        self.log(id, tags={key: value})

    @action("run:write", on="id")
    def delete_tag(self, id: str, key: str) -> None:
        """Delete a tag.

        Raises:
            NotFound: If the run has no such tag.
        """
        with self._catalog.write(ordered=False) as tx:
            pk = active_run(tx, id).pk
            gone = delete(run_tags).where(run_tags.c.run_pk == pk, run_tags.c.key == key)
            if tx.execute(gone).rowcount == 0:
                raise NotFound(
                    f"No tag with name: {key} in run with id {id}",
                    details={"kind": "tag", "name": key},
                )

    @action("run:write", on="id")
    def log_inputs(self, id: str, inputs: list[RunInput]) -> None:
        """Note dataset versions that a run read; saying it twice changes nothing.

        Raises:
            InvalidInput: If a text is too long.
        """
        check_inputs(inputs)
        with self._catalog.write(ordered=False) as tx:
            add_inputs(tx, active_run(tx, id), inputs)

    @action("run:write", on="id")
    def log_model_inputs(self, id: str, model_ids: list[str]) -> None:
        """Note logged models that a run read; saying it twice changes nothing."""
        with self._catalog.write(ordered=False) as tx:
            pk = active_run(tx, id).pk
            rows = [{"run_pk": pk, "model_id": model_id} for model_id in model_ids]
            tx.upsert(run_model_inputs, rows, ["run_pk", "model_id"])

    @action("run:write", on="id")
    def log_outputs(self, id: str, outputs: list[RunOutput]) -> None:
        """Note logged models that a run produced."""
        with self._catalog.write(ordered=False) as tx:
            pk = active_run(tx, id).pk
            rows = [{"run_pk": pk, "model_id": o.model_id, "step": o.step} for o in outputs]
            tx.upsert(run_outputs, rows, ["run_pk", "model_id"])

    @action("run:read", on="id")
    def history(
        self,
        id: str,
        key: str,
        *,
        limit: int = 0,
        after: Metric | None = None,
        order: Literal["time", "step"] = "time",
    ) -> list[Metric]:
        """All points of a metric; none for a run or key that is not there.

        Args:
            id: The run.
            key: The metric.
            limit: Most to return; 0 for all.
            after: The last point of the page before.
            order: By time, step, value, or by step, time, value.
        """
        with self._catalog.direct(write=False) as tx:
            return history_points(
                tx.cursor, tx.dialect, id, key, limit=limit, after=after, order=order
            )

    @action("run:read")
    def latest_metrics(self, ids: list[str]) -> dict[str, list[Metric]]:
        """The latest point of each metric of each run; runs without metrics are left out."""
        with self._catalog.read() as tx:
            return latest_points(tx, ids)

    @action("run:read")
    def sampled_history(
        self,
        ids: list[str],
        key: str,
        *,
        points: int = 320,
        start_step: int | None = None,
        end_step: int | None = None,
    ) -> dict[str, list[Metric]]:
        """At most `points` points a run, evenly by step, always with the first and last step.

        Where several points lie at one step all of them count as one, but where there are more than
        ten of them on average, as in runs that count no steps, they are spread by time.

        Args:
            ids: Up to 100 runs.
            key: The metric.
            points: 1 to 2,500.
            start_step: First step; None for the beginning.
            end_step: Last step; None for the end.

        Raises:
            InvalidInput: If a number is out of its range.
        """
        faults = []
        if not 1 <= len(ids) <= 100:
            faults.append(("run_ids", f"{len(ids)} runs, 1 to 100 are allowed"))
        if not 1 <= points <= 2500:
            faults.append(("max_results", f"max_results must be between 1 and 2500, got {points}"))
        if start_step is not None and end_step is not None and start_step > end_step:
            said = f"end_step must be greater than start_step. Got {start_step} and {end_step}"
            faults.append(("end_step", said))
        if faults:
            raise InvalidInput("Invalid value supplied", faults)
        with self._catalog.direct(write=False) as tx:
            return {
                id_: sample_points(tx.cursor, tx.dialect, id_, key, points, start_step, end_step)
                for id_ in ids
            }
