"""The part of the tracking service that keeps experiments."""

from __future__ import annotations

from typing import Literal

from sqlalchemy import select, update

from everloop.access.service import action
from everloop.catalog.engine import Catalog
from everloop.catalog.tables import experiments, run_inputs, runs
from everloop.catalog.transaction import Transaction
from everloop.core.run import Experiment, ExperimentPage, UsedDataset
from everloop.errors import Conflict, NotFound
from everloop.tracking import models as logged
from everloop.tracking.limits import (
    MAX_EXPERIMENT_TAG,
    MAX_NAME,
    check_page,
    check_tags,
    refuse,
    text_faults,
)
from everloop.tracking.places import check_location
from everloop.tracking.store import experiment_of, not_active

__all__ = ["ExperimentMethods", "Lifecycle", "experiment_row", "make_default"]

_MOST_DATASETS = 1000

Lifecycle = Literal["active", "deleted", "all"]


def experiment_row(tx: Transaction, id_: str) -> Experiment:
    """The experiment with this id, also a deleted one.

    Raises:
        NotFound: If there is none.
    """
    if id_.isdecimal() and id_.isascii() and len(id_) < 20 and int(id_) < 1 << 63:
        row = tx.first(select(experiments).where(experiments.c.pk == int(id_)))
        if row is not None:
            return experiment_of(row)
    raise NotFound(
        f"No Experiment with id={id_} exists", details={"kind": "experiment", "name": id_}
    )


def make_default(catalog: Catalog) -> None:
    """Make the experiment "0" called Default, which clients count on before they made any."""
    with catalog.read() as tx:
        if tx.first(select(experiments.c.pk).where(experiments.c.pk == 0)) is not None:
            return
    with catalog.write() as tx:
        fresh = {"pk": 0, "name": "Default", "lifecycle": "active", "tags": {}}
        tx.insert_new(experiments, fresh | {"created_at": tx.now, "updated_at": tx.now})


