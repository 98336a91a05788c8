"""Logging points in process: what a call costs, queued and durable, one and a thousand."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator

from benchmarks.harness import Context, Row, in_turns, timed
from benchmarks.sides import Peer
from benchmarks.tracking_places import (
    PEER,
    Limit,
    Place,
    Steps,
    measured,
    peer_of,
    places,
    values,
)
from everloop.core.run import Metric
from everloop.experiments.run import ActiveRun, run
from everloop.workspace import Workspace

KEY = "loss"


class Sides:
    """The same points through a run, through the service, and by hand."""

    def __init__(self, workspace: Workspace, active: ActiveRun, limit: Limit) -> None:
        self.tracking = workspace.tracking
        self.active = active
        self.limit = limit
        self.steps = Steps()

    def by_hand(self, size: int) -> None:
        self.limit.log(self.steps.take("limit", size))

    def queued(self, size: int) -> None:
        log = self.active.log
        for step in self.steps.take("everloop", size):
            log(loss=step / 7, step=step)
        self.active.flush()

    def sync(self) -> None:
        (step,) = self.steps.take("everloop", 1)
        self.active.log(loss=step / 7, step=step, sync=True)

    def batch(self, size: int) -> None:
        steps = self.steps.take("everloop", size)
        points = [Metric(key=KEY, value=s / 7, step=s, at_ms=s) for s in steps]
        self.tracking.log(self.active.id, points)

    def is_equal(self) -> bool:
        return values(self.active.history(KEY)) == values(self.limit.history())


@contextlib.contextmanager
def sides(place: Place) -> Iterator[Sides]:
    """A run that has told what it was made of: that takes a moment of the machine, once."""
    with (
        place.workspace() as workspace,
        place.limit() as limit,
        run(workspace=workspace) as active,
    ):
        while not workspace.tracking.run(active.id).environment:
            time.sleep(0.01)
        yield Sides(workspace, active, limit)


def rows(context: Context) -> Iterator[Row]:
    """On each database."""
    for place in places(context):
        with place as here:
            yield from _of_run(context, here)
    yield from batch_rows(context)


def _of_run(context: Context, place: Place) -> Iterator[Row]:
    def in_thousands(both: Sides) -> None:
        for _ in range(20):
            both.by_hand(1000)

    kinds: list[tuple[str, int, int, Callable[[Sides], None], Callable[[Sides], None]]] = [
        ("run.log(sync=True)", 1, 300, Sides.sync, lambda both: both.by_hand(1)),
        (
            "run.log of 20,000 points one by one, then flush",
            1000,
            10,
            lambda both: both.queued(20_000),
            in_thousands,
        ),
    ]
    with sides(place) as both:
        for work, size, full, ours, by_hand in kinds:
            repeats = context.repeats(full)
            seconds = in_turns(
                {
                    "everloop": timed(lambda ours=ours: ours(both)),  # type: ignore[misc]
                    "limit": timed(lambda by_hand=by_hand: by_hand(both)),  # type: ignore[misc]
                },
                repeats=repeats,
            )
            yield measured(
                work=f"{work}, {place.database}",
                unit="s",
                everloop=seconds["everloop"],
                limit=seconds["limit"],
                limit_name=both.limit.name(size),
                answers_equal=both.is_equal(),
                repeats=repeats,
            )
        yield _call(context, both, place.database)


def _call(context: Context, both: Sides, database: str) -> Row:
    """What the training loop waits for one queued call, against appending to a list."""
    repeats = context.repeats(5000)
    seconds: dict[str, list[float]] = {"everloop": [], "limit": []}
    log, held = both.active.log, []
    for step in both.steps.take("everloop", repeats):
        begun = time.perf_counter()
        log(loss=step / 7, step=step)
        between = time.perf_counter()
        held.append((step, step / 7))
        ended = time.perf_counter()
        seconds["everloop"].append(between - begun)
        seconds["limit"].append(ended - between)
    both.active.flush()
    return measured(
        work=f"run.log, what the caller waits, {database}",
        unit="s",
        everloop=statistics.median(seconds["everloop"]),
        limit=statistics.median(seconds["limit"]),
        limit_name="append to a list",
        answers_equal=values(both.active.history(KEY))[-repeats:] == held,
        repeats=repeats,
    )


def batch_rows(context: Context) -> Iterator[Row]:
    """One point, and a thousand, durably, beside MLflow."""
    env = peer_of(context)
    # MLflow's tables have the names of ours, so it gets a place of its own.
    for place, peers_place in zip(places(context), places(context), strict=True):
        with (
            place as here,
            peers_place as there,
            sides(here) as both,
            Peer(env, "peer_mlflow.py") as peer,
        ):
            peer.ask("open", store=there.store)
            for size, full in ((1, 300), (1000, 50)):
                yield _batch(both, peer, here.database, size, context.repeats(full))


def _batch(both: Sides, peer: Peer, database: str, size: int, repeats: int) -> Row:
    seconds = in_turns(
        {
            "everloop": timed(lambda: both.batch(size)),
            "limit": timed(lambda: both.by_hand(size)),
            "peer": lambda: peer.seconds("log", size=size),
        },
        repeats=repeats,
    )
    said = peer.ask("history", tail=size).get("values")
    wanted = [value for _, value in values(both.limit.history())[-size:]]
    return measured(
        work=f"log {size:,} metric point{'s' * (size > 1)}, durable, {database}",
        unit="s",
        everloop=seconds["everloop"],
        limit=seconds["limit"],
        limit_name=both.limit.name(size),
        peers={f"{PEER}, in process": peer.figure(seconds["peer"])},
        answers_equal=both.is_equal() and said in (None, wanted),
        repeats=repeats,
    )
