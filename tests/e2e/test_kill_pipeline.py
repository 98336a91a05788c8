"""Runs of a pipeline killed by SIGKILL at random instants: driver, a worker, or all of it.

Whatever was killed, a finished step is not executed again, nothing is committed twice, the run goes
on under its id to the same result, and no process stays. ``EVERLOOP_TEST_KILLS=100`` makes more
rounds, and ``EVERLOOP_TEST_SEED`` repeats what was printed.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

import everloop as ev
from everloop.workspace import Workspace
from tests.e2e.trees import descendants, wait_for

KILLS = int(os.environ.get("EVERLOOP_TEST_KILLS", "2"))
SEED = int(os.environ.get("EVERLOOP_TEST_SEED", random.randrange(1 << 20)))
#: Executions of steps by a run that nobody disturbs: less can be waited for before the kill.
_MARKS = 84


class Rig(NamedTuple):
    """One workspace, and where the steps leave their marks."""

    location: str
    marks: Path
    tag: str

    def start(self, salt: int, resume: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.e2e.kill_flow", str(salt), resume]
        environment = os.environ | {
            "EVERLOOP_DIR": self.location,
            "EVERLOOP_TEST_MARKS": str(self.marks),
            "EVERLOOP_TEST_TAG": self.tag,
        }
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def executed(self) -> Counter[str]:
        return Counter(self.marks.read_text().split())

    def alive(self) -> set[int]:
        """Every process that descends from one that we started, whoever its parent is now."""
        found = set()
        for entry in Path("/proc").iterdir():
            try:
                if f"EVERLOOP_TEST_TAG={self.tag}".encode() in (entry / "environ").read_bytes():
                    found.add(int(entry.name))
            except (OSError, ValueError):
                continue
        return found - {os.getpid()}


@pytest.fixture(params=["sqlite", "postgres"])
def rig(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setenv("EVERLOOP_OBJECTS", str(tmp_path / "objects"))
    location = str(tmp_path / ".everloop")
    if request.param == "postgres":
        location = str(request.getfixturevalue("postgres_database"))
    marks = tmp_path / "marks"
    marks.touch()
    return Rig(location, marks, f"{os.getpid()}-{tmp_path.name}")


def kill_at_random(rig: Rig, process: subprocess.Popen[str], chance: random.Random) -> str:
    """Kill something at a random instant; what it was, or empty if the run had ended by then."""
    what = chance.choice(("driver", "worker", "tree"))
    before = rig.executed().total()
    more = chance.choice((0, chance.randrange(_MARKS // 2)))
    while rig.executed().total() < before + more and process.poll() is None:
        time.sleep(0.001)
    # From the start of Python on where nothing was waited for, else within a few steps.
    time.sleep(chance.uniform(0, 0.03 if more else 0.6))
    if process.poll() is not None:
        return ""
    below = sorted(descendants(process.pid))
    victims = {"driver": [process.pid], "tree": [process.pid, *below]}.get(what)
    for pid in victims or chance.sample(below, min(1, len(below))):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return what


def call_of(ws: Workspace, key: str) -> str:
    memo = ws.pipelines.memo(key)
    assert memo is not None, f"the step of key {key} ended and has no result"
    return memo.key.parts["param:name"].strip('"')


def committed(ws: Workspace, run_id: str) -> set[str]:
    """The calls whose end the run has; each once."""
    ran = [row for row in ws.pipelines.steps(run_id) if row.outcome == "ran"]
    assert len({row.key for row in ran}) == len(ran), "a step was committed twice"
    seqs = [row.seq for row in ws.pipelines.steps(run_id)]
    assert len(set(seqs)) == len(seqs)
    return {call_of(ws, row.key) for row in ran}


def expected(salt: int) -> float:
    return sum(
        sum((20_000 + t) * (20_000 + t - 1) / 2 + len(f"item{n}.{salt}.{t}") for n in range(24))
        + 2 * sum(range(4)) + 1 + 6 + 1
        for t in range(2)
    )  # fmt: skip


def one_run(rig: Rig, ws: Workspace, salt: int, chance: random.Random, kills: int) -> Counter[str]:
    """Start a run and kill it up to `kills` times; then let it end, and check all of it."""
    killed: Counter[str] = Counter()
    run_id, done, then = "", set[str](), Counter[str]()
    while True:
        process = rig.start(salt, run_id)
        if killed.total() < kills:
            what = kill_at_random(rig, process, chance)
            killed[what or "ended"] += 1
        out, err = process.communicate(timeout=120)
        runs = [run for run in ws.tracking.runs().runs if run.params.get("salt") == str(salt)]
        assert len(runs) <= 1
        if runs:
            assert run_id in ("", runs[0].id), "the run has another id"
            run_id = runs[0].id
            # What was finished before this round was not executed in it.
            again = {call for call in done if rig.executed()[call] != then[call]}
            assert not again, f"finished, and executed again: {again}"
            now = committed(ws, run_id)
            assert now >= done, f"lost: {done - now}"
            done, then = now, rig.executed()
        if process.returncode == 0:
            break
        assert process.returncode in (1, -signal.SIGKILL), err
        assert process.returncode < 0 or "died of SIGKILL" in err, err
    assert float(out) == expected(salt)
    assert ws.tracking.run(run_id).state == "finished"
    kinds = Counter(event.kind for event in ws.catalog.events(subject=f"run:{run_id}"))  # type: ignore[union-attr]
    assert kinds["run.Started"] == kinds["run.Finished"] == 1
    assert len(done) == len({call for call in rig.executed() if f".{salt}." in call}) == 78
    wait_for("the end of every process", lambda: not rig.alive())
    return killed


@pytest.mark.timeout(600 + 15 * KILLS)
def test_killed_run_does_nothing_twice_and_ends_the_same(rig: Rig) -> None:
    print(f"EVERLOOP_TEST_SEED={SEED} EVERLOOP_TEST_KILLS={KILLS}")
    chance = random.Random(SEED)
    total: Counter[str] = Counter()
    with ev.open(rig.location, actor="parent") as ws:
        while total.total() - total["ended"] < KILLS:
            total += one_run(rig, ws, total.total(), chance, min(KILLS, 10))
            print(dict(total), flush=True)
