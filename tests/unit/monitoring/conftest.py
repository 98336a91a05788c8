"""A world on each of the two databases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from everloop.backends.blobs.local import LocalBlobs
from everloop.catalog.engine import Catalog
from everloop.core.time import ManualClock
from tests.unit.monitoring.world import START, World, reference


@pytest.fixture(scope="session")
def good_reference() -> bytes:
    return reference()


@pytest.fixture(params=["sqlite", "postgres"])
def catalog_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_database"))
    return f"sqlite:///{tmp_path}/catalog.sqlite"


@pytest.fixture
def world(catalog_url: str, tmp_path: Path, good_reference: bytes) -> Iterator[World]:
    clock = ManualClock(START)
    catalog = Catalog(catalog_url, clock=clock)
    made = World(catalog, LocalBlobs(tmp_path / "objects"), clock)
    made.add_version(1, good_reference)
    yield made
    catalog.close()
