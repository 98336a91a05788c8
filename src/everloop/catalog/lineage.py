"""Statements of lineage. Every service links in its own transaction with :func:`link`."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import select

from everloop.catalog.engine import Transaction
from everloop.catalog.tables import lineage_edges
from everloop.core.lineage import Edge

__all__ = ["link", "neighbours"]

# SQLite takes 32,766 variables in a statement, PostgreSQL 65,535.
_AT_ONCE = 10_000


def link(tx: Transaction, source: str, target: str, kind: str) -> None:
    """Record that `source` led to `target`; an edge that is there already stays as it is."""
    row = {"source": source, "target": target, "kind": kind, "at": tx.now}
    tx.insert_new(lineage_edges, row)


def neighbours(tx: Transaction, subjects: Iterable[str], *, upstream: bool) -> list[Edge]:
    """The edges that end (`upstream`) or begin (not) at any of `subjects`, sorted."""
    near = lineage_edges.c.target if upstream else lineage_edges.c.source
    wanted = sorted(subjects)
    found = []
    for start in range(0, len(wanted), _AT_ONCE):
        columns = (lineage_edges.c.source, lineage_edges.c.target, lineage_edges.c.kind)
        query = select(*columns).where(near.in_(wanted[start : start + _AT_ONCE]))
        found += [Edge(row.source, row.target, row.kind) for row in tx.all(query)]
    return sorted(found, key=lambda edge: (edge.source, edge.target, edge.kind))
