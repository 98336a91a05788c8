"""A store with faults: each is told by name, and the rest comes in."""

from __future__ import annotations

import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

import everloop as ev
from everloop.errors import BackendError, InvalidInput
from everloop.transfer.report import TransferReport
from everloop.workspace import Workspace

META = """artifact_uri: {uri}
end_time: 1700000001000
experiment_id: '7'
lifecycle_stage: active
run_id: {id}
run_name: {name}
start_time: 1700000000000
status: 3
tags: []
user_id: ann
"""


def run_id(number: int) -> str:
    return f"a{number:031x}"


def add_run(store: Path, number: int, *, metric: str = "1700000000000 0.5 1\n") -> Path:
    id_ = run_id(number)
    folder = store / "7" / id_
    for name in ("params", "metrics", "tags", "artifacts"):
        (folder / name).mkdir(parents=True)
    uri = f"file://{folder}/artifacts"
    (folder / "meta.yaml").write_text(META.format(uri=uri, id=id_, name=f"run {number}"))
    (folder / "params" / "lr").write_text("0.1")
    (folder / "metrics" / "loss").write_text(metric)
    (folder / "artifacts" / "a.txt").write_text(f"file {number}")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Path:
    found = tmp_path / "mlruns"
    (found / "7").mkdir(parents=True)
    (found / "7" / "meta.yaml").write_text(
        "artifact_location: x\nexperiment_id: '7'\nlifecycle_stage: active\nname: old one\n"
    )
    return found


def counts(report: TransferReport) -> dict[str, tuple[int, int, int, int]]:
    return {c.kind: (c.found, c.imported, c.there, c.failed) for c in report.counts}


def reasons(report: TransferReport) -> dict[str, str]:
    return {refusal.name: refusal.reason for refusal in report.refusals}


def test_old_layout_comes_whole_into_each_kind_of_workspace(store: Path, ws: Workspace) -> None:
    # Before steps and names of runs: two fields a point, the name as a tag.
    folder = add_run(store, 1, metric="1700000000000 0.5\n1700000000001 nan\n")
    meta = (folder / "meta.yaml").read_text()
    (folder / "meta.yaml").write_text(
        meta.replace("run_id:", "run_uuid:").replace("run_name: run 1\n", "name: ''\n")
    )
    (folder / "tags" / "mlflow.runName").write_text("of old")
    report = ws.import_mlflow(str(store))
    assert report.refusals == ()
    experiment = ws.tracking.experiment_by_name("old one")
    assert experiment.id == "7"
    run = ws.tracking.run(folder.name)
    assert (run.name, run.state, run.actor, run.params) == (
        "of old",
        "finished",
        "ann",
        {"lr": "0.1"},
    )
    points = ws.tracking.history(run.id, "loss")
    assert [(p.at_ms, p.step) for p in points] == [(1700000000000, 0), (1700000000001, 0)]
    assert math.isnan(points[1].value)
    assert ws.tracking.artifact(f"7/{run.id}/artifacts/a.txt") == b"file 1"
    again = ws.import_mlflow(str(store))
    assert counts(again)["run"] == (1, 0, 1, 0)
    assert ws.tracking.create_experiment("next").id != "7"


def test_each_fault_is_told_by_name_and_the_rest_comes(store: Path, tmp_path: Path) -> None:
    sound = add_run(store, 1)
    no_meta = add_run(store, 2)
    (no_meta / "meta.yaml").unlink()
    bad_meta = add_run(store, 3)
    (bad_meta / "meta.yaml").write_text("status: [3\n")
    bad_points = add_run(store, 4, metric="1700000000000 0.5 1\nfull disk\n17\n-5 1.0 2\n")
    long_param = add_run(store, 5)
    (long_param / "params" / "kept").write_text("x" * 9000)
    (long_param / "params" / "too long").write_text("x" * 100_001)
    no_text = add_run(store, 6)
    (no_text / "params" / "bytes").write_bytes(b"\xff\xfe")
    (no_text / "tags" / "nul").write_bytes(b"a\0b")
    elsewhere = add_run(store, 7)
    meta = (elsewhere / "meta.yaml").read_text()
    (elsewhere / "meta.yaml").write_text(meta.replace("file://", "s3://bucket"))
    (elsewhere / "artifacts" / "a.txt").unlink()
    with ev.open(tmp_path / "ws") as ws:
        report = ws.import_mlflow(str(store))
        told = reasons(report)
        assert set(told) == {
            path.name for path in (no_meta, bad_meta, bad_points, long_param, no_text, elsewhere)
        }
        assert "no meta.yaml" in told[no_meta.name]
        assert "line 1" in told[bad_meta.name]
        assert "100001 characters" in told[long_param.name]
        assert "s3://bucket" in told[elsewhere.name]
        text = " ".join(refusal.reason for refusal in report.refusals)
        assert "2 lines that are no points (line 2, 3)" in text
        assert "-5 is no time" in text
        assert "'bytes' cannot be read" in text
        assert "NUL" in text
        assert counts(report)["run"] == (5, 1, 0, 5)
        assert ws.tracking.run(sound.name).metrics == {"loss": 0.5}
        assert len(ws.tracking.run(long_param.name).params["kept"]) == 9000
        assert ws.tracking.run(bad_points.name).metrics == {"loss": 0.5}
        assert ws.tracking.run(no_text.name).params == {"lr": "0.1"}


