"""Workers killed, swapped and stopped while clients send: every request is accounted for."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from everloop.core.ids import time_ms_of
from tests.e2e.serving_rig import Rig, Sender, is_alive, wait_for
from tests.unit.serving_fakes import deployment


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.stop()


def under_load(rig: Rig) -> list[Sender]:
    senders = [Sender(rig.port, f"client-{number}") for number in range(4)]
    wait_for(lambda: all(len(one.ids) > 100 for one in senders), "clients are answered")
    return senders


def go_on(senders: list[Sender], more: int = 100) -> None:
    goals = [len(one.ids) + more for one in senders]
    wait_for(
        lambda: all(len(one.ids) > goal for one, goal in zip(senders, goals, strict=True)),
        "clients go on",
    )


def test_worker_refuses_a_rebound_name(rig: Rig) -> None:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", rig.port, 20)) as client:
        for host, status in (("rebound.example", 403), (f"127.0.0.1:{rig.port}", 200)):
            client.request("GET", "/v2", headers={"Host": host})
            answer = client.getresponse()
            answer.read()
            assert answer.status == status


def test_killed_worker_costs_its_requests_in_flight_and_comes_back(rig: Rig) -> None:
    senders = under_load(rig)
    killed, worker = sorted((pid, worker) for worker, (pid, _) in rig.acknowledged().items())[0]
    died_ms = time.time() * 1000
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: rig.acknowledged()[worker][0] != killed, "the worker is back")
    go_on(senders)
    for one in senders:
        one.finish()
    # A client has one request in flight, so it can lose one, and none is refused: the socket stays.
    assert all(one.broken <= 1 for one in senders)
    assert sum(one.refused + one.answered_4xx_5xx + one.mixed for one in senders) == 0
    answered = {id for one in senders for id in one.ids}
    wait_for(lambda: rig.stop() == 0, "a clean stop")
    lost = answered - rig.logged()
    # Only the killed worker's last second may be missing; a little slack for the busy machine.
    assert all(died_ms - 2_000 <= time_ms_of(id) <= died_ms + 50 for id in lost)


def test_swap_under_load_drops_and_mixes_nothing(rig: Rig) -> None:
    senders = under_load(rig)
    for revision in range(2, 6):
        rig.swap(deployment(("champion", revision, 100.0), revision=revision))
        go_on(senders, 20)
    for one in senders:
        one.finish()
    assert sum(one.broken + one.refused + one.answered_4xx_5xx + one.mixed for one in senders) == 0
    answered = {id for one in senders for id in one.ids}
    # Whichever worker is asked, it answers for both.
    assert rig.predictions_counted() == len(answered)
    assert rig.stop() == 0
    assert answered <= rig.logged()


def test_stop_finishes_what_it_accepted_and_leaves_nothing(rig: Rig) -> None:
    senders = under_load(rig)
    pids = rig.pids
    assert rig.stop() == 0
    for one in senders:
        one.finish()
    # Every answer that a client saw is in the log; no answer was an error.
    assert {id for one in senders for id in one.ids} <= rig.logged()
    assert sum(one.answered_4xx_5xx + one.mixed for one in senders) == 0
    assert not any(is_alive(pid) for pid in pids)


def test_killed_supervisor_leaves_no_orphan(rig: Rig) -> None:
    senders = under_load(rig)
    pids = rig.pids
    rig.process.kill()
    rig.process.wait()
    wait_for(lambda: not any(is_alive(pid) for pid in pids), "the workers are gone", 20)
    for one in senders:
        one.finish()
    assert {id for one in senders for id in one.ids} <= rig.logged()


def test_terminated_worker_drains_and_its_clients_lose_nothing(rig: Rig) -> None:
    senders = under_load(rig)
    worker, (pid, _) = sorted(rig.acknowledged().items())[0]
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: rig.acknowledged()[worker][0] != pid, "the worker is back")
    go_on(senders)
    for one in senders:
        one.finish()
    assert sum(one.broken + one.refused + one.answered_4xx_5xx + one.mixed for one in senders) == 0
