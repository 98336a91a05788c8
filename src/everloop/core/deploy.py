"""Deployments, their arms, and rollouts."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from everloop.core.machines import RolloutPlan, RolloutState

__all__ = ["Arm", "ArmName", "Deployment", "Rollout", "WorkerStatus"]

ArmName = Literal["champion", "challenger", "shadow"]


class Arm(msgspec.Struct, frozen=True, kw_only=True):
    """One version within a deployment.

    Attributes:
        weight: Share of the traffic in per cent; a shadow has 0.
    """

    name: ArmName
    version: int
    weight: float


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """A model served under a name.

    Attributes:
        revision: Grows with every change of the arms; workers acknowledge the one they serve.
        route_by: Request field that decides the arm (sticky); empty means the request's id.
        salt: Goes into the hash, so that two deployments split their traffic independently.
    """

    name: str
    model: str
    revision: int
    arms: tuple[Arm, ...]
    route_by: str = ""
    salt: str = ""
    state: Literal["serving", "stopped"] = "serving"
    owner: str = ""
    created_at: datetime
    updated_at: datetime

    def arm(self, name: ArmName) -> Arm | None:
        return next((arm for arm in self.arms if arm.name == name), None)


class Rollout(msgspec.Struct, frozen=True, kw_only=True):
    """The plan that moves traffic from the champion to a candidate, and where it stands."""

    id: str
    deployment: str
    champion: int
    candidate: int
    plan: RolloutPlan
    state: RolloutState
    verdict: str = ""
    reason: str = ""
    started_at: datetime
    updated_at: datetime


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What one serving worker last said of itself."""

    deployment: str
    worker: str
    pid: int
    revision: int
    at: datetime
