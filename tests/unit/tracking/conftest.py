"""A tracking service on both kinds of catalog."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from everloop.access.policy import EmbeddedAuthorizer
from everloop.backends.blobs.local import LocalBlobs
from everloop.catalog.engine import Catalog
from everloop.core.time import ManualClock
from everloop.tracking.service import TrackingService


@pytest.fixture(params=["sqlite", "postgres"])
def catalog(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Catalog]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/catalog.sqlite"
    else:
        url = request.getfixturevalue("postgres_database")
    made = Catalog(url, clock=ManualClock(datetime(2026, 1, 1, tzinfo=UTC)))
    yield made
    made.close()


@pytest.fixture
def tracking(catalog: Catalog, tmp_path: Path) -> TrackingService:
    return TrackingService(catalog, LocalBlobs(tmp_path / "objects"), EmbeddedAuthorizer())
