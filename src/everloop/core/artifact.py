"""ModelArtifact: a trained model as bytes, on its way from a training step to the registry."""

from __future__ import annotations

from datetime import datetime

import msgspec
from blake3 import blake3

from everloop.core.model import FormatTier, Signature
from everloop.core.schema import canonical_json

__all__ = ["ModelArtifact"]


class ModelArtifact(msgspec.Struct, frozen=True, kw_only=True):
    """A model as files, with all that its version must say of where it came from.

    Made by ``everloop.registry.flavors.pack`` (``ev.model``); it holds no live object, so that it
    can be stored, sent and compared.

    Attributes:
        flavor: Which plug-in loads it, such as ``lightgbm``.
        files: Bytes by relative path with ``/``.
        tier: ``safe`` formats are data; ``needs-trust`` ones run code when loaded.
        signature: What the model takes and gives.
        trained_until: No row later than this was trained on; gates hold out what is later.
        rows: How many rows it was trained on; 0 where nobody said.
        data: Dataset versions it was trained on, ``{"name": number}``.
        feature_set: Name of the feature set whose values it takes, or empty.
        reference: Reference statistics for the monitors (JSON), or empty.
        environment: Versions of the libraries that made it. No part of its identity: a resumed run
            on another machine gives the same artifact.
    """

    flavor: str
    files: dict[str, bytes]
    tier: FormatTier = "safe"
    signature: Signature | None = None
    params: dict[str, str] = {}
    metrics: dict[str, float] = {}
    trained_until: datetime | None = None
    rows: int = 0
    data: dict[str, int] = {}
    feature_set: str = ""
    reference: bytes = b""
    environment: dict[str, str] = {}

    @property
    def digest(self) -> str:
        """Identity: blake3 of the canonical manifest, 64 hex digits."""
        rest = {
            name: getattr(self, name)
            for name in ("flavor", "tier", "signature", "params", "trained_until", "rows", "data")
        }
        manifest = {
            **rest,
            "feature_set": self.feature_set,
            "files": {path: blake3(data).hexdigest() for path, data in self.files.items()},
            # A metric may be NaN, for which JSON has no word.
            "metrics": {name: repr(float(value)) for name, value in self.metrics.items()},
            "reference": blake3(self.reference).hexdigest(),
        }
        return blake3(canonical_json(manifest)).hexdigest()
