"""Every command in the documentation is run, and every promise names a test that exists."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from everloop.cli.main import main

ROOT = Path(__file__).parents[2]
GUIDES = sorted((ROOT / "docs" / "guide").glob("*.md"))
# `everloop up` runs until it is stopped: tests/e2e/test_up.py runs it.
RUNS_ON = "everloop up"


def commands(page: Path) -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", page.read_text(), flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [line[2:].split("   #")[0] for line in lines if line.startswith("$ ")]


@pytest.mark.parametrize("guide", GUIDES, ids=lambda page: page.stem)
def test_the_commands_of_a_guide_work_one_after_the_other(guide: Path, tmp_path: Path) -> None:
    ran = 0
    for command in commands(guide):
        if command.startswith(RUNS_ON):
            continue
        words = shlex.split(command)
        assert words[0] == "everloop"
        done = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        ran += 1
    assert ran >= 6


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
    import everloop as ev

    assert sorted(ev.__all__) == ev.__all__
    assert set(ev.__all__) == {*ev._HOMES, "__version__"}
    for name in ev.__all__:
        assert getattr(ev, name) is not None
