"""Steps on a cluster, with one that lives in this process: what is lost, refused and done once."""

from __future__ import annotations

import importlib.metadata
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from everloop import settings
from everloop.core.context import using
from everloop.core.owner import this_process
from everloop.errors import (
    BackendError,
    InvalidInput,
    MissingExtra,
    StateError,
    TooLarge,
    UserCodeError,
)
from everloop.pipelines import alike, node, snapshot
from everloop.pipelines import api as ev
from everloop.ports.executor import Needs, WorkerLost
from everloop.workspace import Workspace, open_workspace
from tests.contracts.engines import marks, squares
from tests.servers import serve
from tests.unit.pipelines import fan_steps as steps


class OneNode:
    """A cluster whose only node is this process; what is lost on the way is up to the test."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Needs, bytes]] = []
        self.lose: Callable[[int, int], str] = lambda call, turn: ""
        self.turns: dict[str, int] = {}
        self.is_closed = False
        self._one_at_a_time = threading.Lock()

    def capacity(self, needs: Needs) -> int:
        return 2

    def execute(self, entry: str, payload: bytes, needs: Needs, name: str) -> bytes:
        assert entry == "everloop.pipelines.node:execute"
        with self._one_at_a_time:
            self.sent.append((name, needs, payload))
            digest = pickle.loads(pickle.loads(payload)[2]).keys[0].digest
            self.turns[digest] = self.turns.get(digest, 0) + 1
            lost = self.lose(list(self.turns).index(digest), self.turns[digest])
            if lost == "before":
                raise WorkerLost("its power went")
            answer = node.execute(payload, "the node")
            if lost == "after":
                raise WorkerLost("its power went")
            return answer

    def close(self) -> None:
        self.is_closed = True


# One for all: each needs a process of its own to execute steps, which takes a second to start.
@pytest.fixture(scope="module")
def one_workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    folder = tmp_path_factory.mktemp("cluster")
    with pytest.MonkeyPatch.context() as patch, open_workspace(folder / "ws") as opened:
        patch.setattr("tempfile.gettempdir", lambda: str(folder))
        yield opened
    while node._pools:
        node._pools.popitem()[1].close()
    while node._workspaces:
        node._workspaces.popitem()[1].close()


@pytest.fixture
def workspace(one_workspace: Workspace) -> Iterator[Workspace]:
    with using(one_workspace):
        yield one_workspace


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> OneNode:
    made = OneNode()
    monkeypatch.setattr(Workspace, "executor", lambda self, on: made)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> str:
    made = tmp_path / "marks"
    made.mkdir()
    return str(made)


def rows_of(workspace: Workspace, run_id: str) -> list[tuple[str, str]]:
    rows = workspace.pipelines.steps(run_id)
    return sorted((row.step.rpartition(".")[2], row.outcome) for row in rows)


@ev.step(cpus=2, gpus=0.5, memory="1GB")
def asks(x: int) -> int:
    return x


@ev.step(cpus=0)
def asks_nothing() -> int:
    return os.getpid()


def test_a_worker_commits_and_the_driver_does_not(
    workspace: Workspace, there: OneNode, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[int, int]] = []
    commit = type(workspace.pipelines).commit_steps

    def counted(self: Any, run_id: str, fence: int, rows: Any, results: Any) -> None:
        if self is workspace.pipelines:
            written.append((len(rows), len(results)))
        commit(self, run_id, fence, rows, results)

    monkeypatch.setattr(type(workspace.pipelines), "commit_steps", counted)
    assert squares.run(on="ray", n=6, folder=folder) == [x * x for x in range(6)]
    assert written == []
    assert rows_of(workspace, squares.run_id) == [("square", "ran")] * 6
    assert there.is_closed
    points = workspace.tracking.history(squares.run_id, "x")
    assert sorted(point.value for point in points) == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    # The same here: what a cluster stored is a hit.
    assert squares.run(n=6, folder=folder) == [x * x for x in range(6)]
    assert len(marks(folder)) == 6


def test_what_was_committed_before_the_loss_is_not_executed_again(
    workspace: Workspace, there: OneNode, folder: str
) -> None:
    # The worker of each call is lost twice: of every other one after it committed.
    there.lose = lambda call, turn: "" if turn > 2 else "after" if call % 2 else "before"
    assert squares.run(on="ray", n=9, folder=folder) == [x * x for x in range(9)]
    assert marks(folder) == sorted("012345678")
    assert rows_of(workspace, squares.run_id) == [("square", "ran")] * 9
    assert len(workspace.tracking.history(squares.run_id, "x")) == 9


def test_forced_calls_that_were_lost_after_their_commit_are_not_executed_again(
    workspace: Workspace, there: OneNode, folder: str
) -> None:
    squares.run(on="ray", n=4, folder=folder)
    there.lose = lambda call, turn: "after"
    assert squares.run(on="ray", force=True, n=4, folder=folder) == [0, 1, 4, 9]
    assert len(marks(folder)) == 8
    assert rows_of(workspace, squares.run_id) == [("square", "ran")] * 4


def test_a_call_whose_workers_are_always_lost_fails_and_spends_no_retry(
    workspace: Workspace, there: OneNode, folder: str
) -> None:
    there.lose = lambda call, turn: "before"

    @ev.pipeline
    def doomed() -> int:
        return steps.square(3, folder)

    with pytest.raises(UserCodeError, match="lost 4 times, at last by its power went"):
        doomed.run(on="ray")
    assert len(there.sent) == 4
    assert rows_of(workspace, doomed.run_id) == [("square", "failed")]


def test_resources_are_asked_for_and_nothing_is_sent_without(
    workspace: Workspace, there: OneNode
) -> None:
    @ev.pipeline
    def asking() -> tuple[int, int]:
        return asks(1), asks_nothing()

    assert asking.run(on="ray") == (1, os.getpid())
    assert [(name, needs) for name, needs, _ in there.sent] == [("asks", Needs(2, 0.5, 10**9))]


@pytest.mark.parametrize("wrong", [{"cpus": -1}, {"gpus": "1"}, {"cpus": True}, {"gpus": 1e999}])
def test_wrong_resources_are_refused(wrong: Any) -> None:
    with pytest.raises(InvalidInput, match="cpus and gpus"):
        ev.step(**wrong)(len)


def sent_again(there: OneNode) -> bytes:
    return there.sent[-1][2]


def test_a_task_of_an_older_owner_is_not_executed(
    workspace: Workspace, there: OneNode, folder: str
) -> None:
    @ev.pipeline
    def fails(folder: str) -> int:
        steps.square(2, folder)
        raise ValueError("stop")

    with pytest.raises(UserCodeError):
        fails.run(on="ray", folder=folder)
    workspace.pipelines.start(fails.name, run_id=fails.run_id, owner=this_process())
    node._seen.clear()  # as after a second
    with pytest.raises(StateError, match="with fence 2, and this task has the fence 1"):
        node.read_answer(node.execute(sent_again(there), "the node"))
    assert marks(folder) == ["2"]


def test_a_commit_with_an_old_fence_is_refused(
    workspace: Workspace, there: OneNode, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is taken over while the worker computes."""
    add = node._Batch.add

    def late(self: Any, number: int, outcome: Any) -> None:
        run_id = self._order.task.run.id
        workspace.pipelines.finish(run_id, 1, "killed")
        workspace.pipelines.start(squares.name, run_id=run_id, owner=this_process())
        add(self, number, outcome)

    monkeypatch.setattr(node._Batch, "add", late)
    with pytest.raises(StateError, match="was taken over"):
        squares.run(on="ray", n=1, folder=folder)
    assert marks(folder) == ["0"]
    assert workspace.pipelines.steps(squares.run_id) == []


