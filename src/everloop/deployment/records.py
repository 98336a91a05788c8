"""Deployments and rollouts as the catalog keeps them: statements and checks of the service."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Row, select

from everloop.catalog import tables
from everloop.catalog.transaction import Transaction
from everloop.core.deploy import Arm, ArmName, Deployment, Rollout
from everloop.core.machines import RolloutDecision
from everloop.errors import Conflict, GateRefused, InvalidInput, NotFound, StateError

__all__ = [
    "arms_of",
    "champion_of",
    "check_verdict",
    "last_event",
    "last_story",
    "load_deployment",
    "load_rollout",
    "open_rollout",
    "to_deployment",
    "to_rollout",
]


def arms_of(rollout: Rollout, decision: RolloutDecision) -> tuple[Arm, ...]:
    """The arms that a decision on a rollout asks for."""
    stage = decision.state.stage
    if stage == "promoted":
        return (Arm(name="champion", version=rollout.candidate, weight=100),)
    champion = Arm(name="champion", version=rollout.champion, weight=100 - decision.weight)
    if stage == "aborted":
        return (champion,)
    name: ArmName = "shadow" if stage == "shadow" else "challenger"
    return (champion, Arm(name=name, version=rollout.candidate, weight=decision.weight))


def check_verdict(tx: Transaction, model: str, candidate: int, champion: int, verdict: str) -> str:
    """Refuse a verdict that does not let this candidate through; the id of its event."""
    if not verdict:
        return ""
    table = tables.verdicts
    row = tx.first(select(table).where(table.c.id == verdict))
    if row is None:
        raise NotFound(f"no verdict {verdict!r}")
    if (row.model, row.candidate) != (model, candidate):
        raise InvalidInput(
            f"verdict {verdict} is on {row.model}/{row.candidate}, not on {model}/{candidate}"
        )
    if not row.passed:
        raise GateRefused(
            f"the gates refused {model}/{candidate}",
            hint="the verdict holds the evidence",
            details={"verdict": verdict},
        )
    if row.champion not in (0, champion):
        raise Conflict(
            f"{model}/{candidate} was judged against version {row.champion},"
            f" the champion now is {champion}",
            hint="judge it again",
            details={"winner": champion},
        )
    return last_event(tx, f"verdict:{verdict}")


def champion_of(found: Deployment) -> int:
    """The version of the champion arm."""
    arm = found.arm("champion")
    if arm is None:
        raise StateError(f"{found.name!r} has no champion arm")
    return arm.version


def load_deployment(tx: Transaction, name: str) -> Deployment:
    """The deployment called `name`; raises NotFound with near names."""
    table = tables.deployments
    row = tx.first(select(table).where(table.c.name == name))
    if row is None:
        raise NotFound.named("deployment", name, [r.name for r in tx.all(select(table.c.name))])
    return to_deployment(row)


def to_deployment(row: Row[Any]) -> Deployment:
    """A row of ``deployments``."""
    return msgspec.convert({str(key): value for key, value in row._mapping.items()}, Deployment)


def load_rollout(tx: Transaction, id_: str) -> Rollout:
    """A rollout; raises NotFound."""
    row = tx.first(select(tables.rollouts).where(tables.rollouts.c.id == id_))
    if row is None:
        raise NotFound(f"no rollout {id_!r}", hint="everloop deploy status lists them")
    return to_rollout(row)


def open_rollout(tx: Transaction, name: str) -> Rollout | None:
    """The rollout that is under way in a deployment, if any."""
    table = tables.rollouts
    row = tx.first(select(table).where(table.c.deployment == name, table.c.open))
    return None if row is None else to_rollout(row)


def to_rollout(row: Row[Any]) -> Rollout:
    """A row of ``rollouts``."""
    given = {str(key): value for key, value in row._mapping.items() if key != "open"}
    return msgspec.convert(given, Rollout)


def last_event(tx: Transaction, subject: str) -> str:
    """Id of the newest event about `subject`, or empty."""
    table = tables.events
    query = select(table.c.id).where(table.c.subject == subject)
    return str(tx.scalar(query.order_by(table.c.seq.desc()).limit(1)) or "")


def last_story(tx: Transaction, name: str) -> str:
    """How the last rollout of a deployment ended, for the hint of an error."""
    table = tables.rollouts
    query = select(table).where(table.c.deployment == name)
    row = tx.first(query.order_by(table.c.started_at.desc(), table.c.id.desc()))
    if row is None:
        return "there has been none yet"
    last = to_rollout(row)
    return f"the last, of version {last.candidate}, was {last.state.stage}: {last.reason}"
