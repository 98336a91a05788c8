"""Logging metrics against the same points written by hand, with the same durability."""

from __future__ import annotations

import sqlite3
import tempfile
from pathlib import Path

from benchmarks.harness import Context, Row, bench, time_calls
from everloop.access.policy import EmbeddedAuthorizer
from everloop.backends.blobs.local import LocalBlobs
from everloop.catalog.engine import Catalog
from everloop.core.run import Metric
from everloop.tracking.service import TrackingService

POINT = "INSERT INTO point VALUES (?, ?, ?, ?, ?, ?)"
LATEST = (
    "INSERT INTO latest VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (run, key) DO UPDATE "
    "SET step = excluded.step, at = excluded.at, value = excluded.value"
)


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
            "SELECT step, value FROM point WHERE run = 1 AND key = 1 ORDER BY at, step"
        ).fetchall()


@bench
def log_metrics(context: Context) -> list[Row]:
    return [_log(1, context.repeats(300)), _log(1000, context.repeats(50))]


def _log(size: int, repeats: int) -> Row:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        catalog = Catalog(f"sqlite:///{folder}/catalog.sqlite")
        tracking = TrackingService(catalog, LocalBlobs(folder / "objects"), EmbeddedAuthorizer())
        run, limit = tracking.create_run(), Limit(folder)
        next_step = {"everloop": 0, "limit": 0}

        def steps(who: str) -> range:
            first = next_step[who]
            next_step[who] = first + size
            return range(first, first + size)

        def ours() -> None:
            found = steps("everloop")
            tracking.log(run.id, [Metric(key="loss", value=s / 7, step=s, at_ms=s) for s in found])

        def by_hand() -> None:
            limit.log([(1, 1, s, s, s / 7, False) for s in steps("limit")])

        seconds = time_calls({"everloop": ours, "limit": by_hand}, repeats=repeats)
        history = [(point.step, point.value) for point in tracking.history(run.id, "loss")]
        equal = history == limit.history()
        catalog.close()
    return Row(
        area="tracking",
        work=f"log {size} metric points, durable",
        unit="s",
        everloop=seconds["everloop"],
        limit=seconds["limit"],
        limit_name="executemany and an upsert in one SQLite transaction (WAL, synchronous FULL)",
        answers_equal=equal,
        repeats=repeats,
    )
