"""Watcher: what accompanies one run of a pipeline, such as the trial of a sweep that it is."""

from __future__ import annotations

from typing import Any

from everloop.core.run import Metric, Run

__all__ = ["Watcher"]


class Watcher:
    """Accompanies a run; this one does nothing.

    Attributes:
        tags: What the run is tagged with from its first instant.
        described: Code, repository and environment if they are known already.
        git: The repository, where the code does not lie in it any more.
    """

    def __init__(
        self,
        tags: dict[str, str] | None = None,
        described: dict[str, Any] | None = None,
        git: dict[str, str] | None = None,
    ) -> None:
        self.tags = tags or {}
        self.described = described or {}
        self.git = git or {}

    def begun(self, run: Run) -> None:
        """The run has begun."""

    def see(self, point: Metric) -> str:
        """A metric was logged; why the run should end now, or empty."""
        return ""

    def returned(self, result: Any) -> list[Metric]:
        """The pipeline returned; what to log of it before the run ends."""
        return []
