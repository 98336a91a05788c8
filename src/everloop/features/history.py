"""Features of the past: for each row what was known at the row's own time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from everloop.core.context import current_workspace
from everloop.core.expr import Column, kind_of
from everloop.core.feature import Aggregate, FeatureSetSpec, Mode
from everloop.core.reads import fixed, note
from everloop.data.frame import Source, Table
from everloop.errors import Fault, InvalidInput, NotFound
from everloop.features.compile_vector import evaluate
from everloop.features.keys import KeyCodes
from everloop.features.plan import Events, Frame, Input, Plan, events_of, typed
from everloop.features.retrieve import Found, Rows, Timeline, best_so_far, look_up
from everloop.features.vectors import Array, Vector, to_arrow

__all__ = ["history"]


def history(
    feature_set: FeatureSetSpec,
    rows: Any,
    *,
    time: str = "",
    sources: Mapping[str, Any] | None = None,
    versions: Mapping[str, int] | None = None,
    mode: Mode = "as-known",
) -> Table:
    """The features of each row; see ``FeatureSet.history``."""
    asked = Table.of(rows)
    frame = Frame(asked.to_arrow(), "rows")
    _check_names(feature_set, frame)
    at = _asked(frame, time or feature_set.time)
    given = _sources(feature_set, sources or {}, versions or {})
    frames = {name: Frame(table.to_arrow(), name) for name, table in given.items()}
    values: dict[str, Vector] = {}
    for view in feature_set.views:
        plan = Plan(view)
        source = frames[view.source.dataset]
        found = _of_view(plan, source, frame, at, as_of=mode == "as-of")
        values.update(zip(view.names, found.values, strict=True))
    _on_demand(feature_set, frame, values)
    columns = {f.name: to_arrow(values[f.name], f.type) for f in feature_set.features}
    came = [source for table in (asked, *given.values()) for source in table.sources]
    made = asked.with_columns(columns)
    return Table(made.to_arrow(), sources=dict.fromkeys(came), key=asked.key, changes=asked.changes)


def _of_view(plan: Plan, source: Frame, frame: Frame, at: Array, *, as_of: bool) -> Found:
    view = plan.view
    ours = source.columns(view.entity)
    codes = KeyCodes(list(ours.values()), view.entity, source.label)
    asked = codes.encode(list(frame.columns(view.entity).values()))
    usable = codes.codes >= 0
    events = events_of(plan, source, None if usable.all() else usable, as_of=as_of)
    key = codes.codes if events.rows is None else codes.codes[events.rows]
    if view.source.id:
        key, events = _once(key, events, source, view.source.id)
    return look_up(plan, sorted_rows(plan, key, codes.count, events), asked, at)


def sorted_rows(plan: Plan, key: Array, keys: int, events: Events) -> Rows:
    """Events, as written, in the order in which they are looked up."""
    timeline = Timeline(key, events.visible, keys)
    order = timeline.order
    assert order is not None
    best = None
    if plan.newest and events.known is not None:
        best = best_so_far(key, events.event, events.known, order)
    values = [value.take(order) for value in events.values]
    return Rows(timeline, events.visible[order], events.event[order], best, values)


def _once(
    key: Array, events: Events, source: Frame, names: tuple[str, ...]
) -> tuple[Array, Events]:
    """Keep of rows with the same key, visible time and id the one written last."""
    ids = source.repeated_ids(names)
    if ids is None:
        return key, events
    ids = ids if events.rows is None else ids[events.rows]
    order = np.lexsort((ids, events.visible, key))
    columns = (key[order], events.visible[order], ids[order])
    again = np.zeros(len(order), np.bool_)
    again[:-1] = np.logical_and.reduce([c[:-1] == c[1:] for c in columns]) & (columns[2][:-1] >= 0)
    if not again.any():
        return key, events
    keep = np.sort(order[~again])
    known = None if events.known is None else events.known[keep]
    values = [value.take(keep) for value in events.values]
    return key[keep], Events(keep, events.visible[keep], events.event[keep], known, values)


def _on_demand(feature_set: FeatureSetSpec, frame: Frame, values: dict[str, Vector]) -> None:
    """Add the features on demand to `values`, in place."""
    asked = [name for name in feature_set.on_demand_columns if name not in values]
    columns = frame.columns(tuple(asked))
    known = dict(values)
    faults = []
    for name, vector in columns.items():
        field = feature_set.request.field(name)
        fitting = as_kind(vector, kind_of(field.type))
        if fitting is None:
            faults.append(Fault(name, f"is {vector.kind}, the request has {field.type}"))
        else:
            known[name] = fitting
    if faults:
        raise InvalidInput("rows have other types than the request", faults)
    for feature in feature_set.on_demand:
        if not isinstance(feature.value, Aggregate):
            found = evaluate(feature.value, known, frame.rows)
            values[feature.name] = typed(Input(feature.value, feature.type), found)


def as_kind(vector: Vector, kind: str) -> Vector | None:
    """`vector` as a request of `kind` holds it: integers widen to floats; None if it does not."""
    if vector.kind == kind:
        return vector
    if vector.kind == "int" and kind == "float":
        return Vector("float", vector.data.astype(np.float64), vector.valid)
    if vector.kind == "null":
        words = [""] if kind == "string" else None
        dtype = {"float": np.float64, "bool": np.bool_, "string": np.int32}.get(kind, np.int64)
        return Vector(kind, vector.data.astype(dtype), vector.valid, words)  # type: ignore[arg-type]
    return None


def _asked(frame: Frame, time: str) -> Array:
    at = frame.instants(time)
    if at.valid is not None and not at.valid.all():
        missing = np.flatnonzero(~at.valid)
        faults = [Fault(f"rows[{row}].{time}", "is null") for row in missing[:100].tolist()]
        raise InvalidInput(
            f"{len(missing)} rows have no time, so nothing can be said of what was known", faults
        )
    return at.data


def _check_names(feature_set: FeatureSetSpec, frame: Frame) -> None:
    """Refuse features with the name of another column; one that repeats its column may stay."""
    there = set(frame.table.column_names)
    repeats = {
        f.name
        for f in feature_set.on_demand
        if isinstance(f.value, Column) and f.value.name == f.name
    }
    taken = [name for name in feature_set.names if name in there and name not in repeats]
    if taken:
        raise InvalidInput(
            "rows have columns with the names of features",
            [Fault(name, "is both a column and a feature") for name in taken],
            hint="leave these columns out with select, or rename the features",
        )


def _sources(
    feature_set: FeatureSetSpec, given: Mapping[str, Any], versions: Mapping[str, int]
) -> dict[str, Table]:
    """The rows of each dataset that is read."""
    unread = [name for name in (*given, *versions) if name not in feature_set.datasets]
    if unread:
        raise NotFound.named("source", unread[0], feature_set.datasets)
    found: dict[str, Table] = {}
    for name, columns in feature_set.datasets.items():
        if name in given:
            found[name] = Table.of(given[name])
            continue
        data = current_workspace().data
        if name in versions:
            version = data.version(name, versions[name])
        else:
            known = fixed("dataset", name)
            version = data.version(name, int(known) if known else None)
            note("dataset", name, str(version.number))
        wanted = [column for column in columns if column in version.schema.names]
        rows = data.read(name, version.number, columns=wanted)
        found[name] = Table(rows, sources=[Source(name, version.number, version.digest)])
    return found
