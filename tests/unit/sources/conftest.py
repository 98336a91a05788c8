"""A workspace of its own, in which plain functions act, and its folder as the current one."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import everloop as ev
from everloop.core.context import using
from everloop.workspace import Workspace


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    monkeypatch.chdir(tmp_path)
    with ev.open(tmp_path / ".everloop", actor="tester") as opened, using(opened):
        yield opened


def rows(name: str, version: int | None = None) -> list[dict[str, Any]]:
    """The rows of a dataset."""
    found: list[dict[str, Any]] = ev.read(name, version).to_arrow().to_pylist()
    return found


def at(hour: int, minute: int = 0) -> datetime:
    return datetime(2024, 1, 1, hour, minute, tzinfo=UTC)
