"""Automations: which events and times fire them, once each, and what makes them wait."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import everloop as ev
from everloop.access.policy import EmbeddedAuthorizer
from everloop.automation.matching import KINDS, fits, topics_of
from everloop.automation.policy import free_at
from everloop.automation.service import AutomationService
from everloop.automation.triggers import On
from everloop.catalog.engine import Catalog
from everloop.core.context import acting
from everloop.core.events import Event
from everloop.core.policy import Automation, Firing, Trigger
from everloop.core.time import ManualClock, parse_instant
from everloop.errors import Conflict, InvalidInput, NotFound, StateError
from tests.unit.automation.world import NAME, commit, spec

FAILED = {"pipeline": "loop.retrain", "state": "failed", "error": "no rows"}


def say(catalog: Catalog, kind: str, subject: str, cause: str = "", **body: Any) -> str:
    with catalog.write() as tx:
        return tx.append(kind, subject, body, cause=cause).id


def report(*triggers: Trigger, **options: Any) -> Automation:
    return ev.on(*triggers, **{"name": "report", **options}).run("report.py:report")


def outcomes(automation: AutomationService, name: str = "report") -> list[str]:
    return [firing.outcome for firing in reversed(automation.firings(name))]


def test_each_kind_of_event_fires_what_is_about_it_and_nothing_else(
    automation: AutomationService, catalog: Catalog
) -> None:
    told: list[tuple[Trigger, Trigger, str, str, dict[str, Any]]] = [
        (ev.new_data("flights"), ev.new_data("weather"), "dataset.VersionCommitted",
         "dataset:flights@3", {}),
        (ev.registered("churn"), ev.registered("chur"), "model.Registered", "model:churn/4", {}),
        (ev.alias_moved("churn@challenger"), ev.alias_moved("churn@champion"), "model.AliasMoved",
         "model:churn/4", {"alias": "challenger", "from": 0, "to": 4}),
        (ev.alert("delay/drift"), ev.alert("other/drift"), "alert.Fired", "alert:A",
         {"deployment": "delay", "monitor": "drift"}),
        (ev.gate_failed("churn"), ev.gate_failed("other"), "verdict.Given", "verdict:v",
         {"model": "churn", "passed": False}),
        (ev.rolled_back("delay"), ev.rolled_back("other"), "rollout.Aborted", "rollout:r",
         {"deployment": "delay"}),
        (ev.run_failed("retrain"), ev.run_failed("loop"), "run.Failed", "run:r", FAILED),
        (ev.webhook("push", secret="env:S"), ev.webhook("pull", secret="env:S"),
         "webhook.Received", "webhook:push", {"payload": {}}),
        (ev.files("raw/*.csv"), ev.files("raw/*.txt"), "files.Changed", "files:raw/*.csv", {}),
    ]  # fmt: skip
    for number, (wanted, other, *_) in enumerate(told):
        automation.automate(report(wanted, name=f"wanted-{number}"))
        automation.automate(report(other, name=f"other-{number}"))
    for _, _, kind, subject, body in told:
        say(catalog, kind, subject, **body)
    fired = automation.decide()
    assert sorted(f.loop for f in fired) == [f"wanted-{number}" for number in range(len(told))]
    assert {f.outcome for f in fired} == {"queued"}
    assert automation.decide() == []
    assert {kind for _, _, kind, _, _ in told} == set(KINDS) - {"trigger.Finished"}


def test_what_is_no_failure_fires_nothing(automation: AutomationService, catalog: Catalog) -> None:
    automation.automate(report(ev.run_failed(), ev.gate_failed(), ev.alias_moved("churn")))
    say(catalog, "run.Failed", "run:r", pipeline="p", state="killed")
    say(catalog, "verdict.Given", "verdict:v", model="churn", passed=True)
    say(catalog, "model.AliasMoved", "model:churn/4", alias="champion", to=0)
    assert automation.decide() == []
    say(catalog, "trigger.Finished", "firing:f", loop="nightly", outcome="failed", run="")
    assert len(automation.decide()) == 1  # it failed before there was a run


def test_a_filter_reads_the_body_of_the_event() -> None:
    def event(**body: Any) -> Event:
        return Event(seq=1, id="e", at=parse_instant("2013-01-01"), kind="run.Failed", subject="s",
                     actor="a", body=body)  # fmt: skip

    def holds(where: dict[str, Any], **body: Any) -> bool:
        return fits(Trigger(on="run_failed", where=where), event(**body))

    assert holds({"a": 1}, a=1)
    assert not holds({"a": 1}, a=True)
    assert not holds({"a": 1}, b=1)
    assert holds({"a.b": ["x", "y"]}, a={"b": "y"})
    assert not holds({"a.b": "y"}, a="y")
    assert holds({"a": {">": 1, "<=": 2}}, a=2)
    assert not holds({"a": {"<": 1}}, a="text")
    assert holds({"a": {"!=": "x"}}, a="y")
    assert holds({"a": None}, a=None)
    assert topics_of(event(state="failed", pipeline="x.y")) == [
        ("run_failed", "x.y"), ("run_failed", "y"), ("run_failed", "")
    ]  # fmt: skip


def test_a_schedule_in_a_zone_fires_once_also_when_the_clock_steps_back(
    automation: AutomationService, clock: ManualClock
) -> None:
    automation.automate(report(ev.schedule("30 2 * * *", zone="Europe/Paris", missed="all")))
    clock.set(parse_instant("2013-04-03T12:00"))
    fired = automation.decide()
    assert [f.scheduled_for.hour for f in fired] == [0, 0, 0]
    clock.set(parse_instant("2013-04-01T00:00"))
    assert automation.decide() == []
    for _ in range(24 * 3):
        clock.advance(hours=1)
        assert automation.decide() == []
    clock.set(parse_instant("2013-04-04T00:30"))
    assert [f.scheduled_for for f in automation.decide()] == [clock.now()]


def test_a_time_that_was_missed_and_is_to_be_skipped_is_skipped(
    automation: AutomationService, clock: ManualClock
) -> None:
    automation.automate(report(ev.schedule("0 3 * * *", missed="skip")))
    clock.advance(hours=12)
    assert automation.decide() == []
    clock.set(parse_instant("2013-04-02T03:00:20"))
    assert len(automation.decide()) == 1


def test_a_trigger_that_is_new_does_not_see_what_was_before(
    automation: AutomationService, catalog: Catalog
) -> None:
    say(catalog, "run.Failed", "run:1", **FAILED)
    automation.automate(report(ev.new_data("flights")))
    commit(catalog)
    say(catalog, "run.Failed", "run:2", **FAILED)
    automation.automate(report(ev.new_data("flights"), ev.run_failed()))
    again = AutomationService(catalog, EmbeddedAuthorizer())  # as after a restart
    assert [f.scheduled_for for f in again.decide()] == [
        catalog.events(kind="dataset.VersionCommitted")[0].at
    ]
    say(catalog, "run.Failed", "run:3", **FAILED)
    assert len(again.decide()) == 1


def test_events_close_together_are_one_firing(
    automation: AutomationService, catalog: Catalog, clock: ManualClock
) -> None:
    automation.automate(report(ev.new_data("flights"), debounce="10m"))
    first = commit(catalog, number=1)
    [firing] = automation.decide()
    assert firing.due_at == clock.now() + timedelta(minutes=10)
    assert automation.claim() is None
    clock.advance(minutes=9)
    second = commit(catalog, number=2)
    assert automation.decide() == []
    clock.advance(minutes=1)
    claimed = automation.claim()
    assert claimed is not None
    assert claimed.body == {"events": [first, second], "merged": 1}
    assert [event.id for event in automation.reasons(claimed.id)] == [first, second]


def test_what_comes_in_the_cooldown_or_above_the_budget_waits_and_is_not_lost(
    automation: AutomationService, catalog: Catalog, clock: ManualClock
) -> None:
    automation.automate(report(ev.run_failed(), cooldown="1h", budget="3 per day"))
    start = clock.now()
    worked, seen = [], 0
    for _ in range(36 * 2):
        say(catalog, "run.Failed", "run:r", **FAILED)
        automation.decide()
        while (firing := automation.claim()) is not None:
            worked.append((clock.now() - start) / timedelta(hours=1))
            seen += len(firing.body["events"])
            automation.finish(firing.id, "done")
        clock.advance(minutes=30)
    assert worked == [0, 1, 2, 24, 25, 26]
    [waiting] = [f for f in automation.firings("report") if f.outcome == "queued"]
    assert seen + 1 + waiting.body["merged"] + _cut(automation) == 36 * 2


def _cut(automation: AutomationService) -> int:
    """Events that are counted and not listed any more."""
    done = [f for f in automation.firings("report") if f.outcome == "done"]
    return sum(1 + f.body.get("merged", 0) - len(f.body["events"]) for f in done)


def test_the_time_that_is_free_keeps_cooldown_and_budget() -> None:
    rules = ev.on(ev.run_failed(), cooldown="1h", budget="2 per day").run("a.py:b")
    at = parse_instant("2013-04-01")
    assert free_at(rules, [], at) == at
    assert free_at(rules, [at], at) == at + timedelta(hours=1)
    two = [at, at + timedelta(hours=1)]
    assert free_at(rules, two, at + timedelta(hours=1)) == at + timedelta(days=1)
    assert free_at(rules, two, at + timedelta(days=9)) == at + timedelta(days=9)


@settings(max_examples=50)
@given(
    st.lists(st.floats(0, 365), max_size=200),
    st.sampled_from(["", "1h", "6h", "3d"]),
    st.sampled_from(["", "1 per day", "4 per month", "3 per week"]),
)
def test_a_year_of_noisy_events_never_breaks_the_limits_and_loses_none(
    days: list[float], cooldown: str, budget: str
) -> None:
    rules = ev.on(ev.run_failed(), cooldown=cooldown, budget=budget).run("a.py:b")
    start = parse_instant("2013-01-01")
    acts: list[datetime] = []
    answered = 0
    for event in (start + timedelta(days=day) for day in sorted(days)):
        if acts and acts[-1] > event:
            answered += 1  # it is one with the one that waits
            continue
        acts.append(free_at(rules, acts, event))
        answered += 1
    assert answered == len(days)
    gaps = [(b - a).total_seconds() for a, b in pairwise(acts)]
    assert all(gap >= rules.cooldown_s for gap in gaps)
    if rules.budget:
        spans = zip(acts, acts[rules.budget :], strict=False)
        assert all((b - a).total_seconds() >= rules.budget_s for a, b in spans)


def test_a_decider_that_dies_before_its_commit_loses_nothing(
    automation: AutomationService, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    automation.automate(report(ev.new_data("flights")))
    commit(catalog)

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("everloop.monitoring.ledger.put_cursors", dies)
        with pytest.raises(KeyboardInterrupt):
            automation.decide()
    assert automation.firings() == []
    again = AutomationService(catalog, EmbeddedAuthorizer())
    assert len(again.decide()) == 1
    assert automation.decide() == []  # the other one read it, and this one sees that


def test_what_it_did_itself_does_not_fire_it_again_unless_allowed(
    automation: AutomationService, catalog: Catalog
) -> None:
    automation.automate(report(ev.new_data("flights")))
    automation.automate(report(ev.new_data("flights"), name="twice", depth=2))
    commit(catalog)
    for round_ in range(3):
        automation.decide()
        while (firing := automation.claim()) is not None:
            told = catalog.events(subject=f"firing:{firing.id}")[0]
            with acting(cause=told.id):
                commit(catalog, number=10 + round_)
                automation.finish(firing.id, "done")
    automation.decide()
    assert outcomes(automation).count("done") + outcomes(automation, "twice").count("done") <= 8
    assert "guarded" in outcomes(automation)
    assert "guarded" in outcomes(automation, "twice")


def test_two_deciders_at_once_fire_once_and_merge_once(
    catalog: Catalog, clock: ManualClock
) -> None:
    services = [AutomationService(catalog, EmbeddedAuthorizer()) for _ in range(4)]
    services[0].automate(report(ev.new_data("flights"), name="now"))
    services[0].automate(report(ev.new_data("flights"), name="later", debounce="1h"))
    for number in range(5):
        commit(catalog, number=number)
    made: list[Firing] = []
    threads = [threading.Thread(target=lambda s=s: made.extend(s.decide())) for s in services]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(f.loop for f in made) == ["later"] + ["now"] * 5
    [later] = services[0].firings("later")
    assert later.body["merged"] == 4


def test_no_more_are_open_at_once_than_allowed(
    automation: AutomationService, catalog: Catalog
) -> None:
    automation.automate(report(ev.new_data("flights"), concurrency=2))
    automation.automate(report(ev.new_data("flights"), name="other"))
    for number in range(4):
        commit(catalog, number=number)
    automation.decide()
    taken = [firing for _ in range(8) if (firing := automation.claim(holder="h", lease_s=30))]
    assert sorted(f.loop for f in taken) == ["other", "report", "report"]
    mine = next(f for f in taken if f.loop == "report")
    automation.finish(mine.id, "waiting", fence=mine.fence)
    assert automation.claim() is None  # one that waits for an approval is open
    automation.finish(next(f for f in taken if f.loop == "other").id, "done")
    again = automation.claim()
    assert again is not None
    assert again.loop == "other"


def test_a_firing_belongs_to_one_holder_at_a_time(
    automation: AutomationService, catalog: Catalog, clock: ManualClock
) -> None:
    automation.automate(report(ev.new_data("flights")))
    commit(catalog)
    automation.decide()
    first = automation.claim(holder="elsewhere:1:1", lease_s=30)
    assert first is not None
    assert automation.recover() == []  # it may be alive
    assert automation.renew([first.id], "elsewhere:1:1", 30) == [first.id]
    assert automation.renew([first.id], "somebody else", 30) == []
    clock.advance(seconds=31)
    assert [f.id for f in automation.recover()] == [first.id]
    second = automation.claim(holder="b", lease_s=30)
    assert second is not None
    with pytest.raises(StateError, match="taken over"):
        automation.finish(first.id, "done", fence=first.fence)
    automation.finish(second.id, "done", fence=second.fence)


def test_work_that_is_cut_off_is_tried_three_times(
    automation: AutomationService, catalog: Catalog
) -> None:
    automation.automate(report(ev.new_data("flights")))
    commit(catalog)
    automation.decide()
    for outcome in ("queued", "queued", "failed"):
        firing = automation.claim(holder="h", lease_s=30)
        assert firing is not None
        assert automation.give_back(firing.id, firing.fence, "it died").outcome == outcome
    assert automation.claim() is None
    assert "3 tries" in automation.firings("report")[0].reason


def test_declaring_pausing_and_removing(automation: AutomationService, catalog: Catalog) -> None:
    made = automation.automate(report(ev.new_data("flights")))
    events = len(catalog.events())
    assert automation.automate(report(ev.new_data("flights"))) == made
    assert len(catalog.events()) == events
    automation.pause("report")
    commit(catalog)
    assert [f.outcome for f in automation.decide()] == ["paused"]
    assert automation.automate(report(ev.new_data("weather"))).paused  # a restart wakes nothing
    automation.pause("report", paused=False)
    commit(catalog, "weather")
    assert [f.outcome for f in automation.decide()] == ["queued"]
    automation.remove("report")
    assert automation.claim() is None
    with pytest.raises(NotFound):
        automation.automation("report")
    commit(catalog, "weather", 2)
    assert automation.decide() == []


def test_a_loop_and_an_automation_share_no_name(automation: AutomationService) -> None:
    automation.declare(spec())
    with pytest.raises(Conflict, match=NAME):
        automation.automate(report(ev.new_data("flights"), name=NAME))
    automation.automate(report(ev.new_data("flights"), name="other"))
    with pytest.raises(InvalidInput, match="name"):
        automation.automate(report(ev.new_data("flights"), name="run:x"))


def test_a_loop_takes_the_other_triggers_too(
    automation: AutomationService, catalog: Catalog
) -> None:
    automation.declare(spec(triggers=[ev.webhook("retrain", secret="env:S")]))
    event = say(catalog, "webhook.Received", "webhook:retrain", payload={})
    assert [(f.key, f.action) for f in automation.decide()] == [(event, "train")]


def test_a_person_fires_what_cools_down(automation: AutomationService, catalog: Catalog) -> None:
    automation.automate(report(ev.new_data("flights"), cooldown="1d"))
    commit(catalog)
    automation.decide()
    assert automation.fire("report", "to see").outcome == "queued"
    with pytest.raises(NotFound, match="report"):
        automation.fire("reprot")


def test_of_files_only_what_changes_is_told(
    automation: AutomationService, catalog: Catalog
) -> None:
    automation.automate(report(ev.files("raw/*.csv", where={"files": {">": 1}})))
    assert not automation.note_files("raw/*.csv", {"raw/a.csv": "1 1"})
    assert automation.decide() == []
    assert automation.note_files("raw/*.csv", {"raw/a.csv": "2 2", "raw/b.csv": "1 1"})
    assert not automation.note_files("raw/*.csv", {"raw/a.csv": "2 2", "raw/b.csv": "1 1"})
    assert len(automation.decide()) == 1
    body = catalog.events(kind="files.Changed")[0].body
    assert (body["added"], body["changed"], body["removed"]) == (["raw/b.csv"], ["raw/a.csv"], [])


@pytest.mark.parametrize(
    ("options", "arguments", "told"),
    [
        ({"concurrency": 0}, {}, "concurrency"),
        ({"depth": True}, {}, "depth"),
        ({"budget": "many"}, {}, "budget"),
        ({"cooldown": "soon"}, {}, "cooldown"),
        ({}, {"rows": object()}, "rows"),
        ({}, {"rows": float("nan")}, "rows"),
    ],
)
def test_a_wrong_automation_is_refused_where_it_is_written(
    options: dict[str, Any], arguments: dict[str, Any], told: str
) -> None:
    with pytest.raises(InvalidInput, match=told):
        ev.on(ev.new_data("flights"), **options).run("a.py:b", **arguments)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ev.on().run("a.py:b"),
        lambda: ev.on(ev.new_data("x")).run("nothing"),
        lambda: ev.on(ev.new_data("x")).notify("pigeon:home"),
        lambda: ev.on(ev.new_data("x")).notify("mail:nobody"),
        lambda: ev.on(ev.new_data("x")).notify("slack:"),
        lambda: ev.webhook("a b", secret="env:S"),
        lambda: ev.webhook("a", secret="the secret itself"),
        lambda: ev.new_data(" "),
        lambda: ev.run_failed(where={"a": {"~": 1}}),
        lambda: ev.run_failed(where={"a": {"b": object()}}),
        lambda: ev.schedule("0 3 * * *", missed="some"),  # type: ignore[arg-type]
    ],
)
def test_what_makes_no_sense_is_refused(make: Any) -> None:
    with pytest.raises(InvalidInput):
        make()


def test_arguments_are_held_against_the_pipeline() -> None:
    @ev.pipeline
    def nested(day: str, rows: int = 3, scheduled_for: str = "") -> None: ...

    on = ev.on(ev.new_data("flights"))
    assert isinstance(on, On)
    with pytest.raises(InvalidInput) as error:
        on.run(nested, row=4)
    assert {"pipeline", "row", "day"} <= {fault.path for fault in error.value.faults}


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    from everloop.automation import triggers

    before = dict(triggers._declared)
    yield
    triggers._declared.clear()
    triggers._declared.update(before)
