"""A disk that is full, and a catalog that is locked: the cause is told, and the run can go on."""

from __future__ import annotations

import contextlib
import os
import resource
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from sqlalchemy import select

from everloop.catalog.tables import memos
from everloop.core.context import using
from everloop.core.pipeline import StoredValue
from everloop.errors import BackendError
from everloop.pipelines import api as ev
from everloop.pipelines.values import load
from everloop.workspace import Workspace, open_workspace
from tests.unit.pipelines import full_disk


@contextlib.contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes, here and in processes that are started meanwhile.

    The limit that the system sets on files fails a write in the same way as a full disk does.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def check_bytes(workspace: Workspace) -> None:
    """Every object that a row names is there and whole, and nothing half-written is left."""
    assert workspace.catalog is not None
    with workspace.catalog.read() as tx:
        values = [msgspec.convert(row.value, StoredValue) for row in tx.all(select(memos.c.value))]
    assert values
    for value in values:
        load(value, workspace.blobs)
    left = [file for file in (workspace.folder / "objects" / "tmp").glob("*") if file.is_file()]  # type: ignore[operator]
    assert left == []


@pytest.mark.parametrize(
    ("where", "step", "result"),
    [
        ("result", "large", 400_000.0),
        ("worker", "large", 400_000.0),
        ("map", "large", 2_400_000.0),
        ("argument", "", 400_000.0),
        ("isolated", "apart", sum([1 / 3] * 200_000)),
    ],
)
def test_a_full_disk_fails_the_step_and_the_run_goes_on_later(
    full_workspace: Workspace, where: str, step: str, result: float
) -> None:
    with room_for(2_500_000), pytest.raises(BackendError, match="could not store") as caught:
        full_disk.main.run(where=where, workers=1)
    assert "File too large" in str(caught.value)
    assert "free space" in caught.value.hint
    [run] = full_workspace.tracking.runs().runs
    assert run.state == "failed"
    assert "File too large" in run.error
    rows = full_workspace.pipelines.steps(run.id)
    failed = {row.step.rpartition(".")[2] for row in rows if row.outcome == "failed"}
    assert failed == ({step} if step else set())
    check_bytes(full_workspace)
    assert full_disk.main.run(resume=run.id, workers=1) == result
    assert full_workspace.tracking.run(run.id).state == "finished"
    ran = [row.key for row in full_workspace.pipelines.steps(run.id) if row.outcome == "ran"]
    assert len(ran) == len(set(ran))
    check_bytes(full_workspace)


def test_a_catalog_that_cannot_grow_stops_the_run_and_keeps_what_it_said(tmp_path: Path) -> None:
    with open_workspace(tmp_path / "ws"):
        size = max(file.stat().st_size for file in (tmp_path / "ws").glob("catalog*"))
    # A process of its own: it ends, as it cannot even write that it failed.
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.pipelines.full_disk", str(size + 200_000)],
        env=os.environ | {"EVERLOOP_DIR": str(tmp_path / "ws")},
        capture_output=True, text=True, check=False, timeout=150,
    )  # fmt: skip
    assert done.returncode == 1
    assert "disk is full, over its quota" in done.stderr
    with open_workspace(tmp_path / "ws") as workspace, using(workspace):
        [run] = workspace.tracking.runs().runs
        before = {row.key for row in workspace.pipelines.steps(run.id) if row.outcome == "ran"}
        assert before
        workspace.tracking.reap()
        assert workspace.tracking.run(run.id).state in ("failed", "lost")
        check_bytes(workspace)
        full_disk.main.run(resume=run.id)
        again = [row.key for row in workspace.pipelines.steps(run.id) if row.outcome == "ran"]
        assert len(again) == len(set(again)) == 41
        assert before <= set(again)


@ev.pipeline
def large_argument(values: np.ndarray) -> int:
    return len(values)


def test_an_argument_that_cannot_be_stored_starts_no_run(
    full_workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("everloop.backends.blobs.local.write_durably", full)
    with pytest.raises(BackendError, match="No space left on device"):
        large_argument.run(values=np.arange(10))
    assert full_workspace.tracking.runs().runs == ()


@ev.step
def counted(n: int) -> int:
    return n


@ev.pipeline
def locked(n: int) -> int:
    return counted(n) + counted(n + 1)


@pytest.fixture
def lock(full_workspace: Workspace) -> Any:
    """Another process's write to the catalog that does not end."""
    file = full_workspace.catalog.file  # type: ignore[union-attr]
    connection = sqlite3.connect(str(file), isolation_level=None, check_same_thread=False)
    yield connection
    connection.close()


def test_a_catalog_that_is_locked_for_a_while_is_waited_for(
    full_workspace: Workspace, lock: sqlite3.Connection
) -> None:
    freed = threading.Event()

    def free() -> None:
        freed.set()
        lock.execute("ROLLBACK")

    lock.execute("BEGIN IMMEDIATE")
    threading.Timer(0.3, free).start()
    assert locked.run(n=1) == 3
    assert freed.is_set()


def test_a_catalog_that_stays_locked_is_told_and_the_run_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @ev.pipeline
    def meets_a_lock(n: int) -> int:
        first = counted(n)
        if locks:
            locks.pop().execute("BEGIN IMMEDIATE")
        return first + counted(n + 1)

    monkeypatch.setattr("everloop.catalog.direct.BUSY_MS", 200)
    with open_workspace(tmp_path / "ws") as workspace, using(workspace):
        file = str(workspace.catalog.file)  # type: ignore[union-attr]
        lock = sqlite3.connect(file, isolation_level=None)
        locks = [lock]
        with pytest.raises(BackendError, match="another process holds the catalog"):
            meets_a_lock.run(n=1)
        assert lock.in_transaction
        lock.close()
        run_id = meets_a_lock.run_id
        assert [row.outcome for row in workspace.pipelines.steps(run_id)] == ["ran"]
        assert workspace.tracking.run(run_id).state == "running", (
            "nobody could write that it failed"
        )
        assert meets_a_lock.run(resume=run_id) == 3
        outcomes = [row.outcome for row in workspace.pipelines.steps(run_id)]
        assert outcomes == ["ran", "cached", "ran"]
