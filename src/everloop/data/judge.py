"""A table, or a version part by part, beside a schema: every broken rule with its rows, as data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import polars as pl
import pyarrow as pa

from everloop.core.quality import MASKED, SHOWN_ROWS, FailedRow, QualityReport, RuleResult
from everloop.core.schema import Check, Schema
from everloop.data.arrow import inspect
from everloop.data.check_rules import Plan, ValuesOf, plan_of
from everloop.data.frame import Table
from everloop.data.ledger import plain
from everloop.data.onepass import Broken, FigureFound, OnePass
from everloop.data.rules import POLARS
from everloop.errors import Fault, InvalidInput

__all__ = ["judge_frame", "judge_parts", "reported", "schema_of"]

#: Faults of columns and types that are told one by one.
_TOLD = 100


def schema_of(given: Schema | Sequence[Check] | None, own: Schema) -> Schema:
    """What a version is held against: a schema, its own, or its own with more checks.

    Raises:
        InvalidInput: If a check does not fit the columns, or a name stands twice.
    """
    if given is None:
        return own
    if isinstance(given, Schema):
        return given
    every: list[Any] = list(given)
    wrong = [Fault("checks", f"{one!r} is no Check") for one in every if not isinstance(one, Check)]
    if wrong:
        raise InvalidInput("a schema or a list of checks is wanted", wrong)
    return Schema(own.fields, (*own.checks, *given), own.key, own.time, own.extra)


def judge_frame(
    rows: Any, schema: Schema, *, values_of: ValuesOf | None = None, show: int = SHOWN_ROWS
) -> QualityReport:
    """Hold a frame against `schema`: whatever ``Table.of`` takes.

    A Polars frame whose columns have the wanted types already is judged where it lies.

    Raises:
        InvalidInput: If no table can be made of `rows`, or a rule cannot be evaluated.
    """
    if isinstance(rows, pl.DataFrame):
        wanted = {field.name: POLARS[field.type] for field in schema.fields}
        if dict(rows.schema) == wanted:
            return _judged([rows], schema, values_of, show, [])
    return judge_parts([Table.of(rows).to_arrow()], schema, values_of=values_of, show=show)


def judge_parts(
    parts: Iterable[pa.Table],
    schema: Schema,
    *,
    values_of: ValuesOf | None = None,
    show: int = SHOWN_ROWS,
) -> QualityReport:
    """Hold a table that comes in parts against `schema`, one part in memory at a time."""
    faults: list[str] = []
    return _judged(_conformed(parts, schema, faults), schema, values_of, show, faults)


def _conformed(
    parts: Iterable[pa.Table], schema: Schema, faults: list[str]
) -> Iterator[pl.DataFrame]:
    start = 0
    for n, part in enumerate(parts):
        seen = inspect(part, schema)
        if not n:
            faults += [str(fault) for fault in seen.columns]
        for fault in seen.rows[: max(_TOLD - len(faults), 0)]:
            row, _, rest = fault.path.removeprefix("rows[").partition("]")
            faults.append(f"rows[{int(row) + start}]{rest}: {fault.message}")
        start += part.num_rows
        frame = pl.from_arrow(seen.table, rechunk=False)
        assert isinstance(frame, pl.DataFrame)
        yield frame


def _judged(
    parts: Iterable[pl.DataFrame],
    schema: Schema,
    values_of: ValuesOf | None,
    show: int,
    faults: list[str],
) -> QualityReport:
    parts = iter(parts)
    first = next(parts, None)
    if first is None:
        first = pl.DataFrame(schema={f.name: POLARS[f.type] for f in schema.fields})
    plan = plan_of(schema, frozenset(first.columns), values_of)
    whole = set(schema.names) <= set(first.columns)
    if not whole:
        plan = plan._replace(outside=[one for one in plan.outside if one.columns])
    if plan.needs_all:
        first, parts = pl.concat([first, *parts], rechunk=False), iter(())
    judge = OnePass(plan, schema.key, lambda _: show, show)
    second = next(parts, None)
    for part in chain([first], [] if second is None else [second], parts):
        # A part whose values do not all fit a type lacks that column, and that is a fault already.
        if part.columns == first.columns:
            judge.add(part, at_once=plan.needs_all, is_all=second is None)
    return reported(plan, judge.finish(), schema, judge.rows, faults)


def reported(
    plan: Plan,
    found: tuple[list[Broken], list[FigureFound]],
    schema: Schema,
    rows: int,
    faults: Sequence[str],
) -> QualityReport:
    """What a pass found, as data."""
    broken = [_result(one, schema) for one in found[0]]
    broken += [
        RuleResult(
            rule=figure.name, on_fail=figure.on_fail, reason=figure.told, owner=figure.owner,
            columns=figure.columns, value=figure.value,
        )
        for figure in found[1]
        if figure.told
    ]  # fmt: skip
    broken += [
        RuleResult(
            rule=check.name, on_fail="fail", reason=told, owner=check.owner, columns=check.reads
        )
        for check, told in plan.missing
    ]
    names = (*plan.names, *(check.name for check, _ in plan.missing))
    order = {name: n for n, name in enumerate(names)}
    broken.sort(key=lambda result: order[result.rule])
    return QualityReport(rows=rows, rules=names, broken=tuple(broken), faults=tuple(faults))


def _result(found: Broken, schema: Schema) -> RuleResult:
    personal = {field.name for field in schema.fields if field.pii}
    shown = found.shown
    values = plain(shown.to_arrow()) if shown.width else iter(())
    kept = []
    key = [name for name in schema.key if name in shown.columns]
    columns = [name for name in found.columns if name in shown.columns]
    hidden = personal & set(shown.columns)
    for number in found.rows.tolist():
        row = next(values, {})
        for name in hidden:
            row[name] = MASKED if row[name] is not None else None
        of_key = {name: row[name] for name in key}
        kept.append(FailedRow(number, of_key, {name: row[name] for name in columns}))
    return RuleResult(
        rule=found.name, on_fail=found.on_fail, reason=found.reason, owner=found.owner,
        columns=found.columns, failed=found.failed, rows=tuple(kept),
    )  # fmt: skip
