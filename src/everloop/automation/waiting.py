"""Runs that waited for an approval and may go on, and firings whose run ended while it waited."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, select

from everloop.catalog import loops as statements
from everloop.catalog import tables
from everloop.catalog.transaction import Transaction
from everloop.core.ids import new_id
from everloop.core.policy import Firing

__all__ = ["has_answers", "settle_answers"]

_RUNS, _ASKED, _FIRINGS = tables.runs, tables.run_approvals, tables.firings
_OPEN = _ASKED.alias("still_asked")
_APPROVED = (
    select(_RUNS.c.id, _RUNS.c.trigger, _ASKED.c.name)
    .join(_ASKED, _ASKED.c.run_id == _RUNS.c.id)
    .where(
        _RUNS.c.state == "waiting",
        _ASKED.c.state == "approved",
        # Not one that has asked something else since.
        _RUNS.c.id.not_in(select(_OPEN.c.run_id).where(_OPEN.c.state == "asked")),
    )
    .order_by(_ASKED.c.at.desc())
)
_ENDED = (
    select(_FIRINGS.c.id, _RUNS.c.id.label("run_id"), _RUNS.c.state, _RUNS.c.error)
    .join(_RUNS, _RUNS.c.id == _FIRINGS.c.run_id)
    .where(_FIRINGS.c.outcome == "waiting", _RUNS.c.state.in_(("failed", "killed", "finished")))
)


def has_answers(tx: Transaction) -> bool:
    """Whether a run may go on, or a firing is to be closed."""
    return any(_resumed(tx, row) for row in tx.all(_APPROVED)) or bool(tx.all(_ENDED))


def settle_answers(tx: Transaction) -> None:
    """Queue the runs that may go on, and close the firings whose run ended."""
    for row in tx.all(_APPROVED):
        known = _resumed(tx, row)
        if known == "waiting":
            change = _FIRINGS.update().where(_FIRINGS.c.id == row.trigger)
            tx.execute(change.values(outcome="queued", due_at=tx.now, updated_at=tx.now))
        elif known == "none":
            statements.put_firing(
                tx,
                Firing(
                    id=new_id(),
                    loop=f"run:{row.id}",
                    key=row.name,
                    cause="",
                    outcome="queued",
                    run_id=row.id,
                    scheduled_for=tx.now,
                    action="resume",
                    due_at=tx.now,
                    created_at=tx.now,
                    updated_at=tx.now,
                ),
            )
    for row in tx.all(_ENDED):
        outcome = "done" if row.state == "finished" else "failed"
        lines = (row.error or f"run {row.run_id} {row.state}").strip().splitlines()
        firing = statements.set_firing(tx, row.id, outcome, reason=lines[-1])  # type: ignore[arg-type]
        body = {"loop": firing.loop, "outcome": outcome, "reason": lines[-1], "run": row.run_id}
        tx.append("trigger.Finished", f"firing:{row.id}", body)


def _resumed(tx: Transaction, row: Row[Any]) -> str:
    """``waiting``: its firing is to be queued; ``none``: it needs one; empty: all is done."""
    known = tx.scalar(select(_FIRINGS.c.outcome).where(_FIRINGS.c.id == row.trigger))
    if known is not None:
        return "waiting" if known == "waiting" else ""
    mine = (_FIRINGS.c.loop == f"run:{row.id}", _FIRINGS.c.key == row.name)
    return "" if tx.first(select(_FIRINGS.c.id).where(*mine)) is not None else "none"
