"""A model packed and loaded again, as the tests of the flavors need it."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
from blake3 import blake3

from everloop.core.artifact import ModelArtifact
from everloop.core.model import ModelVersion
from everloop.core.run import Artifact
from everloop.registry.flavors import Predictor, load_predictor

ROWS = np.random.default_rng(0).normal(size=(200, 3))
LATE = (ROWS[:, 0] + ROWS[:, 1] > 0).astype(int)


def version_of(artifact: ModelArtifact) -> ModelVersion:
    """The version that registering the artifact would give."""
    files = tuple(
        Artifact(path=path, digest=blake3(data).hexdigest(), size=len(data))
        for path, data in artifact.files.items()
    )
    at = datetime(2013, 1, 1, tzinfo=UTC)
    assert artifact.signature is not None
    return ModelVersion(
        name="m", version=1, digest="", files=files, flavor=artifact.flavor, tier=artifact.tier,
        signature=artifact.signature, created_at=at, updated_at=at,
    )  # fmt: skip


def reload(artifact: ModelArtifact, *, trust: bool = False) -> Predictor:
    """The predictor of an artifact that went through the store."""
    return load_predictor(version_of(artifact), artifact.files, trust=trust)


def with_file(artifact: ModelArtifact, path: str, data: bytes) -> ModelArtifact:
    """The artifact with other bytes in one file."""
    return ModelArtifact(
        flavor=artifact.flavor,
        files={**artifact.files, path: data},
        signature=artifact.signature,
    )
