"""A logging process killed by SIGKILL: the store opens, all that was acknowledged is there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from everloop.workspace import Workspace

LOGS = """
    import sys
    import everloop as ev

    run = ev.run("e", workspace=ev.open(sys.argv[1]))
    print(run.id, flush=True)
    for step in range(10_000_000):
        run.log(loss=step / 7, step=step)
        if step % 500 == 499:
            run.flush() if step % 1000 == 999 else run.log(mark=1.0, step=step, sync=True)
            print(step, flush=True)
"""


@pytest.mark.parametrize("acknowledged", [1, 4])
def test_killed_process_loses_nothing_acknowledged(ws: Workspace, acknowledged: int) -> None:
    command = [sys.executable, "-c", textwrap.dedent(LOGS), ws.location]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        run_id = process.stdout.readline().strip()
        told = [int(process.stdout.readline()) for _ in range(acknowledged)]
        os.kill(process.pid, signal.SIGKILL)
        rest = process.stdout.read().split("\n")[:-1]
    last = int(rest[-1]) if rest else told[-1]
    points = ws.tracking.history(run_id, "loss", order="step")
    steps = [point.step for point in points]
    assert steps == list(range(len(steps)))  # in order and without a gap
    assert steps[-1] >= last
    assert all(point.value == point.step / 7 for point in points)
    assert ws.tracking.reap() == [run_id]  # its process is gone; nobody waits for the lease
    assert ws.tracking.run(run_id).state == "lost"
    resumed = ws.tracking.resume_run(run_id, owner="", lease_s=60)
    assert (resumed.state, resumed.fence) == ("running", 2)
