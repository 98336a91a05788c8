"""The run that code belongs to, ambient in a context: of a pipeline, or opened by ``ev.run``."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Protocol

from everloop.core.run import Run
from everloop.errors import StateError

__all__ = ["LogTarget", "logging_to", "target_of"]


class LogTarget(Protocol):
    """What takes metrics for a run."""

    @property
    def run(self) -> Run: ...

    def log(self, metrics: Mapping[str, Any], /, *, step: int = 0) -> None: ...


logging_to: ContextVar[LogTarget | None] = ContextVar("everloop_logging", default=None)


def target_of(given: LogTarget | None) -> LogTarget:
    """The run to log to: `given`, else the current one.

    Raises:
        StateError: If there is neither.
    """
    found = given or logging_to.get()
    if found is None:
        raise StateError("no run is open", hint="train within: with ev.run(...) as run:")
    return found
