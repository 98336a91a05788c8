"""The follower goes on following, whatever a refresh raises, and ends when it is told to."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import pytest

from everloop.serving.follower import Follower
from everloop.serving.loader import RouteLoader, Router
from tests.unit.serving_fakes import FakeDeployments, FakeModels, deployment, load


def wait_for(claim: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not claim():
        assert time.monotonic() < deadline, "never happened"
        time.sleep(0.005)


def router_over(deployments: FakeDeployments) -> Router:
    return Router(deployments, RouteLoader(FakeModels(), load), worker="w", pid=7)


@pytest.fixture
def deployments() -> FakeDeployments:
    return FakeDeployments({"delay": deployment()})


def test_catalog_that_is_away_leaves_the_routes(deployments: FakeDeployments) -> None:
    router = router_over(deployments)
    follower = Follower(router, 0.01)
    follower.update()
    deployments.down = True
    follower.update()
    assert router.route("delay").revision == 1


def test_follower_outlives_a_fault_that_nobody_foresaw(
    deployments: FakeDeployments, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    router = router_over(deployments)
    refresh, failed = router.refresh, threading.Event()

    def fail_once() -> list[str]:
        if not failed.is_set():
            failed.set()
            raise ZeroDivisionError
        return refresh()

    monkeypatch.setattr(router, "refresh", fail_once)
    follower = Follower(router, 0.01)
    with caplog.at_level(logging.ERROR):
        follower.start()
        wait_for(lambda: router.get("delay"))
    follower.stop()
    assert "the routes could not be refreshed" in caplog.text
    assert not follower._thread.is_alive()
