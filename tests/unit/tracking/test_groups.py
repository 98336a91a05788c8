"""Group commit: what many threads log at once is one transaction, and nobody waits in vain."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from everloop.catalog.engine import Catalog
from everloop.core.run import Metric
from everloop.errors import BackendError, EverloopError, NotFound
from everloop.tracking.points import MetricWriter
from everloop.tracking.service import TrackingService

WAIT_S = 120


class Gate:
    """Holds the first transaction on the driver until told; counts all."""

    def __init__(self, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.go_on = threading.Event(), threading.Event()
        self.transactions = 0
        self.fails = False
        hot = catalog.hot

        def counted(work: Callable[[Any, str], Any]) -> Any:
            self.transactions += 1
            if self.transactions == 1:
                self.entered.set()
                assert self.go_on.wait(WAIT_S)
            if self.fails:
                raise BackendError("the disk is full")
            return hot(work)

        monkeypatch.setattr(catalog, "hot", counted)


@pytest.fixture
def gate(catalog: Catalog, tracking: TrackingService, monkeypatch: pytest.MonkeyPatch) -> Gate:
    # The name has to be known: a new one goes another way.
    tracking.log(tracking.create_run().id, [Metric(key="m", value=0)])
    return Gate(catalog, monkeypatch)


def log_at_once(tracking: TrackingService, gate: Gate, run_ids: list[str]) -> list[Future[None]]:
    """One thread for each run; those after the first come while the first writes."""
    groups = tracking._groups
    with ThreadPoolExecutor(len(run_ids)) as threads:
        calls = [threads.submit(_log, tracking, run_ids[0])]
        assert gate.entered.wait(WAIT_S)
        calls += [threads.submit(_log, tracking, run_id) for run_id in run_ids[1:]]
        done = threading.Event()
        while len(groups._waiting) < len(run_ids) - 1:
            assert not done.wait(0.001)
        gate.go_on.set()
    return calls


def _log(tracking: TrackingService, run_id: str) -> None:
    tracking.log(run_id, [Metric(key="m", value=1, step=1)])


def test_those_who_wait_share_one_commit(tracking: TrackingService, gate: Gate) -> None:
    ids = [tracking.create_run().id for _ in range(6)]
    for call in log_at_once(tracking, gate, ids):
        call.result()
    assert gate.transactions == 2
    assert [tracking.run(id_).metrics for id_ in ids] == [{"m": 1.0}] * 6


def test_who_logs_to_no_run_is_told_and_the_others_are_not_hurt(
    tracking: TrackingService, gate: Gate
) -> None:
    ids = [tracking.create_run().id for _ in range(3)]
    first, *rest, stray = log_at_once(tracking, gate, [*ids, "nobody"])
    for call in (first, *rest):
        call.result()
    assert isinstance(stray.exception(), NotFound)
    assert [tracking.run(id_).metrics for id_ in ids] == [{"m": 1.0}] * 3


def test_a_commit_that_fails_is_told_to_all_and_the_next_one_works(
    tracking: TrackingService, gate: Gate
) -> None:
    ids = [tracking.create_run().id for _ in range(3)]
    gate.fails = True
    calls = log_at_once(tracking, gate, ids)
    assert all(isinstance(call.exception(), EverloopError) for call in calls)
    assert [tracking.run(id_).metrics for id_ in ids] == [{}] * 3
    gate.fails = False
    _log(tracking, ids[0])
    assert tracking.run(ids[0]).metrics == {"m": 1.0}


def test_an_owner_that_was_replaced_writes_nothing(
    tracking: TrackingService, catalog: Catalog
) -> None:
    run = tracking.create_run(owner="one", lease_s=60)
    tracking.log_points(run.id, [Metric(key="m", value=1, step=1)], fence=run.fence)
    with pytest.raises(EverloopError):
        tracking.log_points(run.id, [Metric(key="m", value=2, step=2)], fence=run.fence + 1)
    assert [point.value for point in tracking.history(run.id, "m")] == [1.0]


def test_points_at_the_edges_come_back_as_they_were(tracking: TrackingService) -> None:
    run = tracking.create_run()
    tracking.log(run.id, [Metric(key="m", value=0)])
    most = (1 << 63) - 1
    logged = [
        Metric(key="m", value=value, step=step, at_ms=at_ms)
        for step, at_ms, value in (
            (-most - 1, 0, float("-inf")),
            (-1, 1, 5e-324),
            (1, 1 << 15, 1.7976931348623157e308),
            (1 << 31, 1 << 31, -0.0),
            (most, most, float("inf")),
        )
    ]
    # One by one and together: each mixture of small and huge numbers is sent in its own way.
    for point in logged:
        tracking.log(run.id, [point])
    assert tracking.history(run.id, "m", order="step")[:2] == logged[:2]
    other = tracking.create_run()
    tracking.log(other.id, logged)
    assert tracking.history(other.id, "m", order="step") == logged


@pytest.mark.parametrize("unknown", ["run", "name"])
def test_points_of_nothing_known_are_refused_by_their_latest(
    tracking: TrackingService, catalog: Catalog, unknown: str
) -> None:
    tracking.log(tracking.create_run().id, [Metric(key="m", value=0)])
    with catalog.direct(write=False) as tx:
        run_pk, key_pk = tx.run("SELECT run_pk, key_pk FROM metric_latest").fetchone()
    run_pk += unknown == "run"
    key_pk += unknown == "name"
    # Points have no foreign keys: the latest of each key, in the same transaction, has them.
    with (
        pytest.raises(BackendError, match=r"(?i)foreign key"),
        catalog.direct(write=True, ordered=False) as tx,
    ):
        MetricWriter.write(tx.cursor, tx.dialect, run_pk, [Metric(key="x", value=1)], {"x": key_pk})
    with catalog.direct(write=False) as tx:
        assert tx.run("SELECT count(*) FROM metric_points").fetchone() == (1,)
