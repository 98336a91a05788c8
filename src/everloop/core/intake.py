"""What comes in from elsewhere, as the services take it: ids, times and numbers are kept."""

from __future__ import annotations

from datetime import datetime

import msgspec

from everloop.core.run import Artifact, LoggedModel, Metric, Run
from everloop.core.trace import Span, Trace

__all__ = [
    "LoggedModelRecord",
    "ModelRecord",
    "Refusal",
    "RunRecord",
    "RunSize",
    "TraceRecord",
    "TraceSize",
    "VersionRecord",
]


class Refusal(msgspec.Struct, frozen=True):
    """One thing that could not be taken in, by its kind and name, and why."""

    kind: str
    name: str
    reason: str


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A run of elsewhere; one with very many points comes in parts, each with the whole head.

    Attributes:
        run: With the id of an experiment that is here.
        points: Points of metrics that other parts did not have.
        models_read: Ids of the logged models that it read.
        artifacts: Files by full path, whose bytes are in the object store already.
        complete: Whether nothing of it follows.
    """

    run: Run
    points: list[Metric] = []
    models_read: tuple[str, ...] = ()
    artifacts: tuple[Artifact, ...] = ()
    complete: bool = True


class RunSize(msgspec.Struct, frozen=True, kw_only=True):
    """How many rows are here of a run."""

    params: int = 0
    tags: int = 0
    points: int = 0


class LoggedModelRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A logged model of elsewhere, with its points by the run that measured them."""

    model: LoggedModel
    points: dict[str, list[Metric]] = {}
    deleted: bool = False
    artifacts: tuple[Artifact, ...] = ()


class TraceRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A trace of elsewhere, with the id of an experiment that is here.

    Attributes:
        spans: All of them, or none if they came as a file.
        run_ids: Runs that it belongs to.
        artifacts: Files by full path, whose bytes are in the object store already.
    """

    trace: Trace
    spans: list[Span] = []
    run_ids: tuple[str, ...] = ()
    artifacts: tuple[Artifact, ...] = ()


class TraceSize(msgspec.Struct, frozen=True, kw_only=True):
    """How many rows are here of a trace."""

    notes: int = 0
    spans: int = 0
    assessments: int = 0


class VersionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A registered version of elsewhere that says where its files are."""

    version: int
    source: str
    run_id: str = ""
    description: str = ""
    tags: dict[str, str] = {}
    actor: str = ""
    stage: str = "None"
    run_link: str = ""
    created_at: datetime
    updated_at: datetime
    artifacts: tuple[Artifact, ...] = ()


class ModelRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A registered model of elsewhere; `latest` counts deleted versions too."""

    name: str
    description: str = ""
    tags: dict[str, str] = {}
    aliases: dict[str, int] = {}
    latest: int = 0
    created_at: datetime
    updated_at: datetime
    versions: tuple[VersionRecord, ...] = ()
