"""Process trees: restarts, order, force, and nothing left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from everloop.core.process import ChildProcess
from everloop.errors import BackendError, InvalidInput
from everloop.serving.supervisor import (
    ChildSpec,
    ProcessTree,
    bind,
    restart_delay_s,
    worker_children,
)

SLEEP = (sys.executable, "-c", "import time; time.sleep(60)")
FAIL = (sys.executable, "-S", "-c", "raise SystemExit(3)")


def spec(name: str, arguments: tuple[str, ...] = SLEEP, **more: object) -> ChildSpec:
    return ChildSpec(name=name, arguments=arguments, **more)  # type: ignore[arg-type]


def wait_until_dead(tree: ProcessTree, now_s: float) -> None:
    deadline = time.monotonic() + 20
    while any(child.state == "running" for child in tree.status):
        assert time.monotonic() < deadline
        time.sleep(0.01)
        for child in tree._children:
            child.check(now_s)


def test_delay_grows_and_is_bounded() -> None:
    delays = [restart_delay_s(failures) for failures in range(20)]
    assert delays[:4] == [0.0, 0.1, 0.2, 0.4]
    assert delays == sorted(delays)
    assert max(delays) == 10.0


def test_dead_child_is_started_again_after_its_delay() -> None:
    tree = ProcessTree([spec("job", FAIL)])
    tree.tick(0.0)
    wait_until_dead(tree, 1.0)
    assert tree.tick(1.0) == pytest.approx(0.1)
    assert tree.status[0].state == "waiting"
    assert tree.status[0].exit_status == 3
    tree.tick(1.2)
    assert tree.status[0].restarts == 1
    tree.stop()


def test_child_that_was_well_is_back_at_once() -> None:
    tree = ProcessTree([spec("job")])
    tree.tick(0.0)
    first = tree.status[0].pid
    os.kill(first, signal.SIGKILL)
    wait_until_dead(tree, 100.0)
    tree.tick(100.0)
    assert tree.status[0].state == "running"
    assert tree.status[0].pid != first
    tree.stop()
    assert tree.status[0].exit_status == -signal.SIGTERM


def test_child_that_ends_for_good_stays_ended() -> None:
    tree = ProcessTree([spec("once", FAIL, restart=False)])
    tree.tick(0.0)
    wait_until_dead(tree, 1.0)
    tree.tick(50.0)
    assert tree.status[0].state == "ended"
    assert tree.status[0].restarts == 0


def test_tree_gives_up_on_a_child_that_never_starts() -> None:
    tree = ProcessTree([spec("other"), spec("job", ("/no/such/program",), max_failures=2)])
    assert tree.run() == 1
    assert all(child.state != "running" for child in tree.status)


def test_child_that_ignores_the_signal_is_killed_with_its_own_children(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    code = (
        "import signal, subprocess, sys, time, pathlib\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"child = subprocess.Popen({list(SLEEP)!r})\n"
        f"pathlib.Path({str(mark)!r}).write_text(str(child.pid))\n"
        "time.sleep(60)\n"
    )
    tree = ProcessTree([spec("stubborn", (sys.executable, "-c", code), grace_s=0.05)])
    tree.tick(0.0)
    deadline = time.monotonic() + 20
    while not (mark.exists() and mark.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    tree.stop()
    assert tree.status[0].exit_status == -signal.SIGKILL
    grandchild = int(mark.read_text())
    while Path(f"/proc/{grandchild}").exists():
        state = Path(f"/proc/{grandchild}/stat").read_text().rsplit(")", 1)[1].split()[0]
        if state == "Z":
            break
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_higher_orders_stop_first() -> None:
    tree = ProcessTree([spec("api", order=0), spec("worker", order=1)])
    tree.tick(0.0)
    stopped: list[str] = []
    for child in tree._children:
        process = child.process
        assert process is not None
        original = process.terminate

        def terminate(name: str = child.spec.name, original: object = original) -> None:
            stopped.append(name)
            original()  # type: ignore[operator]

        process.terminate = terminate  # type: ignore[method-assign]
    tree.stop()
    assert stopped == ["worker", "api"]


def test_names_stand_once() -> None:
    with pytest.raises(InvalidInput):
        ProcessTree([spec("a"), spec("a")])


def test_child_dies_when_its_parent_is_killed(tmp_path: Path) -> None:
    child = (
        "from everloop.core.process import watch_lifeline; import time, pathlib, os\n"
        f"watch_lifeline(); pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        "time.sleep(60)"
    )
    parent = (
        "from everloop.core.process import ChildProcess; import sys, time\n"
        f"ChildProcess([sys.executable, '-c', {child!r}]); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent])
    deadline = time.monotonic() + 20
    mark = tmp_path / "pid"
    while not (mark.exists() and mark.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    pid = int(mark.read_text())
    while Path(f"/proc/{pid}").exists():
        if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
            break
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_port_in_use_is_said_in_a_sentence() -> None:
    with bind("127.0.0.1", 0) as taken:
        assert taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        port = taken.getsockname()[1]
        with pytest.raises(BackendError, match=f"cannot listen on 127.0.0.1:{port}"):
            bind("127.0.0.1", port)


def test_accepted_socket_takes_the_options_over() -> None:
    with bind("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_workers_share_the_socket_and_their_counts() -> None:
    with bind("127.0.0.1", 0) as listening:
        children = worker_children(("run",), listening, 2, metrics_folder="counts")
        fd = listening.fileno()
        assert [child.arguments[-1] for child in children] == ["worker-0", "worker-1"]
        assert {child.pass_fds for child in children} == {(fd,)}
        assert {child.environment["PROMETHEUS_MULTIPROC_DIR"] for child in children} == {"counts"}
        with pytest.raises(InvalidInput):
            worker_children(("run",), listening, 0, metrics_folder="counts")


def test_child_that_cannot_start_leaves_no_descriptor() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(OSError, match="No such file"):
            ChildProcess(["/no/such/program"])
    assert len(os.listdir("/proc/self/fd")) == before
