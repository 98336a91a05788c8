"""Several processes commit to one dataset at once, and one is killed half-way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from everloop.access.policy import EmbeddedAuthorizer
from everloop.backends.blobs.local import LocalBlobs
from everloop.catalog.engine import Catalog
from everloop.data.service import DataService

HEAD = """
import os, signal, sys
import pyarrow as pa
from everloop.access.policy import EmbeddedAuthorizer
from everloop.backends.blobs.local import LocalBlobs
from everloop.catalog.engine import Catalog
from everloop.core.schema import Field, Schema
from everloop.data import commit
from everloop.data.service import DataService
from everloop.errors import Conflict, InvalidInput

url, folder, me = sys.argv[1], sys.argv[2], int(sys.argv[3])
data = DataService(Catalog(url, actor=f"p{me}"), LocalBlobs(folder), EmbeddedAuthorizer())
keyed = Schema((Field("id", "int64", nullable=False), Field("by", "int64")), key=("id",))
plain = Schema((Field("id", "int64"), Field("by", "int64")))
def rows(ids):
    return pa.table({"id": pa.array(ids, pa.int64()), "by": pa.array([me] * len(ids), pa.int64())})
"""


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def race(code: str, url: str, blobs: Path, count: int) -> list[subprocess.CompletedProcess[str]]:
    running = [
        subprocess.Popen(
            [sys.executable, "-c", HEAD + code, url, str(blobs), str(me)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for me in range(count)
    ]
    outputs = [process.communicate(timeout=150)[0] for process in running]
    return [
        subprocess.CompletedProcess([], process.returncode, output)
        for process, output in zip(running, outputs, strict=True)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "objects"


@pytest.fixture
def data(catalog: Catalog, folder: Path) -> DataService:
    return DataService(catalog, LocalBlobs(folder), EmbeddedAuthorizer())


def test_appends_at_once_lose_no_rows(catalog_url: str, folder: Path, data: DataService) -> None:
    code = "for n in range(6): data.commit('d', rows([me * 100 + n]), schema=keyed)"
    for done in race(code, catalog_url, folder, 3):
        assert done.returncode == 0, done.stdout
    versions = data.versions("d")
    assert [version.number for version in versions] == list(range(1, 19))
    assert [version.parent for version in versions] == list(range(18))
    assert [version.rows for version in versions] == list(range(1, 19))
    ids = data.read("d")["id"].to_pylist()
    assert sorted(ids) == [me * 100 + n for me in range(3) for n in range(6)]


def test_of_equal_keys_at_once_one_wins(catalog_url: str, folder: Path, data: DataService) -> None:
    code = """
for n in range(5):
    try:
        data.commit('d', rows([n]), schema=keyed)
        print('won')
    except InvalidInput as error:
        assert 'already' in str(error), error
"""
    results = race(code, catalog_url, folder, 3)
    for done in results:
        assert done.returncode == 0, done.stdout
    assert sum(done.stdout.count("won") for done in results) == 5
    assert sorted(data.read("d")["id"].to_pylist()) == list(range(5))


def test_expect_lets_one_through(catalog_url: str, folder: Path, data: DataService) -> None:
    code = """
try:
    data.commit('d', rows([me]), schema=plain, expect=0)
    print('won')
except Conflict as error:
    assert error.details['winner'] == 1, error.details
"""
    results = race(code, catalog_url, folder, 3)
    for done in results:
        assert done.returncode == 0, done.stdout
    assert sum(done.stdout.count("won") for done in results) == 1
    assert data.version("d").number == 1


def test_killed_between_bytes_and_row_leaves_no_version(
    catalog_url: str, folder: Path, data: DataService
) -> None:
    code = """
def killed(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
commit.publish = killed
data.commit('d', rows([1, 2]), schema=keyed)
"""
    [done] = race(code, catalog_url, folder, 1)
    assert done.returncode == -9
    assert data.datasets() == []
    assert data.commit("d", pa.table({"id": [1, 2]})).ref == "d@1"
    assert data.read("d").num_rows == 2
