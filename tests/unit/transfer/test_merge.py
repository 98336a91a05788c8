"""Merging another workspace's folder: everything once, nothing overwritten."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import everloop as ev
from everloop.core.artifact import ModelArtifact
from everloop.core.run import Metric, RunInput, RunOutput
from everloop.core.time import ManualClock
from everloop.errors import BackendError, EverloopError, InvalidInput, StateError
from everloop.transfer.report import TransferReport
from everloop.workspace import Workspace
from tests.workspaces import START


def counts(report: TransferReport) -> dict[str, tuple[int, int, int, int]]:
    found = {c.kind: (c.found, c.imported, c.there, c.failed) for c in report.counts}
    return {kind: count for kind, count in found.items() if count[0]}


def fill(ws: Workspace, seed: int) -> str:
    """What a training job leaves: a run with everything, datasets, a model."""
    tracking = ws.tracking
    run = tracking.create_run("trained", params={"lr": str(seed)}, tags={"on": "cluster"})
    points = [Metric(key="loss", value=seed + i / 7, step=i, at_ms=i) for i in range(20)]
    tracking.log(run.id, [*points, Metric(key="odd", value=float("nan"))])
    tracking.put_artifact(f"{run.experiment}/{run.id}/artifacts/notes.txt", b"notes %d" % seed)
    ws.data.commit("rows", pa.table({"x": [1, 2, 3]}))
    version = ws.data.commit("rows", pa.table({"x": [1, 2, 30 + seed]}), run_id=run.id)
    tracking.log_inputs(
        run.id, [RunInput(dataset="rows", version=version.number, digest=version.digest)]
    )
    logged = tracking.create_logged_model(run.experiment, name="lm", source_run_id=run.id)
    tracking.log_outputs(run.id, [RunOutput(model_id=logged.id, step=1)])
    tracking.finish_logged_model(logged.id)
    ws.registry.register("clf", ModelArtifact(flavor="x", files={"f": b"the same"}))
    artifact = ModelArtifact(flavor="x", files={"f": b"%d" % seed}, data={"rows": version.number})
    ws.registry.register("clf", artifact, run_id=run.id, alias=f"of-{seed}")
    tracking.update_run(run.id, state="finished")
    return run.id


def dump(folder: Path) -> Iterator[str]:
    with sqlite3.connect(folder / "catalog.sqlite") as connection:
        yield from connection.iterdump()
    connection.close()


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    folder = tmp_path / "cluster" / ".everloop"
    with ev.open(folder, clock=ManualClock(START), actor="cluster") as ws:
        ws.tracking.create_experiment("only there")
        fill(ws, 1)
    return folder


def test_everything_comes_and_numbers_follow(cluster: Path, ws: Workspace) -> None:
    if ws.is_remote:
        with pytest.raises(StateError, match="beside the server"):
            ws.merge(cluster)
        return
    fill(ws, 2)
    report = ws.merge(cluster)
    assert report.refusals == ()
    assert counts(report) == {
        "experiment": (3, 1, 2, 0),
        "object": (5, 3, 2, 0),
        "dataset version": (2, 1, 1, 0),
        "run": (1, 1, 0, 0),
        "points": (21, 21, 0, 0),
        "files": (1, 1, 0, 0),
        "logged model": (1, 1, 0, 0),
        "model version": (2, 1, 1, 0),
        "alias": (1, 1, 0, 0),
        "alias move": (1, 1, 0, 0),
        "lineage edge": (6, 6, 0, 0),
        "event": (8, 8, 0, 0),
    }
    with ev.open(cluster) as there:
        [id_] = [run.id for run in there.tracking.runs().runs]
        wanted = there.tracking.run(id_)
        points = there.tracking.history(id_, "loss")
    run = ws.tracking.run(id_)
    assert ws.tracking.experiment(run.experiment).name == "trained"
    assert (run.params, run.tags, run.state) == (wanted.params, wanted.tags, "finished")
    assert (run.started_at, run.outputs) == (wanted.started_at, wanted.outputs)
    assert ws.tracking.history(id_, "loss") == points
    assert repr(run.metrics["odd"]) == "nan"
    path = f"{run.experiment}/{id_}/artifacts/notes.txt"
    assert ws.tracking.artifact(path) == b"notes 1"
    # The dataset version that differed follows, and whatever names it follows with it.
    assert [item.version for item in run.inputs] == [3]
    version = ws.data.version("rows", 3)
    assert version.digest == wanted.inputs[0].digest
    assert "rows@2" in version.note
    assert "merged from" in version.note
    model = ws.registry.version("clf", 3)
    assert model.data == {"rows": 3}
    assert model.tags["everloop.merged_from"].endswith("clf/2")
    assert ws.registry.files("clf", 3) == {"f": b"1"}
    assert ws.registry.model("clf").aliases == {"of-1": 3, "of-2": 2}
    edges = {(edge.source, edge.target) for edge in ws.lineage.upstream("model:clf/3").edges}
    assert ("dataset:rows@3", "model:clf/3") in edges
    told = ws.lineage.events(kind="model.Registered", subject="model:clf/3")
    assert [event.actor for event in told] == ["cluster"]
    # What follows counts on.
    assert ws.data.commit("rows", pa.table({"x": [9]})).number == 4
    fresh = ModelArtifact(flavor="x", files={"f": b"new"})
    assert ws.registry.register("clf", fresh).version == 4


def test_into_an_empty_workspace_numbers_stay(cluster: Path, tmp_path: Path) -> None:
    with ev.open(cluster) as there, ev.open(tmp_path / "here") as here:
        here.merge(cluster)
        assert here.registry.versions() == there.registry.versions()
        assert here.data.versions("rows") == there.data.versions("rows")
        assert here.registry.models() == there.registry.models()


def test_twice_changes_nothing(cluster: Path, tmp_path: Path) -> None:
    with ev.open(tmp_path / "here") as ws:
        fill(ws, 2)
        ws.merge(cluster)
        before = list(dump(tmp_path / "here"))
        report = ws.merge(cluster)
    assert all(count.imported == 0 for count in report.counts)
    assert list(dump(tmp_path / "here")) == before


@settings(deadline=None, max_examples=8, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.integers(0, 3), max_size=3),
    st.lists(st.integers(0, 3), max_size=3),
    st.lists(st.sampled_from("ab"), min_size=2, max_size=4),
)
def test_merging_again_in_any_order_changes_nothing(
    first: list[int], second: list[int], merges: list[str]
) -> None:
    with TemporaryDirectory() as base:
        root = Path(base)
        for name, seeds in (("a", first), ("b", second)):
            with ev.open(root / name) as ws:
                for seed in seeds:
                    fill(ws, seed)
        with ev.open(root / "here") as ws:
            for name in [*merges, "a", "b"]:
                assert ws.merge(root / name).refusals == ()
            before = list(dump(root / "here"))
            ws.merge(root / merges[0])
            assert list(dump(root / "here")) == before
            assert len(ws.tracking.runs().runs) == len(first) + len(second)


def test_runs_that_went_on_are_brought_up_to_date(tmp_path: Path) -> None:
    with ev.open(tmp_path / "there") as there, ev.open(tmp_path / "here") as here:
        run = there.tracking.create_run("e")
        there.tracking.log(run.id, [Metric(key="m", value=1.0)])
        here.merge(tmp_path / "there")
        assert here.tracking.run(run.id).state == "running"
        there.tracking.log(run.id, [Metric(key="m", value=2.0, step=1)])
        there.tracking.update_run(run.id, state="finished")
        report = here.merge(tmp_path / "there")
        assert counts(report)["points"] == (2, 1, 1, 0)
        found = here.tracking.run(run.id)
        assert (found.state, found.metrics) == ("finished", {"m": 2.0})


def test_param_that_differs_is_told_and_ours_stays(cluster: Path, tmp_path: Path) -> None:
    with ev.open(tmp_path / "here") as ws:
        ws.merge(cluster)
        [run] = ws.tracking.runs().runs
        with sqlite3.connect(cluster / "catalog.sqlite") as connection:
            connection.execute("UPDATE run_params SET value = 'other'")
        connection.close()
        report = ws.merge(cluster)
        assert [(r.name, r.reason) for r in report.refusals] == [
            (run.id, "param 'lr' is '1' here, 'other' there")
        ]
        assert ws.tracking.run(run.id).params == {"lr": "1"}


def test_damaged_object_is_told_and_what_needs_it_left_out(cluster: Path, tmp_path: Path) -> None:
    with ev.open(cluster) as there:
        lost = there.registry.version("clf", 2).files[0].digest
    file = cluster / "objects" / lost[:2] / lost[2:]
    file.write_bytes(b"damaged")
    with ev.open(tmp_path / "here") as ws:
        report = ws.merge(cluster)
        assert {(r.kind, r.name) for r in report.refusals} == {
            ("object", lost),
            ("model version", "clf/2"),
            ("alias", "clf@of-1"),
        }
        assert [v.ref for v in ws.registry.versions("clf")] == ["clf/1"]
        file.write_bytes(b"1")
        assert ws.merge(cluster).refusals == ()
        # Its own number may have been used here meanwhile.
        assert [v.ref for v in ws.registry.versions("clf")] == ["clf/1", "clf/3"]
        assert ws.registry.model("clf").aliases == {"of-1": 3}


def refused(folder: Path, target: Path) -> EverloopError:
    with ev.open(target) as ws, pytest.raises(EverloopError) as caught:
        ws.merge(folder)
    return caught.value


def test_folder_that_is_no_workspace(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("absent", "empty"):
        error = refused(tmp_path / name, tmp_path / "here")
        assert isinstance(error, InvalidInput)
        assert "no workspace" in str(error)
    catalog = tmp_path / "empty" / "catalog.sqlite"
    sqlite3.connect(catalog).executescript("create table t (i int)").connection.close()
    assert "no catalog of Everloop's" in str(refused(tmp_path / "empty", tmp_path / "here"))
    catalog.write_bytes(b"no database " * 500)
    assert "not a database" in str(refused(tmp_path / "empty", tmp_path / "here"))
    assert "this workspace itself" in str(refused(tmp_path / "here", tmp_path / "here"))


def test_folder_of_a_newer_version(cluster: Path, tmp_path: Path) -> None:
    with sqlite3.connect(cluster / "catalog.sqlite") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    error = refused(cluster, tmp_path / "here")
    assert isinstance(error, BackendError)
    assert f"the catalog of {cluster} is at revision 9999, newer" in str(error)


def test_folder_that_is_being_written(cluster: Path, tmp_path: Path) -> None:
    with ev.open(cluster) as there, there._catalog.write():
        error = refused(cluster, tmp_path / "here")
    assert isinstance(error, StateError)
    assert "is being written" in str(error)
    connection = sqlite3.connect(cluster / "catalog.sqlite")
    with connection:
        connection.execute("UPDATE runs SET state = 'running', lease_until = 4102444800000000")
    connection.close()
    error = refused(cluster, tmp_path / "here")
    assert "is held until 2100-01-01 00:00:00 UTC" in str(error)


def test_nothing_of_the_folder_is_changed(cluster: Path, tmp_path: Path) -> None:
    before = list(dump(cluster))
    files = sorted(path.name for path in cluster.rglob("*") if path.is_file())
    with ev.open(tmp_path / "here") as ws:
        ws.merge(cluster)
    assert list(dump(cluster)) == before
    assert sorted(path.name for path in cluster.rglob("*") if path.is_file()) == files
    assert not list((tmp_path / "here").glob("merge-*"))


def test_command(cluster: Path, tmp_path: Path) -> None:
    target = tmp_path / "here"
    command = [sys.executable, "-m", "everloop", "merge", str(cluster), "--dir", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "run\t1\t1\t0\t0" in done.stdout
    shutil.rmtree(cluster / "objects")
    shutil.rmtree(target)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "failed: object" in done.stderr
