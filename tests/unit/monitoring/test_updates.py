"""What an update finds, restates, fires and clears; on both databases."""

from __future__ import annotations

import numpy as np
import pytest

from everloop.core.monitor import Monitor, Window
from everloop.errors import InvalidInput, NotFound
from everloop.monitoring.tally import metric_value, tally
from tests.unit.monitoring.world import DAY, NAME, START, World, performance, reference, rows_of


def live(world: World, days: int, *, skill: float, n: int = 400, version: int = 1) -> list[str]:
    """Serve and label `days` days, with an update each midnight; returns what alerts did."""
    moves = []
    for _ in range(days):
        day = world.clock.now()
        rows = rows_of(day, n, skill=skill)
        requests = world.answer(rows, version=version)
        world.label(requests, rows["label"], day + 1.5 * DAY)
        world.clock.advance(days=1)
        moves += [f"{alert.monitor} {alert.state}" for alert in world.service.update(NAME)]
    return moves


def window(world: World, start: object, monitor: str = "performance") -> Window:
    return next(w for w in world.service.windows(NAME, monitor) if w.start == start)


def test_a_window_holds_the_metric_of_its_rows(world: World) -> None:
    world.service.watch([performance(), performance(name="brier", metric="brier")])
    live(world, 4, skill=0.9)
    rows = rows_of(START, 400, skill=0.9)
    whole = tally(rows["value"], rows["label"])
    assert window(world, START).value == pytest.approx(metric_value("auc", whole))
    exact = np.mean((rows["value"] - rows["label"]) ** 2)
    assert window(world, START, "brier").value == pytest.approx(exact, rel=1e-12)
    assert window(world, START).rows == window(world, START).labels == 400


def test_labels_of_the_future_are_not_used_yet(world: World) -> None:
    world.service.watch([performance()])
    rows = rows_of(START, 400, skill=0.9)
    requests = world.answer(rows)
    world.label(requests, rows["label"], START + 3 * DAY)
    world.clock.set(START + 2 * DAY)
    world.service.update(NAME)
    assert window(world, START).labels == 0
    world.clock.set(START + 3 * DAY)
    world.service.update(NAME)
    assert window(world, START).labels == 400


def test_a_quiet_period_fires_nothing(world: World) -> None:
    world.service.watch([performance()])
    assert live(world, 14, skill=0.9) == []
    assert not any(w.breach for w in world.service.windows(NAME) if w.mature)


def test_a_drop_fires_once_and_recovery_clears(world: World) -> None:
    world.service.watch([performance()])
    assert live(world, 8, skill=0.2) == ["performance firing"]
    assert live(world, 10, skill=0.9) == ["performance ok"]
    alert = world.service.alerts(NAME)[0]
    assert alert.cleared_at is not None
    assert len(alert.evidence["windows"]) == 5
    kinds = [e.kind for e in world.catalog.events() if e.kind.startswith("alert.")]
    assert kinds == ["alert.Fired", "alert.Cleared"]


def test_immature_windows_do_not_fire(world: World) -> None:
    world.service.watch([performance(label_delay_s=30 * 86_400)])
    assert live(world, 12, skill=0.2) == []
    assert not any(w.mature for w in world.service.windows(NAME))


def test_late_labels_restate_a_window_and_keep_the_old_figure(world: World) -> None:
    world.service.watch([performance(metric="brier")])
    rows = rows_of(START, 400, skill=0.9)
    requests = world.answer(rows)
    world.label(requests[:300], rows["label"][:300], START + DAY)
    world.clock.set(START + 3 * DAY)
    world.service.update(NAME)
    before = window(world, START)
    assert before.mature
    world.label(requests[300:], rows["label"][300:], START + 4 * DAY)
    world.clock.set(START + 5 * DAY)
    world.another_process().update(NAME)  # one that has nothing in memory
    after = window(world, START)
    assert (before.labels, after.labels) == (300, 400)
    assert after.detail["restated"][0]["value"] == pytest.approx(before.value)
    exact = np.mean((rows["value"] - rows["label"]) ** 2)
    assert after.value == pytest.approx(exact)


def test_a_revised_label_restates_too(world: World) -> None:
    world.service.watch([performance(metric="brier")])
    rows = rows_of(START, 400, skill=0.9)
    requests = world.answer(rows)
    world.label(requests, rows["label"], START + DAY)
    world.clock.set(START + 3 * DAY)
    world.service.update(NAME)
    world.label(requests, 1 - rows["label"], START + 3 * DAY)
    world.service.update(NAME)
    exact = np.mean((rows["value"] - (1 - rows["label"])) ** 2)
    assert window(world, START).value == pytest.approx(exact)


