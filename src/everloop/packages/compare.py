"""In what two packages differ: files, versions, what they declare."""

from __future__ import annotations

from typing import Any

import msgspec

from everloop.core.package import Manifest
from everloop.core.pipeline import PartChange
from everloop.pipelines.explain import changes
from everloop.pipelines.snapshot import read_tree
from everloop.ports.blobs import BlobStore

__all__ = ["compare"]


def compare(first: Manifest, second: Manifest, blobs: BlobStore) -> tuple[PartChange, ...]:
    """The parts that differ, each with what it is in both; empty where it is not there.

    Raises:
        NotFound: If the list of files of one of them is gone.
    """
    return changes(_parts(first, blobs), _parts(second, blobs))


def _parts(manifest: Manifest, blobs: BlobStore) -> dict[str, str]:
    tree = read_tree(blobs.get(manifest.code))
    parts = {f"file {name}": digest[:8] for name, digest in tree.items()}
    parts |= {f"needs {name}": version for name, version in manifest.distributions.items()}
    parts |= {"python": manifest.python, "entry": manifest.entry}
    parts |= {manifest.lock_name: manifest.lock[:8]} if manifest.lock else {}
    parts |= {"memory": str(manifest.memory)} if manifest.memory else {}
    for noun, specs in (("loop", manifest.loops), ("automation", manifest.automations)):
        for spec in specs:
            told: dict[str, Any] = msgspec.to_builtins(spec)
            fields = {f"{noun} {spec.name}": "declared"}
            fields |= {
                f"{noun} {spec.name} {name}": msgspec.json.encode(value).decode()
                for name, value in told.items()
                if name not in ("name", "created_at", "updated_at")
            }
            parts |= fields
    return parts
