"""Runs, edits, runs again in a new process: what must run again does, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.unit.pipelines.edit_cases import ADVERSARIAL, EDITS, NEVER, Case

CASES = [*EDITS, *ADVERSARIAL, *NEVER]
ROOT = Path(__file__).parents[3]


def package(number: int) -> str:
    return f"case{number:03}"


def write(folder: Path, name: str, text: str, known: str) -> None:
    file = folder / name.replace("PKG", known)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(textwrap.dedent(text.replace("PKG", known)))


def edit(folder: Path, case: Case, known: str) -> None:
    text = textwrap.dedent(case.project.get(case.file, "").replace("PKG", known))
    # Cases are written with the indentation of the whole; a file has lost its own.
    old = textwrap.dedent(f"    {case.old}") if text and "\n" in case.old else case.old
    new = textwrap.dedent(f"    {case.new}") if text and "\n" in case.new else case.new
    old, new = (part.replace("PKG", known) for part in (old, new))
    assert old in text, case.name
    write(folder, case.file, text.replace(old, new) if old else new, known)


def run(root: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("edit_runner.py")), str(root)],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT / "src"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "EVERLOOP_DIR": str(root / "workspace"),  # where the facts of code are kept
        },
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    root = tmp_path_factory.mktemp("matrix")
    for number, case in enumerate(CASES):
        for name, text in case.project.items():
            write(root / package(number), name, text, package(number))
    before = run(root)
    for number, case in enumerate(CASES):
        edit(root / package(number), case, package(number))
    return before, run(root)


@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.name for case in CASES])
def test_edit_runs_again_what_it_changes_and_nothing_else(
    outcomes: tuple[dict[str, Any], dict[str, Any]], number: int
) -> None:
    case, known = CASES[number], package(number)
    before, after = (found[known] for found in outcomes)
    assert "error" not in before, before
    assert "error" not in after, after
    assert {told["outcome"] for told in before["steps"].values()} == {"ran"}
    assert after["value"] == after["truth"]  # whatever ran: nothing stale was served
    steps = after["steps"]
    assert {name for name, told in steps.items() if told["outcome"] == "ran"} == set(case.ran)
    part = case.part.replace("PKG", known)
    for name, told in steps.items():
        if name not in case.ran:
            assert told["reason"].startswith("every part equals"), told["reason"]
        elif case in NEVER:
            assert any(part in note for note in told["notes"]), told["notes"]
        elif part:
            assert any(part in change for change in told["changes"]), told["changes"]


def test_facts_of_code_were_kept_from_one_process_to_the_next(
    outcomes: tuple[dict[str, Any], dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert list(tmp_path_factory.getbasetemp().glob("matrix*/*/cache/code-*"))


def test_there_are_many_edits() -> None:
    assert len(CASES) >= 120
    assert len({case.name for case in CASES}) == len(CASES)
