"""A catalog of either dialect with a registry."""

from __future__ import annotations

from tests.unit.registry.conftest import blobs, catalog, clock, registry

__all__ = ["blobs", "catalog", "clock", "registry"]
