"""Pulling files: what is new is read once, types stay, and what is broken is named."""

from __future__ import annotations

import gzip
import json
import os
import time
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import everloop as ev
from everloop.data import formats, source_files
from everloop.errors import BackendError, InvalidInput, NotFound, StateError
from everloop.workspace import Workspace
from tests.unit.sources.conftest import rows

OLD = time.time_ns() - 10_000_000_000


def write(name: str, text: str | bytes, *, at: int = OLD) -> Path:
    """A file that was written long ago."""
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    os.utime(path, ns=(at, at))
    return path


def parquet(name: str, **columns: Any) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), name)
    os.utime(name, ns=(OLD, OLD))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of files whose bytes were asked for."""
    seen: list[str] = []
    digest = source_files._digest

    def noted(path: Path, size: int) -> str:
        seen.append(str(path))
        return digest(path, size)

    monkeypatch.setattr(source_files, "_digest", noted)
    return seen


# --- what is new ---------------------------------------------------------------------------------


def test_only_new_files_are_opened(home: Workspace, opened: list[str]) -> None:
    for day in (1, 2):
        parquet(f"data/{day}.parquet", id=[day * 10, day * 10 + 1])
    source = ev.data_source("d", "data/*.parquet")
    assert ev.pull(source).rows == 4
    opened.clear()
    parquet("data/3.parquet", id=[30])
    made = ev.pull(source)
    assert (made.read, made.rows, [f.path for f in made.files]) == (1, 5, ["data/3.parquet"])
    assert opened == ["data/3.parquet"]
    assert not ev.pull(source).is_new
    assert len(home.data.pulls("d")) == 2, "a pull that finds nothing is no record"


def test_a_file_that_was_only_touched_is_not_read(home: Workspace) -> None:
    write("a.csv", "id\n1\n")
    source = ev.data_source("d", "a.csv")
    ev.pull(source)
    write("a.csv", "id\n1\n", at=OLD + 5)
    made = ev.pull(source)
    assert (made.is_new, made.files, made.read) == (False, (), 0)
    assert home.data.source_state("d").files[0].mtime_ns == OLD + 5


def test_a_change_within_the_tick_of_the_clock_is_seen(home: Workspace) -> None:
    now = time.time_ns()
    write("a.csv", "id,x\n1,1\n", at=now)
    source = ev.data_source("d", "a.csv", key="id")
    ev.pull(source)
    write("a.csv", "id,x\n1,2\n", at=now)  # same size, same time
    ev.pull(source)
    assert rows("d") == [{"id": 1, "x": 2}]


def test_changed_rows_take_the_place_of_those_of_their_key(home: Workspace) -> None:
    write("a.csv", "id,x\n1,1\n2,2\n")
    write("b.csv", "id,x\n2,3\n3,3\n3,4\n")
    source = ev.data_source("d", "*.csv", key="id")
    ev.pull(source)
    assert rows("d") == [{"id": 1, "x": 1}, {"id": 2, "x": 3}, {"id": 3, "x": 4}], (
        "the later counts"
    )
    write("a.csv", "id,x\n1,9\n2,2\n4,4\n")
    made = ev.pull(source)
    assert made.read == 3
    assert [r["x"] for r in rows("d")] == [9, 2, 4, 4]


def test_without_a_key_a_changed_file_is_refused_and_nothing_is_lost(home: Workspace) -> None:
    write("a.csv", "id\n1\n")
    source = ev.data_source("d", "*.csv")
    ev.pull(source)
    write("a.csv", "id\n2\n", at=OLD + 5)
    write("b.csv", "id\n3\n")
    with pytest.raises(StateError, match=r"a\.csv") as got:
        ev.pull(source)
    assert "key=" in got.value.hint
    assert rows("d") == [{"id": 1}]


def test_replace_makes_it_what_the_files_hold(home: Workspace, opened: list[str]) -> None:
    for name in "abc":
        write(f"{name}.csv", f"id,x\n{name},1\n")
    source = ev.data_source("d", "*.csv", mode="replace")
    ev.pull(source)
    Path("b.csv").unlink()
    write("c.csv", "id,x\nc,2\nd,3\n")
    assert ev.pull(source).rows == 3
    assert [(r["id"], r["x"]) for r in rows("d")] == [("a", 1), ("c", 2), ("d", 3)]
    opened.clear()
    assert not ev.pull(source).is_new
    assert opened == []


def test_a_file_that_went_leaves_its_rows_and_a_word(home: Workspace) -> None:
    for name in "ab":
        write(f"{name}.csv", f"id\n{name}\n")
    source = ev.data_source("d", "*.csv")
    ev.pull(source)
    Path("a.csv").unlink()
    write("c.csv", "id\nc\n")
    assert ev.pull(source).notes == ("a.csv is no longer there; its rows stay",)
    assert len(rows("d")) == 3


def test_thousands_of_small_files_are_one_block(home: Workspace) -> None:
    Path("many").mkdir()
    for n in range(2_000):
        with open(f"many/{n:05}.jsonl", "w") as file:
            file.write(f'{{"id":{n}}}\n')
    source = ev.data_source("d", "many/*.jsonl")
    made = ev.pull(source)
    assert (made.rows, len(home.data.version("d").blocks)) == (2_000, 1)
    assert [r["id"] for r in rows("d")] == list(range(2_000))
    assert ev.pull(source).read == 0


# --- streams -------------------------------------------------------------------------------------


def test_lines_that_are_appended_are_read_from_where_the_last_pull_ended(home: Workspace) -> None:
    write("log.jsonl", '{"n":1}\n{"n":2}\n{"n":')
    source = ev.data_source("d", "log.jsonl")
    first = ev.pull(source)
    assert (first.rows, first.files[0].read) == (2, 16)
    assert "not finished" in first.notes[0]
    with open("log.jsonl", "a") as file:
        file.write('3}\n{"n":4}')
    second = ev.pull(source)
    assert (second.read, second.rows) == (2, 4), "the last one is whole without a line end"
    assert [r["n"] for r in rows("d")] == [1, 2, 3, 4]


def test_a_log_that_was_rotated_loses_and_doubles_nothing(home: Workspace) -> None:
    write("app.jsonl", '{"n":1}\n{"n":2}\n')
    source = ev.data_source("d", "app*.jsonl")
    ev.pull(source)
    with open("app.jsonl", "a") as file:
        file.write('{"n":3}\n')
    os.rename("app.jsonl", "app-1.jsonl")
    write("app.jsonl", '{"n":4}\n')
    made = ev.pull(source)
    assert sorted(r["n"] for r in rows("d")) == [1, 2, 3, 4]
    assert any("app-1.jsonl is what app.jsonl was" in note for note in made.notes)
    assert any("rotated or cut" in note for note in made.notes)
    assert ev.pull(source).read == 0


def test_a_parquet_file_that_got_another_name_is_not_read_again(home: Workspace) -> None:
    parquet("in/a.parquet", id=[1])
    source = ev.data_source("d", "**/*.parquet")
    ev.pull(source)
    os.makedirs("done")
    os.rename("in/a.parquet", "done/a.parquet")
    assert ev.pull(source).read == 0
    parquet("in/a.parquet", id=[2])
    assert ev.pull(source).read == 1, "its old name was free"
    assert [r["id"] for r in rows("d")] == [1, 2]


def test_a_file_that_comes_back_with_other_bytes_is_noticed(home: Workspace) -> None:
    parquet("a.parquet", id=[1])
    parquet("b.parquet", id=[5])
    source = ev.data_source("d", "*.parquet")
    ev.pull(source)
    Path("a.parquet").unlink()
    ev.pull(source)
    parquet("a.parquet", id=[2])  # of the same size and time
    with pytest.raises(StateError, match="changed"):
        ev.pull(source)


def test_a_line_that_is_no_object_is_named(home: Workspace) -> None:
    write("log.jsonl", '{"n":1}\n[2]\n')
    with pytest.raises(InvalidInput, match=r"log\.jsonl line 2: no JSON object"):
        ev.pull(ev.data_source("d", "log.jsonl"))


def test_json_keeps_its_types(home: Workspace) -> None:
    write(
        "a.jsonl",
        "\ufeff"
        + '{"i":1,"f":1,"s":"007","o":{"k":[1]},"b":true,"n":null}\n\n{"f":1.5,"x":"late"}\n',
    )
    ev.pull(ev.data_source("d", "a.jsonl"))
    assert rows("d") == [
        {"i": 1, "f": 1.0, "s": "007", "o": '{"k":[1]}', "b": True, "n": None, "x": None},
        {"i": None, "f": 1.5, "s": None, "o": None, "b": None, "n": None, "x": "late"},
    ]
    write("b.jsonl", '{"i":1}\n{"i":"1"}\n')
    with pytest.raises(InvalidInput, match="i: is of several types: int, str"):
        ev.pull(ev.data_source("e", "b.jsonl"))


# --- CSV -----------------------------------------------------------------------------------------


def test_types_are_told_from_all_rows_and_codes_stay_text(home: Workspace) -> None:
    head = "i,f,zip,big,at,naive,mixed,day,ok,none,s\n"
    line = (
        "1,1,01234,1,2024-01-01T00:00:00+02:00,2024-01-01 00:00,2024-01-01T00:00Z,2024-02-29,"
        "true,,x\n"
    )
    last = (
        "-2,2.5,99999,12345678901234567890,2024-01-01T00:00:00Z,2024-01-01 00:00:00.5,"
        "2024-01-01 00:00,2024-03-01,FALSE,,1\n"
    )
    write("a.csv", head + line * 70_000 + last)
    ev.pull(ev.data_source("d", "a.csv"))
    kinds = {f.name: f.type for f in home.data.version("d").schema.fields}
    assert kinds == {
        "i": "int64", "f": "float64", "zip": "string", "big": "string", "at": "timestamp",
        "naive": "timestamp", "mixed": "string", "day": "date", "ok": "bool", "none": "string",
        "s": "string",
    }  # fmt: skip
    found = ev.read("d").to_arrow()
    assert found.num_rows == 70_001
    assert found["zip"][0].as_py() == "01234"
    assert found["at"][0].as_py().isoformat() == "2023-12-31T22:00:00+00:00"


def test_a_value_of_another_type_than_the_first_pull_saw_is_named_by_line(home: Workspace) -> None:
    write("1.csv", "id,price,note\n1,2,a\n")
    source = ev.data_source("d", "*.csv")
    ev.pull(source)
    write("2.csv", 'id,price,note\n2,3,"two\nlines"\n3,"2,5",b\n')
    with pytest.raises(InvalidInput) as got:
        ev.pull(source)
    assert [str(fault) for fault in got.value.faults] == ["2.csv line 4, price: '2,5' is no int64"]
    write("2.csv", "id,price,note\n2,3,7\n")
    ev.pull(source)
    assert rows("d")[1] == {"id": 2, "price": 3, "note": "7"}, "text stays text"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("\n", "no header"),
        ("a,b\n", "no rows to tell the types"),
        ("a,a\n1,2\n", "columns of one name: 'a'"),
        ("a,\n1,2\n", "column 2 has no name"),
        ("a,b\n1\n", "Expected 2 columns, got 1"),
        ("a,b\n1,2\n1,2,3\n", "Expected 2 columns, got 3"),
        (b"a\nx\xe9\n", "not in utf-8"),
        (b"\xe9\n1\n", "not in utf-8"),
        ("a,b\n1,x\0y\n", "zero byte in b"),
        ("a\0,b\n1,x\n", "zero byte"),
        ("a\n1\n".encode("utf-16"), "not in utf-8"),
    ],
)
def test_broken_csv_is_refused(home: Workspace, text: str | bytes, words: str) -> None:
    write("a.csv", text)
    with pytest.raises(InvalidInput, match=words) as got:
        ev.pull(ev.data_source("d", "a.csv"))
    assert "a.csv" in str(got.value)
    with pytest.raises(NotFound):
        ev.read("d")


def test_dialects(home: Workspace) -> None:
    write("bom.csv", b'\xef\xbb\xbfid,t\r\n1,"a ""b"",\r\nc"\r\n\r\n2,\r\n3,""\r\n')
    ev.pull(ev.data_source("bom", "bom.csv"))
    assert rows("bom") == [
        {"id": 1, "t": 'a "b",\r\nc'}, {"id": 2, "t": None}, {"id": 3, "t": ""},
    ]  # fmt: skip
    write("l.csv", "id;t\n1;é\n".encode("latin-1"))
    ev.pull(ev.data_source("l", "l.csv", encoding="latin-1", delimiter=";"))
    assert rows("l") == [{"id": 1, "t": "é"}]
    write("u.csv", "id,t\n1,é\n".encode("utf-16"))
    ev.pull(ev.data_source("u", "u.csv", encoding="utf-16"))
    assert rows("u") == [{"id": 1, "t": "é"}]
    write("n.tsv", 'id\tt\n1\tNA\nNA\t"NA"\n')
    ev.pull(ev.data_source("n", "n.tsv", nulls=["NA"]))
    assert rows("n") == [{"id": 1, "t": None}, {"id": None, "t": "NA"}]
    Path("z.csv.gz").write_bytes(gzip.compress(b"id\n1\n2\n"))
    ev.pull(ev.data_source("z", "z.csv.gz"))
    assert rows("z") == [{"id": 1}, {"id": 2}]
    write("one.csv", "id\n1\n\n3\n")
    ev.pull(ev.data_source("one", "one.csv"))
    assert rows("one") == [{"id": 1}, {"id": None}, {"id": 3}]


def test_columns_that_come_and_go(home: Workspace) -> None:
    write("1.csv", "id,x\n1,a\n")
    source = ev.data_source("d", "*.csv")
    ev.pull(source)
    write("2.csv", "id,y\n2,b\n")
    with pytest.raises(InvalidInput) as got:
        ev.pull(source)
    assert [fault.path for fault in got.value.faults] == ["x", "y"]
    schema = ev.Schema([ev.Field("id", "int64")], extra="allow")
    made = ev.pull(ev.data_source("e", "*.csv", schema=schema))
    assert made.rows == 2
    assert rows("e")[1] == {"id": 2, "x": None, "y": "b"}


# --- which files ---------------------------------------------------------------------------------


def test_nothing_there_is_an_error_and_not_an_empty_table(home: Workspace) -> None:
    for location in ("nowhere.csv", "data/*.csv"):
        with pytest.raises(NotFound, match="no file is at"):
            ev.pull(ev.data_source("d", location))
    write("a.csv", "id\n1\n")
    source = ev.data_source("d", "*.csv", mode="replace")
    ev.pull(source)
    Path("a.csv").unlink()
    with pytest.raises(NotFound, match="no file"):
        ev.pull(source)
    assert rows("d") == [{"id": 1}]


def test_an_empty_file_among_others_is_looked_at_again(home: Workspace) -> None:
    write("a.csv", "id\n1\n")
    write("b.csv", "")
    source = ev.data_source("d", "*.csv")
    assert "b.csv" in ev.pull(source).notes[0]
    write("b.csv", "id\n2\n")
    assert ev.pull(source).rows == 2


def test_hostile_names(home: Workspace) -> None:
    os.mkfifo("pipe.csv")
    write("[x]*.csv", "id\n1\n")
    with pytest.raises(InvalidInput, match="no regular file"):
        ev.pull(ev.data_source("d", "*.csv"))
    ev.pull(ev.data_source("d", "[x]*.csv"))
    Path("pipe.csv").unlink()
    write("new\nline; '\".csv", "id\n2\n")
    ev.pull(ev.data_source("e", "*.csv"))
    assert len(rows("e")) == 2
    with open(b"\xff.csv", "w") as file:
        file.write("id\n3\n")
    with pytest.raises(InvalidInput, match="no UTF-8"):
        ev.pull(ev.data_source("e", "*.csv"))
    os.mkdir("folder.csv")
    with pytest.raises(InvalidInput, match="is a folder"):
        ev.pull(ev.data_source("f", "folder.csv"))


@pytest.mark.parametrize("text", [b"id,x\n1,2\n3,4\n", b"id,x\n9,9\n"])
def test_a_file_that_changes_while_it_is_read_is_not_kept(
    home: Workspace, monkeypatch: pytest.MonkeyPatch, text: bytes
) -> None:
    write("a.csv", "id,x\n1,2\n")
    real = formats._csv

    def changing(*args: Any) -> Any:
        yield from real(*args)
        write("a.csv", text, at=time.time_ns())

    monkeypatch.setattr(formats, "_csv", changing)
    with pytest.raises(BackendError, match="changed while it was read"):
        ev.pull(ev.data_source("d", "a.csv"))
    monkeypatch.undo()
    monkeypatch.chdir(home.folder.parent)
    ev.pull("d")
    assert len(rows("d")) == text.count(b"\n") - 1


def test_parquet_of_other_columns_or_no_parquet(home: Workspace) -> None:
    parquet("a.parquet", id=[1], x=["a"])
    source = ev.data_source("d", "*.parquet")
    ev.pull(source)
    parquet("b.parquet", id=["x"], x=["b"])
    with pytest.raises(InvalidInput, match="'x' is no int64"):
        ev.pull(source)
    write("b.parquet", b"PAR1 is not enough")
    with pytest.raises(InvalidInput, match=r"b\.parquet is no Parquet file"):
        ev.pull(source)
    parquet("b.parquet", id=pa.array([2], pa.int32()), x=["b"])
    ev.pull(source)
    assert [r["id"] for r in rows("d")] == [1, 2]


def test_parquet_files_that_keep_the_same_in_several_ways(home: Workspace) -> None:
    parquet("a.parquet", i=pa.array([1], pa.int32()), t=pa.array(["x"]).dictionary_encode())
    parquet("b.parquet", i=pa.array([2**40]), t=pa.array(["y"], pa.large_string()))
    parquet("c.parquet", i=pa.array([3]), t=["z"])
    ev.pull(ev.data_source("d", "[abc].parquet"))
    assert rows("d") == [{"i": 1, "t": "x"}, {"i": 2**40, "t": "y"}, {"i": 3, "t": "z"}]
    parquet("d.parquet", i=[0.5], t=[b"z"])
    with pytest.raises(InvalidInput, match="several types") as got:
        ev.pull(ev.data_source("e", "*.parquet"))
    assert [str(fault) for fault in got.value.faults] == [
        "i: is double and int32 and int64", "t: is binary and string",
    ]  # fmt: skip


def test_lines_without_a_row(home: Workspace) -> None:
    write("a.jsonl", "\n\n")
    source = ev.data_source("d", "*.jsonl")
    with pytest.raises(InvalidInput, match="no rows, and there is no version yet"):
        ev.pull(source)
    write("a.jsonl", '{"n":')
    with pytest.raises(InvalidInput, match="no rows"):
        ev.pull(source)
    write("a.jsonl", '{"n":1}\n', at=OLD + 1)
    ev.pull(source)
    with open("a.jsonl", "a") as file:
        file.write("\n")
    assert (ev.pull(source).is_new, ev.pull(source).files) == (False, ())
    with open("a.jsonl", "a") as file:
        file.write('{"n":99999999999999999999}\n')
    with pytest.raises(InvalidInput, match="does not hold"):
        ev.pull(source)
    assert rows("d") == [{"n": 1}]


def test_a_row_that_is_too_long(home: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "_CSV_BLOCK", 1 << 20)
    write("a.csv", 'a,b\n1,"' + "x" * 4_000_000 + "\n")
    with pytest.raises(InvalidInput, match="longer than 1 MB, or a quote is never closed"):
        ev.pull(ev.data_source("d", "a.csv"))


def test_a_fault_of_a_row_names_its_file(home: Workspace) -> None:
    parquet("a.parquet", id=[1, 2])
    parquet("b.parquet", id=[3, 4])
    schema = ev.Schema([ev.Field("id", "int64", le=3)])
    with pytest.raises(InvalidInput) as got:
        ev.pull(ev.data_source("d", "*.parquet", schema=schema))
    assert got.value.faults[0].path == "b.parquet row 2, id"


def test_excel(home: Workspace) -> None:
    import openpyxl

    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    for line in (["id", "name", "x"], [1, "a", 1.5], [2, None, 2]):
        sheet.append(line)
    book.save("a.xlsx")
    ev.pull(ev.data_source("d", "a.xlsx", key="id"))
    found = ev.read("d").to_polars()
    assert found.select("name", "x").rows() == [("a", 1.5), (None, 2.0)]
    assert found["id"].cast(pl.Int64).to_list() == [1, 2]
    write("b.xlsx", b"PK no")
    with pytest.raises(InvalidInput, match=r"b\.xlsx cannot be read as Excel"):
        ev.pull(ev.data_source("e", "b.xlsx"))


def test_what_was_pulled_is_recorded(home: Workspace) -> None:
    path = write("a.jsonl", json.dumps({"id": 1}) + "\n")
    made = ev.pull(ev.data_source("d", "a.jsonl", owner="ops@example.org"), note="by hand")
    [kept] = home.data.pulls("d", number=1)
    assert kept == made
    [file] = kept.files
    assert (file.path, file.size, len(file.digest), file.rows) == ("a.jsonl", 10, 64, 1)
    assert home.data.version("d").note == "by hand"
    assert home.data.datasets()[0].owner == "ops@example.org"
    above = home.lineage.upstream("dataset:d@1").of_kind("external")
    assert above == (f"external:file://{path.absolute()}",)
