"""Promises that no room can keep alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import everloop as ev


def test_a_copied_folder_opens_elsewhere(tmp_path: Path) -> None:
    rows = ev.Table.of({"id": [1, 2, 3], "x": [0.5, None, 1.5]}).to_arrow()
    with ev.open(tmp_path / "here") as workspace:
        version = workspace.data.commit("rows", rows, owner="data@example.org")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    shutil.rmtree(tmp_path / "here")
    with ev.open(tmp_path / "there") as workspace:
        assert workspace.data.version("rows").digest == version.digest
        assert workspace.data.read("rows").equals(rows)


def test_the_same_services_answer_embedded_and_remote(ws: ev.Workspace) -> None:
    """`ws` is embedded on SQLite, embedded on PostgreSQL, and through a server, in turn."""
    rows = ev.Table.of({"id": [1, 2, 3], "x": [0.5, None, 1.5]})
    version = ev.commit("rows", rows, owner="data@example.org", note="first")
    assert ev.read("rows").equals(rows)
    assert ev.read("rows").sources[0].digest == version.digest
    assert [found.name for found in ws.data.datasets()] == ["rows"]
    event = ws.lineage.events(kind="dataset.VersionCommitted")[0]
    assert event.subject == "dataset:rows@1"
    assert event.actor == "tester"


@ev.step
def doubled(x: int) -> int:
    return 2 * x


@ev.pipeline
def doubling(x: int) -> int:
    return doubled(x)


def test_a_pipeline_runs_the_same_embedded_and_remote(ws: ev.Workspace) -> None:
    assert doubling.run(x=21) == 42
    assert doubling.run(x=21) == 42
    run = ws.tracking.run(doubling.run_id)
    assert run.state == "finished"
    assert run.params == {"x": "21"}
    assert [step.outcome for step in ws.pipelines.steps(run.id)] == ["cached"]
