"""``everloop://``: what readers and writers of other libraries see of a workspace."""

from __future__ import annotations

import errno
import multiprocessing
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import fsspec
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

import everloop as ev
from everloop.core.context import using
from everloop.core.schema import Field, Schema
from everloop.core.time import ManualClock
from everloop.data import blocks as blocks_module
from everloop.data import paths as paths_module
from everloop.data import replace as replace_module
from everloop.data.filesystem import EverloopFileSystem
from everloop.errors import NotFound
from everloop.workspace import Workspace
from tests.folders import make

KEYED = Schema((Field("id", "int64", nullable=False), Field("x", "float64")), key=("id",))


@pytest.fixture(autouse=True)
def registered() -> None:
    # As the entry point does for an installed package.
    fsspec.register_implementation("everloop", EverloopFileSystem, clobber=True)


#: A database makes no difference to files; a server between does.
places = pytest.mark.parametrize("ws", ["sqlite", "remote"], indirect=True)


def rows(count: int, **changed: float) -> pa.Table:
    x = np.arange(count) / 4
    for at, value in changed.items():
        x[int(at.removeprefix("r"))] = value
    return pa.table({"id": np.arange(count), "x": x})


def test_the_package_registers_the_file_system() -> None:
    import tomllib

    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    specs = tomllib.loads(text)["project"]["entry-points"]["fsspec.specs"]
    module, name = specs["everloop"].split(":")
    found = __import__(module, fromlist=[name])
    assert getattr(found, name) is EverloopFileSystem


