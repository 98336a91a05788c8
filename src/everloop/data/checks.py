"""Checks: every rule of a schema over every row of a frame, in one pass.

The rules of fields, of the key and of checks are one Polars select over the Arrow buffers; SQL
conditions are one DuckDB query. Each gives the rows that broke it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from everloop.core.schema import OnFail, Schema
from everloop.data.arrow import inspect
from everloop.data.check_rules import Outside, ValuesOf, plan_of
from everloop.data.onepass import Broken, OnePass
from everloop.errors import Fault, InvalidInput

__all__ = ["MOST_FAULTS", "BrokenRule", "CheckReport", "check", "insist", "row_faults"]

#: Faults kept in an error; the counts in its details tell of all.
MOST_FAULTS = 1000

_HINT = "row numbers count from 0 in the frame as it was given; no version was made"


class BrokenRule(NamedTuple):
    """A rule and the rows that broke it.

    Attributes:
        columns: What the rule looks at; empty for a condition over the whole row.
        rows: Row numbers in the frame as given, from 0, ascending; of a rule that fails the frame
            the first ``MOST_FAULTS``, of all others all.
        failed: How many rows broke it; 0 for a figure of the table, which is no single row's.
        repair: Name of the function that corrects its rows.
    """

    rule: str
    on_fail: OnFail
    reason: str
    owner: str
    rows: np.ndarray
    columns: tuple[str, ...] = ()
    failed: int = 0
    repair: str = ""


class CheckReport(NamedTuple):
    """What is wrong with a frame.

    Attributes:
        faults: What forbids a version: faults of columns, then of rows; at most ``MOST_FAULTS``.
        broken: Every rule that some row broke, whatever follows from it.
        table: The frame in the schema's order and types, all rows of it.
        counts: Number of faults by rule, all of them; ``columns`` and ``types`` for the frame's.
    """

    faults: list[Fault]
    broken: list[BrokenRule]
    table: pa.Table
    counts: dict[str, int]

    @property
    def total(self) -> int:
        """Number of faults, also of those beyond ``MOST_FAULTS``."""
        return sum(self.counts.values())

    def kept(self) -> pa.Table:
        """The rows that no rule leaves out, be it for good or until they are corrected."""
        dropped = [rule.rows for rule in self.broken if rule.on_fail in ("drop", "quarantine")]
        if not dropped:
            return self.table
        mask = np.ones(self.table.num_rows, dtype=bool)
        mask[np.concatenate(dropped)] = False
        return self.table.filter(pa.array(mask))

    def raise_faults(self, name: str) -> None:
        """Refuse the frame if it has faults.

        Raises:
            InvalidInput: With all of them.
        """
        if self.faults:
            raise faulty(name, self.faults, self.counts)


def faulty(name: str, faults: list[Fault], counts: dict[str, int]) -> InvalidInput:
    """The error for the frame `name`, with the count of each broken rule."""
    worst = sorted(counts.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{rule} {count}" for rule, count in worst[:8])
    more = f" and {len(worst) - 8} rules more" if len(worst) > 8 else ""
    total = sum(counts.values())
    return InvalidInput(
        f"{name}: {total} fault{'s' if total > 1 else ''} ({shown}{more})",
        faults,
        hint=_HINT,
        details={"total": total, "counts": counts},
    )


def check(
    table: pa.Table, schema: Schema, values_of: ValuesOf | None = None, *, keep_last: bool = False
) -> CheckReport:
    """Hold `table` against `schema`; nothing is raised for what is wrong with the rows.

    Columns that are missing or of a wrong type are faults, and the rules over the others are
    judged all the same, so that one look shows everything. A check of a column that is not there
    is broken. Rows are not repaired here.

    Args:
        values_of: Where ``references`` looks; without it such a check cannot be evaluated.
        keep_last: Of rows with one key the last one stays, and the others are dropped as by a rule.

    Raises:
        InvalidInput: If a rule itself cannot be evaluated.
        UserCodeError: If a function that a check names raises.
    """
    seen = inspect(table, schema)
    counts = {}
    if seen.columns:
        counts["columns"] = len(seen.columns)
    if seen.rows:
        counts["types"] = len(seen.rows)
    frame = seen.table
    broken, figures, missing = _judged(frame, schema, values_of, keep_last)
    without_rows = [*missing, *figures]
    whole = [Fault(f"checks.{t.name}", t.told) for t in without_rows if t.on_fail == "fail"]
    counts |= {fault.path.removeprefix("checks."): 1 for fault in whole}
    failed = [found for found in broken if found.on_fail == "fail"]
    counts |= {found.name: found.failed for found in failed}
    share = _shares(counts)
    rows = list(seen.rows[: share.get("types", 0)])
    for found in failed:
        rows += _told(frame, found, found.rows[: share[found.name]])
    columns = [*seen.columns[: share.get("columns", 0)], *whole]
    faults = [*columns, *sorted(rows, key=_row_of)]
    mild = [
        BrokenRule(t.name, t.on_fail, t.told, t.owner, np.empty(0, np.int64))
        for t in without_rows
        if t.on_fail != "fail"
    ]
    return CheckReport(faults, [_public(found) for found in broken] + mild, frame, counts)


class _Told(NamedTuple):
    """A check that is broken without being broken by a row."""

    name: str
    told: str
    on_fail: OnFail
    owner: str


def _judged(
    frame: pa.Table, schema: Schema, values_of: ValuesOf | None, keep_last: bool
) -> tuple[list[Broken], list[_Told], list[_Told]]:
    """What rows broke, what figures broke, and the checks that look at what is not there."""
    plan = plan_of(schema, frozenset(frame.column_names), values_of, keep_last=keep_last)
    missing = [_Told(check.name, told, "fail", check.owner) for check, told in plan.missing]
    rows = pl.from_arrow(frame, rechunk=False)
    assert isinstance(rows, pl.DataFrame)
    plan = plan._replace(outside=_reachable(plan.outside, frame, schema))
    judge = OnePass(plan, (), lambda on_fail: MOST_FAULTS if on_fail == "fail" else None, 0)
    judge.add(rows, at_once=plan.needs_all, is_all=True)
    broken, figures = judge.finish()
    told = [_Told(f.name, f.told, f.on_fail, f.owner) for f in figures if f.told]
    return broken, told, missing


def _reachable(outside: list[Outside], frame: pa.Table, schema: Schema) -> list[Outside]:
    # A condition may name any column: where one is not there, nobody knows what it would say.
    whole = set(schema.names) <= set(frame.column_names)
    return [one for one in outside if whole or one.columns]


def _public(found: Broken) -> BrokenRule:
    return BrokenRule(
        found.name, found.on_fail, found.reason, found.owner, found.rows, found.columns,
        found.failed, found.repair,
    )  # fmt: skip


def insist(report: CheckReport, rules: Sequence[BrokenRule], end: str) -> CheckReport:
    """The report with `rules` as faults too, whatever usually follows from them.

    Args:
        end: What is added to the reason of each.
    """
    counts = report.counts | {rule.rule: rule.failed for rule in rules}
    share = _shares(counts)
    faults = list(report.faults)
    for rule in rules:
        faults += row_faults(rule.rows[: share[rule.rule]], "", f"{rule.reason}{end}")
    return report._replace(faults=faults[:MOST_FAULTS], counts=counts)


def row_faults(rows: np.ndarray, column: str, message: str) -> list[Fault]:
    """The same fault for each of `rows`."""
    end = f".{column}" if column else ""
    return [Fault(f"rows[{row}]{end}", message) for row in rows.tolist()]


def _shares(counts: dict[str, int]) -> dict[str, int]:
    """How many faults of each rule are kept: all, or fair parts of ``MOST_FAULTS``."""
    left, shares = MOST_FAULTS, {}
    for n, (rule, count) in enumerate(sorted(counts.items(), key=lambda item: item[1])):
        shares[rule] = min(count, left // (len(counts) - n))
        left -= shares[rule]
    return shares


def _row_of(fault: Fault) -> int:
    return int(fault.path[5 : fault.path.index("]")])


def _told(frame: pa.Table, found: Broken, rows: np.ndarray) -> list[Fault]:
    rule = found.rule
    if rule is None:
        return row_faults(rows, "", found.reason)
    if rule.name == "key.unique" and rule.tell is not None:
        keys = frame.select(list(rule.columns)).take(pa.array(rows)).to_pylist()
        told = [rule.tell(", ".join(map(repr, key.values()))) for key in keys]
        end = f".{rule.columns[0]}" if len(rule.columns) == 1 else ""
        return [Fault(f"rows[{n}]{end}", text) for n, text in zip(rows.tolist(), told, strict=True)]
    column = rule.columns[0] if len(rule.columns) == 1 else ""
    if rule.tell is None:
        reason = rule.reason.removeprefix(f"{column} ") if column else rule.reason
        return row_faults(rows, column, reason)
    values = frame.column(column).take(pa.array(rows)).to_pylist()
    return [
        Fault(f"rows[{row}].{column}", rule.tell(value))
        for row, value in zip(rows.tolist(), values, strict=True)
    ]
