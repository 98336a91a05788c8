"""The row ledger: why a row is not there, what a rule did in all, and how much that costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import event

import everloop as ev
from everloop.catalog import tables
from everloop.core.context import using
from everloop.core.schema import Field, Schema
from everloop.data import ledger
from everloop.data.handed import ledger_rows, read_file, write_file
from everloop.data.ledger import page_of, rows_of, store_entry
from everloop.errors import InvalidInput, NotFound
from everloop.workspace import Workspace

OPS = "ops@example.org"
SCHEMA = Schema(
    (
        Field("id", "int64", nullable=False),
        Field("x", "float64", le=90, on_fail="quarantine", owner="sensors@example.org"),
        Field("s", "string", nullable=False, on_fail="drop"),
    ),
    key=("id",),
)


def commit(ws: Workspace, ids: range, **options: Any) -> None:
    rows = [{"id": n, "x": float(n), "s": None if n == 7 else "s"} for n in ids]
    ws.data.commit("d", pa.Table.from_pylist(rows), mode="replace", owner=OPS, **options)


def whats(ws: Workspace, id_: int, **options: Any) -> list[str]:
    found = ws.data.why_absent("d", {"id": id_}, **options)
    return [f"{station.place} {station.what}" for station in found.stations]


def test_why_a_row_is_not_in_a_version(ws: Workspace) -> None:
    commit(ws, range(100), schema=SCHEMA)
    commit(ws, range(50), note="only half came")
    assert whats(ws, 3) == ["d@2 there"]
    assert ws.data.why_absent("d", {"id": 3}).present is True
    gone = ws.data.why_absent("d", {"id": 60})
    assert (gone.present, gone.rows) == (False, 0)
    assert gone.answer.endswith("d@2: it is gone since this version, by tester: only half came")
    assert whats(ws, 60) == ["d@2 not there", "d@1 there", "d@2 not there"]
    assert whats(ws, 60, number=1) == ["d@1 there"]
    dropped = ws.data.why_absent("d", {"id": 7})
    assert dropped.answer.endswith("dropped by rule s.not_null: s is null, owner ops@example.org")
    waiting = ws.data.why_absent("d", {"id": 95})
    assert "d.quarantine@1 it waits" in waiting.answer
    assert "owner sensors@example.org" in waiting.answer
    never = ws.data.why_absent("d", {"id": 1000})
    assert never.answer.endswith("it never arrived, and no rule left it out")
    many = ws.data.why_absent("d", {"s": "s"})
    assert (many.rows, many.present) == (49, True)


def test_bad_questions_are_explained(ws: Workspace) -> None:
    commit(ws, range(10), schema=SCHEMA)
    with pytest.raises(NotFound, match="did you mean 'id'"):
        ws.data.why_absent("d", {"ids": 1})
    with pytest.raises(InvalidInput, match="where"):
        ws.data.why_absent("d", {})
    with pytest.raises(InvalidInput, match="is no int64"):
        ws.data.why_absent("d", {"id": "x"})
    with pytest.raises(NotFound, match="no run nobody"):
        ws.data.why_absent("d", {"id": 1}, run="nobody")
    with pytest.raises(NotFound, match="no entry"):
        ws.data.changed_page("d", "0" * 64)
    with pytest.raises(InvalidInput, match="1 to 100000"):
        ws.data.changed_page("d", "0" * 64, limit=0)


@pytest.mark.parametrize("ws", ["sqlite"], indirect=True)
def test_an_erased_row_is_said_to_be_erased_and_no_value_is_told(ws: Workspace) -> None:
    commit(ws, range(10), schema=SCHEMA)
    ws.data.erase({"id": 4})
    found = ws.data.why_absent("d", {"id": 4})
    assert "it was erased from 1 versions; receipt" in found.answer
    other = ws.data.why_absent("d", {"x": 4.0})
    assert "maybe this one" in other.answer
    assert ws.data.why_absent("d", {"id": 11}).answer.endswith("no rule left it out")


@ev.step
def clean(rows: ev.Table) -> ev.Table:
    left = rows.drop_where("small", "id < 3", reason="too small").filter("id <> 5")
    return left.set_where("big", "x", "9", "id = 9", reason="too big")


@ev.step
def by_text(rows: ev.Table) -> ev.Table:
    return ev.Table(rows.to_arrow().group_by("s").aggregate([("x", "sum")]), sources=rows.sources)


@ev.pipeline
def flow() -> int:
    return len(by_text(clean(ev.read("d"))))


@pytest.mark.parametrize("ws", ["sqlite"], indirect=True)
def test_a_row_is_followed_through_the_steps_of_a_run_also_of_cached_ones(ws: Workspace) -> None:
    commit(ws, range(10), schema=SCHEMA)
    for _ in range(2):
        with using(ws):
            flow.run()
        run = flow.run_id
        small = ws.data.why_absent("d", {"id": 1}, run=run)
        assert small.present is False
        assert "dropped by rule small: too small, owner ops@example.org" in small.answer
        filtered = ws.data.why_absent("d", {"id": 5}, run=run)
        assert filtered.answer.endswith("left it out by no rule: a filter or a join")
        big = ws.data.why_absent("d", {"id": 9}, run=run)
        assert big.present is True
        [changed] = [s.change for s in big.stations if s.what == "changed"]
        assert changed is not None
        assert (changed.row["x"], changed.row["x.new"]) == (9.0, 9.0)
        told = [s.told for s in big.stations if s.what == "not followed"]
        assert told == ["it has no column to know the row by; it was made of d@1"]
        totals = ws.data.change_totals(scope=f"run:{run}", act="dropped")
        assert [(t.rule, t.rows, t.owner) for t in totals] == [("small", 3, OPS)]


def test_everything_a_rule_ever_removed(ws: Workspace, tmp_path: Path) -> None:
    commit(ws, range(100), schema=SCHEMA)
    for run in ("a", "b"):
        table = pa.table({"id": list(range(5))})
        ws.data.record_changes(f"run:{run}/s", "d", "s.not_null", "dropped", "why", "", table)
    [total] = ws.data.change_totals(rule="s.not_null")
    assert (total.dataset, total.action, total.entries, total.rows) == ("d", "dropped", 3, 11)
    assert len(ws.data.changed_rows(rule="s.not_null", limit=4)) == 4
    assert len(ws.data.changed_rows(rule="s.not_null", scope="run:a")) == 5
    changes = ws.data.changes(rule="s.not_null")
    for end in (".csv", ".parquet"):
        file = tmp_path / f"out{end}"
        assert write_file(file, ledger_rows(ws.data, changes)) == 11
        assert read_file(file).num_rows == 11
    with pytest.raises(InvalidInput, match="must end in"):
        write_file(tmp_path / "out.txt", [])
    with pytest.raises(NotFound, match="no file"):
        read_file(tmp_path / "none.csv")
    (tmp_path / "bad.csv").write_bytes(b"a,b\n1\n")
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_file(tmp_path / "bad.csv")


@pytest.mark.parametrize("ws", ["sqlite"], indirect=True)
def test_ten_thousand_entries_take_one_statement(ws: Workspace) -> None:
    commit(ws, range(8), schema=SCHEMA)
    [change] = ws.data.changes(act="dropped")
    row = {name: getattr(change, name) for name in change.__struct_fields__}
    with ws.catalog.write() as tx:
        tx.execute(
            tables.row_changes.insert(), [row | {"scope": f"run:{n}"} for n in range(10_000)]
        )
    said: list[str] = []

    def note(*given: Any) -> None:
        said.extend([given[2]] if given[2].startswith("SELECT") else [])

    event.listen(ws.catalog._reader, "before_cursor_execute", note)
    try:
        assert len(ws.data.changes(dataset="d")) == 10_001
        assert [t.rows for t in ws.data.change_totals(dataset="d")] == [10_001]
        assert len(ws.data.changes(dataset="d", limit=7)) == 7
    finally:
        event.remove(ws.catalog._reader, "before_cursor_execute", note)
    assert len(said) == 3


@pytest.mark.parametrize("ws", ["sqlite"], indirect=True)
def test_a_large_entry_is_read_part_by_part(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "_GROUP", 100)
    rows = pa.table({"id": list(range(1000)), "x": [n / 2 for n in range(1000)]})
    block = store_entry(ws.blobs, rows)
    change = ws.data.record_changes("run:r/s", "d", "r", "dropped", "why", "", rows)
    assert change.detail == block.digest
    read: list[int] = []
    whole = pq.ParquetFile.read_row_group

    def noted(self: Any, group: int, **options: Any) -> Any:
        read.append(group)
        return whole(self, group, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", noted)
    assert page_of(ws.blobs, change.detail, 250, 100).equals(rows.slice(250, 100))
    assert read == [2, 3]
    found = rows_of(ws.blobs, change, {"id": 555}, 5).rows
    assert [row.row for row in found] == [{"id": 555, "x": 277.5}]
    assert len(rows_of(ws.blobs, change, {}, 150).rows) == 150
    monkeypatch.setattr(pq.ParquetFile, "read", None)  # never as a whole
    assert len(ws.data.changed_rows(dataset="d", where={"x": 1.5})) == 1
