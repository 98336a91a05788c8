"""Statements that remove for good what was deleted long ago; objects are not touched here.

A run that a model or dataset version came from stays, as does a logged model that one names: from
a version one must be able to walk back to what made it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row, and_, delete, or_, select, update

from everloop.catalog import tables
from everloop.catalog.tables import artifacts, experiments, logged_models, memos, runs, step_runs
from everloop.catalog.transaction import Transaction
from everloop.core.places import path_within

__all__ = ["purge"]

# Conditions in one statement; far below what the databases take.
_AT_ONCE = 500


def purge(tx: Transaction, before: datetime) -> tuple[dict[str, int], int]:
    """Remove what was deleted at or before `before`.

    Returns:
        How many of each kind, and how many runs and logged models were kept as a version names
        them.
    """
    # Deleted by a release that did not note when: their window begins now.
    undated = (runs.c.lifecycle == "deleted", runs.c.deleted_at.is_(None))
    tx.execute(update(runs).where(*undated).values(deleted_at=tx.now))
    counts: Counter[str] = Counter()
    trash = tables.trash
    for row in tx.all(select(trash.c.kind).where(trash.c.deleted_at <= before)):
        counts[row.kind] += 1
    tx.execute(delete(trash).where(trash.c.deleted_at <= before))
    named = _named(tx)
    kept = _purge_runs(tx, before, named, counts) + _purge_models(tx, before, named, counts)
    _purge_experiments(tx, before, counts)
    plural = {f"{kind}s": count for kind, count in sorted(counts.items()) if count}
    return plural, kept


def _named(tx: Transaction) -> set[str]:
    """Ids of runs and logged models that a version names, also one that can be restored."""
    versions, data = tables.model_versions, tables.dataset_versions
    named = {row.run_id for row in tx.all(select(data.c.run_id).distinct())}
    found = [
        (row.run_id, row.manifest) for row in tx.all(select(versions.c.run_id, versions.c.manifest))
    ]
    for row in tx.all(select(tables.trash.c.body)):
        found += [(v["run_id"], v["manifest"]) for v in row.body["model_versions"]]
    for run_id, manifest in found:
        named.add(run_id)
        named.update(re.split(r"[/:]+", manifest["source"]))
    return named - {""}


def _purge_runs(tx: Transaction, before: datetime, named: set[str], counts: Counter[str]) -> int:
    columns = (runs.c.pk, runs.c.id, runs.c.experiment_pk, experiments.c.location)
    idle = or_(runs.c.lease_until.is_(None), runs.c.lease_until < tx.now)
    old = and_(runs.c.lifecycle == "deleted", runs.c.deleted_at <= before, idle)
    past = tx.all(select(*columns).join(experiments).where(old))
    going = [row for row in past if row.id not in named]
    for rows in _chunks(going):
        pks, ids = [row.pk for row in rows], [row.id for row in rows]
        for table in (
            tables.run_params, tables.run_tags, tables.run_inputs, tables.run_outputs,
            tables.run_model_inputs, tables.metric_points, tables.metric_latest,
        ):  # fmt: skip
            tx.execute(delete(table).where(table.c.run_pk.in_(pks)))
        for named_by in (step_runs, tables.trace_runs):
            tx.execute(delete(named_by).where(named_by.c.run_id.in_(ids)))
        unused = and_(memos.c.run_id.in_(ids), memos.c.key.not_in(select(step_runs.c.key)))
        counts["memo"] += tx.execute(delete(memos).where(unused)).rowcount
        for row in rows:
            changes = tables.row_changes
            tx.execute(delete(changes).where(_under(tx, changes.c.scope, f"run:{row.id}")))
            for folder in _folders(row):
                counts["artifact"] += _drop_artifacts(tx, f"{folder}/{row.id}")
        _drop_edges(tx, [f"run:{id_}" for id_ in ids])
        counts["run"] += tx.execute(delete(runs).where(runs.c.pk.in_(pks))).rowcount
    return len(past) - len(going)


def _purge_models(tx: Transaction, before: datetime, named: set[str], counts: Counter[str]) -> int:
    old = and_(logged_models.c.status == "deleted", logged_models.c.updated_at <= before)
    within = logged_models.c.experiment_pk.in_(select(experiments.c.pk).where(_gone(before)))
    columns = (logged_models.c.id, logged_models.c.experiment_pk, experiments.c.location)
    past = tx.all(select(*columns).join(experiments).where(or_(old, within)))
    going = [row for row in past if row.id not in named]
    named_by = (tables.logged_model_metrics, tables.run_outputs, tables.run_model_inputs)
    for rows in _chunks(going):
        ids = [row.id for row in rows]
        for table in named_by:
            tx.execute(delete(table).where(table.c.model_id.in_(ids)))
        for row in rows:
            for folder in _folders(row):
                counts["artifact"] += _drop_artifacts(tx, f"{folder}/models/{row.id}")
        _drop_edges(tx, [f"logged_model:{id_}" for id_ in ids])
        gone = tx.execute(delete(logged_models).where(logged_models.c.id.in_(ids)))
        counts["logged_model"] += gone.rowcount
    return len(past) - len(going)


def _purge_experiments(tx: Transaction, before: datetime, counts: Counter[str]) -> None:
    held = [select(table.c.experiment_pk) for table in (runs, logged_models)]
    empty = [experiments.c.pk.not_in(query) for query in held]
    for row in tx.all(select(experiments.c.pk).where(_gone(before), *empty)):
        counts["artifact"] += _drop_artifacts(tx, str(row.pk))
        counts["trace"] += _drop_traces(tx, row.pk)
        tx.execute(delete(experiments).where(experiments.c.pk == row.pk))
        counts["experiment"] += 1


def _drop_traces(tx: Transaction, experiment_pk: int) -> int:
    traces = tables.traces
    within = select(traces.c.pk).where(traces.c.experiment_pk == experiment_pk)
    for table in (
        tables.trace_assessments, tables.trace_runs, tables.trace_spans, tables.trace_notes,
    ):  # fmt: skip
        tx.execute(delete(table).where(table.c.trace_pk.in_(within)))
    return tx.execute(delete(traces).where(traces.c.experiment_pk == experiment_pk)).rowcount


def _gone(before: datetime) -> Any:
    # Clients count on the experiment "0"; its runs go, it stays.
    return and_(
        experiments.c.lifecycle == "deleted",
        experiments.c.updated_at <= before,
        experiments.c.pk != 0,
    )


def _drop_artifacts(tx: Transaction, folder: str) -> int:
    return tx.execute(delete(artifacts).where(_under(tx, artifacts.c.path, folder))).rowcount


def _folders(row: Row[Any]) -> Iterator[str]:
    """Where in this store the files of an experiment's runs may lie; none of them is elsewhere."""
    yield str(row.experiment_pk)
    if path := path_within(row.location):
        yield path


def _drop_edges(tx: Transaction, subjects: list[str]) -> None:
    edges = tables.lineage_edges
    where = or_(edges.c.source.in_(subjects), edges.c.target.in_(subjects))
    tx.execute(delete(edges).where(where))


def _under(tx: Transaction, column: Any, folder: str) -> Any:
    return or_(column == folder, tx.within(column, folder))


def _chunks(rows: Sequence[Row[Any]]) -> Iterator[Sequence[Row[Any]]]:
    return (rows[start : start + _AT_ONCE] for start in range(0, len(rows), _AT_ONCE))
