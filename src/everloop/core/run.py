"""Experiments and runs: what was executed, with which parameters, data, code and result."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from everloop.core.machines import RunState

__all__ = ["Artifact", "Experiment", "Metric", "Run", "RunInput", "StepRun"]


class Experiment(msgspec.Struct, frozen=True, kw_only=True):
    """A named collection of runs. `id` is an integer as text; ``"0"`` is ``Default``."""

    id: str
    name: str
    lifecycle: Literal["active", "deleted"] = "active"
    tags: dict[str, str] = {}
    created_at: datetime
    updated_at: datetime


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """One point of a metric. `at_ms` is milliseconds since 1970, UTC; the value may be NaN."""

    key: str
    value: float
    step: int = 0
    at_ms: int = 0


class RunInput(msgspec.Struct, frozen=True, kw_only=True):
    """A dataset version that a run read, and as what (``train``, ``holdout``...)."""

    dataset: str
    version: int
    digest: str
    role: str = ""


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """A file of a run: its path within the run, digest and size in bytes."""

    path: str
    digest: str
    size: int


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One execution: of a pipeline, or of anything that logs.

    Attributes:
        id: 32 hex digits for runs of tracking clients, a ULID for our own.
        code: Digest of the code snapshot (a tree object), or empty.
        git: ``{"commit", "branch", "dirty"}`` where there is a repository.
        environment: Python, platform and distributions with versions.
        lease_until: Until when the owner has said it lives; afterwards the run is ``lost``.
        fence: Grows with each owner; a write of an older owner is refused.
        trigger: Id of the firing that started it, or empty.
    """

    id: str
    experiment: str
    name: str = ""
    pipeline: str = ""
    state: RunState
    params: dict[str, str] = {}
    tags: dict[str, str] = {}
    metrics: dict[str, float] = {}
    inputs: tuple[RunInput, ...] = ()
    code: str = ""
    git: dict[str, str] = {}
    environment: dict[str, str] = {}
    actor: str = ""
    trigger: str = ""
    error: str = ""
    fence: int = 0
    lease_until: datetime | None = None
    lifecycle: Literal["active", "deleted"] = "active"
    started_at: datetime
    ended_at: datetime | None = None


class StepRun(msgspec.Struct, frozen=True, kw_only=True):
    """One step within a run; `key` is what the cache went by."""

    run_id: str
    seq: int
    step: str
    key: str
    outcome: Literal["ran", "cached", "failed"]
    output: str = ""
    error: str = ""
    started_at: datetime
    ended_at: datetime
