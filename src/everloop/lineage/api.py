"""``ev.lineage``: the graph around a thing, in the workspace of this context."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.core.context import current_workspace
from everloop.core.dataset import DatasetVersion
from everloop.core.deploy import Deployment
from everloop.core.lineage import Graph
from everloop.core.model import ModelVersion
from everloop.core.monitor import Alert
from everloop.core.predict import LabelBatch, PredictionSegment
from everloop.core.run import Run
from everloop.errors import InvalidInput

if TYPE_CHECKING:
    from everloop.lineage.service import LineageService

__all__ = ["Lineage", "lineage", "subject_of"]


class Lineage:
    """The graph around one subject.

    Attributes:
        ref: The subject, such as ``model:delay/3``.
    """

    def __init__(self, ref: str) -> None:
        self.ref = ref

    def upstream(self, depth: int = 100) -> Graph:
        """What led to it, nearest first, at most `depth` steps away."""
        return self._service.upstream(self.ref, depth=depth)

    def downstream(self, depth: int = 100) -> Graph:
        """What came of it, nearest first, at most `depth` steps away."""
        return self._service.downstream(self.ref, depth=depth)

    @property
    def _service(self) -> LineageService:
        found: LineageService = current_workspace().lineage
        return found

    def __repr__(self) -> str:
        return f"Lineage({self.ref!r})"


def lineage(thing: object) -> Lineage:
    """The graph around `thing`: a dataset or model version, run, deployment, alert... or a subject.

    Args:
        thing: As a service returns it, or text such as ``"dataset:flights@3"``.

    Raises:
        InvalidInput: If it has no place in the graph.
    """
    return Lineage(thing if isinstance(thing, str) else subject_of(thing))


def subject_of(thing: object) -> str:
    """What a thing is called in the graph."""
    match thing:
        case DatasetVersion():
            return f"dataset:{thing.ref}"
        case ModelVersion():
            return f"model:{thing.ref}"
        case Run():
            return f"run:{thing.id}"
        case Deployment():
            return f"deployment:{thing.name}"
        case PredictionSegment():
            return f"segment:{thing.id}"
        case LabelBatch():
            return f"labels:{thing.id}"
        case Alert():
            return f"alert:{thing.id}"
    raise InvalidInput(
        f"a {type(thing).__name__} has no place in the graph",
        hint="give a dataset or model version, a run, a deployment, or text: dataset:flights@3",
    )
