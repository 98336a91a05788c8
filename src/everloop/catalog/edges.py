"""Edges of lineage. Every service links in its own transaction with :func:`link`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from everloop.catalog.direct import Direct, marks
from everloop.core.time import to_micros

__all__ = ["link", "link_all", "linked"]

_INSERT = (
    "INSERT INTO lineage_edges (source, target, kind, at) VALUES (?, ?, ?, ?) "
    "ON CONFLICT DO NOTHING"
)


def link(tx: Direct, source: str, target: str, kind: str) -> None:
    """Record that `source` led to `target`; an edge that is there already stays as it is."""
    tx.run(_INSERT, (source, target, kind, to_micros(tx.now)))


def link_all(tx: Direct, sources: Iterable[str], target: str, kind: str) -> None:
    """Record that each of `sources` led to `target`, in one go."""
    at = to_micros(tx.now)
    tx.run_all(_INSERT, [(one, target, kind, at) for one in sources])


def linked(tx: Direct, targets: Sequence[str], kind: str) -> set[str]:
    """Those of `targets` that an edge of this `kind` leads to."""
    query = f"SELECT target FROM lineage_edges WHERE kind = ? AND target IN ({marks(len(targets))})"
    return {str(row[0]) for row in tx.run(query, (kind, *targets)).fetchall()}
