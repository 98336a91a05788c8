"""Steps on a real Ray cluster of two nodes: as here, and nothing finished is lost with a node."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from everloop.core.context import using
from everloop.core.run import PARENT_TAG
from everloop.errors import StateError, UserCodeError
from everloop.pipelines import api as ev
from everloop.pipelines.space import choice
from everloop.ports.executor import Needs
from everloop.workspace import Workspace, open_workspace
from tests.clusters import RayCluster, ray_cluster
from tests.contracts.engines import EngineContract, marks
from tests.e2e import ray_steps as steps
from tests.e2e.trees import is_alive, wait_for

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster() as running:
        yield running


# One for all of them: each needs processes of its own on the nodes, which take a second to start.
@pytest.fixture(scope="module")
def one_workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    with open_workspace(tmp_path_factory.mktemp("ray") / "ws") as opened:
        yield opened


@pytest.fixture
def workspace(one_workspace: Workspace) -> Iterator[Workspace]:
    with using(one_workspace):
        yield one_workspace


@pytest.fixture
def folder(tmp_path: Path) -> str:
    made = tmp_path / "marks"
    made.mkdir()
    return str(made)


class TestRay(EngineContract):
    """All that worker processes of the run do."""

    @pytest.fixture
    def on(self, cluster: RayCluster) -> str:
        return "ray"


@ev.pipeline
def here_and_there() -> tuple[str, int]:
    return steps.where(1), steps.beside_the_driver()


def test_plain_calls_go_to_the_cluster_unless_they_ask_for_no_processor(
    cluster: RayCluster, workspace: Workspace
) -> None:
    assert here_and_there.run(on="ray") == (cluster.address, os.getpid())


def test_as_many_calls_at_once_as_the_cluster_has_room_for(
    cluster: RayCluster, workspace: Workspace, folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    executor = workspace.executor("ray")
    try:
        assert [executor.capacity(Needs(cpus)) for cpus in (1, 0.5, 0)] == [2, 4, 2]
        assert executor.capacity(Needs(1, gpus=1)) == 1
        assert "no node of the Ray cluster has 1 CPU, 1 GPU (the largest has CPU 1" in caplog.text
        with pytest.raises(StateError, match="connected to another Ray cluster"):
            workspace.executor("ray://192.0.2.1:10001")
    finally:
        executor.close()
    with pytest.raises(StateError, match="ended"):
        executor.execute("everloop.pipelines.node:execute", b"", Needs(), "late")


@ev.pipeline
def region() -> str:
    return steps.variable()


def test_variables_that_a_step_reads_go_with_it(
    cluster: RayCluster, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERLOOP_TEST_REGION", "north")
    assert region.run(on="ray") == "north"
    monkeypatch.delenv("EVERLOOP_TEST_REGION")
    assert region.run(on="ray") == "none"


@ev.pipeline
def reads(path: Path) -> str:
    return steps.text_of(path)


def test_a_file_that_a_node_does_not_have_is_named(
    cluster: RayCluster, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here.txt").write_text("only here")
    with pytest.raises(StateError, match=r"here\.txt is not there.*\n  hint: give steps"):
        reads.run(on="ray", path=Path("here.txt"))
    assert reads.run(on="ray", path=tmp_path / "here.txt") == "only here"


def no_process_left(folder: str) -> None:
    """Wait for the end of every process that left a mark: nothing more can begin in them."""
    found = [int(mark.name.split("-")[1]) for mark in Path(folder).glob("*-*-*")]
    wait_for("the end of the processes of the steps", lambda: not any(map(is_alive, found)))


@ev.pipeline
def gives_up(folder: str) -> None:
    handles = [steps.takes_a_while.submit(x, folder) for x in range(100)]
    handles[0].result()
    raise ValueError("enough")


def test_a_run_that_ends_takes_its_work_off_the_cluster(
    cluster: RayCluster, workspace: Workspace, folder: str
) -> None:
    with pytest.raises(UserCodeError, match="enough"):
        gives_up.run(on="ray", folder=folder)
    # Processes may wait for other steps of other runs; of this one nothing new begins.
    begun = len(marks(folder))
    time.sleep(1)
    assert len(marks(folder)) == begun < 100


SCRIPT = """
    import everloop as ev
    from tests.e2e import ray_steps as steps

    @ev.pipeline
    def main(n: int, folder: str) -> int:
        return sum(steps.takes_a_while.map(range(n), folder=folder))
