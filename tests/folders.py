"""Directories of files for tests: made, compared, and a workspace of this machine for them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import everloop as ev
from everloop.core.context import using
from everloop.core.time import ManualClock
from everloop.data import scan
from everloop.workspace import Workspace
from tests.workspaces import START


@pytest.fixture
def home(tmp_path: Path, settled: None) -> Iterator[Workspace]:
    """A workspace on this machine."""
    found = ev.open(tmp_path / ".everloop", clock=ManualClock(START), actor="tester")
    with found, using(found):
        yield found


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    make(folder, {"a.txt": b"one", "sub/b.txt": b"two", "sub/deep/c": b"", "run.sh": b"#!"})
    (folder / "run.sh").chmod(0o755)
    (folder / "empty").mkdir()
    (folder / "sub/link").symlink_to("../a.txt")
    return folder


def make(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def content(folder: Path) -> dict[bytes, Any]:
    """Everything in a folder: bytes and whether they may be executed, links, directories."""
    found: dict[bytes, Any] = {}
    for here, folders, files in os.walk(os.fsencode(folder)):
        for name in [*folders, *files]:
            path = os.path.join(here, name)
            key = os.path.relpath(path, os.fsencode(folder))
            if os.path.islink(path):
                found[key] = os.readlink(path)
            elif os.path.isdir(path):
                found[key] = None
            else:
                found[key] = (Path(os.fsdecode(path)).read_bytes(), os.access(path, os.X_OK))
    return found


def told(found: list[Any]) -> dict[str, str]:
    return {change.path: change.what for change in found}


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as settled at once: a test does not wait for two seconds."""
    monkeypatch.setattr(scan, "SETTLED_NS", -1_000_000_000)
