"""Which triggers fire, once each, and what holds them back; on both databases."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import everloop as ev
from everloop.access.policy import EmbeddedAuthorizer
from everloop.automation.schedule import latest_tick
from everloop.automation.service import AutomationService
from everloop.catalog import tables
from everloop.catalog.engine import Catalog
from everloop.catalog.lineage import walk
from everloop.core.ci import CiSummary
from everloop.core.context import acting
from everloop.core.time import ManualClock, parse_instant
from everloop.errors import Conflict, InvalidInput, NotFound, StateError
from tests.unit.automation.world import (
    NAME,
    close_alert,
    commit,
    deploy,
    open_alert,
    refuse,
    rollout,
    spec,
)


def outcomes(automation: AutomationService) -> list[str]:
    return [firing.outcome for firing in reversed(automation.firings(NAME))]


def work(automation: AutomationService, outcome: str = "done") -> None:
    firing = automation.claim()
    assert firing is not None
    automation.finish(firing.id, outcome, "worked")  # type: ignore[arg-type]


def test_an_alert_fires_exactly_once(automation: AutomationService, catalog: Catalog) -> None:
    automation.declare(spec())
    alert = open_alert(catalog)
    fired = automation.decide()
    assert [(f.key, f.outcome) for f in fired] == [(alert.id, "queued")]
    assert automation.decide() == []
    event = catalog.events(kind="trigger.Fired")[0]
    cause = catalog.events(kind="alert.Fired")[0]
    assert event.cause == cause.id == fired[0].cause
    with catalog.read() as tx:
        found, _ = walk(tx, f"firing:{fired[0].id}", upstream=True, depth=9, limit=9)
    assert [(edge.source, edge.kind) for edge, _ in found] == [
        (f"alert:{alert.id}", "triggered"),
        (f"deployment:{NAME}", "raised"),
    ]


def test_alerts_of_other_monitors_do_not_fire(
    automation: AutomationService, catalog: Catalog
) -> None:
    automation.declare(spec())
    open_alert(catalog, "drift")
    assert automation.decide() == []


def test_an_alert_held_back_by_the_cooldown_fires_when_it_ends(
    automation: AutomationService, catalog: Catalog, clock: ManualClock
) -> None:
    automation.declare(spec())
    first = open_alert(catalog)
    automation.decide()
    work(automation)
    close_alert(catalog, first)
    clock.advance(days=1)
    second = open_alert(catalog)
    assert [f.outcome for f in automation.decide()] == ["cooldown"]
    clock.advance(days=5)
    assert automation.decide() == []  # held back still, and recorded only once
    clock.advance(days=1)
    assert [(f.key, f.outcome) for f in automation.decide()] == [(f"{second.id}+1", "queued")]
    skipped = catalog.events(kind="trigger.Skipped")
    assert [e.body["outcome"] for e in skipped] == ["cooldown"]


def test_an_alert_that_stays_open_after_a_refusal_fires_again_later(
    automation: AutomationService, catalog: Catalog, clock: ManualClock
) -> None:
    automation.declare(spec())
    open_alert(catalog)
    automation.decide()
    work(automation)
    refuse(catalog)
    clock.advance(days=13)
    assert automation.decide() == []  # seven days, doubled by the refusal
    clock.advance(days=1)
    assert [f.outcome for f in automation.decide()] == ["queued"]


def test_refusals_double_the_cooldown_and_a_promotion_resets_it(
    automation: AutomationService, catalog: Catalog, clock: ManualClock
) -> None:
    automation.declare(spec(budget="100 per month"))
    gaps = []
    last = clock.now()
    open_alert(catalog)
    for _ in range(6):
        while not automation.decide():
            clock.advance(days=1)
        gaps.append((clock.now() - last).days)
        last = clock.now()
        work(automation)
        clock.advance(hours=1)
        refuse(catalog)
    assert gaps == [0, 14, 28, 56, 56, 56]
    rollout(catalog, "promoted")
    start = clock.now()
    while not automation.decide():
        clock.advance(days=1)
    assert (clock.now() - start).days <= 7


def test_a_failed_pipeline_counts_for_the_cooldown(
    automation: AutomationService, catalog: Catalog, clock: ManualClock
) -> None:
    automation.declare(spec())
    open_alert(catalog)
    automation.decide()
    work(automation, "failed")
    clock.advance(days=8)
    assert automation.decide() == []
    clock.advance(days=6)
    assert [f.outcome for f in automation.decide()] == ["queued"]


def test_the_budget_holds(
    automation: AutomationService, catalog: Catalog, clock: ManualClock
) -> None:
    automation.declare(spec(cooldown="1h", budget="2 per month"))
    for _ in range(3):
        alert = open_alert(catalog)
        if automation.decide()[0].outcome == "queued":
            work(automation)
        close_alert(catalog, alert)
        clock.advance(days=1)
    assert outcomes(automation) == ["done", "done", "budget"]


def test_nothing_starts_while_a_firing_or_a_rollout_is_on(
    automation: AutomationService, catalog: Catalog, clock: ManualClock
) -> None:
    automation.declare(spec(cooldown="1h"))
    first = open_alert(catalog)
    automation.decide()
    clock.advance(days=1)
    second = open_alert(catalog)
    assert [f.outcome for f in automation.decide()] == ["busy"]
    work(automation)
    for alert in (first, second):
        close_alert(catalog, alert)
    rollout(catalog, "canary")
    clock.advance(days=1)
    open_alert(catalog)
    held = automation.decide()
    assert [f.outcome for f in held] == ["busy"]
    assert "rollout" in held[0].reason


def test_a_paused_loop_fires_when_it_goes_on(
    automation: AutomationService, catalog: Catalog
) -> None:
    automation.declare(spec())
    automation.pause(NAME, reason="holiday")
    open_alert(catalog)
    assert [f.outcome for f in automation.decide()] == ["paused"]
    automation.declare(spec())  # a restart declares again; it must not wake the loop
    assert automation.loop(NAME).paused
    automation.pause(NAME, paused=False)
    assert [f.outcome for f in automation.decide()] == ["queued"]


def test_of_missed_schedules_the_latest_fires_once(
    automation: AutomationService, clock: ManualClock
) -> None:
    automation.declare(spec(triggers=[ev.schedule("0 3 1 * *")]))
    assert automation.decide() == []
    clock.set(parse_instant("2013-07-15"))
    fired = automation.decide()
    assert [f.scheduled_for for f in fired] == [parse_instant("2013-07-01T03:00")]
    work(automation)
    assert automation.decide() == []
    clock.set(parse_instant("2013-07-01T02:00"))  # the clock steps back
    assert automation.decide() == []


def test_a_tick_belongs_to_the_interval_that_ends_with_it() -> None:
    at = parse_instant("2013-05-01T03:00")
    assert latest_tick("0 3 1 * *", at - timedelta(hours=1), at) == at
    assert latest_tick("0 3 1 * *", at, at + timedelta(hours=1)) is None


@given(
    st.integers(0, 59),
    st.integers(0, 23),
    st.datetimes(datetime(2013, 1, 1), datetime(2013, 1, 9)),  # noqa: DTZ001
    st.timedeltas(timedelta(0), timedelta(days=3)),
)
@example(0, 3, datetime(2013, 1, 2, 2, 59, 58), timedelta(seconds=1.5))  # noqa: DTZ001
def test_the_latest_tick_is_the_last_that_has_passed(
    minute: int, hour: int, after: datetime, span: timedelta
) -> None:
    after = after.replace(tzinfo=UTC)
    now = after + span
    first = datetime(2012, 12, 31, hour, minute, tzinfo=UTC)
    ticks = [first + timedelta(days=n) for n in range(16)]
    wanted = max((tick for tick in ticks if after < tick <= now), default=None)
    assert latest_tick(f"{minute} {hour} * * *", after, now) == wanted


def test_a_new_version_of_a_dataset_fires(automation: AutomationService, catalog: Catalog) -> None:
    commit(catalog, number=1)  # before the loop was there
    automation.declare(spec(triggers=[ev.new_data("flights")]))
    assert automation.decide() == []
    event = commit(catalog, number=2)
    commit(catalog, "weather")
    assert [(f.key, f.outcome) for f in automation.decide()] == [(event, "queued")]


def test_a_loop_does_not_wake_itself(automation: AutomationService, catalog: Catalog) -> None:
    automation.declare(spec(triggers=[ev.new_data("flights")], cooldown="1h"))
    commit(catalog, number=2)
    automation.decide()
    fired = catalog.events(kind="trigger.Fired")[0]
    with acting(cause=fired.id):
        commit(catalog, number=3)
    assert [f.outcome for f in automation.decide()] == ["guarded"]


def test_two_deciders_at_once_write_one_firing(
    automation: AutomationService, catalog: Catalog
) -> None:
    automation.declare(spec())
    open_alert(catalog)
    made: list[object] = []

    def decide() -> None:
        made.extend(AutomationService(catalog, EmbeddedAuthorizer()).decide())

    threads = [threading.Thread(target=decide) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert outcomes(automation) == ["queued"]


def test_a_firing_is_claimed_once_and_closed_once(
    automation: AutomationService, catalog: Catalog
) -> None:
    automation.declare(spec())
    open_alert(catalog)
    automation.decide()
    firing = automation.claim()
    assert firing is not None
    assert automation.claim() is None
    automation.finish(firing.id, "done", "fine", "run1")
    with pytest.raises(StateError, match="done cannot become failed"):
        automation.finish(firing.id, "failed")
    assert automation.firings(NAME)[0].run_id == "run1"


def test_what_a_dead_supervisor_left_is_queued_again(
    automation: AutomationService, catalog: Catalog
) -> None:
    automation.declare(spec())
    open_alert(catalog)
    automation.decide()
    first = automation.claim()
    assert first is not None
    assert [f.id for f in automation.recover()] == [first.id]
    again = automation.claim()
    assert again is not None
    assert again.id == first.id


def test_one_supervisor_leads_until_its_lease_ends(
    automation: AutomationService, clock: ManualClock
) -> None:
    assert automation.lead("a", 30)
    assert not automation.lead("b", 30)
    assert automation.lead("a", 30)
    clock.advance(seconds=31)
    assert automation.lead("b", 30)
    assert not automation.lead("a", 30)
    automation.resign("b")
    assert automation.lead("a", 30)


def test_declaring_the_same_again_says_nothing(
    automation: AutomationService, catalog: Catalog
) -> None:
    automation.declare(spec())
    seq = catalog.events(newest=True, limit=1)[0].seq
    automation.declare(spec())
    assert catalog.events(newest=True, limit=1)[0].seq == seq


def test_a_monitor_that_is_no_longer_listed_goes(
    automation: AutomationService, catalog: Catalog
) -> None:
    automation.declare(spec())
    open_alert(catalog)
    automation.declare(ev.loop(NAME, owner="o", pipeline="a.py:f", watch=[ev.drift()]))
    kinds = [event.kind for event in catalog.events()]
    assert kinds.count("monitor.Removed") == 1
    assert kinds.count("alert.Cleared") == 1
    assert automation.loop(NAME).charter.problem == "p"  # kept: the new one said nothing


def test_a_loop_watches_only_its_own_deployment(automation: AutomationService) -> None:
    wrong = msgspec.structs.replace(ev.performance("auc"), deployment="other")
    with pytest.raises(InvalidInput, match="deployment"):
        automation.declare(msgspec.structs.replace(spec(), monitors=(wrong,)))
    with pytest.raises(NotFound, match="delay"):
        automation.loop(NAME)


def test_a_loop_that_serves_nothing_trains_its_first_model(
    automation: AutomationService, catalog: Catalog, clock: ManualClock
) -> None:
    with catalog.write() as tx:
        tx.execute(tables.deployments.delete())
    automation.declare(spec())
    assert [f.key for f in automation.decide()] == ["first"]
    assert automation.decide() == []
    work(automation, "failed")
    assert automation.decide() == []
    clock.advance(minutes=2)  # a first failure is no reason to wait for a cooldown of days
    assert [f.key for f in automation.decide()] == ["first+1"]
    work(automation)
    deploy(catalog)
    clock.advance(days=30)
    assert automation.decide() == []


def test_a_person_may_ask_in_spite_of_the_cooldown(
    automation: AutomationService, catalog: Catalog
) -> None:
    automation.declare(spec())
    open_alert(catalog)
    automation.decide()
    work(automation)
    fired = automation.fire(NAME, "the airport has moved")
    assert fired.outcome == "queued"
    with pytest.raises(Conflict, match="busy"):
        automation.fire(NAME)


def test_a_loop_whose_gates_could_not_be_judged_is_not_declared(
    automation: AutomationService,
) -> None:
    wrong = msgspec.structs.replace(spec(), gates=(ev.threshold("auk", 0.7),))
    with pytest.raises(InvalidInput, match="did you mean 'auc'"):
        automation.declare(wrong)
    with pytest.raises(InvalidInput, match="must not be empty"):
        automation.declare(msgspec.structs.replace(spec(), gates=()))
    assert automation.loops() == []


def test_that_ci_ran_is_a_fact_that_fires_nothing(
    automation: AutomationService, catalog: Catalog
) -> None:
    automation.declare(spec())
    automation.decide()
    summary = CiSummary(loop=NAME, code="c0de", outcome="refused", report="d", counts={"passed": 3})
    event = automation.record_ci(summary)
    assert (event.kind, event.subject) == ("ci.Finished", "code:c0de")
    assert msgspec.convert(catalog.events(kind="ci.Finished")[0].body, CiSummary) == summary
    unrun = automation.record_ci(CiSummary(loop=NAME, code="", outcome="failed", report="d"))
    assert unrun.subject == f"loop:{NAME}"
    assert automation.decide() == []
