"""From a value that a model got back to the row it came from."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import select

from everloop.catalog import tables
from everloop.catalog.transaction import Transaction
from everloop.core.predict import Prediction
from everloop.core.time import to_micros
from everloop.data.service import DataService
from everloop.errors import NotFound
from everloop.governance.records import FeatureValue, SourceRow

__all__ = ["feature_set_body", "feature_values", "source_rows"]


def feature_set_body(tx: Transaction, reference: str) -> dict[str, Any]:
    """The definition of the feature set ``name`` or ``name@digest``; empty if it is not there."""
    names, bodies = tables.feature_names, tables.feature_definitions
    name, _, digest = reference.partition("@")
    query = select(bodies.c.body).where(bodies.c.kind == "feature_set")
    if digest:
        query = query.where(bodies.c.name == name, bodies.c.digest.startswith(digest))
    else:
        query = query.join(names, names.c.digest == bodies.c.digest).where(
            names.c.name == name, names.c.kind == "feature_set"
        )
    body = tx.scalar(query)
    return body if isinstance(body, dict) else {}


def feature_values(prediction: Prediction, body: dict[str, Any]) -> tuple[FeatureValue, ...]:
    """The values with the view that each came from and when that had become known."""
    view_of = {
        feature["name"]: view["name"]
        for view in body.get("views", ())
        for feature in view.get("features", ())
    }
    return tuple(
        FeatureValue(
            name=name,
            value=value,
            view=view_of.get(name, ""),
            known_at=prediction.times.get(view_of.get(name, "")),
        )
        for name, value in prediction.features.items()
    )


def source_rows(
    prediction: Prediction, body: dict[str, Any], data: DataService
) -> tuple[SourceRow, ...]:
    """For each view the newest row of its entity that was known when the prediction was made."""
    return tuple(_source_row(prediction, view, data) for view in body.get("views", ()))


def _source_row(prediction: Prediction, view: dict[str, Any], data: DataService) -> SourceRow:
    source, known_at = view["source"], prediction.times.get(view["name"])
    key = {column: prediction.request.get(column) for column in view["entity"]}
    try:
        version = data.version(source["dataset"])
        rows = data.read(source["dataset"], version.number)
    except NotFound:
        return SourceRow(
            view=view["name"],
            dataset=source["dataset"],
            version=0,
            key=key,
            known_at=known_at,
            row=None,
        )
    times = [source[name] for name in ("time", "known") if source.get(name)]
    return SourceRow(
        view=view["name"],
        dataset=source["dataset"],
        version=version.number,
        key=key,
        known_at=known_at,
        row=_newest(rows, key, times, known_at),
    )


def _newest(
    rows: pa.Table, key: dict[str, Any], times: list[str], known_at: datetime | None
) -> dict[str, Any] | None:
    if times and known_at is None:
        return None  # the view had no row then
    for column, value in key.items():
        if column not in rows.column_names or value is None:
            return None
        try:
            rows = rows.filter(pc.equal(rows.column(column), pa.scalar(value)))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return None  # a request that does not have the type of the column names no row
    if times and known_at is not None:
        for column in times:
            micros = rows.column(column).cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
            rows = rows.filter(pc.less_equal(micros, to_micros(known_at)))
        rows = rows.sort_by([(column, "descending") for column in reversed(times)])
    else:
        rows = rows.slice(max(rows.num_rows - 1, 0))  # a fact without time: the last one counts
    # Builtins alone, so that an embedded caller sees what a remote one would.
    found: list[dict[str, Any]] = msgspec.to_builtins(rows.slice(0, 1).to_pylist())
    return found[0] if found else None
