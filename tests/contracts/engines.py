"""What every engine that executes steps side by side must do: worker processes here, or a cluster.

A test class inherits :class:`EngineContract` and gives `workspace` and `on`.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from everloop.data.api import read
from everloop.errors import InvalidInput, UserCodeError
from everloop.pipelines import api as ev
from everloop.workspace import Workspace
from tests.unit.pipelines import fan_steps as steps

__all__ = ["EngineContract", "marks", "squares"]


def marks(folder: str, pattern: str = "*-*-*") -> list[str]:
    return sorted(path.name.split("-")[0] for path in Path(folder).glob(pattern))


@ev.pipeline
def squares(n: int, folder: str = "") -> list[int]:
    return steps.square.map(range(n), folder=folder)


class EngineContract:
    """Tests of an engine; `on` names it as ``run(on=...)`` does."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> str:
        made = tmp_path / "marks"
        made.mkdir()
        return str(made)

    def test_map_keeps_the_order_and_the_next_run_executes_nothing(
        self, on: str, workspace: Workspace, folder: str
    ) -> None:
        for _ in range(2):
            assert squares.run(on=on, n=20, folder=folder) == [x * x for x in range(20)]
        assert len(marks(folder)) == 20
        outcomes = [step.outcome for step in workspace.pipelines.steps(squares.run_id)]
        assert outcomes == ["cached"] * 20

    def test_equal_items_are_computed_once(
        self, on: str, workspace: Workspace, folder: str
    ) -> None:
        @ev.pipeline
        def equal() -> list[int]:
            return steps.square.map([3, 4, 3, 3], folder=folder)

        assert equal.run(on=on) == [9, 16, 9, 9]
        assert marks(folder) == ["3", "4"]

    def test_what_steps_log_in_workers_belongs_to_the_run(
        self, on: str, workspace: Workspace
    ) -> None:
        squares.run(on=on, n=3)
        points = workspace.tracking.history(squares.run_id, "x")
        assert sorted(point.value for point in points) == [0.0, 1.0, 2.0]

    def test_submitted_calls_take_the_handles_of_others(
        self, on: str, workspace: Workspace
    ) -> None:
        @ev.pipeline
        def graph() -> tuple[float, int]:
            one, two = steps.pair.submit(1), steps.pair.submit(2)
            squares = [steps.square.submit(x) for x in (2, 3)]
            return steps.add.submit(one, right=two).result(), steps.all_of(squares)

        assert graph.run(on=on) == (1.5, 13)
        assert graph.run(on=on) == (1.5, 13)
        assert {step.outcome for step in workspace.pipelines.steps(graph.run_id)} == {"cached"}

    def test_what_did_not_fail_is_kept_for_the_resume(
        self, on: str, workspace: Workspace, folder: str
    ) -> None:
        @ev.pipeline
        def odd(folder: str) -> list[int]:
            return steps.refuses_odd.map(range(6), folder=folder)

        with pytest.raises(UserCodeError) as caught:
            odd.run(on=on, folder=folder)
        told = str(caught.value)
        assert "1 is odd" in told
        assert 'raise ValueError(f"{x} is odd")' in told, "the traceback of the worker"
        assert "3 of 6 calls" in told
        assert "first for item 1" in told
        (Path(folder) / "mended").touch()
        assert odd.run(on=on, resume=odd.run_id) == list(range(6))
        assert marks(folder) == sorted("012345135")

    def test_calls_are_tried_again_in_workers(
        self, on: str, workspace: Workspace, folder: str
    ) -> None:
        @ev.pipeline
        def third(folder: str) -> list[int]:
            return steps.third_time.map([1, 2], folder=folder)

        assert third.run(on=on, folder=folder) == [1, 2]
        assert marks(folder) == sorted("111222")

    def test_a_call_over_its_time_is_killed_and_the_others_go_on(
        self, on: str, workspace: Workspace, folder: str
    ) -> None:
        @ev.pipeline
        def late() -> Any:
            handles = [steps.waits.submit(seconds, folder) for seconds in (0.0, 600.0, 0.01)]
            with pytest.raises(TimeoutError, match=r"longer than 1 s"):
                handles[1].result()
            return handles[0].result(), handles[2].result()

        assert late.run(on=on) == (0.0, 0.01)
        begun = {mark.name.split("-")[0]: mark for mark in Path(folder).iterdir()}
        assert set(begun) == {"0.0", "600.0", "0.01"}
        pid = begun["600.0"].name.split("-")[1]
        assert not Path(f"/proc/{pid}").exists(), "it was ended, not waited for"

    def test_a_crash_costs_its_own_call_alone(self, on: str, workspace: Workspace) -> None:
        @ev.pipeline
        def crash() -> list[int]:
            return steps.crashes_at.map(range(5), at=2)

        with pytest.raises(UserCodeError, match="died of SIGSEGV"):
            crash.run(on=on)
        outcomes = [step.outcome for step in workspace.pipelines.steps(crash.run_id)]
        assert sorted(outcomes) == ["failed", "ran", "ran", "ran", "ran"]

    def test_an_isolated_step_runs_elsewhere(self, on: str, workspace: Workspace) -> None:
        @ev.pipeline
        def elsewhere() -> int:
            return steps.own_process()

        assert elsewhere.run(on=on) != os.getpid()

    def test_a_step_over_its_memory_fails_and_the_next_one_does_not(
        self, on: str, workspace: Workspace
    ) -> None:
        @ev.pipeline
        def hungry(megabytes: int) -> int:
            return steps.takes(megabytes)

        with pytest.raises(UserCodeError, match="MemoryError"):
            hungry.run(on=on, megabytes=4_000)
        assert hungry.run(on=on, megabytes=10) == 10

    def test_large_arguments_go_through_the_store(self, on: str, workspace: Workspace) -> None:
        @ev.pipeline
        def large() -> tuple[list[float], list[int]]:
            values = steps.numbers.submit(1_000_000).result()
            table = steps.rows(10)
            few = [steps.kept.submit(table, least) for least in (3, 8)]
            return [steps.first_of.submit(values, place).result() for place in (0, 999_999)], [
                len(handle.result()) for handle in few
            ]

        assert large.run(on=on) == ([0.0, 999_999.0], [7, 2])

    def test_changes_of_rows_in_a_worker_are_recorded(self, on: str, workspace: Workspace) -> None:
        workspace.data.commit("numbers", steps.rows.function(10).to_arrow())

        @ev.pipeline
        def drops() -> Any:
            return steps.kept.submit(read("numbers"), 8).result()

        assert len(drops.run(on=on)) == 2
        [change] = workspace.data.changes(scope=f"run:{drops.run_id}/{steps.kept.name}")
        assert (change.dataset, change.rule, change.rows) == ("numbers", "small", 8)

    def test_an_argument_that_cannot_be_sent_is_named(self, on: str, workspace: Workspace) -> None:
        @ev.pipeline
        def unsendable() -> int:
            return steps.takes_lock.submit(threading.Lock()).result()

        with pytest.raises(InvalidInput, match="cannot be sent") as caught:
            unsendable.run(on=on)
        assert "lock" in caught.value.faults[0].path

    def test_a_result_that_cannot_be_sent_is_told(self, on: str, workspace: Workspace) -> None:
        @ev.pipeline
        def unstorable() -> object:
            return steps.gives_lock.submit().result()

        with pytest.raises(InvalidInput, match="cannot be stored"):
            unstorable.run(on=on)

    def test_a_failure_that_nobody_asked_for_fails_the_run(
        self, on: str, workspace: Workspace, folder: str
    ) -> None:
        @ev.pipeline
        def forgets() -> int:
            steps.refuses_odd.submit(1, folder)
            return 0

        with pytest.raises(UserCodeError, match="1 is odd"):
            forgets.run(on=on)
        assert workspace.tracking.run(forgets.run_id).state == "failed"

    def test_what_a_worker_read_by_name_decides_whether_its_result_is_old(
        self, on: str, workspace: Workspace
    ) -> None:
        @ev.pipeline
        def sizes() -> list[int]:
            return steps.newest.map([0, 5])

        workspace.data.commit("numbers", steps.rows.function(10).to_arrow(), mode="replace")
        assert sizes.run(on=on) == [10, 5]
        assert sizes.run(on=on) == [10, 5]
        assert {row.outcome for row in workspace.pipelines.steps(sizes.run_id)} == {"cached"}
        workspace.data.commit("numbers", steps.rows.function(20).to_arrow(), mode="replace")
        assert sizes.run(on=on) == [20, 15]
        assert {row.outcome for row in workspace.pipelines.steps(sizes.run_id)} == {"ran"}