class ExperimentMethods:
    """Experiments. A name stays taken while its experiment is deleted and can be restored."""

    _catalog: Catalog

    @action("experiment:create", on="name")
    def create_experiment(
        self, name: str, tags: dict[str, str] | None = None, *, location: str = ""
    ) -> Experiment:
        """Make an experiment.

        Args:
            name: Unique, also among deleted ones.
            tags: Tags.
            location: URI under which clients put its artifacts; empty for a folder of its own in
                this store. Nothing is read or written there by us unless it is in this store.

        Raises:
            Conflict: If the name is taken, also by a deleted one.
            InvalidInput: If name, tags or location are malformed.
        """
        refuse(
            "Invalid value for parameter 'name' supplied",
            text_faults("name", name, longest=MAX_NAME, empty=False),
        )
        check_tags(tags or {}, longest=MAX_EXPERIMENT_TAG)
        if location:
            check_location(location)
        with self._catalog.write() as tx:
            fresh = {
                "name": name,
                "lifecycle": "active",
                "tags": tags or {},
                "location": location.rstrip("/"),
            }
            times = {"created_at": tx.now, "updated_at": tx.now}
            if not tx.insert_new(experiments, fresh | times):
                raise Conflict(
                    f"Experiment(name={name}) already exists",
                    hint="use it, restore it if it is deleted, or choose another name",
                    details={"winner": name},
                )
            found = tx.first(select(experiments).where(experiments.c.name == name))
            assert found is not None
            return experiment_of(found)

    @action("experiment:read", on="id")
    def experiment(self, id: str) -> Experiment:
        """The experiment with this id, also a deleted one.

        Raises:
            NotFound: If there is none.
        """
        with self._catalog.read() as tx:
            return experiment_row(tx, id)

    @action("experiment:read", on="name")
    def experiment_by_name(self, name: str) -> Experiment:
        """The experiment called `name`, also a deleted one.

        Raises:
            NotFound: If there is none; with the nearest names.
        """
        with self._catalog.read() as tx:
            row = tx.first(select(experiments).where(experiments.c.name == name))
            if row is not None:
                return experiment_of(row)
            names = [row.name for row in tx.all(select(experiments.c.name).limit(5000))]
        raise NotFound.named("experiment", name, names)

    @action("experiment:read")
    def experiments(self) -> list[Experiment]:
        """All active experiments, newest first."""
        query = select(experiments).where(experiments.c.lifecycle == "active")
        with self._catalog.read() as tx:
            rows = tx.all(query.order_by(experiments.c.created_at.desc(), experiments.c.pk))
        return [experiment_of(row) for row in rows]

    @action("experiment:read")
    def search_experiments(
        self,
        filter: str = "",
        *,
        order_by: list[str] | None = None,
        lifecycle: Lifecycle = "active",
        limit: int = 1000,
        page_token: str = "",
        and_only: bool = False,
    ) -> ExperimentPage:
        """Search experiments by ``name``, ``creation_time``, ``last_update_time`` and tags.

        Args:
            filter: See ``everloop.tracking.search``.
            order_by: ``"name ASC"`` and the like; newest first without it.
            lifecycle: Which to look among.
            limit: Most to return, 1 to 50,000.
            page_token: Of the page before.
            and_only: Refuse OR and parentheses, as MLflow does.
        """
        check_page(limit)
        query = select(experiments)
        if lifecycle != "all":
            query = query.where(experiments.c.lifecycle == lifecycle)
        with self._catalog.read() as tx:
            found = [experiment_of(row) for row in tx.all(query)]
        page, token = logged.page_of_experiments(
            found, filter, order_by or [], limit, page_token, and_only=and_only, view=lifecycle
        )
        return ExperimentPage(experiments=tuple(page), next_page_token=token)

    @action("experiment:write", on="id")
    def update_experiment(
        self,
        id: str,
        *,
        name: str = "",
        tags: dict[str, str] | None = None,
        delete_tag: str = "",
    ) -> Experiment:
        """Rename an active experiment, set tags, or delete one.

        Raises:
            NotFound: If there is no such experiment, or no such tag.
            StateError: If it is deleted.
            Conflict: If the new name is taken.
        """
        check_tags(tags or {}, longest=MAX_EXPERIMENT_TAG)
        refuse(
            "Invalid value for parameter 'new_name' supplied",
            text_faults("new_name", name, longest=MAX_NAME),
        )
        with self._catalog.write() as tx:
            old = experiment_row(tx, id)
            if old.lifecycle != "active":
                raise not_active("experiment", id)
            taken = select(experiments.c.pk).where(experiments.c.name == name)
            if name and name != old.name and tx.first(taken) is not None:
                raise Conflict(f"Experiment(name={name}) already exists", details={"winner": name})
            if delete_tag and delete_tag not in old.tags:
                raise NotFound(f"No tag with name: {delete_tag} in experiment with id {id}")
            merged = {**old.tags, **(tags or {})}
            merged.pop(delete_tag, None)
            values = {"name": name or old.name, "tags": merged, "updated_at": tx.now}
            tx.execute(update(experiments).where(experiments.c.pk == int(id)).values(**values))
            return experiment_row(tx, id)

    @action("experiment:read")
    def datasets_of(self, ids: list[str]) -> list[UsedDataset]:
        """Which datasets runs of these experiments read, and as what; at most 1,000.

        Args:
            ids: Of experiments; unknown ones have none.
        """
        keys = [int(id_) for id_ in ids if id_.isdecimal() and len(id_) < 19]
        of, columns = runs.c.experiment_pk, run_inputs.c
        query = (
            select(of, columns.dataset, columns.digest, columns.role)
            .join_from(run_inputs, runs, columns.run_pk == runs.c.pk)
            .where(of.in_(keys))
            .distinct()
            .order_by(of, columns.dataset, columns.digest, columns.role)
            .limit(_MOST_DATASETS)
        )
        with self._catalog.read() as tx:
            rows = tx.all(query)
        return [
            UsedDataset(
                experiment=str(row.experiment_pk),
                dataset=row.dataset,
                digest=row.digest,
                role=row.role,
            )
            for row in rows
        ]

    @action("experiment:delete", on="id")
    def delete_experiment(self, id: str) -> None:
        """Mark an experiment and its runs as deleted."""
        self._set_lifecycle(id, "deleted")

    @action("experiment:delete", on="id")
    def restore_experiment(self, id: str) -> None:
        """Bring a deleted experiment and its runs back."""
        self._set_lifecycle(id, "active")

    def _set_lifecycle(self, id_: str, lifecycle: str) -> None:
        with self._catalog.write() as tx:
            pk = int(experiment_row(tx, id_).id)
            values = {"lifecycle": lifecycle, "updated_at": tx.now}
            tx.execute(update(experiments).where(experiments.c.pk == pk).values(**values))
            of_it = update(runs).where(runs.c.experiment_pk == pk, runs.c.lifecycle != lifecycle)
            at = tx.now if lifecycle == "deleted" else None
            tx.execute(of_it.values(lifecycle=lifecycle, deleted_at=at))
            kind = "experiment.Deleted" if lifecycle == "deleted" else "experiment.Restored"
            tx.append(kind, f"experiment:{id_}")
