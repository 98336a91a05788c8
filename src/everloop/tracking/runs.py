"""Searching runs: filters and orders compiled to SQL, pages by key and not by offset.

What a page costs follows its length, and neither the number of runs nor of those that match: newest
first walks the index on the start, and an order by a metric walks the index on its values, whose
end the runs with NaN and then the runs without the metric follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    Double,
    Row,
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
    type_coerce,
)

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
from everloop.catalog.transaction import Transaction
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
_WALKED = metric_latest.alias("walked")
_WALK = runs.join(_WALKED, _WALKED.c.run_pk == runs.c.pk)
#: Up to so many runs are sorted rather than found by walking the index of a metric.
_FEW = 1000


def _attribute(key: str) -> Any:
    if key == "status":
        # Clients know SCHEDULED and upper case; ours are queued or waiting, and lower case.
        return case(
            (runs.c.state.in_(("queued", "waiting")), "SCHEDULED"), else_=func.upper(runs.c.state)
        )
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
        mine = (latest.run_pk == runs.c.pk, latest.key_pk == _key_pk(key))
        return exists().where(*mine, _metric_holds(latest, op, value))
    if entity == "dataset":
        holds = compare(_DATASET[key], op, value, dialect)
        return exists().where(run_inputs.c.run_pk == runs.c.pk, holds)
    table = run_params if entity == "param" else run_tags
    of_run = (table.c.run_pk == runs.c.pk, table.c.key == key)
    if op == "IS NULL":
        return ~exists().where(*of_run)
    if op == "IS NOT NULL":
        return exists().where(*of_run)
    return exists().where(*of_run, compare(table.c.value, op, value, dialect))


def _metric_holds(latest: Any, op: str, value: Any) -> Condition:
    holds: Condition = latest.value.op(op, is_comparison=True)(float(value))
    # NaN stands as 0 with a flag; it differs from every number and compares with none.
    return or_(latest.is_nan, holds) if op == "!=" else and_(not_(latest.is_nan), holds)


class _Sort:
    """The columns of an order, none of them ever null, each with its direction and type.

    Args:
        orders: What was asked for; newest first after it.
        part: Which part of an order by a metric first: 0 the runs with a number, 1 those with NaN,
            2 those without it. Each has this rank as its first column.
        by_run: Look the metric up for each run and sort, instead of walking its index: better where
            only few of all runs are looked among.
    """

    def __init__(self, orders: list[Order], part: int, *, by_run: bool = False) -> None:
        self.columns: list[tuple[Any, bool, type]] = []
        self.source: Any = runs
        self.conditions: list[Condition] = []
        #: How many columns, the first ones, are the same in the whole part.
        self.constant = 0
        #: Name and columns of the metric whose index is walked.
        self.walked: tuple[str, Any] | None = None
        for order in orders:
            if order.entity == "metric" and not self.columns:
                self._walk(order, part, by_run)
            else:
                self._add(order)
        keys = [order.key for order in orders if order.entity == "attribute"]
        if "start_time" not in keys:
            self.columns.append((type_coerce(runs.c.started_at, BigInteger), True, int))
        self.columns.append((runs.c.id, False, str))

    def _walk(self, order: Order, part: int, by_run: bool) -> None:
        latest = _WALKED.c
        key = _key_pk(order.key)
        # A key that depends on the run can only be looked up once the run is there.
        of_key = latest.key_pk == (key + runs.c.pk * 0 if by_run else key)
        self.columns.append((literal(part), False, int))
        self.constant = 1
        if part == 2:
            self.constant = 2
            of_run = latest.run_pk == runs.c.pk
            self.conditions.append(~exists().where(of_run, of_key))
            self.columns.append((cast(literal(0.0), Double), order.descending, float))
            return
        self.walked = (order.key, latest)
        self.source = _WALK
        self.conditions += [of_key, latest.is_nan if part else not_(latest.is_nan)]
        self.columns.append((latest.value, order.descending, float))

    def _add(self, order: Order) -> None:
        if order.entity == "attribute":
            self._add_attribute(order)
            return
        name = f"m{len(self.columns)}"
        table: Any
        if order.entity == "metric":
            table = metric_latest.alias(name)
            mine = table.c.key_pk == _key_pk(order.key)
            rank = case((table.c.run_pk.is_(None), 2), (table.c.is_nan, 1), else_=0)
            column = func.coalesce(table.c.value, cast(literal(0.0), Double))
        else:
            table = (run_params if order.entity == "param" else run_tags).alias(name)
            mine = table.c.key == order.key
            rank = case((table.c.run_pk.is_(None), 2), else_=0)
            column = func.coalesce(table.c.value, literal(""))
        self.source = self.source.outerjoin(table, and_(table.c.run_pk == runs.c.pk, mine))
        # Missing values come last in both directions, NaN just before them.
        self.columns.append((rank, False, int))
        kind = float if order.entity == "metric" else str
        self.columns.append((column, order.descending, kind))

    def _add_attribute(self, order: Order) -> None:
        if order.key == "start_time":
            column = type_coerce(runs.c.started_at, BigInteger)
            self.columns.append((column, order.descending, int))
        elif order.key == "end_time":
            ended = type_coerce(runs.c.ended_at, BigInteger)
            self.columns.append((case((ended.is_(None), 2), else_=0), False, int))
            self.columns.append((func.coalesce(ended, 0), order.descending, int))
        else:
            self.columns.append((_attribute(order.key), order.descending, str))

    def holds(self, tree: Any, dialect: str) -> list[Condition]:
        """The conditions of a filter; those on the walked metric bound the walk itself."""
        parts = tree.parts if isinstance(tree, All) else () if tree is None else (tree,)
        found = []
        for part in parts:
            if self.walked and isinstance(part, Clause) and part[:2] == ("metric", self.walked[0]):
                found.append(_metric_holds(self.walked[1], part.op, part.value))
            else:
                found.append(_condition(part, dialect))
        return found

    def after(self, place: list[Any]) -> list[Condition]:
        """Rows that come after `place`."""
        columns, place = self.columns[self.constant :], place[self.constant :]
        column, descending, _ = columns[0]
        # Said of the first column alone, an index begins there.
        return [column <= place[0] if descending else column >= place[0], after(columns, place)]


def _parts(orders: list[Order], tree: Any) -> range:
    """The parts of an order in which there may be runs that meet the filter."""
    if not orders or orders[0].entity != "metric":
        return range(1)
    clauses = tree.parts if isinstance(tree, All) else (tree,)
    for clause in clauses:
        is_of_it = isinstance(clause, Clause) and clause[:2] == ("metric", orders[0].key)
        if is_of_it:
            return range(2 if clause.op == "!=" else 1)
    return range(3)


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
    orders = parse_order(order_by, RUNS)
    search = search_digest(experiments, pipeline, filter_, order_by, lifecycle)
    place: list[Any] = []
    if page_token:
        kinds = [kind for _, _, kind in _Sort(orders, 0).columns]
        place = decode_token(page_token, search, kinds)
    within = _within(experiments, pipeline, lifecycle)
    by_run = _are_few(tx, orders, within)
    rows: list[Row[Any]] = []
    for part in _parts(orders, tree):
        sort = _Sort(orders, part, by_run=by_run)
        # An order by a metric has the part as the first of its columns.
        is_ranked = bool(orders) and orders[0].entity == "metric"
        if place and is_ranked and place[0] > part:
            continue
        begun = sort.after(place) if place and not (is_ranked and place[0] < part) else []
        where = [*within, *sort.conditions, *sort.holds(tree, tx.dialect), *begun]
        rows += _rows(tx, sort, where, limit + 1 - len(rows))
        if len(rows) > limit:
            break
    token = ""
    if len(rows) > limit:
        rows.pop()
        token = encode_token(search, list(rows[-1][len(runs.c) :]))
    return RunPage(runs=tuple(read_runs(tx, rows)), next_page_token=token)


def _within(experiments: list[str] | None, pipeline: str, lifecycle: str) -> list[Condition]:
    """The conditions that say among which runs to look."""
    found: list[Condition] = []
    if experiments is not None:
        keys = [int(id_) for id_ in experiments if id_.isdecimal() and len(id_) < 19]
        # Equality keeps the index on experiment and start in order, a list does not.
        of = runs.c.experiment_pk
        found.append(of == keys[0] if len(keys) == 1 else of.in_(keys))
    if pipeline:
        found.append(runs.c.pipeline == pipeline)
    if lifecycle != "all":
        found.append(runs.c.lifecycle == lifecycle)
    return found


def _are_few(tx: Transaction, orders: list[Order], within: list[Condition]) -> bool:
    if not orders or orders[0].entity != "metric":
        return False
    some = select(literal(1)).select_from(runs).where(*within[:1]).limit(_FEW + 1).subquery()
    return bool(tx.scalar(select(func.count()).select_from(some)) <= _FEW)


def _rows(tx: Transaction, sort: _Sort, where: list[Condition], limit: int) -> Sequence[Row[Any]]:
    places = [column.label(f"sort{i}") for i, (column, _, _) in enumerate(sort.columns)]
    query = select(runs, *places).select_from(sort.source).where(*where)
    for column, descending, _ in sort.columns[sort.constant :]:
        query = query.order_by(column.desc() if descending else column.asc())
    return tx.all(query.limit(limit))
