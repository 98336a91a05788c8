"""Personal data from the command line: exit codes, what is said, and the sheet in its forms."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

import everloop as ev
from everloop.cli.main import run
from everloop.governance.sheet import DataSheet


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = {
        "id": list(range(40)),
        "contact": [f"p{n}@example.org" for n in range(40)],
        "age": [20 + n % 2 for n in range(39)] + [90],
    }
    with ev.open(tmp_path / ".everloop", actor="tester") as ws:
        ws.data.commit("people", ev.Table.of(rows).to_arrow())
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


def test_what_is_found_and_not_tagged_is_refused_until_it_is(folder: Path, capsys: Any) -> None:
    code, out, err = everloop(capsys, "data", "pii", "people")
    assert code == 3
    assert "contact\temail\t100.0%\t-\tnot tagged" in out
    assert "everloop data describe people --pii contact=email" in err
    assert "p1@example.org" not in out + err
    code, _, err = everloop(capsys, "data", "check", "people")
    assert (code, "warning: contact looks like email and is not tagged" in err) == (0, True)
    code, _, err = everloop(capsys, "data", "pii", "people", "--tag")
    assert (code, "tagged: contact (email)" in err) == (0, True)
    assert everloop(capsys, "data", "pii", "people")[0] == 0
    assert "warning" not in everloop(capsys, "data", "check", "people")[2]
    code, out, _ = everloop(capsys, "data", "preview", "people", "--rows", "1", "--json")
    assert (code, json.loads(out)) == (0, [{"id": 0, "contact": "(masked)", "age": 20}])


def test_masks_grants_and_their_faults(folder: Path, capsys: Any) -> None:
    code, out, _ = everloop(capsys, "data", "mask", "people", "contact", "hash", "--json")
    assert (code, json.loads(out)[0]["mask"]) == (0, "hash")
    code, _, err = everloop(capsys, "data", "mask", "people", "age", "bucket:x")
    assert (code, "'bucket:x' is no mask" in err) == (2, True)
    assert everloop(capsys, "data", "mask", "people", "nobody", "hash")[0] == 5
    code, out, _ = everloop(capsys, "data", "grant", "people", "--to", "bob", "--column", "contact")
    assert (code, "bob\tcontact" in out) == (0, True)
    assert everloop(capsys, "data", "grant", "people", "--to", "bob", "--off")[0] == 0
    assert everloop(capsys, "data", "grant", "people", "--to", "bob", "--off")[0] == 5
    code, out, _ = everloop(capsys, "data", "mask", "people", "contact", "default")
    assert (code, "contact" in out) == (0, False)
    code, _, err = everloop(capsys, "data", "describe", "people", "--pii", "contact")
    assert (code, "is not COLUMN=KIND" in err) == (2, True)


def test_a_row_that_is_alone_is_refused(folder: Path, capsys: Any) -> None:
    code, out, _ = everloop(capsys, "data", "anonymity", "people", "age")
    assert code == 3
    assert "rows that are alone\n" not in out
    assert "1 (2.5%)" in out
    everloop(capsys, "data", "mask", "people", "age", "bucket:100")
    code, out, _ = everloop(capsys, "data", "anonymity", "people", "age", "--masked", "--json")
    assert (code, json.loads(out)["smallest"]) == (0, 40)


def test_the_sheet_in_three_forms(folder: Path, capsys: Any) -> None:
    everloop(capsys, "data", "describe", "people", "--purpose", "<b>letters</b> | bills")
    code, out, _ = everloop(capsys, "data", "sheet", "people")
    assert code == 0
    assert "- Purpose: <b>letters</b> | bills\n- Licence: not stated" in out
    assert "- `contact`: not tagged; found: email (100%)" in out
    code, out, _ = everloop(capsys, "data", "sheet", "people", "--json")
    assert msgspec.json.decode(out, type=DataSheet).stated["purpose"] == "<b>letters</b> | bills"
    assert everloop(capsys, "data", "sheet", "people", "--html", "--output", "s.html")[0] == 0
    html = (folder / "s.html").read_text()
    assert "&lt;b&gt;letters&lt;/b&gt; | bills" in html
    assert "<b>letters" not in html
    assert 'href="/' not in html  # a file has no server beside it
