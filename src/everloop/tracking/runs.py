"""Searching runs: filters and orders compiled to SQL, pages by key and not by offset."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Double,
    Text,
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

from everloop.catalog.engine import Transaction
from everloop.catalog.tables import (
    experiments as experiments_table,
)
from everloop.catalog.tables import (
    metric_keys,
    metric_latest,
    run_inputs,
    run_params,
    run_tags,
    runs,
)
from everloop.core.run import RunPage
from everloop.tracking.compare import Condition, after, compare, compare_time
from everloop.tracking.pages import decode_token, encode_token, search_digest
from everloop.tracking.places import OURS
from everloop.tracking.search import All, Any_, Clause, Grammar, Not, Order, parse, parse_order
from everloop.tracking.store import read_runs

__all__ = ["RUNS", "page_of_runs"]

RUNS = Grammar(
    attributes={
        "run_id": "text",
        "run_name": "text",
        "status": "text",
        "artifact_uri": "text",
        "user_id": "text",
        "start_time": "number",
        "end_time": "number",
    },
    entities={
        "metric": "metric",
        "metrics": "metric",
        "param": "param",
        "params": "param",
        "parameter": "param",
        "parameters": "param",
        "tag": "tag",
        "tags": "tag",
        "dataset": "dataset",
        "datasets": "dataset",
    },
    aliases={
        "created": "start_time",
        "Created": "start_time",
        "run name": "run_name",
        "Run name": "run_name",
        "Run Name": "run_name",
    },
    keys={"dataset": ("name", "digest", "context")},
)

_DATASET = {
    "name": run_inputs.c.dataset,
    "digest": run_inputs.c.digest,
    "context": run_inputs.c.role,
}
_TIMES = {"start_time": runs.c.started_at, "end_time": runs.c.ended_at}


def _attribute(key: str) -> Any:
    if key == "status":
        # Clients know SCHEDULED and upper case; ours are queued and lower case.
        return case((runs.c.state == "queued", "SCHEDULED"), else_=func.upper(runs.c.state))
    if key == "artifact_uri":
        ours = literal(OURS) + cast(experiments_table.c.pk, Text)
        location = select(
            case((experiments_table.c.location == "", ours), else_=experiments_table.c.location)
        ).where(experiments_table.c.pk == runs.c.experiment_pk)
        return location.scalar_subquery() + "/" + runs.c.id + "/artifacts"
    columns = {
        "run_id": runs.c.id,
        "run_name": runs.c.name,
        "user_id": runs.c.actor,
    }
    return columns[key]


def _key_pk(name: str) -> Any:
    return select(metric_keys.c.pk).where(metric_keys.c.name == name).scalar_subquery()


def _condition(tree: Any, dialect: str) -> Condition:
    if isinstance(tree, All):
        return and_(*(_condition(part, dialect) for part in tree.parts))
    if isinstance(tree, Any_):
        return or_(*(_condition(part, dialect) for part in tree.parts))
    if isinstance(tree, Not):
        # A run without the thing does not meet the clause, so it meets its negation.
        return not_(func.coalesce(_condition(tree.part, dialect), False))
    return _clause(tree, dialect)


def _clause(clause: Clause, dialect: str) -> Condition:
    entity, key, op, value = clause
    if entity == "attribute" and key in _TIMES:
        return compare_time(_TIMES[key], op, value)
    if entity == "attribute":
        return compare(_attribute(key), op, value, dialect)
    if entity == "metric":
        latest = metric_latest.c
        inside = (latest.key_pk == _key_pk(key)) & _metric_holds(op, value)
        # A list of runs, not one look-up for each run: it walks the index on the value.
        return runs.c.pk.in_(select(latest.run_pk).where(inside))
    if entity == "dataset":
        holds = compare(_DATASET[key], op, value, dialect)
        return exists().where(run_inputs.c.run_pk == runs.c.pk, holds)
    table = run_params if entity == "param" else run_tags
    mine = (table.c.run_pk == runs.c.pk, table.c.key == key)
    if op == "IS NULL":
        return ~exists().where(*mine)
    if op == "IS NOT NULL":
        return exists().where(*mine)
    return exists().where(*mine, compare(table.c.value, op, value, dialect))


def _metric_holds(op: str, value: Any) -> Condition:
    latest = metric_latest.c
    holds: Condition = latest.value.op(op, is_comparison=True)(float(value))
    # NaN stands as 0 with a flag; it differs from every number and compares with none.
    return or_(latest.is_nan, holds) if op == "!=" else and_(not_(latest.is_nan), holds)


class _Sort:
    """The columns of an order, none of them ever null, each with its direction."""

    def __init__(self, orders: list[Order]) -> None:
        self.columns: list[tuple[Any, bool, type]] = []
        self.joins: list[tuple[Any, Any]] = []
        for order in orders:
            self._add(order)
        keys = [order.key for order in orders if order.entity == "attribute"]
        if "start_time" not in keys:
            self.columns.append((cast(runs.c.started_at, BigInteger), True, int))
        self.columns.append((runs.c.id, False, str))

    def _add(self, order: Order) -> None:
        if order.entity == "metric":
            table = metric_latest.alias(f"m{len(self.joins)}")
            on = and_(table.c.run_pk == runs.c.pk, table.c.key_pk == _key_pk(order.key))
            self.joins.append((table, on))
            rank = case((table.c.run_pk.is_(None), 2), (table.c.is_nan, 1), else_=0)
            column, empty, kind = table.c.value, cast(literal(0.0), Double), float
        elif order.entity in ("param", "tag"):
            source = run_params if order.entity == "param" else run_tags
            table = source.alias(f"m{len(self.joins)}")
            self.joins.append((table, and_(table.c.run_pk == runs.c.pk, table.c.key == order.key)))
            rank = case((table.c.run_pk.is_(None), 2), else_=0)
            column, empty, kind = table.c.value, literal(""), str  # type: ignore[assignment]
        else:
            self._add_attribute(order)
            return
        # Missing values come last in both directions, NaN just before them.
        self.columns.append((rank, False, int))
        self.columns.append((func.coalesce(column, empty), order.descending, kind))

    def _add_attribute(self, order: Order) -> None:
        if order.key in _TIMES:
            raw = _TIMES[order.key]
            column = cast(raw, BigInteger)
            self.columns.append((case((raw.is_(None), 2), else_=0), False, int))
            self.columns.append((func.coalesce(column, 0), order.descending, int))
        else:
            self.columns.append((_attribute(order.key), order.descending, str))


def page_of_runs(
    tx: Transaction,
    *,
    experiments: list[str] | None,
    pipeline: str,
    filter_: str,
    order_by: list[str],
    lifecycle: str,
    limit: int,
    page_token: str,
    and_only: bool,
) -> RunPage:
    """One page of a search.

    Raises:
        InvalidInput: If filter, order or token is wrong.
    """
    tree = parse(filter_, RUNS, and_only=and_only)
    sort = _Sort(parse_order(order_by, RUNS))
    search = search_digest(experiments, pipeline, filter_, order_by, lifecycle)
    conditions: list[Condition] = [] if tree is None else [_condition(tree, tx.dialect)]
    if experiments is not None:
        keys = [int(id_) for id_ in experiments if id_.isdecimal() and len(id_) < 19]
        conditions.append(runs.c.experiment_pk.in_(keys))
    if pipeline:
        conditions.append(runs.c.pipeline == pipeline)
    if lifecycle != "all":
        conditions.append(runs.c.lifecycle == lifecycle)
    if page_token:
        kinds = [kind for _, _, kind in sort.columns]
        conditions.append(after(sort.columns, decode_token(page_token, search, kinds)))
    places = [column.label(f"sort{i}") for i, (column, _, _) in enumerate(sort.columns)]
    source: Any = runs
    for table, on in sort.joins:
        source = source.outerjoin(table, on)
    query = select(runs, *places).select_from(source).where(*conditions)
    for column, descending, _ in sort.columns:
        query = query.order_by(column.desc() if descending else column.asc())
    rows = list(tx.all(query.limit(limit + 1)))
    token = ""
    if len(rows) > limit:
        rows.pop()
        token = encode_token(search, list(rows[-1][-len(places) :]))
    return RunPage(runs=tuple(read_runs(tx, rows)), next_page_token=token)