def test_a_label_before_its_prediction_counts_once_that_is_there(world: World) -> None:
    world.service.watch([performance()])
    rows = rows_of(START, 400, skill=0.9)
    named = [f"{at}-{i}" for i, at in enumerate(rows["at"].tolist())]
    world.label(named, rows["label"], START)
    world.clock.advance(days=1)
    world.service.update(NAME)
    world.answer(rows)
    world.service.update(NAME)
    assert window(world, START).labels == 400


def test_nothing_new_reads_nothing(world: World) -> None:
    world.service.watch([performance()])
    live(world, 5, skill=0.9)
    world.service.update(NAME)
    world.reads.clear()
    seq = world.catalog.events(newest=True, limit=1)[0].seq
    assert world.service.update(NAME) == []
    assert world.reads == []
    assert world.catalog.events(newest=True, limit=1)[0].seq == seq


def test_an_update_reads_only_the_days_that_changed(world: World) -> None:
    world.service.watch([performance()])
    live(world, 10, skill=0.9, n=50)
    world.reads.clear()
    live(world, 1, skill=0.9, n=50)
    assert min(since for since, _ in world.reads) >= START + 8 * DAY


def test_shadow_answers_are_not_watched(world: World) -> None:
    world.service.watch([performance()])
    rows = rows_of(START, 400, skill=0.9)
    world.answer(rows)
    world.answer(rows_of(START, 400, skill=0.1), version=2, arm="shadow", tag="s")
    world.add_version(2, b"")
    world.clock.advance(days=1)
    world.service.update(NAME)
    assert window(world, START).rows == 400


def test_a_promotion_clears_and_starts_anew(world: World) -> None:
    world.service.watch([performance()])
    assert live(world, 8, skill=0.2) == ["performance firing"]
    world.add_version(2, reference(skill=0.9, seed=5))
    world.promote(2)
    # The windows of the old champion are still bad, and still mature; they do not count.
    moves = live(world, 8, skill=0.9, version=2)
    assert moves == ["performance ok"]
    cleared = [e for e in world.catalog.events() if e.kind == "alert.Cleared"]
    assert cleared[0].body["reason"] == "version 2 was promoted"
    assert {w.detail["version"] for w in world.service.windows(NAME)} == {1, 2}


def test_the_bound_comes_from_the_champion_of_the_time(world: World) -> None:
    world.service.watch([performance()])
    live(world, 3, skill=0.9)
    world.add_version(2, reference(skill=0.4, seed=5))
    world.promote(2)
    live(world, 4, skill=0.9, version=2)
    bounds = {w.detail["version"]: w.bound for w in world.service.windows(NAME)}
    assert bounds[1] is not None
    assert bounds[2] is not None
    assert bounds[2] < bounds[1] - 0.05


def test_a_version_without_reference_is_watched_by_an_explicit_bound(world: World) -> None:
    world.add_version(1, b"")
    world.service.watch([performance(bound=0.7), performance(name="band")])
    moves = live(world, 8, skill=0.1)
    assert moves == ["performance firing"]
    assert "no bound" in window(world, START, "band").detail["why"]


def test_too_few_rows_tell_nothing(world: World) -> None:
    world.service.watch([performance(bound=0.99, min_rows=1000)])
    assert live(world, 8, skill=0.1) == []
    assert window(world, START).value is None


def test_weeks_are_windows_too_and_begin_on_mondays(world: World) -> None:
    world.service.watch([performance(window_s=7 * 86_400, fire=(1, 1), clear=(0, 1))])
    moves = live(world, 23, skill=0.2, n=100)
    assert moves == ["performance firing"]
    found = world.service.windows(NAME)
    assert {w.start.weekday() for w in found} == {0}
    assert found[0].rows == 700


def test_hours_are_windows_too(world: World) -> None:
    world.service.watch([performance(window_s=6 * 3600, min_rows=20)])
    live(world, 2, skill=0.9)
    found = world.service.windows(NAME)
    assert [w.start.hour for w in found[:4]] == [0, 6, 12, 18]
    assert sum(w.rows for w in found) == 800


def test_a_monitor_declared_later_judges_what_was_served_before(world: World) -> None:
    live(world, 8, skill=0.2)
    world.service.watch([performance()])
    assert [alert.state for alert in world.service.update(NAME)] == ["firing"]
    assert len(world.service.windows(NAME)) == 8


def test_a_changed_monitor_is_judged_anew(world: World) -> None:
    world.service.watch([performance(bound=0.1)])
    live(world, 8, skill=0.2)
    world.service.watch([performance(bound=0.9)])
    assert [alert.state for alert in world.service.update(NAME)] == ["firing"]


