"""A catalog on each of the two databases, under a clock that stands still."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from everloop.access.policy import EmbeddedAuthorizer
from everloop.automation.service import AutomationService
from everloop.catalog.engine import Catalog
from everloop.core.time import ManualClock
from tests.unit.automation.world import deploy


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(datetime(2013, 4, 1, tzinfo=UTC))


@pytest.fixture(params=["sqlite", "postgres"])
def catalog(
    request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock
) -> Iterator[Catalog]:
    url = f"sqlite:///{tmp_path}/catalog.sqlite"
    if request.param == "postgres":
        url = str(request.getfixturevalue("postgres_database"))
    made = Catalog(url, clock=clock)
    deploy(made)
    yield made
    made.close()


@pytest.fixture
def automation(catalog: Catalog) -> AutomationService:
    return AutomationService(catalog, EmbeddedAuthorizer())
