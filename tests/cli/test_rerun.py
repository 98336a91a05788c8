"""``everloop rerun``, ``why-ran`` and ``why-cached``, as a user types them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import everloop as ev
from everloop.pipelines import rerun as rerun_module

LOOP = """
import random
from pathlib import Path
import everloop as ev
from shop.prices import price

HERE = Path(__file__).parent

@ev.step
def load(rows: ev.Table) -> int:
    return sum(rows.to_arrow()["a"].to_pylist()) * price()

@ev.step
def beside() -> int:
    return len(ev.read("sales").to_arrow()) + len((HERE / "query.sql").read_text())

@ev.step
def noisy(x: int, noise: bool) -> float:
    return x + (random.random() if noise else 0)

@ev.step
def doubled(x: float) -> float:
    return 2 * x

@ev.pipeline
def main(noise: bool = False, fail: bool = False):
    rows = ev.read("sales")
    ev.commit("out", {"x": [load(rows)]})
    best = ev.champion("price")
    value = doubled(noisy(load(rows) + beside(), noise))
    if fail:
        raise ValueError("as asked")
    return value + (best.version if best else 0)
"""


class Project:
    """A folder with a pipeline, and the command line in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.workspace = folder / ".everloop"
        (folder / "shop").mkdir(parents=True)
        (folder / "loop.py").write_text(LOOP)
        (folder / "query.sql").write_text("select 1")
        (folder / "shop" / "__init__.py").write_text("")
        (folder / "shop" / "unused.py").write_text("X = 1\n")
        (folder / "shop" / "prices.py").write_text(
            "from shop import unused\n\ndef price():\n    return 3\n"
        )
        self.sell(1, 2, 3)

    def sell(self, *rows: int) -> None:
        with ev.open(self.workspace) as workspace:
            workspace.data.commit("sales", ev.Table.of({"a": list(rows)}).to_arrow())

    def everloop(self, *words: str, code: int = 0, cwd: Path | None = None) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", "everloop", *words, "--dir", str(self.workspace)],
            cwd=cwd or self.folder,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def run(self, *arguments: str) -> str:
        done = self.everloop("run", "loop.py:main", *arguments, "--json")
        return str(json.loads(done.stdout)["run"]["id"])

    def rerun(self, run: str, *options: str, code: int = 0, cwd: Path | None = None) -> Any:
        done = self.everloop("rerun", run, "--json", *options, code=code, cwd=cwd)
        return json.loads(done.stdout)

    def verdicts(self, report: Any) -> dict[str, str]:
        return {step["step"].partition(".")[2]: step["verdict"] for step in report["steps"]}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")  # type: ignore[return-value]


def test_repetition_is_equal_whatever_changed_since(project: Project, tmp_path: Path) -> None:
    run = project.run()
    # Never committed, then edited, then gone; and there are newer rows.
    (project.folder / "shop" / "prices.py").write_text("def price():\n    return 4\n")
    (project.folder / "query.sql").write_text("select 1, 2, 3")
    project.sell(1, 2, 3, 4)
    other = project.run()
    for file in ("loop.py", "query.sql", "shop/prices.py", "shop/__init__.py", "shop/unused.py"):
        (project.folder / file).unlink()
    report = project.rerun(run, cwd=tmp_path)
    assert report["equal"]
    assert report["run"] == run
    assert set(project.verdicts(report).values()) == {"equal"}
    assert len(report["steps"]) == 5
    with ev.open(project.workspace) as workspace:
        made = workspace.tracking.run(report["rerun"])
        assert made.tags[rerun_module.RERUN_TAG] == run
        assert made.inputs == workspace.tracking.run(run).inputs
        assert {step.outcome for step in workspace.pipelines.steps(made.id)} == {"ran"}
        # It reads what the first read, and writes nothing.
        assert len(workspace.data.versions("out")) == 2
    assert project.rerun(other)["equal"]


