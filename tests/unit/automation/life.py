"""A loop and automations that live through storms, beside a small oracle of what they may do.

The deciding is the real one, on a real catalog: two supervisors that look in turn, at once, and die
between looking and writing. The oracle knows only what is declared (`COOLDOWN`, `BUDGET`...) and
what it did to the world; after each step it holds every new firing against that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, Literal
from zoneinfo import ZoneInfo

from sqlalchemy import select

import everloop as ev
from everloop.access.policy import EmbeddedAuthorizer
from everloop.automation.deciding import Plan
from everloop.automation.service import AutomationService
from everloop.catalog import loops as statements
from everloop.catalog import tables
from everloop.catalog.engine import Catalog
from everloop.core.monitor import Alert
from everloop.core.policy import Firing
from everloop.core.time import ManualClock
from tests.unit.automation.world import (
    NAME,
    close_alert,
    commit,
    open_alert,
    refuse,
    rollout,
    spec,
)

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
#: Of the loop: the wait doubles with each setback up to eight times.
COOLDOWN, MOST, BUDGET, SPAN = 2 * DAY, 16 * DAY, 3, 30 * DAY
#: Of the automation ``calm``.
DEBOUNCE, REST, DAILY = timedelta(minutes=10), HOUR, 3

Fate = Literal["failed", "refused", "promoted", "aborted", "nothing"]
_OPEN = ("queued", "running", "waiting")
_WORK = (*_OPEN, "done", "failed")
PARIS = ZoneInfo("Europe/Paris")


class Life:
    """The world, two supervisors, and the oracle."""

    def __init__(self, catalog: Catalog, clock: ManualClock) -> None:
        self.catalog, self.clock = catalog, clock
        self.services = [self._start(), self._start()]
        self.alerts: dict[str, Alert] = {}
        self.stalled: list[tuple[AutomationService, Plan | None]] = []
        self.rollout, self.paused = "", False
        self.setbacks = 0
        self.works: list[datetime] = []
        self.calm: list[datetime] = []
        self.known: dict[str, Firing] = {}
        self.raised: list[str] = []
        self.commits: list[str] = []
        self.checked = 0
        self.declared = clock.now()
        self.latest = clock.now()
        service = self.services[0]
        watch = [ev.performance("auc"), ev.quality()]
        alerts = [ev.alert("performance"), ev.alert("quality")]
        limits = {"cooldown": "2d", "budget": "3 per month"}
        service.declare(spec(watch=watch, triggers=alerts, **limits))
        data = ev.new_data("flights")
        night = ev.schedule("30 2 * * 0", zone="Europe/Paris", missed="all")
        limits = {"debounce": "10m", "cooldown": "1h", "budget": "3 per day"}
        # Both of its triggers are about each version: one firing answers it all the same.
        any_rows = ev.new_data("flights", where={"rows": {">": 0}})
        service.automate(ev.on(data, any_rows, name="calm", **limits).notify("log:"))  # type: ignore[arg-type]
        service.automate(ev.on(data, name="each", concurrency=2).run("a.py:b"))
        service.automate(ev.on(night, name="night").notify("log:"))

    # --- what happens to the world ---------------------------------------------------------------

    def pass_time(self, length: timedelta) -> None:
        """The clock may also step back."""
        self.clock.set(self.clock.now() + length)

    def raise_alert(self, monitor: str = "performance") -> None:
        open_ = self.alerts.get(monitor)
        if open_ is None:
            self.alerts[monitor] = open_alert(self.catalog, monitor)
            self.raised.append(self.alerts[monitor].id)
        else:  # somebody tells of it again
            with self.catalog.write() as tx:
                body = {"deployment": NAME, "monitor": monitor}
                tx.append("alert.Fired", f"alert:{open_.id}", body)

    def clear_alert(self, monitor: str = "performance") -> None:
        if monitor in self.alerts:
            close_alert(self.catalog, self.alerts.pop(monitor))

    def flicker(self) -> None:
        """An alert that is over before anybody looks."""
        if "performance" not in self.alerts:
            self.raise_alert()
            self.clear_alert()

    def burst(self, number: int = 4) -> None:
        """Data, of which only some are for anybody, and an alert that is for nobody."""
        for index in range(number):
            self._commit()
            if not index % 3:
                commit(self.catalog, "weather")
        open_alert(self.catalog, "other")

    def drizzle(self, number: int) -> None:
        """Data now and then, each looked at and worked on."""
        for _ in range(number):
            self._commit()
            self.look(number % 2)
            self.pass_time(timedelta(minutes=37))
            self.work("nothing")

    def chase(self, fate: Fate) -> None:
        """An alert, a training, and what comes of it; some days later."""
        self.raise_alert()
        self.look()
        self.work(fate)
        self.settle_rollout("aborted" if fate == "aborted" else "promoted")
        self.pass_time(2 * DAY + HOUR)

    def _commit(self) -> None:
        number = len(self.commits) + 1
        self.commits.append(commit(self.catalog, number=number, rows=number))

    def pause(self) -> None:
        self.paused = not self.paused
        self.services[0].pause(NAME, self.paused)

    def work(self, fate: Fate) -> None:
        """Take up what is due and end it."""
        while (firing := self.services[1].claim()) is not None:
            assert firing.due_at <= self.clock.now()
            with self.catalog.read() as tx:
                running = statements.firings(tx, outcomes=("running",))
            open_ = Counter(firing.loop for firing in running)
            assert open_["each"] <= 2
            assert max(open_[name] for name in (NAME, "calm", "night")) <= 1
            if firing.loop == NAME:
                self._train(firing, fate)
            else:
                self.services[1].finish(firing.id, "done")

    def settle_rollout(self, stage: Literal["promoted", "aborted"]) -> None:
        if not self.rollout:
            return
        table = tables.rollouts
        state = {"stage": stage, "step": 0, "since_s": 0.0}
        with self.catalog.write() as tx:
            change = table.update().where(table.c.id == self.rollout)
            tx.execute(change.values(open=False, state=state, updated_at=tx.now))
            tx.append(f"rollout.{stage.title()}", f"rollout:{self.rollout}", {"deployment": NAME})
        self.rollout = ""
        if stage == "promoted":
            self.setbacks = 0
            for monitor in list(self.alerts):  # as monitoring does
                self.clear_alert(monitor)
        else:
            self.setbacks += 1

    def crash(self) -> None:
        """A supervisor takes work up and dies; another one finds it."""
        if self.services[0].claim() is not None:
            self.services[0] = self._start()
            for firing in self.services[1].recover():
                if firing.loop == NAME:  # its work begins anew, and so does what is counted from it
                    self.works[-1] = firing.due_at

    def restart(self) -> None:
        self.services = [self.services[1], self._start()]

    def _train(self, firing: Firing, fate: Fate) -> None:
        service = self.services[1]
        service.finish(firing.id, "failed" if fate == "failed" else "done", fate)
        if fate in ("failed", "refused"):
            self.setbacks += 1
        if fate == "refused":
            refuse(self.catalog)
        if fate in ("promoted", "aborted"):
            self.rollout = rollout(self.catalog, "canary")

    # --- looking ---------------------------------------------------------------------------------

    def look(self, who: int = 0) -> None:
        self._judged(lambda: self.services[who].decide())

    def look_at_once(self) -> None:
        """Both read the same state, then each writes what it found."""

        def both() -> None:
            deciders = [service._decider for service in self.services]
            with self.catalog.read() as tx:
                plans = [decider.plan(tx) for decider in deciders]
            for decider, plan in zip(deciders, plans, strict=True):
                if plan is not None:
                    with self.catalog.write() as tx:
                        made = decider.fire(tx, plan)
                    decider.settle(made, plan)

        self._judged(both)

    def stall(self) -> None:
        """A supervisor read, and takes its time to write."""
        with self.catalog.read() as tx:
            self.stalled.append((self.services[0], self.services[0]._decider.plan(tx)))

    def wake(self) -> None:
        """Those that took their time write what they found then."""

        def write() -> None:
            for service, plan in self.stalled:
                if plan is not None:
                    with self.catalog.write() as tx:
                        made = service._decider.fire(tx, plan)
                    service._decider.settle(made, plan)
            self.stalled = []

        self._judged(write, is_late=True)

    def look_and_die(self) -> None:
        """It read, and dies before it writes: the next one finds the same."""
        with self.catalog.read() as tx:
            self.services[0]._decider.plan(tx)
        self.services[0] = self._start()

    def _start(self) -> AutomationService:
        return AutomationService(self.catalog, EmbeddedAuthorizer())

    # --- the oracle ------------------------------------------------------------------------------

    def _judged(self, look: Callable[[], object], *, is_late: bool = False) -> None:
        now = self.clock.now()
        self.latest = max(self.latest, now)
        held = self.obstacle(now)
        look()
        new = self._new()
        mine = [firing for firing in new if firing.loop == NAME]
        working = [firing for firing in mine if firing.outcome == "queued"]
        if held:
            assert not working, (held, working)
            assert {firing.outcome for firing in mine} <= {held, "busy"}
        else:
            # Nothing holds it back: of the alerts that are open one starts work.
            assert len(working) <= 1
            assert working or not self.alerts or is_late
            self.works += [firing.due_at for firing in working]
        for firing in mine:
            assert firing.key.partition("+")[0] in self.raised
            # What is held back is told once, with the reason; then it waits.
            assert firing.outcome == "queued" or (firing.reason and "+" not in firing.key)
        for firing in new:
            if firing.loop == "calm":
                assert firing.due_at >= now + DEBOUNCE
                self.calm.append(firing.due_at)
        if len(self.commits) != self.checked and not is_late:
            self._check_automations()

    def _new(self) -> list[Firing]:
        """The firings that are there since the last look."""
        table = tables.firings
        with self.catalog.read() as tx:
            ids = [row.id for row in tx.all(select(table.c.id)) if row.id not in self.known]
            found = [statements.firing(tx, identifier) for identifier in ids]
        self.known |= {firing.id: firing for firing in found}
        return found

    def obstacle(self, now: datetime) -> str:
        """Why the loop may not train now, from what was declared; empty if it may."""
        if self.paused:
            return "paused"
        with self.catalog.read() as tx:
            open_ = statements.firings(tx, NAME, outcomes=_OPEN)
        if open_ or self.rollout:
            return "busy"
        wait = min(COOLDOWN * 2**self.setbacks, MOST)
        if self.works and now < max(self.works) + wait:
            return "cooldown"
        return "budget" if sum(at > now - SPAN for at in self.works) >= BUDGET else ""

    def _check_automations(self) -> None:
        """Each version of the dataset was answered once."""
        self.checked = len(self.commits)
        with self.catalog.read() as tx:
            each = [firing.key for firing in statements.firings(tx, "each", limit=100_000)]
            calm = statements.firings(tx, "calm", limit=100_000)
        assert Counter(each) == Counter(self.commits)
        assert sum(1 + firing.body.get("merged", 0) for firing in calm) == len(self.commits)
        listed = [event for firing in calm for event in firing.body["events"]]
        assert max(Counter(listed).values(), default=1) == 1

    def end(self) -> None:
        """Let everything settle, and hold the whole life against what was declared."""
        if self.paused:
            self.pause()
        self.settle_rollout("aborted")
        self.wake()
        self.work("nothing")
        for _ in range(2):
            self.pass_time(MOST + SPAN)
            self.look()
            self.work("nothing")
        with self.catalog.read() as tx:
            assert statements.firings(tx, outcomes=_OPEN) == []
        self._check_automations()
        first = {f.key for f in self.known.values() if f.loop == NAME and "+" not in f.key}
        assert first == set(self.raised)
        self.pass_time(self.latest - self.clock.now())
        while len(nights := self._nights()) % 100 == 0 and nights != self._wanted():
            self.look()
        assert nights == self._wanted()
        for times, gap, most, span in (
            (self.works, COOLDOWN, BUDGET, SPAN),
            (self.calm, REST, DAILY, DAY),
        ):
            times = sorted(times)
            assert all(b - a >= gap for a, b in pairwise(times))
            assert all(b - a >= span for a, b in zip(times, times[most:], strict=False))

    def _nights(self) -> list[datetime]:
        with self.catalog.read() as tx:
            found = statements.firings(tx, "night", limit=100_000)
        return sorted(firing.scheduled_for for firing in found)

    def _wanted(self) -> list[datetime]:
        """Half past two of each Sunday in Paris, once: in the gap of spring it is three."""
        day, found = self.declared.astimezone(PARIS).date(), []
        while day <= self.latest.date() + DAY:
            at = datetime(day.year, day.month, day.day, 2, 30, tzinfo=PARIS).astimezone(UTC)
            if at.astimezone(PARIS).hour != 2:
                at = at.replace(minute=0)
            found += [at] if day.isoweekday() == 7 else []
            day += DAY
        return [at for at in found if self.declared < at <= self.latest]


def storm(life: Life, steps: list[tuple[str, Any]]) -> None:
    """Live through `steps`: the name of a method and its argument, or a time to pass in minutes."""
    for name, given in steps:
        if name == "pass":
            life.pass_time(timedelta(minutes=given))
        elif given is None:
            getattr(life, name)()
        else:
            getattr(life, name)(given)
