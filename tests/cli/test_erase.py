"""Erasing from the command line: a dry run first, exit codes, and receipts in files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import everloop as ev
from everloop.cli.main import run
from tests.contracts.test_dataset_rows import KEYED, table


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    with ev.open(tmp_path / ".everloop", actor="tester") as ws:
        ws.data.commit("d", table([(n, 0.0, f"n{n}") for n in range(9)]), schema=KEYED)
    return tmp_path


def everloop(capsys: Any, *arguments: str) -> tuple[int, str, str]:
    """Run in this process: exit code, output, errors."""
    code: Any = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["everloop", *arguments])
        try:
            run()
        except SystemExit as done:
            code = done.code
    told = capsys.readouterr()
    return int(code or 0), told.out, told.err


def test_a_subject_is_erased_and_the_receipt_verified(folder: Path, capsys: Any) -> None:
    code, out, err = everloop(capsys, "data", "erase", "id=7")
    assert code == 0
    assert "d@1" in out
    assert "nothing was changed; --yes erases it" in err
    (folder / "ids").write_text("7\n8\n\n")
    code, out, _ = everloop(capsys, "data", "erase", "id=@ids", "id=99", "--yes", "--json")
    assert code == 0
    assert json.loads(out)["erased"]["rows"] == 2
    (folder / "receipt.json").write_text(out)
    assert "(rows erased)" in everloop(capsys, "data", "log", "d")[1]
    assert "rows erased, content now" in everloop(capsys, "data", "show", "d@1")[1]
    code, out, _ = everloop(capsys, "data", "verify-receipt", "receipt.json", "id=7")
    assert (code, "valid" in out) == (0, True)
    code, out, _ = everloop(capsys, "data", "verify-receipt", "receipt.json", "id=6")
    assert code == 1
    forged = json.loads((folder / "receipt.json").read_text()) | {"reason": "another"}
    (folder / "receipt.json").write_text(json.dumps(forged))
    code, out, _ = everloop(capsys, "data", "verify-receipt", "receipt.json")
    assert (code, "invalid" in out) == (1, True)
    code, _, err = everloop(capsys, "data", "erase", "id=7", "--yes")
    assert (code, "the subject was not found" in err) == (0, True)
    assert everloop(capsys, "data", "receipts")[1].count("\n") == 3


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["id"], 2, "is not COLUMN=VALUE"),
        (["id=@no"], 2, "no cannot be read"),
        (["ids=7", "--yes"], 5, "did you mean 'id'"),
        (["id=null"], 2, "a null names nobody"),
        (["id=7", "--dataset", "e"], 5, "e"),
    ],
)
def test_what_is_wrong_is_said(
    folder: Path, capsys: Any, arguments: list[str], status: int, said: str
) -> None:
    code, _, err = everloop(capsys, "data", "erase", *arguments)
    assert (code, said in err) == (status, True), err


def test_a_hold_is_named(folder: Path, capsys: Any) -> None:
    assert everloop(capsys, "data", "hold", "case", "--reason", "court")[0] == 0
    code, _, err = everloop(capsys, "data", "erase", "id=7", "--yes")
    assert (code, "legal hold on it (case)" in err) == (6, True), err
    assert everloop(capsys, "data", "release", "case")[0] == 0
    assert everloop(capsys, "data", "erase", "id=7", "--yes")[0] == 0
