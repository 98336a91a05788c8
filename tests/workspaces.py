"""`ws`: one workspace a test, in each way that users have it: embedded on SQLite, embedded on
PostgreSQL, and through a server. A test of a service that takes it runs in all three.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

import everloop as ev
from everloop.core.context import using
from everloop.core.time import ManualClock
from everloop.workspace import Workspace
from tests.servers import serve

START = datetime(2013, 4, 1, tzinfo=UTC)


@pytest.fixture
def clock() -> ManualClock:
    """The clock that the workspace of this test decides by."""
    return ManualClock(START)


@pytest.fixture(params=["sqlite", "postgres", "remote"])
def ws(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Workspace]:
    """A fresh workspace; plain functions act in it."""
    monkeypatch.setenv("EVERLOOP_OBJECTS", str(tmp_path / "objects"))
    monkeypatch.chdir(tmp_path)  # where a workspace on a server keeps what is local
    if request.param == "postgres":
        location = request.getfixturevalue("postgres_database")
    else:
        location = str(tmp_path / ".everloop")
    with ev.open(location, clock=clock, actor="tester") as embedded:
        if request.param != "remote":
            with using(embedded):
                yield embedded
            return
        with serve(embedded) as url, ev.open(url, actor="tester") as remote, using(remote):
            yield remote
