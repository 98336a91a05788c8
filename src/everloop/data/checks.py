"""Checks: every rule of a schema over every row of a frame, in one pass.

The rules of fields and of the key are one Polars select over the Arrow buffers; the conditions of
``Schema.checks`` are one DuckDB query. Each gives the rows that broke it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from everloop.core.schema import OnFail, Schema
from everloop.data import sql
from everloop.data.arrow import inspect
from everloop.data.rules import Rule, rules_of
from everloop.errors import Fault, InvalidInput

__all__ = ["MOST_FAULTS", "BrokenRule", "CheckReport", "check", "row_faults"]

#: Faults kept in an error; the counts in its details tell of all.
MOST_FAULTS = 1000

_HINT = "row numbers count from 0 in the frame as it was given; no version was made"


class BrokenRule(NamedTuple):
    """A rule and the rows that broke it.

    Attributes:
        columns: What the rule looks at; empty for a condition over the whole row.
        rows: Row numbers in the frame as given, from 0, ascending.
    """

    rule: str
    on_fail: OnFail
    reason: str
    owner: str
    rows: np.ndarray
    columns: tuple[str, ...] = ()


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
        """The rows that no ``drop`` rule leaves out."""
        dropped = [rule.rows for rule in self.broken if rule.on_fail == "drop"]
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


def check(table: pa.Table, schema: Schema, *, keep_last: bool = False) -> CheckReport:
    """Hold `table` against `schema`; nothing is raised for what is wrong with the rows.

    Columns that are missing or of a wrong type are faults, and the rules over the others are
    judged all the same, so that one look shows everything.

    Args:
        keep_last: Of rows with one key the last one stays, and the others are dropped as by a rule.

    Raises:
        InvalidInput: If a rule itself cannot be evaluated.
    """
    seen = inspect(table, schema)
    counts = {}
    if seen.columns:
        counts["columns"] = len(seen.columns)
    if seen.rows:
        counts["types"] = len(seen.rows)
    frame = seen.table
    rules = rules_of(schema, frozenset(frame.column_names), keep_last=keep_last)
    broken = _by_rule(frame, rules)
    whole = not seen.columns and not seen.rows
    by_condition = _by_condition(frame, schema) if whole else []
    failed = [(rule, found) for rule, found in broken if found.on_fail == "fail"]
    counts |= {found.rule: found.rows.size for _, found in failed}
    counts |= {found.rule: found.rows.size for found in by_condition if found.on_fail == "fail"}
    share = _shares(counts)
    rows = list(seen.rows[: share.get("types", 0)])
    for rule, found in failed:
        rows += _told(frame, rule, found.rows[: share[found.rule]])
    for found in by_condition:
        if found.on_fail == "fail":
            rows += row_faults(found.rows[: share[found.rule]], "", found.reason)
    faults = [*seen.columns[: share.get("columns", 0)], *sorted(rows, key=_row_of)]
    return CheckReport(faults, [found for _, found in broken] + by_condition, frame, counts)


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


def _by_rule(frame: pa.Table, rules: Sequence[Rule]) -> list[tuple[Rule, BrokenRule]]:
    if not rules or not frame.num_rows:
        return []
    needed = list(dict.fromkeys(name for rule in rules for name in rule.columns))
    rows = pl.from_arrow(frame.select(needed), rechunk=False)
    assert isinstance(rows, pl.DataFrame)
    wanted = [rule.broken.arg_true().implode().alias(str(n)) for n, rule in enumerate(rules)]
    found = rows.lazy().select(wanted).collect()
    return list(_found(rules, found))


def _found(rules: Sequence[Rule], found: pl.DataFrame) -> Iterator[tuple[Rule, BrokenRule]]:
    for n, rule in enumerate(rules):
        rows = found.to_series(n)[0].to_numpy().astype(np.int64)
        if rows.size:
            broken = BrokenRule(
                rule.name, rule.on_fail, rule.reason, rule.owner, rows, rule.columns
            )
            yield rule, broken


def _by_condition(frame: pa.Table, schema: Schema) -> list[BrokenRule]:
    if not schema.checks:
        return []
    rows = sql.broken_rows(frame, {check.name: check.rule for check in schema.checks})
    return [
        BrokenRule(c.name, c.on_fail, c.reason or f"breaks {c.rule}", c.owner, rows[c.name])
        for c in schema.checks
        if rows[c.name].size
    ]


def _told(frame: pa.Table, rule: Rule, rows: np.ndarray) -> list[Fault]:
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
