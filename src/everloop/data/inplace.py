"""Checks where the data lies: the rules of a schema as SQL, for a DuckDB connection of the user's.

Two queries count what every rule breaks (one more for each different ``where``), and one for each
broken rule fetches its first rows.
The order of rows is that in which the engine gives them: a rule over an order, or over values that
repeat, means nothing beyond that on a relation that has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa

from everloop.core.check import ORDERS, PATTERNS, Check
from everloop.core.expr import columns_of, kind_of
from everloop.core.expr_sql import compile_sql, literal
from everloop.core.quality import SHOWN_ROWS, QualityReport
from everloop.core.schema import Field, Schema
from everloop.data.arrow import arrow_type, inspect
from everloop.data.check_rules import Figure, Plan, ValuesOf, plan_of
from everloop.data.judge import reported
from everloop.data.onepass import Broken, FigureFound, is_broken
from everloop.errors import Fault, InvalidInput

__all__ = ["check_sql"]

_LARGEST = 2**126

# Names that no table has; SQL would take a column of the table for them otherwise.
_ROW = "__everloop_row"
_BROKEN = "__everloop_broken"


class _Condition(NamedTuple):
    """When a row breaks a rule, in SQL.

    Attributes:
        seen: Whether NaN is null there.
        where: Which rows it looks at, in SQL; empty for all.
        mostly: Least share of those that must hold it.
    """

    sql: str
    seen: bool = False
    where: str = ""
    mostly: float = 1.0


def check_sql(
    connection: duckdb.DuckDBPyConnection,
    relation: str,
    schema: Schema,
    *,
    rows: int = SHOWN_ROWS,
) -> QualityReport:
    """Hold a table of a database against `schema`, without fetching it.

    Every rule names the same rows as over a frame. ``references`` looks into the relation of that
    name in the same database.

    Args:
        connection: Of DuckDB; what it has attached or can read, it can check.
        relation: What stands behind FROM: the name of a table, or a query in parentheses.
        schema: What must hold.
        rows: Most failing rows of each rule to hand back; all are counted.

    Raises:
        InvalidInput: If a check is a function, or something cannot be evaluated.
    """
    try:
        return _checked(connection, relation, schema, rows)
    except duckdb.Error as error:
        personal = any(field.pii for field in schema.fields)
        why = type(error).__name__ if personal else str(error).splitlines()[0]
        raise InvalidInput(f"{relation} cannot be checked: {why}") from None


def _checked(
    cursor: duckdb.DuckDBPyConnection, relation: str, schema: Schema, show: int
) -> QualityReport:
    shape = inspect(_fetch(cursor, f"SELECT * FROM {relation} LIMIT 0"), schema)
    present = frozenset(shape.table.column_names)
    plan = plan_of(schema, present, _any_values(schema))
    if not set(schema.names) <= present:
        plan = plan._replace(outside=[one for one in plan.outside if one.columns])
    conditions = _conditions(plan, schema)
    source = f'(SELECT *, row_number() OVER () - 1 AS "{_ROW}" FROM {relation})'
    as_seen = _as_seen(schema, present)
    total, figures = _figures(cursor, source, plan, schema)
    counts: dict[str, int] = {}
    sources = {name: _looked_at(source, one, as_seen) for name, one in conditions.items()}
    for of in dict.fromkeys(sources.values()):
        names = [name for name, its in sources.items() if its == of]
        flags = ", ".join(f"({conditions[n].sql}) AS {_BROKEN}{k}" for k, n in enumerate(names))
        sums = ", ".join(f"count(*) FILTER (WHERE {_BROKEN}{k})" for k in range(len(names)))
        query = f"SELECT count(*), {sums} FROM (SELECT {flags} FROM {of})"
        [[judged, *failed]] = cursor.execute(query).fetchall()
        for name, count in zip(names, failed, strict=True):
            if is_broken(count, judged, conditions[name].mostly):
                counts[name] = count
    broken = []
    for name, columns, reason, on_fail, owner in _headed(plan):
        if counts.get(name):
            wanted = [*schema.key, *(c for c in columns if c not in schema.key)]
            one, of = conditions[name], sources[name]
            kept = _first(cursor, of, one.sql, [c for c in wanted if c in present], show)
            numbers = kept[_ROW]
            broken.append(
                Broken(
                    name, columns, reason, on_fail, owner, "", None, counts[name],
                    np.asarray(numbers.to_numpy(), dtype=np.int64), kept.drop(_ROW),
                )
            )  # fmt: skip
    faults = [str(fault) for fault in shape.columns]
    return reported(plan, (broken, figures), schema, total, faults)


def _any_values(schema: Schema) -> ValuesOf:
    # The plan for Polars wants values of the right type; SQL looks them up itself.
    kinds = {c.to: schema.field(c.columns[0]).type for c in schema.checks if c.kind == "references"}

    def values(dataset: str, column: str) -> pl.Series:
        kind = kinds.get(dataset) or kinds[f"{dataset}/{column}"]
        found = pl.from_arrow(pa.array([], arrow_type(kind)))
        assert isinstance(found, pl.Series)
        return found

    return values


def _headed(plan: Plan) -> Iterator[tuple[str, tuple[str, ...], str, Any, str]]:
    for rule in plan.rules:
        yield rule.name, rule.columns, rule.reason, rule.on_fail, rule.owner
    for outside in plan.outside:
        check = outside.check
        yield check.name, outside.columns, outside.reason, check.on_fail, check.owner


def _conditions(plan: Plan, schema: Schema) -> dict[str, _Condition]:
    checks = {check.name: check for check in schema.checks}
    functions = [check for check in schema.checks if check.kind == "function"]
    if functions:
        faults = [Fault(f"checks.{c.name}", "a function cannot run in SQL") for c in functions]
        raise InvalidInput("a check cannot be evaluated", faults)
    found = {}
    for rule in plan.rules:
        if rule.name in checks:
            check = checks[rule.name]
            where = _where(check, schema)
            found[rule.name] = _Condition(_of_check(check, schema), False, where, check.mostly)
        elif rule.name == "key.unique":
            found[rule.name] = _Condition(_repeats([schema.field(n) for n in schema.key]))
        else:
            column, _, kind = rule.name.removeprefix("key.").rpartition(".")
            found[rule.name] = _Condition(_FIELD[kind](schema.field(column)))
    for outside in plan.outside:
        check = outside.check
        sql = f"(CASE WHEN true THEN {check.rule}\nEND) IS NOT TRUE"
        found[check.name] = _Condition(sql, True, _where(check, schema), check.mostly)
    return found


def _where(check: Check, schema: Schema) -> str:
    if (node := check.condition) is None:
        return ""
    return compile_sql(node, {name: kind_of(schema.field(name).type) for name in columns_of(node)})


def _looked_at(source: str, one: _Condition, as_seen: str) -> str:
    of = f"(SELECT * FROM {source} WHERE {one.where})" if one.where else source
    return f"(SELECT * REPLACE ({as_seen}) FROM {of})" if one.seen else of


def _name(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def _missing(field: Field) -> str:
    name = _name(field.name)
    if field.type.startswith("float"):
        return f"({name} IS NULL OR isnan({name}))"
    return f"({name} IS NULL)"


def _number(field: Field, value: float) -> str:
    if field.type.startswith("float"):
        return f"CAST('{float(value)!r}' AS {'FLOAT' if field.type == 'float32' else 'DOUBLE'})"
    # DuckDB has no larger number than 2^127 - 1, and no column of ours comes near.
    return f"CAST('{max(-_LARGEST, min(int(value), _LARGEST))}' AS HUGEINT)"


def _compared(field: Field) -> str:
    name = _name(field.name)
    return name if field.type.startswith("float") else f"CAST({name} AS HUGEINT)"


def _bound(field: Field, sign: str, bound: float | None, turn: Callable[[float], int]) -> str:
    assert bound is not None
    limit = bound if field.type.startswith("float") else turn(bound)
    return f"{_compared(field)} {sign} {_number(field, limit)} AND NOT {_missing(field)}"


def _among(field: Field) -> str:
    if field.is_numeric:
        listed = ", ".join(_number(field, v) for v in field.among if not isinstance(v, str))
        return f"{_compared(field)} NOT IN ({listed}) AND NOT {_missing(field)}"
    return f"{_name(field.name)} NOT IN ({', '.join(map(literal, field.among))})"


def _regex(field: Field) -> str:
    pattern = literal(rf"\A(?:{field.regex})\z")
    return f"NOT regexp_matches({_name(field.name)}, {pattern})"


def _repeats(fields: Sequence[Field]) -> str:
    names = ", ".join(_name(field.name) for field in fields)
    some = " OR ".join(map(_missing, fields))
    return f'row_number() OVER (PARTITION BY {names} ORDER BY "{_ROW}") > 1 AND NOT ({some})'


def _repeated(check: Check, schema: Schema) -> str:
    fields = [schema.field(name) for name in check.columns]
    names = ", ".join(_name(field.name) for field in fields)
    order = f'ORDER BY "{_ROW}"' + (" DESC" if check.stays == "last" else "")
    number = "count(*)" if check.stays == "none" else "row_number()"
    seen = f"{number} OVER (PARTITION BY {names} {'' if check.stays == 'none' else order}) > 1"
    return seen if check.nulls_equal else f"{seen} AND NOT ({' OR '.join(map(_missing, fields))})"


_FIELD: dict[str, Callable[[Field], str]] = {
    "not_null": _missing,
    "ge": lambda field: _bound(field, "<", field.ge, math.ceil),
    "le": lambda field: _bound(field, ">", field.le, math.floor),
    "among": _among,
    "regex": _regex,
    "max_length": lambda field: f"length({_name(field.name)}) > {field.max_length}",
    "unique": lambda field: _repeats([field]),
}
_SIGNS = dict(zip(ORDERS, ("<", "<=", ">", ">="), strict=True))


def _of_check(check: Check, schema: Schema) -> str:
    if check.kind == "expression":
        kinds = {name: kind_of(schema.field(name).type) for name in columns_of(check.node)}
        return f"({compile_sql(check.node, kinds)}) IS NOT TRUE"
    if check.kind == "unique":
        return _repeated(check, schema)
    field = schema.field(check.columns[0])
    if check.kind in PATTERNS:
        found = f"regexp_matches({_name(field.name)}, {literal(check.rule)})"
        return f"NOT {found}" if check.kind == "matches" else found
    if check.kind in _SIGNS:
        value = f"CASE WHEN {_missing(field)} THEN NULL ELSE {_name(field.name)} END"
        return (
            f"coalesce(({value}) {_SIGNS[check.kind]} "
            f'lag({value} IGNORE NULLS) OVER (ORDER BY "{_ROW}"), false)'
        )
    dataset, _, column = check.to.partition("/")
    other = _name(column or field.name)
    known = f"SELECT {other} FROM {_name(dataset)} WHERE {other} IS NOT NULL"
    return f"NOT {_missing(field)} AND {_name(field.name)} NOT IN ({known})"


def _as_seen(schema: Schema, present: frozenset[str]) -> str:
    found = [f'"{_ROW}" AS "{_ROW}"']
    for field in schema.fields:
        name = _name(field.name)
        if field.name not in present:
            continue
        if field.type.startswith("float"):
            found.append(f"CASE WHEN isnan({name}) THEN NULL ELSE {name} END AS {name}")
        elif field.type == "timestamp":
            found.append(f"make_timestamp(epoch_us({name})) AS {name}")
    return ", ".join(found)


def _figures(
    cursor: duckdb.DuckDBPyConnection, source: str, plan: Plan, schema: Schema
) -> tuple[int, list[FigureFound]]:
    wanted = ["count(*)", *(_figure(figure, schema) for figure in plan.figures)]
    [values] = cursor.execute(f"SELECT {', '.join(wanted)} FROM {source}").fetchall()
    found = []
    for figure, value in zip(plan.figures, values[1:], strict=True):
        check = figure.check
        number = None if value is None else float(value)
        told = figure.broken_by(number)
        found.append(
            FigureFound(check.name, check.on_fail, check.owner, check.columns, number, told)
        )
    return int(values[0]), found


def _figure(figure: Figure, schema: Schema) -> str:
    check = figure.check
    judged = f"({_where(check, schema) or 'true'})"
    rows = f"count(*) FILTER (WHERE {judged})"
    if check.kind == "row_count":
        return rows
    field = schema.field(check.columns[0])
    value = f"CASE WHEN {judged} AND NOT {_missing(field)} THEN {_name(field.name)} END"
    if check.kind == "null_share":
        return f"({rows} - count({value})) / nullif({rows}, 0)"
    if check.kind == "distinct":
        return f"count(DISTINCT {value})"
    if check.kind == "distinct_share":
        return f"count(DISTINCT {value}) / nullif(count({value}), 0)"
    if check.kind == "median":
        # The middle of two, as one half of each: DuckDB's own gives NaN between two infinities.
        number = f"CAST({value} AS DOUBLE)"
        return f"(quantile_disc({number}, 0.5) - quantile_disc(-({number}), 0.5)) / 2"
    function = {"mean": "avg", "std": "stddev_samp"}.get(check.kind, check.kind)
    return f"{function}(CAST({value} AS DOUBLE))"


def _first(
    cursor: duckdb.DuckDBPyConnection,
    source: str,
    condition: str,
    columns: Sequence[str],
    show: int,
) -> pl.DataFrame:
    names = ", ".join([f'"{_ROW}"', *map(_name, columns)])
    query = (
        f"SELECT {names} FROM (SELECT {names}, ({condition}) AS {_BROKEN} FROM {source}) "
        f'WHERE {_BROKEN} ORDER BY "{_ROW}" LIMIT {show:d}'
    )
    frame = pl.from_arrow(_fetch(cursor, query))
    assert isinstance(frame, pl.DataFrame)
    return frame


def _fetch(cursor: duckdb.DuckDBPyConnection, query: str) -> pa.Table:
    relation: Any = cursor.sql(query)
    table: pa.Table = relation.to_arrow_table()
    return table
