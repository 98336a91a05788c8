"""What every store of MLflow's gives, whichever layout it has: the words of the import."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import NamedTuple, Protocol, runtime_checkable

import msgspec

from everloop.core.intake import ModelRecord
from everloop.core.machines import RunState
from everloop.core.run import Experiment, LoggedModel, Metric, Run, RunInput
from everloop.core.time import from_micros
from everloop.core.trace import Span, Trace

__all__ = [
    "CHUNK",
    "ROLE_TAG",
    "Fail",
    "FoundModel",
    "FoundRun",
    "FoundTrace",
    "Source",
    "SourceFile",
    "Stream",
    "instant",
    "run_input",
    "state_of",
    "version_tags",
]

#: Points that are held in memory, and written in one transaction, at once.
CHUNK = 100_000
ROLE_TAG = "mlflow.data.context"

#: Says that something of the source could not be read: kind, name, reason.
Fail = Callable[[str, str, str], None]

# By name, by number as the file store writes it.
_STATES: dict[str, RunState] = {
    "RUNNING": "running",
    "SCHEDULED": "queued",
    "FINISHED": "finished",
    "FAILED": "failed",
    "KILLED": "killed",
    "1": "running",
    "2": "queued",
    "3": "finished",
    "4": "failed",
    "5": "killed",
}
_FIRST_MS, _LAST_MS = -62_135_596_800_000, 253_402_300_799_999
_EPOCH = from_micros(0)


class FoundRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run in the source.

    Attributes:
        run: Its details (parameters, tags...) are filled in by ``Source.details``.
        models_read: Ids of the logged models that it read.
        root: Where the source says its files are.
        keys: Its metrics by name, for sources that tell them.
    """

    run: Run
    models_read: tuple[str, ...] = ()
    root: str = ""
    keys: tuple[str, ...] = ()


class FoundModel(msgspec.Struct, frozen=True, kw_only=True):
    """A logged model in the source, its points by the run that measured them."""

    model: LoggedModel
    points: dict[str, list[Metric]] = {}
    deleted: bool = False
    root: str = ""


class FoundTrace(msgspec.Struct, frozen=True, kw_only=True):
    """A trace in the source, without its spans.

    Attributes:
        run_ids: Runs that it belongs to, beside the one that its metadata names.
        root: Where the source says its files are.
    """

    trace: Trace
    run_ids: tuple[str, ...] = ()
    root: str = ""


@runtime_checkable
class Stream(Protocol):
    """An opened file."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""
        ...

    def close(self) -> None:
        """Give it back."""
        ...


class SourceFile(NamedTuple):
    """A file in the source: its path below the root, its size (-1 if not known), its bytes."""

    path: str
    size: int
    open: Callable[[], Stream | Iterable[bytes]]


class Source(Protocol):
    """One store of MLflow's, read and never written. What cannot be read is told to ``Fail``."""

    #: Where it is, for people and the event log; without passwords.
    label: str

    def experiments(self) -> Iterator[Experiment]:
        """All experiments, deleted ones too."""
        ...

    def runs(self, experiment: Experiment) -> Iterator[FoundRun]:
        """All runs of an experiment, deleted ones too; details may be missing yet."""
        ...

    def details(self, found: Sequence[FoundRun]) -> list[FoundRun]:
        """The same runs with parameters, tags, inputs and outputs; broken ones are left out."""
        ...

    def points(self, found: Sequence[FoundRun]) -> Iterator[tuple[str, list[Metric]]]:
        """Points by run id, at most about ``CHUNK`` at once; a run may come several times."""
        ...

    def run_files(self, found: FoundRun) -> Iterator[SourceFile]:
        """The artifacts of a run."""
        ...

    def models(self, experiment: Experiment) -> Iterator[FoundModel]:
        """All logged models of an experiment."""
        ...

    def model_files(self, found: FoundModel) -> Iterator[SourceFile]:
        """The files of a logged model."""
        ...

    def traces(self, experiment: Experiment) -> Iterator[FoundTrace]:
        """All traces of an experiment."""
        ...

    def spans(self, found: Sequence[FoundTrace]) -> dict[str, list[Span]]:
        """The spans of traces by the traces' ids; what cannot be read is left out and told."""
        ...

    def trace_files(self, found: FoundTrace) -> Iterator[SourceFile]:
        """The files beside a trace."""
        ...

    def registered(self) -> Iterator[ModelRecord]:
        """All registered models with their versions, sources as they are there."""
        ...

    def version_files(self, source: str) -> Iterator[SourceFile]:
        """The files of a version whose source is neither a run's nor a logged model's."""
        ...

    def left_out(self) -> dict[str, int]:
        """What is there and is not imported, counted by name."""
        ...

    def close(self) -> None:
        """Give back connections."""
        ...


def instant(ms: object, default: datetime | None = None) -> datetime:
    """The instant of milliseconds since 1970; `default` (else 1970) for none, or no number."""
    if isinstance(ms, float) and ms.is_integer():
        ms = int(ms)
    if isinstance(ms, str) and re.fullmatch(r"-?\d+", ms):
        ms = int(ms)
    if isinstance(ms, int) and _FIRST_MS <= ms <= _LAST_MS:
        return from_micros(ms * 1000)
    return default or _EPOCH


def state_of(status: object) -> RunState:
    """The state of a run by MLflow's name or number; ``finished`` for none of them."""
    return _STATES.get(str(status), "finished")


def run_input(fields: dict[str, object], tags: dict[str, str]) -> RunInput:
    """A dataset that a run read, as MLflow describes it."""
    tags = dict(tags)
    role = tags.pop(ROLE_TAG, "")
    names = ("source_type", "source", "schema", "profile")
    said: dict[str, object] = {name: str(fields[name]) for name in names if fields.get(name)}
    return RunInput(
        dataset=str(fields.get("name") or ""),
        version=0,
        digest=str(fields.get("digest") or ""),
        role=role,
        source=said | ({"tags": tags} if tags else {}),
    )


def version_tags(tags: dict[str, str], status: object) -> dict[str, str]:
    """The tags of a version with its status, which has no place of its own here."""
    if status and str(status) != "READY":
        return {**tags, "mlflow.status": str(status)}
    return dict(tags)
