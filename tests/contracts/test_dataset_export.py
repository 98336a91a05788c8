"""Versions written for other products and read by them; their tables taken in."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import deltalake
import duckdb
import lance
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyiceberg.catalog.sql import SqlCatalog

import everloop as ev
from everloop.core.context import using
from everloop.core.schema import Check, Field, Schema
from everloop.core.time import ManualClock
from everloop.data import export as export_module
from everloop.data.export import FORMATS
from everloop.errors import Conflict, InvalidInput, NotFound
from everloop.workspace import Workspace
from tests.workspaces import START

TYPES: dict[str, tuple[pa.DataType, Any]] = {
    "bool": (pa.bool_(), st.booleans()),
    "int8": (pa.int8(), st.integers(-128, 127)),
    "int64": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "uint8": (pa.uint8(), st.integers(0, 255)),
    "uint32": (pa.uint32(), st.integers(0, 2**32 - 1)),
    "uint64": (pa.uint64(), st.integers(0, 2**63 - 1)),
    "float32": (pa.float32(), st.floats(width=32)),
    "float64": (pa.float64(), st.floats()),
    "string": (pa.string(), st.text(max_size=5)),
    "binary": (pa.binary(), st.binary(max_size=5)),
    "timestamp": (
        pa.timestamp("us", tz="UTC"),
        st.integers(-(2**51), 2**51),
    ),
    "date": (pa.date32(), st.dates(date(1900, 1, 1), date(2200, 1, 1))),
}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    folder = tmp_path_factory.mktemp("exports")
    with ev.open(folder / ".everloop", clock=ManualClock(START), actor="tester") as ws, using(ws):
        yield ws


@st.composite
def tables(draw: Any) -> pa.Table:
    names = draw(st.lists(st.sampled_from(sorted(TYPES)), min_size=1, unique=True))
    count = draw(st.integers(0, 5))
    columns = {}
    for name in names:
        kind, values = TYPES[name]
        cells = draw(st.lists(st.none() | values, min_size=count, max_size=count))
        columns[f"a {name}"] = pa.array(cells, kind)
    return pa.table({"n": pa.array(range(count), pa.int64()), **columns})


def same(one: pa.Table, two: pa.Table) -> bool:
    """Row for row, NaN as itself."""
    return repr(one.sort_by("n").to_pylist()) == repr(two.sort_by("n").to_pylist())


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_exported_comes_back(here: Workspace, tmp_path: Path, format: Any) -> None:
    count = iter(range(1000))

    @settings(
        max_examples=25 if format == "parquet" else 8, suppress_health_check=[HealthCheck.too_slow]
    )
    @given(rows=tables())
    def check(rows: pa.Table) -> None:
        n = next(count)
        with using(here):
            made = ev.commit(f"{format}-{n}", rows)
            folder = ev.export(f"{format}-{n}", tmp_path / str(n), format)
            back = ev.import_table(folder, f"{format}-{n}-back")
            assert back.schema == made.schema
            assert same(ev.read(f"{format}-{n}-back").to_arrow(), rows)

    check()


def flights(ws: Workspace) -> pa.Table:
    rng = np.random.default_rng(3)
    count = 500
    rows = pa.table(
        {
            "n": np.arange(count),
            "carrier": pa.array([None if n % 7 == 0 else "UA" for n in range(count)]),
            "delay": np.where(rng.random(count) < 0.1, np.nan, rng.normal(size=count)),
            "at": pa.array([START] * count, pa.timestamp("us", tz="UTC")),
        }
    )
    schema = Schema(
        (
            Field("n", "int64", nullable=False),
            Field("carrier", "string"),
            Field("delay", "float64"),
            Field("at", "timestamp"),
        ),
        checks=(Check("early", "n < 1000", reason="there are no more"),),
        key=("n",),
    )
    ev.commit("flights", rows, schema=schema)
    changed = rows.set_column(1, "carrier", pa.array(["AA"] * count))
    ev.commit("flights", pa.concat_tables([rows.slice(3, 97), changed.slice(100)]))
    found: pa.Table = ev.read("flights").to_arrow()
    return found


def test_every_reader_agrees_on_an_exported_version(
    here: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLARS_ICEBERG_PLANNER", "pyiceberg")  # or it warns of a faster one
    with using(here):
        wanted = flights(here)
        plain = ev.export("flights@2", tmp_path / "parquet")
        delta = ev.export("flights@2", tmp_path / "delta", "delta")
        ice = ev.export("flights@2", tmp_path / "iceberg", "iceberg")
        lanced = ev.export("flights@2", tmp_path / "lance", "lance")
        files = ev.paths("flights@2", to=tmp_path / "paths")
    catalog = SqlCatalog("everloop", uri=f"sqlite:///{ice}/catalog.sqlite", warehouse=ice.as_uri())
    iceberg = catalog.load_table("everloop.flights").scan()
    read = {
        "pyarrow": pq.read_table(plain, filters=None),
        "paths": pq.read_table(files),
        "pandas": pa.Table.from_pandas(
            pd.read_parquet(plain, dtype_backend="pyarrow"), preserve_index=False
        ),
        "polars": pl.read_parquet(f"{plain}/*.parquet").to_arrow(),
        "duckdb": duckdb.sql(f"FROM '{plain}/*.parquet'").to_arrow_table(),
        "delta": deltalake.DeltaTable(delta).to_pyarrow_table(),
        "polars on delta": pl.read_delta(str(delta)).to_arrow(),
        "iceberg": iceberg.to_arrow(),
        "iceberg in duckdb": iceberg.to_duckdb("f").table("f").to_arrow_table(),
        "polars on iceberg": pl.scan_iceberg(catalog.load_table("everloop.flights"))
        .collect()
        .to_arrow(),
        "lance": lance.dataset(lanced).to_table(),
        "lance in duckdb": duckdb.from_arrow(lance.dataset(lanced).to_table()).to_arrow_table(),
    }
    catalog.close()
    assert wanted.num_rows == 497
    for name, rows in read.items():
        assert same(rows.cast(wanted.schema), wanted), name
    told = [e for e in here._catalog.events() if e.kind == "dataset.Exported"]
    last = [(e.subject, e.body["format"]) for e in told][-5:]
    assert last == [("dataset:flights@2", f) for f in (*FORMATS, "parquet")]
    with using(here):
        # With the schema that it had: key, rules and all.
        made = ev.import_table(ice, "flights-back")
        assert made.schema == here.data.version("flights").schema
        assert made.digest == here.data.version("flights").digest
        sources = here.lineage.upstream(f"dataset:{made.ref}", depth=1).nodes
        assert [node.ref for node in sources][1:] == [f"external:{ice.as_uri()}"]


def test_the_files_of_a_version_are_called_as_engines_want_them(here: Workspace) -> None:
    with using(here):
        ev.commit("small", {"n": [1, 2, 3]})
        files = ev.paths("small")
        ev.commit("none", pa.table({"n": pa.array([], pa.int64())}))
        empty = ev.paths("none")
    # Ray passes over what does not end so; Spark and Hive over what begins with _ or a point.
    assert [os.path.basename(path) for path in files] == ["part-00000.parquet"]
    assert all(os.path.isabs(path) for path in files)
    assert pq.read_table(empty[0]).schema.names == ["n"]
    # A block that is gone from the cache or the store is written again.
    os.unlink(files[0])
    with using(here):
        assert pq.read_table(ev.paths("small")).num_rows == 3


def test_what_a_format_cannot_hold_is_named(here: Workspace, tmp_path: Path) -> None:
    with using(here):
        big = pa.table({"a": pa.array([2**63], pa.uint64()), "b": pa.array([1], pa.uint64())})
        ev.commit("big", big)
        for format in ("delta", "iceberg"):
            with pytest.raises(InvalidInput, match="no unsigned") as refused:
                ev.export("big", tmp_path / format, format)
            assert [fault.path for fault in refused.value.faults] == ["a"]
        ev.commit("case", {"a": [1], "A": [2]})
        with pytest.raises(InvalidInput, match="ignores case"):
            ev.export("case", tmp_path / "delta", "delta")
        ev.commit("dots", {"a.b": [1]})
        with pytest.raises(InvalidInput, match="a point"):
            ev.export("dots", tmp_path / "lance", "lance")
        with pytest.raises(InvalidInput, match="no format 'csv'"):
            ev.export("dots", tmp_path / "csv", "csv")  # type: ignore[arg-type]
        # And the other way: types that no field has.
        odd = pa.table(
            {
                "ok": [1],
                "price": pa.array([Decimal("1.5")], pa.decimal128(9, 2)),
                "list": [[1, 2]],
                "struct": [{"x": 1}],
            }
        )
        deltalake.write_deltalake(tmp_path / "odd", odd)
        with pytest.raises(InvalidInput, match="columns that no dataset can hold") as refused:
            ev.import_table(tmp_path / "odd", "odd")
        assert [fault.path for fault in refused.value.faults] == ["price", "list", "struct"]
        # Categories and other zones are values that fields have.
        zoned = pa.table(
            {
                "c": pa.array(["x", "y", "x"]).dictionary_encode(),
                "at": pa.array([0, 1, None], pa.timestamp("ms", tz="Europe/Berlin")),
            }
        )
        pq.write_table(zoned, tmp_path / "zoned.parquet")
        ev.import_table(tmp_path / "zoned.parquet", "zoned")
        assert ev.read("zoned").to_arrow().to_pydict() == {
            "c": ["x", "y", "x"],
            "at": [
                datetime(1970, 1, 1, tzinfo=UTC),
                datetime(1970, 1, 1, 0, 0, 0, 1000, UTC),
                None,
            ],
        }
    assert sorted(p.name for p in tmp_path.iterdir()) == ["odd", "zoned.parquet"]


def test_many_columns_and_names_that_are_no_text(here: Workspace, tmp_path: Path) -> None:
    wide = pa.table({f"c{n}": pa.array([n, None], pa.int64()) for n in range(500)})
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")
    with using(here):
        ev.commit("wide", wide)
        folder = ev.export("wide", odd)
        with open(folder / "part-00000.parquet", "rb") as file:
            assert pq.read_table(file).equals(wide)
        with pytest.raises(InvalidInput, match="cannot be read as parquet"):
            ev.import_table(folder, "wide-back")
        with pytest.raises(InvalidInput, match="cannot be held by Delta"):
            ev.export("wide", odd + "2", "delta")
        ev.import_table(ev.export("wide", tmp_path / "text"), "wide-back")
        assert ev.read("wide-back").to_arrow().equals(wide)


def test_an_export_is_all_or_nothing(
    here: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    with using(here):
        ev.commit("n", {"n": [1, 2]})
        (tmp_path / "full").mkdir()
        (tmp_path / "full/mine").write_text("mine")
        for taken in ("full", "full/mine"):
            with pytest.raises(Conflict, match="export to a new folder"):
                ev.export("n", tmp_path / taken)
        with pytest.raises(NotFound, match="there is no folder"):
            ev.export("n", tmp_path / "none/out")
        target.mkdir()

        def full(_: Path) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(export_module, "_settle", full)
            with pytest.raises(Exception, match="No space left"):
                ev.export("n", target)
        with monkeypatch.context() as patch:
            patch.setattr(here.data, "note_export", lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                ev.export("n", target)
        assert [*target.iterdir()] == [], "what the log cannot tell of is not written"
        assert sorted(p.name for p in tmp_path.iterdir()) == ["full", "out"]
    # Killed half-way: what it began has another name, and the next export removes it.
    code = (
        "import os, everloop as ev, everloop.data.export as e\n"
        "e._settle = lambda _: os.kill(os.getpid(), 9)\n"
        f"with ev.open({here.location!r}):\n"
        f"    ev.export('n', {str(target)!r}, 'delta')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=here.folder.parent, check=False)
    assert done.returncode == -9
    assert [*target.iterdir()] == []
    begun = [p for p in tmp_path.iterdir() if ".begun-" in p.name]
    assert len(begun) == 1
    other = tmp_path / ".out.begun-other"
    other.mkdir()
    with using(here):
        ev.export("n", target, "delta")
        assert deltalake.DeltaTable(target).to_pyarrow_table().num_rows == 2
    assert not begun[0].exists()
    assert other.exists(), "somebody may have just begun it"
    os.utime(other, (time.time() - 100_000,) * 2)
    shutil.rmtree(target)
    with using(here):
        ev.export("n", target)
    assert not other.exists()


def test_tables_that_point_elsewhere_or_lack_files_are_refused(
    here: Workspace, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.parquet"
    pq.write_table(pa.table({"n": [42]}), secret)
    with using(here):
        ev.commit("n", {"n": [1, 2]})
        for format in ("delta", "iceberg", "lance"):
            ev.export("n", tmp_path / format, format)
    # A Delta log that names a file above its folder, or at an absolute place.
    log = tmp_path / "delta/_delta_log/00000000000000000000.json"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    [add] = [line for line in lines if "add" in line]
    name = add["add"]["path"]
    for path in ("../secret.parquet", secret.as_uri(), str(secret)):
        add["add"]["path"] = path
        log.write_text("\n".join(map(json.dumps, lines)))
        # By such a path the reader either seeks it within the folder or would follow it.
        wanted = r"names files that lie outside|are missing"
        with pytest.raises((InvalidInput, NotFound), match=wanted), using(here):
            ev.import_table(tmp_path / "delta", "hostile")
    add["add"]["path"] = name
    log.write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "delta" / name).unlink()
    with pytest.raises(NotFound, match="1 files of the table") as lost, using(here):
        ev.import_table(tmp_path / "delta", "hostile")
    assert lost.value.details["missing"] == [name]
    # An Iceberg table that was moved names files where it was; one of them is missing there.
    [data] = (tmp_path / "iceberg/data").glob("*.parquet")
    shutil.copytree(tmp_path / "iceberg", tmp_path / "moved")
    with pytest.raises(InvalidInput, match="lies outside of it"), using(here):
        ev.import_table(tmp_path / "moved", "hostile")
    data.unlink()
    with pytest.raises(NotFound, match="are missing"), using(here):
        ev.import_table(tmp_path / "iceberg", "hostile")
    # Parquet beside links that lead out.
    (tmp_path / "links").mkdir()
    (tmp_path / "links/a.parquet").symlink_to(secret)
    with pytest.raises(InvalidInput, match="outside"), using(here):
        ev.import_table(tmp_path / "links", "hostile")
    [part] = (tmp_path / "lance/data").glob("*.lance")
    part.unlink()
    with pytest.raises(NotFound, match="are missing"), using(here):
        ev.import_table(tmp_path / "lance", "hostile")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFound, match="no Parquet files"), using(here):
        ev.import_table(tmp_path / "empty", "hostile")
    with pytest.raises(NotFound, match="hostile"), using(here):
        ev.read("hostile")
    # A mark that somebody made up.
    pq.write_table(pa.table({"n": [1]}), tmp_path / "empty/x.parquet")
    (tmp_path / "empty/_everloop.json").write_text('{"dataset": 1}')
    with pytest.raises(InvalidInput, match="none of ours"), using(here):
        ev.import_table(tmp_path / "empty", "hostile")


def test_parquet_files_of_several_schemas_and_partitions_are_one_table(
    here: Workspace, tmp_path: Path
) -> None:
    for folder, rows in (
        ("year=2012", {"n": pa.array([1], pa.int32())}),
        ("year=2013", {"n": pa.array([2, 3], pa.int64()), "late": [True, None]}),
    ):
        (tmp_path / "t" / folder).mkdir(parents=True)
        pq.write_table(pa.table(rows), tmp_path / "t" / folder / "part-0.parquet")
    (tmp_path / "t/_tmp").mkdir()
    (tmp_path / "t/_tmp/half.parquet").write_bytes(b"PAR1")
    with using(here):
        ev.import_table(tmp_path / "t", "partitioned")
        assert ev.read("partitioned").to_arrow().sort_by("n").to_pydict() == {
            "n": [1, 2, 3],
            "year": [2012, 2013, 2013],
            "late": [None, True, None],
        }


def test_a_foreign_table_is_taken_in_by_version(here: Workspace, tmp_path: Path) -> None:
    deltalake.write_deltalake(tmp_path / "t", pa.table({"n": [1, 2]}))
    deltalake.write_deltalake(tmp_path / "t", pa.table({"n": [3]}), mode="append")
    with using(here):
        first = ev.import_table(tmp_path / "t", "foreign", at=0)
        second = ev.import_table(tmp_path / "t", "foreign")
        assert (first.rows, second.rows, second.number) == (2, 3, 2)
        assert sorted(ev.read("foreign").to_arrow()["n"].to_pylist()) == [1, 2, 3]
