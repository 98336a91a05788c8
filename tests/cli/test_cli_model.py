"""``everloop model`` and ``everloop gc`` as a person or a script meets them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import everloop as ev
from everloop.core.context import acting
from tests.unit.registry.conftest import artifact

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a model of two versions by ann; the champion is 1."""
    with ev.open(tmp_path / ".everloop") as ws, acting(actor="ann"):
        for text in (b"1", b"2"):
            ws.registry.register("m", artifact(text))
        ws.registry.set_alias("m", "champion", 1)
    return tmp_path


def everloop(
    folder: Path, *arguments: str, actor: str = "ann", status: int = 0
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "everloop", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=120,
        env={**os.environ, "EVERLOOP_ACTOR": actor},
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    return done


def document(folder: Path, *arguments: str, actor: str = "ann") -> Any:
    return json.loads(everloop(folder, *arguments, "--json", actor=actor).stdout)


def test_a_protected_alias_moves_once_it_is_approved(project: Path) -> None:
    [rule] = document(project, "model", "protect", "m", "champion", "--approvals", "1")
    assert (rule["alias"], rule["approvals"], rule["four_eyes"]) == ("champion", 1, True)
    promote = ("model", "promote", "m/2", "--reason", "better")
    done = everloop(project, *promote, status=3)
    assert "1 of 1 approvals" in done.stderr
    assert "everloop model approve m/2 champion" in done.stderr
    assert "four eyes" in everloop(project, "model", "approve", "m/2", status=4).stderr
    given = document(project, "model", "approve", "m/2", "--note", "fine", actor="bob")
    assert [approval["actor"] for approval in given["approvals"]] == ["bob"]
    assert "not at 2" in everloop(project, *promote, "--expected", "2", status=6).stderr
    everloop(project, *promote, "--expected", "1")
    assert document(project, "model", "alias", "m", "champion")["version"] == 2
    history = document(project, "model", "history", "m", "champion")
    assert [(move["before"], move["after"]) for move in history] == [(0, 1), (1, 2)]
    assert history[1]["reason"] == "better"
    piped = everloop(project, "model", "history", "m").stdout.splitlines()
    assert piped[0].split("\t") == ["at", "alias", "from", "to", "by", "reason", "evidence"]
    assert (
        "protected"
        in everloop(project, "model", "alias", "m", "champion", "--remove", status=6).stderr
    )
    assert document(project, "model", "protect", "m", "champion", "--off") == []
    assert document(project, "model", "alias", "m", "champion", "--remove")["version"] == 0


def test_what_was_deleted_is_restored_or_purged(project: Path) -> None:
    everloop(project, "model", "archive", "m/2", "--reason", "weak")
    assert document(project, "model", "archive", "m/2", "--undo")["state"] == "draft"
    everloop(project, "model", "delete", "m/2", "--reason", "by mistake")
    [gone] = document(project, "model", "restore")
    assert (gone["kind"], gone["version"], gone["actor"]) == ("model_version", 2, "ann")
    everloop(project, "model", "restore", "m/2")
    everloop(project, "model", "delete", "m")
    everloop(project, "model", "show", "m", status=5)
    everloop(project, "model", "restore", "m", "--as", "n")
    assert document(project, "model", "show", "n/2")["verification"]["signature"] == "unsigned"
    everloop(project, "model", "delete", "n")
    looked = document(project, "gc", "--older-than", "0d", "--grace", "0s", "--dry-run")
    assert (looked["purged"], looked["objects"]) == ({"models": 1}, 2)
    done = everloop(project, "gc", "--older-than", "0d", "--grace", "0s")
    assert done.stdout.splitlines()[:2] == ["models              1", "objects             2"]
    assert "bytes               2" in done.stdout
    assert document(project, "model", "restore") == []
    everloop(project, "model", "restore", "n", status=5)
    assert "30d" in everloop(project, "gc", "--older-than", "soon", status=2).stderr


def test_a_verdict_that_is_not_there_is_not_found(project: Path) -> None:
    for ref in ("m/2", "01ABC"):
        missing = everloop(project, "gate", "show", ref, status=5)
        assert "everloop gate list" in missing.stderr
    assert everloop(project, "gate", "list", "m", "--json").stdout == "[]\n"
