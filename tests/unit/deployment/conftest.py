"""The services that a deployment stands on, over a catalog of either dialect."""

from __future__ import annotations

import pytest

from everloop.access.policy import EmbeddedAuthorizer
from everloop.backends.blobs.local import LocalBlobs
from everloop.catalog.engine import Catalog
from everloop.deployment.predictions import PredictionService
from everloop.deployment.service import DeploymentService
from everloop.registry.service import RegistryService
from tests.unit.registry.conftest import artifact, blobs, catalog, clock, registry

__all__ = ["blobs", "catalog", "clock", "registry"]


@pytest.fixture
def deployment(catalog: Catalog, registry: RegistryService) -> DeploymentService:
    """Three versions of model ``m``, and deployment ``d`` of the first."""
    for text in (b"1", b"2", b"3"):
        registry.register("m", artifact(text))
    service = DeploymentService(catalog, EmbeddedAuthorizer(), registry)
    service.create("d", model="m", version=1, owner="ann")
    return service


@pytest.fixture
def predictions(catalog: Catalog, blobs: LocalBlobs) -> PredictionService:
    return PredictionService(catalog, blobs, EmbeddedAuthorizer())
