"""From a prediction to the rows that its model learned from and that are most like it.

The table is the last one of the model's run that has every feature. The distance is the
heterogeneous value difference of Wilson & Martinez, "Improved Heterogeneous Distance Functions"
(Journal of Artificial Intelligence Research 6, 1997), with overlap for what is no number: the root
of the sum over the features of d², where d is |a - b| / (4 standard deviations of the table) for
numbers, 0 or 1 for all else, and 1 where one of the two is missing (0 where both are).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from everloop.catalog import ledger
from everloop.catalog.engine import Catalog
from everloop.core.dataset import DatasetVersion, RowChange, RowChangeSummary
from everloop.data.by_key import rows_by_key
from everloop.data.ledger import masked, plain, rows_of_keys
from everloop.data.versions import version_of
from everloop.data.whereabouts import StoredTable, open_table, stored_tables
from everloop.errors import InvalidInput, NotFound
from everloop.governance.records import Neighbour, Neighbours
from everloop.ports.blobs import BlobStore

__all__ = ["METHOD", "distances", "find_neighbours"]

METHOD = (
    "root of the sum of d²: d is |a - b| / (4 standard deviations) for numbers, 0 or 1 for all "
    "else, 1 where one is missing (Wilson & Martinez 1997)"
)
_MOST = 100


class _Found(NamedTuple):
    """The table that a model was trained on, as far as that is known."""

    step: str
    table: StoredTable


def find_neighbours(
    catalog: Catalog,
    blobs: BlobStore,
    run_id: str,
    features: Mapping[str, Any],
    count: int,
) -> Neighbours:
    """The `count` rows of the training table of a run that are nearest to `features`.

    Raises:
        InvalidInput: If `count` is not 1 to 100.
        NotFound: If the run is not known, or none of its tables has every feature.
    """
    if not 1 <= count <= _MOST:
        raise InvalidInput(f"1 to {_MOST} neighbours, not {count}")
    found = _training_table(catalog, blobs, run_id, features)
    rows = open_table(blobs, found.table.digest)
    distance = distances(rows, features)
    order = _nearest(distance, count)
    near = rows.take(pa.array(order))
    with catalog.read() as tx:
        hidden = ledger.personal_of(tx, [name for name, _ in found.table.sources or ()])
    shown = list(plain(masked(near.select(list(features)), hidden)))
    traced = _trace(catalog, blobs, found.table, near, run_id)
    return Neighbours(
        run=run_id,
        step=found.step,
        rows=rows.num_rows,
        method=METHOD,
        neighbours=tuple(
            Neighbour(distance=float(distance[at]), features=values, **of)
            for at, values, of in zip(order.tolist(), shown, traced.rows, strict=True)
        ),
        source=traced.source,
        followed=traced.told,
    )


def _training_table(
    catalog: Catalog, blobs: BlobStore, run_id: str, features: Mapping[str, Any]
) -> _Found:
    with catalog.read() as tx:
        steps = ledger.steps_of(tx, run_id) if run_id else None
    if steps is None:
        raise NotFound(
            "the run that trained the model is not known here",
            hint="a model that a pipeline of this workspace registered has one",
        )
    lacking: set[str] = set(features)
    for step in reversed(steps):
        for table in stored_tables(blobs, step.value):
            if blobs.exists(table.digest):
                names = open_table(blobs, table.digest).column_names
                if set(features) <= set(names):
                    return _Found(step.step, table)
                lacking = min(lacking, set(features) - set(names), key=len)
    raise NotFound(
        f"no table that a step of run {run_id} returned has every feature of the model",
        hint=f"the nearest one lacks {', '.join(sorted(lacking)[:5])}; neighbours need a step that "
        "returns the rows which the model is trained on",
    )


def distances(rows: pa.Table, features: Mapping[str, Any]) -> np.ndarray:
    """How far each row is from `features`, 0 upwards, no unit; see the module for the method."""
    total = np.zeros(rows.num_rows)
    for name, value in features.items():
        column = rows.column(name)
        if _is_number(column.type):
            total += _of_numbers(column, value) ** 2
        else:
            total += _of_others(column, value) ** 2
    return np.sqrt(total)


def _is_number(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    )


def _of_numbers(column: pa.ChunkedArray, value: Any) -> np.ndarray:
    values = pc.fill_null(column.cast(pa.float64(), safe=False), np.nan).to_numpy()
    missing = np.isnan(values)
    asked = float("nan") if value is None else float(value)
    if np.isnan(asked):
        return np.where(missing, 0.0, 1.0)
    known = values[~missing]
    spread = float(known.std()) if known.size else 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        far = np.abs(values - asked)
        if not spread or not np.isfinite(spread):
            return np.where(missing | (far != 0), 1.0, 0.0)
        return np.where(missing, 1.0, far / (4 * spread))


def _of_others(column: pa.ChunkedArray, value: Any) -> np.ndarray:
    missing = column.is_null().to_numpy()
    if value is None:
        return np.where(missing, 0.0, 1.0)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_timestamp(column.type) and isinstance(value, str):
        value = datetime.fromisoformat(value)
    try:
        same = pc.fill_null(pc.equal(column, pa.scalar(value).cast(column.type)), False)
    except pa.ArrowException:  # a value of another kind equals none
        return np.ones(len(column))
    return np.where(same.to_numpy(), 0.0, 1.0)


def _nearest(distance: np.ndarray, count: int) -> np.ndarray:
    """The rows of least distance, of equal ones the first."""
    if len(distance) > count:
        bound = np.partition(distance, count - 1)[count - 1]
        near = np.flatnonzero(distance <= bound)
    else:
        near = np.arange(len(distance))
    return near[np.argsort(distance[near], kind="stable")][:count]


# Where the rows come from


class _Traced(NamedTuple):
    """For each row what is known of where it comes from, and in words how that was found."""

    rows: list[dict[str, Any]]
    source: str
    told: str


def _trace(
    catalog: Catalog, blobs: BlobStore, table: StoredTable, near: pa.Table, run_id: str
) -> _Traced:
    nothing: list[dict[str, Any]] = [{"key": {}} for _ in range(near.num_rows)]
    sources = table.sources or ()
    made_of = ", ".join(f"{name}@{number}" for name, number in sources) or "versions nobody noted"
    if not table.key or not set(table.key) <= set(near.column_names):
        told = f"the rows carry no key: it is known only that the table was made of {made_of}"
        return _Traced(nothing, "", told)
    with catalog.read() as tx:
        versions = [version_of(tx, name, number) for name, number in sources]
        mine = next((v for v in versions if set(v.schema.key) == set(table.key)), None)
        if mine is None:
            told = f"no version among {made_of} has the key {', '.join(table.key)}"
            return _Traced(nothing, "", told)
        owner = ledger.beside(tx, mine.dataset).owner
        changes = [
            change
            for change in ledger.changes(tx, dataset=mine.dataset)
            if _is_before(change, mine, run_id)
        ]
        hidden = ledger.personal_of(tx, [mine.dataset])
    names = list(mine.schema.key)
    keys = near.select(names)
    by_row = _changes_of(blobs, changes, keys, hidden)
    found = rows_by_key(blobs, mine, keys, list(mine.schema.names))
    values = iter(plain(masked(found.rows, hidden)))
    told_keys = plain(masked(keys, hidden))
    others = ", ".join(v.ref for v in versions if v is not mine)
    told = f"by the key {', '.join(names)} to {mine.ref}"
    if others:
        told += f"; values of {others} were joined to them, which is known by step and not by row"
    rows = [
        {
            "key": key,
            "row": next(values) if there else None,
            "changes": tuple(said),
            "owners": tuple(dict.fromkeys(w for w in (owner, *(c.owner for c in said)) if w)),
        }
        for key, there, said in zip(told_keys, found.there.tolist(), by_row, strict=True)
    ]
    return _Traced(rows, mine.ref, told)


def _is_before(change: RowChangeSummary, version: DatasetVersion, run_id: str) -> bool:
    kind, _, rest = change.scope.partition(":")
    if kind == "run":
        return rest.partition("/")[0] == run_id
    number = rest.rpartition("@")[2]
    return number.isdigit() and int(number) <= version.number


def _changes_of(
    blobs: BlobStore, changes: Sequence[RowChangeSummary], keys: pa.Table, hidden: set[str]
) -> list[list[RowChange]]:
    found: list[list[RowChange]] = [[] for _ in range(keys.num_rows)]
    for change in changes:
        for n, row in rows_of_keys(blobs, change, keys, hidden):
            found[n].append(row)
    return found
