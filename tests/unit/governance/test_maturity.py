"""The grades of a loop: each rests on records, and what is not recorded is not known."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import everloop as ev
from everloop.core.artifact import ModelArtifact
from everloop.core.deploy import Rollout
from everloop.core.events import CI_FINISHED, PACKAGE_BUILT, PACKAGE_PROMOTED, Event
from everloop.core.gate import Gate, GateKind, GateResult, Verdict
from everloop.core.machines import RolloutPlan, RolloutState
from everloop.core.model import ModelVersion, Signature
from everloop.core.policy import LoopSpec
from everloop.core.run import Run, RunInput
from everloop.core.schema import Field, Schema
from everloop.errors import InvalidInput, NotFound
from everloop.governance.maturity import (
    Records,
    Trained,
    TrainingData,
    Watched,
    grade,
)
from everloop.governance.render import maturity_text
from everloop.workspace import Workspace

AT = datetime(2013, 6, 1, tzinfo=UTC)
ITSELF = "loop:delay"


def spec(**more: Any) -> LoopSpec:
    return ev.loop("delay", owner="o", pipeline="loop.py:retrain", **more)


def event(seq: int, kind: str, subject: str, actor: str = ITSELF, **body: Any) -> Event:
    return Event(seq=seq, id=f"E{seq}", at=AT, kind=kind, subject=subject, actor=actor, body=body)


def verdict(*kinds: GateKind) -> Verdict:
    results = tuple(
        GateResult(
            gate=Gate(kind=kind), passed=True, estimate=1, low=0, high=2, rows=9, reason="seen"
        )
        for kind in kinds
    )
    return Verdict(
        id="V", model="delay", candidate=2, champion=1, passed=True, results=results, at=AT
    )


def rollout(stage: Any = "promoted", identifier: str = "R", **more: Any) -> Rollout:
    given: dict[str, Any] = {"plan": RolloutPlan(p99_ms=50), "verdict": "V", **more}
    return Rollout(
        id=identifier, deployment="delay", champion=1, candidate=2,
        state=RolloutState(stage, 0, 0.0), started_at=AT, updated_at=AT, **given,
    )  # fmt: skip


def trained(run: str, trigger: str, code: str = "c0de") -> Trained:
    return Trained(run=run, trigger=trigger, cause="E0", code=code, at=AT)


EVENTS = {
    CI_FINISHED: (event(1, CI_FINISHED, "code:c0de", "ci", outcome="passed", code="c0de"),),
    PACKAGE_BUILT: (event(2, PACKAGE_BUILT, "package:delay", "ann", code="c0de"),),
    PACKAGE_PROMOTED: (
        event(3, PACKAGE_PROMOTED, "package:delay", "ann", environment="staging"),
        event(4, PACKAGE_PROMOTED, "package:delay", "ann", environment="production"),
    ),
    "deployment.Created": (event(5, "deployment.Created", "deployment:delay", version=1),),
    "verdict.Given": (event(6, "verdict.Given", "verdict:V", model="delay"),),
    "rollout.Started": (event(7, "rollout.Started", "rollout:R"),),
    "rollout.Promoted": (event(8, "rollout.Promoted", "rollout:R"),),
}
WHOLE = Records(
    spec=spec(
        watch=[ev.performance("auc"), ev.quality()],
        retrain_on=[ev.alert("performance")],
        rollout=ev.canary(abort_on=[ev.slo("p99_ms < 50")]),
    ),
    at=AT,
    live=ModelVersion(
        name="delay", version=2, digest="d", files=(), flavor="lightgbm", tier="safe",
        signature=Signature(Schema((Field("x", "float64"),)), Schema((Field("y", "float64"),))),
        feature_set="delay-features@1", run_id="T2", created_at=AT, updated_at=AT,
    ),
    live_run=Run(
        id="T2", experiment="0", state="finished", code="c0de",
        git={"commit": "a" * 40, "dirty": "no"},
        environment={"python": "3.12"},
        inputs=(RunInput(dataset="flights", version=3, digest="d"),),
        metrics={"brier": 0.1}, actor=ITSELF, started_at=AT, ended_at=AT + timedelta(minutes=1),
    ),
    has_features=True,
    steps=3,
    data=(TrainingData(ref="flights@3", rules=7, dropped=12),),
    trainings=(trained("T1", "first model"), trained("T2", "alert performance")),
    tried=(trained("T0", ""),),
    verdicts=(verdict("beats_champion", "no_group_worse"),),
    rollouts=(rollout(),),
    watched=(
        Watched(monitor="performance", kind="performance", windows=9, last=AT),
        Watched(monitor="quality", kind="quality", windows=9, last=AT),
    ),
    events=EVENTS,
)  # fmt: skip
NOTHING = Records(spec=spec(), at=AT)


def grades(records: Records) -> dict[int, str]:
    return {item.number: item.grade for item in grade(records).items}


def with_events(**changes: Event | None) -> Records:
    """The whole with the events of some kinds replaced, or gone."""
    events = dict(EVENTS)
    for name, new in changes.items():
        kind = name.replace("_", ".", 1)
        events[kind] = () if new is None else (new,)
    return msgspec.structs.replace(WHOLE, events=events)


def test_all_that_is_wanted_is_the_second_level() -> None:
    found = grade(WHOLE)
    assert [item.grade for item in found.items] == ["met"] * 12
    assert (found.level, found.name, found.lacks) == (2, "CI/CD automation", ())
    text = maturity_text(found)
    assert text.startswith("# delay: level 2, CI/CD automation\n\nOf 12 items 12 met, 0 not met")
    assert "run T2: commit aaaaaaaaaaaa" in text
    assert "event E4 of 2013-06-01: delay" in text
    assert "to do" not in text


def test_nothing_recorded_is_nothing_known() -> None:
    found = grade(NOTHING)
    assert (found.level, found.name) == (0, "manual")
    assert found.lacks == (4, 5, 6, 7, 8, 11)
    # What is not declared is known: nobody watches and nothing is taken out.
    declared = {5, 9, 10}
    assert {n for n, g in grades(NOTHING).items() if g == "not met"} == declared
    assert "met" not in grades(NOTHING).values()
    assert "nothing is recorded of it" in maturity_text(found)


_CHANGED: list[tuple[int, str, Records]] = [
    (1, "not known", with_events(ci_Finished=None)),
    (1, "not met", with_events(ci_Finished=event(
        1, CI_FINISHED, "code:c0de", outcome="refused", code="c0de"))),
    (1, "not met", with_events(ci_Finished=event(
        1, CI_FINISHED, "code:feed", outcome="passed", code="feed"))),
    (1, "not met", msgspec.structs.replace(WHOLE, live_run=msgspec.structs.replace(
        WHOLE.live_run, git={"commit": "a" * 40, "dirty": "yes"}))),
    (1, "not known", msgspec.structs.replace(WHOLE, live_run=msgspec.structs.replace(
        WHOLE.live_run, git={}))),
    (2, "not known", with_events(package_Built=None, package_Promoted=None)),
    (2, "not met", with_events(package_Promoted=None)),
    (2, "not met", with_events(package_Promoted=event(
        3, PACKAGE_PROMOTED, "package:delay", environment="dev"))),
    (3, "not met", with_events(package_Promoted=event(
        3, PACKAGE_PROMOTED, "package:delay", environment="staging"))),
    (3, "not known", with_events(deployment_Created=None)),
    (3, "not met", msgspec.structs.replace(WHOLE, rollouts=(rollout(plan=RolloutPlan()),))),
    (4, "not met", msgspec.structs.replace(WHOLE, trainings=(trained("T1", "hand ann"),))),
    (4, "not known", msgspec.structs.replace(WHOLE, trainings=())),
    (5, "not met", msgspec.structs.replace(
        WHOLE, data=(*WHOLE.data, TrainingData(ref="planes@1", rules=0, dropped=0)))),
    (5, "not known", msgspec.structs.replace(WHOLE, data=())),
    (5, "not known", msgspec.structs.replace(WHOLE, watched=tuple(
        msgspec.structs.replace(w, windows=0, last=None) for w in WHOLE.watched))),
    (6, "not met", msgspec.structs.replace(WHOLE, rollouts=(rollout(verdict=""), rollout()))),
    (6, "not met", msgspec.structs.replace(WHOLE, verdicts=(verdict("beats_champion"),))),
    (7, "not met", msgspec.structs.replace(WHOLE, has_features=False)),
    (7, "not known", msgspec.structs.replace(WHOLE, live=None)),
    (8, "not met", msgspec.structs.replace(WHOLE, live_run=None)),
    (8, "not met", msgspec.structs.replace(WHOLE, steps=0)),
    (9, "not met", with_events(rollout_Started=event(7, "rollout.Started", "rollout:R", "ann"))),
    (9, "not met", msgspec.structs.replace(WHOLE, spec=spec())),
    (9, "met", msgspec.structs.replace(
        WHOLE, spec=spec(), rollouts=(rollout(), rollout("aborted", "S", reason="too slow")))),
    (10, "not met", msgspec.structs.replace(WHOLE, spec=spec(), trainings=())),
    (10, "not known", msgspec.structs.replace(WHOLE, trainings=(trained("T1", "schedule x"),))),
    (11, "not known", msgspec.structs.replace(WHOLE, tried=())),
    (11, "met", msgspec.structs.replace(WHOLE, tried=(trained("T0", "", "other"),))),
    (11, "not met", msgspec.structs.replace(
        with_events(ci_Finished=None), tried=(trained("T0", "", "other"),))),
    (12, "not met", with_events(rollout_Promoted=event(
        8, "rollout.Promoted", "rollout:R", "ann"))),
    (12, "not known", msgspec.structs.replace(WHOLE, rollouts=())),
]  # fmt: skip


@pytest.mark.parametrize(("number", "wanted", "records"), _CHANGED)
def test_an_item_is_graded_on_what_is_recorded_of_it(
    number: int, wanted: str, records: Records
) -> None:
    assert grades(records)[number] == wanted


def test_the_first_level_does_not_ask_for_packages() -> None:
    events = {k: v for k, v in EVENTS.items() if not k.startswith(("ci.", "package."))}
    found = grade(msgspec.structs.replace(WHOLE, events=events))
    assert (found.level, found.name, found.lacks) == (1, "pipeline automation", (1, 2, 3))


_FIELDS = [f for f in Records.__struct_fields__ if f not in ("spec", "at", "events")]


@given(st.sets(st.sampled_from(_FIELDS)), st.sets(st.sampled_from(sorted(EVENTS))))
def test_what_is_met_has_evidence_and_what_is_not_says_what_to_do(
    gone: set[str], kinds: set[str]
) -> None:
    records = msgspec.structs.replace(
        WHOLE,
        events={kind: found for kind, found in EVENTS.items() if kind not in kinds},
        **{name: getattr(NOTHING, name) for name in gone},
    )
    for item in grade(records).items:
        for condition in item.conditions:
            assert bool(condition.todo) == (condition.grade != "met")
            assert condition.evidence or condition.grade != "met"
    assert maturity_text(grade(records))


def test_a_workspace_is_graded_by_its_log(tmp_path: Any) -> None:
    with ev.open(tmp_path, actor="ann") as workspace:
        with pytest.raises(NotFound, match="no loop"):
            workspace.governance.maturity()
        workspace.automation.declare(spec())
        assert workspace.governance.maturity().level == 0
        _tell(workspace, CI_FINISHED, "code:c0de", loop="delay", outcome="passed", code="c0de")
        _tell(workspace, CI_FINISHED, "code:feed", loop="other", outcome="failed", code="feed")
        _tell(workspace, PACKAGE_BUILT, "package:delay", code="c0de")
        _tell(workspace, PACKAGE_PROMOTED, "package:delay", environment="production")
        _tell(workspace, PACKAGE_PROMOTED, "package:other", environment="staging")
        found = {item.number: item for item in workspace.governance.maturity("delay").items}
        assert found[1].conditions[1].grade == "not known"  # nothing is live: which code is it?
        assert len(found[1].conditions[1].evidence) == 1
        assert found[2].grade == "met"
        assert [len(condition.evidence) for condition in found[2].conditions] == [1, 1]
        assert found[3].conditions[0].grade == "met"
        workspace.automation.declare(msgspec.structs.replace(spec(), name="other"))
        with pytest.raises(InvalidInput, match="delay, other"):
            workspace.governance.maturity()


def test_grades_are_the_same_embedded_and_through_a_server(ws: Workspace) -> None:
    ws.automation.declare(spec(watch=[ev.performance("auc")]))
    ws.registry.register("delay", ModelArtifact(flavor="lightgbm", files={"model.txt": b"tree"}))
    found = {item.number: item for item in ws.governance.maturity("delay").items}
    assert found[8].grade == "not known"  # nothing serves yet
    assert found[10].grade == "not met"
    assert found[12].conditions[0].evidence == ()


def _tell(workspace: Workspace, kind: str, subject: str, **body: Any) -> None:
    assert workspace.catalog is not None
    with workspace.catalog.write() as tx:
        tx.append(kind, subject, body)
