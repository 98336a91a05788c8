"""What checks found, as plain data."""

from __future__ import annotations

from typing import Any

import msgspec

from everloop.core.check import OnFail
from everloop.core.dataset import Value

__all__ = ["MASKED", "SHOWN_ROWS", "FailedRow", "QualityReport", "RuleResult"]

#: What stands for a value of a column that is tagged as personal data.
MASKED = "(masked)"
#: Failing rows of each rule that are handed back unless told otherwise; all are counted.
SHOWN_ROWS = 1000


class FailedRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """A row that broke a rule.

    Attributes:
        row: Its number from 0, in the order of the version.
        key: Values of the key columns.
        values: Values of the columns that the rule looks at. Times are ISO 8601 text, bytes
            hexadecimal; personal data is masked, in the key as well.
    """

    row: int
    key: dict[str, Value] = {}
    values: dict[str, Value] = {}


class RuleResult(msgspec.Struct, frozen=True, kw_only=True):
    """One rule that is broken.

    Attributes:
        failed: Rows that broke it, all of them; 0 where it is broken by no single row.
        rows: The first of them, as many as were asked for.
        value: The figure, of a rule over a figure.
    """

    rule: str
    on_fail: OnFail
    reason: str
    owner: str
    columns: tuple[str, ...] = ()
    failed: int = 0
    rows: tuple[FailedRow, ...] = ()
    value: float | None = None


class QualityReport(msgspec.Struct, frozen=True, kw_only=True):
    """A table beside what must hold of it.

    Attributes:
        ref: The version, or empty for a frame.
        rows: Rows looked at.
        rules: Every rule that was judged.
        broken: Those that are broken, in the same order.
        faults: What is wrong with columns as such: missing, not listed, of another type.
        unjudged: Checks over time that nothing can be said of yet, with the reason.
    """

    ref: str = ""
    rows: int
    rules: tuple[str, ...]
    broken: tuple[RuleResult, ...] = ()
    faults: tuple[str, ...] = ()
    unjudged: dict[str, str] = {}

    @property
    def ok(self) -> bool:
        """Whether nothing is broken that forbids a version."""
        return not self.faults and all(rule.on_fail != "fail" for rule in self.broken)

    def failures(self) -> list[dict[str, Any]]:
        """Each failing row that is kept with its rule, reason and owner: a frame reads this."""
        return [
            {
                "row": row.row,
                **row.key,
                "rule": rule.rule,
                "reason": rule.reason,
                "owner": rule.owner,
                **{f"value.{name}": value for name, value in row.values.items()},
            }
            for rule in self.broken
            for row in rule.rows
        ]
