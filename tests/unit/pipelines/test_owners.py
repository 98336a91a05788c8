"""An execution that lost its run, its commit or its workspace records nothing more."""

from __future__ import annotations

import threading
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest

from everloop.core.context import using
from everloop.errors import BackendError, EverloopError, StateError, UserCodeError
from everloop.pipelines import api as ev
from everloop.pipelines.service import PipelineService
from everloop.workspace import open_workspace
from tests.unit.pipelines.test_shapes import Here


def test_a_stale_execution_stops_at_its_next_commit(workspace: Any) -> None:
    ran: list[str] = []

    @ev.step(cache=False)
    def first() -> str:
        ran.append("first")
        if len(ran) == 1:
            workspace.clock.advance(seconds=61)  # its lease ran out while it slept
            service: PipelineService = workspace.pipelines
            service.start(handed.name, run_id=handed.run_id, owner="elsewhere:1:1")
        return "first"

    @ev.step(cache=False)
    def after() -> str:
        ran.append("after")
        return "after"

    @ev.pipeline
    def handed() -> str:
        return first() + after()

    with pytest.raises(StateError, match=r"taken over by elsewhere:1:1"):
        handed.run()
    assert ran == ["first"]
    run = workspace.tracking.run(handed.run_id)
    assert (run.state, run.owner) == ("running", "elsewhere:1:1"), "the outcome is the new owner's"
    assert workspace.pipelines.steps(run.id) == []
    workspace.clock.advance(seconds=61)
    assert handed.run(resume=run.id) == "firstafter"
    assert ran == ["first", "first", "after"]


def test_a_commit_that_fails_is_not_taken_for_done(
    workspace: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []

    @ev.step(cache=False)
    def work() -> int:
        ran.append(1)
        return 7

    @ev.pipeline
    def hiccup() -> int:
        return work()

    commit = PipelineService.commit_steps
    lost = [BackendError("connection lost")]

    def breaking(self: Any, *rest: Any) -> None:
        if lost:
            raise lost.pop()
        commit(self, *rest)

    monkeypatch.setattr(PipelineService, "commit_steps", breaking)
    with pytest.raises(BackendError, match="connection lost"):
        hiccup.run()
    assert workspace.tracking.run(hiccup.run_id).state == "failed"
    assert workspace.pipelines.steps(hiccup.run_id) == []
    assert hiccup.run(resume=hiccup.run_id) == 7
    assert len(ran) == 2


def test_a_resume_may_take_another_way(sqlite_workspace: Any) -> None:
    way = ["left"]

    @ev.step
    def left(x: int) -> int:
        return x + 1

    @ev.step
    def right(x: int) -> int:
        return x + 2

    @ev.pipeline
    def fork() -> int:
        found = left(1) if way[0] == "left" else right(1)
        if len(way) == 1:
            raise OSError("once")
        return found + left(1)

    with pytest.raises(UserCodeError):
        fork.run()
    way[:] = ["right", "again"]
    assert fork.run(resume=fork.run_id) == 5
    rows = sqlite_workspace.pipelines.steps(fork.run_id)
    assert [(row.step.rpartition(".")[2], row.outcome) for row in rows] == [
        ("left", "ran"), ("right", "ran"), ("left", "cached"),
    ]  # fmt: skip


def test_a_workspace_closed_under_a_run_ends_it_with_a_word(tmp_path: Path) -> None:
    begun, go = threading.Event(), threading.Event()
    errors: list[BaseException] = []
    wait = [True]

    @ev.step
    def blocks(x: int) -> int:
        if wait:
            begun.set()
            assert go.wait(60)
        return x

    @ev.pipeline
    def closed_under() -> int:
        return blocks(1)

    def go_on() -> None:
        try:
            closed_under.run()
        except BaseException as error:  # noqa: BLE001 - looked at below
            errors.append(error)

    with open_workspace(tmp_path / "ws") as workspace, using(workspace):
        thread = threading.Thread(target=copy_context().run, args=(go_on,))
        thread.start()
        assert begun.wait(60)
    go.set()
    thread.join(60)
    assert not thread.is_alive()
    assert all(isinstance(error, EverloopError) for error in errors), errors
    wait.clear()
    with open_workspace(tmp_path / "ws") as workspace, using(workspace):
        if errors:
            assert closed_under.run(resume=closed_under.run_id) == 1
        assert workspace.tracking.run(closed_under.run_id).state == "finished"


class Speechless(Exception):
    def __str__(self) -> str:
        raise OSError("no words")


@pytest.mark.parametrize("side", ["plain", "submit"])
@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("a\0b"), r"ValueError: a\x00b"),
        (OSError(f"no such file: {chr(0xDC80)}"), r"OSError: no such file: \udc80"),
        (Speechless(), "Speechless: <its __str__ raised>"),
    ],
    ids=["zero", "half a character", "speechless"],
)
def test_an_error_of_any_words_is_kept(
    workspace: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, told: str, side: str
) -> None:
    monkeypatch.setattr("everloop.pipelines.pool.Pool", Here)
    monkeypatch.setattr(workspace, "location", "here", raising=False)
    monkeypatch.setattr(workspace, "actor", "", raising=False)

    @ev.step
    def raises(x: str) -> int:
        raise error

    @ev.pipeline
    def says(x: str) -> int:
        return raises(x) if side == "plain" else raises.submit(x).result()

    with pytest.raises(UserCodeError):
        says.run(x="also \0")
    [row] = workspace.pipelines.steps(says.run_id)
    assert row.outcome == "failed"
    assert row.error.endswith(told), "one that cannot be sent comes as another with its words"
    assert workspace.tracking.run(says.run_id).state == "failed"