def test_the_second_of_two_workers_with_the_same_call_takes_what_the_first_committed(
    workspace: Workspace, there: OneNode, folder: str
) -> None:
    """A worker that was taken for lost goes on beside the one that has its call now."""

    class Twice(OneNode):
        def execute(self, entry: str, payload: bytes, needs: Needs, name: str) -> bytes:
            if not self.sent:
                node.execute(payload, "the lost node")
            return super().execute(entry, payload, needs, name)

    twice = Twice()
    there.execute = twice.execute  # type: ignore[method-assign]

    @ev.pipeline
    def one() -> int:
        return steps.square(5, folder)

    assert one.run(on="ray") == 25
    assert len(marks(folder)) == 2
    assert rows_of(workspace, one.run_id) == [("square", "ran")]


def test_a_workspace_that_is_not_there_is_told_and_not_made(
    workspace: Workspace, there: OneNode, folder: str, tmp_path: Path
) -> None:
    squares.run(on="ray", n=1, folder=folder)
    version, python, body = pickle.loads(sent_again(there))
    order: node.Order = pickle.loads(body)
    elsewhere = tmp_path / "elsewhere"
    for place, told in (
        (order.place._replace(location=str(elsewhere)), "there is no"),
        (order.place._replace(location=another(tmp_path)), "it has no run"),
    ):
        payload = pickle.dumps((version, python, pickle.dumps(order._replace(place=place))))
        with pytest.raises(BackendError, match=f"another one on the node, or none: {told}") as err:
            node.read_answer(node.execute(payload, "the node"))
        assert "everloop server" in err.value.hint
    assert not elsewhere.exists()


