"""`everloop demo` as a process: stopped again and again, finished, kept up."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest

import everloop as ev
from everloop.pipelines.load import load_module
from tests.e2e.trees import answers, descendants, is_alive, wait_for

# On a machine that is many times slower than usual, too; nothing waits that long.
pytestmark = pytest.mark.timeout(1800)

EXAMPLE = Path(__file__).parents[2] / "examples" / "flights"
NAME = "flights-delay"
#: The shortest replay with a retraining and a whole rollout.
UNTIL = "2013-04-27"
HTTP_EVERY = 25
BEGIN, END = datetime(2013, 4, 1, tzinfo=UTC), datetime(2013, 4, 27, tzinfo=UTC)


class Whole(NamedTuple):
    folder: Path
    document: dict[str, Any]


def command(folder: Path, *more: str) -> list[str]:
    options = ["--until", UNTIL, "--http-every", str(HTTP_EVERY), "--json", *more]
    return [sys.executable, "-m", "everloop", "demo", "--dir", str(folder), *options]


def demo(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(folder, *more), capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A demo that nobody stopped."""
    folder = tmp_path_factory.mktemp("demo") / "whole"
    done = demo(folder)
    assert done.returncode == 0, done.stderr
    return Whole(folder, json.loads(done.stdout))


def happened(folder: Path, kind: str) -> int:
    """How many events of `kind` there are, seen from outside."""
    try:
        with closing(sqlite3.connect(f"file:{folder}/catalog.sqlite?mode=ro", uri=True)) as catalog:
            query = "SELECT count(*) FROM events WHERE kind = ?"
            return int(catalog.execute(query, (kind,)).fetchone()[0])
    except sqlite3.OperationalError:  # not there yet
        return 0


def reached(folder: Path) -> str:
    """The first day that is not replayed yet; empty while the first model is not there."""
    mark = folder / "replay.json"
    return (json.loads(mark.read_text())["next"] or "")[:10] if mark.exists() else ""


