"""What was found of personal data in a table, and how a table can be told apart, as plain data."""

from __future__ import annotations

import msgspec

__all__ = ["SAMPLE", "Anonymity", "ColumnWeight", "PiiFinding", "PiiReport"]

#: Rows that are looked at unless told otherwise.
SAMPLE = 100_000


class PiiFinding(msgspec.Struct, frozen=True, kw_only=True):
    """One kind in one column. It holds no value.

    Attributes:
        kind: As a field is tagged with.
        tagged: How the column is tagged already; empty if it is not.
        matched: Values of that kind, of `values` that are there (without missing ones); reckoned
            from 4,000 distinct ones where more have the form.
        found: Whether the column counts as of this kind; else it is told for completeness.
        threshold: The share of values from which it counts.
        inside: Whether the values are longer texts that hold one.
        reason: In words.
    """

    column: str
    kind: str
    tagged: str = ""
    matched: int
    values: int
    found: bool
    threshold: float
    inside: bool = False
    reason: str

    @property
    def share(self) -> float:
        """The part of the values that matched."""
        return self.matched / self.values if self.values else 0.0


class PiiReport(msgspec.Struct, frozen=True, kw_only=True):
    """The columns of a version or frame in which something was recognised.

    Attributes:
        rows: Of the version.
        looked_at: Rows that were looked at: all, or evenly spread ones, the same each time.
    """

    ref: str = ""
    rows: int
    looked_at: int
    findings: tuple[PiiFinding, ...] = ()

    @property
    def untagged(self) -> tuple[PiiFinding, ...]:
        """What was found in columns that no tag says it of."""
        return tuple(f for f in self.findings if f.found and not f.tagged)


class ColumnWeight(msgspec.Struct, frozen=True):
    """What one column does to a table's anonymity.

    Attributes:
        distinct: Values that differ, a missing one among them.
        without: Rows in groups under k if this column were not there.
    """

    name: str
    distinct: int
    without: int


class Anonymity(msgspec.Struct, frozen=True, kw_only=True):
    """How well rows hide among those that have the same values in some columns (k-anonymity).

    Attributes:
        columns: The quasi-identifiers: what somebody might know of a person from elsewhere.
        rows: Of the table; `groups` of rows that are alike in the columns.
        smallest: Rows of the smallest group: the k that the table has; 0 for an empty table.
        k: What was asked for; `under` rows are in smaller groups, `unique` rows are alone.
        distinct_sensitive: Of a sensitive column, the fewest distinct values that a group has
            (l-diversity); None if none was named.
        weights: By how many rows under k a column saves if it were left out, the heaviest first.

    Source:
        Sweeney, k-anonymity: a model for protecting privacy (2002); Machanavajjhala et al.,
        l-diversity (2007).
    """

    ref: str = ""
    columns: tuple[str, ...]
    rows: int
    groups: int
    smallest: int
    k: int
    under: int
    unique: int
    distinct_sensitive: int | None = None
    weights: tuple[ColumnWeight, ...] = ()
    masked: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every row hides among at least k."""
        return self.under == 0
