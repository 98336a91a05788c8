"""The queue of firings: from an event to a run that has started, and how many jobs a second.

`python -m benchmarks.automation_queue [--quick]` prints both rows.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import everloop as ev
from benchmarks.harness import Context, Row
from benchmarks.report import table
from everloop.automation.dispatch import Dispatcher
from everloop.catalog.transaction import Transaction
from everloop.core.ids import new_id
from everloop.core.policy import Firing
from everloop.workspace import Workspace

JOB = """
import everloop as ev

@ev.step
def one(day: str) -> str:
    return day

@ev.pipeline
def job(day: str = "") -> str:
    return one(day)
"""


def queue_rows(context: Context) -> list[Row]:
    return [event_to_run(context), jobs(context)]


def event_to_run(context: Context) -> Row:
    """Commit of the event to the start of the run, by the run's own record."""
    triggers, repeats = context.size(1_000, 200), context.repeats(30)
    with _workspace() as ws:
        # Of all kinds; one in the middle is about what happens.
        for number in range(triggers - 1):
            trigger = (
                ev.schedule(f"{number % 60} {number % 24} 29 2 *", zone="Europe/Paris"),
                ev.new_data(f"other-{number}"),
                ev.run_failed(f"pipeline-{number}"),
                ev.registered(f"model-{number}"),
            )[number % 4]
            ws.automation.automate(ev.on(trigger, name=f"t{number}").run("job.py:job"))
        ws.automation.automate(ev.on(ev.new_data("rows"), name="wanted").run("job.py:job"))
        with _dispatching(ws) as dispatcher:
            seconds = [_one_event(ws, dispatcher, number) for number in range(repeats + 1)][1:]
        looks = []
        for _ in range(context.repeats(100)):
            start = time.perf_counter()
            ws.automation.decide()
            looks.append(time.perf_counter() - start)
        runs = len(ws.tracking.runs(limit=1000).runs)
    print(
        f"an idle look: {statistics.median(looks) * 1e6:.0f} us; slowest event {max(seconds):.3f} s"
    )
    return Row(
        area="automation",
        work=f"event to started run, {triggers:,} triggers, p50",
        unit="s",
        everloop=statistics.median(seconds),
        limit=_fresh_process(5),
        limit_name="a fresh `python -c pass`, which imports nothing",
        answers_equal=runs == repeats + 1,
        repeats=repeats,
    )


def _one_event(ws: Workspace, dispatcher: Dispatcher, number: int) -> float:
    _until(lambda: dispatcher.is_idle and dispatcher.is_ready)
    assert ws.catalog is not None
    with ws.catalog.write() as tx:
        tx.append("dataset.VersionCommitted", f"dataset:rows@{number}")
    began = datetime.now(UTC)
    _until(lambda: len(ws.tracking.runs(limit=1000).runs) > number)
    newest = max(run.started_at for run in ws.tracking.runs(limit=1000).runs)
    return (newest - began).total_seconds()


def jobs(context: Context) -> Row:
    """Claim and finish, with the event of the end, by one worker."""
    count = context.size(2_000, 300)
    with _workspace() as ws:
        assert ws.catalog is not None
        with ws.catalog.write() as tx:
            for _ in range(count):
                _put(tx)
        start = time.perf_counter()
        while (firing := ws.automation.claim(holder="bench", lease_s=60)) is not None:
            ws.automation.finish(firing.id, "done", fence=firing.fence)
        ours = count / (time.perf_counter() - start)
        done = sum(f.outcome == "done" for f in ws.automation.firings(limit=count + 1))
    return Row(
        area="automation",
        work=f"queue, claim and finish of {count:,} firings, SQLite",
        unit="jobs/s",
        everloop=ours,
        limit=_commits(count),
        limit_name="one durable SQLite commit a job (WAL, synchronous FULL)",
        answers_equal=done == count,
        repeats=count,
        better="high",
    )


def _put(tx: Transaction) -> None:
    from everloop.catalog import loops

    made = Firing(
        id=new_id(), loop="bench", key=new_id(), cause="", outcome="queued", scheduled_for=tx.now,
        action="run", due_at=tx.now, slots=9, created_at=tx.now, updated_at=tx.now,
    )  # fmt: skip
    loops.put_firing(tx, made)


def _commits(count: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        connection = sqlite3.connect(Path(folder) / "limit.sqlite", isolation_level=None)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE jobs (id INTEGER PRIMARY KEY, state TEXT)")
        start = time.perf_counter()
        for number in range(count):
            connection.execute("INSERT INTO jobs VALUES (?, 'done')", (number,))
        rate = count / (time.perf_counter() - start)
        connection.close()
        return rate


def _fresh_process(repeats: int) -> float:
    import subprocess

    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


@contextlib.contextmanager
def _workspace() -> Iterator[Workspace]:
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "job.py").write_text(JOB)
        os.chdir(folder)
        try:
            with ev.open(Path(folder, ".everloop")) as ws:
                yield ws
        finally:
            os.chdir(before)


@contextlib.contextmanager
def _dispatching(ws: Workspace) -> Iterator[Dispatcher]:
    command = (sys.executable, "-m", "everloop", "_work", "--dir", ws.location)
    dispatcher, stop = Dispatcher(ws, command), threading.Event()
    thread = threading.Thread(target=dispatcher.run_forever, args=(stop,))
    thread.start()
    try:
        yield dispatcher
    finally:
        stop.set()
        thread.join()


def _until(is_so: object) -> None:
    deadline = time.monotonic() + 120
    assert callable(is_so)
    while not is_so():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


if __name__ == "__main__":
    print(table(queue_rows(Context(quick="--quick" in sys.argv))))
