"""Statements of lineage: what lies upstream and downstream of anything."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import Any

import msgspec
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Integer,
    Select,
    Text,
    bindparam,
    case,
    cast,
    func,
    literal,
    null,
    or_,
    select,
    type_coerce,
)

from everloop.catalog.tables import feature_names, lineage_edges
from everloop.catalog.transaction import Transaction
from everloop.core.lineage import LASTING, Edge

__all__ = ["feature_ref", "feature_set_ref", "link_edges", "walk"]

#: Most steps of one walk; one that would take more says that it was cut.
MOST_STEPS = 100_000
# So far a subject is kept once for each distance, beyond it once in all: a short walk ends where it
# was asked to, and a long one takes each subject a fixed number of times, whatever the ways to it.
_COUNTED = 12
# SQLite takes 32,766 variables in a statement.
_AT_ONCE = 10_000


def link_edges(tx: Transaction, edges: Sequence[Edge], *, at: datetime) -> list[Edge]:
    """Record edges, of the time `at`; those that are new."""
    edge = lineage_edges.c
    known: set[Edge] = set()
    targets = list(dict.fromkeys(one.target for one in edges))
    for start in range(0, len(targets), _AT_ONCE):
        there = edge.target.in_(targets[start : start + _AT_ONCE])
        query = select(edge.source, edge.target, edge.kind).where(there)
        known.update(Edge(row.source, row.target, row.kind) for row in tx.all(query))
    news = [one for one in edges if one not in known]
    tx.insert_missing(lineage_edges, [{**msgspec.structs.asdict(one), "at": at} for one in news])
    return news


def feature_ref(kind: str, name: str, digest: str) -> str:
    """The subject of a feature view or set: what its name stood for, by content."""
    return f"{kind}:{name}@{digest[:16]}"


def feature_set_ref(tx: Transaction, name: str) -> str:
    """The subject of the feature set that a model names: with its digest, or as it is now."""
    table = feature_names
    known = (table.c.kind == "feature_set", table.c.name == name)
    digest = tx.scalar(select(table.c.digest).where(*known))
    return f"feature_set:{name}" if digest is None else feature_ref("feature_set", name, digest)


def walk(
    tx: Transaction, subject: str, *, upstream: bool, depth: int, limit: int
) -> tuple[list[tuple[Edge, int]], bool]:
    """The edges that led to `subject` (or came of it), each once with its distance, nearest first.

    One statement, whatever the size. A circle ends where it began.

    Returns:
        The edges, and whether there are more beyond `depth` or `limit`.
    """
    values = {
        "subject": subject,
        "stop": depth if depth <= _COUNTED else _COUNTED + 1,
        "most": limit + 1,
    }
    rows: Sequence[Any] = tx.connection.execute(_walk(upstream), values).all()
    cut = len(rows) > limit or bool(rows and rows[0].steps > MOST_STEPS)
    edges = [Edge(row.source, row.target, row.kind) for row in rows[:limit]]
    found = _distances(edges, subject, upstream)
    near = [one for one in found if one[1] <= depth]
    return near, cut or len(near) < len(found)


@cache
def _walk(upstream: bool) -> Select[Any]:
    edge = lineage_edges.c
    near, far = (edge.target, edge.source) if upstream else (edge.source, edge.target)
    at = type_coerce(edge.at, BigInteger)
    # Steps from the subject: where to, how far, and for what lasts since (or until) when.
    steps = select(
        cast(bindparam("subject"), Text).label("node"),
        literal(0, Integer).label("depth"),
        cast(null(), BigInteger).label("at"),
    ).cte("steps", recursive=True)

    def in_time(until: ColumnElement[Any]) -> ColumnElement[bool]:
        return or_(until.is_(None), at <= until if upstream else at >= until)

    # A union without ALL drops the steps that were taken already, so a circle ends.
    steps = steps.union(
        select(
            far,
            case((steps.c.depth < _COUNTED, steps.c.depth + 1), else_=_COUNTED),
            case((far.startswith(LASTING, autoescape=True), at), else_=cast(null(), BigInteger)),
        ).where(near == steps.c.node, steps.c.depth < bindparam("stop"), in_time(steps.c.at))
    )
    # Both databases take the steps as they are asked for, so that this also ends the walk.
    taken = select(steps).limit(MOST_STEPS + 1).cte("taken")
    first = (
        select(taken.c.node, taken.c.at, func.min(taken.c.depth).label("depth"))
        .group_by(taken.c.node, taken.c.at)
        .subquery()
    )
    nearest = func.min(first.c.depth)
    return (
        select(
            edge.source,
            edge.target,
            edge.kind,
            select(func.count()).select_from(taken).scalar_subquery().label("steps"),
        )
        .where(near == first.c.node, in_time(first.c.at))
        .group_by(edge.source, edge.target, edge.kind)
        .order_by(nearest, edge.source, edge.target, edge.kind)
        .limit(bindparam("most"))
    )


def _distances(edges: list[Edge], subject: str, upstream: bool) -> list[tuple[Edge, int]]:
    """The edges with their distance from `subject`, nearest first."""
    out = defaultdict(list)
    for edge in edges:
        out[edge.target if upstream else edge.source].append(edge)
    found: list[tuple[Edge, int]] = []
    seen, near, distance = {subject}, [subject], 0
    while near:
        distance += 1
        step = sorted((edge for node in near for edge in out[node]), key=_order)
        found += [(edge, distance) for edge in step]
        ends = dict.fromkeys(edge.source if upstream else edge.target for edge in step)
        near = [node for node in ends if node not in seen]
        seen.update(near)
    return found


def _order(edge: Edge) -> tuple[str, str, str]:
    return edge.source, edge.target, edge.kind
