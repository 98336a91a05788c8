"""Sources embedded and through a server: one commit for rows and place, or nothing of both."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pyarrow as pa
import pytest

import everloop as ev
from everloop.catalog.engine import Catalog
from everloop.core.access import Principal
from everloop.core.context import authenticated
from everloop.core.reads import fixing
from everloop.core.source import PullDraft, SourceFile
from everloop.core.time import ManualClock
from everloop.data import source_service
from everloop.errors import Conflict, InvalidInput, NotAllowed, NotFound
from everloop.workspace import Workspace

ROWS = pa.table({"id": pa.array([1, 2], pa.int64()), "x": ["a", "b"]})
FILE = SourceFile(path="a.parquet", size=1, digest="d", read=1, rows=2)


def test_a_pull_moves_rows_and_place_together(ws: Workspace) -> None:
    Path("a.csv").write_text("id,x\n1,a\n")
    source = ev.data_source("d", "*.csv", key="id")
    first = ev.pull(source)
    Path("b.csv").write_text("id,x\n1,b\n2,c\n")
    second = ev.pull("d")
    assert (first.ref, second.ref, second.read, second.rows) == ("d@1", "d@2", 2, 2)
    assert ev.read("d").to_arrow().to_pylist() == [{"id": 1, "x": "b"}, {"id": 2, "x": "c"}]
    state = ws.data.source_state("d")
    assert [file.path for file in state.files] == ["a.csv", "b.csv"]
    assert ws.data.pulls("d") == [second, first]
    assert ws.data.sources() == [ws.data.source("d")]
    kinds = [event.kind for event in ws.lineage.events(subject="dataset:d@2")]
    assert sorted(kinds) == ["dataset.VersionCommitted", "source.Pulled"]
    Path("c.csv").write_text("id,x\nx,c\n")
    with pytest.raises(InvalidInput, match=r"c\.csv line 2, id: 'x' is no int64"):
        ev.pull("d")
    assert ws.data.source_state("d").generation == state.generation


def test_of_two_pulls_from_one_state_one_counts(ws: Workspace) -> None:
    ws.data.declare_source(ev.data_source("d", "a.parquet"))
    draft = PullDraft(generation=0, files=(FILE,), read=2)
    ws.data.commit_pull("d", ROWS, draft)
    with pytest.raises(Conflict, match="another pull of d was first") as got:
        ws.data.commit_pull("d", ROWS, draft)
    assert got.value.details["winner"] == 1
    assert ws.data.version("d").rows == 2


def test_a_source_that_says_something_else_is_read_anew(ws: Workspace) -> None:
    Path("a.csv").write_text("id\n1\n")
    ev.pull(ev.data_source("d", "a.csv", key="id"))
    Path("b.csv").write_text("id\n2\n")
    made = ev.pull(ev.data_source("d", ["a.csv", "b.csv"], key="id"))
    assert made.read == 2
    ws.data.remove_source("d")
    with pytest.raises(NotFound, match="source of a dataset"):
        ev.pull("d")
    assert ws.data.version("d").rows == 2


def test_a_dataset_of_files_has_no_source(ws: Workspace) -> None:
    Path("photos").mkdir()
    Path("photos/1.jpg").write_bytes(b"x")
    ev.commit("photos", Path("photos"))
    with pytest.raises(Conflict, match="is a directory"):
        ev.pull(ev.data_source("photos", "a.csv"))
    with pytest.raises(InvalidInput, match="no name of a dataset"):
        ev.pull(ev.data_source("../photos", "a.csv"))


def test_an_upsert_beside_other_commits(ws: Workspace) -> None:
    ws.data.declare_source(ev.data_source("d", "a.parquet", key="id"))
    for n in range(40):
        part = pa.table({"id": pa.array([n, n + 1], pa.int64()), "x": [f"{n}", f"{n}"]})
        file = msgspec.structs.replace(FILE, path=f"{n}")
        ws.data.commit_pull("d", part, PullDraft(generation=n, files=(file,)))
    version = ws.data.version("d")
    assert version.rows == 41
    assert sum(block.delta for block in version.blocks) <= 17, "they are put together in between"
    found = ev.read("d").to_arrow().to_pylist()
    assert found == [{"id": n, "x": f"{min(n, 39)}"} for n in range(41)]
    ws.data.commit("d", ev.read("d").filter("id < 40").to_arrow(), mode="replace")
    ws.data.commit_pull("d", part, PullDraft(generation=40, files=(FILE,)))
    assert ws.data.version("d").rows == 41


@pytest.mark.parametrize("ws", ["sqlite"], indirect=True)
def test_what_a_server_is_told_is_guarded_and_takes_a_maintainer(ws: Workspace) -> None:
    source = ev.data_source("d", "../elsewhere.csv")
    with (
        authenticated(Principal(name="ann", role="contributor")),
        pytest.raises(NotAllowed, match="source:write"),
    ):
        ws.data.declare_source(source)
    with authenticated(Principal(name="bob", role="maintainer")):
        assert ws.data.declare_source(source).guarded
    Path("../elsewhere.csv").write_text("id\n1\n")
    with pytest.raises(NotAllowed, match="lies outside the folder"):
        ev.pull("d")


KILLED = """
import os, signal, sys
import everloop as ev
from everloop.catalog import sources
from everloop.core.context import using