def stop(
    folder: Path, when: Callable[[], bool], number: signal.Signals, meanwhile: Callable[[], None]
) -> str:
    """Start the demo, wait for a moment, end it by a signal; what it said. Nothing is left of it.

    SIGKILL goes to all its processes, as when the machine goes down.
    """
    with subprocess.Popen(
        command(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            wait_for("the moment to stop", lambda: when() or process.poll() is not None, 900)
            assert process.poll() is None, process.communicate()
            meanwhile()
            tree = descendants(process.pid)
        except BaseException:
            process.kill()
            raise
        for pid in (process.pid, *tree) if number == signal.SIGKILL else (process.pid,):
            os.kill(pid, number)
        out, said = process.communicate(timeout=300)
        assert out == ""
        wanted = -number if number == signal.SIGKILL else 128 + number
        assert process.returncode == wanted, said
        if number == signal.SIGKILL:
            wait_for("the end of all", lambda: not any(is_alive(pid) for pid in tree))
        assert not [line for pid, line in tree.items() if is_alive(pid)]
    return said


def answered(folder: Path) -> pl.DataFrame:
    """Request id, value and version of every answer that was given, by request id."""
    with ev.open(folder) as workspace:
        columns = ["request_id", "arm", "version", "value"]
        log = workspace.predictions.read(NAME, since=BEGIN, until=END, columns=columns)
    frame = pl.from_arrow(log)
    assert isinstance(frame, pl.DataFrame)
    return frame.filter(pl.col("arm") != "shadow").drop("arm").sort("request_id")


def over_http() -> set[str]:
    """The flights that are asked about over HTTP."""
    flights = load_module(EXAMPLE / "world.py").flights().with_row_index("number")
    return set(flights.filter(pl.col("number") % HTTP_EVERY == 0)["flight_id"])


def test_a_demo_stopped_at_any_moment_goes_on_and_comes_to_the_same(
    whole: Whole, tmp_path: Path
) -> None:
    folder = tmp_path / "stopped"

    def nothing() -> None:
        pass

    def refuses_another() -> None:
        other = demo(folder)
        assert other.returncode == 6
        assert other.stdout == ""
        assert "another demo is running" in other.stderr

    stops: list[tuple[Callable[[], bool], signal.Signals, Callable[[], None]]] = [
        (lambda: happened(folder, "run.Started") == 1, signal.SIGKILL, nothing),
        (lambda: reached(folder) >= "2013-04-04", signal.SIGINT, refuses_another),
        (lambda: reached(folder) >= "2013-04-10", signal.SIGKILL, nothing),
        (lambda: happened(folder, "run.Started") == 2, signal.SIGKILL, nothing),
        (lambda: happened(folder, "rollout.Started") == 1, signal.SIGTERM, nothing),
    ]
    day = ""
    for when, number, meanwhile in stops:
        said = stop(folder, when, number, meanwhile)
        assert ("going on with" in said) is bool(day)
        if number != signal.SIGKILL:
            assert f"go on with: everloop demo --dir {folder}" in said
        assert reached(folder) >= day
        day = reached(folder)
    done = demo(folder)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)

    # What was finished before a stop was not done again.
    for kind in ("run.Started", "model.Registered", "verdict.Given", "rollout.Started"):
        assert happened(folder, kind) == happened(whole.folder, kind), kind
    [month], [expected] = document["months"], whole.document["months"]
    for name in ("month", "flights", "retrained", "refused", "promoted"):
        assert month[name] == expected[name]
    # An answer over HTTP may come before or after a swap that happens under traffic, in any run;
    # the answers in batch are the same to the last bit.
    assert month["frozen"] == pytest.approx(expected["frozen"], abs=1e-9)
    assert month["loop"] == pytest.approx(expected["loop"], abs=1e-3)
    ours, theirs = answered(folder), answered(whole.folder)
    assert ours["request_id"].is_unique().all()
    assert ours["request_id"].to_list() == theirs["request_id"].to_list()
    assert set(ours.filter(ours["value"] != theirs["value"])["request_id"]) <= over_http()
    assert ours.height == sum(document["answers"][way] for way in ("http", "batch"))
    for way in ("http", "batch"):
        assert document["answers"][way] == whole.document["answers"][way]
    assert document["answers"]["different"] == document["answers"]["http_errors"] == 0


def test_the_document_has_the_promised_form(whole: Whole) -> None:
    document = whole.document
    figures = {"auc": float, "brier": float}
    for row in (*document["months"], document["mean"]):
        for who in ("frozen", "loop"):
            assert {name: type(value) for name, value in row[who].items()} == figures
    [month] = document["months"]
    assert month["month"] == "2013-04"
    assert (month["retrained"], month["refused"], month["promoted"]) == (2, 0, 1)
    assert document["seconds"] > 0
    assert document["peak_memory_mb"] > 100


def test_a_finished_demo_shows_its_result_and_does_nothing_again(whole: Whole) -> None:
    def events() -> Counter[str]:
        with ev.open(whole.folder) as workspace:
            return Counter(event.kind for event in workspace.lineage.events(limit=10_000))

    before = events()
    again = demo(whole.folder)
    assert "is finished" in again.stderr
    assert json.loads(again.stdout) == whole.document
    assert events() == before


@pytest.fixture
def kept_up(whole: Whole) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    with subprocess.Popen(
        command(whole.folder, "--keep-up", "--port", "0"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            assert json.loads(process.stdout.readline()) == whole.document
            said = ""
            while len(found := re.findall(r"http://\S+", said)) < 2:
                line = process.stderr.readline()
                assert line, said
                said += line
            yield process, found
        finally:
            process.kill()


def listening(tree: dict[int, str]) -> set[str]:
    """The addresses, as /proc writes them, on which a process of the tree listens."""
    sockets = set()
    for pid in tree:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            found = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(entry))
            sockets |= {found[1]} if found else set()
    addresses = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in sockets:
                addresses.add(fields[1].partition(":")[0])
    return addresses


def test_keep_up_serves_pages_and_models_here_only_until_it_is_stopped(
    kept_up: tuple[subprocess.Popen[str], list[str]],
) -> None:
    process, (pages, serving) = kept_up
    wait_for("the pages", lambda: answers(f"{pages}/health"))
    assert NAME in answers(pages)
    wait_for("the model", lambda: answers(f"{serving}/v2/models/{NAME}/ready"))
    given = {"sched_dep": "2013-04-27T12:00:00+00:00", "carrier": "UA", "origin": "EWR"}
    given |= {"dest": "ORD", "tailnum": "N14228"}
    inputs = [
        {"name": name, "shape": [1], "datatype": "BYTES", "data": [value]}
        for name, value in given.items()
    ]
    for name, number in (("distance", 719.0), ("hour", 8.0)):
        inputs.append({"name": name, "shape": [1], "datatype": "FP64", "data": [number]})
    for address in (pages, serving):
        answer = json.loads(answers(f"{address}/v2/models/{NAME}/infer", {"inputs": inputs}))
        assert 0 < answer["outputs"][0]["data"][0] < 1
        assert answer["model_version"] == "2"

    tree = descendants(process.pid)
    assert len(tree) == 2  # a worker and the server; no scheduler, for 2013 is over
    assert listening({process.pid: "", **tree}) == {"0100007F"}
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 0
    assert not [pid for pid in tree if is_alive(pid)]
