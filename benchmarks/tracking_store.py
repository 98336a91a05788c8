"""Tracking in process: searching and reading series, against the same SQL by hand."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from benchmarks.harness import Context, Row, in_turns, timed
from benchmarks.sides import Peer
from benchmarks.tracking_places import PEER, Limit, Place, measured, peer_of, places
from everloop.core.run import Metric
from everloop.workspace import Workspace

METRICS = ("auc", "loss", "f1")

# Series


def series_rows(context: Context) -> Iterator[Row]:
    """The whole history of a long series, and a chart of it."""
    for place, peers_place in zip(places(context), places(context), strict=True):
        with place as here, peers_place as there:
            yield from _series(context, here, there)


def _series(context: Context, place: Place, there: Place) -> Iterator[Row]:
    count = context.size(100_000, 10_000)
    with (
        place.workspace() as workspace,
        place.limit() as limit,
        Peer(peer_of(context), "peer_mlflow.py") as peer,
    ):
        peer.ask("open", store=there.store)
        tracking = workspace.tracking
        run = tracking.create_run()
        for first in range(0, count, 1000):
            steps = range(first, first + 1000)
            tracking.log(run.id, [Metric(key="loss", value=s / 7, step=s, at_ms=s) for s in steps])
            limit.log(steps)
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
        yield measured(
            work=f"history of {count:,} points, {place.database}",
            unit="s",
            everloop=seconds["everloop"],
            limit=seconds["limit"],
            limit_name="the driver's fetchall in the same order",
            peers={f"{PEER}, in process": peer.figure(theirs["peer"])},
            answers_equal=equal,
            repeats=repeats,
        )
        yield _chart(context, place, workspace, limit, run.id, count)


def _chart(
    context: Context, place: Place, workspace: Workspace, limit: Limit, run: str, count: int
) -> Row:
    def ours() -> list[Metric]:
        return workspace.tracking.sampled_history([run], "loss", points=500)[run]

    steps = [point.step for point in ours()]
    repeats = context.repeats(50)
    sides = {"everloop": timed(ours), "limit": timed(lambda: limit.chart(steps))}
    seconds = in_turns(sides, repeats=repeats)
    drawn = [(p.step, p.at_ms, p.value, False) for p in ours()]
    fetched = [(step, at, value, bool(is_nan)) for step, at, value, is_nan in limit.chart(steps)]
    return measured(
        work=f"chart of 500 of {count:,} points, {place.database}",
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

    def __init__(self, place: Place, workspace: Workspace, count: int) -> None:
        self.workspace = workspace
        self.top = 100
        self.experiment = workspace.tracking.create_experiment(f"search {count}").id
        catalog = workspace.catalog
        assert catalog is not None
        if not place.url:
            # A connection beside the catalog's own, as the hand-written program would have.
            path = catalog.file
            assert path is not None
            self.connection: Any = sqlite3.connect(path, isolation_level=None)
        else:
            import psycopg

            self.connection = psycopg.connect(place.url, autocommit=True)
        self.rows = [_run(number) for number in range(count)]
        self._fill(place)

    def _fill(self, place: Place) -> None:
        tracking = self.workspace.tracking
        first = tracking.create_run(self.experiment)
        tracking.log(first.id, [Metric(key=key, value=0.0) for key in METRICS])
        cursor = self.connection.cursor()
        cursor.execute(f"SELECT * FROM runs WHERE id = '{first.id}'")
        names = [column[0] for column in cursor.description]
        like = dict(zip(names, cursor.fetchone(), strict=True))
        cursor.execute("SELECT name, pk FROM metric_keys")
        keys = dict(cursor.fetchall())
        mark = "%s" if place.url else "?"

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
        if place.url:
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
    for one, other, peers_place in zip(*(places(context) for _ in range(3)), strict=True):
        with one as few_in, other as many_in, peers_place as there:
            yield from _search(context, few_in, many_in, there)


def _search(context: Context, few_in: Place, many_in: Place, there: Place) -> Iterator[Row]:
    counts = (context.size(10_000, 1_000), context.size(100_000, 10_000))
    repeats = context.repeats(40)
    with (
        few_in.workspace() as small,
        many_in.workspace() as large,
        Peer(peer_of(context), "peer_mlflow.py") as peer,
    ):
        few = Search(few_in, small, counts[0])
        many = Search(many_in, large, counts[1])
        peer.ask("open", store=there.store)
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
    peers = {f"{PEER}, in process": peer.figure(theirs["peer"])}
    asked = "by metric, ordered, top 100"
    one, other = (f"{count:,} runs" for count in counts)
    for work, ours, limit, limit_name, those in (
        (f"search {one} {asked}", "few", "few by hand", by_hand, peers),
        (f"search {other} {asked}", "many", "many by hand", by_hand, {}),
        (f"search {other} against {one}", "many", "few", f"our own search of {one}", {}),
    ):
        yield measured(
            work=f"{work}, {few_in.database}",
            unit="s",
            everloop=seconds[ours],
            limit=seconds[limit],
            limit_name=limit_name,
            peers=those,
            answers_equal=equal,
            repeats=repeats,
        )
