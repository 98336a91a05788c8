"""What governance tells, as data: it crosses the wire, and ``render`` makes text of it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from everloop.core.dataset import RowChange, RowChangeSummary, Value
from everloop.core.gate import Verdict
from everloop.core.model import ModelVersion
from everloop.core.predict import Prediction
from everloop.core.run import Run

__all__ = ["DatasetUse", "FeatureValue", "Neighbour", "Neighbours", "SourceRow", "StoryLine", "Why"]


class StoryLine(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a loop's story.

    Attributes:
        depth: How many causes stand above it, for indenting; a root is 0.
        sentence: What happened, on one line.
        event: Id of the event, and ``subject`` what it is about.
    """

    at: datetime
    depth: int
    kind: str
    sentence: str
    event: str
    subject: str
    actor: str
    cause: str = ""


class FeatureValue(msgspec.Struct, frozen=True, kw_only=True):
    """A value the model got: from which view, and when it had become known."""

    name: str
    value: Any
    view: str = ""
    known_at: datetime | None = None


class SourceRow(msgspec.Struct, frozen=True, kw_only=True):
    """The row behind a view's values.

    Attributes:
        key: The entity that was looked up.
        row: The newest row of it that was known then, or None where it was not found.
    """

    view: str
    dataset: str
    version: int
    key: dict[str, Any]
    known_at: datetime | None
    row: dict[str, Any] | None


class DatasetUse(msgspec.Struct, frozen=True, kw_only=True):
    """A dataset version that the model was trained on."""

    name: str
    version: int
    digest: str
    rows: int
    owner: str
    role: str = ""
    files: int = 0
    purpose: str = ""
    licence: str = ""

    @property
    def extent(self) -> str:
        """How much it is: rows of a table, files of a directory."""
        return f"{self.files} files" if self.files else f"{self.rows} rows"


class Why(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that led to one prediction.

    Attributes:
        verdict: The one that let the version live; None where a person promoted it.
        changes: What rules did to rows of the datasets, with the reason.
        owners: Who answers, by what for.
        not_stated: What nobody said.
    """

    prediction: Prediction
    deployment: str
    loop: str
    version: ModelVersion
    verdict: Verdict | None
    run: Run | None
    features: tuple[FeatureValue, ...]
    rows: tuple[SourceRow, ...]
    datasets: tuple[DatasetUse, ...]
    changes: tuple[RowChangeSummary, ...]
    owners: dict[str, str]
    not_stated: tuple[str, ...]


class Neighbour(msgspec.Struct, frozen=True, kw_only=True):
    """A row that a model was trained on.

    Attributes:
        distance: From the prediction, 0 upwards, no unit.
        features: Its values of what the model gets.
        key: Names the row in the source; empty where it is not known.
        row: The whole row of the source, as it was then; None where it is not known. Personal data
            is masked.
        changes: What rules did to this very row.
        owners: Who answers for it: of the dataset, and of those rules.
    """

    distance: float
    features: dict[str, Value]
    key: dict[str, Value]
    row: dict[str, Value] | None = None
    changes: tuple[RowChange, ...] = ()
    owners: tuple[str, ...] = ()


class Neighbours(msgspec.Struct, frozen=True, kw_only=True):
    """The rows of its training table that a prediction is nearest to.

    Attributes:
        run, step: Where the table was made; the last one that has every feature.
        rows: How many it has.
        method: How distance is measured.
        neighbours: The nearest first.
        source: The version that the rows come from, ``name@number``; empty if that is not known.
        followed: How they were followed to it, or why they were not.
    """

    run: str
    step: str
    rows: int
    method: str
    neighbours: tuple[Neighbour, ...]
    source: str
    followed: str
