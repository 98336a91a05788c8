"""Packages: the code of pipelines with its locked environment, and where each one has come."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Literal

import msgspec

from everloop.core.policy import Automation, LoopSpec
from everloop.core.schema import canonical_json
from everloop.errors import InvalidInput

__all__ = [
    "NEVER",
    "PACKAGE_TAG",
    "Manifest",
    "Package",
    "PackageApproval",
    "PackageEnvironment",
    "PackageMove",
    "PlacedPipeline",
    "from_bytes",
    "parse_place",
    "place_of",
    "shown_place",
    "to_bytes",
]

#: Tag of a run: the package whose code it runs, ``name@digest``.
PACKAGE_TAG = "everloop.package"
#: Stands where a declaration has its times, which are not part of what is declared.
NEVER = datetime(1970, 1, 1, tzinfo=UTC)

_FORMAT = 1

Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a package is. It is an object of the store, and the package's digest is that object's.

    Attributes:
        name: Of the package.
        code: Digest of the code snapshot, as runs have it.
        entry: The file in it that declares.
        python: Version of Python, major and minor.
        distributions: What the code imports with what that requires: name -> version.
        lock: Digest of the project's lock file; empty if it has none.
        lock_name: The name of that file.
        pipelines: Pipelines of the entry file.
        loop_codes: By loop the code snapshot of its pipeline alone, which is what CI judges.
        loops: As declared; paths of pipelines are within the code, times are ``NEVER``.
        automations: Likewise.
        memory: Bytes that the hungriest step says it may use; 0 if none says.
        size: Bytes of the code, unpacked.
        format: Of this description; grows when an older Everloop could not deploy it.
    """

    name: str
    code: Digest
    entry: str
    python: str
    distributions: dict[str, str]
    lock: Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{64})?$")] = ""
    lock_name: str = ""
    pipelines: tuple[str, ...] = ()
    loop_codes: dict[str, Digest] = {}
    loops: tuple[LoopSpec, ...] = ()
    automations: tuple[Automation, ...] = ()
    memory: int = 0
    size: int = 0
    format: int = _FORMAT


class Package(msgspec.Struct, frozen=True, kw_only=True):
    """A package in a workspace: the manifest, and who made it of what.

    Attributes:
        digest: Of the manifest.
        git: ``commit``, ``branch`` and ``dirty`` of the repository that it was built in.
        builder: Who built it.
        built_at: When.
        reached: Environments that it had come to in the workspace that it was imported from, as
            the file says; empty for one that was built here.
    """

    digest: str
    manifest: Manifest
    git: dict[str, str]
    builder: str
    built_at: datetime
    reached: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the manifest."""
        return self.manifest.name

    @property
    def ref(self) -> str:
        """``name@digest``, shortened."""
        return f"{self.name}@{self.digest[:8]}"


class PackageEnvironment(msgspec.Struct, frozen=True, kw_only=True):
    """Which package is in an environment, and what it takes to move it.

    Attributes:
        digest: Of the package; empty if none is there yet.
        ci: Whether its code must have passed ``everloop ci``.
        approvals: How many others must have approved it.
        updated_at: When it was last moved or protected.
    """

    name: str
    environment: str
    digest: str
    ci: bool
    approvals: int
    updated_at: datetime


class PackageMove(msgspec.Struct, frozen=True, kw_only=True):
    """One move of an environment, from the event log.

    Attributes:
        before: Digest of the package that was there; empty for none.
        after: Digest of the one that is there since.
        evidence: Id of the event that speaks for it, such as that of a CI run.
        is_forced: Whether it jumped a stage.
        event: Id of the event.
    """

    kind: Literal["promoted", "rolled back"]
    environment: str
    before: str
    after: str
    at: datetime
    actor: str
    reason: str
    evidence: str
    is_forced: bool
    event: str


class PackageApproval(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody agreed that a package comes to an environment."""

    digest: str
    environment: str
    actor: str
    note: str
    at: datetime


def to_bytes(manifest: Manifest) -> bytes:
    """The manifest as an object; equal ones give equal bytes."""
    return canonical_json(manifest)


def from_bytes(data: bytes) -> Manifest:
    """The manifest in an object.

    Raises:
        InvalidInput: If it is none, or of a format that is newer than this Everloop.
    """
    try:
        found = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"this is no manifest of a package: {error}") from None
    if found.format > _FORMAT:
        raise InvalidInput(
            f"the package {found.name!r} has format {found.format}, newer than {_FORMAT}",
            hint="upgrade Everloop: pip install --upgrade everloop",
        )
    return found


class PlacedPipeline(msgspec.Struct, frozen=True):
    """A pipeline within a package: ``package:NAME@DIGEST/file.py:function``."""

    name: str
    digest: str
    path: str


_PLACE = re.compile(r"package:([^@/]+)@([0-9a-f]{64})/(.+)")


def place_of(package: Package, path: str) -> str:
    """How a declaration names the pipeline at `path` (``file.py:function``) of a package."""
    return f"package:{package.name}@{package.digest}/{path}"


def parse_place(path: str) -> PlacedPipeline | None:
    """What :func:`place_of` wrote; None for a path of the working tree.

    Raises:
        InvalidInput: If it begins as one and is none.
    """
    if not path.startswith("package:"):
        return None
    found = _PLACE.fullmatch(path)
    if found is None:
        raise InvalidInput(f"{path[:200]!r} names no pipeline of a package")
    return PlacedPipeline(*found.groups())


def shown_place(path: str) -> str:
    """A path of a declaration for people: of a package with the first digits of its digest."""
    place = parse_place(path)
    return path if place is None else f"{place.name}@{place.digest[:8]}/{place.path}"
