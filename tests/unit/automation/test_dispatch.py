"""Firings worked off by children: they die, are stopped, run side by side; nothing is lost."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import everloop as ev
from everloop.automation.dispatch import Dispatcher
from everloop.automation.work import SCHEDULED_TAG
from everloop.core.policy import Firing
from everloop.workspace import Workspace

JOB = """
import os, pathlib, signal, time
from datetime import datetime
import everloop as ev

@ev.step
def first(name: str) -> str:
    with open(f"{name}.first", "a") as file:
        file.write("x")
    return name

def dies(name: str, times: int) -> None:
    with open(f"{name}.tries", "a") as file:
        file.write("x")
    if len(pathlib.Path(f"{name}.tries").read_text()) <= times:
        os.kill(os.getpid(), signal.SIGKILL)

@ev.pipeline
def job(name: str, scheduled_for: datetime, event: dict, times: int = 0) -> str:
    first(name)
    dies(name, times)
    pathlib.Path(f"{name}.seen").write_text(f"{scheduled_for.isoformat()} {event.get('kind')}")
    return name

@ev.pipeline
def waits(name: str) -> str:
    first(name)
    pathlib.Path(f"{name}.began").touch()
    while not pathlib.Path("go").exists():
        time.sleep(0.02)
    return name
"""


@pytest.fixture
def ws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    (tmp_path / "job.py").write_text(JOB)
    monkeypatch.chdir(tmp_path)
    with ev.open(tmp_path / ".everloop", actor="tester") as workspace:
        yield workspace


@contextmanager
def dispatching(ws: Workspace, size: int = 4) -> Iterator[Dispatcher]:
    command = (sys.executable, "-m", "everloop", "_work", "--dir", ws.location)
    made, stop = Dispatcher(ws, command, size=size), threading.Event()
    thread = threading.Thread(target=made.run_forever, args=(stop,))
    thread.start()
    try:
        yield made
    finally:
        stop.set()
        thread.join()


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not is_so():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)


def fire(ws: Workspace, name: str, pipeline: str = "job", **arguments: object) -> Firing:
    given = {"name": name, **arguments}
    ws.automation.automate(ev.on(ev.run_failed(), name=name).run(f"job.py:{pipeline}", **given))
    return ws.automation.fire(name)


def closed(ws: Workspace, name: str) -> bool:
    return all(f.outcome in ("done", "failed") for f in ws.automation.firings(name))


def test_children_work_side_by_side_and_one_that_dies_goes_on_with_its_run(
    ws: Workspace, tmp_path: Path
) -> None:
    fire(ws, "long", "waits")
    fire(ws, "once", times=1)
    fire(ws, "always", times=99)
    asked = fire(ws, "quick")
    with dispatching(ws, size=2):
        until(lambda: all(closed(ws, name) for name in ("once", "always", "quick")))
        assert not closed(ws, "long")  # nobody waited for it
        (tmp_path / "go").touch()
        until(lambda: closed(ws, "long"))
    done = {f.loop: f for f in ws.automation.firings()}
    assert {name: f.outcome for name, f in done.items()} == {
        "long": "done", "once": "done", "always": "failed", "quick": "done"
    }  # fmt: skip
    assert "SIGKILL" in done["always"].reason or "status -9" in done["always"].reason
    for name, tries in (("once", 2), ("always", 3)):
        assert (
            tmp_path / f"{name}.first"
        ).read_text() == "x"  # a step that ended is not done again
        assert (tmp_path / f"{name}.tries").read_text() == "x" * tries
    runs = ws.tracking.runs().runs
    assert len(runs) == 4  # the same run went on
    found = ws.tracking.run(done["quick"].run_id)
    assert found.trigger == asked.id
    assert found.actor == "automation:quick"
    assert found.tags[SCHEDULED_TAG] == asked.scheduled_for.isoformat()
    seen = (tmp_path / "quick.seen").read_text()
    assert seen == f"{asked.scheduled_for.isoformat()} automation.Asked"


def test_what_a_supervisor_was_at_when_it_was_stopped_goes_on_under_the_next(
    ws: Workspace, tmp_path: Path
) -> None:
    fire(ws, "long", "waits")
    with dispatching(ws):
        until((tmp_path / "long.began").exists)
    [left] = ws.automation.firings("long")
    assert (left.outcome, left.attempts) == ("queued", 0)
    (tmp_path / "go").touch()
    with dispatching(ws):
        until(lambda: closed(ws, "long"))
    [done] = ws.automation.firings("long")
    assert (done.outcome, done.run_id) == ("done", left.run_id)
    assert len(ws.tracking.runs().runs) == 1
    assert (tmp_path / "long.first").read_text() == "x"


def test_two_supervisors_at_once_do_everything_once(ws: Workspace, tmp_path: Path) -> None:
    names = [f"job{number}" for number in range(4)]
    with dispatching(ws, size=1), dispatching(ws, size=1):
        for name in names:
            fire(ws, name)
        until(lambda: all(closed(ws, name) for name in names))
    assert {f.outcome for f in ws.automation.firings()} == {"done"}
    assert len(ws.tracking.runs().runs) == len(names)
    assert all((tmp_path / f"{name}.first").read_text() == "x" for name in names)


def test_a_file_that_is_gone_or_broken_fails_its_firing_alone(
    ws: Workspace, tmp_path: Path
) -> None:
    (tmp_path / "broken.py").write_text("raise RuntimeError('not today')")
    told = ev.on(ev.run_failed("gone"), name="told").notify("log:")
    ws.automation.automate(told)
    for name in ("gone", "broken"):
        ws.automation.automate(ev.on(ev.new_data("x"), name=name).run(f"{name}.py:job"))
        ws.automation.fire(name)
    with dispatching(ws):
        until(lambda: len(ws.automation.firings("told")) == 1)
        until(lambda: all(closed(ws, name) for name in ("gone", "broken", "told")))
    assert "no file" in ws.automation.firings("gone")[0].reason
    assert "RuntimeError" in ws.automation.firings("broken")[0].reason
