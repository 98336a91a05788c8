"""What was found in data, as plain data: a set of rows, why, and how bad."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from everloop.core.dataset import Value

__all__ = ["Answer", "BalanceRow", "FeatureCoverage", "FindingKind", "FindingReport", "FoundRow"]

FindingKind = Literal[
    "label_issue", "low_value", "weak_slice", "uncovered", "duplicate", "shared_row",
    "near_duplicate", "shared_key", "not_later", "conflicting_label", "telling_feature",
    "imbalance",
]  # fmt: skip
Answer = Literal["balanced", "imbalanced", "too small to tell"]


class FoundRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """One row of a finding.

    Attributes:
        row: Its number from 0 in the table looked at.
        key: Values of the key columns; times are ISO 8601 text, personal data is masked.
        score: How bad; the higher the worse.
        reason: Why this row, for people.
        figures: What was measured of it.
    """

    row: int
    key: dict[str, Value] = {}
    score: float = 0.0
    reason: str = ""
    figures: dict[str, Value] = {}


class FindingReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A finding with its first rows.

    Attributes:
        ref: The version looked at (``flights@3``), or empty for a frame.
        side: Which of two tables the rows are of: ``train``, ``test`` or ``served``.
        count: Rows in all.
        score: How bad as a whole; the higher the worse, comparable within one search.
        condition: SQL that exactly these rows meet, or empty.
        columns: What it looks at.
    """

    kind: FindingKind
    name: str
    reason: str
    ref: str = ""
    side: str = ""
    count: int
    score: float = 0.0
    condition: str = ""
    columns: tuple[str, ...] = ()
    figures: dict[str, Any] = {}
    rows: tuple[FoundRow, ...] = ()


class FeatureCoverage(msgspec.Struct, frozen=True, kw_only=True):
    """One feature of the rows that are served beside those trained on.

    Attributes:
        distance: Kolmogorov-Smirnov distance of numbers, share of mass that moved of texts; 0 to 1.
        auc: How well this feature alone tells the two apart, 0.5 (not at all) to 1; out of fold.
        importance: By how much the AUC of all features falls if this one is shuffled.
        outside_share: Share of served rows beyond the range, or among levels, never trained on.
        missing_change: Share missing when served less share missing when trained.
    """

    name: str
    distance: float
    auc: float
    importance: float
    outside_share: float
    missing_change: float


class BalanceRow(msgspec.Struct, frozen=True, kw_only=True):
    """One class, or one group, of the rows.

    Attributes:
        name: ``late = 1``, ``carrier = OO``.
        share: Of all rows (a class), or of all rows (a group).
        low, high: Interval of what is judged: of the share of a class; of the largest gap between
            the class shares within the group and those outside it.
        gap: What is judged; see `low`.
        answer: ``too small to tell`` where the interval holds both answers.
    """

    name: str
    rows: int
    share: float
    gap: float
    low: float
    high: float
    answer: Answer
