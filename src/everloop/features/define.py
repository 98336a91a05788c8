"""What a user writes: sources, aggregates, views and sets of features. Pure data, no computing.

>>> landed = source("flights", time="sched_dep", known="landed_at")
>>> late = feature_view("late", entity=("carrier",), source=landed,
...                     features={"late_24h": agg.mean(col.arr_delay > 15, "24h")})
>>> delay = feature_set("delay", late, time="sched_dep", request={"carrier": str})
>>> delay.names
('late_24h',)
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from everloop.core.expr import Call, Column, Constant, Expr, infer, kind_of
from everloop.core.expr import col as col
from everloop.core.expr import lit as lit
from everloop.core.feature import Aggregate, Closed, Feature, FeatureView, Function, Source
from everloop.core.schema import FIELD_TYPES, Field, FieldType, Schema
from everloop.core.time import duration_micros
from everloop.errors import Fault, InvalidInput, NotFound
from everloop.features.sets import FeatureSet

__all__ = ["agg", "col", "feature_set", "feature_view", "lit", "source"]

#: Types that a feature may have.
FEATURE_TYPES = ("float64", "int64", "bool", "string", "timestamp")
_TYPE_OF: dict[Any, FieldType] = {
    str: "string",
    int: "int64",
    float: "float64",
    bool: "bool",
    datetime: "timestamp",
}

Window = str | timedelta
Name = str | Sequence[str]


def source(dataset: str, *, time: str = "", known: str = "", id: Name = ()) -> Source:
    """Rows of a dataset as events.

    Args:
        dataset: Name of the dataset.
        time: Column with the event time; without it the rows are facts that always hold, and of
            several for one entity the last one written counts.
        known: Column with the time at which a row became known; a null there means not yet.
        id: Columns that name a row, so that a repeated push does not count twice.

    Raises:
        InvalidInput: If `known` or `id` is given without `time`.
    """
    if not dataset:
        raise InvalidInput("a source needs the name of a dataset")
    if not time and (known or id):
        raise InvalidInput(
            f"source {dataset!r} has no time, so neither known nor id means anything"
        )
    return Source(dataset, time, known, _names(id))


class Aggregates:
    """Aggregates over the rows that became visible within a window before the asking time T.

    The window is (T - window, T]; `closed` may say ``"left"``, ``"both"`` or ``"neither"``.
    """

    def count(
        self, what: Expr | Window, window: Window | None = None, *, closed: Closed = "right"
    ) -> Aggregate:
        """How many rows, ``count("24h")``, or how many values not null, ``count(col.x, "24h")``."""
        if window is None:
            if isinstance(what, Expr):
                raise InvalidInput("count needs a window, such as count(col.x, '24h')")
            return _aggregate("count", None, what, closed)
        return _aggregate("count", what, window, closed)

    def sum(self, what: Any, window: Window, *, closed: Closed = "right") -> Aggregate:
        """The sum, rounded once from its exact value; null where there is no value."""
        return _aggregate("sum", what, window, closed)

    def mean(self, what: Any, window: Window, *, closed: Closed = "right") -> Aggregate:
        """The sum by the number of values; of a condition the share for which it is true."""
        return _aggregate("mean", what, window, closed)

    def min(self, what: Any, window: Window, *, closed: Closed = "right") -> Aggregate:
        """The smallest value; NaN if there is one."""
        return _aggregate("min", what, window, closed)

    def max(self, what: Any, window: Window, *, closed: Closed = "right") -> Aggregate:
        """The largest value; NaN if there is one."""
        return _aggregate("max", what, window, closed)


agg = Aggregates()


def _aggregate(function: Function, what: Any, window: Window, closed: Closed) -> Aggregate:
    if closed not in typing.get_args(Closed):
        raise InvalidInput(f"closed is one of {typing.get_args(Closed)}, got {closed!r}")
    if what is not None and not isinstance(what, Column | Constant | Call):
        what = lit(what)
    return Aggregate(function, duration_micros(window), what, closed)


def feature_view(
    name: str,
    *,
    entity: Name,
    source: Source,
    features: Mapping[str, Any] | Sequence[Column],
    ttl: Window | None = None,
    owner: str = "",
    description: str = "",
) -> FeatureView:
    """Features of one entity from one source.

    Args:
        name: Unique within a feature set.
        entity: Columns that name the entity, in the source and in requests.
        source: Where the rows come from.
        features: Names with an expression over the newest visible row or an aggregate; or a list
            of columns that keep their names. A feature is a float unless its expression ends in
            ``.cast(...)``.
        ttl: Longest age of a row that still counts, such as ``"3h"``.
        owner: Who answers for it.
        description: For people.

    Raises:
        InvalidInput: With everything that is wrong.
    """
    faults = []
    keys = _names(entity)
    if not name or not keys:
        faults.append(Fault(name, "a view needs a name and an entity"))
    if len(set(keys)) != len(keys):
        faults.append(Fault(f"{name}.entity", "a column stands twice"))
    found = []
    for label, value in _pairs(name, features, faults):
        if isinstance(value, Aggregate):
            if not source.time:
                faults.append(Fault(f"{name}.{label}", "a window needs a source with a time"))
            found.append(Feature(label, value))
        elif isinstance(value, Column | Constant | Call):
            found.append(Feature(label, value, _type_of(value)))
        else:
            faults.append(Fault(f"{name}.{label}", f"is a {type(value).__name__}, no expression"))
    ttl_us = 0 if ttl is None else duration_micros(ttl)
    if ttl_us and not source.time:
        faults.append(Fault(f"{name}.ttl", "facts without a time do not age"))
    if ttl_us and found and all(isinstance(feature.value, Aggregate) for feature in found):
        faults.append(Fault(f"{name}.ttl", "aggregates have their window; a ttl says nothing"))
    faults += _repeated(f"{name}.features", [feature.name for feature in found])
    if faults:
        raise InvalidInput(f"the feature view {name!r} is wrong", faults)
    return FeatureView(
        name=name,
        entity=keys,
        source=source,
        features=tuple(found),
        ttl_us=ttl_us,
        owner=owner,
        description=description,
    )


def feature_set(
    name: str,
    *views: FeatureView,
    time: str,
    request: Schema | Mapping[str, Any],
    on_demand: Mapping[str, Any] | None = None,
    select: Sequence[str] = (),
    owner: str = "",
    description: str = "",
) -> FeatureSet:
    """The ordered, typed features that a model takes.

    Args:
        name: Such as ``"delay"``; the catalog keeps every content that the name ever had.
        views: Their features come in this order, then those on demand.
        time: Field of a request (column of training rows) with the time that is asked for.
        request: What a request carries: a Schema, or names with ``str``, ``int``, ``float``,
            ``bool``, ``datetime`` or a field type; ``str | None`` where it may be null. `time` is
            added if it is not listed.
        on_demand: Expressions over the request and the views' features.
        select: Names of the features to give, in this order; all if empty.
        owner: Who answers for it.
        description: For people.

    Raises:
        InvalidInput: With everything that is wrong.
    """
    faults: list[Fault] = []
    schema = _request_schema(request, time, faults)
    faults += _repeated("views", [view.name for view in views])
    kinds = {field.name: kind_of(field.type) for field in schema.fields if field.type != "binary"}
    for view in views:
        for key in view.entity:
            if key not in kinds:
                faults.append(Fault(f"request.{key}", f"is needed by view {view.name!r}"))
            elif kinds[key] == "float":
                faults.append(Fault(f"request.{key}", "a float cannot name an entity"))
    given = [feature for view in views for feature in view.features]
    faults += [
        Fault(f"features.{feature.name}", "is also the name of a request field; rename one")
        for feature in given
        if feature.name in kinds
    ]
    asked, known = [], kinds | {feature.name: kind_of(feature.type) for feature in given}
    for label, value in (on_demand or {}).items():
        node = value if isinstance(value, Column | Constant | Call) else lit(value)
        try:
            kind = infer(node, known)
            asked.append(Feature(label, node, "string" if kind == "string" else _type_of(node)))
        except InvalidInput as error:
            faults.append(Fault(f"on_demand.{label}", error.summary))
        if label in kinds and not (isinstance(node, Column) and node.name == label):
            faults.append(Fault(f"on_demand.{label}", "is also a request field; rename it"))
    names = [feature.name for feature in (*given, *asked)]
    faults += _repeated("features", names)
    faults += [
        Fault(f"select.{label}", f"no such feature; {NotFound.named('feature', label, names).hint}")
        for label in select
        if label not in names
    ]
    faults += _repeated("select", list(select))
    if not name or not names:
        faults.append(Fault("name", "a feature set needs a name and a feature"))
    if faults:
        raise InvalidInput(f"the feature set {name!r} is wrong", faults)
    return FeatureSet(
        name=name,
        views=views,
        time=time,
        request=schema,
        on_demand=tuple(asked),
        select=tuple(select),
        owner=owner,
        description=description,
    )


def _names(given: Name) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _pairs(name: str, features: Any, faults: list[Fault]) -> list[tuple[str, Any]]:
    if isinstance(features, Mapping):
        found = list(features.items())
    else:
        found = [(item.name if isinstance(item, Column) else "", item) for item in features]
        if any(not label for label, _ in found):
            faults.append(
                Fault(f"{name}.features", "a list holds columns; name the rest in a dict")
            )
    if not found:
        faults.append(Fault(f"{name}.features", "at least one is needed"))
    return found


def _type_of(node: Column | Constant | Call) -> FieldType:
    if isinstance(node, Call) and node.function == "cast":
        return node.options["type"]  # type: ignore[no-any-return]
    if isinstance(node, Call) and node.function == "lower":
        return "string"
    return "string" if isinstance(node, Constant) and node.kind == "string" else "float64"


def _repeated(path: str, names: Sequence[str]) -> list[Fault]:
    twice = sorted({name for name in names if names.count(name) > 1})
    return [Fault(path, f"{name!r} stands twice") for name in twice]


def _request_schema(request: Any, time: str, faults: list[Fault]) -> Schema:
    if isinstance(request, Schema):
        fields = list(request.fields)
    else:
        fields = []
        for name, given in request.items():
            kind, nullable = _declared(given)
            if kind is None:
                faults.append(Fault(f"request.{name}", f"{given!r} is no type"))
            else:
                fields.append(Field(name, kind, nullable=nullable))
    found = next((field for field in fields if field.name == time), None)
    if not time:
        faults.append(Fault("time", "a feature set needs the field with the time asked for"))
    elif found is None:
        fields.append(Field(time, "timestamp", nullable=False))
    elif found.type != "timestamp":
        faults.append(Fault(f"request.{time}", f"is {found.type}, must be a timestamp"))
    if isinstance(request, Schema) and len(fields) == len(request.fields):
        return request
    return Schema(tuple(fields))


def _declared(given: Any) -> tuple[FieldType | None, bool]:
    if isinstance(given, str):
        return (given if given in FIELD_TYPES else None), False  # type: ignore[return-value]
    if isinstance(given, types.UnionType) or typing.get_origin(given) is typing.Union:
        inner = [item for item in typing.get_args(given) if item is not types.NoneType]
        return (_TYPE_OF.get(inner[0]) if len(inner) == 1 else None), True
    return _TYPE_OF.get(given), False
