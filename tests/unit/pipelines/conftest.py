"""Workspaces for the engine: the services that it needs, on both kinds of catalog."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from everloop.access.policy import EmbeddedAuthorizer
from everloop.backends.blobs.local import LocalBlobs
from everloop.catalog.engine import Catalog
from everloop.core.context import using
from everloop.core.time import ManualClock
from everloop.pipelines.service import PipelineService
from everloop.tracking.service import TrackingService


class Workspace:
    """What a pipeline needs of a workspace."""

    def __init__(self, url: str, folder: Path) -> None:
        self.clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
        self.catalog = Catalog(url, clock=self.clock)
        self.blobs = LocalBlobs(folder / "objects")
        authorizer = EmbeddedAuthorizer()
        self.tracking = TrackingService(self.catalog, self.blobs, authorizer)
        self.pipelines = PipelineService(self.catalog, self.blobs, authorizer)
        self.data = Ledger()


class Ledger:
    """Stands for the data service: keeps what is recorded."""

    def __init__(self) -> None:
        self.changes: list[tuple[object, ...]] = []

    def record_changes(self, *change: object) -> None:
        self.changes.append(change)


@pytest.fixture
def sqlite_workspace(tmp_path: Path) -> Iterator[Workspace]:
    workspace = Workspace(f"sqlite:///{tmp_path}/catalog.sqlite", tmp_path)
    with using(workspace):
        yield workspace
    workspace.catalog.close()


@pytest.fixture(params=["sqlite", "postgres"])
def workspace(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Workspace]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/catalog.sqlite"
    else:
        url = request.getfixturevalue("postgres_database")
    made = Workspace(url, tmp_path)
    with using(made):
        yield made
    made.catalog.close()


@pytest.fixture
def full_workspace(tmp_path: Path) -> Iterator[object]:
    """One that workers can open, too."""
    from everloop.workspace import open_workspace

    with open_workspace(tmp_path / "ws") as opened, using(opened):
        yield opened
