"""ModelArtifact: a trained model on its way from a training step to the registry."""

from __future__ import annotations

from datetime import datetime

import msgspec

from everloop.core.model import Signature

__all__ = ["ModelArtifact"]


class ModelArtifact(msgspec.Struct, frozen=True, kw_only=True):
    """A model as files, with what the registry, the gates and the monitors need to know of it.

    Attributes:
        flavor: Which plug-in wrote the files and can load them, such as ``lightgbm``.
        files: Path within the model -> bytes.
        params: What it was trained with, as text.
        metrics: What was measured in training.
        trained_until: No row later than this was trained on, UTC; gates hold out what is later.
        data: Dataset versions it was trained on, ``{"name": number}``.
        feature_set: Name of the feature set whose values it takes, or empty.
        reference: Statistics of the training data for the monitors, JSON, or empty.
    """

    flavor: str
    files: dict[str, bytes]
    signature: Signature | None = None
    params: dict[str, str] = {}
    metrics: dict[str, float] = {}
    trained_until: datetime | None = None
    data: dict[str, int] = {}
    feature_set: str = ""
    reference: bytes = b""
