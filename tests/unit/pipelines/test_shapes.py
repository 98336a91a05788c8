"""The shapes that a run may have, as the suites of other engines try them: fans in fans, joins,
branches, loops, retries with a catch, and what is done once, by whomever it is asked for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextvars import copy_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from everloop.errors import StateError, UserCodeError
from everloop.pipelines import api as ev
from everloop.pipelines.engine import Execution
from everloop.pipelines.worker import Outcome, Task, execute
from everloop.workspace import Workspace
from tests.unit.pipelines import fan_steps as steps
from tests.unit.pipelines.test_fan import marks


class Here:
    """Executes in this process what a pool's workers would: a fan costs nothing to start."""

    def __init__(self, *_: Any) -> None:
        self.closed = False

    def run(self, task: Task, timeout_s: float | None = None) -> Iterator[Outcome]:
        function = task.step.resolve()
        for arguments in task.calls:
            yield execute(function, task, arguments)

    def close(self, *, kill: bool = False) -> None:
        self.closed = True


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, full_workspace: Workspace) -> Workspace:
    monkeypatch.setattr("everloop.pipelines.pool.Pool", Here)
    return full_workspace


def ran(workspace: Workspace, run_id: str) -> list[str]:
    rows = workspace.pipelines.steps(run_id)
    return [row.step.rpartition(".")[2] for row in rows if row.outcome == "ran"]


# Fans


@ev.pipeline
def nested(width: int, folder: str) -> list[int]:
    found = []
    for row in steps.square.map(range(width), folder=folder):
        found.append(steps.all_of(steps.square.map([row + n for n in range(width)])))
    return found


def test_a_fan_in_a_loop_over_a_fan(here: Workspace, tmp_path: Path) -> None:
    wanted = [sum((x * x + n) ** 2 for n in range(4)) for x in range(4)]
    assert nested.run(width=4, folder=str(tmp_path)) == wanted
    assert nested.run(width=4, folder=str(tmp_path)) == wanted
    assert ran(here, nested.run_id) == []
    # A wider one executes what is new: one row of the outer fan, and the new cells.
    assert len(nested.run(width=5, folder=str(tmp_path))) == 5
    assert len(marks(str(tmp_path))) == 5


@ev.pipeline
def wide(n: int) -> int:
    return sum(steps.square.map(range(n)))


def test_ten_thousand_items(here: Workspace) -> None:
    assert wide.run(n=10_000) == sum(x * x for x in range(10_000))
    assert len(ran(here, wide.run_id)) == 10_000
    assert wide.run(n=10_000) == sum(x * x for x in range(10_000))
    assert ran(here, wide.run_id) == []


@ev.pipeline
def items_of_every_kind(folder: str) -> list[Any]:
    handles = [steps.square.submit(n) for n in (2, 3)]
    of_handles = steps.square.map(handles)
    of_a_generator = steps.square.map(n for n in (1, 2))
    of_a_dict = steps.square.map({4: "four", 5: "five"})
    of_lists_of_handles = steps.all_of.map([handles, [1, 1]])
    twice = steps.square.map([7, 7, 7], folder=folder)
    in_no_order = steps.square.map([5, 3, 1, 4, 2, 6])
    found = [of_handles, of_a_generator, of_a_dict, of_lists_of_handles, twice]
    return [*found, in_no_order, steps.square.map([])]


def test_items_may_be_handles_generators_and_equal(here: Workspace, tmp_path: Path) -> None:
    wanted = [[16, 81], [1, 4], [16, 25], [13, 2], [49] * 3, [25, 9, 1, 16, 4, 36], []]
    assert items_of_every_kind.run(folder=str(tmp_path)) == wanted
    assert marks(str(tmp_path)) == ["7"]
    assert items_of_every_kind.run(folder=str(tmp_path)) == wanted


class Pair(NamedTuple):
    left: Any
    right: Any


@ev.step
def shown(value: Any) -> str:
    return repr(value)


@ev.pipeline
def nested_handles() -> list[str]:
    one = steps.square.submit(1)
    values = [{"a": {"b": [one]}}, Pair({"c": one}, 2), [({"d": (one,)},)]]
    return [shown(value) for value in values]


