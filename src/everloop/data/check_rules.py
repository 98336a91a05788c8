"""The checks of a schema, made ready: what the one pass evaluates, and what is asked beside it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import polars as pl

from everloop.core.check import AGGREGATES, ORDERS, OVER_TIME, Check
from everloop.core.schema import Field, Schema
from everloop.data.expr_polars import compile_polars
from everloop.data.functions import named
from everloop.data.rules import POLARS, Rule, missing, repeats, rules_of
from everloop.errors import Fault, InvalidInput, NotFound

__all__ = ["Figure", "Outside", "Plan", "ValuesOf", "plan_of", "sees_other_rows"]

#: The values of a column of the latest version of a dataset: ``values_of("planes", "tailnum")``.
ValuesOf = Callable[[str, str], pl.Series]

_WINDOW = re.compile(r"\bover\b|\bselect\b", re.IGNORECASE)


class Figure(NamedTuple):
    """A figure of the table, and the check that bounds it."""

    check: Check
    value: pl.Expr

    def broken_by(self, value: float | None) -> str:
        """How `value` breaks the check; empty if it does not."""
        told, why = self._told(value), self.check.reason
        return f"{told}: {why}" if told and why else told

    def _told(self, value: float | None) -> str:
        check = self.check
        what = f"{check.kind} of {check.columns[0]}" if check.columns else check.kind
        if value is None or value != value:
            return f"{what} cannot be told of these values"
        if check.ge is not None and value < check.ge:
            return f"{what} is {value:g}, below {check.ge:g}"
        if check.le is not None and value > check.le:
            return f"{what} is {value:g}, above {check.le:g}"
        return ""


class Outside(NamedTuple):
    """A check that no Polars expression says: an SQL condition, or a function of rows.

    Attributes:
        columns: What it looks at; empty for all.
        is_hidden: Whether it looks at personal data.
    """

    check: Check
    columns: tuple[str, ...]
    reason: str
    is_hidden: bool


class Plan(NamedTuple):
    """What is to be evaluated.

    Attributes:
        rules: Over rows, in one select.
        figures: Of the table.
        outside: Beside the pass.
        missing: Checks that look at columns which are not there, with what is wrong.
        needs_all: Whether a condition looks at other rows, and so needs all at once.
    """

    rules: list[Rule]
    figures: list[Figure]
    outside: list[Outside]
    missing: list[tuple[Check, str]]
    needs_all: bool

    @property
    def names(self) -> list[str]:
        """Every rule, in order."""
        checks = [figure.check.name for figure in self.figures]
        checks += [outside.check.name for outside in self.outside]
        return [rule.name for rule in self.rules] + checks


def plan_of(
    schema: Schema,
    present: frozenset[str],
    values_of: ValuesOf | None,
    *,
    keep_last: bool = False,
) -> Plan:
    """What `schema` asks of a frame with the columns `present`.

    Args:
        keep_last: Of rows with one key the last one stays and the others are left out.

    Raises:
        InvalidInput: With each rule that cannot be evaluated at all.
    """
    rules = rules_of(schema, present, keep_last=keep_last)
    plan = Plan(rules, [], [], [], needs_all=False)
    faults = list(_unknown_repairs(schema))
    needs_all = False
    fields = {field.name: field for field in schema.fields}
    for check in schema.checks:
        if check.kind in OVER_TIME:
            continue  # of versions, not of a frame
        gone = [name for name in check.reads if name not in present]
        if gone:
            shown = ", ".join(map(repr, gone))
            plan.missing.append((check, f"{shown} is missing or of another type"))
            continue
        try:
            _add(plan, check, fields, values_of)
        except (InvalidInput, NotFound) as error:
            told = "; ".join(filter(None, (error.message, error.hint)))
            faults.append(Fault(f"checks.{check.name}", told))
        needs_all = needs_all or sees_other_rows(check)
    if faults:
        raise InvalidInput("a check cannot be evaluated", faults)
    return plan._replace(needs_all=needs_all)


def sees_other_rows(check: Check) -> bool:
    """Whether a condition may hold a row against others: it has a window or a query in it."""
    return check.kind == "rows" and bool(_WINDOW.search(check.rule))


def _unknown_repairs(schema: Schema) -> Iterator[Fault]:
    # An unknown one must not be found out half-way, with the rows that need it.
    every: list[Field | Check] = [*schema.fields, *schema.checks]
    for one in every:
        try:
            if one.repair:
                named(one.repair, is_repair=True)
        except NotFound as error:
            yield Fault(one.name, f"{error.message}; {error.hint}")


def _add(plan: Plan, check: Check, fields: Mapping[str, Field], values_of: ValuesOf | None) -> None:
    if check.kind in AGGREGATES:
        plan.figures.append(Figure(check, _figure(check, fields)))
        return
    if check.kind == "function":
        what = named(check.to)
        if isinstance(what, pl.Expr):
            plan.rules.append(_rule(check, check.columns, ~_true(what), fields, is_whole=True))
        else:
            plan.outside.append(_outside(check, f"{check.to} does not hold", fields))
    elif check.kind == "rows":
        plan.outside.append(_outside(check, f"breaks {check.rule}", fields))
    elif check.kind == "expression":
        types = {name: fields[name].type for name in check.reads}
        holds = compile_polars(check.node, types)
        plan.rules.append(_rule(check, check.reads, ~_true(holds), fields))
    elif check.kind == "unique":
        seen = repeats([fields[name] for name in check.columns])
        plan.rules.append(_rule(check, check.columns, seen, fields, is_whole=True))
    elif check.kind in ORDERS:
        broken = _out_of_order(check, fields[check.columns[0]])
        plan.rules.append(_rule(check, check.columns, broken, fields, is_whole=True))
    else:
        plan.rules.append(_reference(check, fields, values_of))


def _true(holds: pl.Expr) -> pl.Expr:
    # Null is not true; a constant is one value a row here.
    return holds.cast(pl.Boolean).fill_null(False)


_REASONS = {
    "unique": "the values stand in an earlier row already",
    "increasing": "is below the value before it",
    "strictly_increasing": "is not above the value before it",
    "decreasing": "is above the value before it",
    "strictly_decreasing": "is not below the value before it",
}


def _rule(
    check: Check,
    columns: tuple[str, ...],
    broken: pl.Expr,
    fields: Mapping[str, Field],
    *,
    reason: str = "",
    is_whole: bool = False,
) -> Rule:
    reason = check.reason or reason or _REASONS.get(check.kind, f"breaks {check.name}")
    single = columns[0] if len(columns) == 1 else ""
    shows = bool(single) and not fields[single].pii
    return Rule(
        check.name,
        columns,
        broken,
        reason,
        check.on_fail,
        check.owner,
        (lambda value: f"{value!r}: {reason}") if shows else None,
        is_whole,
        check.repair,
    )


def _outside(check: Check, reason: str, fields: Mapping[str, Field]) -> Outside:
    columns = check.columns
    seen = columns or tuple(fields)
    hidden = any(fields[name].pii for name in seen if name in fields)
    return Outside(check, columns, check.reason or reason, hidden)


def _figure(check: Check, fields: Mapping[str, Field]) -> pl.Expr:
    if check.kind == "row_count":
        return pl.len()
    field = fields[check.columns[0]]
    column = pl.col(field.name)
    if field.type.startswith("float"):
        column = column.fill_nan(None)
    if check.kind == "null_share":
        return pl.when(pl.len() > 0).then(column.null_count() / pl.len())
    if check.kind == "distinct":
        return column.drop_nulls().n_unique()
    number = column.cast(pl.Float64)
    if check.kind == "sum":
        return pl.when(column.count() > 0).then(number.sum())
    return {"mean": number.mean, "std": number.std, "min": number.min, "max": number.max}[
        check.kind
    ]()


def _out_of_order(check: Check, field: Field) -> pl.Expr:
    column = pl.col(field.name)
    if field.type.startswith("float"):
        column = column.fill_nan(None)
    before = column.forward_fill().shift(1)
    compared = {
        "increasing": column < before,
        "strictly_increasing": column <= before,
        "decreasing": column > before,
        "strictly_decreasing": column >= before,
    }[check.kind]
    return compared.fill_null(False)


def _reference(check: Check, fields: Mapping[str, Field], values_of: ValuesOf | None) -> Rule:
    dataset, _, column = check.to.partition("/")
    field = fields[check.columns[0]]
    if values_of is None:
        raise InvalidInput("other datasets cannot be read here")
    values = values_of(dataset, column or field.name)
    mine: Any = POLARS[field.type]
    own = pl.col(field.name)
    if mine.is_integer() and values.dtype.is_integer():
        own, values = own.cast(pl.Int128), values.cast(pl.Int128)
    elif mine != values.dtype:
        raise InvalidInput(f"{field.name} is {field.type}, {check.to} is {values.dtype}")
    known = pl.lit(values.drop_nulls().unique()).implode()
    broken = ~own.is_in(known) & ~missing(field)
    reason = f"is not in {dataset}"
    return _rule(check, check.columns, broken.fill_null(False), fields, reason=reason)
