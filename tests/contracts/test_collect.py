"""Collection of garbage: what is named stays, what is not goes, whatever happens in between."""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select

import everloop as ev
from everloop.catalog import tables
from everloop.core.artifact import ModelArtifact
from everloop.core.pipeline import Memo, StepKey
from everloop.core.run import StepRun
from everloop.core.schema import canonical_json
from everloop.core.time import ManualClock
from everloop.core.trace import Span
from everloop.errors import Conflict, InvalidInput, NotFound, StateError
from everloop.pipelines.values import load, store
from everloop.workspace import Workspace
from tests.workspaces import START

LONG = "x" * 20_000


def objects_of(ws: Workspace, tmp_path: Path) -> Path:
    return tmp_path / "objects"


def age(folder: Path, seconds: float = 10 * 86_400) -> None:
    """Make every object and half-written file in the store old."""
    past = time.time() - seconds
    for file in folder.rglob("*"):
        if file.is_file():
            os.utime(file, (past, past))


def stored(folder: Path) -> set[str]:
    return {file.parent.name + file.name for file in folder.glob("[0-9a-f][0-9a-f]/*")}


def model(*texts: str) -> ModelArtifact:
    files = {f"{n}.txt": text.encode() for n, text in enumerate(texts)}
    return ModelArtifact(flavor="lightgbm", files=files, reference=texts[0].upper().encode())


def remember(ws: Workspace, key: str, value: Any, run_id: str, fence: int) -> None:
    """Keep `value` as a step's result, as the engine does."""
    memo_value, _ = store(value, ws.blobs, "a test")
    step_key = StepKey(step="s", digest=key, parts={})
    now = ws.clock.now()
    memo = Memo(key=step_key, value=memo_value, run_id=run_id, created_at=now)
    seq = len(ws.pipelines.steps(run_id))
    row = StepRun(
        run_id=run_id, seq=seq, step="s", key=key, outcome="ran", output=memo_value.digest,
        started_at=now, ended_at=now,
    )  # fmt: skip
    ws.pipelines.commit_steps(run_id, fence, [row], [memo])


def snapshot(ws: Workspace, text: str) -> str:
    """Store a code snapshot of one file."""
    tree = canonical_json({"loop.py": ws.blobs.put(text.encode())[0]})
    return ws.blobs.put(tree)[0]


def code_of(ws: Workspace, digest: str) -> str:
    """The one file of a code snapshot."""
    [file] = msgspec.json.decode(ws.blobs.get(digest), type=dict[str, str]).values()
    return ws.blobs.get(file).decode()


# --- everything at once, on each kind of workspace ------------------------------------------------


def fill(ws: Workspace) -> None:
    run = ws.pipelines.start("p", code=snapshot(ws, "the code"), lease_s=3600)
    ws.pipelines.start("q", code=snapshot(ws, "other code"), lease_s=3600)
    remember(ws, "k1", {"bytes": b"short", "more": [b"two"]}, run.id, 1)
    remember(ws, "k2", {"bytes": b"within a long text", "pad": LONG}, run.id, 1)
    remember(ws, "k3", pa.table({"x": [1, 2, 3]}), run.id, 1)
    ws.registry.register("m", model("weights", "more"), run_id=run.id)
    ws.registry.set_card("m", 1, b"# card")
    ws.registry.register("gone", model("restorable"))
    ws.registry.delete_model("gone")
    ws.tracking.put_artifact("0/x/artifacts/a.txt", b"an artifact")
    ws.data.commit("rows", pa.table({"id": [1, 2]}))
    answer = {
        "id": ["01"], "at": pa.array([START], pa.timestamp("us", "UTC")), "version": [1],
        "value": [0.5],
    }  # fmt: skip
    ws.deployment.create("d", model="m", version=1)
    ws.predictions.log("d", pa.table(answer))


