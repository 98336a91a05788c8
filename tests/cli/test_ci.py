"""`everloop init --ci` and the workflow that it writes, run as a CI would: in a fresh clone."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

WORKFLOWS = {"github": ".github/workflows/everloop.yml", "gitlab": ".gitlab-ci.yml"}


def shell(command: str, cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-e", "-c", command],
        cwd=cwd, env=env, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """What a runner provides: `python` and `everloop`, and nobody's workspace."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, words in (("python", ""), ("everloop", " -m everloop")):
        tool = tools / name
        tool.write_text(f'#!/bin/sh\nexec "{sys.executable}"{words} "$@"\n')
        tool.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GITHUB_")}
    git = {f"GIT_{who}_{what}": "a@example.org" for who in ("AUTHOR", "COMMITTER")
           for what in ("NAME", "EMAIL")}  # fmt: skip
    # The workflows set it from a variable, which is empty where nobody set that. What is installed
    # here satisfies requirements.txt, so pip runs as it stands and asks no registry.
    given = {"EVERLOOP_DIR": "", "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return kept | git | given | {"PATH": f"{tools}:{os.environ['PATH']}"}


def commands(text: str, place: str) -> list[str]:
    """What the runner of the workflow executes itself, in order."""
    document: dict[str, Any] = yaml.safe_load(text)
    if place == "gitlab":
        return list(document["everloop"]["script"])
    [job] = document["jobs"].values()
    return [step["run"] for step in job["steps"] if "run" in step]


def test_the_workflows_judge_commits_in_fresh_clones(tmp_path: Path, env: dict[str, str]) -> None:
    made = tmp_path / "made"
    for place, path in WORKFLOWS.items():
        done = shell(f"everloop init made --ci {place}", tmp_path, env)
        assert done.returncode == 0, done.stderr
        workflow = (made / path).read_text()
        assert "@PYTHON@" not in workflow
        steps = commands(workflow, place)
        assert steps == ["python -m pip install -r requirements.txt", "everloop ci loop.py"]
    shell("git init -q -b main && git add . && git commit -qm first", made, env)
    assert ".everloop" not in shell("git ls-files", made, env).stdout
    refusing = "echo 'import everloop' > other.py; " + (
        r"sed -i 's/gate=\[/gate=[ev.max_size_mb(0.00001), /' loop.py"
    )
    for number, (edit, status) in enumerate((("true", 0), (refusing, 3))):
        shell(f"{edit}; git add . ; git commit -qm edit", made, env)
        clone = tmp_path / f"clone-{number}"
        assert shell(f"git clone -q made {clone.name}", tmp_path, env).returncode == 0
        if number:  # the runner's cache
            shutil.copytree(tmp_path / "clone-0" / ".everloop", clone / ".everloop")
        *before, last = [shell(command, clone, env) for command in steps]
        assert [(one.returncode, one.stderr) for one in before] == [(0, "")] * len(before)
        assert last.returncode == status, last.stdout + last.stderr
        report = json.loads((clone / "ci-report" / "report.json").read_text())
        assert report["git"]["dirty"] == "no"
        assert report["git"]["branch"] == "main"
        told = {case["name"]: case["told"] for case in report["cases"]}
        assert told["all: loop.train"] == ("cached" if number else "ran")
        assert told["beats_champion:brier"].startswith("there is no source to compare with")
        assert {path.name for path in (clone / "ci-report").iterdir()} == set(report["files"])


def test_actions_are_pinned_and_the_report_is_kept_when_a_gate_says_no(
    tmp_path: Path, env: dict[str, str]
) -> None:
    (tmp_path / "loop.py").write_text("# somebody's own\n")
    (tmp_path / "requirements.txt").write_text("everloop\n")
    done = shell("everloop init --ci github --json", tmp_path, env)
    assert done.returncode == 0, done.stderr
    # Where there is a loop only the workflow is added, and no file is overwritten.
    assert set(json.loads(done.stdout)) == {"workflow", ".gitignore"}
    assert (tmp_path / "loop.py").read_text() == "# somebody's own\n"
    assert (tmp_path / "requirements.txt").read_text() == "everloop\n"
    document = yaml.safe_load((tmp_path / WORKFLOWS["github"]).read_text())
    steps = document["jobs"]["ci"]["steps"]
    used = [step["uses"] for step in steps if "uses" in step]
    assert all(re.fullmatch(r"actions/[a-z/-]+@v\d+", action) for action in used)
    assert [step.get("if") for step in steps if "uses" in step][-2:] == ["always()"] * 2
    assert document["permissions"] == {"contents": "read"}
    again = shell("everloop init --ci github", tmp_path, env)
    assert (again.returncode, "is there already" in again.stderr) == (6, True)
    assert shell("everloop init --ci jenkins", tmp_path, env).returncode == 2


def test_a_run_that_was_killed_is_done_again(tmp_path: Path, env: dict[str, str]) -> None:
    assert shell("everloop init", tmp_path, env).returncode == 0
    whole = (tmp_path / "loop.py").read_text()
    line = "    known = features.history("
    kill = "    __import__('os').kill(__import__('os').getpid(), 9)\n"
    (tmp_path / "loop.py").write_text(whole.replace(line, kill + line))
    done = shell("everloop ci loop.py --sample all", tmp_path, env)
    assert done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)
    (tmp_path / "loop.py").write_text(whole)
    done = shell("everloop ci loop.py --sample all", tmp_path, env)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("nowhere.py", "does not exist"),
        ("loop.py --sample many", "is no sample"),
        ("loop.py --sample all --sample-only", "--sample-only needs"),
        ("loop.py --record", "--record needs a place"),
        ("loop.py --out taken/x", "--out taken/x cannot be written"),
        ("loop.py --cache taken/x", "--cache taken/x cannot be written"),
    ],
)
def test_mistakes_of_usage_run_nothing(
    tmp_path: Path, env: dict[str, str], arguments: str, said: str
) -> None:
    (tmp_path / "loop.py").write_text("raise SystemExit('it ran')\n")
    (tmp_path / "taken").write_text("")
    done = shell(f"everloop ci {arguments}", tmp_path, env)
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr
