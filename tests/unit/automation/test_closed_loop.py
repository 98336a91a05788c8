"""The loop closes with every real room: drop, alert, trigger, run, verdict, rollout, promotion."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pyarrow as pa
import pytest

from everloop.automation.holdout import group_of
from everloop.core.context import acting, using
from everloop.core.ids import new_ids
from everloop.governance.render import story_text, why_text
from everloop.pipelines.load import load_pipeline
from tests.unit.automation.closed import DAY, NAME, START, ClosedWorld


def kinds(world: ClosedWorld, *wanted: str) -> list[str]:
    catalog = world.workspace.catalog
    assert catalog is not None
    return [event.kind for event in catalog.events() if event.kind in wanted]


def test_the_loop_closes_without_a_person(tmp_path: Path) -> None:
    world = ClosedWorld(tmp_path, shift=8)
    world.begin()
    assert world.champion() == 1
    first = world.workspace.evaluation.verdicts(NAME)
    assert first[0].passed
    assert first[0].reasons == ("no champion yet, and nothing was asked yet",)
    assert first[0].holdout["not_judged"] == ["beats_champion:brier", "no_group_worse:brier:shop"]
    assert world.live(8) == []  # all is well

    told = world.live(18)
    # The first candidate learnt from days before the change alone: nothing better, refused.
    assert "refused" in told[0]
    assert "passed the gate" in told[-1]
    assert world.champion() > 1
    promoted = kinds(world, "rollout.Started", "rollout.Advanced", "rollout.Promoted")
    assert promoted == ["rollout.Started", "rollout.Advanced", "rollout.Promoted"]
    refused = [v for v in world.workspace.evaluation.verdicts(NAME) if not v.passed]
    for verdict in refused:
        version = world.workspace.registry.version(NAME, verdict.candidate)
        assert version.state == "archived"
    assert [a.state for a in world.workspace.monitoring.alerts(NAME)] == ["ok"]
    assert kinds(world, "alert.Fired", "alert.Cleared") == ["alert.Fired", "alert.Cleared"]

    before = world.workspace.monitoring.measure(NAME, START + 9 * DAY, START + 12 * DAY)
    world.live(6)
    now = world.clock.now()
    after = world.workspace.monitoring.measure(NAME, now - 5 * DAY, now - DAY)
    assert before["auc"] is not None
    assert after["auc"] is not None
    assert after["auc"] > before["auc"] + 0.1
    _everything_is_told(world)
    world.close()


def _everything_is_told(world: ClosedWorld) -> None:
    governance = world.workspace.governance
    story = governance.story(NAME)
    chain = [line.kind for line in story]
    start = chain.index("alert.Fired")
    assert chain[start + 1] == "trigger.Fired"
    for earlier, later in (
        ("trigger.Fired", "run.Started"),
        ("run.Started", "verdict.Given"),
        ("verdict.Given", "rollout.Started"),
        ("rollout.Started", "rollout.Promoted"),
    ):
        assert chain.index(earlier, start) < chain.index(later, start)
    by_event = {line.event: line for line in story}
    line = next(line for line in story if line.kind == "rollout.Promoted")
    roots = [line.kind]
    while line.cause in by_event:
        line = by_event[line.cause]
        roots.append(line.kind)
    assert roots[-1] == "alert.Fired"  # from the promotion back to what caused it all
    text = story_text(story)
    assert "was refused against version 1" in text
    assert "is champion now" in text

    levels = {level.name: level for level in governance.service_levels(NAME)}
    assert levels["prediction"].measured_s == pytest.approx(900e-6)
    assert levels["deployment"].measured_s == 2 * 86_400
    assert all(level.kept for level in levels.values())

    now = world.clock.now()
    log = world.workspace.predictions.read(NAME, since=now - DAY, until=now)
    why = governance.why(log.column("id")[0].as_py())
    assert why.version.version == world.champion()
    assert why.verdict is not None
    assert why.verdict.passed
    assert why.run is not None
    assert why.run.pipeline.endswith("retrain")
    assert why.run.code
    assert [feature.name for feature in why.features] == ["price", "weather"]
    assert why.owners["loop"] == "ops@example.org"
    assert "feature set" in why.not_stated
    assert f"model {why.version.ref}" in why_text(why)

    card = governance.card(NAME, world.champion())
    for said in ("how much will sell", "ops@example.org", "passed against version 1", "safe"):
        assert said in card
    assert "- Commit" in card.split("## Not stated")[1]


def test_a_rollout_waits_for_the_approval_that_its_alias_asks_for(tmp_path: Path) -> None:
    world = ClosedWorld(tmp_path, shift=8)
    world.begin()
    registry = world.workspace.registry
    registry.protect(NAME, "champion", ["beats_champion:brier", "no_group_worse"], approvals=1)
    world.live(26)
    [rollout] = world.workspace.deployment.rollouts(NAME, open_only=True)
    assert rollout.state.stage == "canary"
    assert world.champion() == 1
    assert registry.missing_for(NAME, "champion", rollout.candidate) == ["1 of 1 approvals"]
    with acting(actor="bob"):
        registry.approve(NAME, rollout.candidate)
    world.live(1)
    assert world.champion() == rollout.candidate
    [_, moved] = registry.alias_history(NAME, "champion")
    assert moved.actor == f"loop:{NAME}"
    assert moved.evidence == rollout.verdict
    world.close()


def test_a_worse_candidate_is_refused_and_the_champion_stays(tmp_path: Path) -> None:
    # It learns from one day with far too many trees, on an unchanged truth.
    world = ClosedWorld(tmp_path, shift=1000, memory=6)
    world.begin()
    world.live(12)
    text = world.file.read_text().replace("timedelta(days=6)", "timedelta(days=1)")
    world.file.write_text(text.replace("trees: int = 20", "trees: int = 300"))
    world.workspace.automation.fire(NAME, "a try")
    told = world.live(1)
    assert len(told) == 1
    assert "was refused" in told[0]
    assert world.champion() == 1
    assert world.workspace.registry.version(NAME, 2).state == "archived"
    assert kinds(world, "rollout.Started") == []
    verdict = world.workspace.evaluation.verdicts(NAME, 2)[0]
    assert verdict.holdout["answered_by_champion"] > 0
    assert verdict.results[0].reason
    world.close()


def test_a_rerun_with_nothing_changed_promotes_nothing_and_spends_no_hold_out(
    tmp_path: Path,
) -> None:
    world = ClosedWorld(tmp_path, shift=1000)
    world.begin()
    world.live(9)
    text = world.file.read_text()
    # The same rows as those of the first model, so the same bytes.
    world.file.write_text(text.replace("until = until.replace(", "until = START.replace("))
    world.workspace.automation.fire(NAME, "again")
    [told] = world.live(1)
    assert "the same model as version 1: nothing to promote" in told
    evaluation = world.workspace.evaluation
    [verdict] = evaluation.verdicts(NAME, 2)
    assert not verdict.passed
    assert verdict.results == ()
    now = world.clock.now()
    assert evaluation.uses(NAME, now - 8 * DAY, now).holdout == 0
    assert world.champion() == 1

    world.file.write_text(text.replace("trees: int = 20", "trees: int = 25"))
    for use in (1, 2):
        world.workspace.automation.fire(NAME, "a try")
        world.live(1)
        [verdict] = evaluation.verdicts(NAME, 2 + use)
        assert (verdict.holdout["use"], verdict.holdout["attempt"]) == (use, use)
        assert len(verdict.holdout["digest"]) == 64
        assert [one["version"] for one in verdict.holdout["models"]] == [2 + use, 1]
        assert verdict.holdout["slices"]["tried"] > 4
    assert "version 2 was refused against version 1: the same model" in story_text(
        world.workspace.governance.story(NAME)
    )
    world.close()


def test_the_first_model_does_not_go_live_against_its_own_gates(tmp_path: Path) -> None:
    known = 'ev.answers("a high price", {"price": 3}, "> 0.5"),'
    world = ClosedWorld(tmp_path, gate=f"ev.max_size_mb(1e-6), {known}")
    world.begin()
    [firing] = world.workspace.automation.firings(NAME)
    assert firing.outcome == "failed"
    assert "was refused: its files have" in firing.reason
    [verdict] = world.workspace.evaluation.verdicts(NAME)
    assert [result.passed for result in verdict.results] == [False, True]
    assert world.workspace.deployment.deployments() == []
    automation = world.workspace.automation
    spec = automation.loop(NAME)
    automation.declare(msgspec.structs.replace(spec, gates=spec.gates[1:]))
    world.clock.set(world.clock.now() + DAY)
    world.begin()
    assert world.champion() == 2
    world.close()


def test_a_pipeline_that_raises_fails_its_firing_and_not_the_loop(tmp_path: Path) -> None:
    world = ClosedWorld(tmp_path, broken="if until < START: raise RuntimeError('no disk')")
    world.begin()
    world.live(3)
    world.workspace.automation.fire(NAME, "a try")
    told = world.live(2)
    assert len(told) == 1
    assert "RuntimeError" in told[0]
    firing = world.workspace.automation.firings(NAME)[0]
    assert firing.outcome == "failed"
    assert kinds(world, "run.Failed") == ["run.Failed"]
    assert world.champion() == 1
    world.close()


def test_a_candidate_that_is_too_slow_is_taken_out(tmp_path: Path) -> None:
    world = ClosedWorld(tmp_path, shift=3)
    world.begin()
    while not kinds(world, "rollout.Started"):
        world.live(1)
    world.latency_us = 900_000
    world.live(3)
    assert kinds(world, "rollout.Aborted") == ["rollout.Aborted"]
    assert world.champion() == 1
    aborted = world.workspace.deployment.rollouts(NAME)[0]
    assert "p99" in aborted.reason
    world.close()


@pytest.mark.parametrize("days", [-30, 30])
def test_a_candidate_is_seen_whatever_time_its_requests_are_for(tmp_path: Path, days: int) -> None:
    world = ClosedWorld(tmp_path, shift=3)
    world.begin()
    while not kinds(world, "rollout.Started"):
        world.live(1)
    begun = world.workspace.deployment.rollouts(NAME)[0]
    at = world.clock.now() + days * DAY
    slow = pa.table(
        {
            "id": new_ids(200),
            "at": pa.array([at] * 200, pa.timestamp("us", tz="UTC")),
            "version": [begun.candidate] * 200,
            "value": [0.5] * 200,
            "latency_us": [900_000] * 200,
        }
    )
    world.workspace.predictions.log(NAME, slow)
    world.runner.tick()
    aborted = world.workspace.deployment.rollouts(NAME)[0]
    assert aborted.state.stage == "aborted"
    assert "p99 900.0 ms" in aborted.reason
    world.close()


def test_what_a_killed_supervisor_began_goes_on(tmp_path: Path) -> None:
    world = ClosedWorld(tmp_path)
    automation = world.workspace.automation
    automation.decide()
    claimed = automation.claim()  # and then the process is gone
    assert claimed is not None
    world.runner.tick()
    assert automation.firings(NAME)[0].outcome == "running"
    automation.recover()
    world.runner.tick()
    assert automation.firings(NAME)[0].outcome == "done"
    assert world.champion() == 1
    world.close()


def dies_after(monkeypatch: pytest.MonkeyPatch, service: object, method: str) -> None:
    """Let the runner's process end right after a call that was made durable."""
    real = getattr(service, method)

    def act(*args: object, **kwargs: object) -> None:
        real(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(service, method, act)


@pytest.mark.parametrize(
    ("area", "method"),
    [("pipelines", "finish"), ("evaluation", "record"), ("deployment", "create")],
)
def test_a_first_model_whose_runner_died_is_neither_trained_nor_judged_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, area: str, method: str
) -> None:
    world = ClosedWorld(tmp_path)
    with monkeypatch.context() as patch:
        dies_after(patch, getattr(world.workspace, area), method)
        with pytest.raises(KeyboardInterrupt):
            world.begin()
    world.runner.recover()
    [finished] = world.runner.tick().finished
    assert finished.outcome == "done"
    assert world.champion() == 1
    once = ["run.Started", "model.Registered", "verdict.Given", "deployment.Created"]
    assert kinds(world, *once) == once
    world.close()


@pytest.mark.parametrize(
    ("area", "method"), [("evaluation", "record"), ("deployment", "start_rollout")]
)
def test_a_candidate_whose_runner_died_keeps_the_verdict_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, area: str, method: str
) -> None:
    world = ClosedWorld(tmp_path, memory=3)
    world.begin()
    world.live(8)
    with monkeypatch.context() as patch:
        dies_after(patch, getattr(world.workspace, area), method)
        with pytest.raises(KeyboardInterrupt):
            world.live(18)
    trained = kinds(world, "run.Started", "model.Registered", "verdict.Given")
    world.runner.recover()
    [finished] = world.runner.tick().finished
    assert finished.outcome == "done"
    assert kinds(world, "run.Started", "model.Registered", "verdict.Given") == trained
    verdict = world.workspace.evaluation.verdicts(NAME)[-1]
    if verdict.passed:
        assert kinds(world, "rollout.Started") == ["rollout.Started"]
    else:
        assert "was refused" in finished.reason
        assert world.workspace.registry.version(NAME, verdict.candidate).state == "archived"
    world.close()


def test_a_model_that_somebody_registered_is_served_without_training_another(
    tmp_path: Path,
) -> None:
    world = ClosedWorld(tmp_path)
    with using(world.workspace):
        load_pipeline(f"{world.file}:retrain").run(until=START)
    [finished] = world.runner.tick().finished
    assert finished.reason == "demand/1 went live: there was no champion yet"
    assert world.champion() == 1
    assert kinds(world, "run.Started", "model.Registered") == ["run.Started", "model.Registered"]
    world.close()


class _Broken:
    def predict(self, matrix: object) -> object:
        raise ValueError("the model takes three columns")


def test_a_model_that_cannot_score_fails_its_firing_and_not_the_supervisor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = ClosedWorld(tmp_path)
    world.begin()
    world.live(10)
    monkeypatch.setattr(world.runner, "_load", lambda version: _Broken())
    world.workspace.automation.fire(NAME, "a try")
    assert world.live(1) == ["ValueError: the model takes three columns"]
    assert world.workspace.automation.firings(NAME)[0].outcome == "failed"
    assert world.champion() == 1
    world.close()


def test_a_request_that_is_no_object_belongs_to_no_group() -> None:
    rows = pa.table({"request": ['{"shop": "north"}', "oops", "[1]", ""]})
    assert group_of(rows, "shop").tolist() == ["north", "", "", ""]
