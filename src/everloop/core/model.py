"""Models, their versions and signatures."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from everloop.core.machines import VersionState
from everloop.core.run import Artifact
from everloop.core.schema import Schema

__all__ = [
    "AliasMove",
    "AliasRule",
    "Approval",
    "Compatibility",
    "Deleted",
    "FormatTier",
    "Model",
    "ModelPage",
    "ModelVersion",
    "Signature",
    "Verification",
    "VersionPage",
    "VersionState",
]

FormatTier = Literal["safe", "needs-trust"]


class Signature(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a model takes and gives: a pair of schemas."""

    inputs: Schema
    outputs: Schema


class Compatibility(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What changing from one signature to another means for callers.

    Attributes:
        against: Number of the version that it was compared with; 0 where signatures alone were.
        backward: Why callers of the old one cannot call the new one; empty if they can.
        forward: Why callers written for the new one cannot call the old one; empty if they can.
    """

    against: int = 0
    backward: tuple[str, ...] = ()
    forward: tuple[str, ...] = ()

    @property
    def kind(self) -> Literal["backward", "forward", "breaking"]:
        """``backward`` if no caller has to change, ``forward`` if only going back is safe."""
        if not self.backward:
            return "backward"
        return "breaking" if self.forward else "forward"


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
        compatibility: Its signature beside that of the champion when it was registered; None where
            there was none, or one of the two has no signature.
        signed_by: Id of the key that signed the manifest, or empty; see ``registry.verify``.
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
    compatibility: Compatibility | None = None
    signed_by: str = ""
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


class AliasMove(msgspec.Struct, frozen=True, kw_only=True):
    """One move of an alias, as the event log has it.

    Attributes:
        before: The version it pointed at; 0 for none.
        after: The version it pointed at from then on; 0 if it was removed.
        evidence: Id of the verdict that allowed it, or empty.
        event: Id of the event.
    """

    alias: str
    before: int
    after: int
    at: datetime
    actor: str
    reason: str = ""
    evidence: str = ""
    event: str = ""


class AliasRule(msgspec.Struct, frozen=True, kw_only=True):
    """What must hold before a protected alias may move to a version.

    Attributes:
        gates: Names of gates that the version must have passed (``core.gate.Gate.name``; the kind
            alone means any gate of that kind).
        approvals: How many people must have approved the version for this alias.
        four_eyes: Whoever made the version or moves the alias does not count among them.
        rollback: The alias may return to a version that it pointed at before, without more.
        actor: Who made the rule.
    """

    name: str
    alias: str
    gates: tuple[str, ...] = ()
    approvals: int = 0
    four_eyes: bool = True
    rollback: bool = False
    actor: str
    updated_at: datetime


class Approval(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody agreed that an alias moves to a version."""

    name: str
    version: int
    alias: str
    actor: str
    note: str = ""
    at: datetime


class Deleted(msgspec.Struct, frozen=True, kw_only=True):
    """A model or a version that was deleted and can be restored until it is purged.

    Attributes:
        version: Of a version its number; 0 for a whole model.
    """

    id: str
    kind: Literal["model", "model_version"]
    name: str
    version: int
    actor: str
    deleted_at: datetime


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a version is what was registered.

    Attributes:
        signature: ``valid``; ``invalid`` if the manifest is not what was signed; ``unsigned``;
            ``unknown key`` if it was signed with another key than the one set here.
        signed_by: Id of the key, or empty.
        damaged: Files that are missing or not what the manifest says.
        digest: The version's digest as the manifest has it that was looked at.
    """

    signature: Literal["valid", "invalid", "unsigned", "unknown key"]
    signed_by: str = ""
    damaged: tuple[str, ...] = ()
    digest: str = ""
