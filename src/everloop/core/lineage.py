"""Lineage: edges between subjects. The source led to the target.

A subject is ``kind:name``: ``dataset:flights@3``, ``feature_view:delays@<digest>``, ``run:<id>``,
``model:delay/3``, ``deployment:delay``, ``segment:<id>``, ``labels:<id>``, ``alert:<id>``. What
lies outside is ``external:<uri>`` (a dataset) and ``job:<namespace>/<name>`` (what made it).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import msgspec

from everloop.errors import InvalidInput

__all__ = [
    "LASTING",
    "Direction",
    "Edge",
    "External",
    "ExternalKind",
    "Graph",
    "Mention",
    "Node",
    "Report",
    "check_subject",
    "external_ref",
]

Direction = Literal["upstream", "downstream"]
ExternalKind = Literal["dataset", "job", "run"]

#: A subject that stays while what is behind it changes: what came to it later than what went out
#: of it did not lead to that.
LASTING = "deployment:"
# Bytes of a subject: two of them and more must fit into one entry of PostgreSQL's index.
_LONGEST = 1024
_LONGEST_EXTERNAL = 512


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


class Node(msgspec.Struct, frozen=True):
    """A subject in a graph, and how many steps it is away at least."""

    ref: str
    depth: int

    @property
    def kind(self) -> str:
        """``dataset``, ``run``, ``model``..."""
        return self.ref.partition(":")[0]


class Graph(msgspec.Struct, frozen=True, kw_only=True):
    """What was found around one subject.

    Attributes:
        root: Where the walk began.
        direction: ``upstream``: what led there; ``downstream``: what came of it.
        nodes: The root first, then nearest first.
        edges: Each once, nearest first.
        truncated: Whether more lies beyond the depth or the limit that was asked for.
    """

    root: str
    direction: Direction
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    truncated: bool = False

    @property
    def refs(self) -> tuple[str, ...]:
        """The subjects, the root first."""
        return tuple(node.ref for node in self.nodes)

    def of_kind(self, kind: str) -> tuple[str, ...]:
        """The subjects of one kind, such as ``dataset``, nearest first."""
        return tuple(node.ref for node in self.nodes if node.kind == kind)


class External(msgspec.Struct, frozen=True, kw_only=True):
    """A dataset, job or run outside, with all that was said of it.

    Attributes:
        ref: ``external:...``, ``job:...``, or ``job_run:<id>``.
        kind: What it is.
        namespace, name: As its own system calls it; a run has its job's namespace and its id.
        state: Of a run: ``START``, ``COMPLETE``...; empty for the others.
        facets: By name, as they were sent; of each the newest.
        at: Time of the newest event that spoke of it.
    """

    ref: str
    kind: ExternalKind
    namespace: str
    name: str
    state: str = ""
    facets: dict[str, Any] = {}
    at: datetime


class Mention(msgspec.Struct, frozen=True, kw_only=True):
    """A dataset, job or run that a report names. `aliases` are other names of the same dataset."""

    kind: ExternalKind
    namespace: str
    name: str
    facets: dict[str, Any] = {}
    aliases: tuple[tuple[str, str], ...] = ()

    @property
    def ref(self) -> str:
        """The subject that it is in the graph."""
        if self.kind == "run":
            return f"job_run:{self.name}"
        return external_ref(self.namespace, self.name, job=self.kind == "job")


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a system outside says happened there. Reports may come twice and in any order.

    Attributes:
        at: When it happened, by the clock there.
        state: Of the run: ``START``, ``RUNNING``, ``COMPLETE``, ``ABORT``, ``FAIL``, ``OTHER``.
        job: What ran, or was described; None where a dataset alone is.
        run: Which run of it; None where none is spoken of.
        parents: Jobs that started this one, nearest first.
        inputs, outputs: What it read and wrote, as far as this report knows.
        producer: Which software says so.
    """

    at: datetime
    state: str = ""
    job: Mention | None = None
    run: Mention | None = None
    parents: tuple[Mention, ...] = ()
    inputs: tuple[Mention, ...] = ()
    outputs: tuple[Mention, ...] = ()
    datasets: tuple[Mention, ...] = ()
    producer: str = ""


def external_ref(namespace: str, name: str = "", *, job: bool = False) -> str:
    """The subject of a dataset (or `job`) outside, such as ``external:s3://lake/flights``.

    ``s3://lake`` with ``flights``, with ``/flights``, and ``s3://lake/flights`` alone are one. What
    is above 512 bytes is cut, and ends with its digest.
    """
    joined = f"{namespace.rstrip('/')}/{name.lstrip('/')}" if name else namespace.rstrip("/")
    scheme, _, path = joined.partition("/")
    if scheme in ("file", "file:") and not job:  # a path is written in each of these ways
        joined = f"file:///{path.lstrip('/')}"
    return f"{'job' if job else 'external'}:{_shortened(joined)}"


def _shortened(text: str) -> str:
    data = text.encode(errors="replace")
    if len(data) <= _LONGEST_EXTERNAL:
        return text
    import hashlib  # OpenSSL, which few processes need

    digest = hashlib.sha256(data).hexdigest()[:32]
    return f"{data[: _LONGEST_EXTERNAL - 35].decode(errors='ignore')}...{digest}"


def check_subject(ref: str) -> None:
    """Refuse what names no subject.

    Raises:
        InvalidInput: Says how a subject is written.
    """
    kind, colon, name = ref.partition(":")
    good = colon and name and kind.replace("_", "").isalpha() and ref.isprintable()
    if not good or len(ref.encode()) > _LONGEST:
        raise InvalidInput(
            f"{ref[:80]!r} names nothing in the graph",
            hint="kind:name, such as dataset:flights@3, run:<id>, model:delay/3, deployment:delay",
        )
