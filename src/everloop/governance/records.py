"""What governance tells, as data: it crosses the wire, and ``render`` makes text of it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from everloop.core.dataset import RowChangeSummary
from everloop.core.gate import Verdict
from everloop.core.model import ModelVersion
from everloop.core.predict import Prediction
from everloop.core.run import Run

__all__ = ["DatasetUse", "FeatureValue", "SourceRow", "StoryLine", "Why"]


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
