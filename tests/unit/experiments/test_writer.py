"""The queue behind `run.log`: groups, back-pressure, and errors that reach the program."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import pytest

from everloop.core.run import Metric
from everloop.errors import BackendError, StateError
from everloop.experiments import writer as module
from everloop.experiments.writer import PointWriter

DEADLINE_S = 120


class Store:
    """Takes groups; refuses while it has a fault; waits while it is shut."""

    def __init__(self) -> None:
        self.groups: list[list[Metric]] = []
        self.fault: Exception | None = None
        self.tries = 0
        self.open = threading.Event()
        self.open.set()

    def __call__(self, points: Sequence[Metric]) -> None:
        assert self.open.wait(DEADLINE_S)
        self.tries += 1
        if self.fault is not None:
            raise self.fault
        self.groups.append(list(points))

    @property
    def steps(self) -> list[int]:
        return [point.step for group in self.groups for point in group]


def points(first: int, count: int = 1) -> list[Metric]:
    return [Metric(key="loss", value=0.5, step=first + i) for i in range(count)]


def until(claim: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not claim():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.001)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def writer(store: Store) -> PointWriter:
    return PointWriter(store)


def test_queued_points_are_sent_without_asking(writer: PointWriter, store: Store) -> None:
    for step in range(100):
        writer.add(points(step))
    until(lambda: len(store.steps) == 100)
    assert store.steps == list(range(100))
    writer.close()


def test_points_that_come_together_go_in_one_group(writer: PointWriter, store: Store) -> None:
    store.open.clear()
    writer.add(points(0))
    until(lambda: not writer._queue)  # the thread holds the first
    for step in range(1, 1001):
        writer.add(points(step))
    store.open.set()
    writer.close()
    assert store.steps == list(range(1001))
    assert len(store.groups) == 2


def test_flush_waits_for_what_the_thread_has_taken(writer: PointWriter, store: Store) -> None:
    store.open.clear()
    writer.add(points(0))
    until(lambda: not writer._queue)
    threading.Timer(0.05, store.open.set).start()
    writer.flush()
    assert store.steps == [0]
    writer.close()


def test_flush_sends_earlier_points_first(writer: PointWriter, store: Store) -> None:
    writer.add(points(0, 3))
    writer.flush(points(3))
    assert store.steps == [0, 1, 2, 3]
    writer.close()


def test_memory_is_bounded_by_making_the_caller_wait(
    writer: PointWriter, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CAPACITY", 50)
    store.open.clear()
    is_full, flush = threading.Event(), writer.flush
    monkeypatch.setattr(writer, "flush", lambda: (is_full.set(), flush()))
    added = []

    def work() -> None:
        for step in range(200):
            writer.add(points(step))
            added.append(step)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert is_full.wait(DEADLINE_S)
    assert len(added) < 100  # what the thread may have taken, and a full queue
    store.open.set()
    thread.join(DEADLINE_S)
    writer.close()
    assert sorted(store.steps) == list(range(200))


def test_catalog_that_is_away_is_told_once_and_loses_nothing(
    writer: PointWriter, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.001)
    store.fault = BackendError("the catalog is away")
    writer.add(points(0, 2))
    until(lambda: writer._passing is not None)
    with pytest.raises(BackendError, match="is away"):
        writer.add(points(2))
    store.fault = None
    until(lambda: len(store.steps) == 2)
    until(lambda: writer._passing is None)
    writer.add(points(3))
    writer.close()
    assert store.steps == [0, 1, 3]  # the call that raised logged nothing


def test_flush_tells_that_the_catalog_is_away_and_can_be_repeated(
    writer: PointWriter, store: Store
) -> None:
    store.fault = BackendError("disk is full")
    with pytest.raises(BackendError, match="full"):
        writer.flush(points(0, 2))
    store.fault = None
    writer.flush()
    assert store.steps == [0, 1]
    writer.close()


def test_close_tells_what_could_not_be_stored(writer: PointWriter, store: Store) -> None:
    store.fault = BackendError("disk is full")
    writer.add(points(0))
    with pytest.raises(BackendError, match="full"):
        writer.close()


@pytest.mark.parametrize("fault", [StateError("the run is deleted"), ZeroDivisionError("a bug")])
def test_other_errors_are_final_and_told_at_every_call(
    writer: PointWriter, store: Store, fault: Exception
) -> None:
    store.fault = fault
    writer.add(points(0))
    until(lambda: writer._final is not None)
    for call in (lambda: writer.add(points(1)), writer.flush, writer.close):
        with pytest.raises(type(fault), match=str(fault)):
            call()
    assert store.tries == 1


def test_heart_beats_without_points_and_its_error_is_told(store: Store) -> None:
    beats = []

    def beat() -> None:
        beats.append(1)
        if len(beats) == 3:
            raise StateError("taken over")

    writer = PointWriter(store, beat=beat, beat_s=0.001)
    writer.start()
    until(lambda: len(beats) == 3)
    until(lambda: writer._final is not None)
    with pytest.raises(StateError, match="taken over"):
        writer.add(points(0))


def test_many_threads_lose_nothing(writer: PointWriter, store: Store) -> None:
    def work(first: int) -> None:
        for step in range(first, first + 500):
            writer.add(points(step))
            if step % 100 == 0:
                writer.flush()

    threads = [threading.Thread(target=work, args=(i * 500,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    writer.close()
    assert sorted(store.steps) == list(range(2000))


def test_interrupt_in_the_middle_keeps_the_points(writer: PointWriter, store: Store) -> None:
    store.fault = KeyboardInterrupt()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        writer.flush(points(0))
    store.fault = None
    writer.close()
    assert store.steps == [0]