def check(ws: Workspace) -> None:
    for key in ("k1", "k2", "k3"):
        memo = ws.pipelines.memo(key)
        assert memo is not None
        load(memo.value, ws.blobs)
    version = ws.registry.version("m", 1)
    assert ws.registry.files("m", 1) == {"0.txt": b"weights", "1.txt": b"more"}
    assert ws.blobs.get(version.reference) == b"WEIGHTS"
    assert ws.blobs.get(version.card) == b"# card"
    assert code_of(ws, version.code) == "the code"
    assert {code_of(ws, run.code) for run in ws.tracking.runs(lifecycle="all").runs} == {
        "the code",
        "other code",
    }
    assert ws.tracking.artifact("0/x/artifacts/a.txt") == b"an artifact"
    assert ws.data.read("rows").num_rows == 2
    until = START.replace(year=2014)
    assert ws.predictions.read("d", since=START, until=until).num_rows == 1


def test_only_what_nothing_names_goes(ws: Workspace, tmp_path: Path) -> None:
    fill(ws)
    folder = objects_of(ws, tmp_path)
    rubbish, size = ws.blobs.put(b"rubbish")
    before = stored(folder)
    young = ws.objects.collect()
    assert (young.objects, young.young) == (0, 1)
    age(folder)
    (folder / "tmp" / "half").write_bytes(b"half")
    age(folder)
    looked = ws.objects.collect(dry_run=True)
    assert (looked.objects, looked.size, looked.dry_run) == (1, size, True)
    assert stored(folder) == before
    done = ws.objects.collect()
    assert (done.objects, done.size, done.young) == (1, size, 0)
    assert (done.leftovers, done.leftover_size) == (1, 4)
    assert stored(folder) == before - {rubbish}
    check(ws)
    assert ws.registry.restore_model("gone").latest == 1
    assert ws.registry.files("gone", 1) == {"0.txt": b"restorable"}
    again = ws.objects.collect()
    assert (again.objects, again.leftovers, again.purged) == (0, 0, {})


def test_what_is_past_its_window_is_purged(
    ws: Workspace, tmp_path: Path, clock: ManualClock
) -> None:
    fill(ws)
    folder = objects_of(ws, tmp_path)
    experiment = ws.tracking.create_experiment("e").id
    old = ws.tracking.create_run("e")
    ws.tracking.put_artifact(f"{experiment}/{old.id}/artifacts/b", b"of a run")
    logged = ws.tracking.create_logged_model(experiment, name="lm", source_run_id=old.id)
    ws.tracking.put_artifact(f"{experiment}/models/{logged.id}/artifacts/c", b"of a model")
    ws.tracking.delete_experiment(experiment)
    trained = ws.registry.version("m", 1).run_id
    ws.tracking.delete_run(trained)  # a version came from it
    ws.registry.register("m", model("second"))
    ws.registry.delete_version("m", 2)
    age(folder)
    clock.advance(days=29)
    assert ws.objects.collect().purged == {}
    clock.advance(days=1)
    counts = {
        "artifacts": 2, "experiments": 1, "logged_models": 1, "model_versions": 1, "models": 1,
        "runs": 1,
    }  # fmt: skip
    looked = ws.objects.collect(dry_run=True)
    assert (looked.purged, looked.kept) == (counts, 1)
    assert len(ws.registry.deleted()) == 2
    done = ws.objects.collect()
    assert (done.purged, done.kept, done.objects) == (counts, 1, looked.objects)
    assert done.size == looked.size
    assert done.objects == 6  # two models with a file and a reference each, two artifacts
    check(ws)
    with pytest.raises(NotFound):
        ws.registry.restore_model("gone")
    with pytest.raises(NotFound):
        ws.tracking.run(old.id)
    assert ws.tracking.run(trained).lifecycle == "deleted"
    assert ws.tracking.create_experiment("e").id != experiment, "the name is free"
    [told] = ws.lineage.events(kind="workspace.Purged")
    assert told.body["runs"] == 1


def spans(trace: str) -> list[Span]:
    body = {"span_id": base64.b64encode(bytes(8)).decode(), "name": f"of {trace}"}
    return [Span(trace_id=trace, id="0" * 16, started_ns=1, ended_ns=2, body=body)]


