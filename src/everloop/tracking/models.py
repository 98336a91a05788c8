"""Logged models, and searches over what is small enough to be matched in memory."""

from __future__ import annotations

import math
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy import Row, select, update

from everloop.catalog.edges import link
from everloop.catalog.tables import logged_model_metrics, logged_models
from everloop.catalog.transaction import Transaction
from everloop.core.run import Experiment, LoggedModel, Metric, ModelOrder
from everloop.core.time import to_micros
from everloop.errors import InvalidInput, NotFound
from everloop.tracking.limits import check_log
from everloop.tracking.pages import decode_token, encode_token, search_digest
from everloop.tracking.search import Grammar, Order, matches, parse, parse_order
from everloop.tracking.store import chunks

__all__ = [
    "change",
    "create",
    "insert_points",
    "made_up_name",
    "page_of_experiments",
    "page_of_models",
    "read",
    "read_many",
    "write_model_metrics",
]

_T = TypeVar("_T")
_ADJECTIVES = ("amber", "bold", "calm", "deft", "eager", "fond", "hardy", "jolly", "keen", "neat")
_ANIMALS = ("auk", "boar", "crane", "dove", "eel", "finch", "heron", "ibis", "lynx", "otter")

EXPERIMENTS = Grammar(
    attributes={
        "name": "text",
        "experiment_id": "text",
        "creation_time": "number",
        "last_update_time": "number",
    },
    entities={"tag": "tag", "tags": "tag"},
)
MODELS = Grammar(
    attributes={
        "name": "text",
        "model_id": "text",
        "model_type": "text",
        "status": "text",
        "source_run_id": "text",
        "experiment_id": "text",
        "creation_timestamp": "number",
        "last_updated_timestamp": "number",
    },
    aliases={
        "creation_time": "creation_timestamp",
        "creation_timestamp_ms": "creation_timestamp",
        "last_updated_time": "last_updated_timestamp",
        "last_updated_timestamp_ms": "last_updated_timestamp",
    },
    lists=frozenset({"attribute", "param", "tag"}),
    bares_texts=True,
    entities={
        "metric": "metric",
        "metrics": "metric",
        "param": "param",
        "params": "param",
        "tag": "tag",
        "tags": "tag",
    },
)