def test_step_that_is_not_deterministic_is_named_and_what_follows_is_not(project: Project) -> None:
    run = project.run("noise=true")
    report = project.rerun(run, code=1)
    assert project.verdicts(report) == {
        "load": "equal",
        "beside": "equal",
        "noisy": "not deterministic",
        "doubled": "follows",
    }
    told = project.everloop("rerun", run, code=1)
    assert "not deterministic: loop.noisy" in told.stderr


def test_failed_run_fails_again_in_the_same_way(project: Project) -> None:
    project.everloop("run", "loop.py:main", "fail=true", code=1)
    with ev.open(project.workspace) as workspace:
        (run,) = workspace.tracking.runs().runs
    report = project.rerun(run.id)
    assert report["state"] == "failed"
    assert report["equal"]


def test_missing_object_of_the_code_is_said_before_anything_runs(project: Project) -> None:
    run = project.run()
    with ev.open(project.workspace) as workspace:
        tree = json.loads(workspace.blobs.get(workspace.tracking.run(run).code))
        workspace.blobs.delete(tree["shop/prices.py"])
        before = len(workspace.tracking.runs().runs)
    told = project.everloop("rerun", run, code=5)
    assert "shop/prices.py" in told.stderr
    assert "Traceback" not in told.stderr
    with ev.open(project.workspace) as workspace:
        assert len(workspace.tracking.runs().runs) == before


def test_missing_rows_of_the_data_are_said(project: Project) -> None:
    run = project.run()
    with ev.open(project.workspace) as workspace:
        for block in workspace.data.version("sales", 1).blocks:
            workspace.blobs.delete(block.digest)
    told = project.everloop("rerun", run, "--json", code=1)
    assert json.loads(told.stdout)["state"] == "failed"


def test_other_environment_is_refused_unless_allowed(project: Project) -> None:
    run = project.run()
    with ev.open(project.workspace) as workspace, workspace.catalog.write() as tx:
        from everloop.catalog.tables import runs

        known = {**workspace.tracking.run(run).environment, "numpy": "0.1", "python": "3.10.1"}
        tx.execute(runs.update().where(runs.c.id == run).values(environment=known))
    told = project.everloop("rerun", run, code=6)
    assert "numpy was 0.1" in told.stderr
    assert "--allow-environment" in told.stderr
    report = project.rerun(run, "--allow-environment")
    assert {change["part"] for change in report["environment"]} >= {
        "environment:numpy",
        "environment:python",
    }


def test_run_that_cannot_be_repeated_says_why(project: Project) -> None:
    project.everloop("rerun", "nothing", code=5)
    with ev.open(project.workspace) as workspace:
        logged = workspace.tracking.create_run("by hand")
        workspace.tracking.update_run(logged.id, state="finished")
    assert "no run of a pipeline" in project.everloop("rerun", logged.id, code=6).stderr


def test_why_ran_and_why_cached_name_what_decided(project: Project) -> None:
    project.run()
    (project.folder / "shop" / "prices.py").write_text("def price():\n    return 5\n")
    run = project.run()
    (told,) = json.loads(project.everloop("why-ran", run, "beside", "--json").stdout)
    assert told["outcome"] == "cached"
    first, _ = json.loads(project.everloop("why-ran", run, "load", "--json").stdout)
    assert [change["part"] for change in first["changes"]] == ["code:shop.prices.price"]
    shown = project.everloop("why-cached", run, "beside")
    assert "every part equals" in shown.stderr
    assert "const:loop.HERE" in shown.stdout
    project.everloop("why-ran", run, "nothing", code=5)


def test_step_that_reads_the_newest_rows_runs_again_when_there_are_newer(project: Project) -> None:
    project.run()
    assert "every part equals" in project.everloop("why-cached", project.run(), "beside").stderr
    project.sell(5)
    run = project.run()
    told = project.everloop("why-ran", run, "beside")
    assert "read:dataset sales\t1\t2" in told.stdout