def another(folder: Path) -> str:
    with open_workspace(folder / "another") as made:
        _ = made.tracking
    return str(folder / "another")


@pytest.mark.parametrize(("version", "python"), [("0.0.1", None), (None, "2.7")])
def test_other_versions_are_refused_before_anything_is_read(
    version: str | None, python: str | None
) -> None:
    here = (node._version(), node._python())
    payload = pickle.dumps((version or here[0], python or here[1], b"not to be read"))
    with pytest.raises(StateError, match=r"started with (0\.0\.1|2\.7)"):
        node.read_answer(node.execute(payload, "the node"))


def test_another_version_of_a_package_is_refused() -> None:
    checks = alike.Checks(node="n1", distributions={"numpy": "1.0", "no-such-thing": "3"})
    with pytest.raises(StateError) as caught:
        alike.refuse_unlike(len, "train", checks)
    told = str(caught.value)
    numpy = importlib.metadata.version("numpy")
    assert f"numpy is {numpy}, and 1.0 where the run was started" in told
    assert "no-such-thing is not there" in told
    assert "on n1" in told


def test_files_with_another_content_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one")
    checks = alike.Checks(
        node="n1", files={str(tmp_path / "a"): "0" * 32}, arguments={str(tmp_path / "b"): "1"}
    )
    with pytest.raises(StateError, match=r"a has another content.*b is not there"):
        alike.refuse_unlike(len, "train", checks)


FLOW = """
import everloop as ev
RATE = {rate}

@ev.step
def priced(x: int) -> int:
    return x * RATE

@ev.pipeline
def main(x: int) -> int:
    return priced(x)
"""


