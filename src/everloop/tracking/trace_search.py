"""Searching traces: filters and orders compiled to SQL, pages by key."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import (
    BigInteger,
    Double,
    and_,
    case,
    cast,
    exists,
    func,
    literal,
    not_,
    or_,
    select,
)
from sqlalchemy.exc import DataError

from everloop.catalog.regexp import check_pattern
from everloop.catalog.tables import (
    trace_assessments,
    trace_notes,
    trace_runs,
    traces,
)
from everloop.catalog.transaction import Transaction
from everloop.core.trace import PROMPTS_TAG, TracePage
from everloop.errors import InvalidInput
from everloop.tracking.compare import Condition, after, compare, compare_time
from everloop.tracking.pages import decode_token, encode_token, search_digest
from everloop.tracking.search import All, Any_, Clause, Grammar, Not, Order, parse, parse_order
from everloop.tracking.span_search import spans_that
from everloop.tracking.trace_rows import NAME_TAG, RUN_NOTE, read_traces

__all__ = ["page_of_traces"]

_TRACES = Grammar(
    attributes={
        "request_id": "text",
        "client_request_id": "text",
        "name": "text",
        "run_id": "text",
        "status": "text",
        "text": "text",
        "prompt": "text",
        "experiment_id": "text",
        "timestamp_ms": "number",
        "execution_time_ms": "number",
        "end_time_ms": "number",
    },
    entities={
        "trace": "attribute",
        "tag": "tag",
        "tags": "tag",
        "metadata": "metadata",
        "request_metadata": "metadata",
        "span": "span",
        "feedback": "feedback",
        "expectation": "expectation",
        "issue": "issue",
    },
    aliases={
        "timestamp": "timestamp_ms",
        "execution_time": "execution_time_ms",
        "end_time": "end_time_ms",
    },
    lists=frozenset({"attribute", "span"}),
    measured=frozenset({"feedback", "expectation"}),
    nullable=frozenset({"name", "run_id"}),
    has_patterns=True,
    quotes_numbers=True,
)
_INVALID_PATTERN = "2201B"
#: What a number looks like as the text of an assessment.
_NUMBER = r"^-?[0-9]+([.][0-9]+)?([eE][+-]?[0-9]+)?$"
_NUMBERS: dict[str, Any] = {
    "execution_time_ms": traces.c.duration_ms,
    "end_time_ms": cast(traces.c.started_at, BigInteger) // 1000 + traces.c.duration_ms,
}


def _note(kind: str, key: str) -> Any:
    table = trace_notes
    return (table.c.trace_pk == traces.c.pk, table.c.kind == kind, table.c.key == key)


def _note_value(kind: str, key: str) -> Any:
    return select(trace_notes.c.value).where(*_note(kind, key)).scalar_subquery()


def _attribute(key: str) -> Any:
    columns: dict[str, Any] = {
        "request_id": traces.c.id,
        "client_request_id": func.nullif(traces.c.client_request_id, ""),
        "status": func.upper(traces.c.state),
        "experiment_id": traces.c.experiment_pk,
    }
    if key == "name":
        return _note_value("tag", NAME_TAG)
    if key == "run_id":
        return _note_value("metadata", RUN_NOTE)
    return columns[key]


def _condition(tree: Any, dialect: str) -> Condition:
    if isinstance(tree, All):
        spans = [clause for part in tree.parts if (clause := _of_span(part)) is not None]
        rest = [_condition(part, dialect) for part in tree.parts if _of_span(part) is None]
        # What is asked of spans is asked of one and the same.
        return and_(*rest, *([spans_that(spans, dialect)] if spans else []))
    if isinstance(tree, Any_):
        return or_(*(_condition(part, dialect) for part in tree.parts))
    if isinstance(tree, Not):
        return not_(func.coalesce(_condition(tree.part, dialect), False))
    return _clause(tree, dialect)


def _clause(clause: Clause, dialect: str) -> Condition:
    entity, key, op, value = clause
    if op == "RLIKE":
        check_pattern(value)
    if entity == "attribute" and key != "text":
        return _attribute_clause(key, op, value, dialect)
    if (of_span := _of_span(clause)) is not None:
        return spans_that([of_span], dialect)
    if entity in ("tag", "metadata"):
        mine: tuple[Condition, ...] = _note(entity, key)
        column: Any = trace_notes.c.value
    elif entity == "issue":
        return _issue(clause)
    else:
        table = trace_assessments
        mine = (
            table.c.trace_pk == traces.c.pk,
            table.c.kind == entity,
            table.c.name == key,
            table.c.valid,
        )
        column = table.c.text
        if op in (">", ">=", "<", "<="):
            is_number = compare(column, "RLIKE", _NUMBER, dialect)
            column = case((is_number, cast(column, Double)))
    if op == "IS NULL":
        return ~exists().where(*mine)
    if op == "IS NOT NULL":
        return exists().where(*mine)
    return exists().where(*mine, compare(column, op, value, dialect))


def _attribute_clause(key: str, op: str, value: Any, dialect: str) -> Condition:
    if key == "timestamp_ms":
        return compare_time(traces.c.started_at, op, value)
    if key in _NUMBERS:
        return compare(_NUMBERS[key], op, value, dialect)
    if key == "prompt":
        return _prompt(op, value, dialect)
    if key == "experiment_id":
        raise InvalidInput(
            "Invalid clause(s) in filter string: 'experiment_id'",
            hint="name the experiments as the locations of the search",
        )
    if op in ("IS NULL", "IS NOT NULL"):
        raw = _attribute(key)
        return raw.is_(None) if op == "IS NULL" else raw.is_not(None)  # type: ignore[no-any-return]
    holds = compare(_attribute(key), op, value, dialect)
    if key != "run_id":
        return holds
    linked = exists().where(
        trace_runs.c.trace_pk == traces.c.pk, compare(trace_runs.c.run_id, op, value, dialect)
    )
    return or_(holds, linked)


def _of_span(part: Any) -> Clause | None:
    """The clause if it asks something of a span."""
    if not isinstance(part, Clause):
        return None
    if part[:2] == ("attribute", "text"):
        return part._replace(entity="span", key="content")
    return part if part.entity == "span" else None


def _issue(clause: Clause) -> Condition:
    if (clause.key, clause.op) != ("id", "="):
        raise InvalidInput(
            f"Invalid clause(s) in filter string: 'issue.{clause.key[:80]}'",
            [("filter", "wanted issue.id = '...'")],
        )
    table = trace_assessments
    return exists().where(
        table.c.trace_pk == traces.c.pk, table.c.kind == "issue", table.c.name == clause.value
    )


def _prompt(op: str, value: str, dialect: str) -> Condition:
    """Traces that were linked to a version of a prompt, ``name/version``."""
    name, slash, version = value.partition("/") if op == "=" else ("", "", "")
    if not slash or "/" in version:
        raise InvalidInput(
            "Invalid clause(s) in filter string: 'prompt'",
            [("filter", "wanted prompt = 'name/version'")],
        )
    wanted = json.dumps({"name": name, "version": version}, separators=(",", ":"))[1:-1]
    position = func.instr if dialect == "sqlite" else func.strpos
    texts = func.replace(trace_notes.c.value, '": "', '":"')
    texts = func.replace(texts, '", "', '","')
    return exists().where(*_note("tag", PROMPTS_TAG), position(texts, wanted) > 0)


def _columns(orders: list[Order]) -> list[tuple[Any, bool, type]]:
    """The columns of an order, none of them ever null, each with its direction."""
    columns: list[tuple[Any, bool, type]] = []
    for order in orders:
        raw, kind = _order_column(order)
        # What has no value comes last in both directions.
        columns.append((case((raw.is_(None), 1), else_=0), False, int))
        empty = literal(0) if kind is int else literal("")
        columns.append((func.coalesce(raw, empty), order.descending, kind))
    if "timestamp_ms" not in [order.key for order in orders if order.entity == "attribute"]:
        columns.append((cast(traces.c.started_at, BigInteger), True, int))
    columns.append((traces.c.id, False, str))
    return columns


def _order_column(order: Order) -> tuple[Any, type]:
    if order.entity in ("tag", "metadata"):
        return _note_value(order.entity, order.key), str
    if order.entity != "attribute" or order.key in ("text", "client_request_id"):
        raise InvalidInput(
            f"Invalid order_by: {order.entity}.{order.key}",
            hint="order by timestamp_ms, execution_time_ms, status, name, run_id or tags.<key>",
        )
    if order.key == "timestamp_ms":
        return cast(traces.c.started_at, BigInteger), int
    if order.key == "end_time_ms":
        # In microseconds: a division would be another number in each dialect.
        return cast(traces.c.started_at, BigInteger) + traces.c.duration_ms * 1000, int
    if order.key == "execution_time_ms":
        return traces.c.duration_ms, int
    return _attribute(order.key), int if order.key == "experiment_id" else str


def page_of_traces(
    tx: Transaction,
    *,
    experiments: list[int],
    filter_: str,
    order_by: list[str],
    limit: int,
    page_token: str,
) -> TracePage:
    """One page of a search.

    Raises:
        InvalidInput: If filter, order or token is wrong.
    """
    tree = parse(filter_, _TRACES)
    columns = _columns(parse_order(order_by, _TRACES))
    search = search_digest("traces", experiments, filter_, order_by)
    conditions: list[Condition] = [traces.c.experiment_pk.in_(experiments)]
    if tree is not None:
        conditions.append(_condition(tree, tx.dialect))
    if page_token:
        kinds = [kind for _, _, kind in columns]
        conditions.append(after(columns, decode_token(page_token, search, kinds)))
    places = [column.label(f"sort{i}") for i, (column, _, _) in enumerate(columns)]
    query = select(traces, *places).where(*conditions)
    for column, descending, _ in columns:
        query = query.order_by(column.desc() if descending else column.asc())
    try:
        rows = list(tx.all(query.limit(limit + 1)))
    except DataError as error:
        # PostgreSQL's regular expressions lack some things that RE2's have.
        if getattr(error.orig, "sqlstate", "") != _INVALID_PATTERN:
            raise
        said = str(error.orig).partition("\n")[0][:200]
        raise InvalidInput("Invalid regular expression", [("filter", said)]) from None
    token = ""
    if len(rows) > limit:
        rows.pop()
        token = encode_token(search, list(rows[-1][-len(places) :]))
    return TracePage(traces=tuple(read_traces(tx, rows)), next_page_token=token)
