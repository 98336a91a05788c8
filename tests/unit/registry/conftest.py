"""A catalog of either dialect, its clock, and a small model to register."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from everloop.access.policy import EmbeddedAuthorizer
from everloop.backends.blobs.local import LocalBlobs
from everloop.catalog.engine import Catalog
from everloop.core.artifact import ModelArtifact
from everloop.core.time import ManualClock
from everloop.registry.service import RegistryService


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(datetime(2013, 4, 1, tzinfo=UTC))


@pytest.fixture(params=["sqlite", "postgres"])
def catalog(
    request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock
) -> Iterator[Catalog]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/catalog.sqlite"
    else:
        url = request.getfixturevalue("postgres_database")
    opened = Catalog(url, clock=clock, actor="tester")
    yield opened
    opened.close()


@pytest.fixture
def blobs(tmp_path: Path) -> LocalBlobs:
    return LocalBlobs(tmp_path / "objects")


@pytest.fixture
def registry(catalog: Catalog, blobs: LocalBlobs) -> RegistryService:
    return RegistryService(catalog, blobs, EmbeddedAuthorizer())


def artifact(text: bytes = b"tree", **more: object) -> ModelArtifact:
    return ModelArtifact(flavor="lightgbm", files={"model.txt": text}, **more)  # type: ignore[arg-type]
