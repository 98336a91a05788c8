"""LineageService: walks the one graph, and reads the event log."""

from __future__ import annotations

from sqlalchemy import select

from everloop.access.policy import Authorizer
from everloop.access.service import Service, action
from everloop.catalog import lineage as statements
from everloop.catalog.engine import Catalog
from everloop.catalog.tables import events as event_table
from everloop.core.events import Event
from everloop.core.lineage import Edge
from everloop.errors import InvalidInput, NotFound

__all__ = ["LineageService"]

#: Steps that a walk takes at most; far beyond any real chain.
DEPTH = 100


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
            InvalidInput: With every edge that lacks an end or leads to itself; none is recorded.
        """
        faults = []
        for n, edge in enumerate(edges):
            if not (edge.source and edge.target and edge.kind):
                faults.append((f"edges[{n}]", "needs a source, a target and a kind"))
            elif edge.source == edge.target:
                faults.append((f"edges[{n}]", f"{edge.source} leads to itself"))
        if faults:
            raise InvalidInput("the edges are wrong", faults)
        with self._catalog.write() as tx:
            for edge in edges:
                statements.link(tx, edge.source, edge.target, edge.kind)

    @action("lineage:read", on="subject")
    def upstream(self, subject: str, depth: int = DEPTH) -> list[Edge]:
        """The edges that led to `subject`, nearest first; each once, also in a circle.

        Args:
            subject: Such as ``model:flights-delay/3``.
            depth: Most steps to walk, 1 or more.
        """
        return self._walk(subject, depth, upstream=True)

    @action("lineage:read", on="subject")
    def downstream(self, subject: str, depth: int = DEPTH) -> list[Edge]:
        """The edges that go out from `subject`, nearest first. Arguments as in `upstream`."""
        return self._walk(subject, depth, upstream=False)

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

    def _walk(self, subject: str, depth: int, *, upstream: bool) -> list[Edge]:
        if depth < 1:
            raise InvalidInput("the depth is wrong", [("depth", f"{depth} is below 1")])
        found: dict[Edge, None] = {}
        seen, near = {subject}, {subject}
        with self._catalog.read() as tx:
            for _ in range(depth):
                edges = statements.neighbours(tx, near, upstream=upstream)
                found |= dict.fromkeys(edges)
                near = {edge.source if upstream else edge.target for edge in edges} - seen
                if not near:
                    break
                seen |= near
        return list(found)