def test_handles_may_stand_deep_in_an_argument(here: Workspace) -> None:
    assert nested_handles.run() == [
        "{'a': {'b': [1]}}", "Pair(left={'c': 1}, right=2)", "[({'d': (1,)},)]",
    ]  # fmt: skip


def test_a_generator_that_fails_is_told_and_the_run_can_go_on(here: Workspace) -> None:
    broken = [True]

    def items() -> Iterator[int]:
        yield 1
        if broken:
            raise LookupError("no more items")

    @ev.pipeline
    def generates() -> list[int]:
        return steps.square.map(items())

    with pytest.raises(UserCodeError, match="no more items"):
        generates.run()
    broken.clear()
    assert generates.run(resume=generates.run_id) == [1]


@ev.pipeline
def large_items(n: int) -> list[float]:
    arrays = steps.numbers.map([n, n + 1])
    return steps.first_of.map(arrays, place=n - 1)


def test_large_items_go_by_the_store(here: Workspace) -> None:
    assert large_items.run(n=300_000) == [299_999.0] * 2


@ev.pipeline
def deep(n: int) -> int:
    return n if n == 0 else steps.square(deep(n - 1)) + 1


def test_a_pipeline_may_call_itself(here: Workspace) -> None:
    assert deep.run(n=5) == 677
    assert deep.run(n=5) == 677
    assert ran(here, deep.run_id) == []


@ev.pipeline
def too_deep(n: int) -> int:
    return too_deep(n + 1)


def test_recursion_without_an_end_is_the_users_error(here: Workspace) -> None:
    with pytest.raises(UserCodeError, match="RecursionError"):
        too_deep.run(n=0)
    assert here.tracking.run(too_deep.run_id).state == "failed"


# Branches, loops, joins


@ev.pipeline
def branches(least: int) -> list[int]:
    found: list[int] = []
    while len(found) < 3:
        value = steps.square(len(found))
        found.append(steps.square(value) if value >= least else value)
    left, right = steps.square.submit(10), steps.square.submit(11)
    found.append(steps.all_of([left.result(), right.result()]))
    return found


def test_branches_loops_and_joins_execute_what_they_reach(here: Workspace) -> None:
    assert branches.run(least=4) == [0, 1, 16, 221]
    assert branches.run(least=1) == [0, 1, 16, 221]
    assert ran(here, branches.run_id) == [], "0, 1, 4, 16 and the join were all there"


def test_a_failed_join_resumes_after_its_branches(here: Workspace, tmp_path: Path) -> None:
    broken = [True]

    @ev.step(cache=False)
    def join(values: list[int]) -> int:
        if broken:
            raise ArithmeticError("cannot join")
        return sum(values)

    @ev.pipeline
    def splits(folder: str) -> int:
        return join([*steps.square.map(range(3), folder=folder), steps.square(4, folder)])

    with pytest.raises(UserCodeError, match="cannot join"):
        splits.run(folder=str(tmp_path))
    broken.clear()
    assert splits.run(resume=splits.run_id) == 21
    assert len(marks(str(tmp_path))) == 4, "the branches were executed once"


# Failures


@pytest.mark.parametrize("side", ["plain", "submit", "map"])
def test_a_caught_failure_goes_on_and_each_try_is_told(
    here: Workspace, caplog: pytest.LogCaptureFixture, side: str
) -> None:
    @ev.step(retries=2)
    def never(x: int) -> int:
        raise OSError(f"no {x}")

    @ev.pipeline
    def careful(side: str) -> int:
        try:
            if side == "plain":
                return never(1)
            return never.submit(1).result() if side == "submit" else never.map([1])[0]
        except OSError:
            return -1

    assert careful.run(side=side) == -1
    assert here.tracking.run(careful.run_id).state == "finished"
    [row] = here.pipelines.steps(careful.run_id)
    assert (row.outcome, row.error) == ("failed", "OSError: no 1")
    assert sum("failed in try" in record.getMessage() for record in caplog.records) == 2


