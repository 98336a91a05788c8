"""What is known of code is kept between processes, and is never of other code."""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from everloop.pipelines import code, facts
from everloop.pipelines.code import CodePrint, fingerprint

TEXT = "def f(x: int) -> int:\n    return g(x)\n\ndef g(x):\n    return x + 1\n"


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setenv("EVERLOOP_DIR", str(tmp_path / "workspace"))
    (tmp_path / "workspace").mkdir()
    facts._forget()
    yield tmp_path
    facts._forget()
    sys.modules.pop("kept_flow", None)


def key(folder: Path, text: str = TEXT, *, at: int = 1_000_000_000) -> CodePrint:
    """The key as a new process makes it."""
    file = folder / "kept_flow.py"
    file.write_text(text)
    os.utime(file, (at, at))
    sys.modules.pop("kept_flow", None)
    importlib.invalidate_caches()
    facts._forget()
    code._memo.clear()
    return fingerprint(importlib.import_module("kept_flow").f)


def stored(folder: Path) -> list[Path]:
    return list((folder / "workspace" / "cache").glob("code-*"))


def test_facts_are_made_once(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = key(kept)
    assert len(stored(kept)) == 1

    def refuse(code: object) -> None:
        raise AssertionError("looked at again")

    monkeypatch.setattr(facts, "_made", refuse)
    again = key(kept)
    assert again.parts == before.parts
    assert again.notes == before.notes


@pytest.mark.parametrize(
    ("old", "new"), [("x + 1", "x + 2"), ("x: int", "x: str"), ("g(x)\n", "x\n")]
)
def test_edit_is_seen_beside_kept_facts(kept: Path, old: str, new: str) -> None:
    before = key(kept)
    after = key(kept, TEXT.replace(old, new), at=1_000_000_001)
    assert after.digest != before.digest
    assert key(kept, at=1_000_000_002).digest == before.digest


def test_edit_within_the_same_tick_and_of_the_same_size_is_seen(kept: Path) -> None:
    before = key(kept)
    assert key(kept, TEXT.replace("x + 1", "x + 2")).digest != before.digest


@pytest.mark.parametrize("damage", [b"", b"\x00", b"\xc1 no facts", b"\x81\xa1a\x01"])
def test_damaged_file_costs_time_only(kept: Path, damage: bytes) -> None:
    before = key(kept)
    stored(kept)[0].write_bytes(damage)
    assert key(kept).parts == before.parts


def test_folder_that_cannot_be_made_costs_time_only(kept: Path) -> None:
    (kept / "workspace" / "cache").write_text("a file in the way")
    assert key(kept).cacheable


def test_other_scanner_does_not_read_what_this_one_kept(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key(kept)
    monkeypatch.setattr(facts, "_maker", lambda: "another")
    key(kept)
    assert [file.name for file in stored(kept)] == ["code-another"]


def test_no_workspace_keeps_nothing(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for location in (str(kept / "nowhere"), "postgresql://somewhere/else"):
        monkeypatch.setenv("EVERLOOP_DIR", location)
        assert key(kept).cacheable
    assert stored(kept) == []
    assert not (kept / "nowhere").exists()


def test_nothing_changed_is_seen_within_a_millisecond(kept: Path) -> None:
    names = [f"f{number}" for number in range(1000)]
    lines = [f"def {name}(x):\n    return x + {n}\n" for n, name in enumerate(names)]
    calls = " + ".join(f"{name}(x)" for name in names)
    made = key(kept, "\n".join([*lines, f"def f(x):\n    return {calls}\n"]))
    assert len(made.parts) == 1002
    root = sys.modules["kept_flow"].f
    spent = []
    for _ in range(20):
        began = time.process_time_ns()
        assert fingerprint(root) is made
        spent.append(time.process_time_ns() - began)
    assert min(spent) < 1_000_000


def test_expression_too_deep_for_a_tree_goes_by_its_bytecode(kept: Path) -> None:
    deep = "def f(x):\n    return " + " + ".join(["x"] * 1500) + "\n"
    before = key(kept, deep)
    assert before.cacheable
    assert key(kept, deep.replace("x + x", "x - x", 1)).digest != before.digest
