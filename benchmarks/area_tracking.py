"""Logging metrics against the same points written by hand, with the same durability."""

from __future__ import annotations

import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.harness import Context, Row, bench, time_calls
from everloop.core.run import Metric
from everloop.experiments.run import ActiveRun, run
from everloop.workspace import Workspace

POINT = "INSERT INTO point VALUES (?, ?, ?, ?, ?, ?)"
LATEST = (
    "INSERT INTO latest VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (run, key) DO UPDATE "
    "SET step = excluded.step, at = excluded.at, value = excluded.value"
)
BY_HAND = "executemany and an upsert in one SQLite transaction (WAL, synchronous FULL)"
KEY = "loss"


class Limit:
    """Points and the latest of each key in one transaction, by hand (WAL, synchronous FULL)."""

    def __init__(self, folder: Path) -> None:
        self.connection = sqlite3.connect(folder / "limit.sqlite", isolation_level=None)
        for statement in (
            "PRAGMA journal_mode=WAL",
            "PRAGMA synchronous=FULL",
            "CREATE TABLE point (run INTEGER, key INTEGER, step INTEGER, at INTEGER, value REAL, "
            "is_nan INTEGER, PRIMARY KEY (run, key, step, at, value, is_nan)) WITHOUT ROWID",
            "CREATE TABLE latest (run INTEGER, key INTEGER, step INTEGER, at INTEGER, value REAL, "
            "is_nan INTEGER, PRIMARY KEY (run, key)) WITHOUT ROWID",
        ):
            self.connection.execute(statement)

    def log(self, rows: list[tuple[int, int, int, int, float, bool]]) -> None:
        self.connection.execute("BEGIN IMMEDIATE")
        self.connection.executemany(POINT, rows)
        self.connection.execute(LATEST, rows[-1])
        self.connection.execute("COMMIT")

    def history(self) -> list[tuple[int, float]]:
        return self.connection.execute(
            "SELECT step, value FROM point WHERE run = 1 AND key = 1 ORDER BY step"
        ).fetchall()


class Both:
    """The same points through a run and by hand."""

    def __init__(self, workspace: Workspace, active: ActiveRun, limit: Limit) -> None:
        self.tracking = workspace.tracking
        self.active = active
        self.limit = limit
        self._next = {"everloop": 0, "limit": 0}

    def steps(self, who: str, size: int) -> range:
        first = self._next[who]
        self._next[who] = first + size
        return range(first, first + size)

    def by_hand(self, size: int) -> None:
        self.limit.log([(1, 1, s, s, s / 7, False) for s in self.steps("limit", size)])

    def batch(self, size: int) -> None:
        found = self.steps("everloop", size)
        points = [Metric(key=KEY, value=s / 7, step=s, at_ms=s) for s in found]
        self.tracking.log(self.active.id, points)

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
        return [(point.step, point.value) for point in history] == self.limit.history()


@contextmanager
def both() -> Iterator[Both]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Workspace(str(folder / "ws")) as workspace, run(workspace=workspace) as active:
            yield Both(workspace, active, Limit(folder))


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
def log_batches(context: Context) -> list[Row]:
    sizes = {1: context.repeats(300), 1000: context.repeats(50)}
    return [
        _row(
            f"log {size} metric points, durable",
            repeats,
            lambda sides, size=size: sides.batch(size),
            lambda sides, size=size: sides.by_hand(size),
        )
        for size, repeats in sizes.items()
    ]


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
