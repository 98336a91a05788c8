"""Tracking, against the same work by hand and against MLflow (SQLite, its defaults)."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import tracking_files, tracking_served, tracking_start, tracking_store
from benchmarks.harness import Context, Row, bench, time_calls
from benchmarks.tracking_store import Limit
from everloop.experiments.run import ActiveRun, run
from everloop.workspace import Workspace

BY_HAND = "executemany and an upsert in one SQLite transaction (WAL, synchronous FULL)"
KEY = "loss"


class Both:
    """The same points through a run and by hand."""

    def __init__(self, active: ActiveRun, limit: Limit) -> None:
        self.active = active
        self.limit = limit
        self._next = {"everloop": 0, "limit": 0}

    def steps(self, who: str, size: int) -> range:
        first = self._next[who]
        self._next[who] = first + size
        return range(first, first + size)

    def by_hand(self, size: int) -> None:
        self.limit.log([(1, 1, s, s, s / 7, False) for s in self.steps("limit", size)])

    def sync(self) -> None:
        for step in self.steps("everloop", 1):
            self.active.log(loss=step / 7, step=step, sync=True)

    def queued(self, size: int) -> None:
        log = self.active.log
        for step in self.steps("everloop", size):
            log(loss=step / 7, step=step)
        self.active.flush()

    def is_equal(self) -> bool:
        history = self.active.history(KEY)
        wanted = [(step, value) for step, _, value, _ in self.limit.history()]
        return [(point.step, point.value) for point in history] == wanted


@contextmanager
def both() -> Iterator[Both]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Workspace(str(folder / "ws")) as workspace, run(workspace=workspace) as active:
            yield Both(active, Limit(str(folder / "limit.sqlite")))


def _row(
    work: str, repeats: int, ours: Callable[[Both], None], by_hand: Callable[[Both], None]
) -> Row:
    with both() as sides:
        calls = {"everloop": lambda: ours(sides), "limit": lambda: by_hand(sides)}
        seconds = time_calls(calls, repeats=repeats)
        equal = sides.is_equal()
    return Row(
        area="tracking",
        work=work,
        unit="s",
        everloop=seconds["everloop"],
        limit=seconds["limit"],
        limit_name=BY_HAND,
        answers_equal=equal,
        repeats=repeats,
    )


@bench
def log_sync(context: Context) -> Row:
    return _row(
        "run.log(sync=True)",
        context.repeats(300),
        lambda sides: sides.sync(),
        lambda sides: sides.by_hand(1),
    )


@bench
def log_queued(context: Context) -> Row:
    """All points drained and durable; the hand writes them in transactions of 1,000."""

    def by_hand(sides: Both) -> None:
        for _ in range(20):
            sides.by_hand(1000)

    return _row(
        "run.log of 20,000 points one by one, then flush",
        context.repeats(10),
        lambda sides: sides.queued(20_000),
        by_hand,
    )


@bench
def log_call(context: Context) -> Row:
    """What the training loop waits for one queued call, against appending to a list."""
    repeats = context.repeats(5000)
    seconds: dict[str, list[float]] = {"everloop": [], "limit": []}
    held: list[tuple[int, float]] = []
    with both() as sides:
        log = sides.active.log
        for step in range(repeats):
            begun = time.perf_counter()
            log(loss=step / 7, step=step)
            between = time.perf_counter()
            held.append((step, step / 7))
            ended = time.perf_counter()
            seconds["everloop"].append(between - begun)
            seconds["limit"].append(ended - between)
        sides.active.flush()
        history = [(point.step, point.value) for point in sides.active.history(KEY)]
    return Row(
        area="tracking",
        work="run.log, what the caller waits",
        unit="s",
        everloop=statistics.median(seconds["everloop"]),
        limit=statistics.median(seconds["limit"]),
        limit_name="append to a list",
        answers_equal=history == held,
        repeats=repeats,
    )


@bench
def log_metrics(context: Context) -> Iterator[Row]:
    yield from tracking_store.log_rows(context)


@bench
def search(context: Context) -> Iterator[Row]:
    yield from tracking_store.search_rows(context)


@bench
def series(context: Context) -> Iterator[Row]:
    yield from tracking_store.series_rows(context)


@bench
def served(context: Context) -> Iterator[Row]:
    yield from tracking_served.rows(context)


@bench
def files(context: Context) -> Iterator[Row]:
    yield from tracking_files.rows(context)


@bench
def start(context: Context) -> Iterator[Row]:
    yield from tracking_start.rows(context)
