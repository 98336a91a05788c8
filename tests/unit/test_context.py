"""In which workspace plain functions act."""

from __future__ import annotations

import threading
from contextvars import Context
from pathlib import Path

import pytest

import everloop as ev
from everloop.core.context import current_workspace, has_workspace


def test_plain_functions_act_in_the_workspace_that_was_entered_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with ev.open(tmp_path / "outer"):
        ev.commit("here", {"n": [1]})
        with ev.open(tmp_path / "inner") as inner:
            ev.commit("here", {"n": [2]})
            assert current_workspace() is inner
        assert ev.read("here").to_arrow()["n"].to_pylist() == [1]
    assert not (tmp_path / ".everloop").exists()

    def outside() -> None:
        ev.commit("here", {"n": [3]})
        current_workspace().close()

    Context().run(outside)
    with ev.open(tmp_path / ".everloop") as default:
        assert default.data.read("here")["n"].to_pylist() == [3]


def test_an_error_leaves_it_too(tmp_path: Path) -> None:
    def outside() -> bool:
        with pytest.raises(KeyError), ev.open(tmp_path / "ws"):
            raise KeyError
        return has_workspace()

    assert not Context().run(outside)


def test_it_may_be_left_in_another_thread(tmp_path: Path) -> None:
    workspace = ev.open(tmp_path / "ws")
    entering = threading.Thread(target=workspace.__enter__)
    entering.start()
    entering.join()
    Context().run(workspace.__exit__, None, None, None)
