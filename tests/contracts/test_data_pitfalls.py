"""Frames as people really have them, and writers that get in each other's way."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import everloop as ev
from everloop.backends.blobs.local import LocalBlobs
from everloop.core.context import using
from everloop.core.schema import Field, Schema
from everloop.core.time import ManualClock
from everloop.errors import InvalidInput, NotFound
from everloop.workspace import Workspace
from tests.contracts.conftest import START

SCHEMA = Schema(
    (
        Field("id", "int64", nullable=False),
        Field("x", "float64"),
        Field("s", "string"),
        Field("at", "timestamp"),
    ),
    key=("id",),
)
AT = datetime(2013, 7, 1, 12, 30, tzinfo=UTC)
ROWS = [
    {"id": n, "x": (None, 0.0, 2.5)[n % 3], "s": (None, "", "é")[n % 3], "at": AT} for n in range(9)
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    folder = tmp_path_factory.mktemp("pitfalls") / ".everloop"
    with ev.open(folder, clock=ManualClock(START), actor="tester") as ws:
        yield ws


@pytest.fixture
def ws(shared: Workspace) -> Iterator[Workspace]:
    with using(shared):
        yield shared


# Equal values are equal content


def _arrow() -> pa.Table:
    return pa.Table.from_pylist(ROWS, pa.schema(_types(pa.int64(), pa.string(), "us", "UTC")))


def _types(number: Any, text: Any, unit: Any, zone: str | None) -> list[tuple[str, Any]]:
    kinds = (number, pa.float64(), text, pa.timestamp(unit, zone))
    return list(zip(("id", "x", "s", "at"), kinds, strict=True))


def _as(number: Any, text: Any, unit: Any, zone: str | None) -> pa.Table:
    return _arrow().cast(pa.schema(_types(number, text, unit, zone)))


def _pandas() -> Any:
    return _arrow().to_pandas()


FORMS = {
    "narrow": lambda: _as(pa.int8(), pa.string(), "us", "UTC"),
    "unsigned": lambda: _as(pa.uint64(), pa.string(), "us", "UTC"),
    "large text": lambda: _as(pa.int64(), pa.large_string(), "us", "UTC"),
    "text view": lambda: _as(pa.int64(), pa.string_view(), "us", "UTC"),
    "categories": lambda: _as(pa.int64(), pa.dictionary(pa.int8(), pa.string()), "us", "UTC"),
    "runs": lambda: _arrow().set_column(
        2, "s", pa.chunked_array([pa.compute.run_end_encode(c) for c in _arrow()["s"].chunks])
    ),
    "seconds": lambda: _as(pa.int64(), pa.string(), "s", "UTC"),
    "nanoseconds": lambda: _as(pa.int64(), pa.string(), "ns", "UTC"),
    "another zone": lambda: _as(pa.int64(), pa.string(), "us", "Asia/Kolkata"),
    "no zone": lambda: _as(pa.int64(), pa.string(), "us", None),
    "chunks": lambda: pa.concat_tables([_arrow().slice(n, 2) for n in range(0, 9, 2)]),
    "a slice": lambda: pa.concat_tables([_arrow(), _arrow()]).slice(9, 9),
    "columns the other way": lambda: _arrow().select(["at", "s", "x", "id"]),
    "rows the other way": lambda: _arrow().take(list(range(8, -1, -1))),
    "minus zero": lambda: _arrow().set_column(
        1, "x", pa.array([-0.0 if x == 0 else x for x in _arrow()["x"].to_pylist()], pa.float64())
    ),
    "metadata": lambda: _arrow().replace_schema_metadata({"made": "by hand"}),
    "pandas": _pandas,
    "pandas, shuffled": lambda: _pandas().sample(frac=1, random_state=1),
    "pandas, key as index": lambda: _pandas().set_index("id"),
    "pandas, categories": lambda: _pandas().assign(s=lambda f: f["s"].astype("category")),
    "pandas, nullable": lambda: _pandas().convert_dtypes(),
    "pandas, objects": lambda: _pandas().astype({"s": object}),
    "polars": lambda: pl.from_arrow(_arrow()),
    "polars, categories": lambda: pl.from_arrow(_arrow()).with_columns(
        pl.col("s").cast(pl.Categorical)  # type: ignore[attr-defined]
    ),
    "dicts": lambda: ROWS,
}


# pyarrow asks pandas for times in a way that pandas 3.1 has doubts about.
@pytest.mark.filterwarnings("ignore:Series.values")
@pytest.mark.parametrize("form", FORMS)
def test_equal_values_are_the_same_version_in_whatever_form(ws: Workspace, form: str) -> None:
    first = ev.commit("equal", _arrow(), schema=SCHEMA)
    assert ev.commit("equal", FORMS[form](), schema=SCHEMA) == first
    alone = ev.commit(f"as-{list(FORMS).index(form)}", FORMS[form](), schema=SCHEMA)
    assert alone.digest == first.digest


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("x", [float("nan"), *(row["x"] for row in ROWS[1:])]),
        ("s", ["", *(row["s"] for row in ROWS[1:])]),
        ("at", [AT + timedelta(microseconds=1), *(row["at"] for row in ROWS[1:])]),
    ],
    ids=["NaN for null", "empty for null", "a microsecond"],
)
def test_what_only_looks_equal_is_another_version(
    ws: Workspace, column: str, values: list[Any]
) -> None:
    name = f"looks-{column}"
    ev.commit(name, _arrow(), schema=SCHEMA)
    at = _arrow().column_names.index(column)
    other = _arrow().set_column(at, column, pa.array(values, _arrow().schema.field(at).type))
    assert ev.commit(name, other).number == 2
    assert ev.commit(name, other).number == 2, "NaN is itself"
    diff = ws.data.diff(name, 1, 2, rows=9)
    assert [(row.kind, row.key, [*row.new]) for row in diff.rows] == [
        ("changed", {"id": 0}, [column])
    ]
    assert ev.read(name).to_arrow()[column].to_pylist()[1:] == values[1:]


def test_another_width_is_told_as_a_change_of_the_schema(ws: Workspace) -> None:
    for kind in ("int32", "int64"):
        schema = Schema((Field("id", "int64", nullable=False), Field("n", kind)), key=("id",))  # type: ignore[arg-type]
        ev.commit("width", pa.table({"id": [1, 2], "n": [3, 4]}), schema=schema)
    diff = ws.data.diff("width", 1, 2, rows=9)
    assert diff.rows == ()
    assert diff.columns.retyped == {"n": ("int32", "int64")}


# What cannot be a table


BAD: dict[str, Any] = {
    "decimal": lambda: pa.table({"a": [Decimal("1.10")]}),
    "list": lambda: pa.table({"a": [[1]]}),
    "struct": lambda: pa.table({"a": [{"b": 1}]}),
    "map": lambda: pa.table({"a": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64()))}),
    "time of day": lambda: pa.table({"a": [time(1, 2)]}),
    "duration": lambda: pa.table({"a": [timedelta(1)]}),
    "mixed objects": lambda: pd.DataFrame({"a": [1, "x", None]}),
    "mixed dicts": lambda: [{"a": 1}, {"a": "x"}],
    "objects": lambda: {"a": [object()]},
    "complex": lambda: pd.DataFrame({"a": [1 + 2j]}),
    "interval": lambda: pd.DataFrame({"a": [pd.Interval(0, 1)]}),
    "beyond 64 bits": lambda: {"a": [2**70]},
    "no text": lambda: {"a": ["\ud800"]},
    "a nanosecond": lambda: pa.table({"a": pa.array([1], pa.timestamp("ns", "UTC"))}),
    "no columns": lambda: pd.DataFrame(),
    "no columns but rows": lambda: pd.DataFrame(index=[1, 2]),
    "only nulls": lambda: {"a": [None]},
    "a name twice": lambda: pd.DataFrame([[1, 2]], columns=["a", "a"]),
    "a name twice in Arrow": lambda: pa.table([[1], [2]], names=["a", "a"]),
    "no name": lambda: pa.table({"": [1]}),
    "an extension": lambda: pa.table({"a": pa.array([bytes(16)], pa.uuid())}),
    "null key": lambda: (pa.table({"id": pa.array([1, None], pa.int64())}), ("id",)),
    "duplicate key": lambda: (pa.table({"id": [1, 2, 1]}), ("id",)),
    "NaN twice as key": lambda: (pa.table({"id": [float("nan"), float("nan")]}), ("id",)),
    "both zeros as key": lambda: (pa.table({"id": [0.0, -0.0]}), ("id",)),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_stored_is_refused_before_a_byte_is_written(
    ws: Workspace, what: str
) -> None:
    frame, schema = BAD[what](), None
    if isinstance(frame, tuple):
        kind = "float64" if pa.types.is_floating(frame[0].schema[0].type) else "int64"
        schema = Schema((Field("id", kind, nullable=False),), key=frame[1])  # type: ignore[arg-type]
        frame = frame[0]
    before = {file for file in ws.folder.rglob("objects/**/*") if file.is_file()}
    with pytest.raises(InvalidInput) as refused:
        ev.commit("bad", frame, schema=schema)
    assert refused.value.hint or refused.value.faults or "no columns" in str(refused.value)
    assert {file for file in ws.folder.rglob("objects/**/*") if file.is_file()} == before
    with pytest.raises(NotFound):
        ws.data.version("bad")


def test_odd_frames_that_can_be_stored_come_back(ws: Workspace) -> None:
    frames = {
        "numbers-as-names": (pd.DataFrame({0: [1], 1: [2]}), [{"0": 1, "1": 2}]),
        "no-rows": (pd.DataFrame({"a": pd.Series([], dtype="int64")}), []),
        "half": (pa.table({"a": pa.array(np.array([1.5], np.float16))}), [{"a": 1.5}]),
        "days": (pa.table({"a": pa.array([0], pa.date64())}), [{"a": date(1970, 1, 1)}]),
        "fixed": (pa.table({"a": pa.array([b"xy"], pa.binary(2))}), [{"a": b"xy"}]),
        "long-name": (pa.table({"x" * 5000: [1]}), [{"x" * 5000: 1}]),
    }
    for name, (frame, wanted) in frames.items():
        ev.commit(name, frame)
        assert ev.read(name).to_arrow().to_pylist() == wanted, name


def test_a_name_with_a_zero_byte_on_every_database(
    tmp_path: Path, postgres_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for place in (str(tmp_path / "w"), postgres_database):
        with ev.open(place, actor="t") as ws, using(ws):
            ev.commit("zero", pa.table({"a\0b": [1]}))
            assert ev.read("zero").column_names == ["a\0b"], place


# Writers in each other's way


WRITER = """
import sys
import pyarrow as pa
import everloop as ev
from everloop.core.context import using
from everloop.core.schema import Field, Schema
from everloop.errors import Conflict