def killed(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

point = sys.argv[1]
if point == "before":
    from everloop.data import pulling
    with ev.open() as ws:
        type(ws.data).commit_pull = killed
        with using(ws):
            ev.pull("d")
else:
    sources.add_pull = killed
    with ev.open() as ws, using(ws):
        ev.pull("d")
"""


@pytest.mark.parametrize("point", ["before", "within"])
@pytest.mark.parametrize("ws", ["sqlite"], indirect=True)
def test_killed_in_the_middle_the_next_pull_has_each_row_once(ws: Workspace, point: str) -> None:
    Path("a.jsonl").write_text('{"id":1}\n')
    ev.pull(ev.data_source("d", "a.jsonl"))
    with open("a.jsonl", "a") as file:
        file.write('{"id":2}\n')
    env = {**os.environ, "TMPDIR": os.getcwd()}  # what a killed process leaves goes with the test
    done = subprocess.run([sys.executable, "-c", KILLED, point], env=env, check=False)
    assert done.returncode == -9
    assert ws.data.version("d").rows == 1
    assert ev.pull("d").rows == 2
    assert ev.read("d").to_arrow()["id"].to_pylist() == [1, 2]


def test_killed_between_the_version_and_the_place_is_neither(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one transaction: what fails after the version was written undoes it."""
    ws.data.declare_source(ev.data_source("d", "a.parquet"))

    def failing(*_: object) -> None:
        raise Conflict("the power went")

    monkeypatch.setattr(source_service.store, "advance", failing)
    draft = PullDraft(generation=0, files=(FILE,), read=2)
    with pytest.raises(Conflict, match="power"):
        ws.data.commit_pull("d", ROWS, draft)
    monkeypatch.undo()
    with pytest.raises(NotFound):
        ws.data.version("d")
    assert ws.data.commit_pull("d", ROWS, draft).number == 1


def test_a_run_pulls_and_its_repetition_gets_the_same(ws: Workspace, tmp_path: Path) -> None:
    Path("a.jsonl").write_text('{"id":1}\n')
    Path("flow.py").write_text(FLOW)
    from everloop.pipelines.load import load_pipeline

    flow = load_pipeline("flow.py:flow")
    assert flow.run() == 1
    with open("a.jsonl", "a") as file:
        file.write('{"id":2}\n')
    assert flow.run() == 2, "a step that pulls is not taken from the store"
    runs = ws.tracking.runs(limit=9).runs
    pulls = ws.data.pulls("stream")
    assert {pull.run_id for pull in pulls} == {run.id for run in runs}
    assert ws.data.version("stream", 2).run_id == pulls[0].run_id
    made = ws.lineage.downstream(f"run:{pulls[0].run_id}", depth=1)
    assert "dataset:stream@2" in made.refs
    with open("a.jsonl", "a") as file:
        file.write('{"id":3}\n')
    with fixing(runs[0].id, {("pull", "stream"): ["1"]}):
        assert ev.pull("stream") == pulls[1]
    assert ws.data.version("stream").number == 2, "a repetition pulls nothing"


FLOW = """
import everloop as ev

@ev.step
def fetch() -> ev.Table:
    ev.pull(ev.data_source("stream", "a.jsonl"))
    return ev.read("stream")

@ev.step
def count(rows: ev.Table) -> int:
    return rows.num_rows

@ev.pipeline
def flow() -> int:
    return count(fetch())
"""


LOOP = """
import everloop as ev

orders = ev.data_source("orders", "orders.jsonl", key="id")

@ev.pipeline
def fetch() -> None:
    ev.pull(orders)

@ev.pipeline
def retrain() -> None:
    rows = ev.read("orders")
    ev.commit("model", {"rows": [rows.num_rows]})

ev.on(ev.schedule("0 * * * *"), name="fetch").run(fetch)
ev.on(ev.new_data("orders"), name="retrain").run(retrain)
"""


@pytest.mark.parametrize("ws", ["sqlite"], indirect=True)
def test_a_schedule_pulls_and_what_is_new_retrains(ws: Workspace, clock: ManualClock) -> None:
    """Source, new version, trigger, retraining: a pull is a pipeline, so all rules hold for it."""
    Path("orders.jsonl").write_text('{"id":1}\n')
    Path("hourly.py").write_text(LOOP)
    from everloop.pipelines.load import load_module

    load_module("hourly.py")
    runner = ws.loop_runner()

    def hour() -> list[str]:
        clock.advance(hours=1)
        before = {firing.id for firing in ws.automation.firings()}
        for _ in range(3):
            runner.tick()
        return sorted(f.loop for f in ws.automation.firings() if f.id not in before)

    assert hour() == ["fetch", "retrain"]
    assert ev.read("model").to_arrow().to_pylist() == [{"rows": 1}]
    assert hour() == ["fetch"], "nothing new retrains nothing"
    with open("orders.jsonl", "a") as file:
        file.write('{"id":2}\n')
    assert hour() == ["fetch", "retrain"]
    assert ev.read("model").to_arrow().to_pylist() == [{"rows": 2}]
    Path("orders.jsonl").unlink()
    assert hour() == ["fetch"]
    assert [run.state for run in ws.tracking.runs(limit=1).runs] == ["failed"]


def test_the_tables_of_sources_hold_no_secret_and_no_object(ws: Workspace) -> None:
    ws.data.declare_source(ev.data_source("d", "https://x.example/a.csv", credentials="env:TOKEN"))
    if isinstance(ws.catalog, Catalog):
        told = [event.body for event in ws.catalog.events(kind="source.Declared")]
        assert told == [
            {"locations": ["https://x.example/a.csv"], "mode": "append", "format": "csv"}
        ]
    assert ws.data.source("d").credentials == "env:TOKEN"
