"""Replays the year as it became known.

Months arrive, flights are asked about at their scheduled departure, outcomes become known as
flights land, and at the end of each day the loop looks at itself.

Nothing here decides anything: what is retrained, refused and promoted is decided by ``loop.py``
through Everloop's own runner. A replay that was stopped goes on with the day it had begun.
"""

from __future__ import annotations

import functools
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import polars as pl
import world
from mark import Counts, Mark, mark_of, peak_memory_mb

import everloop as ev
from everloop.automation.runner import LoopRunner
from everloop.automation.triggers import collecting
from everloop.errors import NotFound, StateError
from everloop.pipelines.load import load_module

__all__ = ["BEGIN", "DAY", "END", "NAME", "Mark", "Replay", "mark_of"]

LOOP_FILE = Path(__file__).with_name("loop.py")
NAME = "flights-delay"
BEGIN = datetime(2013, 4, 1, tzinfo=UTC)
END = datetime(2014, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
WEEK = timedelta(days=7)

REQUEST = ("carrier", "origin", "dest", "tailnum", "distance", "hour", "sched_dep")

_INSTANT = pl.Datetime("us", "UTC")

#: Between two requests of a day, so that they last about as long as the day's end takes.
_BETWEEN_S = 0.006

#: How far back the online store must reach when it is filled anew: the longest window and more.
_REACH = timedelta(days=10)


@dataclass
class Progress:
    """What the terminal shows while the replay runs."""

    day: datetime
    done: int
    total: int


class Replay:
    """One replay in one workspace; it goes on where an earlier one in the same folder was stopped.

    Args:
        workspace: Embedded, with a :class:`everloop.ManualClock`.
        clock: That clock.
        mark: Where it stands.
        until: First instant that is not replayed.
    """

    def __init__(
        self,
        workspace: ev.Workspace,
        clock: ev.ManualClock,
        mark: Mark,
        *,
        until: datetime = END,
    ) -> None:
        self.workspace = workspace
        self.clock = clock
        self.until = until
        self._folder = Path(workspace.folder)
        self.mark = mark
        self._spent = self.mark.seconds
        self._begun = time.monotonic()
        self._runner: LoopRunner = workspace.loop_runner()

    @property
    def counts(self) -> Counts:
        """How the answers were got."""
        return self.mark.counts

    # --- what is there before the first request ---------------------------------------------------
    def prepare(self) -> None:
        """The first quarter arrives; the first model is trained and deployed. Once."""
        self.clock.set(self.mark.next or BEGIN)
        self._runner.load(LOOP_FILE)
        if self.mark.next is not None:
            return
        self._arrive_planes()
        for start in world.months():
            if start < BEGIN:
                self._arrive_until(start)
        self._arrive_until(BEGIN)
        self._runner.recover()
        self._runner.tick()  # a loop without a model trains its first one
        self._check_deployed()
        self._remember(BEGIN)

    def _check_deployed(self) -> None:
        try:
            self.workspace.deployment.deployment(NAME)
        except NotFound:
            told = self.workspace.automation.firings(NAME, limit=1)
            raise StateError(
                f"the first model is not there: {told[0].reason if told else 'nothing was tried'}",
                hint="everloop run list --dir DIR shows its run; begin anew in another folder",
            ) from None

    # --- one day ----------------------------------------------------------------------------------
    def run(self, address: str, report: Callable[[Progress], None]) -> None:
        """Replay all days against the serving process at `address` (``host:port``)."""
        assert self.mark.next is not None, "prepare() comes first"
        router = self.workspace.open_router(only=(NAME,))
        online = self.workspace.online_features("delay")
        self._recount()
        self._catch_up(online, router, address)
        self._fill(online, self.mark.next)
        total = (self.until - BEGIN) // DAY
        for day in _days(self.mark.next, self.until):
            report(Progress(day, (day - BEGIN) // DAY, total))
            self.clock.set(day)
            if (day - BEGIN) % WEEK == timedelta(days=1):
                self._arrive_until(day - DAY)
            online.push("weather", self._weather(day, day + DAY))
            known = self._known(day, day + DAY)
            online.push("flights", known)
            router.refresh()
            self._answer(day, router, address, functools.partial(self._close, day, known))
            self._remember(day + DAY)
        report(Progress(self.until, total, total))

    def _answer(self, day: datetime, router: Any, address: str, close: Callable[[], None]) -> None:
        asked = self._asked(day)
        by_http = asked.filter(self._is_http)
        in_batch = asked.filter(~self._is_http)
        if in_batch.height:
            route = router.route(NAME)
            answers = route.answer(_columns(route, in_batch), in_batch["flight_id"].to_list())
            self.workspace.log_answers(answers)
        self.counts.batch += in_batch.height
        # While the loop looks at itself, and swaps models, requests go on arriving.
        traffic = Traffic(address, NAME, by_http)
        traffic.start()
        close()
        traffic.join()
        self._compare(traffic, router, by_http)

    def _close(self, day: datetime, known: pl.DataFrame) -> None:
        """The day ends: what landed is told, and the loop looks at itself."""
        self.clock.set(day + DAY)
        landed = known.drop_nulls("arr_delay")
        labels = landed.select(
            request_id="flight_id",
            label=(pl.col("arr_delay") > 15).cast(pl.Float64),
            known_at="landed_at",
        )
        if labels.height:
            self.workspace.predictions.labels(NAME, labels.to_arrow())
        self._runner.recover()
        self._runner.tick()

    def _compare(self, traffic: Traffic, router: Any, rows: pl.DataFrame) -> None:
        """Answers over HTTP must equal those of the same route code in batch."""
        self.counts.http += len(traffic.values)
        self.counts.http_errors += traffic.errors
        self.counts.swaps_under_traffic += max(len(traffic.revisions) - 1, 0)
        route = router.route(NAME)
        served = {arm.version for arm in route.arms}
        for version in {v for _, v in traffic.values.values()} & served:
            of_version = [i for i, (_, v) in traffic.values.items() if v == version]
            subset = rows.filter(pl.col("flight_id").is_in(of_version))
            again = route.answer(_columns(route, subset), version=version)
            expected = dict(zip(subset["flight_id"].to_list(), again.values.tolist(), strict=True))
            self.counts.compared += len(of_version)
            self.counts.different += sum(traffic.values[i][0] != expected[i] for i in of_version)

    # --- the world --------------------------------------------------------------------------------
    def _arrive_until(self, until: datetime) -> None:
        """What was scheduled or observed since the last arrival is committed, once.

        A month at a time for the first quarter, then a week at a time, a day late, so that a
        candidate can learn from nearly all that is older than the hold-out of its gate.
        """
        module = _loop()
        note = f"arrived until {until:%Y-%m-%d}"
        for name, frame, time_, schema in (
            ("flights", world.flights(), "sched_dep", module.FLIGHTS),
            ("weather", world.weather(), "observed_at", module.WEATHER),
        ):
            known = {dataset.name for dataset in self.workspace.data.datasets()}
            notes = [v.note for v in self.workspace.data.versions(name)] if name in known else []
            if note in notes:
                continue
            since = notes[-1].rpartition(" ")[2] if notes else "2013-01-01"
            rows = frame.filter(_within(time_, _instant(since), until))
            if rows.height:
                self.workspace.data.commit(
                    name, rows.to_arrow(), schema=schema, owner=module.OWNER, note=note
                )

    def _arrive_planes(self) -> None:
        module = _loop()
        if "planes" not in {dataset.name for dataset in self.workspace.data.datasets()}:
            self.workspace.data.commit(
                "planes", world.planes().to_arrow(), schema=module.PLANES,
                owner=module.OWNER, note="the register of aircraft",
            )  # fmt: skip

    def _asked(self, day: datetime) -> pl.DataFrame:
        """The flights that depart on `day` by schedule and were not asked about before a stop."""
        return self._flights(day, day + DAY).filter(~pl.col("answered"))

    def _flights(self, since: datetime, until: datetime) -> pl.DataFrame:
        """Flights by scheduled departure, numbered, with whether the log has an answer."""
        rows = world.flights().with_row_index("number")
        rows = rows.filter(_within("sched_dep", since, until))
        done = self.workspace.predictions.read(
            NAME, since=since, until=until, columns=["request_id"]
        )
        known = pl.Series(done["request_id"].to_pylist(), dtype=pl.String)
        return rows.with_columns(answered=pl.col("flight_id").is_in(known.implode()))

    @property
    def _is_http(self) -> pl.Expr:
        return pl.col("number") % self.mark.http_every == 0

    def _known(self, since: datetime, until: datetime) -> pl.DataFrame:
        """Flights of which something became known in the half-open interval."""
        left, landed = (_within(name, since, until) for name in ("departed_at", "landed_at"))
        return world.flights().filter(left | landed)

    def _weather(self, since: datetime, until: datetime) -> pl.DataFrame:
        plausible = pl.col("wind_speed") <= 200
        return world.weather().filter(_within("observed_at", since, until) & plausible)

    def _fill(self, online: Any, now: datetime) -> None:
        """The online store is filled anew, so that a stopped replay cannot count an event twice."""
        online.clear()
        online.push("planes", world.planes())
        online.push("weather", self._weather(now - _REACH, now))
        online.push("flights", self._known(now - _REACH, now))

    # --- stop and resume --------------------------------------------------------------------------
    def _recount(self) -> None:
        """Count the answers in the log: a process that was killed told nobody of its last ones."""
        assert self.mark.next is not None
        answered = self._flights(BEGIN, self.mark.next + DAY).filter("answered")
        self.counts.http = answered.filter(self._is_http).height
        self.counts.batch = answered.height - self.counts.http

    def _catch_up(self, online: Any, router: Any, address: str) -> None:
        """Ask again about flights of days gone by whose answers never reached the log.

        A serving process that is killed may lose those of its last second. They are asked of the
        model that is served now; the days themselves are not replayed again.
        """
        assert self.mark.next is not None
        for day in self._unanswered(self.mark.next):
            self._fill(online, day + DAY)
            router.refresh()
            self._answer(day, router, address, lambda: None)

    def _unanswered(self, until: datetime) -> list[datetime]:
        """The days before `until` with flights that the log has no answer for."""
        lost = self._flights(BEGIN, until).filter(~pl.col("answered"))
        return lost["sched_dep"].dt.truncate("1d").unique().sort().to_list()

    def is_finished(self) -> bool:
        """Whether all days are replayed and all their flights answered."""
        done = self.mark.next is not None and self.mark.next >= self.until
        return done and not self._unanswered(self.until)

    def _remember(self, day: datetime) -> None:
        self.mark.next = day
        self.take_stock()

    def take_stock(self) -> None:
        """Keep how far it has come, and what it took."""
        self.mark.seconds = round(self._spent + time.monotonic() - self._begun, 1)
        self.mark.peak_memory_mb = max(self.mark.peak_memory_mb, peak_memory_mb())
        self.mark.save(self._folder)


class Traffic(threading.Thread):
    """Sends flights as Open Inference Protocol requests, spread over the day's work."""

    def __init__(self, address: str, model: str, rows: pl.DataFrame) -> None:
        super().__init__(daemon=True)
        self._address = address
        self._path = f"/v2/models/{model}/infer"
        self._rows = rows
        self.values: dict[str, tuple[float, int]] = {}
        self.revisions: set[str] = set()
        self.errors = 0

    def run(self) -> None:
        host, _, port = self._address.partition(":")
        with closing(HTTPConnection(host, int(port), timeout=30)) as connection:
            for row in self._rows.iter_rows(named=True):
                try:
                    self._ask(connection, row)
                except (OSError, HTTPException):
                    self.errors += 1
                    connection.close()  # the next request connects anew
                time.sleep(_BETWEEN_S)

    def _ask(self, connection: HTTPConnection, row: dict[str, Any]) -> None:
        connection.request("POST", self._path, json.dumps(_infer(row)))
        answer = connection.getresponse()
        body = json.loads(answer.read())
        if answer.status != 200:
            self.errors += 1
            return
        value, version = body["outputs"][0]["data"][0], int(body["model_version"])
        self.values[row["flight_id"]] = (value, version)
        self.revisions.add(answer.headers.get("x-everloop-revision", ""))


def _within(column: str, since: datetime, until: datetime) -> pl.Expr:
    # Compared as numbers: Polars takes a millisecond to turn a datetime into an expression.
    first, after = (pl.lit(round(at.timestamp() * 1e6)).cast(_INSTANT) for at in (since, until))
    return (pl.col(column) >= first) & (pl.col(column) < after)


def _days(since: datetime, until: datetime) -> Iterator[datetime]:
    while since < until:
        yield since
        since += DAY


def _instant(day: str) -> datetime:
    return datetime.fromisoformat(day).replace(tzinfo=UTC)


def _loop() -> Any:
    with collecting():
        return load_module(LOOP_FILE)


def _infer(row: dict[str, Any]) -> dict[str, Any]:
    kinds = {"distance": "FP64", "hour": "FP64"}
    inputs = []
    for name in REQUEST:
        value = row[name].isoformat() if name == "sched_dep" else row[name]
        datatype = kinds.get(name, "BYTES")
        inputs.append({"name": name, "shape": [1], "datatype": datatype, "data": [value]})
    return {"id": row["flight_id"], "inputs": inputs}


def _columns(route: Any, rows: pl.DataFrame) -> Any:
    given = {name: rows[name].to_list() for name in REQUEST if name != "sched_dep"}
    given["sched_dep"] = rows["sched_dep"].dt.epoch("us").to_numpy()
    return route.validator.columns(given)
