"""Definitions of features: sources, aggregates, views and sets. Plain data, named by content.

Every definition has one canonical JSON form; its digest is the identity. Owner and description
are for people and stay outside the digest. How values are found lives in ``everloop.features``.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal, TypeAlias

import msgspec

from everloop.core.expr import Call, Column, Constant, columns_of, digest_of
from everloop.core.schema import Field, FieldType, Schema

__all__ = [
    "AGGREGATES",
    "Aggregate",
    "Closed",
    "Feature",
    "FeatureDefinition",
    "FeatureSetSpec",
    "FeatureView",
    "Function",
    "Identified",
    "Mode",
    "Source",
]

Function = Literal["count", "sum", "mean", "min", "max"]
AGGREGATES: tuple[str, ...] = Function.__args__  # type: ignore[attr-defined]
Closed = Literal["right", "left", "both", "neither"]
#: How the past is looked at: as it was known then, or by event times alone.
Mode = Literal["as-known", "as-of"]


class Source(msgspec.Struct, frozen=True, omit_defaults=True):
    """A dataset whose rows are events, or facts without a time.

    Attributes:
        dataset: Name of the dataset.
        time: Column with the event time; empty for facts that always hold.
        known: Column with the time at which the row became known; empty means at its event time.
            A row is visible from the later of the two on; without either it never is.
        id: Columns that name a row. A row that arrives again under the same id, key and times
            takes the place of the earlier one, so that a push may be repeated.
    """

    dataset: str
    time: str = ""
    known: str = ""
    id: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that say when and which, without the values."""
        return tuple(name for name in (self.time, self.known, *self.id) if name)


class Aggregate(msgspec.Struct, frozen=True, eq=False, tag="agg", tag_field="op"):
    """One number over the rows that became visible in a window before the asking time T.

    Attributes:
        function: ``count`` counts rows, or the values that are not null; the others skip nulls
            and give null where there is no value.
        window_us: Length of the window in microseconds.
        argument: What is aggregated; None only for ``count``.
        closed: Which ends belong to the window from T - window to T.
    """

    function: Function
    window_us: int
    argument: Column | Constant | Call | None = None
    closed: Closed = "right"


Value: TypeAlias = Column | Constant | Call | Aggregate


class Feature(msgspec.Struct, frozen=True, eq=False):
    """A named value: an expression over the newest row, or an aggregate over a window."""

    name: str
    value: Value
    type: FieldType = "float64"

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the value reads."""
        if isinstance(self.value, Aggregate):
            return () if self.value.argument is None else columns_of(self.value.argument)
        return columns_of(self.value)


class Identified:
    """Equality by content, where an expression's own ``==`` builds a tree."""

    __slots__ = ()

    @property
    def digest(self) -> str:
        raise TypeError(f"{type(self).__name__} has no digest")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.digest == self.digest

    def __hash__(self) -> int:
        return hash(self.digest)


class FeatureView(Identified, msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """Features of one entity from one source.

    Attributes:
        name: Name of the view, unique within a set.
        entity: Columns that name the entity; the same names in the source and in requests.
        source: Where the rows come from.
        features: In order.
        ttl_us: Longest age of a row that still counts, from its event time, bound included;
            microseconds, 0 for no bound. Aggregates have their window instead.
        owner, description: For people; outside the digest.
    """

    name: str
    entity: tuple[str, ...]
    source: Source
    features: tuple[Feature, ...]
    ttl_us: int = 0
    owner: str = ""
    description: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(feature.name for feature in self.features)

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column of the source that the view reads."""
        values = (column for feature in self.features for column in feature.columns)
        return tuple(dict.fromkeys((*self.entity, *self.source.columns, *values)))

    @property
    def window_us(self) -> int:
        """The longest window of its aggregates, 0 if there is none."""
        found = (f.value.window_us for f in self.features if isinstance(f.value, Aggregate))
        return max(found, default=0)

    @property
    def digest(self) -> str:
        """Identity: sha256 of the canonical JSON without owner and description, 64 hex digits."""
        return digest_of(msgspec.structs.replace(self, owner="", description=""))


class FeatureSetSpec(Identified, msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """What a feature set is, without how its values are found.

    Attributes:
        name: What the catalog knows it by.
        views: Their features come first, in order.
        time: Field of a request with the time asked for.
        request: What a request carries.
        on_demand: Expressions over the request and the views' features.
        select: The features to give, in order; all if empty.
        owner, description: For people; outside the digest.
    """

    name: str
    views: tuple[FeatureView, ...]
    time: str
    request: Schema
    on_demand: tuple[Feature, ...] = ()
    select: tuple[str, ...] = ()
    owner: str = ""
    description: str = ""

    @property
    def features(self) -> tuple[Feature, ...]:
        """What it gives, in order."""
        every = [f for view in self.views for f in view.features] + list(self.on_demand)
        if not self.select:
            return tuple(every)
        found = {feature.name: feature for feature in every}
        return tuple(found[name] for name in self.select)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the features, in order: the columns of a model's matrix."""
        return tuple(feature.name for feature in self.features)

    @property
    def schema(self) -> Schema:
        """The types of the features: the inputs of a model's signature."""
        return Schema(tuple(_field(feature) for feature in self.features))

    @property
    def request_schema(self) -> Schema:
        """What a request carries: entity keys, the time, and fields for features on demand."""
        return self.request

    @property
    def digest(self) -> str:
        """Identity: sha256 of the canonical JSON without what is for people, 64 hex digits."""
        views = tuple(msgspec.structs.replace(v, owner="", description="") for v in self.views)
        return digest_of(msgspec.structs.replace(self, views=views, owner="", description=""))

    @property
    def datasets(self) -> dict[str, tuple[str, ...]]:
        """The datasets it reads, each with the columns."""
        found: dict[str, dict[str, None]] = {}
        for view in self.views:
            found.setdefault(view.source.dataset, {}).update(dict.fromkeys(view.columns))
        return {name: tuple(columns) for name, columns in found.items()}

    @property
    def on_demand_columns(self) -> tuple[str, ...]:
        """Request fields and features that the expressions on demand read, each once."""
        found: dict[str, None] = {}
        for feature in self.on_demand:
            if not isinstance(feature.value, Aggregate):
                found.update(dict.fromkeys(columns_of(feature.value)))
        return tuple(found)


class FeatureDefinition(msgspec.Struct, frozen=True, kw_only=True):
    """A definition as the catalog lists it."""

    kind: Literal["feature_set", "feature_view"]
    name: str
    digest: str
    owner: str = ""
    updated_at: datetime


def _field(feature: Feature) -> Field:
    value = feature.value
    if isinstance(value, Aggregate):
        return Field(feature.name, "float64", semantic="numeric")
    if isinstance(value, Call) and value.function == "lookup":
        return Field(feature.name, feature.type, semantic="categorical")
    numeric = feature.type in ("float64", "int64")
    return Field(feature.name, feature.type, semantic="numeric" if numeric else "")
