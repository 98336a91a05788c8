"""Tracking in process: logging, searching and reading series, against the same SQL by hand."""

from __future__ import annotations

import contextlib
import math
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness import Context, Row
from benchmarks.sides import Peer, in_turns, timed
from everloop.core.run import Metric
from everloop.workspace import Workspace, open_workspace

MLFLOW = ("mlflow==3.17.2",)
PEER = "MLflow 3.17.2"
POINT = "INSERT INTO point VALUES ({marks})"
LATEST = (
    "INSERT INTO latest VALUES ({marks}) ON CONFLICT (run, key) DO UPDATE "
    "SET step = excluded.step, at = excluded.at, value = excluded.value"
)
COLUMNS = (
    "run BIGINT, key BIGINT, step BIGINT, at BIGINT, value DOUBLE PRECISION, is_nan BOOLEAN, "
    "PRIMARY KEY (run, key"
)
METRICS = ("auc", "loss", "f1")


class Limit:
    """Tables of our own and statements by hand, on the driver, as durable as ours."""

    def __init__(self, place: str) -> None:
        self.is_sqlite = place.endswith(".sqlite")
        if self.is_sqlite:
            self.connection: Any = sqlite3.connect(place, isolation_level=None)
            self.connection.execute("PRAGMA journal_mode=WAL")
            self.connection.execute("PRAGMA synchronous=FULL")
        else:
            import psycopg

            self.connection = psycopg.connect(place, autocommit=True)
            self.connection.execute("DROP TABLE IF EXISTS point, latest")
        tail = " WITHOUT ROWID" if self.is_sqlite else ""
        self.connection.execute(f"CREATE TABLE point ({COLUMNS}, step, at, value, is_nan)){tail}")
        self.connection.execute(f"CREATE TABLE latest ({COLUMNS})){tail}")
        self.marks = ", ".join(["?" if self.is_sqlite else "%s"] * 6)

    def log(self, rows: list[tuple[int, int, int, int, float, bool]]) -> None:
        cursor = self.connection.cursor()
        cursor.execute("BEGIN IMMEDIATE" if self.is_sqlite else "BEGIN")
        cursor.executemany(POINT.format(marks=self.marks), rows)
        cursor.execute(LATEST.format(marks=self.marks), rows[-1])
        cursor.execute("COMMIT")

    def history(self) -> list[tuple[int, int, float, bool]]:
        query = "SELECT step, at, value, is_nan FROM point WHERE run = 1 AND key = 1"
        found: list[Any] = self.connection.execute(f"{query} ORDER BY at, step").fetchall()
        return found

    def chart(self, steps: list[int]) -> list[tuple[int, int, float, bool]]:
        query = "SELECT step, at, value, is_nan FROM point WHERE run = 1 AND key = 1"
        wanted = ", ".join(map(str, steps))
        found: list[Any] = self.connection.execute(
            f"{query} AND step IN ({wanted}) ORDER BY step"
        ).fetchall()
        return found


