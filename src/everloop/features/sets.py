"""FeatureSet: the ordered, typed features that a model takes; one definition for both sides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from everloop.core.feature import FeatureSetSpec, Mode

if TYPE_CHECKING:
    from everloop.data.frame import Table
    from everloop.features.leakage import LeakageReport

__all__ = ["FeatureSet"]


class FeatureSet(FeatureSetSpec, frozen=True, eq=False, kw_only=True):
    """Views and expressions on demand, and their values; made by ``ev.feature_set``.

    To define one loads neither numpy nor Arrow: what computes values loads when they are asked for.
    """

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
