"""Promises of charters: one alert for each breach, whoever looks, however often and when."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from datetime import datetime, timedelta

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import everloop as ev
from everloop.automation.messenger import text_of
from everloop.automation.service import AutomationService
from everloop.catalog import tables
from everloop.catalog.engine import Catalog
from everloop.catalog.lineage import walk
from everloop.core.machines import decide_promise
from everloop.core.monitor import Alert
from everloop.core.policy import LoopSpec, Notify, ServiceLevel, Trigger
from everloop.core.time import ManualClock
from everloop.errors import InvalidInput
from everloop.governance.story import tell
from everloop.monitoring import ledger
from everloop.monitoring.promises import Promises
from tests.unit.automation.world import NAME, deploy, register, rollout, segment, serve

DAY = timedelta(days=1)


class Answers:
    """The prediction log: every answer took as long."""

    def __init__(self) -> None:
        self.latency_us = 1_000
        self.reads = 0

    def read(
        self, deployment: str, *, since: datetime, until: datetime, columns: list[str] | None = None
    ) -> pa.Table:
        self.reads += 1
        return pa.table({"latency_us": [self.latency_us] * 9, "arm": ["champion"] * 9})


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
def promises(catalog: Catalog, answers: Answers) -> Promises:
    return Promises(catalog, answers)


def promise(
    automation: AutomationService,
    *levels: ServiceLevel,
    on: tuple[Trigger, ...] = (),
    name: str = NAME,
) -> LoopSpec:
    charter = ev.charter(problem="p", value="v", owner="o", sla=levels)
    return automation.declare(
        ev.loop(name, owner="o", pipeline="loop.py:retrain", charter=charter, retrain_on=on)
    )


def told(catalog: Catalog) -> list[tuple[str, str]]:
    """What was said of promises, oldest first: which, and what of it."""
    events = [*catalog.events(kind="alert.Fired"), *catalog.events(kind="alert.Cleared")]
    events.sort(key=lambda event: event.seq)
    return [(str(e.body["monitor"]), e.kind.removeprefix("alert.")) for e in events]


def train(automation: AutomationService, seconds: float | None, outcome: str = "done") -> str:
    automation.fire(NAME)
    firing = automation.claim()
    assert firing is not None
    automation.finish(firing.id, outcome, "so", "a run", seconds)  # type: ignore[arg-type]
    return firing.id


def test_no_new_model_for_too_long_is_noticed_by_the_clock_and_once(
    automation: AutomationService, catalog: Catalog, promises: Promises, clock: ManualClock,
    answers: Answers,
) -> None:  # fmt: skip
    promise(automation, ev.sla("renewal", "10d"))
    assert promises.judge(NAME) == []  # nothing is live
    register(catalog, 1)
    made = clock.now()
    clock.set(made + 10 * DAY)
    assert promises.judge(NAME) == []
    clock.set(made + 10 * DAY + timedelta(seconds=1))
    [alert] = promises.judge(NAME)
    assert alert.monitor == "sla:renewal"
    assert alert.evidence["value"] == 10 * 86_400 + 1
    assert alert.evidence["promised"] == 10 * 86_400
    assert alert.evidence["measured_on"] == f"model:{NAME}/1"
    for later in (11 * DAY, 400 * DAY, DAY, 12 * DAY):  # also where the clock steps back
        clock.set(made + later)
        assert promises.judge(NAME) == []
        assert Promises(catalog, answers).judge(NAME) == []  # as after a restart
    register(catalog, 2)
    [cleared] = promises.judge(NAME)
    assert (cleared.id, cleared.state) == (alert.id, "ok")
    serve(catalog, 1)  # back to the old one, which is too old still
    assert [a.state for a in promises.judge(NAME)] == ["firing"]
    assert told(catalog) == [("sla:renewal", what) for what in ("Fired", "Cleared", "Fired")]


def test_a_training_is_judged_while_it_lasts_and_by_the_latest_that_ended(
    automation: AutomationService, catalog: Catalog, promises: Promises, clock: ManualClock
) -> None:
    promise(automation, ev.sla("retraining", "10min"))
    train(automation, 599)
    assert promises.judge(NAME) == []
    automation.fire(NAME)
    running = automation.claim()
    assert running is not None
    clock.advance(minutes=9)
    assert promises.judge(NAME) == []
    clock.advance(minutes=2)
    [alert] = promises.judge(NAME)
    assert alert.evidence["measured_on"] == f"firing:{running.id}"
    automation.finish(running.id, "done", "so", "run-2", 900.0)
    assert promises.judge(NAME) == []
    train(automation, None, "failed")  # it was not trained to its end: it says nothing
    train(automation, 580)  # kept, but by a hair
    assert promises.judge(NAME) == []
    kept = train(automation, 500)
    [cleared] = promises.judge(NAME)
    assert cleared.evidence["cleared"] == f"kept again by firing:{kept}"
    broken = train(automation, 700)
    [again] = promises.judge(NAME)
    assert again.evidence["run"] == "a run"
    assert told(catalog) == [("sla:retraining", what) for what in ("Fired", "Cleared", "Fired")]
    cause = catalog.events(subject=f"alert:{again.id}")[0].cause
    assert cause == catalog.events(subject=f"firing:{broken}", kind="trigger.Finished")[0].id
    with catalog.read() as tx:
        found, _ = walk(tx, f"alert:{again.id}", upstream=True, depth=1, limit=9)
    assert {edge.source for edge, _ in found} == {f"firing:{broken}", f"deployment:{NAME}"}


def test_a_rollout_is_judged_while_it_lasts(
    automation: AutomationService, catalog: Catalog, promises: Promises, clock: ManualClock
) -> None:
    promise(automation, ev.sla("deployment", "4d"))
    slow = rollout(catalog, "canary")
    clock.advance(days=4, seconds=1)
    [alert] = promises.judge(NAME)
    assert alert.evidence["measured_on"] == f"rollout:{slow}"
    table = tables.rollouts
    with catalog.write() as tx:  # it was taken out: nothing is left that breaks the promise
        tx.execute(table.update().where(table.c.id == slow).values(
            open=False, state={"stage": "aborted", "step": 0, "since_s": 0.0}, updated_at=tx.now
        ))  # fmt: skip
        tx.append("rollout.Aborted", f"rollout:{slow}", {"deployment": NAME})
    assert [a.state for a in promises.judge(NAME)] == ["ok"]
    assert promises.judge(NAME) == []


def test_latency_is_read_once_an_hour_and_only_new_answers_mend_it(
    automation: AutomationService, catalog: Catalog, promises: Promises, clock: ManualClock,
    answers: Answers,
) -> None:  # fmt: skip
    promise(automation, ev.sla("prediction", "50ms"))
    assert promises.judge(NAME) == []
    assert answers.reads == 0
    for number in range(9):
        segment(catalog)
        assert promises.judge(NAME) == []
        assert answers.reads == 1, number
    answers.latency_us = 60_000
    clock.advance(hours=1)
    slow = segment(catalog)
    [alert] = promises.judge(NAME)
    assert alert.evidence["value"] == pytest.approx(0.06)
    assert alert.evidence["measured_on"] == f"segment:{slow}"
    for latency, cleared in ((49_000, 0), (44_000, 1)):
        answers.latency_us = latency
        clock.advance(hours=1)
        segment(catalog)
        assert len(promises.judge(NAME)) == cleared


def test_a_promise_that_is_changed_or_withdrawn_is_judged_anew(
    automation: AutomationService, catalog: Catalog, promises: Promises, clock: ManualClock
) -> None:
    promise(automation, ev.sla("renewal", "10d"))
    register(catalog, 1)
    clock.advance(days=12)
    assert len(promises.judge(NAME)) == 1
    promise(automation, ev.sla("renewal", "11d"))
    assert promises.judge(NAME) == []  # broken still
    promise(automation, ev.sla("renewal", "30d"))
    assert [a.state for a in promises.judge(NAME)] == ["ok"]
    promise(automation, ev.sla("renewal", "1d"))
    assert [a.state for a in promises.judge(NAME)] == ["firing"]
    promise(automation, ev.sla("deployment", "1d"))
    [alert] = promises.judge(NAME)
    assert alert.evidence["cleared"] == "it is not promised any more"


def test_supervisors_at_once_raise_one_alert(
    automation: AutomationService, catalog: Catalog, clock: ManualClock, answers: Answers
) -> None:
    promise(automation, ev.sla("renewal", "10d"), ev.sla("prediction", "50ms"))
    register(catalog, 1)
    segment(catalog)
    answers.latency_us = 60_000
    clock.advance(days=11)
    made: list[Alert] = []
    threads = [
        threading.Thread(target=lambda: made.extend(Promises(catalog, answers).judge(NAME)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(alert.monitor for alert in made) == ["sla:prediction", "sla:renewal"]


def test_a_broken_promise_fires_triggers_and_says_what_it_is(
    automation: AutomationService, catalog: Catalog, promises: Promises, clock: ManualClock
) -> None:
    promise(automation, ev.sla("renewal", "10d"), on=(ev.alert("sla:renewal"),))
    values = ("sla", "sla:renewal", f"{NAME}/sla", "other/sla", "sla:deployment")
    for number, value in enumerate(values):
        automation.automate(ev.on(ev.alert(value), name=f"tell-{number}").notify("log:"))
    register(catalog, 1)
    clock.advance(days=11)
    assert len(promises.judge(NAME)) == 1
    fired = automation.decide()
    assert sorted(f.loop for f in fired) == [NAME, "tell-0", "tell-1", "tell-2"]
    assert {f.outcome for f in fired} == {"queued"}
    [event] = catalog.events(kind="alert.Fired")
    firing = next(f for f in fired if f.loop == "tell-0")
    sentence = "sla:renewal: 11 d, promised at most 10 d"
    assert sentence in text_of(Notify(to="log:"), firing, [event])
    with catalog.read() as tx:
        lines = [line.sentence for line in tell(tx, NAME, [])]
    assert f"sla:renewal alerts: 11 d, promised at most 10 d (model:{NAME}/1)" in lines
    with pytest.raises(InvalidInput, match="no monitor 'sla:deployment'"):
        promise(automation, ev.sla("deployment", "1d"), on=(ev.alert("sla:deployment"),))


@given(st.lists(st.tuples(st.floats(0, 3), st.booleans()), max_size=40))
def test_an_alert_is_between_a_breach_and_a_promise_kept_with_something_to_spare(
    seen: list[tuple[float, bool]],
) -> None:
    state = "ok"
    acts = []
    for value, is_new in seen:
        before = state
        state, act = decide_promise(before, value, 1.0, is_new=is_new)  # type: ignore[arg-type]
        acts += [act] if act else []
        assert (act == "fire") == (before == "ok" and value > 1)
        assert (act == "clear") == (before == "firing" and is_new and value <= 0.9)
    assert acts == [act for act, _ in zip(itertools.cycle(("fire", "clear")), acts, strict=False)]


_numbers = itertools.count()
_Steps = st.lists(
    st.one_of(
        st.tuples(st.just("clock"), st.integers(-40, 80)),
        st.tuples(st.just("renew"), st.just(0)),
        st.tuples(st.just("restart"), st.integers(0, 1)),
    ),
    min_size=3,
    max_size=14,
)


@pytest.mark.parametrize("catalog", ["sqlite"], indirect=True)
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=_Steps)
def test_each_model_that_grows_too_old_alerts_once_whatever_the_clock_does(
    automation: AutomationService, catalog: Catalog, clock: ManualClock, answers: Answers,
    steps: list[tuple[str, int]],
) -> None:  # fmt: skip
    """Two supervisors look in turn; clocks jump, models are renewed, supervisors start again."""
    name = f"loop-{next(_numbers)}"
    deploy(catalog, name)
    promise(automation, ev.sla("renewal", "30d"), name=name)
    make: Callable[[], Promises] = lambda: Promises(catalog, answers)  # noqa: E731
    pair, version, born = [make(), make()], 1, clock.now()
    register(catalog, version, name)
    broken: set[int] = set()
    for step, number in steps:
        if step == "clock":
            clock.advance(days=number)
        elif step == "renew":
            version, born = version + 1, clock.now()
            register(catalog, version, name)
        else:
            pair[number] = make()
        for supervisor in pair:
            supervisor.judge(name)
        if clock.now() - born > 30 * DAY:
            broken.add(version)
        with catalog.read() as tx:
            alerts = ledger.alerts(tx, name)
        assert sorted(str(a.evidence["measured_on"]) for a in alerts) == sorted(
            f"model:{name}/{v}" for v in broken
        )
        assert [a.state for a in alerts if a.state == "firing"] == ["firing"] * (version in broken)