@places
def test_every_reader_has_the_rows_of_a_version(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (blocks_module, replace_module, paths_module):
        monkeypatch.setattr(module, "BLOCK_ROWS", 1000)
    ev.commit("flights", rows(2500), schema=KEYED)
    ev.commit("flights", rows(2500, r7=-1.0))  # a delta block and a layout
    ev.commit("flights", rows(2500, r7=-1.0).slice(10), mode="replace")
    for ref in ("flights@1", "flights@2", "flights@latest", "flights"):
        wanted = ev.read(ref.replace("@latest", "")).to_arrow()
        url = f"everloop://{ref}/"
        # pandas, Polars and Arrow go by fsspec in threads of their own.
        assert pa.Table.from_pandas(pd.read_parquet(url)).equals(wanted)
        fs = fsspec.filesystem("everloop")
        with fsspec.open_files(f"{url}*.parquet") as files:
            parts = [pl.read_parquet(file) for file in files]
        assert pl.concat(parts).to_arrow().cast(wanted.schema).equals(wanted)
        first = pl.read_parquet(f"{url}part-00000.parquet", use_pyarrow=True)
        assert first.to_arrow().cast(wanted.schema).equals(wanted.slice(0, first.height))
        assert ev.scan(ref).collect().to_arrow().cast(wanted.schema).equals(wanted)
        assert ev.scan(ref, "duckdb").order("id").to_arrow_table().equals(wanted)
        assert ev.scan(ref, "arrow").to_table().equals(wanted)
        found = pa.dataset.dataset(ref, filesystem=fs, format="parquet").to_table()
        assert found.equals(wanted)
        with duckdb.connect() as db:
            db.register_filesystem(fs)
            query = f"SELECT * FROM read_parquet('everloop://{ref}/*.parquet') ORDER BY id"
            assert db.sql(query).to_arrow_table().equals(wanted)
        assert sum(pq.read_metadata(p).num_rows for p in ev.paths(ref)) == wanted.num_rows


@places
def test_files_are_listed_and_read_in_ranges(ws: Workspace, tmp_path: Path) -> None:
    big = np.random.default_rng(1).bytes(5 << 20)
    make(tmp_path / "in", {"a/one": b"0123456789", "a/b/two": b"2", "big": big})
    (tmp_path / "in/link").symlink_to("a/one")
    ev.commit("photos", tmp_path / "in")
    fs = EverloopFileSystem()
    assert fs.ls("", detail=False) == ["photos"]
    assert fs.ls("everloop://photos", detail=False) == ["photos/a", "photos/big", "photos/link"]
    assert fs.find("photos@1") == [
        "photos@1/a/b/two", "photos@1/a/one", "photos@1/big", "photos@1/link",
    ]  # fmt: skip
    assert fs.glob("photos/**/t*o") == ["photos/a/b/two"]
    assert next((d, f) for d, _, f in fs.walk("photos")) == ("photos", ["big", "link"])
    assert fs.info("photos/link")["size"] == 10
    assert fs.du("photos") == len(big) + 21
    assert fs.cat_ranges(["photos/a/one", "photos/big"], [2, 4 << 20], [4, (4 << 20) + 3]) == [
        b"23",
        big[4 << 20 : (4 << 20) + 3],
    ]
    assert fs.cat_file("photos/a/one", -3) == b"789"
    with fs.open("photos/big") as file:
        file.seek(-5, 2)
        assert file.read() == big[-5:]
    assert fs.ukey("photos/a/one") == fs.ukey("photos/link")
    assert fs.created("photos@1") == ws.data.version("photos").created_at
    for path in ("photos/none", "none/x", "photos@9/a", "photos@tag/a", "photos/../photos/big"):
        with pytest.raises(FileNotFoundError):
            fs.info(path)
        with pytest.raises(FileNotFoundError):
            fs.open(path)
        assert not fs.exists(path)
    with pytest.raises(IsADirectoryError):
        fs.open("photos/a")


@places
def test_a_transaction_is_one_version_or_none(ws: Workspace) -> None:
    fs = EverloopFileSystem()
    with fs.transaction:
        fs.pipe("photos/a/1", b"one")
        fs.pipe({"photos/a/2": b"two", "albums/x": b"x"})
        assert fs.cat("photos/a/1") == b"one", "reads see what was written"
        assert fs.exists("photos/a")
        with pytest.raises(NotFound):
            ws.data.version("photos")
    assert (ws.data.version("photos").number, ws.data.version("photos").files) == (1, 2)
    assert dict(ev.read("photos")) == {"a/1": b"one", "a/2": b"two"}

    def fails() -> None:
        with fs.transaction:
            fs.pipe("photos/a/1", b"lost")
            fs.rm("photos/a/2")
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert fs.cat("photos/a/2") == b"two"

    def half() -> None:
        with fs.open("photos/half", "wb") as file:
            file.write(b"a half")
            raise KeyError

    with pytest.raises(KeyError):
        half()
    fs.open("photos/half", "wb").write(b"never closed")
    assert not fs.exists("photos/half")
    # Without one each act is a version.
    fs.mv("photos/a/2", "photos/b/2")
    assert dict(ev.read("photos")) == {"a/1": b"one", "b/2": b"two"}
    with fs.open("photos/a/1", "ab") as file:
        file.write(b" more")
    fs.touch("photos/empty")
    big = b"x" * (5 << 20)
    fs.pipe("photos/big", big)
    assert (fs.cat("photos/a/1"), fs.cat("photos/empty"), fs.cat("photos/big")) == (
        b"one more", b"", big,
    )  # fmt: skip
    assert fs.cat("photos@1/a/1") == b"one"
    assert ws.files.verify().damaged == ()


@places
def test_only_lines_of_directories_are_written_to(ws: Workspace, tmp_path: Path) -> None:
    fs = EverloopFileSystem()
    fs.pipe("photos/a", b"1")
    ws.data.tag("photos", "q1", 1)
    ws.data.branch("photos", "fix")
    fs.pipe("photos@fix/a", b"2")
    assert (fs.cat("photos/a"), fs.cat("photos@fix/a")) == (b"1", b"2")
    ev.commit("flights", rows(3))
    for path in ("photos@1/a", "photos@q1/a", "flights/x.parquet", "photos@fux/a"):
        with pytest.raises(OSError, match=r"write to|use everloop") as refused:
            fs.pipe(path, b"3")
        assert refused.value.errno == errno.EROFS
    with pytest.raises(NotADirectoryError):
        fs.pipe("photos/a/below", b"3")
    with pytest.raises(OSError, match="dataset"):
        fs.pipe("bad name/x", b"1")
    for path in ("photos/../x", "photos/a//b"):
        with pytest.raises(FileNotFoundError):
            fs.pipe(path, b"1")
    name = "photos/\udcff\udcfe"
    fs.pipe(name, b"no text")
    assert (fs.cat(name), ev.read("photos")["\udcff\udcfe"]) == (b"no text", b"no text")


def test_writers_at_once_lose_nothing(tmp_path: Path, clock: ManualClock) -> None:
    with ev.open(tmp_path / ".everloop", clock=clock) as ws, using(ws):
        fs = [EverloopFileSystem() for _ in range(4)]
        start = threading.Barrier(4)

        def write(n: int) -> None:
            start.wait()
            for k in range(5):
                fs[n].pipe(f"photos/{n}/{k}", b"%d" % k)

        with ThreadPoolExecutor(4) as threads:
            for done in [threads.submit(write, n) for n in range(4)]:
                done.result()
        assert len(ev.read("photos")) == 20
        assert ws.data.version("photos").number == 20
        # A directory that one leaves empty is not taken from under what another puts there.
        for n in range(1, 5):
            fs[0].rm(f"photos/0/{n}")
        with fs[0].transaction:
            fs[0].rm("photos/0/0")
            fs[1].pipe("photos/0/new", b"new")
        assert fs[2].find("photos/0") == ["photos/0/new"]
        # And what is copied between two datasets within a transaction is there in both.
        with fs[0].transaction:
            fs[0].pipe("later/x", b"x")
            fs[0].pipe("photos/copied", b"of a transaction")
            fs[0].cp_file("photos/copied", "later/copied")
            assert fs[0].cat("later/copied") == b"of a transaction"
        assert ev.read("later")["copied"] == b"of a transaction"
        assert ws.files.verify().damaged == ()


def _read(fs: Any) -> bytes:
    found: bytes = fs.cat("photos/a")
    return found


def test_it_goes_to_threads_and_to_other_processes(tmp_path: Path) -> None:
    with ev.open(tmp_path / ".everloop") as ws, using(ws):
        fs = EverloopFileSystem()
        fs.pipe("photos/a", b"1")
        with ThreadPoolExecutor(1) as threads:
            assert threads.submit(_read, fs).result() == b"1"
        again = pickle.loads(pickle.dumps(fs))
        assert again.cat("photos/a") == b"1"
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.apply(_read, (fs,)) == b"1"
        code = (
            "import fsspec, everloop.data.filesystem as f\n"
            "fsspec.register_implementation('everloop', f.EverloopFileSystem, clobber=True)\n"
            f"print(fsspec.filesystem('everloop', workspace={ws.location!r}).cat('photos/a'))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
        )
        assert done.stdout == "b'1'\n"
