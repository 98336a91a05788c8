"""The checks of a schema, made ready: what the one pass evaluates, and what is asked beside it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import polars as pl

from everloop.core.check import AGGREGATES, ORDERS, OVER_TIME, PATTERNS, Check
from everloop.core.expr import columns_of
from everloop.core.schema import Field, Schema
from everloop.data.expr_polars import compile_polars
from everloop.data.functions import named, sees_all
from everloop.data.rules import POLARS, Rule, missing, rules_of
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
        judged: True for a row that it is given; None for all.
    """

    check: Check
    columns: tuple[str, ...]
    reason: str
    is_hidden: bool
    judged: pl.Expr | None = None


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
    """Whether a check may hold a row against others: by a window, a query, or a function of all."""
    if check.kind == "function":
        return sees_all(check.to)
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
            if check.where:
                told = "a Polars expression is judged of all rows: say the condition in it"
                raise InvalidInput(told, hint="or give where= to a check of another kind")
            plan.rules.append(_rule(check, check.columns, ~_true(what), fields, is_whole=True))
        else:
            plan.outside.append(_outside(check, f"{check.to} does not hold", fields))
    elif check.kind == "rows":
        plan.outside.append(_outside(check, f"breaks {check.rule}", fields))
    elif check.kind == "expression":
        columns = columns_of(check.node)
        holds = compile_polars(check.node, {name: fields[name].type for name in columns})
        plan.rules.append(_rule(check, columns, ~_true(holds), fields))
    elif check.kind in PATTERNS:
        found = pl.col(check.columns[0]).str.contains(check.rule)
        broken = ~found if check.kind == "matches" else found
        plan.rules.append(_rule(check, check.columns, broken.fill_null(False), fields))
    elif check.kind == "unique":
        seen = _repeated(check, fields)
        plan.rules.append(_rule(check, check.columns, seen, fields, is_whole=True))
    elif check.kind in ORDERS:
        broken = _out_of_order(check, fields)
        plan.rules.append(_rule(check, check.columns, broken, fields, is_whole=True))
    else:
        plan.rules.append(_reference(check, fields, values_of))


def _true(holds: pl.Expr) -> pl.Expr:
    # Null is not true; a constant is one value a row here.
    return holds.cast(pl.Boolean).fill_null(False)


def _judged(check: Check, fields: Mapping[str, Field]) -> pl.Expr | None:
    if (node := check.condition) is None:
        return None
    return _true(compile_polars(node, {name: fields[name].type for name in columns_of(node)}))


_STAYS = {
    "first": "the values stand in an earlier row already",
    "last": "the values stand in a later row again",
    "none": "the values stand in another row too",
}
_REASONS = {
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
    if check.kind == "unique":
        reason = check.reason or _STAYS[check.stays]
    judged = _judged(check, fields)
    if judged is not None:
        broken, columns = broken & judged, tuple(dict.fromkeys((*columns, *check.reads)))
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
        judged,
        check.mostly,
    )


def _outside(check: Check, reason: str, fields: Mapping[str, Field]) -> Outside:
    columns = check.columns
    seen = columns or tuple(fields)
    hidden = any(fields[name].pii for name in seen if name in fields)
    return Outside(check, columns, check.reason or reason, hidden, _judged(check, fields))


def _figure(check: Check, fields: Mapping[str, Field]) -> pl.Expr:
    judged = _judged(check, fields)
    rows = pl.len() if judged is None else judged.sum()
    if check.kind == "row_count":
        return rows
    column = _present(check, fields)
    if check.kind == "null_share":
        return pl.when(rows > 0).then((rows - column.count()) / rows)
    if check.kind == "distinct":
        return column.drop_nulls().n_unique()
    if check.kind == "distinct_share":
        return pl.when(column.count() > 0).then(column.drop_nulls().n_unique() / column.count())
    number = column.cast(pl.Float64)
    if check.kind == "sum":
        return pl.when(column.count() > 0).then(number.sum())
    figure: pl.Expr = getattr(number, check.kind)()  # mean, median, std, min, max
    return figure


def _present(check: Check, fields: Mapping[str, Field]) -> pl.Expr:
    """The check's one column, null where it is missing or not judged."""
    field = fields[check.columns[0]]
    column, judged = pl.col(field.name), _judged(check, fields)
    if field.type.startswith("float"):
        column = column.fill_nan(None)
    return column if judged is None else pl.when(judged).then(column)


def _repeated(check: Check, fields: Mapping[str, Field]) -> pl.Expr:
    judged = _judged(check, fields)
    # A row that is not judged must equal none that is.
    parts = [pl.col(name) for name in check.columns]
    parts += [] if judged is None else [judged.alias("\0judged")]
    whole = pl.struct(parts) if len(parts) > 1 else parts[0]
    if check.stays == "none":
        seen = whole.is_duplicated()
    else:
        seen = ~(whole.is_last_distinct() if check.stays == "last" else whole.is_first_distinct())
    if check.nulls_equal:
        return seen
    return seen & ~pl.any_horizontal([missing(fields[name]) for name in check.columns])


def _out_of_order(check: Check, fields: Mapping[str, Field]) -> pl.Expr:
    column = _present(check, fields)
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
