"""Executor: runs a step or a job somewhere else than in the calling process."""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

__all__ = ["Executor", "JobSpec", "JobState"]

JobState = Literal["running", "done", "failed"]


class JobSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A command of Everloop to run: ``arguments`` follow ``python -m everloop``."""

    name: str
    arguments: tuple[str, ...]
    environment: dict[str, str] = {}
    directory: str = ""


class Executor(Protocol):
    """Runs jobs and says how they stand."""

    def submit(self, spec: JobSpec) -> str:
        """Start a job and return its handle."""
        ...

    def poll(self, handle: str) -> JobState:
        """How the job stands; raises NotFound for an unknown handle."""
        ...

    def cancel(self, handle: str) -> None:
        """Stop a job and everything it started."""
        ...

    def capacity(self) -> int:
        """How many more jobs may be submitted now."""
        ...