def test_declaring_the_same_again_changes_nothing(world: World) -> None:
    world.service.watch([performance()])
    seq = world.catalog.events(newest=True, limit=1)[0].seq
    world.service.watch([performance()])
    assert world.catalog.events(newest=True, limit=1)[0].seq == seq


def test_a_removed_monitor_clears_its_alert(world: World) -> None:
    world.service.watch([performance()])
    live(world, 8, skill=0.2)
    world.service.unwatch(NAME, "performance")
    assert world.service.alerts(NAME, open_only=True) == []
    with pytest.raises(NotFound, match="performance"):
        world.service.unwatch(NAME, "performance")


def test_drift_and_quality_stay_silent_where_nothing_changed(world: World) -> None:
    world.service.watch(
        [
            Monitor(name="f", deployment=NAME, kind="feature_drift", metric="distance", floor=0.05),
            Monitor(
                name="p", deployment=NAME, kind="prediction_drift", metric="distance", floor=0.05
            ),
            Monitor(name="q", deployment=NAME, kind="quality", metric="any", floor=0.01),
        ]
    )
    assert live(world, 10, skill=0.9) == []
    # Each is a test at 5 %: one of thirty windows may be beyond; hysteresis is there for that.
    assert sum(w.breach for w in world.service.windows(NAME)) <= 1


def test_each_kind_finds_its_own_fault(world: World) -> None:
    common = {"deployment": NAME, "fire": (1, 1), "clear": (0, 3), "label_delay_s": 0}
    world.service.watch(
        [
            Monitor(name="f", kind="feature_drift", metric="distance", floor=0.05, **common),
            Monitor(name="p", kind="prediction_drift", metric="distance", floor=0.05, **common),
            Monitor(name="q", kind="quality", metric="any", floor=0.01, **common),
        ]
    )
    rows = rows_of(START, 500, skill=0.9)
    rows["x"] = rows["x"] + 1
    rows["value"] = rows["value"] ** 2
    rows["carrier"] = np.where(np.arange(500) % 10 == 0, 99.0, rows["carrier"])
    world.answer(rows)
    world.clock.advance(days=1)
    assert [a.monitor for a in world.service.update(NAME)] == ["f", "p", "q"]
    worst = {w.monitor: w.detail["worst"][0]["name"] for w in world.service.windows(NAME)}
    assert worst == {"f": "x", "p": "score", "q": "carrier unseen"}


def test_two_updaters_at_once_fire_once(world: World) -> None:
    world.service.watch([performance()])
    live(world, 5, skill=0.2)
    day = world.clock.now()
    rows = rows_of(day, 400, skill=0.2)
    world.label(world.answer(rows), rows["label"], day + DAY)
    world.clock.advance(days=2)
    first, second = world.another_process(), world.another_process()
    state = second._updater._look(NAME)
    moved = first.update(NAME)
    # The second looked before the first wrote; it must notice and leave it at that.
    assert second._updater._write(state, {}, []) == []
    assert [alert.state for alert in moved] in (["firing"], [])
    assert len(world.service.alerts(NAME)) == 1


def test_measure_merges_days(world: World) -> None:
    world.service.watch([performance()])
    live(world, 6, skill=0.9)
    days = [rows_of(START + d * DAY, 400, skill=0.9) for d in range(4)]
    value = np.concatenate([day["value"] for day in days])
    label = np.concatenate([day["label"] for day in days])
    found = world.service.measure(NAME, START, START + 4 * DAY)
    assert found["labels"] == 1600
    assert found["brier"] == pytest.approx(np.mean((value - label) ** 2))


def test_every_fault_of_monitors_is_told_at_once(world: World) -> None:
    wrong = [
        performance(metric="auk", window_s=5000),
        performance(name="b", fire=(4, 3)),
        performance(name="c", fire=(2, 5), clear=(3, 5)),
        Monitor(name="d", deployment="", kind="quality", metric="any", min_rows=0),
    ]
    with pytest.raises(InvalidInput) as caught:
        world.service.watch(wrong)
    paths = [fault.path for fault in caught.value.faults]
    assert paths == ["performance.metric", "performance.window_s", "b.fire", "c.clear", "d", "d"]
    assert world.service.monitors(NAME) == []


def test_nobody_is_watched_before_there_is_anything(world: World) -> None:
    assert world.service.update(NAME) == []
    assert world.service.windows(NAME) == []
    assert world.service.measure(NAME, START, START + DAY)["auc"] is None