place, me = sys.argv[1], int(sys.argv[2])
schema = Schema((Field("id", "int64", nullable=False), Field("n", "int64")), key=("id",))
with ev.open(place, actor=f"p{me}") as ws, using(ws):
    for _ in range(4):
        while True:
            version = ws.data.version("d")
            rows = ws.data.read("d", version.number).to_pylist()
            for row in rows:
                row["n"] += row["id"] in (0, me)
            try:
                ev.commit("d", pa.Table.from_pylist(rows), schema=schema, expect=version.number)
                break
            except Conflict as error:
                assert error.details["winner"] > version.number, error.details
    ws.objects.collect(grace="60s")
"""


def test_two_processes_that_count_lose_no_step(tmp_path: Path) -> None:
    """Each adds one to a row of its own and one of both, on top of what it read, and collects."""
    with ev.open(tmp_path / "w", actor="t") as ws, using(ws):
        schema = Schema((Field("id", "int64", nullable=False), Field("n", "int64")), key=("id",))
        ev.commit("d", pa.table({"id": [0, 1, 2], "n": [0, 0, 0]}), schema=schema)
        running = [
            subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "w"), str(me)])
            for me in (1, 2)
        ]
        assert [process.wait(120) for process in running] == [0, 0]
        assert ev.read("d").to_arrow()["n"].to_pylist() == [8, 4, 4]
        for version in ws.data.versions("d"):
            both, *own = ws.data.read("d", version.number)["n"].to_pylist()
            assert both == sum(own) == version.number - 1
        assert ws.fsck(read_data=True).damaged == ()


# Packs that a writer left half-way


ITEMS = [b"item %d " % n * 9 for n in range(10)]


def test_a_pack_that_a_killed_writer_did_not_list_is_found(tmp_path: Path) -> None:
    """It was renamed, and is not in ``names``; whoever begins anew sees it and builds on it."""
    reader, writer = LocalBlobs(tmp_path), LocalBlobs(tmp_path)
    reader.put_many([b"one", b"two"])
    assert len(set(reader.digests())) == 2
    names = tmp_path / "packs" / "names"
    listed = names.read_bytes()
    writer.put_many(ITEMS)
    names.write_bytes(listed)
    again = LocalBlobs(tmp_path)
    digests = [digest for digest, _ in again.put_many(ITEMS)]
    assert len([*(tmp_path / "packs").glob("*.pack")]) == 2, "nothing was stored twice"
    assert [reader.get(digest) for digest in digests[:1]] == ITEMS[:1]
    assert LocalBlobs(tmp_path).get_many(digests) == ITEMS
    fresh = LocalBlobs(tmp_path)
    names.write_bytes(listed[:-5])  # and a line that is not whole
    assert fresh.get_many(digests) == ITEMS
    more = [digest for digest, _ in writer.put_many([b"three", b"four"])]
    assert reader.get_many(more) == [b"three", b"four"]
    assert set(reader.digests()) == set(LocalBlobs(tmp_path).digests())


def test_a_list_of_removed_objects_that_broke_off_hides_no_other(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path)
    digests = [digest for digest, _ in blobs.put_many(ITEMS)]
    blobs.delete(digests[0])
    (gone,) = (tmp_path / "packs").glob("*.gone")
    with gone.open("ab") as file:
        file.write(bytes.fromhex(digests[1])[:11])  # as much as the disk took
    blobs.delete(digests[2])
    for store in (blobs, LocalBlobs(tmp_path)):
        assert [store.exists(d) for d in digests] == [n not in (0, 2) for n in range(10)]
    with gone.open("ab") as file:
        file.write(b"torn")
    blobs.erase([digests[3]])
    kept = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert ITEMS[3] not in kept
    assert LocalBlobs(tmp_path).get_many(digests[4:]) == ITEMS[4:]


def test_removals_that_were_broken_off_are_finished(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path)
    digests = [digest for digest, _ in blobs.put_many(ITEMS)]
    (pack,) = (tmp_path / "packs").glob("*.pack")
    # Killed after most was listed as removed, and before what is left moved.
    pack.with_name(f"{pack.name}.gone").write_bytes(bytes.fromhex("".join(digests[:8])))
    (tmp_path / "packs" / "01ARZ3NDEKTSV4RRFFQ69G5FAV.pack.gone").write_bytes(bytes(32))
    other = LocalBlobs(tmp_path)
    count, size = other.remove_leftovers(0)
    assert count == 2
    assert size > 8 * len(ITEMS[0])
    names = [file.name for file in (tmp_path / "packs").iterdir()]
    assert len(names) == 2, names
    assert pack.name not in names
    for store in (blobs, other, LocalBlobs(tmp_path)):
        assert store.get_many(digests[8:]) == ITEMS[8:]
        assert not store.exists(digests[0])
    assert other.remove_leftovers(0) == (0, 0)
