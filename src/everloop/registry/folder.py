"""Takes in model folders that clients of MLflow put into this store before they register them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from everloop.core.run import Artifact
from everloop.errors import InvalidInput, NotFound
from everloop.ports.blobs import BlobStore
from everloop.registry.formats.mlflow import MLMODEL, MlflowFlavor
from everloop.registry.manifest import NO_SIGNATURE, check_paths

__all__ = ["adopted"]


def adopted(blobs: BlobStore, files: Sequence[Artifact]) -> dict[str, Any]:
    """What the manifest of a version says of the files of a model folder of MLflow's.

    Args:
        blobs: Where they are.
        files: By path within the folder.

    Returns:
        Arguments of ``make_manifest``; none if it is no such folder or its ``MLmodel`` is damaged.

    Raises:
        NotFound: If an object is not in the store.
        InvalidInput: If a path is no plain relative one.
    """
    if MLMODEL not in {file.path for file in files}:
        return {}
    check_paths({file.path: b"" for file in files})
    for file in files:
        if not blobs.keep(file.digest):
            raise NotFound(f"no object {file.digest}")
    stored, flavor = _Stored(blobs, files), MlflowFlavor()
    try:
        environment = flavor.environment(stored)
    except InvalidInput:
        return {}
    try:
        signature = flavor.signature(stored)
    except InvalidInput:  # no schema can say it; the version is kept, and cannot be called
        signature = NO_SIGNATURE
    return {
        "files": tuple(sorted(files, key=lambda file: file.path)),
        "flavor": flavor.name,
        "tier": flavor.tier(stored),
        "signature": signature,
        "environment": environment,
    }


class _Stored(Mapping[str, bytes]):
    """Files that are read as they are asked for: the weights often are not."""

    def __init__(self, blobs: BlobStore, files: Sequence[Artifact]) -> None:
        self._blobs = blobs
        self._digests = {file.path: file.digest for file in files}

    def __getitem__(self, path: str) -> bytes:
        return self._blobs.get(self._digests[path])

    def __iter__(self) -> Iterator[str]:
        return iter(self._digests)

    def __len__(self) -> int:
        return len(self._digests)

    def __contains__(self, path: object) -> bool:
        return path in self._digests
