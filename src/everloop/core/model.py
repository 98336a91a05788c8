"""Models, their versions and signatures."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from everloop.core.run import Artifact
from everloop.core.schema import Schema

__all__ = [
    "FormatTier",
    "Model",
    "ModelPage",
    "ModelVersion",
    "Signature",
    "VersionPage",
    "VersionState",
]

FormatTier = Literal["safe", "needs-trust"]
VersionState = Literal["draft", "candidate", "live", "archived"]


class Signature(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a model takes and gives: a pair of schemas."""

    inputs: Schema
    outputs: Schema


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A name under which versions are registered."""

    name: str
    description: str = ""
    owner: str = ""
    tags: dict[str, str] = {}
    aliases: dict[str, int] = {}
    latest: int = 0
    created_at: datetime
    updated_at: datetime


class ModelVersion(msgspec.Struct, frozen=True, kw_only=True):
    """An immutable manifest: everything that says what this model is and where it came from.

    Attributes:
        version: 1, 2, 3...; never used again after a delete.
        digest: blake3 over the manifest of files.
        flavor: Which plug-in loads it, such as ``lightgbm``.
        tier: ``safe`` formats are served; ``needs-trust`` ones run code when loaded.
        feature_set: Name of the feature set whose values it takes, or empty.
        data: Dataset versions it was trained on, ``{"name": number}``.
        trained_until: No row later than this was trained on; gates hold out what is later.
        rows: How many rows it was trained on; 0 where nobody said.
        reference: Digest of the object with reference statistics for the monitors, or empty.
        card: Digest of the model card (Markdown), or empty.
        stage: A label that older clients move; what is served goes by aliases and `state`.
        run_link: URL of the run on another server, or empty.
    """

    name: str
    version: int
    digest: str
    files: tuple[Artifact, ...]
    flavor: str
    tier: FormatTier
    signature: Signature
    run_id: str = ""
    code: str = ""
    feature_set: str = ""
    data: dict[str, int] = {}
    trained_until: datetime | None = None
    rows: int = 0
    params: dict[str, str] = {}
    metrics: dict[str, float] = {}
    environment: dict[str, str] = {}
    reference: str = ""
    card: str = ""
    state: VersionState = "draft"
    description: str = ""
    source: str = ""
    stage: str = "None"
    run_link: str = ""
    tags: dict[str, str] = {}
    actor: str = ""
    created_at: datetime
    updated_at: datetime

    @property
    def ref(self) -> str:
        """``name/version``, the way people write it."""
        return f"{self.name}/{self.version}"


class ModelPage(msgspec.Struct, frozen=True, kw_only=True):
    """Models in the order asked for; `next_page_token` is empty at the end."""

    models: tuple[Model, ...]
    next_page_token: str = ""


class VersionPage(msgspec.Struct, frozen=True, kw_only=True):
    """Versions in the order asked for; `next_page_token` is empty at the end."""

    versions: tuple[ModelVersion, ...]
    next_page_token: str = ""
