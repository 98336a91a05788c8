"""Stored results whose bytes were damaged, cut off or lost are computed again, and it is noted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from everloop.core.context import using
from everloop.errors import BackendError
from everloop.pipelines import api as ev
from everloop.pipelines import fan as fans
from everloop.pipelines.engine import Execution
from everloop.workspace import Workspace
from tests.unit.pipelines import fan_steps as steps


@ev.step
def array() -> np.ndarray:
    return np.arange(50_000)


@ev.step
def table(values: np.ndarray) -> pa.Table:
    return pa.table({"x": values})


@ev.step
def text(rows: pa.Table) -> list[str]:
    return ["x" * 100] * rows.num_rows


@ev.step
def total(rows: pa.Table, lines: list[str]) -> int:
    return int(rows["x"].to_numpy().sum()) + len(lines)


@ev.pipeline
def chain() -> int:
    rows = table(array())
    return total(rows, text(rows))


def ran(workspace: Any) -> list[str]:
    """The steps that the last run executed."""
    rows = workspace.pipelines.steps(chain.run_id)
    return [row.step.rpartition(".")[2] for row in rows if row.outcome == "ran"]


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 255
    file.write_bytes(data)


DAMAGES: dict[str, Any] = {
    "flipped": flip,
    "cut off": lambda file: os.truncate(file, file.stat().st_size // 2),
    "empty": lambda file: os.truncate(file, 0),
    "gone": Path.unlink,
}


def objects(folder: Path) -> list[Path]:
    found = [file for file in (folder / "objects").glob("??/*") if file.stat().st_size > 10_000]
    return sorted(found, key=lambda file: file.stat().st_size)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_result_is_a_miss_recorded_and_made_whole(
    sqlite_workspace: Any, tmp_path: Path, damage: str
) -> None:
    wanted = chain.run()
    before = {file: file.read_bytes() for file in objects(tmp_path)}
    assert len(before) == 3
    for file in before:
        DAMAGES[damage](file)
    # As another process would find it.
    sqlite_workspace.blobs.__init__(tmp_path / "objects")
    assert chain.run() == wanted
    assert ran(sqlite_workspace) == ["array", "table", "text"], "the sum itself was whole"
    assert {file: file.read_bytes() for file in before} == before
    dropped = [e for e in sqlite_workspace.catalog.events() if e.kind == "run.MemoDropped"]
    assert len(dropped) == 3
    assert all(e.body["reason"] for e in dropped)
    assert chain.run() == wanted
    assert ran(sqlite_workspace) == []


def test_damage_in_a_store_that_is_open_is_seen_when_the_size_differs(
    sqlite_workspace: Any, tmp_path: Path
) -> None:
    wanted = chain.run()
    for file in objects(tmp_path):
        os.truncate(file, 100)
    assert chain.run() == wanted
    assert ran(sqlite_workspace) == ["array", "table", "text"]


def test_damage_where_the_same_bytes_were_stored_before_is_told_and_the_resume_mends_it(
    sqlite_workspace: Any, tmp_path: Path
) -> None:
    chain.run()
    for file in objects(tmp_path):
        flip(file)
    sqlite_workspace.blobs.__init__(tmp_path / "objects")

    @ev.step
    def another() -> np.ndarray:
        return np.arange(50_000)

    @ev.pipeline
    def again() -> int:
        return len(another())

    with pytest.raises(BackendError, match=r"another was stored and cannot be read: .* damaged"):
        again.run()
    assert again.run(resume=again.run_id) == 50_000


def test_an_object_that_is_whole_is_not_removed_because_somebody_says_so(
    sqlite_workspace: Any,
) -> None:
    digest, _ = sqlite_workspace.blobs.put(b"whole")
    sqlite_workspace.pipelines.forget("no key", "said so", damaged=digest)
    assert sqlite_workspace.blobs.get(digest) == b"whole"


@ev.pipeline
def equal(folder: str) -> list[int]:
    return steps.slowly.map([1, 2, 1, 1, 2, 1, 2, 2], folder=folder)


def test_equal_items_are_computed_once_where_other_runs_cannot_be_asked(
    full_workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fans, "_GROUP_MOST", 1)
    init = Execution.__init__

    def without_claims(self: Any, workspace: Any, *rest: Any, **options: Any) -> None:
        init(self, _Remote(workspace), *rest, **options)

    monkeypatch.setattr(Execution, "__init__", without_claims)
    with using(full_workspace):
        assert equal.run(folder=str(tmp_path)) == [1, 2, 1, 1, 2, 1, 2, 2]
    assert len(list(tmp_path.glob("[12]-*"))) == 2


class _Remote:
    """A workspace without a catalog, as one behind a server is."""

    catalog = None

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def __getattr__(self, name: str) -> Any:
        return getattr(self._workspace, name)