def test_each_failed_try_waits_twice_as_long(
    here: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(Execution, "_pause", lambda self, seconds: waited.append(seconds))

    @ev.step(retries=3, backoff="10s")
    def never() -> int:
        raise OSError("no")

    @ev.pipeline
    def tries() -> int:
        return never()

    with pytest.raises(UserCodeError):
        tries.run()
    assert waited == [10.0, 20.0, 40.0]


def test_a_failure_is_not_cached(here: Workspace) -> None:
    broken = [True]

    @ev.pipeline
    def fails(x: int) -> int:
        @ev.step(version="1")
        def sometimes(x: int) -> int:
            if broken:
                raise OSError("not now")
            return x

        return sometimes(x)

    with pytest.raises(UserCodeError):
        fails.run(x=1)
    broken.clear()
    assert fails.run(x=1) == 1


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_what_ends_the_process_ends_the_run_as_killed(
    here: Workspace, error: BaseException
) -> None:
    ended = [error]

    @ev.step(cache=False, retries=2)  # these are no failures to try again
    def ends() -> int:
        if ended:
            raise ended.pop()
        return 5

    @ev.pipeline
    def stops() -> int:
        return ends()

    with pytest.raises(type(error)):
        stops.run()
    assert here.tracking.run(stops.run_id).state == "killed"
    assert stops.run(resume=stops.run_id) == 5


class TwoWords(Exception):
    """Pickles, and cannot be read back."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


def test_an_error_that_cannot_be_read_back_keeps_its_words(here: Workspace) -> None:
    @ev.step
    def raises(x: int) -> int:
        raise TwoWords("one", "two")

    @ev.pipeline
    def odd() -> int:
        return raises.submit(1).result()

    with pytest.raises(UserCodeError, match="TwoWords: one and two"):
        odd.run()


def test_a_class_of_errors_that_cannot_be_sent_keeps_its_words(here: Workspace) -> None:
    class Odd(Exception):
        def __init__(self, first: str, second: str) -> None:
            super().__init__(f"{first} and {second}")
            self.lock = threading.Lock()

    @ev.step
    def raises(x: int) -> int:
        raise Odd("one", "two")

    @ev.pipeline
    def odd() -> int:
        return raises.submit(1).result()

    with pytest.raises(UserCodeError, match="Odd: one and two"):
        odd.run()


# Once, whoever asks


def test_many_threads_that_run_one_pipeline_compute_it_once(
    here: Workspace, tmp_path: Path
) -> None:
    @ev.pipeline
    def same(folder: str) -> int:
        return steps.slowly(3, folder) + steps.slowly.submit(4, folder).result()

    results: list[int] = []

    def go() -> None:
        results.append(ev.pipeline(same.function).run(folder=str(tmp_path)))

    threads = [threading.Thread(target=copy_context().run, args=(go,)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [7] * 6
    assert marks(str(tmp_path)) == ["3", "4"]
    assert {run.state for run in here.tracking.runs().runs} == {"finished"}


def test_a_finished_run_is_not_executed_again(here: Workspace) -> None:
    wide.run(n=3)
    with pytest.raises(StateError, match="finished"):
        wide.run(resume=wide.run_id)


def test_a_resumed_run_keeps_its_arguments_also_those_of_the_default(here: Workspace) -> None:
    broken = [True]

    @ev.pipeline
    def defaults(x: int = 3, y: list[int] = [4, 5]) -> Any:  # noqa: B006
        if broken:
            raise OSError("later")
        return [x, *y]

    with pytest.raises(UserCodeError):
        defaults.run(x=1)
    broken.clear()
    assert defaults.run(resume=defaults.run_id) == [1, 4, 5]


def test_calls_by_position_by_name_and_by_default_are_one(here: Workspace) -> None:
    @ev.step
    def both(x: int, y: int = 2) -> float:
        return time.monotonic()

    @ev.pipeline
    def calls() -> bool:
        return len({both(1), both(1, 2), both(x=1), both(y=2, x=1), *both.map([1])}) == 1

    assert calls.run()


def test_an_empty_and_a_huge_result_come_back(here: Workspace) -> None:
    @ev.step
    def sized(n: int) -> dict[str, Any]:
        return {"text": "x" * n, "bytes": b"y" * n, "array": np.zeros(n), "list": [n] * n}

    @ev.pipeline
    def sizes() -> list[int]:
        return [len(part) for n in (0, 100_000) for part in sized(n).values()]

    for _ in range(2):
        assert sizes.run() == [0] * 4 + [100_000] * 4
