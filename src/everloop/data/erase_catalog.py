"""The rows of the catalog that an erasure looks at, and those that it changes itself.

Values of a subject stand there in JSON: results of steps, arguments of runs, summaries. Whatever
is signed or is the log of what happened is looked at and told, and never changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Column, Row, Table, Text, and_, or_, select, type_coerce

from everloop.catalog import datasets as statements
from everloop.catalog import tables
from everloop.catalog.transaction import Transaction
from everloop.catalog.types import Json
from everloop.core.dataset import DatasetVersion
from everloop.data.seek import ERASED, Sought, json_of

__all__ = [
    "PLACES",
    "Look",
    "Place",
    "looked",
    "models_of",
    "scrub_values",
    "spoken_of",
    "views_of",
]

#: JSON that is signed, is named by its content, or is the log: told of, never changed.
_FIXED = {
    "events.body": "entries of the event log",
    "model_versions.manifest": "manifests of models",
    "packages.manifest": "manifests of packages",
    "trash.body": "deleted models, until they are purged",
    "feature_definitions.body": "definitions of features",
}
#: JSON of objects and of what is looked at by itself.
_APART = {
    "dataset_versions.blocks", "dataset_versions.schema", "erasures.receipt", "erasures.work",
    "memos.parts", "memos.notes", "memos.value", "runs.environment", "runs.git",
}  # fmt: skip
#: Tables of names and values as text.
_PAIRS = (tables.run_params, tables.run_tags, tables.trace_notes)
_AT_ONCE = 500


class Look(NamedTuple):
    """What of the catalog names objects that may hold rows, in one state of it."""

    versions: list[DatasetVersion]
    #: By place, in the order of ``PLACES``.
    logs: dict[str, list[Row[Any]]]
    memos: list[tuple[str, str, str, str]]


class Place(NamedTuple):
    """A table whose rows name one object each.

    Attributes:
        kind: What a receipt calls the objects.
        key: The column that tells its rows apart.
        digest: The column that names the object.
    """

    kind: str
    table: Table
    key: str
    digest: str


#: Predictions stand before labels: which labels go follows from them.
PLACES = (
    Place("ledger", tables.row_changes, "pk", "detail"),
    Place("predictions", tables.prediction_segments, "id", "digest"),
    Place("labels", tables.label_batches, "id", "digest"),
    Place("artifact", tables.artifacts, "path", "digest"),
)


def looked(tx: Transaction, dataset: str) -> Look:
    """Look at the catalog; only at the versions and the ledger of `dataset` if it is not empty."""
    names = [dataset] if dataset else statements.names(tx)
    versions = [v for name in names for v in statements.versions(tx, name) if v.kind == "table"]
    logs = {}
    for place in PLACES:
        query = select(place.table)
        if dataset and place.kind == "ledger":
            query = query.where(place.table.c.dataset == dataset)
        logs[place.kind] = list(tx.all(query.order_by(place.table.c[place.key])))
    memos = tables.memos
    texts = [type_coerce(memos.c[name], Text) for name in ("value", "parts", "notes")]
    rows: Sequence[Any] = tx.all(select(memos.c.key, *texts))
    found = [(row[0], row[1], row[2], row[3]) for row in rows]
    return Look(versions, logs, found)


def scrub_values(tx: Transaction, sought: Sought, *, change: bool) -> tuple[Counter[str], set[str]]:
    """Replace the subject's values in the catalog's JSON and texts.

    Args:
        change: Else it is only counted.

    Returns:
        How many values by table and column, and the tables.
    """
    counts: Counter[str] = Counter()
    for table in tables.metadata.sorted_tables:
        for column in table.columns:
            name = f"{table.name}.{column.name}"
            if isinstance(column.type, Json) and name not in _APART and name not in _FIXED:
                for where, body in _bodies(tx, table, column, sought):
                    made, count = sought.without(body)
                    if count:
                        counts[f"values in {name}"] += count
                        if change:
                            tx.execute(table.update().where(where).values({column.name: made}))
    for table in _PAIRS:
        query = select(table).where(table.c.key.in_(sought.columns))
        for row in tx.all(query):
            if len(sought.columns) == 1 and sought.is_in_row({row.key: row.value}):
                counts[f"values in {table.name}"] += 1
                if change:
                    its = _key(table, row)
                    tx.execute(table.update().where(its).values(value=ERASED))
    return counts, {name.split()[-1].partition(".")[0] for name in counts}


def spoken_of(tx: Transaction, sought: Sought) -> Iterator[str]:
    """What of the catalog names the subject and cannot be changed, in words."""
    for name, what in _FIXED.items():
        table = tables.metadata.tables[name.partition(".")[0]]
        column = table.columns[name.partition(".")[2]]
        found = sum(sought.is_in_json(body) for _, body in _bodies(tx, table, column, sought))
        if found:
            yield f"{found} {what} name the subject"


def _bodies(
    tx: Transaction, table: Table, column: Column[Any], sought: Sought
) -> Iterator[tuple[Any, Any]]:
    """JSON that speaks of a column of the subject, with what selects its row."""
    text = type_coerce(column, Text)
    told = or_(*(text.contains(f'"{name}"', autoescape=True) for name in sought.columns))
    keys = [key for key in table.primary_key.columns if key is not column]
    for row in tx.all(select(*keys, text.label("body_text")).where(column.is_not(None), told)):
        body = json_of(row.body_text)
        if body is not None:
            yield _key(table, row), body


def _key(table: Table, row: Row[Any]) -> Any:
    return and_(*(key == getattr(row, key.name) for key in table.primary_key.columns))


def models_of(tx: Transaction, subjects: Iterable[str]) -> list[str]:
    """The model versions that came of these subjects, by the edges of lineage."""
    edges = tables.lineage_edges
    seen = set(subjects)
    waiting = sorted(seen)
    while waiting:
        part, waiting = waiting[:_AT_ONCE], waiting[_AT_ONCE:]
        query = select(edges.c.target).where(edges.c.source.in_(part))
        # What a deployment answered was made by a model, and makes none.
        found = {row.target for row in tx.all(query)} - seen
        seen |= found
        waiting += sorted(f for f in found if not f.startswith("deployment:"))
    return sorted(s.removeprefix("model:") for s in seen if s.startswith("model:"))


def views_of(tx: Transaction, columns: Iterable[str]) -> Iterator[str]:
    """Feature views by entities of these columns: their online rows were pushed from outside."""
    definitions = tables.feature_definitions
    wanted = set(columns)
    query = select(definitions).where(definitions.c.kind == "feature_view")
    for row in tx.all(query.order_by(definitions.c.name, definitions.c.digest)):
        if wanted & set(row.body.get("entity", ())):
            yield f"the online store: entities of view {row.name} ({row.digest[:16]})"
