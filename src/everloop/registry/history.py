"""Where aliases pointed and why, read from the event log.

There is no table for it: the log has each move with its actor, reason and evidence. A model keeps
its history over renames and over a delete that was undone; another model of the same name begins
anew. Moves that were merged from another workspace stand where the merge told of them.
"""

from __future__ import annotations

from collections import defaultdict

from sqlalchemy import select

from everloop.catalog import tables
from everloop.catalog.transaction import Transaction
from everloop.core.model import AliasMove

__all__ = ["MERGED", "histories", "moves_of"]

#: The kind of the event of a move that happened in another workspace.
MERGED = "model.AliasMoveMerged"

_KINDS = (
    "model.AliasMoved", MERGED, "model.Created", "model.Deleted", "model.Renamed", "model.Restored",
)  # fmt: skip


def moves_of(tx: Transaction, name: str, alias: str = "") -> list[AliasMove]:
    """The moves of the aliases (or of one) of the model that is called `name` now, oldest first."""
    return [move for move in histories(tx).get(name, ()) if alias in ("", move.alias)]


def histories(tx: Transaction) -> dict[str, list[AliasMove]]:
    """The moves of all aliases by the name that their model has now, oldest first."""
    events = tables.events
    query = select(events).where(events.c.kind.in_(_KINDS)).order_by(events.c.seq)
    known: dict[str, list[AliasMove]] = defaultdict(list)
    deleted: dict[str, list[AliasMove]] = {}
    for row in tx.all(query):
        subject = row.subject.removeprefix("model:").partition("/")[0]
        if row.kind == "model.Created":
            known[subject] = []
        elif row.kind == "model.Renamed":
            known[row.body["to"]] = known.pop(subject, [])
        elif row.kind == "model.Deleted":
            deleted[row.body.get("trash", "")] = known.pop(subject, [])
        elif row.kind == "model.Restored":
            known[subject] = deleted.pop(row.body["trash"], [])
        else:
            known[subject].append(
                AliasMove(
                    alias=row.body["alias"],
                    before=row.body["from"],
                    after=row.body["to"],
                    at=row.at,
                    actor=row.actor,
                    reason=row.body["reason"],
                    evidence=row.body.get("evidence", ""),
                    event=row.id,
                    origin=row.body.get("origin", ""),
                )
            )
    return known
