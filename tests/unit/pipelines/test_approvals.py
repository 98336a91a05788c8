"""A run waits for a person without a process, and goes on, fails or expires as was said."""

from __future__ import annotations

from pathlib import Path

import pytest

import everloop as ev
from everloop.core.context import acting, using
from everloop.core.time import ManualClock
from everloop.errors import (
    Conflict,
    GateRefused,
    InvalidInput,
    NotAllowed,
    NotFound,
    RunWaiting,
    StateError,
)
from everloop.pipelines.load import load_pipeline
from everloop.workspace import Workspace

FILE = Path(__file__).with_name("approval_loop.py")


def trained(ws: Workspace, run_id: str) -> list[str]:
    """What came of the step before the question, each time that the run went on."""
    return [s.outcome for s in ws.pipelines.steps(run_id) if s.step.endswith("train")]


def ask(name: str = "a", **arguments: object) -> str:
    """Start a run that waits; its id."""
    with pytest.raises(RunWaiting, match="promote") as waits:
        load_pipeline(f"{FILE}:ask").run(name=name, **arguments)
    return str(waits.value.details["run"])


def test_a_run_waits_and_goes_on_once_it_is_approved(ws: Workspace) -> None:
    run_id = ask()
    waiting = ws.tracking.run(run_id)
    assert (waiting.state, waiting.owner, waiting.ended_at) == ("waiting", "", None)
    assert ws.tracking.reap() == []  # nobody has to be alive for it
    [asked] = ws.approvals.approvals(state="asked")
    assert (asked.run_id, asked.question, asked.target) == (run_id, "promote?", f"{FILE}:ask")
    again = load_pipeline(f"{FILE}:ask")
    with pytest.raises(RunWaiting):
        again.run(resume=run_id)  # nobody has answered
    with acting(actor="reviewer"):
        given = ws.approvals.approve(run_id, "looks good")
    assert given.state == "approved"
    assert again.run(resume=run_id) == f"a {given.actor} looks good"
    assert trained(ws, run_id) == ["ran", "cached", "cached"]
    assert ws.tracking.run(run_id).state == "finished"
    assert ws.approvals.approvals(state="asked") == []


@pytest.mark.parametrize("expires_s", [-1.0, 1e300, float("nan")])
def test_a_wait_that_no_clock_can_tell_is_refused(ws: Workspace, expires_s: float) -> None:
    with pytest.raises(InvalidInput, match="cannot be asked"):
        ws.approvals.ask("a" * 32, 1, "a", "promote?", expires_s=expires_s)


def test_an_answer_is_given_once(ws: Workspace) -> None:
    run_id = ask()
    ws.approvals.approve(run_id)
    with pytest.raises(Conflict, match="approved by"):
        ws.approvals.approve(run_id)
    with pytest.raises(Conflict, match="approved by"):
        ws.approvals.refuse(run_id, "too late")
    with pytest.raises(NotFound):
        ws.approvals.approve("nothing")


def test_a_refused_run_fails_with_the_reason(ws: Workspace) -> None:
    run_id = ask()
    with pytest.raises(InvalidInput, match="why"):
        ws.approvals.refuse(run_id, " ")
    ws.approvals.refuse(run_id, "the data is old")
    found = ws.tracking.run(run_id)
    assert found.state == "failed"
    assert "the data is old" in found.error
    with pytest.raises(GateRefused, match="the data is old"):
        load_pipeline(f"{FILE}:ask").run(resume=run_id)


def test_an_answer_that_never_comes_expires_and_a_resume_asks_anew(
    ws: Workspace, clock: ManualClock
) -> None:
    run_id = ask()
    clock.advance(days=2)
    assert ws.approvals.expire() == []
    clock.advance(days=1)
    with pytest.raises(StateError, match="expired"):
        ws.approvals.approve(run_id)
    assert [asked.run_id for asked in ws.approvals.expire()] == [run_id]
    assert "nobody answered" in ws.tracking.run(run_id).error
    with pytest.raises(RunWaiting):
        load_pipeline(f"{FILE}:ask").run(resume=run_id)
    assert ws.approvals.approve(run_id).state == "approved"


def test_each_question_of_a_run_is_answered_by_itself(ws: Workspace) -> None:
    run_id = ask(twice=True)
    ws.approvals.approve(run_id, "first")
    with pytest.raises(RunWaiting):
        load_pipeline(f"{FILE}:ask").run(resume=run_id)
    names = [asked.name for asked in ws.approvals.approvals(run_id)]
    assert names == ["promote?", "promote? #2"]
    ws.approvals.approve(run_id, "second")
    assert "first" in str(load_pipeline(f"{FILE}:ask").run(resume=run_id))


def test_who_started_a_run_does_not_approve_it_where_four_eyes_are_asked_for(
    ws: Workspace,
) -> None:
    run_id = ask(four_eyes=True)
    with pytest.raises(NotAllowed, match="four eyes"):
        ws.approvals.approve(run_id)
    with acting(actor="somebody else"):
        assert ws.approvals.approve(run_id).actor == "somebody else"


def test_outside_a_run_nobody_is_asked_and_a_step_cannot_ask(ws: Workspace) -> None:
    assert ev.approve("promote?") is None
    with pytest.raises(InvalidInput):
        ev.approve(" ")
    with pytest.raises(StateError, match="in the pipeline itself"):
        load_pipeline(f"{FILE}:wrong").run(name="a")


def test_the_supervisor_goes_on_with_what_was_approved(tmp_path: Path, clock: ManualClock) -> None:
    with ev.open(tmp_path / "home", clock=clock, actor="tester") as ws:
        runner = ws.loop_runner(FILE.parent)
        asking = ev.on(ev.new_data("x"), name="asking").run(f"{FILE.name}:ask", name="auto")
        ws.automation.automate(asking)
        ws.automation.fire("asking")
        with using(ws):
            by_hand = ask("hand")
            refused = ask("refused")
        runner.tick()
        [firing] = ws.automation.firings("asking")
        assert firing.outcome == "waiting"
        assert runner.tick().finished == ()
        ws.approvals.approve(firing.run_id)
        ws.approvals.approve(by_hand)
        ws.approvals.refuse(refused, "no")
        assert [f.outcome for f in runner.tick().finished] == ["done", "done"]
        assert {ws.tracking.run(r).state for r in (firing.run_id, by_hand)} == {"finished"}
        assert trained(ws, by_hand) == ["ran", "cached"]
        # One that is refused or expires closes its firing.
        ws.automation.fire("asking")
        runner.tick()
        clock.advance(days=4)
        runner.recover()
        runner.tick()
        assert [f.outcome for f in ws.automation.firings("asking")] == ["failed", "done"]


def test_a_client_of_mlflow_finds_what_waits_as_scheduled(ws: Workspace) -> None:
    run_id = ask()
    found = ws.tracking.runs(filter="attributes.status = 'SCHEDULED'")
    assert [run.id for run in found.runs] == [run_id]
