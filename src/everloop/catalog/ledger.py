"""Statements over the row ledger and work lists, and over the steps that rows go through."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlalchemy.engine import Row

from everloop.catalog.tables import (
    dataset_versions,
    datasets,
    memos,
    row_changes,
    run_inputs,
    runs,
    step_runs,
)
from everloop.catalog.transaction import Transaction
from everloop.core.dataset import MAIN, DatasetVersion, RowChangeSummary
from everloop.core.work import LedgerTotal

__all__ = [
    "Beside",
    "StepOutput",
    "beside",
    "changes",
    "find_change",
    "latest_of",
    "personal",
    "personal_of",
    "steps_of",
    "totals",
    "version_read",
]

# Values in one statement; far below what the databases take.
_AT_ONCE = 500


class Beside(NamedTuple):
    """What lies beside a dataset.

    Attributes:
        owner: Of the dataset, or empty.
        found: By name the latest version of each that was asked for and is there.
    """

    owner: str
    found: dict[str, DatasetVersion]


def beside(tx: Transaction, name: str, *names: str) -> Beside:
    """Who answers for the dataset `name`, and the latest versions of `names`, in one statement."""
    owner, found = "", {}
    for row in _latest(tx, datasets.c.name.in_([name, *names])):
        if row["of"] == name:
            owner = row["owner"]
        if row["of"] in names and row["number"] is not None:
            found[row["of"]] = _version(row)
    return Beside(owner, found)


def latest_of(tx: Transaction, ends: tuple[str, ...]) -> list[DatasetVersion]:
    """The latest versions of all datasets whose names end like this and that have rows."""
    wanted = or_(*(datasets.c.name.endswith(end, autoescape=True) for end in ends))
    return [_version(row) for row in _latest(tx, wanted) if row["rows"]]


def _latest(tx: Transaction, wanted: ColumnElement[bool]) -> list[dict[str, Any]]:
    table = dataset_versions
    is_latest = and_(
        table.c.dataset == datasets.c.name,
        table.c.number == datasets.c.latest,
        table.c.branch == MAIN,
    )
    both = datasets.outerjoin(table, is_latest)
    query = select(datasets.c.name.label("of"), datasets.c.owner, table).select_from(both)
    query = query.where(wanted).order_by(datasets.c.name)
    return [{str(k): v for k, v in row._asdict().items()} for row in tx.all(query)]


def _version(row: dict[str, Any]) -> DatasetVersion:
    bare = {name: value for name, value in row.items() if name not in ("of", "owner")}
    return msgspec.convert(bare, DatasetVersion)


def changes(
    tx: Transaction,
    *,
    scope: str = "",
    dataset: str = "",
    rule: str = "",
    action: str = "",
    limit: int = 0,
) -> list[RowChangeSummary]:
    """The ledger, newest first.

    A `scope` includes what lies below it (``run:id/step``), and of a run what was done to the rows
    when the results were made that it took from the store.

    Args:
        limit: Most entries; 0 is all.
    """
    query = select(row_changes).where(*_wanted(tx, scope, dataset, rule, action))
    query = query.order_by(row_changes.c.pk.desc())
    return [_change(row) for row in tx.all(query.limit(limit) if limit else query)]


def _change(row: Row[Any]) -> RowChangeSummary:
    values: dict[str, Any] = row._asdict()
    del values["pk"]
    return RowChangeSummary(**values)


def totals(
    tx: Transaction, *, scope: str = "", dataset: str = "", rule: str = "", action: str = ""
) -> list[LedgerTotal]:
    """What each rule did in all, by dataset, rule, action and owner; the most rows first."""
    table = row_changes
    by = (table.c.dataset, table.c.rule, table.c.action, table.c.owner)
    rows = func.sum(table.c.rows)
    query = select(
        *by,
        func.count().label("entries"),
        rows.label("total"),
        func.min(table.c.at).label("first_at"),
        func.max(table.c.at).label("last_at"),
    )
    query = query.where(*_wanted(tx, scope, dataset, rule, action)).group_by(*by)
    return [
        LedgerTotal(
            dataset=row.dataset,
            rule=row.rule,
            action=row.action,
            owner=row.owner,
            entries=row.entries,
            rows=int(row.total),
            first_at=row.first_at,
            last_at=row.last_at,
        )
        for row in tx.all(query.order_by(rows.desc(), *by))
    ]


def _wanted(
    tx: Transaction, scope: str, dataset: str, rule: str, action: str
) -> list[ColumnElement[bool]]:
    table = row_changes
    wanted: list[ColumnElement[bool]] = []
    if scope:
        below = table.c.scope.startswith(scope + "/", autoescape=True)
        same = [scope, *_taken_from(tx, scope)]
        wanted.append(or_(table.c.scope.in_(same), below))
    if dataset:
        wanted.append(table.c.dataset == dataset)
    if rule:
        wanted.append(table.c.rule == rule)
    if action:
        wanted.append(table.c.action == action)
    return wanted


def find_change(tx: Transaction, dataset: str, detail: str) -> RowChangeSummary | None:
    """The newest entry whose rows are the object `detail`; None if there is none."""
    table = row_changes
    query = select(table).where(table.c.dataset == dataset, table.c.detail == detail)
    row = tx.first(query.order_by(table.c.pk.desc()).limit(1))
    return None if row is None else _change(row)


def personal(tx: Transaction, changes: Iterable[RowChangeSummary]) -> set[str]:
    """Names of columns of personal data in the datasets that these rows come from.

    In a step a row may have columns of every dataset that the run read.
    """
    changes = list(changes)
    wanted = {change.dataset for change in changes}
    run_ids = {c.scope[4:].partition("/")[0] for c in changes if c.scope.startswith("run:")}
    query = select(run_inputs.c.dataset).distinct().join(runs, runs.c.pk == run_inputs.c.run_pk)
    for part in _parts(run_ids):
        wanted.update(row.dataset for row in tx.all(query.where(runs.c.id.in_(part))))
    return personal_of(tx, wanted)


def personal_of(tx: Transaction, names: Iterable[str]) -> set[str]:
    """Names of columns of personal data in any version of these datasets."""
    found: set[str] = set()
    table = dataset_versions
    for part in _parts(set(names)):
        query = select(table.c.schema).where(table.c.dataset.in_(part)).distinct()
        for row in tx.all(query):
            schema: Any = row.schema
            found.update(f["name"] for f in schema.get("fields", ()) if f.get("pii"))
    return found


def _parts(names: set[str]) -> Iterator[list[str]]:
    every = sorted(names)
    for start in range(0, len(every), _AT_ONCE):
        yield every[start : start + _AT_ONCE]


def _taken_from(tx: Transaction, scope: str) -> list[str]:
    """The steps of other runs whose results a run took from the store, as scopes."""
    kind, _, rest = scope.partition(":")
    if kind != "run":
        return []
    run_id, _, step = rest.partition("/")
    query = select(memos.c.run_id, step_runs.c.step).distinct()
    query = query.join(step_runs, step_runs.c.key == memos.c.key)
    query = query.where(step_runs.c.run_id == run_id, step_runs.c.outcome == "cached")
    if step:
        query = query.where(step_runs.c.step == step)
    return [f"run:{row.run_id}/{row.step}" for row in tx.all(query)]


class StepOutput(NamedTuple):
    """A step of a run and what it gave.

    Attributes:
        outcome: ``ran``, ``cached`` or ``failed``.
        made_by: The run that computed the result: another one of a cached step.
        value: The stored form of the result, as JSON; None where it is not kept.
    """

    step: str
    seq: int
    outcome: str
    made_by: str
    ended_at: datetime
    value: Any


def steps_of(tx: Transaction, run_id: str) -> list[StepOutput] | None:
    """The steps of a run in the order of their ends; None if there is no such run."""
    if tx.first(select(runs.c.id).where(runs.c.id == run_id)) is None:
        return None
    both = step_runs.outerjoin(memos, memos.c.key == step_runs.c.key)
    query = select(
        step_runs.c.step, step_runs.c.seq, step_runs.c.outcome, step_runs.c.ended_at,
        memos.c.run_id.label("made_by"), memos.c.value,
    )  # fmt: skip
    query = query.select_from(both).where(step_runs.c.run_id == run_id)
    return [
        StepOutput(
            row.step,
            row.seq,
            row.outcome,
            row.made_by if row.outcome == "cached" and row.made_by else run_id,
            row.ended_at,
            row.value,
        )
        for row in tx.all(query.order_by(step_runs.c.seq))
    ]


def version_read(tx: Transaction, run_id: str, dataset: str) -> int:
    """The number of the version of `dataset` that a run read, the latest if several; else 0."""
    table = run_inputs
    query = select(func.max(table.c.version)).where(
        table.c.run_pk == select(runs.c.pk).where(runs.c.id == run_id).scalar_subquery(),
        table.c.dataset == dataset,
    )
    return int(tx.scalar(query) or 0)
