"""ApprovalService: questions of runs that people answer.

The question is a row; the run is ``waiting`` and its process may end. Once it is answered, the
supervisor (or ``everloop run --resume``) has the same run go on: its finished steps are found.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import Row, select, update

from everloop.access.policy import Authorizer
from everloop.access.service import Service, action
from everloop.catalog.engine import Catalog
from everloop.catalog.tables import run_approvals, runs
from everloop.catalog.transaction import Transaction
from everloop.core.approval import MOST_TEXT, ApprovalState, RunApproval
from everloop.core.context import current_actor
from everloop.core.machines import next_run_state
from everloop.errors import (
    Conflict,
    InvalidInput,
    NotAllowed,
    NotFound,
    StateError,
)
from everloop.tracking.store import run_row

__all__ = ["ApprovalService"]

#: A hundred years.
_LONGEST_S = 100 * 366 * 86_400.0


class ApprovalService(Service):
    """Questions of runs and their answers."""

    area = "approvals"

    def __init__(self, catalog: Catalog, authorizer: Authorizer) -> None:
        self._catalog = catalog
        self._authorizer = authorizer

    @action("run:write", on="run_id")
    def ask(
        self,
        run_id: str,
        fence: int,
        name: str,
        question: str,
        *,
        target: str = "",
        four_eyes: bool = False,
        expires_s: float = 0,
    ) -> RunApproval:
        """Ask, or look at what was answered; a question that expired is asked anew.

        Args:
            run_id: The run that asks.
            fence: As given by ``pipelines.start``.
            name: Of the question within the run.
            question: What people read.
            target: Where the run goes on, ``path/to/file.py:function``.
            four_eyes: Whether who started the run may not approve.
            expires_s: How long it may wait, 0 is without end.

        Raises:
            InvalidInput: If `expires_s` is below 0 or above 100 years.
            StateError: If somebody else took the run over.
        """
        if not 0 <= expires_s <= _LONGEST_S:  # a NaN is refused, too
            raise InvalidInput(
                "the question cannot be asked",
                [("expires_s", f"{expires_s:g} is no wait of 0 to {_LONGEST_S:g} seconds")],
            )
        table = run_approvals
        with self._catalog.write() as tx:
            run = run_row(tx, run_id)
            if run.fence != fence or run.state not in ("running", "lost"):
                raise StateError(f"run {run_id} is {run.state}, fence {run.fence}; it asks nothing")
            mine = (table.c.run_id == run_id, table.c.name == name)
            known = tx.first(select(table).where(*mine))
            if known is not None and known.state != "expired":
                return _approval(known)
            row = {
                "run_id": run_id,
                "name": name,
                "question": question,
                "target": target,
                "four_eyes": four_eyes,
                "state": "asked",
                "actor": "",
                "note": "",
                "asked_at": tx.now,
                "expires_at": tx.now + timedelta(seconds=expires_s) if expires_s else None,
                "at": None,
            }
            tx.upsert(table, row, ["run_id", "name"])
            body = {"pipeline": run.pipeline, "question": question, "four_eyes": four_eyes}
            tx.append("run.ApprovalAsked", f"run:{run_id}", body)
            found = tx.first(select(table).where(*mine))
            assert found is not None
            return _approval(found)

    @action("run:read", on="run_id")
    def approvals(self, run_id: str = "", state: ApprovalState | None = None) -> list[RunApproval]:
        """Questions of a run or of all, in one state or in any; oldest first."""
        table = run_approvals
        query = select(table).order_by(table.c.asked_at, table.c.run_id).limit(1000)
        if run_id:
            query = query.where(table.c.run_id == run_id)
        if state is not None:
            query = query.where(table.c.state == state)
        with self._catalog.read() as tx:
            return [_approval(row) for row in tx.all(query)]

    @action("run:approve", on="run_id")
    def approve(self, run_id: str, note: str = "", name: str = "") -> RunApproval:
        """Say yes: the run goes on.

        Args:
            run_id: The run that waits.
            note: Why, for those who read it later.
            name: Which question, where there are several.

        Raises:
            NotFound: If the run asked nothing.
            Conflict: If it is answered already; says by whom.
            NotAllowed: If four eyes are asked for and the caller started the run.
            StateError: If its time is over.
        """
        return self._answer(run_id, "approved", note, name)

    @action("run:approve", on="run_id")
    def refuse(self, run_id: str, reason: str, name: str = "") -> RunApproval:
        """Say no: the run fails, with the reason.

        Raises:
            InvalidInput: If there is no reason.
            NotFound: If the run asked nothing.
            Conflict: If it is answered already; says by whom.
            StateError: If its time is over.
        """
        if not reason.strip():
            raise InvalidInput("say why", [("reason", "must not be empty")])
        return self._answer(run_id, "refused", reason, name)

    @action("run:reap")
    def expire(self) -> list[RunApproval]:
        """End the questions whose time is over, with the runs that wait for them."""
        table = run_approvals
        with self._catalog.read() as tx:
            late = (table.c.state == "asked", table.c.expires_at <= tx.now)
            if tx.first(select(table.c.run_id).where(*late).limit(1)) is None:
                return []
        with self._catalog.write() as tx:
            late = (table.c.state == "asked", table.c.expires_at <= tx.now)
            found = [_approval(row) for row in tx.all(select(table).where(*late))]
            for asked in found:
                _settle(tx, asked, "expired", "", "")
                _end_waiting(tx, asked, f"nobody answered in time: {asked.question}")
        return found

    def _answer(self, run_id: str, state: ApprovalState, note: str, name: str) -> RunApproval:
        if len(note) > MOST_TEXT or "\0" in note:
            raise InvalidInput("too long", [("note", f"must be at most {MOST_TEXT} characters")])
        with self._catalog.write() as tx:
            run = run_row(tx, run_id)
            asked = _asked(tx, run_id, name)
            actor = current_actor() or tx.actor
            if asked.state in ("approved", "refused"):
                raise Conflict(
                    f"{asked.question!r} was {asked.state} by {asked.actor} at "
                    f"{asked.at:%Y-%m-%d %H:%M} UTC",
                    details={"winner": asked.actor},
                )
            is_late = asked.expires_at is not None and asked.expires_at <= tx.now
            if asked.state == "expired" or is_late:
                raise StateError(
                    f"{asked.question!r} of run {run_id} has expired",
                    hint="resume the run: it asks anew",
                )
            if state == "approved" and asked.four_eyes and actor == run.actor:
                raise NotAllowed(
                    f"{actor} started run {run_id} and cannot approve it: four eyes",
                    hint="ask somebody else",
                )
            _settle(tx, asked, state, actor, note)
            if state == "refused":
                _end_waiting(tx, asked, f"{asked.question} was refused by {actor}: {note}")
            return _asked(tx, run_id, asked.name)


def _asked(tx: Transaction, run_id: str, name: str) -> RunApproval:
    """The question that is meant: the named one, the one that is open, or the last."""
    table = run_approvals
    query = select(table).where(table.c.run_id == run_id)
    if name:
        query = query.where(table.c.name == name)
    rows = [_approval(row) for row in tx.all(query.order_by(table.c.asked_at, table.c.name))]
    if not rows:
        asked = f"nothing called {name!r}" if name else "nothing"
        raise NotFound(f"run {run_id} asks {asked}", hint="everloop approve --list tells who asks")
    return next((row for row in rows if row.state == "asked"), rows[-1])


def _settle(
    tx: Transaction, asked: RunApproval, state: ApprovalState, actor: str, note: str
) -> None:
    table = run_approvals
    mine = (table.c.run_id == asked.run_id, table.c.name == asked.name)
    values = {"state": state, "actor": actor, "note": note, "at": tx.now}
    tx.execute(update(table).where(*mine).values(**values))
    kind = {"approved": "run.Approved", "refused": "run.Refused"}.get(state, "run.ApprovalExpired")
    tx.append(kind, f"run:{asked.run_id}", {"question": asked.question, "note": note})


def _end_waiting(tx: Transaction, asked: RunApproval, error: str) -> None:
    """Fail the run of a question, if it waits yet; otherwise it will see the answer itself."""
    run = run_row(tx, asked.run_id)
    if run.state != "waiting":
        return
    values = {"state": next_run_state(run.state, "fail"), "error": error, "ended_at": tx.now}
    tx.execute(update(runs).where(runs.c.id == run.id).values(**values))
    body = {"pipeline": run.pipeline, "state": "failed", "error": error}
    tx.append("run.Failed", f"run:{run.id}", body)


def _approval(row: Row[Any]) -> RunApproval:
    return RunApproval(**row._asdict())
