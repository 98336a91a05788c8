"""A run as it is stored, with what one asks of it: its history and its files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from everloop.core.run import Metric, Run
from everloop.errors import InvalidInput

__all__ = ["LoggedRun", "artifact_root"]


def artifact_root(run: Run) -> str:
    """The folder of a run's files, as tracking clients expect it."""
    return f"{run.experiment}/{run.id}/artifacts"


class LoggedRun:
    """One stored run.

    Attributes:
        record: The run as it was when it was read.
    """

    def __init__(self, workspace: Any, record: Run) -> None:
        self._workspace = workspace
        self.record = record

    @property
    def id(self) -> str:
        """32 hex digits, or a ULID."""
        return self.record.id

    @property
    def name(self) -> str:
        """For people."""
        return self.record.name

    @property
    def state(self) -> str:
        """``running``, ``finished``, ``failed``, ``killed`` or ``lost``."""
        return self.record.state

    @property
    def params(self) -> Mapping[str, str]:
        """Parameters, as text."""
        return self.record.params

    @property
    def tags(self) -> Mapping[str, str]:
        """Tags."""
        return self.record.tags

    @property
    def metrics(self) -> Mapping[str, float]:
        """The latest value of each metric."""
        return self.record.metrics

    def refresh(self) -> Run:
        """Read the run again."""
        self.record = self._workspace.tracking.run(self.id)
        return self.record

    def history(self, metric: str, *, points: int = 0) -> list[Metric]:
        """The points of a metric, by step.

        Args:
            metric: Its name.
            points: At most about so many, evenly over the steps and with the first and the last;
                0 for all.

        Raises:
            InvalidInput: If `points` is above 2,500 or negative.
        """
        if points < 0:
            raise InvalidInput("points must be 0 or above", [("points", str(points))])
        tracking = self._workspace.tracking
        if points:
            sampled: list[Metric] = tracking.sampled_history([self.id], metric, points=points)[
                self.id
            ]
            return sampled
        every: list[Metric] = tracking.history(self.id, metric, order="step")
        return every

    def files(self, folder: str = "") -> list[str]:
        """What lies directly in a folder of the run's files."""
        root = artifact_root(self.record)
        found = self._workspace.tracking.list_artifacts(f"{root}/{folder}".rstrip("/"))
        return [item.path.removeprefix(f"{root}/") for item in found]

    def read_file(self, path: str) -> bytes:
        """The bytes of a file that the run logged.

        Raises:
            NotFound: If it logged none under this path.
        """
        found: bytes = self._workspace.tracking.artifact(f"{artifact_root(self.record)}/{path}")
        return found

    def __repr__(self) -> str:
        return f"<run {self.id} {self.record.name} {self.state}>"
