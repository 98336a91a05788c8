"""A package from a git clone to a production that runs: promoted, followed, rolled back."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import lightgbm
import numpy as np

import everloop as ev
from everloop.core.model import Signature
from everloop.core.package import PACKAGE_TAG, parse_place
from everloop.core.policy import RunPipeline
from everloop.core.schema import Field, Schema
from everloop.packages.archive import import_package
from everloop.workspace import Workspace
from tests.e2e.trees import answers, descendants, is_alive, wait_for

LOOP = """
import os
import time
from pathlib import Path

import everloop as ev
from rates import RATE


@ev.pipeline
def night(day: int) -> int:
    while not Path(os.environ["GATE"]).exists():
        time.sleep(0.02)
    ev.log(rate=RATE)
    return day * RATE


ev.on(ev.schedule("0 3 1 1 *"), owner="ops@example.org").run(night, day=2)
"""
SIGNATURE = Signature(
    Schema((Field("x", "float64", nullable=False),)), Schema((Field("late", "float64"),))
)
REQUEST = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP64", "data": [1.0]}]}


def everloop(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "everloop", *words],
        cwd=folder, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def built(clone: Path, rate: int) -> Path:
    """The file of a package that was built in the clone and came to staging there."""
    (clone / "rates.py").write_text(f"RATE = {rate}\n")
    assert everloop(clone, "package", "build", "loop.py").startswith("loop ")
    everloop(clone, "package", "promote", "loop@dev", "staging", "--reason", f"rate {rate}")
    everloop(clone, "package", "export", "loop@staging", f"{rate}.elpkg")
    return clone / f"{rate}.elpkg"


def git(folder: Path, *words: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)


def serve_a_model(ws: Workspace) -> None:
    x = np.linspace(-1, 1, 100).reshape(-1, 1)
    data = lightgbm.Dataset(x, x[:, 0], feature_name=["x"])
    booster = lightgbm.train({"verbose": -1, "num_threads": 1, "num_leaves": 4}, data, 2)
    ws.registry.register("delay", ev.model(booster, signature=SIGNATURE))
    ws.deployment.create("delay", model="delay", version=1)


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """`everloop up` on the package in production; yields where models answer."""
    log = folder / "up.log"
    command = [sys.executable, "-m", "everloop", "up", "--package", "loop@production"]
    command += ["--port", "0", "--serving-port", "0"]
    # What is unpacked on this machine goes with the test.
    env = {**os.environ, "GATE": str(folder / "gate"), "TMPDIR": str(folder)}
    with log.open("w") as told, subprocess.Popen(command, cwd=folder, stderr=told, env=env) as up:
        try:
            pattern = re.compile(r"serving +(http://[\d.:]+)")
            [serving] = wait_for("the address", lambda: pattern.findall(log.read_text()))
            wait_for("the model", lambda: answers(f"{serving}/v2/models/delay/ready"))
            yield serving
        finally:
            children = descendants(up.pid)
            up.terminate()
            up.wait(120)
            assert not [pid for pid in children if is_alive(pid)], log.read_text()


@contextmanager
def asking(serving: str) -> Iterator[list[int]]:
    """Ask the model all the time within the block; the statuses of the answers."""
    statuses: list[int] = []
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(timeout=60) as client:
            while not stop.wait(0.1):
                try:
                    answer = client.post(f"{serving}/v2/models/delay/infer", json=REQUEST)
                    statuses.append(answer.status_code)
                except httpx.HTTPError:
                    statuses.append(0)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield statuses
    finally:
        stop.set()
        thread.join()


def deployed(ws: Workspace) -> str:
    """The digest of the package that the automation runs."""
    action = ws.automation.automation("night").action
    assert isinstance(action, RunPipeline)
    place = parse_place(action.pipeline)
    assert place is not None
    return place.digest


def test_a_package_goes_from_a_clone_to_a_production_that_follows(tmp_path: Path) -> None:
    origin, clone, production = (tmp_path / name for name in ("origin", "clone", "production"))
    origin.mkdir()
    (origin / "loop.py").write_text(LOOP)
    git(origin, "init", "-q")
    git(origin, "add", ".")
    git(origin, "commit", "-qm", "first")
    git(tmp_path, "clone", "-q", str(origin), str(clone))
    files = [built(clone, 3), built(clone, 5)]

    production.mkdir()
    gate = production / "gate"
    with ev.open(production / ".everloop", actor="ops") as ws:
        serve_a_model(ws)
        first, second = (import_package(ws, file) for file in files)
        ws.packages.promote(first.ref, "production", reason="the first")
        with running(production) as serving, asking(serving) as statuses:
            assert deployed(ws) == first.digest
            began = ws.automation.fire("night").id

            def run_of(firing: str) -> str:
                return next((r.id for r in ws.tracking.runs().runs if r.trigger == firing), "")

            run = wait_for("the run", lambda: run_of(began))
            (clone / "rates.py").write_text("RATE = 'the working tree'\n")
            ws.packages.promote(second.ref, "production", reason="the next")
            wait_for("the next package", lambda: deployed(ws) == second.digest)
            gate.touch()
            after = ws.automation.fire("night").id

            def rate(run_id: str) -> float | None:
                return ws.tracking.run(run_id).metrics.get("rate")

            # What had begun ends with the code that it began with.
            assert wait_for("its end", lambda: rate(run)) == 3
            assert ws.tracking.run(run).tags[PACKAGE_TAG] == f"loop@{first.digest}"
            run = wait_for("the next run", lambda: run_of(after))
            assert wait_for("its end", lambda: rate(run)) == 5
            everloop(production, "package", "rollback", "loop", "production", "--reason", "worse")
            wait_for("the way back", lambda: deployed(ws) == first.digest)
        assert len(statuses) > 3
        assert set(statuses) == {200}
        kinds = [e.kind for e in ws.lineage.events() if e.subject == "package:loop"]
        assert kinds[2:] == [
            "package.Promoted", "package.Deployed", "package.Promoted", "package.Deployed",
            "package.RolledBack", "package.Deployed",
        ]  # fmt: skip
