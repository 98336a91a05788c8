"""URIs of artifacts in this workspace's own store, as tracking clients know them."""

from __future__ import annotations

__all__ = ["OURS", "path_within"]

#: What URIs of this store begin with.
OURS = "mlflow-artifacts:/"


def path_within(uri: str) -> str | None:
    """The path in this store that a URI names; None if it lies elsewhere."""
    return uri.removeprefix(OURS) if uri.startswith(OURS) else None