def test_code_that_was_edited_after_its_import_is_refused(
    workspace: Workspace, there: OneNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key is of what is in memory; a worker could only import what is on disk."""
    from everloop.pipelines.load import load_module

    file = tmp_path / "edited_flow.py"
    file.write_text(FLOW.format(rate=2))
    flow = load_module(file)
    assert flow.main.run(on="ray", x=1) == 2
    file.write_text(FLOW.format(rate=3))
    with pytest.raises(StateError, match=r"code of edited_flow\.RATE was edited"):
        flow.main.run(on="ray", x=2)


def test_too_much_code_is_refused_with_the_largest_files(
    workspace: Workspace, there: OneNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "MOST_CODE", 1000)
    with pytest.raises(TooLarge, match=r"fan_steps\.?\w*: 0\.0 MB"):
        squares.run(on="ray", n=1)
    assert workspace.tracking.run(squares.run_id).state == "failed"
    assert there.is_closed


def test_unpacked_code_is_shared_and_old_code_goes(
    workspace: Workspace, there: OneNode, folder: str
) -> None:
    for n in (1, 2):
        squares.run(on="ray", n=n, folder=folder)
    home = workspace.folder.parent / f"everloop-code-{os.getuid()}"
    known = set(home.iterdir())
    mine = [one for one in known if (one / "tests/unit/pipelines/fan_steps.py").is_file()]
    assert mine
    old = home / "old"
    old.mkdir()
    os.utime(old, (0, 0))
    snapshot._forget_old(home)
    assert set(home.iterdir()) == known


@pytest.mark.parametrize("on", ["dask://host:1", "rays", "  ", "kubernetes"])
def test_a_cluster_that_nobody_knows_is_refused_and_no_run_is_made(
    workspace: Workspace, on: str
) -> None:
    before = workspace.tracking.runs().runs
    with pytest.raises(InvalidInput, match="nothing executes steps at"):
        squares.run(on=on, n=1)
    assert workspace.tracking.runs().runs == before


@pytest.mark.parametrize(
    ("on", "environment", "told"),
    [("ray", "local", "of its own"), ("ray", "http://127.0.0.1:8265", "takes jobs")],
)
def test_addresses_that_are_no_running_cluster_are_refused(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, on: str, environment: str, told: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", environment)
    with pytest.raises(InvalidInput, match=told):
        squares.run(on=on, n=1)


def test_without_ray_the_extra_is_named(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingExtra, match="Ray cluster") as caught:
        squares.run(on="ray", n=1)
    assert "everloop[ray]" in caught.value.hint


def test_workers_reach_the_workspace_of_a_server(
    there: OneNode, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("EVERLOOP_TOKEN", "given-to-the-driver")
    with (
        serve(open_workspace(tmp_path / "served")) as url,
        open_workspace(url) as remote,
        using(remote),
    ):
        assert squares.run(on="ray", n=3, folder=folder) == [0, 1, 4]
        assert rows_of(remote, squares.run_id) == [("square", "ran")] * 3
        place = pickle.loads(pickle.loads(sent_again(there))[2]).place
        assert (place.location, place.token) == (url, "given-to-the-driver")
        assert "given" not in repr(place)
        for pool in node._pools.values():
            pool.close()
        node._pools.clear()
        node._workspaces.popitem()[1].close()
    assert len(marks(folder)) == 3


def test_a_password_goes_to_the_workers_in_the_address() -> None:
    url = "https://ann%40x:s%2Fe%3Ac@loop.example:7410/base"
    address, authorization = settings.server_login(url)
    assert "ann" not in address
    assert settings.login_of(address, authorization) == (url, "")
    assert settings.server_login(settings.login_of(address, authorization)[0])[1] == authorization
    assert settings.login_of("http://a:1", "Bearer abc") == ("http://a:1", "abc")
    assert settings.login_of("http://a:1", "") == ("http://a:1", "")


READER = """
from pathlib import Path
import everloop as ev

@ev.step
def read(turn: int) -> str:
    return Path("rates.txt").read_text()

@ev.pipeline
def main(write: bool) -> list[str]:
    first = read(1)
    if write:
        Path("rates.txt").write_text("new")
    return [first, read(2)]
"""


def test_a_data_file_that_is_written_in_between_goes_along_anew(
    workspace: Workspace, there: OneNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from everloop.pipelines.load import load_module

    monkeypatch.chdir(tmp_path)
    (tmp_path / "rates.txt").write_text("old")
    (tmp_path / "reader_flow.py").write_text(READER)
    flow = load_module(tmp_path / "reader_flow.py")
    assert flow.main.run(on="ray", write=True) == ["old", "new"]
    assert flow.main.run(write=False) == ["new", "new"]