def test_what_was_mended_comes_with_the_next_import(store: Path, tmp_path: Path) -> None:
    folder = add_run(store, 1)
    whole = (folder / "meta.yaml").read_text()
    (folder / "meta.yaml").write_text("status: [3\n")
    other = add_run(store, 2, metric="broken\n")
    with ev.open(tmp_path / "ws") as ws:
        assert not ws.import_mlflow(str(store)).is_complete
        (folder / "meta.yaml").write_text(whole)
        (other / "metrics" / "loss").write_text("1700000000000 2.0 1\n")
        report = ws.import_mlflow(str(store))
        assert report.refusals == ()
        assert ws.tracking.run(other.name).metrics == {"loss": 2.0}
        assert ws.tracking.run(folder.name).name == "run 1"


def test_run_that_went_on_is_brought_up_to_date(store: Path, tmp_path: Path) -> None:
    folder = add_run(store, 1)
    ended = (folder / "meta.yaml").read_text()
    running = ended.replace("status: 3", "status: 1").replace("1700000001000", "null")
    (folder / "meta.yaml").write_text(running)
    with ev.open(tmp_path / "ws") as ws:
        ws.import_mlflow(str(store))
        assert ws.tracking.run(folder.name).state == "running"
        (folder / "meta.yaml").write_text(ended)
        with open(folder / "metrics" / "loss", "a") as file:
            file.write("1700000000009 0.25 2\n")
        report = ws.import_mlflow(str(store))
        assert counts(report)["points"] == (2, 1, 1, 0)
        run = ws.tracking.run(folder.name)
        assert (run.state, run.metrics) == ("finished", {"loss": 0.25})
        assert run.ended_at is not None


def test_names_and_ids_that_are_taken_are_mapped_and_told(store: Path, tmp_path: Path) -> None:
    folder = add_run(store, 1)
    with ev.open(tmp_path / "ws") as ws:
        for number in range(7):
            ws.tracking.create_experiment(f"mine {number}")
        report = ws.import_mlflow(str(store))
        assert report.notes == ("experiment 'old one': id 7 is 8 here",)
        assert ws.tracking.run(folder.name).experiment == "8"
        assert ws.tracking.artifact(f"8/{folder.name}/artifacts/a.txt") == b"file 1"


def test_more_points_than_fit_one_transaction(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everloop.transfer.mlflow_files.CHUNK", 100)
    monkeypatch.setattr("everloop.transfer.importer.CHUNK", 150)
    lines = "".join(f"{1_700_000_000_000 + i} {i / 7} {i}\n" for i in range(1000))
    folder = add_run(store, 1, metric=lines + "".join(lines.splitlines(keepends=True)[:50]))
    with ev.open(tmp_path / "ws") as ws:
        report = ws.import_mlflow(str(store))
        assert report.refusals == ()
        assert counts(report)["points"] == (1000, 1000, 0, 0)
        assert [p.step for p in ws.tracking.history(folder.name, "loss")] == list(range(1000))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("absent", "there is no folder or file"),
        ("empty", "no folder in it has a meta.yaml"),
        ("project", "name .*mlruns"),
        ("workspace", "everloop merge"),
        ("text.db", "cannot be read: file is not a database"),
        ("other.db", "no store of MLflow's"),
        ("gopher://x/y", "no address of a database"),
        ("http://127.0.0.1:9", "does not answer"),
    ],
)
def test_what_is_no_store_is_said_in_a_sentence(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everloop.transfer.http._FIRST_WAIT_S", 0)
    (tmp_path / "empty").mkdir()
    (tmp_path / "project" / "mlruns").mkdir(parents=True)
    ev.open(tmp_path / "workspace").close()
    (tmp_path / "text.db").write_text("not a database, " * 100)
    sqlite3.connect(tmp_path / "other.db").close()
    source = name if "://" in name else str(tmp_path / name)
    (tmp_path / "other.db").touch()
    with (
        ev.open(tmp_path / "ws") as ws,
        pytest.raises((InvalidInput, BackendError), match=said) as e,
    ):
        ws.import_mlflow(source)
    assert "\n\n" not in str(e.value)


def test_killed_half_way_it_goes_on(store: Path, tmp_path: Path) -> None:
    for number in range(1500):
        add_run(store, number)
    target = tmp_path / "ws"
    command = [
        sys.executable,
        "-m",
        "everloop",
        "import",
        "mlflow",
        str(store),
        "--dir",
        str(target),
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 100
        while not (done := runs_in(target)) > 0:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    done = runs_in(target)
    assert 0 < done < 1500
    with ev.open(target) as ws:
        report = ws.import_mlflow(str(store))
        assert report.refusals == ()
        assert counts(report)["run"] == (1500, 1500 - done, done, 0)
        assert len(ws.tracking.runs(["7"], limit=5000).runs) == 1500
        files = [f"7/{run_id(number)}/artifacts/a.txt" for number in range(1500)]
        assert len(ws.tracking.find_artifacts(files)) == 1500
        assert sum(1 for _ in ws.blobs.digests()) == 1500


def runs_in(target: Path) -> int:
    if not (target / "catalog.sqlite").exists():
        return 0
    connection = sqlite3.connect(f"file:{target}/catalog.sqlite?mode=ro", uri=True)
    try:
        return int(connection.execute("SELECT count(*) FROM runs").fetchone()[0])
    except sqlite3.OperationalError:
        return 0  # its tables are being made
    finally:
        connection.close()


def test_command_ends_with_1_if_anything_failed(store: Path, tmp_path: Path) -> None:
    add_run(store, 1)
    broken = add_run(store, 2)
    (broken / "meta.yaml").unlink()
    command = [sys.executable, "-m", "everloop", "import", "mlflow", str(store)]
    command += ["--dir", str(tmp_path / "ws")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"failed: run {broken.name}: there is no meta.yaml in it" in done.stderr
    assert "run\t1\t1\t0\t1" in done.stdout
    (broken / "meta.yaml").write_text(META.format(uri="x", id=broken.name, name="mended"))
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert '"refusals":[]' in done.stdout
