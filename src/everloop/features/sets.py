"""FeatureSet: the ordered, typed features that a model takes; one definition for both sides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from everloop.core.expr import Call, columns_of, digest_of
from everloop.core.feature import Aggregate, Feature, FeatureView, Identified
from everloop.core.schema import Field, Schema

if TYPE_CHECKING:
    from everloop.data.frame import Table
    from everloop.features.leakage import LeakageReport

__all__ = ["FeatureSet", "Mode"]

Mode = Literal["as-known", "as-of"]


class FeatureSet(Identified, msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """Views and expressions on demand; made by ``ev.feature_set``.

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

    def history(
        self,
        rows: Any,
        *,
        time: str = "",
        sources: Mapping[str, Any] | None = None,
        versions: Mapping[str, int] | None = None,
        mode: Mode = "as-known",
    ) -> Table:
        """The features of each row, as they were known at the row's own time.

        Args:
            rows: Entity keys, a time and what the features on demand read: a Table or any frame.
            time: Column with the time asked for; that of the set if empty. Naive means UTC.
            sources: Rows of the datasets by name; what is not given is read from the workspace.
            versions: Versions of the datasets to read; the latest where none is given.
            mode: ``as-of`` looks at event times alone and lets late rows leak back: only to
                measure what leaks.

        Returns:
            A Table with the rows in their order, all columns as they were, and the features added.
            A feature that repeats a request field under its name stays in its place, typed.

        Raises:
            NotFound: If `sources` or `versions` names a dataset that no view reads.
            InvalidInput: With every missing or wrongly typed column, row without a time, or
                feature that has the name of another column.
        """
        from everloop.features.history import history

        return history(self, rows, time=time, sources=sources, versions=versions, mode=mode)

    def check_leakage(
        self,
        rows: Any,
        *,
        time: str = "",
        sources: Mapping[str, Any] | None = None,
        versions: Mapping[str, int] | None = None,
    ) -> LeakageReport:
        """Count the values that would differ if late rows were let in; arguments as `history`."""
        from everloop.features.leakage import check_leakage

        return check_leakage(self, rows, time=time, sources=sources, versions=versions)


def _field(feature: Feature) -> Field:
    value = feature.value
    if isinstance(value, Aggregate):
        return Field(feature.name, "float64", semantic="numeric")
    if isinstance(value, Call) and value.function == "lookup":
        return Field(feature.name, feature.type, semantic="categorical")
    numeric = feature.type in ("float64", "int64")
    return Field(feature.name, feature.type, semantic="numeric" if numeric else "")


def on_demand_columns(feature_set: FeatureSet) -> tuple[str, ...]:
    """Request fields and features that the expressions on demand read, each once."""
    found: dict[str, None] = {}
    for feature in feature_set.on_demand:
        if not isinstance(feature.value, Aggregate):
            found.update(dict.fromkeys(columns_of(feature.value)))
    return tuple(found)
