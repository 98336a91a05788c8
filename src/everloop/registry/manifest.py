"""The manifest of a version: the immutable part, as the catalog keeps it."""

from __future__ import annotations

from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

from blake3 import blake3

from everloop.core.model import FormatTier, Signature
from everloop.core.run import Artifact
from everloop.core.schema import Schema, canonical_json
from everloop.core.time import utc
from everloop.errors import InvalidInput

__all__ = ["NO_SIGNATURE", "check_paths", "content_digest", "make_manifest"]

#: Of a version that only says where its files are.
NO_SIGNATURE = Signature(Schema(()), Schema(()))


def make_manifest(
    *,
    content: str,
    files: tuple[Artifact, ...] = (),
    flavor: str = "",
    tier: FormatTier = "needs-trust",
    signature: Signature = NO_SIGNATURE,
    trained_until: datetime | None = None,
    metrics: dict[str, str] | None = None,
    **rest: Any,
) -> dict[str, Any]:
    """What the column ``manifest`` keeps: a version without what may change.

    Args:
        content: Digest of the artifact; tells whether it was registered before.
        metrics: As text by ``repr``: a metric may be NaN, for which JSON has no word.
        rest: Further attributes of a ModelVersion.
    """
    empty: dict[str, Any] = {"code": "", "feature_set": "", "data": {}, "params": {}, "rows": 0}
    empty |= {"environment": {}, "reference": "", "source": ""}
    return {
        **empty,
        **rest,
        "content": content,
        "digest": content_digest(flavor, files),
        "files": files,
        "flavor": flavor,
        "tier": tier,
        "signature": signature,
        "trained_until": None if trained_until is None else utc(trained_until),
        "metrics": metrics or {},
    }


def content_digest(flavor: str, files: tuple[Artifact, ...]) -> str:
    """The digest of a version: blake3 over its flavor and its files."""
    listed = [[file.path, file.digest, file.size] for file in files]
    return blake3(canonical_json([flavor, listed])).hexdigest()


def check_paths(files: dict[str, bytes]) -> None:
    """Refuse files whose paths are not plain relative ones, or no files at all."""
    faults = [] if files else [("files", "a model has at least one file")]
    for path in files:
        parts = PurePosixPath(path).parts
        plain = "/".join(parts) == path and ".." not in parts and not path.startswith("/")
        if not plain or "\\" in path or not path.isprintable() or path in ("", "."):
            faults.append((f"files[{path!r}]", "must be a plain relative path with '/'"))
    if faults:
        raise InvalidInput("the artifact is wrong", faults)
