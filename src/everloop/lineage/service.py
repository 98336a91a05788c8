"""LineageService: walks the one graph, takes reports from outside, reads the event log."""

from __future__ import annotations

from sqlalchemy import select

from everloop.access.policy import Authorizer
from everloop.access.service import Service, action
from everloop.catalog import lineage as statements
from everloop.catalog.engine import Catalog
from everloop.catalog.tables import cursors
from everloop.catalog.tables import events as event_table
from everloop.core.events import Event
from everloop.core.lineage import (
    Direction,
    Edge,
    External,
    ExternalKind,
    Graph,
    Node,
    Report,
    check_subject,
)
from everloop.errors import InvalidInput, NotFound
from everloop.lineage import outside

__all__ = ["LineageService"]

#: Steps and edges of a walk where nothing else is asked for, and at most.
DEPTH, MOST_DEPTH = 100, 10_000
LIMIT, MOST_EDGES = 10_000, 100_000
# Readers outside cannot move the places of our own.
_PLACE = "reader:"
_LONGEST_KIND = 50


class LineageService(Service):
    """What led to a thing, what came of it, and the facts in between."""

    area = "lineage"

    def __init__(self, catalog: Catalog, authorizer: Authorizer) -> None:
        self._catalog = catalog
        self._authorizer = authorizer

    @action("lineage:write")
    def link(self, edges: list[Edge]) -> None:
        """Record edges; those that are there already stay.

        Raises:
            InvalidInput: With everything that is wrong with any edge; none is recorded then.
        """
        faults = []
        for n, edge in enumerate(edges):
            if not 0 < len(edge.kind) <= _LONGEST_KIND:
                faults.append((f"edges[{n}].kind", f"must have 1 to {_LONGEST_KIND} characters"))
            if edge.source == edge.target:
                faults.append((f"edges[{n}]", f"{edge.source!r} leads to itself"))
            for end in ("source", "target"):
                try:
                    check_subject(getattr(edge, end))
                except InvalidInput as error:
                    faults.append((f"edges[{n}].{end}", error.message))
        if faults:
            raise InvalidInput("the edges are wrong", faults)
        with self._catalog.write() as tx:
            statements.link_edges(tx, edges, at=tx.now)

    @action("lineage:read", on="subject")
    def upstream(self, subject: str, *, depth: int = DEPTH, limit: int = LIMIT) -> Graph:
        """What led to `subject`, nearest first; each edge once, also in a circle.

        A deployment stays while the versions behind it change: what it served only after it gave
        an answer did not lead to that answer.

        Args:
            subject: Such as ``model:flights-delay/3``.
            depth: Most steps to walk, 1 to 10,000.
            limit: Most edges to return, 1 to 100,000.
        """
        return self._walk(subject, "upstream", depth, limit)

    @action("lineage:read", on="subject")
    def downstream(self, subject: str, *, depth: int = DEPTH, limit: int = LIMIT) -> Graph:
        """What came of `subject`, nearest first. Arguments as in `upstream`."""
        return self._walk(subject, "downstream", depth, limit)

    @action("lineage:write")
    def report(self, report: Report) -> list[Edge]:
        """Take what a system outside says happened there; the edges that are new.

        Reports may come twice, late and in any order; what is known already changes nothing.
        """
        if report.job is None and not report.datasets:
            raise InvalidInput("the report speaks of no job and no dataset")
        with self._catalog.write() as tx:
            return outside.take(tx, report)

    @action("lineage:read", on="ref")
    def external(self, ref: str) -> External:
        """What is known of a dataset, job or run outside.

        Raises:
            NotFound: If nobody spoke of it.
        """
        with self._catalog.read() as tx:
            found = outside.find(tx, ref)
        if found is None:
            raise NotFound(f"nothing outside is called {ref!r}", hint="everloop lineage external")
        return found

    @action("lineage:read")
    def externals(
        self, kind: ExternalKind = "dataset", *, after: str = "", limit: int = 1000
    ) -> list[External]:
        """Datasets, jobs or runs outside, by their subject; those after the subject `after`."""
        if limit < 1:
            raise InvalidInput("the limit is wrong", [("limit", f"{limit} is below 1")])
        with self._catalog.read() as tx:
            return outside.listed(tx, kind, after, limit)

    @action("event:read", on="reader")
    def place(self, reader: str) -> int:
        """The position in the event log up to which `reader` has read; 0 if it never did."""
        with self._catalog.read() as tx:
            return int(
                tx.scalar(select(cursors.c.seq).where(cursors.c.name == _PLACE + reader)) or 0
            )

    @action("event:follow", on="reader")
    def mark(self, reader: str, seq: int) -> None:
        """Note that `reader` has dealt with everything up to position `seq`."""
        with self._catalog.write() as tx:
            tx.upsert(cursors, {"name": _PLACE + reader, "seq": seq}, ["name"])

    @action("event:read", on="subject")
    def events(
        self,
        *,
        after: int = 0,
        kind: str = "",
        subject: str = "",
        limit: int = 1000,
        newest: bool = False,
    ) -> list[Event]:
        """Events after position `after`, oldest first; or the newest `limit`, newest first."""
        if limit < 1:
            raise InvalidInput("the limit is wrong", [("limit", f"{limit} is below 1")])
        return self._catalog.events(
            after=after, kind=kind, subject=subject, limit=limit, newest=newest
        )

    @action("event:read", on="id")
    def event(self, id: str) -> Event:
        """One event.

        Raises:
            NotFound: If there is no such event.
        """
        with self._catalog.read() as tx:
            row = tx.first(select(event_table).where(event_table.c.id == id))
        if row is None:
            raise NotFound(f"no event {id!r}", hint="everloop events lists them")
        return Event(**row._asdict())

    @action("event:read", on="event_id")
    def chain(self, event_id: str) -> list[Event]:
        """The event with all that led to it, the root first.

        A cause that is not in the log (of another workspace) ends the chain.

        Raises:
            NotFound: If there is no such event.
        """
        found = [self.event(event_id)]
        seen = {event_id}
        with self._catalog.read() as tx:
            while (cause := found[-1].cause) and cause not in seen:
                row = tx.first(select(event_table).where(event_table.c.id == cause))
                if row is None:
                    break
                seen.add(cause)
                found.append(Event(**row._asdict()))
        return found[::-1]

    def _walk(self, subject: str, direction: Direction, depth: int, limit: int) -> Graph:
        check_subject(subject)
        faults = [
            (name, f"{value} is not from 1 to {most:,}")
            for name, value, most in (("depth", depth, MOST_DEPTH), ("limit", limit, MOST_EDGES))
            if not 1 <= value <= most
        ]
        if faults:
            raise InvalidInput("the walk is wrong", faults)
        upstream = direction == "upstream"
        with self._catalog.read() as tx:
            found, cut = statements.walk(tx, subject, upstream=upstream, depth=depth, limit=limit)
        distances = {subject: 0}
        for edge, distance in found:
            distances.setdefault(edge.source if upstream else edge.target, distance)
        return Graph(
            root=subject,
            direction=direction,
            nodes=tuple(Node(ref, distance) for ref, distance in distances.items()),
            edges=tuple(edge for edge, _ in found),
            truncated=cut,
        )
