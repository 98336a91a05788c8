"""Every command in the documentation is run, and every promise names a test that exists."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import everloop as ev
from everloop.cli.main import main

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "guide"
# `everloop up` runs until it is stopped: tests/e2e/test_up.py runs it.
RUNS_ON = "everloop up"


def commands(page: Path) -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", page.read_text(), flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [line[2:].split("   #")[0] for line in lines if line.startswith("$ ")]


def files(page: Path) -> dict[str, str]:
    """The programs of a page: blocks of Python that begin with their file's name."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    return {block.split()[1]: block for block in blocks if re.match(r"# \w+\.py\n", block)}


@pytest.mark.parametrize(("page", "least"), [("first-loop.md", 6), ("tracking.md", 6)])
def test_the_commands_of_the_guide_work_one_after_the_other(
    tmp_path: Path, page: str, least: int
) -> None:
    for name, text in files(GUIDE / page).items():
        (tmp_path / name).write_text(text)
    ran = 0
    for command in commands(GUIDE / page):
        if command.startswith(RUNS_ON):
            continue
        words = shlex.split(command)
        assert words[0] in ("everloop", "python")
        done = subprocess.run(
            [sys.executable, *(words[1:] if words[0] == "python" else ["-m", *words])],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        ran += 1
    assert ran >= least


def test_the_commands_for_those_who_come_from_mlflow_work(tmp_path: Path) -> None:
    run = tmp_path / "mlruns" / "1" / ("a" * 32)
    run.mkdir(parents=True)
    (run.parent / "meta.yaml").write_text("experiment_id: '1'\nname: first\n")
    (run / "meta.yaml").write_text(f"run_id: {run.name}\nstatus: 3\n")
    with ev.open(tmp_path / "cluster" / ".everloop") as cluster:
        cluster.tracking.create_run("of a cluster")
    found = commands(ROOT / "docs" / "guide" / "coming-from-mlflow.md")
    assert len(found) == 3
    for command in found:
        done = subprocess.run(
            [sys.executable, "-m", *shlex.split(command)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    with ev.open(tmp_path / ".everloop") as workspace:
        assert len(workspace.tracking.runs().runs) == 2


def test_the_commands_of_the_readme_are_known() -> None:
    for command in commands(ROOT / "README.md"):
        words = shlex.split(command)
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        elif words[0] == "everloop":
            assert words[1] in main.list_commands(None)  # type: ignore[arg-type]
        else:
            assert words[0] == "cd"


def test_every_promise_names_tests_that_exist() -> None:
    text = (ROOT / "docs" / "reference" / "promises.md").read_text()
    named = re.findall(r"`(tests/[^`]+)`", text)
    assert len(named) >= 10
    for name in named:
        path, _, test = name.partition("::")
        assert (ROOT / path).exists(), name
        if test:
            assert f"def {test}(" in (ROOT / path).read_text(), name


@pytest.mark.parametrize(
    "page", [*sorted(ROOT.glob("docs/**/*.md")), ROOT / "README.md"], ids=lambda page: page.stem
)
def test_links_within_the_project_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_public_names_are_listed_once_and_load() -> None:
    assert sorted(ev.__all__) == ev.__all__
    assert set(ev.__all__) == {*ev._HOMES, "__version__"}
    for name in ev.__all__:
        assert getattr(ev, name) is not None
