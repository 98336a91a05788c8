"""A worker executes with what the key was made of: variables, folder and constants as they are in
the run's own process, whatever was set there after the worker began, or here by another step.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from everloop.pipelines import api as ev
from everloop.pipelines.beside import content_beside
from everloop.workspace import Workspace, open_workspace
from tests.unit.pipelines import set_later as steps


@ev.pipeline
def regions() -> list[list[str]]:
    found = []
    for value in ("north", "south"):
        os.environ["EVERLOOP_TEST_DECLARED"] = os.environ["EVERLOOP_TEST_READ"] = value
        found += [steps.region.submit(1).result(), *steps.region.map([2])]
    steps.moves_away.submit(1).result()
    del os.environ["EVERLOOP_TEST_READ"]
    found += [steps.region.submit(1).result()]
    return found


def test_variables_are_those_of_the_run(
    full_workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERLOOP_TEST_DECLARED", "before")
    monkeypatch.setenv("EVERLOOP_TEST_READ", "before")
    wanted = [["north"] * 2] * 2 + [["south"] * 2] * 2 + [["south", "unset"]]
    for _ in range(2):  # executed, and from the store
        assert regions.run(workers=1) == wanted


@ev.pipeline
def folders(one: Path, two: Path) -> list[str]:
    found = []
    for folder in (one, two):
        os.chdir(folder)
        found += steps.text_of.map([Path("here.txt")])
    steps.moves_away.submit(1).result()
    return [*found, steps.text_of.submit(Path("also.txt")).result()]


def test_relative_paths_are_those_of_the_run(
    full_workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "here.txt").write_text(name)
        (tmp_path / name / "also.txt").write_text(f"also {name}")
    for _ in range(2):
        assert folders.run(workers=1, one=tmp_path / "one", two=tmp_path / "two") == [
            "one", "two", "also two",
        ]  # fmt: skip


@ev.pipeline
def constants() -> list[Any]:
    found: list[Any] = [*steps.rated.map([1, 2]), steps.leveled.submit(0).result()]
    steps.RATE = 5
    steps.LEVELS["high"] = 9
    steps.Options.width = 2
    steps.Options.names.append("b")
    found += [*steps.rated.map([1, 2]), steps.leveled.submit(0).result()]
    return found


def test_constants_are_those_of_the_run(
    full_workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        monkeypatch.setattr(steps, "RATE", 3)
        monkeypatch.setattr(steps, "LEVELS", {"low": 1})
        monkeypatch.setattr(steps.Options, "width", 1)
        monkeypatch.setattr(steps.Options, "names", ["a"])
        assert constants.run(workers=1) == [3, 6, [0, 1, 1, 1], 5, 10, [0, 1, 9, 2, 2]]


@ev.pipeline
def own_things() -> list[Any]:
    here = [steps.cached(1), steps.connected(1)]
    return [*here, steps.cached.submit(2).result(), steps.connected.submit(2).result()]


def test_what_is_made_when_it_is_needed_is_each_process_s_own(
    full_workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "CACHE", {})
    monkeypatch.setattr(steps, "CLIENT", threading.Lock())  # cannot be sent
    assert own_things.run(workers=1) == [2, False, 3, True]


def test_a_workspace_among_the_data_is_not_looked_into(tmp_path: Path) -> None:
    """Closing a file that SQLite has open drops the locks of this process on it."""
    (tmp_path / "data.csv").write_text("1")
    before = content_beside(str(tmp_path))
    place = tmp_path / "results" / "store"
    with open_workspace(place):
        assert (place / "catalog.sqlite").exists()
        assert content_beside(str(tmp_path)) == before
    (tmp_path / "results" / "more.csv").write_text("2")
    assert content_beside(str(tmp_path)) != before
