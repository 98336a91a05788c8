"""How much a training set would leak if rows counted before they were known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import pyarrow.compute as pc

from everloop.core.feature import FeatureSetSpec, Mode
from everloop.features.history import history

__all__ = ["LeakageReport", "LeakyFeature", "check_leakage"]


class LeakyFeature(msgspec.Struct, frozen=True):
    """A feature whose values differ when late rows are let in, in how many rows."""

    name: str
    rows: int
    share: float


class LeakageReport(msgspec.Struct, frozen=True):
    """What would differ.

    Attributes:
        rows: How many rows were compared.
        features: Those that differ somewhere, most first; empty means that no row came late.
    """

    rows: int
    features: tuple[LeakyFeature, ...]


def check_leakage(
    feature_set: FeatureSetSpec,
    rows: Any,
    *,
    time: str = "",
    sources: Mapping[str, Any] | None = None,
    versions: Mapping[str, int] | None = None,
) -> LeakageReport:
    """Compare the features as known with those as of the event time; see `FeatureSet`."""
    modes: tuple[Mode, ...] = ("as-known", "as-of")
    both = [
        history(feature_set, rows, time=time, sources=sources, versions=versions, mode=mode)
        for mode in modes
    ]
    count = both[0].num_rows
    found = []
    for name in feature_set.names:
        honest, leaky = (table.column(name) for table in both)
        equal = pc.fill_null(pc.equal(honest, leaky), False)
        if feature_set.schema.field(name).type == "float64":
            equal = pc.or_(equal, pc.fill_null(pc.and_(pc.is_nan(honest), pc.is_nan(leaky)), False))
        equal = pc.or_(equal, pc.and_(pc.is_null(honest), pc.is_null(leaky)))
        differing = count - (pc.sum(equal).as_py() or 0)
        if differing:
            found.append(LeakyFeature(name, differing, differing / count))
    return LeakageReport(count, tuple(sorted(found, key=lambda f: -f.rows)))
