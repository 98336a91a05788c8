"""``everloop data why``, ``changes``, ``work``, ``fix``, ``dismiss`` as people type them."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner

import everloop as ev
from everloop.cli.main import main
from everloop.core.schema import Field, Schema
from everloop.errors import EverloopError, exit_code

SCHEMA = Schema(
    (
        Field("id", "int64", nullable=False),
        Field("t", "float64", le=60, on_fail="quarantine", owner="met@example.org"),
        Field("w", "float64", ge=0, on_fail="warn"),
    ),
    key=("id",),
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    with ev.open(tmp_path / ".everloop") as ws:
        rows = pa.table({"id": [1, 2, 3], "t": [1.0, 99.0, 2.0], "w": [1.0, 1.0, -5.0]})
        ws.data.commit("d", rows, schema=SCHEMA, owner="ops@example.org")
    return tmp_path


def run(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(main, ["data", *words])
    error = done.exception if isinstance(done.exception, EverloopError) else None
    status = done.exit_code if error is None else exit_code(error)
    assert status == code, done.output
    return f"{done.output}{error or ''}{getattr(error, 'hint', '') or ''}{_faults(error)}"


def _faults(error: EverloopError | None) -> str:
    return " ".join(str(fault) for fault in getattr(error, "faults", ()))


@pytest.mark.usefixtures("place")
def test_a_row_is_asked_for_by_its_columns() -> None:
    found = json.loads(run("why", "d", "id=2", "--json"))
    assert (found["present"], found["rows"]) == (False, 0)
    assert "waits" in found["answer"]
    assert "it is in d@1" in run("why", "d@1", "id=3")
    assert "is not COLUMN=VALUE" in run("why", "d", "id", code=2)
    assert "did you mean 'id'" in run("why", "d", "di=2", code=5)


@pytest.mark.usefixtures("place")
def test_the_ledger_is_counted_listed_and_written() -> None:
    assert len(json.loads(run("changes", "--json"))) == 2
    assert "1 lines more" in run("changes", "--limit", "1")
    assert len(json.loads(run("changes", "d", "--entries", "--json"))) == 2
    [row] = json.loads(run("changes", "d", "--where", "id=2", "--json"))
    assert row["row"]["t"] == 99.0
    assert "2 rows in all.jsonl" in run("changes", "--to", "all.jsonl")
    rows = [json.loads(line) for line in Path("all.jsonl").read_text().splitlines()]
    assert {row["row"]["id"] for row in rows} == {2, 3}
    assert "must end in one of" in run("changes", "--to", "all.xls", code=2)


def test_work_goes_out_as_a_file_and_comes_back(place: Path) -> None:
    assert "name it" in run("work", "--to", "w.csv", code=2)
    assert "2 rows in w.csv" in run("work", "d", "--to", "w.csv")
    text = (place / "w.csv").read_text()
    (place / "w.csv").write_text(text.replace(",99,", ",61,").replace(",-5", ",0"))
    assert "t is above 60" in run("fix", "d", "w.csv", code=2)
    (place / "w.csv").write_text(text.replace(",99,", ",6,").replace(",-5", ",0"))
    assert "d@2" in run("fix", "d", "w.csv", "--note", "by hand")
    assert "fixed by" in run("fix", "d", "w.csv", code=6)
    assert json.loads(run("work", "--json"))["total"] == 0


@pytest.mark.usefixtures("place")
def test_an_item_is_dismissed_with_its_reason() -> None:
    [item] = json.loads(run("work", "--owner", "met@example.org", "--json"))["items"]
    assert "reason" in run("dismiss", "d", item["id"], code=2)
    assert "a storm" in run("dismiss", "d", item["id"], "--reason", "a storm")
    assert "a storm" in run("work", "--dismissed")
    assert json.loads(run("work", "--json"))["total"] == 1
