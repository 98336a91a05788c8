"""Definitions of features: sources, aggregates and views. Plain data, named by content.

Every definition has one canonical JSON form; its digest is the identity. Owner and description
are for people and stay outside the digest. How values are found lives in ``everloop.features``.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal, TypeAlias

import msgspec

from everloop.core.expr import Call, Column, Constant, columns_of, digest_of
from everloop.core.schema import FieldType

__all__ = [
    "AGGREGATES",
    "Aggregate",
    "Closed",
    "Feature",
    "FeatureDefinition",
    "FeatureView",
    "Function",
    "Identified",
    "Source",
]

Function = Literal["count", "sum", "mean", "min", "max"]
AGGREGATES: tuple[str, ...] = Function.__args__  # type: ignore[attr-defined]
Closed = Literal["right", "left", "both", "neither"]


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


class FeatureDefinition(msgspec.Struct, frozen=True, kw_only=True):
    """A definition as the catalog lists it."""

    kind: Literal["feature_set", "feature_view"]
    name: str
    digest: str
    owner: str = ""
    updated_at: datetime
