"""What systems outside say: merged into what is known of their datasets, jobs and runs.

Reports come twice, late and in any order. Of each facet the newest counts, by the reporter's own
time; a run that ended stays ended; an edge that was told once stays.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from itertools import pairwise
from typing import Any

from sqlalchemy import select

from everloop.catalog.lineage import link_edges
from everloop.catalog.tables import externals
from everloop.catalog.transaction import Transaction
from everloop.core.lineage import Edge, External, Mention, Report
from everloop.core.time import to_micros

__all__ = ["find", "joined", "listed", "take"]

_OVER = frozenset({"COMPLETE", "FAIL", "ABORT"})
# SQLite takes 32,766 variables in a statement.
_AT_ONCE = 10_000


def take(tx: Transaction, report: Report) -> list[Edge]:
    """Merge a report; the edges that are new. One that says nothing new changes nothing."""
    mentions = _mentions(report)
    known = _rows(tx, mentions)
    changed = []
    for ref, mention in mentions.items():
        state = report.state if mention.kind == "run" else ""
        row = _merged(known.get(ref), mention, state, report.at, tx.now)
        if row is not None:
            changed.append(row)
    tx.upsert(externals, changed, ["ref"])
    news = link_edges(tx, _edges(report), at=report.at)
    if changed or news:
        _tell(tx, report)
    return news


def find(tx: Transaction, ref: str) -> External | None:
    """What is known of a subject outside."""
    row = tx.first(select(externals).where(externals.c.ref == ref))
    return None if row is None else _external(row._asdict())


def listed(tx: Transaction, kind: str, after: str, limit: int) -> list[External]:
    """Subjects outside, by name; those after `after`."""
    query = select(externals).where(externals.c.kind == kind, externals.c.ref > after)
    rows = tx.all(query.order_by(externals.c.ref).limit(limit))
    return [_external(row._asdict()) for row in rows]


def joined(row: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The row of a subject with what another catalog has heard of it: of each facet the newer."""
    facets, times = dict(row["facets"]), dict(row["facet_times"])
    for name, micros in other["facet_times"].items():
        if name in times and micros <= times[name]:
            continue
        times[name] = micros
        if name in other["facets"]:
            facets[name] = other["facets"][name]
        else:
            facets.pop(name, None)
    after = {**row, "facets": facets, "facet_times": times, "at": max(row["at"], other["at"])}
    if _follows(row["state"], other["state"], other["at"] > row["at"]):
        after["state"] = other["state"]
    return after


def _mentions(report: Report) -> dict[str, Mention]:
    alone = [one for one in (report.job, report.run) if one is not None]
    every = [*alone, *report.parents, *report.inputs, *report.outputs, *report.datasets]
    found: dict[str, Mention] = {}
    for one in every:
        there = found.get(one.ref)
        facets = one.facets if there is None else {**there.facets, **one.facets}
        found[one.ref] = Mention(
            kind=one.kind, namespace=one.namespace, name=one.name, facets=facets
        )
        for namespace, name in one.aliases:
            alias = Mention(kind="dataset", namespace=namespace, name=name)
            found.setdefault(alias.ref, alias)
    return found


def _edges(report: Report) -> list[Edge]:
    found = []
    if report.job is not None:
        job = report.job.ref
        found += [Edge(one.ref, job, "read") for one in report.inputs]
        found += [Edge(job, one.ref, "wrote") for one in report.outputs]
        chain = [job, *(parent.ref for parent in report.parents)]
        found += [Edge(b, a, "started") for a, b in pairwise(chain)]
    for one in (*report.inputs, *report.outputs, *report.datasets):
        for namespace, name in one.aliases:
            other = Mention(kind="dataset", namespace=namespace, name=name).ref
            found += [Edge(one.ref, other, "same"), Edge(other, one.ref, "same")]
    return [edge for edge in dict.fromkeys(found) if edge.source != edge.target]


def _rows(tx: Transaction, refs: Iterable[str]) -> dict[str, dict[str, Any]]:
    wanted, found = list(refs), {}
    for start in range(0, len(wanted), _AT_ONCE):
        query = select(externals).where(externals.c.ref.in_(wanted[start : start + _AT_ONCE]))
        found.update({row.ref: row._asdict() for row in tx.all(query)})
    return found


def _merged(
    row: dict[str, Any] | None, mention: Mention, state: str, at: datetime, now: datetime
) -> dict[str, Any] | None:
    """The row with what is newly said, or None if nothing changes."""
    before = row or {
        "ref": mention.ref,
        "kind": mention.kind,
        "namespace": mention.namespace,
        "name": mention.name,
        "state": "",
        "facets": {},
        "facet_times": {},
        "at": at,
        "created_at": now,
    }
    facets, times = dict(before["facets"]), dict(before["facet_times"])
    micros = to_micros(at)
    for name, facet in mention.facets.items():
        if micros < times.get(name, micros):
            continue
        times[name] = micros
        if isinstance(facet, dict) and facet.get("_deleted") is True:
            facets.pop(name, None)
        else:
            facets[name] = facet
    after = {**before, "facets": facets, "facet_times": times, "at": max(before["at"], at)}
    if _follows(before["state"], state, at >= before["at"]):
        after["state"] = state
    return None if row == after else after


def _follows(before: str, state: str, is_newer: bool) -> bool:
    if not state or (before in _OVER and state not in _OVER):
        return False
    return is_newer or before not in _OVER


def _external(row: dict[str, Any]) -> External:
    names = External.__struct_fields__
    return External(**{name: value for name, value in row.items() if name in names})


def _tell(tx: Transaction, report: Report) -> None:
    about = report.job or next(iter((*report.datasets, *report.inputs, *report.outputs)))
    body = {
        "at": report.at,
        "state": report.state,
        "run": report.run.name if report.run is not None else "",
        "inputs": [one.ref for one in report.inputs[:100]],
        "outputs": [one.ref for one in report.outputs[:100]],
        "producer": report.producer,
    }
    tx.append("lineage.Reported", about.ref, body)
