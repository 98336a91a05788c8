"""Lineage: edges between subjects. The source led to the target."""

from __future__ import annotations

import msgspec

__all__ = ["Edge"]


class Edge(msgspec.Struct, frozen=True):
    """One edge.

    Attributes:
        source: The subject that led to the target, such as ``dataset:flights@3``.
        target: The subject that came of it, such as ``run:<id>``.
        kind: What the source was to the target: ``read``, ``produced``, ``parent``...
    """

    source: str
    target: str
    kind: str