def test_traces_go_with_their_experiment(ws: Workspace, tmp_path: Path, clock: ManualClock) -> None:
    going = ws.tracking.create_experiment("going").id
    for experiment, trace in ((going, "a" * 32), ("0", "b" * 32)):
        ws.traces.log_spans(experiment, spans(trace))
    age(objects_of(ws, tmp_path))
    [kept] = ws.traces.search(["0"]).traces
    assert ws.objects.collect().objects == 0
    ws.tracking.delete_experiment(going)
    clock.advance(days=30)
    done = ws.objects.collect()
    assert (done.purged, done.objects) == ({"experiments": 1, "traces": 1}, 1)
    [[span]] = ws.traces.spans([kept.id]).values()
    assert span["name"] == "of " + "b" * 32


def test_a_run_that_a_source_names_is_kept(ws: Workspace, clock: ManualClock) -> None:
    run = ws.tracking.create_run()
    path = f"0/{run.id}/artifacts/model/MLmodel"
    ws.tracking.put_artifact(path, b"flavors")
    ws.registry.create_model("m")
    ws.registry.register_source("m", f"mlflow-artifacts:/0/{run.id}/artifacts/model")
    ws.tracking.delete_run(run.id)
    clock.advance(days=1)
    done = ws.objects.collect(older_than="1d")
    assert (done.purged, done.kept) == ({}, 1)
    assert ws.tracking.artifact(path) == b"flavors"
    ws.registry.delete_version("m", 1)
    assert ws.objects.collect(older_than="1d").kept == 1, "the version may come back"
    clock.advance(days=1)
    done = ws.objects.collect(older_than="1d")
    assert done.purged == {"artifacts": 1, "model_versions": 1, "runs": 1}
    with pytest.raises(NotFound):
        ws.tracking.artifact(path)


def test_a_window_that_is_none_is_refused(ws: Workspace) -> None:
    with pytest.raises(InvalidInput) as refused:
        ws.objects.collect(older_than="soon", grace="-1")
    assert [fault.path for fault in refused.value.faults] == ["older_than", "grace"]
    assert ws.objects.collect(older_than="0d", grace="0").purged == {}


