"""Calls side by side: ``submit``, ``map``, and steps in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from everloop.core.context import using
from everloop.errors import InvalidInput
from everloop.pipelines import api as ev
from everloop.pipelines.pool import Pool
from everloop.workspace import Workspace, open_workspace
from tests.contracts.engines import EngineContract, marks, squares
from tests.unit.pipelines import fan_steps as steps


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    with open_workspace(tmp_path / "ws") as opened, using(opened):
        yield opened


@pytest.fixture
def folder(tmp_path: Path) -> str:
    made = tmp_path / "marks"
    made.mkdir()
    return str(made)


class TestHere(EngineContract):
    """Worker processes of the run."""

    @pytest.fixture
    def on(self) -> str:
        return ""


def test_map_over_nothing_starts_no_process(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pool, "__init__", lambda *_: pytest.fail("a pool was made"))
    assert squares.run(n=0) == []


def test_every_wrong_item_is_named_and_nothing_ran(workspace: Workspace, folder: str) -> None:
    @ev.pipeline
    def wrong() -> list[int]:
        return steps.square.map([1, "two", 3, None], folder=folder)

    with pytest.raises(InvalidInput) as caught:
        wrong.run()
    assert [fault.path for fault in caught.value.faults] == ["[1] x", "[3] x"]
    assert marks(folder) == []


def test_outside_a_run_steps_are_plain_functions() -> None:
    handle = steps.square.submit(4)
    assert handle.done()
    assert (handle.result(), steps.square.map([1, 2])) == (16, [1, 4])
    failed = steps.refuses_odd.submit(1, "/nonexistent")
    with pytest.raises(FileNotFoundError):
        failed.result()


@dataclass
class Model:
    """A model as people make them: what cannot be sent sits deep inside."""

    callbacks: list[Any]
    settings: dict[str, Any]


@pytest.mark.parametrize(
    ("make", "paths"),
    [
        (lambda: threading.Lock(), ["lock"]),
        (lambda: Model([threading.Lock()], {}), ["lock.callbacks[0]"]),
        (
            lambda: Model([1], {"a": (1, Model([], {"log": sys.stdout}))}),
            ["lock.settings['a'][1].settings['log']"],
        ),
        (lambda: [1, threading.Lock(), {"x": threading.Lock()}], ["lock[1]", "lock[2]['x']"]),
        (lambda: (x for x in range(3)), ["lock"]),
    ],
    ids=["itself", "in a list", "deep", "two", "generator"],
)
def test_what_cannot_be_sent_is_named_by_its_path(
    workspace: Workspace, make: Any, paths: list[str]
) -> None:
    # Made within the run: held by the pipeline, it would bring in all that this module imports.
    @ev.pipeline
    def unsendable() -> int:
        return steps.takes_lock.submit(make()).result()

    with pytest.raises(InvalidInput, match="cannot be sent") as caught:
        unsendable.run()
    assert [fault.path for fault in caught.value.faults] == paths


@pytest.mark.parametrize("workers", [0, True, "2"])
def test_workers_is_a_number_from_one(workspace: Workspace, workers: Any) -> None:
    with pytest.raises(InvalidInput, match="workers"):
        squares.run(n=1, workers=workers)


@pytest.mark.parametrize(
    "options", [{"memory": "lots"}, {"memory": True}, {"memory": -1}, {"timeout": "soon"}]
)
def test_wrong_limits_are_refused(options: Any) -> None:
    with pytest.raises(InvalidInput):
        ev.step(**options)(len)


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GB", 2_000_000_000), ("1.5 GiB", 1_610_612_736), (7, 7), ("512kb", 512_000)],
)
def test_memory_is_read_with_its_unit(text: Any, size: int) -> None:
    assert ev.step(memory=text)(lambda: None).memory == size


SCRIPT = """
    import os, sys, time
    from dataclasses import dataclass
    from pathlib import Path
    import everloop as ev

    @dataclass
    class Result:
        value: int

    FACTOR = 3

    @ev.step
    def times(x: int, folder: str) -> Result:
        (Path(folder) / f"{x}-{os.getpid()}-{time.monotonic_ns()}").touch()
        time.sleep(0.05)
        return Result(x * FACTOR)

    @ev.pipeline
    def fan(n: int, folder: str) -> int:
        return sum(r.value for r in times.map(range(n), folder=folder))

    if __name__ == "__main__":
        resume = sys.argv[3] if len(sys.argv) > 3 else ""
        if resume:
            print(fan.run(resume=resume))
        else:
            print(fan.run(n=int(sys.argv[1]), folder=sys.argv[2]))
"""


def started(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    environment = os.environ | {"EVERLOOP_DIR": str(tmp_path / "ws")}
    return subprocess.Popen(
        [sys.executable, str(script), *arguments],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_steps_of_a_main_script_reach_the_workers(tmp_path: Path, folder: str) -> None:
    for _ in range(2):
        out, err = started(tmp_path, "5", folder).communicate(timeout=120)
        assert (out, err) == ("30\n", "")
    assert len(marks(folder)) == 5


def children_of(pid: int) -> list[int]:
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    )
    return [int(line) for line in listed.stdout.split()]


def wait_for(what: Any, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_killed_driver_leaves_no_process_and_resumes(tmp_path: Path, folder: str) -> None:
    process = started(tmp_path, "40", folder)
    wait_for(lambda: len(marks(folder)) >= 10)
    workers = children_of(process.pid)
    assert workers
    process.kill()
    process.communicate()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    with open_workspace(tmp_path / "ws") as workspace:
        [run] = workspace.tracking.runs().runs
        finished = len(workspace.pipelines.steps(run.id))
        out, err = started(tmp_path, "40", folder, run.id).communicate(timeout=120)
        assert (out, err) == (f"{sum(range(40)) * 3}\n", "")
        rows = workspace.pipelines.steps(run.id)
    ran = [row.key for row in rows if row.outcome == "ran"]
    assert len(ran) == len(set(ran)) == 40, "each was committed once"
    # What was being computed when it died is computed again, and nothing else.
    in_hand = len(marks(folder)) - 40
    assert 0 <= in_hand <= 40 - finished


def test_ctrl_c_ends_the_run_and_its_workers(tmp_path: Path, folder: str) -> None:
    process = started(tmp_path, "400", folder)
    wait_for(lambda: len(marks(folder)) >= 4)
    workers = children_of(process.pid)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in err
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    with open_workspace(tmp_path / "ws") as workspace:
        assert workspace.tracking.runs().runs[0].state == "killed"


def test_two_runs_that_want_the_same_compute_it_once(tmp_path: Path, folder: str) -> None:
    both = [started(tmp_path, "20", folder) for _ in range(2)]
    for process in both:
        out, err = process.communicate(timeout=120)
        assert (out, err) == (f"{sum(range(20)) * 3}\n", "")
    assert len(marks(folder)) == 20


def test_a_plain_call_waits_for_the_run_that_computes_the_same(
    workspace: Workspace, folder: str
) -> None:
    @ev.pipeline
    def alone() -> int:
        return steps.slowly(7, folder)

    def run() -> None:
        with using(workspace):
            results.append(ev.pipeline(alone.function).run())

    results: list[int] = []
    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [7] * 4
    assert marks(folder, "7-*-*") == ["7"]
