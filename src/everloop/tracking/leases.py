"""Who owns a run: leases and fences. Functions here act within a given transaction.

A run that a process executes has one owner at a time. The owner renews a lease; whoever takes over
raises the fence, and a write with an older fence is refused. Runs of pipelines and runs that a
program opens itself live by the same rules.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import Row, select, update

from everloop.catalog.engine import Transaction
from everloop.catalog.tables import runs
from everloop.core.machines import next_run_state
from everloop.core.owner import is_dead
from everloop.errors import Conflict, InvalidInput, StateError
from everloop.tracking.store import run_row

__all__ = [
    "EndState",
    "annotate",
    "end",
    "expired",
    "lease_end",
    "reap",
    "refused",
    "renew",
    "revive",
    "take_over",
]

EndState = Literal["finished", "failed", "killed", "waiting"]

_LONGEST_S = 7 * 86400
_EVENTS = {"finished": "run.Finished", "failed": "run.Failed", "killed": "run.Failed"}
_EVENTS |= {"waiting": "run.Waiting"}
_MOVES = {"finished": "finish", "failed": "fail", "killed": "kill", "waiting": "wait"}


def lease_end(tx: Transaction, lease_s: float) -> datetime:
    """Until when a lease of so many seconds holds.

    Raises:
        InvalidInput: If it is not within 0 and 7 days; a longer one would hide that its owner died.
    """
    if not 0 <= lease_s <= _LONGEST_S:
        raise InvalidInput(
            "the lease is wrong", [("lease_s", f"must be from 0 to {_LONGEST_S} seconds")]
        )
    return tx.now + timedelta(seconds=lease_s)


def take_over(
    tx: Transaction, row: Row[Any], owner: str, until: datetime, *, gave_up: str = ""
) -> None:
    """Make `owner` the owner of a run that is lost, failed or killed, or whose owner is dead.

    Args:
        tx: The transaction.
        row: The run.
        owner: The new owner.
        until: End of its lease.
        gave_up: An owner that lives, and that says itself that it does not execute the run.

    Raises:
        Conflict: If its owner is alive.
        StateError: If it finished.
    """
    leased = row.lease_until is not None and row.lease_until > tx.now
    is_held = not is_dead(row.owner) and not (gave_up and row.owner == gave_up)
    if row.state == "running" and leased and is_held:
        raise Conflict(
            f"run {row.id} is alive: {row.owner or 'its owner'} holds it until "
            f"{row.lease_until:%H:%M:%S} UTC",
            hint="wait for it, or stop that process and resume then",
            details={"winner": row.owner},
        )
    values = {
        "state": next_run_state(row.state, "resume", f"run {row.id} is {_told(row)}"),
        "owner": owner,
        "fence": row.fence + 1,
        "lease_until": until,
        "ended_at": None,
        "error": "",
    }
    tx.execute(update(runs).where(runs.c.id == row.id).values(**values))
    body = {"pipeline": row.pipeline, "was": row.state, "fence": row.fence + 1}
    tx.append("run.Resumed", f"run:{row.id}", body)


def renew(tx: Transaction, run_id: str, fence: int, until: datetime) -> bool:
    """Say that the owner lives; whether the run is still running and its own."""
    held = (runs.c.id == run_id, runs.c.fence == fence, runs.c.state == "running")
    change = update(runs).where(*held).values(lease_until=until)
    return tx.execute(change).rowcount > 0


def revive(tx: Transaction, row: Row[Any], fence: int, until: datetime) -> None:
    """Bring back a run that was taken for lost while its owner only slept.

    Raises:
        StateError: If somebody else took the run over, or it ended.
    """
    if row.fence != fence or row.state != "lost":
        raise refused(row, fence)
    values = {"state": "running", "lease_until": until}
    tx.execute(update(runs).where(runs.c.id == row.id).values(**values))
    body = {"pipeline": row.pipeline, "was": "lost", "fence": fence}
    tx.append("run.Resumed", f"run:{row.id}", body)


def annotate(tx: Transaction, run_id: str, fence: int, values: dict[str, Any]) -> None:
    """Set columns that tell what the run was made of; those without a value stay.

    Raises:
        StateError: If somebody else took the run over.
    """
    given = {name: value for name, value in values.items() if value}
    if not given:
        return
    held = (runs.c.id == run_id, runs.c.fence == fence)
    if tx.execute(update(runs).where(*held).values(**given)).rowcount == 0:
        raise refused(run_row(tx, run_id), fence)


def end(
    tx: Transaction, row: Row[Any], fence: int, state: EndState, *, error: str, result: str = ""
) -> None:
    """End a run.

    Raises:
        StateError: If somebody else took it over, or it ended already.
    """
    if row.fence != fence:
        raise refused(row, fence)
    was = "running" if row.state == "lost" else row.state  # its owner is here after all
    after = next_run_state(was, _MOVES[state], f"run {row.id} is {_told(row)}")
    ended = {"state": after, "error": error, "ended_at": tx.now, "lease_until": None}
    if after == "waiting":
        ended |= {"ended_at": None, "owner": ""}
    tx.execute(update(runs).where(runs.c.id == row.id).values(**ended))
    body: dict[str, Any] = {"pipeline": row.pipeline, "state": after}
    if result:
        body["result"] = result
    if error:
        body["error"] = error.strip().splitlines()[-1]
    tx.append(_EVENTS[after], f"run:{row.id}", body)


def reap(tx: Transaction) -> list[str]:
    """Mark running runs as lost whose lease ran out or whose owner is dead; their ids."""
    found = expired(tx)
    for row in found:
        tx.execute(update(runs).where(runs.c.id == row.id).values(state="lost"))
        tx.append("run.Lost", f"run:{row.id}", {"pipeline": row.pipeline, "owner": row.owner})
    return [row.id for row in found]


def expired(tx: Transaction) -> list[Row[Any]]:
    """Running runs whose lease ran out or whose owner is dead."""
    columns = (runs.c.id, runs.c.pipeline, runs.c.owner, runs.c.lease_until)
    leased = (runs.c.state == "running", runs.c.lease_until.is_not(None))
    rows = tx.all(select(*columns).where(*leased).order_by(runs.c.pk))
    return [row for row in rows if row.lease_until <= tx.now or is_dead(row.owner)]


def refused(row: Row[Any], fence: int) -> StateError:
    """Why a write with `fence` is not taken."""
    if row.fence != fence:
        return StateError(
            f"run {row.id} was taken over by {row.owner or 'another process'} "
            f"(fence {row.fence}, this process has {fence}); nothing of this write was kept",
            hint="stop this process; the other one carries on",
        )
    return StateError(
        f"run {row.id} is {_told(row)}; it takes nothing more",
        hint="resume it, or start a new run",
    )


def _told(row: Row[Any]) -> str:
    when = f" since {row.ended_at:%Y-%m-%d %H:%M:%S} UTC" if row.ended_at else ""
    return f"{row.state}{when}; its owner is {row.owner or 'unknown'}, fence {row.fence}"