def test_the_window_is_a_setting(
    ws: Workspace, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws.registry.create_model("m")
    ws.registry.delete_model("m")
    clock.advance(hours=2)
    assert ws.objects.collect().purged == {}
    monkeypatch.setenv("EVERLOOP_UNDO", "1h")
    assert ws.objects.collect().purged == {"models": 1}


# --- beside writers -------------------------------------------------------------------------------


def test_a_result_that_is_stored_again_by_name_is_kept(ws: Workspace, tmp_path: Path) -> None:
    """A mapped table is named by a second result without being put; the first result goes."""
    run = ws.pipelines.start("p", lease_s=3600)
    remember(ws, "k1", pa.table({"x": list(range(1000))}), run.id, 1)
    memo = ws.pipelines.memo("k1")
    assert memo is not None
    table = load(memo.value, ws.blobs)
    ws.pipelines.forget("k1", "for the test")
    age(objects_of(ws, tmp_path))
    second, _ = store({"again": table}, ws.blobs, "a test")
    assert ws.objects.collect().objects == 0
    assert load(second, ws.blobs)["again"].equals(table)
    age(objects_of(ws, tmp_path))
    assert ws.objects.collect().objects == 1
    third, _ = store({"again": table}, ws.blobs, "a test")
    assert load(third, ws.blobs)["again"].equals(table)


def test_writers_and_a_collection_at_once_lose_nothing(ws: Workspace, tmp_path: Path) -> None:
    folder = objects_of(ws, tmp_path)
    datas = [f"data {n}".encode() for n in range(40)]
    for turn in range(3):
        for data in datas:
            ws.blobs.put(data)
        age(folder)
        failures: list[BaseException] = []

        def write(mine: int, turn: int = turn, failures: list[BaseException] = failures) -> None:
            try:
                for n, data in enumerate(datas[mine::2]):
                    ws.tracking.put_artifact(f"{turn}/{mine}/{n}", data)
            except BaseException as error:  # noqa: BLE001 (handed to the main thread)
                failures.append(error)

        writers = [threading.Thread(target=write, args=(mine,)) for mine in (0, 1)]
        for writer in writers:
            writer.start()
        ws.objects.collect()
        for writer in writers:
            writer.join()
        assert not failures
        for mine in (0, 1):
            for n, data in enumerate(datas[mine::2]):
                assert ws.tracking.artifact(f"{turn}/{mine}/{n}") == data
            ws.tracking.delete_artifacts(f"{turn}/{mine}")


# --- killed ---------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
import everloop as ev
from everloop.backends.blobs.local import LocalBlobs
from everloop.data import collect

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

place, count = sys.argv[2], 0
remove = LocalBlobs.remove_old
def counting(self, digest, before):
    global count
    count += 1
    if place == "sweep" and count == 5:
        die()
    return remove(self, digest, before)
LocalBlobs.remove_old = counting
if place == "purged":
    collect._named = die
if place == "purging":
    inner = collect.purge
    collect.purge = lambda *given: (inner(*given), die())
if place == "listing":
    collect._strike = die
with ev.open(sys.argv[1]) as ws:
    ws.objects.collect(older_than="0d")
"""


@pytest.mark.parametrize("place", ["purging", "purged", "sweep", "listing"])
def test_a_killed_collection_harms_nothing_and_can_be_done_again(
    tmp_path: Path, place: str
) -> None:
    folder = tmp_path / ".everloop"
    with ev.open(folder) as ws:
        ws.registry.register("m", model("weights"))
        ws.registry.register("gone", model("restorable"))
        ws.registry.delete_model("gone")
        for n in range(20):
            ws.objects.put(f"rubbish {n}".encode())
        age(folder / "objects")
        done = subprocess.run([sys.executable, "-c", KILLED, str(folder), place], check=False)
        assert done.returncode == -signal.SIGKILL
        assert ws.registry.files("m", 1) == {"0.txt": b"weights"}
        if place == "purging":
            ws.registry.restore_model("gone")
            assert ws.registry.files("gone", 1) == {"0.txt": b"restorable"}
            ws.registry.delete_model("gone")
        ws.objects.collect(older_than="0d")
        version = ws.registry.version("m", 1)
        named = {version.reference, *(file.digest for file in version.files)}
        assert stored(folder / "objects") == named
        assert ws.catalog is not None
        with ws.catalog.read() as tx:
            listed = {row.digest for row in tx.all(select(tables.objects.c.digest))}
        assert listed == named


# --- anything in any order ------------------------------------------------------------------------

TEXTS = st.sampled_from(["a", "b", "c", "d"])
NAMES = st.sampled_from(["m", "n"])
NUMBERS = st.integers(1, 3)

OPERATIONS = st.one_of(
    st.tuples(st.just("register"), NAMES, TEXTS),
    st.tuples(st.just("register"), NAMES, TEXTS),  # often, or the others find nothing to change
    st.tuples(st.just("card"), NAMES, NUMBERS, TEXTS),
    st.tuples(st.just("delete_version"), NAMES, NUMBERS),
    st.tuples(st.just("restore_version"), NAMES, NUMBERS),
    st.tuples(st.just("delete_model"), NAMES),
    st.tuples(st.just("restore_model"), NAMES),
    st.tuples(st.just("rename"), NAMES, NAMES),
    st.tuples(st.just("put"), NUMBERS, TEXTS),
    st.tuples(st.just("remove"), NUMBERS),
    st.tuples(st.just("remember"), NUMBERS, TEXTS),
    st.tuples(st.just("commit"), TEXTS),
    st.tuples(st.just("delete_run"), NUMBERS),
    st.tuples(st.just("restore_run"), NUMBERS),
    st.tuples(st.just("rubbish"), TEXTS),
    st.tuples(st.just("age")),
    st.tuples(st.just("wait")),
    st.tuples(st.just("collect")),
    st.tuples(st.just("look")),
)


class Player:
    """Does operations on a workspace; what is refused (no such version...) changes nothing."""

    def __init__(self, ws: Workspace, clock: ManualClock, folder: Path) -> None:
        self.ws = ws
        self._clock = clock
        self._folder = folder
        codes = [snapshot(ws, f"code {n}") for n in range(3)]
        self._runs = [ws.pipelines.start("p", code=code, lease_s=1).id for code in codes]
        self._steps = 0

    def do(self, operation: tuple[Any, ...]) -> None:
        name, *arguments = operation
        refusals = (Conflict, NotFound, StateError)
        # A collection is followed by a look at everything, where nothing may be missing.
        with contextlib.suppress(*() if name == "collect" else refusals):
            getattr(self, f"_{name}")(*arguments)

    def _register(self, name: str, text: str) -> None:
        self.ws.registry.register(name, model(f"model {text}", "same"), run_id=self._runs[0])

    def _card(self, name: str, number: int, text: str) -> None:
        self.ws.registry.set_card(name, number, f"card {text}".encode())

    def _delete_version(self, name: str, number: int) -> None:
        self.ws.registry.delete_version(name, number)

    def _restore_version(self, name: str, number: int) -> None:
        self.ws.registry.restore_version(name, number)

    def _delete_model(self, name: str) -> None:
        self.ws.registry.delete_model(name)

    def _restore_model(self, name: str) -> None:
        self.ws.registry.restore_model(name)

    def _rename(self, name: str, new_name: str) -> None:
        self.ws.registry.rename_model(name, new_name)

    def _put(self, number: int, text: str) -> None:
        self.ws.tracking.put_artifact(f"0/{self._runs[number - 1]}/{text}", text.encode())

    def _remove(self, number: int) -> None:
        self.ws.tracking.delete_artifacts(f"0/{self._runs[number - 1]}")

    def _remember(self, number: int, text: str) -> None:
        self._steps += 1
        value = {"bytes": text.encode() * 3, "pad": LONG if text in "ab" else ""}
        remember(self.ws, f"k{self._steps}", value, self._runs[number - 1], 1)

    def _commit(self, text: str) -> None:
        self.ws.data.commit("rows", pa.table({"x": [text]}))

    def _delete_run(self, number: int) -> None:
        self.ws.tracking.delete_run(self._runs[number - 1])

    def _restore_run(self, number: int) -> None:
        self.ws.tracking.restore_run(self._runs[number - 1])

    def _rubbish(self, text: str) -> None:
        self.ws.blobs.put(f"rubbish {text}".encode())

    def _age(self) -> None:
        age(self._folder / "objects")

    def _wait(self) -> None:
        self._clock.advance(days=20)

    def _collect(self) -> None:
        self.ws.objects.collect()
        self.check()

    def _look(self) -> None:
        before = stored(self._folder / "objects")
        self.ws.objects.collect(dry_run=True)
        assert stored(self._folder / "objects") == before

    def check(self) -> None:
        """Read all that a row names, also what can be restored."""
        ws = self.ws
        assert ws.catalog is not None
        for version in ws.registry.versions():
            assert ws.registry.verify(version.name, version.version).damaged == ()
            for digest in filter(None, (version.reference, version.card)):
                ws.blobs.get(digest)
        with ws.catalog.read() as tx:
            paths = [row.path for row in tx.all(select(tables.artifacts.c.path))]
            keys = [row.key for row in tx.all(select(tables.memos.c.key))]
            trash = [row.body for row in tx.all(select(tables.trash.c.body))]
            codes = [row.code for row in tx.all(select(tables.runs.c.code))]
        for code in codes:
            assert code_of(ws, code).startswith("code")
        for path in paths:
            ws.tracking.artifact(path)
        for key in keys:
            memo = ws.pipelines.memo(key)
            assert memo is not None
            load(memo.value, ws.blobs)
        for body in trash:
            for row in body["model_versions"]:
                for file in row["manifest"]["files"]:
                    ws.blobs.get(file["digest"])
        for dataset in ws.data.datasets():
            ws.data.read(dataset.name)


@settings(max_examples=30, deadline=None)
@given(st.lists(OPERATIONS, min_size=25, max_size=50))
def test_nothing_that_a_row_names_ever_goes(operations: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder, clock = Path(place) / ".everloop", ManualClock(START)
        with ev.open(folder, clock=clock, actor="tester") as ws:
            player = Player(ws, clock, folder)
            for operation in operations:
                player.do(operation)
            for last in (("age",), ("collect",), ("wait",), ("wait",), ("collect",)):
                player.do(last)
            # And nothing that no row names stays.
            assert ws.objects.collect(dry_run=True, grace="0").objects == 0
