"""A writer killed by SIGKILL at random instants, and eight writers at once.

Nothing that was acknowledged is lost, and a reader beside them never sees a half. The rounds are
few; ``EVERLOOP_TEST_KILLS=200`` makes more, and ``EVERLOOP_TEST_SEED`` repeats what was printed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

import everloop as ev
from everloop.catalog import references, tables
from everloop.errors import NotFound
from everloop.workspace import Workspace
from tests.e2e.kill_child import COLUMNS, files, rows, work
from tests.e2e.mixed_child import mixed

KILLS = int(os.environ.get("EVERLOOP_TEST_KILLS", "20"))
SEED = int(os.environ.get("EVERLOOP_TEST_SEED", random.randrange(1 << 20)))

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.e2e.kill_child", "tests.e2e.mixed_child"])


@pytest.fixture(params=["sqlite", "postgres"])
def location(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    monkeypatch.setenv("EVERLOOP_OBJECTS", str(tmp_path / "objects"))
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_database"))
    return str(tmp_path / ".everloop")


class Known:
    """What was acknowledged, over all rounds."""

    def __init__(self) -> None:
        self.steps: set[int] = set()
        self.datasets: dict[int, int] = {}
        self.models: dict[int, int] = {}
        self.gone: set[int] = set()
        self.champion = 0

    def take(self, told: dict[str, Any]) -> None:
        kind, step = told["kind"], told.get("step", 0)
        number = told.get("number", 0)
        if kind == "log":
            self.steps.add(step)
        elif kind == "commit":
            self.datasets[number] = step
        elif kind == "register":
            self.models[number] = step
        elif kind == "alias":
            self.champion = number
        elif kind == "gc":
            self.gone.add(number)


class Reader(threading.Thread):
    """Reads beside the writer, all the time, and holds what it sees together."""

    def __init__(self, ws: Workspace, run_id: str) -> None:
        super().__init__(daemon=True)
        self._ws, self._run = ws, run_id
        self.stop = threading.Event()
        self.looks = 0
        self.fault: Exception | None = None

    def run(self) -> None:
        try:
            while not self.stop.wait(0.02):
                look(self._ws, self._run)
                self.looks += 1
        except Exception as error:  # noqa: BLE001 - kept, and raised in the test's own thread
            self.fault = error


def look(ws: Workspace, run_id: str) -> None:
    """One look at everything, as any reader has it."""
    metrics = ws.tracking.run(run_id).metrics
    assert len({metrics.get(key) for key in COLUMNS}) == 1, f"a torn batch: {metrics}"
    if not ws.data.datasets():
        return
    table = ws.data.read("d")
    [value] = set(table["value"].to_pylist())
    assert table.equals(rows(value)), f"half a version of {value}"
    try:
        version = ws.registry.by_alias("m", "champion")
        assert set(ws.registry.files("m", version.version)) == {"one", "two"}
    except NotFound:
        # None yet, or it moved away, was deleted and collected between the two calls.
        return


@contextmanager
def reading(location: str, run_id: str) -> Iterator[Reader]:
    with ev.open(location, actor="reader") as ws:
        reader = Reader(ws, run_id)
        reader.start()
        try:
            yield reader
        finally:
            reader.stop.set()
            reader.join()
    if reader.fault is not None:
        raise reader.fault
    assert reader.looks


def kill_one(location: str, objects: str, seed: int, run_id: str, known: Known) -> list[Any]:
    """Start a writer, kill it at a random instant; what it had acknowledged by then."""
    chance = random.Random(seed)
    mine, theirs = _FORKS.Pipe(duplex=False)
    child = _FORKS.Process(target=work, args=(location, objects, seed, run_id, theirs))
    child.start()
    theirs.close()
    told = []
    for _ in range(chance.randrange(8)):  # by answers, as a busy machine needs longer for each
        told.append(json.loads(mine.recv_bytes()))
    time.sleep(chance.uniform(0, 0.03))
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL, "it ended by itself, with an error"
    while True:
        try:
            told.append(json.loads(mine.recv_bytes()))
        except (EOFError, OSError):  # the end, or the line that it was killed in
            break
    for line in told:
        known.take(line)
    return told


def check(ws: Workspace, run_id: str, known: Known, told: list[Any]) -> None:
    """Hold the workspace against what was acknowledged."""
    found = {key: ws.tracking.history(run_id, key, order="step") for key in COLUMNS}
    steps = {key: {point.step for point in points} for key, points in found.items()}
    assert steps["a"] == steps["b"] == steps["c"], "a torn batch"
    assert steps["a"] >= known.steps, f"lost points {sorted(known.steps - steps['a'])[:9]}"
    for line in told:
        if line["kind"] == "commit":
            assert ws.data.read("d", line["number"]).equals(rows(line["step"]))
    if known.datasets:
        numbers = [version.number for version in ws.data.versions("d")]
        assert numbers == list(range(1, len(numbers) + 1))
        assert set(known.datasets) <= set(numbers)
    model = next((found for found in ws.registry.models() if found.name == "m"), None)
    assert model is not None or not known.models
    if model is None:
        return
    here = {version.version for version in ws.registry.versions("m")}
    assert not here & known.gone, "a deleted version came back"
    # The one that was being deleted when the writer was killed may be gone without a word.
    lost = set(known.models) - here - known.gone
    assert len(lost) <= 1, f"lost versions {lost}"
    known.gone |= lost
    for number in here & {line.get("number") for line in told if line["kind"] == "register"}:
        assert ws.registry.files("m", number) == files(str(known.models[number]))
    champion = model.aliases.get("champion", 0)
    if champion != known.champion:  # moved once more, not acknowledged
        moves = ws.registry.alias_history("m", "champion")
        assert [move.before for move in moves[-1:]] == [known.champion]
        known.champion = champion
    if champion:
        ws.registry.files("m", champion)


def check_objects(ws: Workspace) -> None:
    """Every object that a row names is in the store and whole."""
    assert ws.catalog is not None
    with ws.catalog.read() as tx:
        listed = {row.digest for row in tx.all(select(tables.objects.c.digest))}
        named = references.find(tx).digests
    for digest in named & listed:
        assert ws.blobs.get(digest) is not None
    moves = ws.registry.alias_history("m", "champion")
    for before, after in pairwise(moves):
        assert before.after == after.before, "a move of the alias was lost"


def test_killed_writer_loses_nothing_acknowledged(location: str, tmp_path: Path) -> None:
    print(f"EVERLOOP_TEST_SEED={SEED} EVERLOOP_TEST_KILLS={KILLS}")
    known, count = Known(), 0
    with ev.open(location, actor="parent") as ws:
        run_id = ws.tracking.create_run("killed").id
        with reading(location, run_id):
            for number in range(max(1, KILLS // 2)):
                seed = (SEED + number) % (1 << 31)
                told = kill_one(location, str(tmp_path / "objects"), seed, run_id, known)
                count += len(told)
                check(ws, run_id, known, told)
        check_objects(ws)
        ws.objects.collect(older_than="0d", grace="0")
        check_objects(ws)
    assert count > KILLS / 2, "it was always killed before it had done anything"


def test_eight_writers_at_once(location: str, tmp_path: Path) -> None:
    """Dense numbers of versions, no move of an alias lost, no batch torn."""
    objects = str(tmp_path / "objects")
    with ev.open(location, actor="parent") as ws:
        run_id = ws.tracking.create_run("mixed").id
        mine, theirs = _FORKS.Pipe(duplex=False)
        children = [
            _FORKS.Process(target=mixed, args=(location, objects, me, run_id, theirs))
            for me in range(8)
        ]
        for child in children:
            child.start()
        theirs.close()
        with reading(location, run_id):
            told = [json.loads(mine.recv_bytes()) for _ in children]
        for child in children:
            child.join(60)
            assert child.exitcode == 0
        done: dict[str, list[Any]] = {}
        for answers in told:
            for kind, values in answers.items():
                done.setdefault(kind, []).extend(values)
        numbers = sorted(done["commit"])
        assert numbers == list(range(1, len(numbers) + 1))
        assert [version.number for version in ws.data.versions("d")] == numbers
        assert sorted(done["register"]) == list(range(1, len(done["register"]) + 1))
        # A compare-and-set that was answered is a link of one chain; nobody's is missing.
        moves = [(m.before, m.after) for m in ws.registry.alias_history("m", "champion")]
        assert sorted(map(tuple, done["alias"])) == sorted(moves)
        for (_, after), (before, _) in pairwise(moves):
            assert after == before
        steps = {key: {p.step for p in ws.tracking.history(run_id, key)} for key in COLUMNS}
        assert steps["a"] == steps["b"] == steps["c"] == set(done["log"])
        params = ws.tracking.run(run_id).params
        # Of one parameter given by all, one value counts, and its giver alone was told so.
        assert params["winner"] in [str(value) for value in done["param"]]
        assert len(done["param"]) == 1