"""


def started(tmp_path: Path, address: str, *arguments: str) -> subprocess.Popen[str]:
    flow = tmp_path / "ray_flow.py"
    flow.write_text("\n".join(line[4:] for line in SCRIPT.splitlines()))
    environment = os.environ | {
        "EVERLOOP_DIR": str(tmp_path / "ws"),
        "RAY_ADDRESS": address,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "everloop", "run", "ray_flow.py:main", *arguments, "--on", "ray"],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_killed_driver_leaves_no_work_and_its_run_is_resumed_by_a_client(
    cluster: RayCluster, tmp_path: Path, folder: str
) -> None:
    process = started(tmp_path, cluster.address, "n=12", f"folder={folder}")
    wait_for("some steps end", lambda: len(list(Path(folder).glob("ended-*"))) >= 3)
    process.kill()
    process.communicate()
    no_process_left(folder)
    begun = len(marks(folder))
    assert begun < 12
    with open_workspace(tmp_path / "ws") as workspace:
        [run] = workspace.tracking.runs().runs
        finished = {row.key for row in workspace.pipelines.steps(run.id)}
        assert len(finished) >= 2, "committed by the workers, as the driver commits nothing"
        resumed = started(tmp_path, cluster.client, "--resume", run.id)
        out, err = resumed.communicate(timeout=300)
        assert resumed.returncode == 0, err
        assert out.strip().endswith(str(sum(range(12))))
        rows = workspace.pipelines.steps(run.id)
        assert workspace.tracking.run(run.id).state == "finished"
    ran = [row.key for row in rows if row.outcome == "ran"]
    assert len(ran) == len(set(ran)) == 12
    assert len(marks(folder)) - 12 <= begun - len(finished), "only what was in hand, once more"


def test_a_sweep_on_the_cluster_outlives_the_worker_of_a_trial(
    cluster: RayCluster, folder: str, tmp_path: Path, request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("EVERLOOP_OBJECTS", str(tmp_path / "objects"))
    # The nodes reach it, as they would a server of a team.
    catalog = request.getfixturevalue("postgres_database")
    with open_workspace(catalog) as workspace, using(workspace):
        plan = {"folder": folder, "depth": choice(5, 77, 4, 13)}
        found = steps.tune.sweep(plan, minimize="loss", sampler="grid", workers=2, on="ray")
        states = {trial.params["depth"]: trial.state for trial in found.trials}
        assert states == {5: "finished", 77: "finished", 4: "finished", 13: "failed"}
        assert found.best.params == {"depth": 5}
        assert "thirteen is too deep" in found.trials[-1].error
        assert marks(folder) == ["13", "4", "5", "77", "77", "prepare"], (
            "its worker was killed once"
        )
        for trial in found.trials:
            run = workspace.tracking.run(trial.run_id)
            assert (run.tags[PARENT_TAG], run.fence) == (found.run_id, 1)
            rows = workspace.pipelines.steps(run.id)
            assert len({(row.step, row.key) for row in rows}) == len(rows) == 2
        again = steps.tune.sweep(
            {"folder": folder, "depth": choice(5, 77)}, minimize="loss", sampler="grid", on="ray"
        )
        assert [trial.value for trial in again.trials] == [0.0, 72.0**2]
    assert len(marks(folder)) == 6, "the second one found everything stored"


@ev.pipeline
def a_while(n: int, folder: str) -> list[int]:
    return steps.takes_a_while.map(range(n), folder=folder)


# The last one, as the second node does not come back.
def test_a_killed_node_loses_no_finished_step(
    cluster: RayCluster, workspace: Workspace, folder: str
) -> None:
    results: list[Any] = []

    def run() -> None:
        with using(workspace):
            results.append(a_while.run(on="ray", n=14, folder=folder))

    driver = threading.Thread(target=run)
    driver.start()
    wait_for("some steps end", lambda: len(list(Path(folder).glob("ended-*"))) >= 4)
    run_id = a_while.run_id
    committed = {row.key for row in workspace.pipelines.steps(run_id)}
    cluster.second.kill()
    driver.join(120)
    assert results == [list(range(14))]
    assert a_while.run_id == run_id
    found = workspace.tracking.run(run_id)
    assert (found.state, found.fence) == ("finished", 1)
    rows = [row for row in workspace.pipelines.steps(run_id) if row.outcome == "ran"]
    assert len(rows) == len({row.key for row in rows}) == 14, "each was committed once"
    assert committed
    executed = marks(folder)
    again = {x for x in executed if executed.count(x) > 1}
    # At most what the lost node had in hand: the one that it executed and the one it was given.
    assert len(executed) - 14 <= 2, again
