"""Who owns a run: leases and fences. Functions here act within a given transaction.

A run that a process executes has one owner at a time. The owner renews a lease; whoever takes over
raises the fence, and a write with an older fence is refused. Runs of pipelines and runs that a
program opens itself live by the same rules.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple

from everloop.catalog.direct import Direct, to_json
from everloop.core.machines import next_run_state
from everloop.core.owner import is_dead
from everloop.core.time import to_micros
from everloop.errors import Conflict, InvalidInput, StateError
from everloop.tracking.store import RunRow, run_row

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

#: Columns that tell what a run was made of.
_DESCRIBED = ("code", "git", "environment")
_LONGEST_S = 7 * 86400
_EVENTS = {"finished": "run.Finished", "failed": "run.Failed", "killed": "run.Failed"}
_EVENTS |= {"waiting": "run.Waiting"}
_MOVES = {"finished": "finish", "failed": "fail", "killed": "kill", "waiting": "wait"}


def lease_end(tx: Direct, lease_s: float) -> datetime:
    """Until when a lease of so many seconds holds.

    Raises:
        InvalidInput: If it is not within 0 and 7 days; a longer one would hide that its owner died.
    """
    if not 0 <= lease_s <= _LONGEST_S:
        raise InvalidInput(
            "the lease is wrong", [("lease_s", f"must be from 0 to {_LONGEST_S} seconds")]
        )
    return tx.now + timedelta(seconds=lease_s)


def take_over(tx: Direct, row: RunRow, owner: str, until: datetime, *, gave_up: str = "") -> None:
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
    state = next_run_state(row.state, "resume", f"run {row.id} is {_told(row)}")
    tx.run(
        "UPDATE runs SET state = ?, owner = ?, fence = ?, lease_until = ?, ended_at = NULL,"
        " error = '' WHERE id = ?",
        (state, owner, row.fence + 1, to_micros(until), row.id),
    )
    body = {"pipeline": row.pipeline, "was": row.state, "fence": row.fence + 1}
    tx.append("run.Resumed", f"run:{row.id}", body)


def renew(tx: Direct, run_id: str, fence: int, until: datetime) -> bool:
    """Say that the owner lives; whether the run is still running and its own."""
    change = "UPDATE runs SET lease_until = ? WHERE id = ? AND fence = ? AND state = 'running'"
    return bool(tx.run(change, (to_micros(until), run_id, fence)).rowcount > 0)


def revive(tx: Direct, row: RunRow, fence: int, until: datetime) -> None:
    """Bring back a run that was taken for lost while its owner only slept.

    Raises:
        StateError: If somebody else took the run over, or it ended.
    """
    if row.fence != fence or row.state != "lost":
        raise refused(row, fence)
    change = "UPDATE runs SET state = 'running', lease_until = ? WHERE id = ?"
    tx.run(change, (to_micros(until), row.id))
    body = {"pipeline": row.pipeline, "was": "lost", "fence": fence}
    tx.append("run.Resumed", f"run:{row.id}", body)


def annotate(tx: Direct, run_id: str, fence: int, values: dict[str, Any]) -> None:
    """Set columns that tell what the run was made of; those without a value stay.

    Args:
        tx: The transaction.
        run_id: The run.
        fence: As given by who started or took it over.
        values: By column: ``code``, ``git``, ``environment``.

    Raises:
        StateError: If somebody else took the run over.
    """
    given = {name: values[name] for name in _DESCRIBED if values.get(name)}
    if not given:
        return
    texts = [value if isinstance(value, str) else to_json(value) for value in given.values()]
    change = ", ".join(f"{name} = ?" for name in given)
    held = tx.run(f"UPDATE runs SET {change} WHERE id = ? AND fence = ?", (*texts, run_id, fence))
    if held.rowcount == 0:
        raise refused(run_row(tx, run_id), fence)


def end(
    tx: Direct, row: RunRow, fence: int, state: EndState, *, error: str, result: str = ""
) -> None:
    """End a run.

    Raises:
        StateError: If somebody else took it over, or it ended already.
    """
    if row.fence != fence:
        raise refused(row, fence)
    was = "running" if row.state == "lost" else row.state  # its owner is here after all
    after = next_run_state(was, _MOVES[state], f"run {row.id} is {_told(row)}")
    waits = after == "waiting"
    at, owner = None if waits else to_micros(tx.now), "" if waits else row.owner
    tx.run(
        "UPDATE runs SET state = ?, error = ?, ended_at = ?, owner = ?, lease_until = NULL"
        " WHERE id = ?",
        (after, error, at, owner, row.id),
    )
    body: dict[str, Any] = {"pipeline": row.pipeline, "state": after}
    if result:
        body["result"] = result
    if error:
        body["error"] = error.strip().splitlines()[-1]
    tx.append(_EVENTS[after], f"run:{row.id}", body)


class Expired(NamedTuple):
    """A running run that nobody executes any more."""

    id: str
    pipeline: str
    owner: str


def reap(tx: Direct) -> list[str]:
    """Mark running runs as lost whose lease ran out or whose owner is dead; their ids."""
    found = expired(tx)
    for row in found:
        tx.run("UPDATE runs SET state = 'lost' WHERE id = ?", (row.id,))
        tx.append("run.Lost", f"run:{row.id}", {"pipeline": row.pipeline, "owner": row.owner})
    return [row.id for row in found]


def expired(tx: Direct) -> list[Expired]:
    """Running runs whose lease ran out or whose owner is dead."""
    query = (
        "SELECT id, pipeline, owner, lease_until FROM runs"
        " WHERE state = 'running' AND lease_until IS NOT NULL ORDER BY pk"
    )
    now = to_micros(tx.now)
    rows = tx.run(query).fetchall()
    return [Expired(*row) for *row, until in rows if until <= now or is_dead(row[-1])]


def refused(row: RunRow, fence: int) -> StateError:
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


def _told(row: RunRow) -> str:
    when = f" since {row.ended_at:%Y-%m-%d %H:%M:%S} UTC" if row.ended_at else ""
    return f"{row.state}{when}; its owner is {row.owner or 'unknown'}, fence {row.fence}"
