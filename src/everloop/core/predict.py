"""Predictions and labels."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

__all__ = ["LabelBatch", "Prediction", "PredictionSegment"]


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """One answer.

    Attributes:
        id: Made by the server; sorts by time.
        request_id: What the client called it, or empty; not assumed unique.
        at: The time that the prediction is for (the request's own time where it brought one).
        arm: ``champion``, ``challenger`` or ``shadow``.
        request: What the client sent.
        features: What the model got, and ``times`` when each view's values had become known.
    """

    id: str
    request_id: str
    at: datetime
    deployment: str
    version: int
    revision: int
    arm: str
    value: float
    request: dict[str, Any]
    features: dict[str, Any]
    times: dict[str, datetime | None]
    label: float | None = None
    label_at: datetime | None = None


class PredictionSegment(msgspec.Struct, frozen=True, kw_only=True):
    """A Parquet object of logged predictions."""

    id: str
    deployment: str
    digest: str
    rows: int
    from_at: datetime
    to_at: datetime
    first_id: str
    last_id: str
    created_at: datetime


class LabelBatch(msgspec.Struct, frozen=True, kw_only=True):
    """A Parquet object of labels: (request_id, label, known_at)."""

    id: str
    deployment: str
    digest: str
    rows: int
    from_at: datetime
    to_at: datetime
    created_at: datetime