def made_up_name(seed: str) -> str:
    """A name for people that nobody chose, such as ``keen-heron-417``; the same for one id."""
    number = sum(ord(letter) * 31**index for index, letter in enumerate(seed)) % 10**9
    adjective = _ADJECTIVES[number % len(_ADJECTIVES)]
    animal = _ANIMALS[number // 97 % len(_ANIMALS)]
    return f"{adjective}-{animal}-{number % 1000}"


def create(
    tx: Transaction,
    experiment_pk: int,
    name: str,
    model_type: str,
    source_run_id: str,
    *,
    params: dict[str, str],
    tags: dict[str, str],
) -> LoggedModel:
    """Insert a pending model.

    Raises:
        InvalidInput: If name, parameters or tags are wrong.
    """
    if name and set(name) & set("/:.%\"'"):
        raise InvalidInput(
            f"Invalid model name {name!r}", [("name", "may not hold any of / : . % \" '")]
        )
    check_log([], params, tags, of_client=False)
    id_ = f"m-{uuid.uuid4().hex}"
    row = {
        "id": id_,
        "experiment_pk": experiment_pk,
        "name": name or made_up_name(id_),
        "model_type": model_type,
        "source_run_id": source_run_id,
        "status": "pending",
        "params": params,
        "tags": tags,
        "created_at": tx.now,
        "updated_at": tx.now,
    }
    tx.execute(logged_models.insert(), [row])
    if source_run_id:
        link(tx, f"run:{source_run_id}", f"logged_model:{id_}", "produced")
    tx.append("logged_model.Created", f"logged_model:{id_}", {"run": source_run_id})
    return read(tx, id_)


def read(tx: Transaction, id_: str) -> LoggedModel:
    """One model with its metrics.

    Raises:
        NotFound: If there is none, or it is deleted.
    """
    row = tx.first(select(logged_models).where(logged_models.c.id == id_))
    if row is None or row.status == "deleted":
        raise NotFound(
            f"Logged model with ID '{id_}' not found",
            details={"kind": "logged_model", "name": id_},
        )
    return _with_metrics(tx, [row])[0]


def read_many(tx: Transaction, experiment_pks: list[int]) -> list[LoggedModel]:
    """All models of experiments that are not deleted."""
    models = logged_models.c
    query = select(logged_models).where(
        models.experiment_pk.in_(experiment_pks), models.status != "deleted"
    )
    return _with_metrics(tx, tx.all(query))


def change(
    tx: Transaction,
    id_: str,
    *,
    status: str = "",
    params: dict[str, str] | None = None,
    tags: dict[str, str] | None = None,
    delete_tag: str = "",
) -> LoggedModel:
    """Change a model and return it as it was before if it is deleted by this, else as it is.

    Raises:
        InvalidInput: If a parameter has another value already.
        NotFound: If there is no such model or tag.
    """
    check_log([], params or {}, tags or {}, of_client=False)
    old = read(tx, id_)
    faults = [
        (f"params.{key}", f"was {old.params[key]!r}, new value {value!r}")
        for key, value in (params or {}).items()
        if old.params.get(key, value) != value
    ]
    if faults:
        raise InvalidInput("Changing param values is not allowed", faults)
    if delete_tag and delete_tag not in old.tags:
        raise NotFound(f"No tag with key {delete_tag!r} found for model with ID {id_!r}")
    merged = {**old.tags, **(tags or {})}
    merged.pop(delete_tag, None)
    values = {
        "status": status or old.status,
        "params": {**old.params, **(params or {})},
        "tags": merged,
        "updated_at": tx.now,
    }
    tx.execute(update(logged_models).where(logged_models.c.id == id_).values(**values))
    if status and status != old.status:
        tx.append(f"logged_model.{status.capitalize()}", f"logged_model:{id_}")
    return old if status == "deleted" else read(tx, id_)


def write_model_metrics(tx: Transaction, run_id: str, points: Sequence[Metric]) -> None:
    """Also write those points that measured a logged model to that model.

    Raises:
        NotFound: If there is no such model.
    """
    of_models = [point for point in points if point.model_id]
    for id_ in sorted({point.model_id for point in of_models}):
        read(tx, id_)
    insert_points(tx, run_id, of_models)


def insert_points(tx: Transaction, run_id: str, points: Sequence[Metric]) -> None:
    """Write points that a run measured of logged models that are there."""
    rows = [
        {
            "model_id": point.model_id,
            "key": point.key,
            "step": point.step,
            "at_ms": point.at_ms,
            "value": 0.0 if math.isnan(point.value) else point.value,
            "is_nan": math.isnan(point.value),
            "dataset": point.dataset,
            "digest": point.digest,
            "run_id": run_id,
        }
        for point in points
    ]
    tx.upsert(logged_model_metrics, rows, [c.name for c in logged_model_metrics.primary_key])


def _with_metrics(tx: Transaction, rows: Sequence[Row[Any]]) -> list[LoggedModel]:
    metrics: dict[str, list[Metric]] = defaultdict(list)
    order = (
        logged_model_metrics.c.step,
        logged_model_metrics.c.at_ms,
        logged_model_metrics.c.value,
    )
    for ids in chunks([row.id for row in rows]):
        query = select(logged_model_metrics).where(logged_model_metrics.c.model_id.in_(ids))
        for point in tx.all(query.order_by(*order)):
            metrics[point.model_id].append(
                Metric(
                    key=point.key,
                    value=math.nan if point.is_nan else point.value,
                    step=point.step,
                    at_ms=point.at_ms,
                    model_id=point.model_id,
                    dataset=point.dataset,
                    digest=point.digest,
                    run_id=point.run_id,
                )
            )
    return [
        LoggedModel(
            **{k: v for k, v in row._asdict().items() if k != "experiment_pk"},
            experiment=str(row.experiment_pk),
            metrics=tuple(metrics[row.id]),
        )
        for row in rows
    ]


# Searches in memory


def page_of_experiments(
    found: list[Experiment],
    filter_: str,
    order_by: list[str],
    limit: int,
    page_token: str,
    *,
    and_only: bool,
    view: str,
) -> tuple[list[Experiment], str]:
    """The experiments that meet a filter, one page of them, and the token of the next."""

    def values(item: Experiment, entity: str, key: str) -> list[Any]:
        if entity == "tag":
            return [item.tags[key]] if key in item.tags else []
        attributes = {
            "name": item.name,
            "experiment_id": item.id,
            "creation_time": to_micros(item.created_at) // 1000,
            "last_update_time": to_micros(item.updated_at) // 1000,
        }
        return [attributes[key]]

    newest = [Order("attribute", "creation_time", True)]
    return page_of(
        found,
        values,
        EXPERIMENTS,
        newest,
        filter_,
        parse_order(order_by, EXPERIMENTS),
        limit,
        page_token,
        and_only=and_only,
        view=view,
        key=lambda item: item.id,
    )


def page_of_models(
    found: list[LoggedModel],
    filter_: str,
    order_by: list[str | ModelOrder],
    datasets: list[tuple[str, str]],
    limit: int,
    page_token: str,
    *,
    and_only: bool,
    view: str,
) -> tuple[list[LoggedModel], str]:
    """The models that meet a filter, one page of them, and the token of the next.

    With `datasets` (name and digest, or an empty digest for any) only metrics on these count, and
    only models with one.
    """

    def values(item: LoggedModel, entity: str, key: str) -> list[Any]:
        if entity == "metric":
            return _latest(item.metrics, key, datasets)
        if entity in ("tag", "param"):
            texts = item.tags if entity == "tag" else item.params
            return [texts[key]] if key in texts else []
        return [_attributes_of(item)[key]]

    def sort_value(item: LoggedModel, order: Order) -> list[Any]:
        if order.entity == "metric":
            wanted = [(order.dataset, order.digest)] if order.dataset or order.digest else datasets
            return _latest(item.metrics, order.key, wanted)[-1:]
        return values(item, order.entity, order.key)

    return page_of(
        [item for item in found if not datasets or _latest(item.metrics, "", datasets)],
        values,
        MODELS,
        [Order("attribute", "creation_timestamp", True)],
        filter_,
        _orders(order_by),
        limit,
        page_token,
        and_only=and_only,
        view=f"{view} {datasets}",
        key=lambda item: item.id,
        sort_value=sort_value,
    )


def _attributes_of(item: LoggedModel) -> dict[str, Any]:
    status = {"pending": "PENDING", "ready": "READY", "failed": "UPLOAD_FAILED"}
    return {
        "name": item.name,
        "model_id": item.id,
        "model_type": item.model_type,
        "status": status[item.status],
        "source_run_id": item.source_run_id,
        "experiment_id": item.experiment,
        "creation_timestamp": to_micros(item.created_at) // 1000,
        "last_updated_timestamp": to_micros(item.updated_at) // 1000,
    }


def _latest(points: Sequence[Metric], key: str, datasets: list[tuple[str, str]]) -> list[float]:
    """The latest value of a metric (an empty key: of any) on each of `datasets`."""
    latest: dict[tuple[str, str, str], float] = {}
    for point in points:
        on = not datasets or any(
            name in ("", point.dataset) and digest in ("", point.digest)
            for name, digest in datasets
        )
        if on and key in ("", point.key):
            place = (point.key, point.dataset, point.digest)
            latest.pop(place, None)  # so that the newest stands last
            latest[place] = point.value
    return list(latest.values())


def _orders(items: Sequence[str | ModelOrder]) -> list[Order]:
    orders: list[Order] = []
    for item in items:
        if isinstance(item, str):
            (order,) = parse_order([item], MODELS)
        else:
            (order,) = parse_order([item.by], MODELS)
            order = order._replace(
                descending=item.descending, dataset=item.dataset, digest=item.digest
            )
        if any(order._replace(descending=o.descending) == o for o in orders):
            raise InvalidInput(
                "Invalid order_by", [("order_by", f"{order.key} stands twice, once is allowed")]
            )
        orders.append(order)
    return orders


def page_of(
    found: list[_T],
    values: Callable[[_T, str, str], list[Any]],
    grammar: Grammar,
    newest: list[Order],
    filter_: str,
    orders: list[Order],
    limit: int,
    page_token: str,
    *,
    and_only: bool,
    view: str,
    key: Callable[[_T], str],
    sort_value: Callable[[_T, Order], list[Any]] | None = None,
) -> tuple[list[_T], str]:
    """One page of the records that meet a filter, and the token of the next.

    Args:
        found: All records.
        values: Gives the values of a record for (entity, key).
        grammar: What may be asked for.
        newest: The order after what `orders` say.
        filter_: See ``everloop.tracking.search``.
        orders: What to sort by.
        limit: Length of the page.
        page_token: Of the page before, or empty.
        and_only: Refuse OR, NOT and parentheses.
        view: What else tells this search from others.
        key: Identity of a record, the last to sort by.
        sort_value: Gives what to sort a record by, if that is not what is compared.
    """
    tree = parse(filter_, grammar, and_only=and_only)
    search = search_digest(filter_, orders, view)
    orders = [*orders, *(o for o in newest if o.key not in {order.key for order in orders})]

    def fits(item: _T) -> bool:
        return matches(tree, lambda entity, key: values(item, entity, key))

    kept = [item for item in found if fits(item)]
    ids = {id(item): key(item) for item in kept}
    kept.sort(key=lambda item: ids[id(item)])
    for order in reversed(orders):
        _sort(kept, order, sort_value or (lambda item, by: values(item, by.entity, by.key)))
    start = 0
    if page_token:
        (last,) = decode_token(page_token, search, [str])
        places = {ids[id(item)]: index for index, item in enumerate(kept)}
        if last not in places:
            raise InvalidInput(
                "Invalid page token", [("page_token", "what it names is gone")], hint="begin again"
            )
        start = places[last] + 1
    page = kept[start : start + limit]
    more = start + limit < len(kept)
    return page, encode_token(search, [ids[id(page[-1])]]) if more else ""


def _sort(items: list[_T], order: Order, value: Callable[[_T, Order], list[Any]]) -> None:
    """Sort in place, stably; what has no value comes last in both directions, NaN before it."""
    keyed = [(value(item, order), item) for item in items]
    there = [(found[0], item) for found, item in keyed if found and found[0] == found[0]]
    there.sort(key=lambda pair: pair[0], reverse=order.descending)
    nans = [item for found, item in keyed if found and found[0] != found[0]]
    missing = [item for found, item in keyed if not found]
    items[:] = [item for _, item in there] + nans + missing
