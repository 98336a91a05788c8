"""Experiments and runs: what was executed, with which parameters, data, code and result."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import msgspec

from everloop.core.machines import RunState

__all__ = [
    "PARENT_TAG",
    "Artifact",
    "Experiment",
    "ExperimentPage",
    "LoggedModel",
    "LoggedModelPage",
    "Metric",
    "ModelOrder",
    "PointPage",
    "Run",
    "RunInput",
    "RunOutput",
    "RunPage",
    "StepRun",
    "UsedDataset",
]

#: The tag that names the run which a run is a part of; the one that MLflow uses.
PARENT_TAG = "mlflow.parentRunId"


class Experiment(msgspec.Struct, frozen=True, kw_only=True):
    """A named collection of runs. `id` is an integer as text; ``"0"`` is ``Default``.

    `location` is where clients put its artifacts; empty for the folder of its id in our own store.
    """

    id: str
    name: str
    location: str = ""
    lifecycle: Literal["active", "deleted"] = "active"
    tags: dict[str, str] = {}
    created_at: datetime
    updated_at: datetime


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """One point of a metric. `at_ms` is milliseconds since 1970, UTC; the value may be NaN.

    `model_id`, `dataset` and `digest` say, where given, which logged model was measured on what;
    `run_id` which run did it, among the metrics of a logged model.
    """

    key: str
    value: float
    step: int = 0
    at_ms: int = 0
    model_id: str = ""
    dataset: str = ""
    digest: str = ""
    run_id: str = ""


class PointPage(msgspec.Struct, frozen=True, kw_only=True):
    """Metric points of a run that are new since a cursor.

    Attributes:
        points: By key, then by step, time, value.
        cursor: To ask for what comes after these.
        has_more: Whether there are more already.
        state: Of the run.
    """

    points: tuple[Metric, ...]
    cursor: str
    has_more: bool
    state: RunState


class RunInput(msgspec.Struct, frozen=True, kw_only=True):
    """A dataset version that a run read, and as what (``train``, ``holdout``...).

    A dataset that a tracking client names and that is not ours has version 0, and what the client
    said of it in `source` (``source_type``, ``source``, ``schema``, ``profile``, ``tags``).
    """

    dataset: str
    version: int
    digest: str
    role: str = ""
    source: dict[str, Any] = {}


class UsedDataset(msgspec.Struct, frozen=True, kw_only=True):
    """That runs of an experiment read a dataset, and as what."""

    experiment: str
    dataset: str
    digest: str
    role: str = ""


class RunOutput(msgspec.Struct, frozen=True, kw_only=True):
    """A logged model that a run produced, at which step."""

    model_id: str
    step: int = 0


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
        owner: ``host:pid:start`` of the process that runs it, or empty.
        lease_until: Until when the owner has said it lives; afterwards the run is ``lost``.
        fence: Grows with each owner; a write of an older owner is refused.
        trigger: Id of the firing that started it, or empty.
        model_inputs: Ids of logged models that it read.
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
    model_inputs: tuple[str, ...] = ()
    outputs: tuple[RunOutput, ...] = ()
    code: str = ""
    git: dict[str, str] = {}
    environment: dict[str, str] = {}
    actor: str = ""
    trigger: str = ""
    error: str = ""
    owner: str = ""
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


class LoggedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model that a run logged, before (or without) being registered. `id` is ``m-`` + 32 hex."""

    id: str
    experiment: str
    name: str
    model_type: str = ""
    source_run_id: str = ""
    status: Literal["pending", "ready", "failed"] = "pending"
    params: dict[str, str] = {}
    tags: dict[str, str] = {}
    metrics: tuple[Metric, ...] = ()
    created_at: datetime
    updated_at: datetime


class ModelOrder(msgspec.Struct, frozen=True, kw_only=True):
    """One key to sort logged models by; a metric may be the one of a certain dataset."""

    by: str
    descending: bool = False
    dataset: str = ""
    digest: str = ""


class RunPage(msgspec.Struct, frozen=True, kw_only=True):
    """Runs in the order asked for; `next_page_token` is empty at the end."""

    runs: tuple[Run, ...]
    next_page_token: str = ""


class ExperimentPage(msgspec.Struct, frozen=True, kw_only=True):
    """Experiments in the order asked for; `next_page_token` is empty at the end."""

    experiments: tuple[Experiment, ...]
    next_page_token: str = ""


class LoggedModelPage(msgspec.Struct, frozen=True, kw_only=True):
    """Logged models in the order asked for; `next_page_token` is empty at the end."""

    models: tuple[LoggedModel, ...]
    next_page_token: str = ""