@contextlib.contextmanager
def opened(context: Context, name: str) -> Iterator[tuple[Workspace, Limit, Path]]:
    """A workspace, the limit and a folder, on SQLite or PostgreSQL."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        on_postgres = name == "PostgreSQL"
        limit = Limit(context.postgres if on_postgres else str(folder / "limit.sqlite"))
        with open_workspace(context.postgres if on_postgres else str(folder)) as workspace:
            yield workspace, limit, folder
        limit.connection.close()


def databases(context: Context) -> list[str]:
    """Where to measure."""
    return ["SQLite", "PostgreSQL"] if context.postgres else ["SQLite"]


def log_rows(context: Context) -> Iterator[Row]:
    """One point, and a thousand, durably."""
    for database in databases(context):
        for size, repeats in ((1, context.repeats(300)), (1000, context.repeats(50))):
            yield _log(context, database, size, repeats)


def _log(context: Context, database: str, size: int, repeats: int) -> Row:
    env = context.peer_env("mlflow", MLFLOW)
    with (
        opened(context, database) as (workspace, limit, folder),
        Peer(env, "peer_mlflow.py") as peer,
    ):
        peer.ask("open", folder=str(folder))
        tracking = workspace.tracking
        run = tracking.create_run()
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

        sides = {
            "everloop": timed(ours),
            "limit": timed(by_hand),
            "peer": lambda: peer.seconds("log", size=size),
        }
        seconds = in_turns(sides, repeats=repeats)
        history = [(point.step, point.value) for point in tracking.history(run.id, "loss")]
        wanted = [(step, value) for step, _, value, _ in limit.history()]
        said = peer.ask("history", tail=size).get("values")
        equal = history == wanted and said in (None, [value for _, value in wanted[-size:]])
    return Row(
        area="tracking",
        work=f"log {size} metric points, durable, {database}",
        unit="s",
        everloop=seconds["everloop"],
        limit=seconds["limit"],
        limit_name=f"executemany and an upsert in one transaction ({_durable(database)})",
        peers={f"{PEER}, in process, SQLite": peer.figure(seconds["peer"])},
        answers_equal=equal,
        repeats=repeats,
    )


def _durable(database: str) -> str:
    return "WAL, synchronous FULL" if database == "SQLite" else "synchronous commit"


# Series


def series_rows(context: Context) -> Iterator[Row]:
    """The whole history of a long series, and a chart of it."""
    for database in databases(context):
        yield from _series(context, database)


def _series(context: Context, database: str) -> Iterator[Row]:
    count = context.size(100_000, 10_000)
    env = context.peer_env("mlflow", MLFLOW)
    with (
        opened(context, database) as (workspace, limit, folder),
        Peer(env, "peer_mlflow.py") as peer,
    ):
        peer.ask("open", folder=str(folder))
        tracking = workspace.tracking
        run = tracking.create_run()
        for first in range(0, count, 1000):
            steps = range(first, first + 1000)
            tracking.log(run.id, [Metric(key="loss", value=s / 7, step=s, at_ms=s) for s in steps])
            limit.log([(1, 1, s, s, s / 7, False) for s in steps])
            peer.ask("log", size=1000)
        repeats = context.repeats(15)
        sides = {
            "everloop": timed(lambda: tracking.history(run.id, "loss")),
            "limit": timed(limit.history),
        }
        seconds = in_turns(sides, repeats=repeats)
        theirs = in_turns({"peer": lambda: peer.seconds("history", tail=1)}, repeats=3, warm_up=0)
        found = tracking.history(run.id, "loss")
        tail = peer.ask("history", tail=1000)
        equal = [(p.step, p.at_ms, p.value, False) for p in found] == [
            (step, at, value, bool(is_nan)) for step, at, value, is_nan in limit.history()
        ] and tail.get("values") in (None, [p.value for p in found[-1000:]])
        yield Row(
            area="tracking",
            work=f"history of {count:,} points, {database}",
            unit="s",
            everloop=seconds["everloop"],
            limit=seconds["limit"],
            limit_name="the driver's fetchall in the same order",
            peers={f"{PEER}, in process, SQLite": peer.figure(theirs["peer"])},
            answers_equal=equal,
            repeats=repeats,
        )
        yield _chart(context, database, workspace, limit, run.id, count)


def _chart(
    context: Context, database: str, workspace: Workspace, limit: Limit, run: str, count: int
) -> Row:
    def ours() -> list[Metric]:
        return workspace.tracking.sampled_history([run], "loss", points=500)[run]

    steps = [point.step for point in ours()]
    repeats = context.repeats(50)
    sides = {"everloop": timed(ours), "limit": timed(lambda: limit.chart(steps))}
    seconds = in_turns(sides, repeats=repeats)
    drawn = [(p.step, p.at_ms, p.value, False) for p in ours()]
    fetched = [(step, at, value, bool(is_nan)) for step, at, value, is_nan in limit.chart(steps)]
    return Row(
        area="tracking",
        work=f"chart of 500 of {count:,} points, {database}",
        unit="s",
        everloop=seconds["everloop"],
        limit=seconds["limit"],
        limit_name="the driver's fetchall of these 500 points, whose steps are known to it",
        answers_equal=drawn == fetched and steps[0] == 0 and steps[-1] == count - 1,
        repeats=repeats,
    )


# Search


@dataclass
class Found:
    """A run as somebody who writes the SQL by hand would have it."""

    id: str
    name: str
    state: str
    started_at: int
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


BEST = (
    "SELECT runs.pk, runs.id, runs.name, state, started_at FROM metric_latest AS best "
    "JOIN runs ON runs.pk = best.run_pk "
    "WHERE best.key_pk = (SELECT pk FROM metric_keys WHERE name = 'auc') AND NOT best.is_nan "
    "AND best.value > 0.5 AND runs.experiment_pk = {experiment} AND runs.lifecycle = 'active' "
    "ORDER BY best.value DESC LIMIT {limit}"
)


class Search:
    """Many runs in one experiment, and the best hundred of them by a metric."""

    def __init__(self, context: Context, database: str, workspace: Workspace, count: int) -> None:
        self.workspace = workspace
        self.top = 100
        self.experiment = workspace.tracking.create_experiment(f"search {count}").id
        catalog = workspace.catalog
        assert catalog is not None
        if database == "SQLite":
            # A connection beside the catalog's own, as the hand-written program would have.
            path = catalog.url.database
            assert path is not None
            self.connection: Any = sqlite3.connect(path, isolation_level=None)
        else:
            import psycopg

            self.connection = psycopg.connect(context.postgres, autocommit=True)
        self.rows = [_run(number) for number in range(count)]
        self._fill(database)

    def _fill(self, database: str) -> None:
        tracking = self.workspace.tracking
        first = tracking.create_run(self.experiment)
        tracking.log(first.id, [Metric(key=key, value=0.0) for key in METRICS])
        cursor = self.connection.cursor()
        cursor.execute(f"SELECT * FROM runs WHERE id = '{first.id}'")
        names = [column[0] for column in cursor.description]
        like = dict(zip(names, cursor.fetchone(), strict=True))
        cursor.execute("SELECT name, pk FROM metric_keys")
        keys = dict(cursor.fetchall())
        mark = "?" if database == "SQLite" else "%s"

        def insert(table: str, rows: list[tuple[Any, ...]]) -> None:
            marks = ", ".join([mark] * len(rows[0]))
            cursor.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)

        pks = [like["pk"] + 1 + number for number in range(len(self.rows))]
        cursor.execute("BEGIN")
        insert(
            "runs",
            [
                tuple({**like, "pk": pk, "id": id_, "started_at": start * 1000}.values())
                for pk, (id_, start, _) in zip(pks, self.rows, strict=True)
            ],
        )
        insert(
            "metric_latest",
            [
                (pk, keys[key], 0, 1, value, False)
                for pk, (_, _, metrics) in zip(pks, self.rows, strict=True)
                for key, value in metrics.items()
            ],
        )
        for table, texts in (
            ("run_params", {"lr": "1", "depth": "1", "algorithm": "1"}),
            ("run_tags", {"team": "x", "stage": "x"}),
        ):
            insert(table, [(pk, key, value) for pk in pks for key, value in texts.items()])
        cursor.execute("COMMIT")
        if database == "PostgreSQL":
            cursor.execute("ANALYZE")

    def ours(self) -> list[Any]:
        page = self.workspace.tracking.runs(
            [self.experiment],
            filter="metrics.auc > 0.5",
            order_by=["metrics.auc DESC"],
            limit=self.top,
        )
        return list(page.runs)

    def by_hand(self) -> list[Found]:
        cursor = self.connection.cursor()
        cursor.execute(BEST.format(experiment=self.experiment, limit=self.top))
        found = {pk: Found(*rest) for pk, *rest in cursor.fetchall()}
        keys = ", ".join(map(str, found))
        cursor.execute(f"SELECT run_pk, key, value FROM run_params WHERE run_pk IN ({keys})")
        for pk, key, text in cursor.fetchall():
            found[pk].params[key] = text
        cursor.execute(f"SELECT run_pk, key, value FROM run_tags WHERE run_pk IN ({keys})")
        for pk, key, text in cursor.fetchall():
            found[pk].tags[key] = text
        cursor.execute(
            "SELECT run_pk, name, value, is_nan FROM metric_latest "
            f"JOIN metric_keys ON pk = key_pk WHERE run_pk IN ({keys})"
        )
        for pk, key, value, is_nan in cursor.fetchall():
            found[pk].metrics[key] = math.nan if is_nan else value
        return list(found.values())

    def is_equal(self) -> bool:
        """Whether both found the same runs with the same details."""

        def shown(run: Any) -> tuple[Any, ...]:
            return (run.id, run.params, run.tags, run.metrics)

        return [shown(run) for run in self.ours()] == [shown(run) for run in self.by_hand()]


def _run(number: int) -> tuple[str, int, dict[str, float]]:
    value = (number * 2654435761 % (1 << 32)) / (1 << 32)
    metrics = dict(zip(METRICS, (value, 1 - value, value / 2), strict=True))
    return f"{number * 0x9E3779B97F4A7C15 % (1 << 64):032x}", 1_600_000_000_000 + number, metrics


def search_rows(context: Context) -> Iterator[Row]:
    """The best hundred of many and of ten times as many runs."""
    for database in databases(context):
        yield from _search(context, database)


def _search(context: Context, database: str) -> Iterator[Row]:
    counts = (context.size(10_000, 1_000), context.size(100_000, 10_000))
    repeats = context.repeats(40)
    env = context.peer_env("mlflow", MLFLOW)
    with (
        opened(context, database) as (few_in, _, folder),
        opened(context, database) as (many_in, _, _),
        Peer(env, "peer_mlflow.py") as peer,
    ):
        few = Search(context, database, few_in, counts[0])
        many = Search(context, database, many_in, counts[1])
        peer.ask("open", folder=str(folder))
        peer.ask("fill", runs=few.rows)
        sides = {
            "few": timed(few.ours),
            "few by hand": timed(few.by_hand),
            "many": timed(many.ours),
            "many by hand": timed(many.by_hand),
        }
        seconds = in_turns(sides, repeats=repeats)
        theirs = in_turns(
            {"peer": lambda: peer.seconds("search", limit=few.top)}, repeats=context.repeats(5)
        )
        said = peer.ask("search", limit=few.top).get("values")
        best = [run.metrics["auc"] for run in few.ours()]
        equal = few.is_equal() and many.is_equal() and said in (None, best)
        few.connection.close()
        many.connection.close()
    by_hand = "the same SQL by hand on the same tables, with objects built"
    peers = {f"{PEER}, in process, SQLite": peer.figure(theirs["peer"])}
    asked = "by metric, ordered, top 100"
    one, other = (f"{count:,} runs" for count in counts)
    for work, ours, limit, limit_name, those in (
        (f"search {one} {asked}", "few", "few by hand", by_hand, peers),
        (f"search {other} {asked}", "many", "many by hand", by_hand, {}),
        (f"search {other} against {one}", "many", "few", f"our own search of {one}", {}),
    ):
        yield Row(
            area="tracking",
            work=f"{work}, {database}",
            unit="s",
            everloop=seconds[ours],
            limit=seconds[limit],
            limit_name=limit_name,
            peers=those,
            answers_equal=equal,
            repeats=repeats,
        )
