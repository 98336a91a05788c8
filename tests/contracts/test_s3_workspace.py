"""A workspace whose objects are in a bucket: everything that is one, on any machine."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

import everloop as ev
from everloop import settings
from everloop.backends.blobs.s3_bucket import Bucket
from everloop.core.context import using
from everloop.core.schema import Field, Schema
from everloop.core.time import ManualClock
from everloop.data import collect
from everloop.errors import BackendError, InvalidInput, MissingExtra, NotFound, StateError
from everloop.workspace import Workspace
from tests.contracts.test_collect import check, fill
from tests.workspaces import START

KEYED = Schema((Field("id", "int64"), Field("v", "float64")), key=("id",))


@pytest.fixture
def bucket(s3: str, s3_endpoint: str) -> Bucket:
    return Bucket(s3, endpoint=s3_endpoint)


@pytest.fixture
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if getattr(request, "param", "sqlite") == "postgres":
        return str(request.getfixturevalue("postgres_database"))
    return str(tmp_path / ".everloop")


@pytest.fixture
def ws(
    location: str, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Workspace]:
    monkeypatch.chdir(tmp_path)
    with ev.open(location, objects=f"{s3}/team", actor="tester") as opened, using(opened):
        yield opened


def elsewhere(location: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """The workspace from another machine, which has nothing but the catalog."""
    folder.mkdir()
    monkeypatch.chdir(folder)
    if "://" in location:
        return ev.open(location, actor="another")
    shutil.copytree(location, folder / "copy", ignore=shutil.ignore_patterns("cache"))
    return ev.open(folder / "copy", actor="another")


def later(monkeypatch: pytest.MonkeyPatch, days: float) -> None:
    """A collection takes the objects for so much older."""
    clock = SimpleNamespace(time=lambda: time.time() + days * 86_400)
    monkeypatch.setattr(collect, "time", clock)


@pytest.mark.parametrize("location", ["sqlite", "postgres"], indirect=True)
def test_all_kinds_of_objects_are_found_by_another_machine_and_survive_a_collection(
    ws: Workspace, location: str, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(ws)
    images = tmp_path / "images"
    images.mkdir()
    for n in range(300):
        (images / f"{n}.bin").write_bytes(b"%d" % n * 100)
    (images / "large.bin").write_bytes(bytes(range(256)) * 30_000)
    ev.commit("photos", images)
    rows = pa.table({"id": range(50_000), "v": [0.5] * 50_000})
    ev.commit("keyed", rows, schema=KEYED)
    ev.commit("keyed", rows.set_column(1, "v", [[0.25] + [0.5] * 49_999]))
    for n in range(30):
        ws.objects.put(b"rubbish %d" % n)
    assert ws.objects.collect().objects == 0  # they are young
    later(monkeypatch, 2)
    assert ws.objects.collect(dry_run=True).objects == 30
    assert ws.objects.collect().objects == 30
    assert ws.objects.collect().objects == 0
    check(ws)
    assert not (tmp_path / ".everloop" / "objects").exists()
    with elsewhere(location, tmp_path / "there", monkeypatch) as other, using(other):
        check(other)
        assert ev.read("keyed").to_arrow()["v"].to_pylist()[:2] == [0.25, 0.5]
        assert other.data.diff("keyed", 1, 2).changed == 1
        ev.read("photos").checkout(tmp_path / "out")
        for file in images.iterdir():
            assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
        assert other.files.verify().damaged == ()
    for entry in bucket.list("team"):
        assert b"secret-of-tests" not in bucket.get(entry.key)[0]


@ev.step
def squares(n: int) -> pa.Table:
    return pa.table({"n": [k * k for k in range(n)]})


@ev.pipeline
def counted(n: int) -> int:
    return int(squares(n).num_rows)


def test_what_one_machine_computed_another_one_has(
    ws: Workspace, location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted.run(n=7)
    [first] = ws.tracking.runs().runs
    assert [step.outcome for step in ws.pipelines.steps(first.id)] == ["ran"]
    with elsewhere(location, tmp_path / "there", monkeypatch) as other, using(other):
        assert counted.run(n=7) == 7
        second = other.tracking.runs().runs[0]
        assert [step.outcome for step in other.pipelines.steps(second.id)] == ["cached"]


def test_what_is_damaged_in_the_bucket_is_named_with_its_versions(
    ws: Workspace, location: str, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = ws.data.commit("rows", pa.table({"x": range(100_000)}))
    fine = ws.data.commit("fine", pa.table({"x": [1]}))
    [block] = [block.digest for block in version.blocks]
    [key] = [e.key for e in bucket.list("team/objects") if block in e.key]
    data, _ = bucket.get(key)
    bucket.put(key, data[:500] + bytes([data[500] ^ 4]) + data[501:])
    with elsewhere(location, tmp_path / "there", monkeypatch) as other:
        [damaged] = other.files.verify().damaged
        assert damaged.digest == block
        assert f"rows@{version.number}" in damaged.paths[0]
        with pytest.raises(BackendError, match="damaged"):
            other.data.read("rows")
        assert other.data.read(fine.dataset).num_rows == 1


def test_merged_from_a_folder_and_back(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with ev.open(tmp_path / "laptop", clock=ManualClock(START)) as laptop:
        fill(laptop)
        laptop.data.commit("keyed", pa.table({"id": [1, 2], "v": [1.0, 2.0]}), schema=KEYED)
    with ev.open(tmp_path / "team", objects=f"{s3}/team") as team:
        assert team.merge(tmp_path / "laptop").refusals == ()
        assert all(count.imported == 0 for count in team.merge(tmp_path / "laptop").counts)
        assert team.data.read("keyed").num_rows == 2
        assert team.registry.files("m", 1) == {"0.txt": b"weights", "1.txt": b"more"}
    with ev.open(tmp_path / "back") as back:
        assert back.merge(tmp_path / "team").refusals == ()
        assert back.data.read("keyed").num_rows == 2
        assert back.registry.files("m", 1) == {"0.txt": b"weights", "1.txt": b"more"}
    assert (tmp_path / "back" / "objects").is_dir()


def test_the_place_is_remembered_and_does_not_change_by_itself(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with ev.open(objects="s3://a-typo/x") as ws, pytest.raises(BackendError, match="no such"):
        ws.objects.put(b"x")
    with ev.open(objects=f"{s3}/right/") as ws:  # nothing was there yet
        digest = ws.objects.put(b"x")
    with ev.open() as ws:
        assert ws.objects.get(digest) == b"x"
        assert ws.place().objects == f"{s3}/right"
    monkeypatch.setenv("EVERLOOP_OBJECTS", f"{s3}/right")
    with ev.open() as ws:
        assert ws.objects.get(digest) == b"x"
    for given in (f"{s3}/left", str(tmp_path / "folder")):
        monkeypatch.setenv("EVERLOOP_OBJECTS", given)
        with pytest.raises(StateError, match="right, not in"), ev.open() as ws:
            ws.objects.get(digest)
    monkeypatch.delenv("EVERLOOP_OBJECTS")
    with ev.open("local") as ws:
        ws.objects.put(b"here")
    with pytest.raises(StateError, match="local/objects"):
        ev.open("local", objects=s3)
    second = ev.open("second", objects=f"{s3}/right")
    with second as ws, pytest.raises(StateError, match="another workspace"):
        ws.objects.put(b"y")


@pytest.mark.parametrize("objects", ["gs://bucket/x", "a/folder", "s3://key:hush@bucket/x"])
def test_places_that_are_none(objects: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as error, ev.open(tmp_path / "w", objects=objects) as ws:
        ws.objects.put(b"x")
    assert "hush" not in str(error.value)
    with ev.open(tmp_path / "w") as ws:  # and it was not remembered
        ws.objects.put(b"x")
    assert b"hush" not in (tmp_path / "w" / "catalog.sqlite").read_bytes()


@pytest.mark.parametrize(
    ("text", "found"), [("", 10**10), ("250MB", 250 * 10**6), ("7", 7), (" 2 T ", 2 * 10**12)]
)
def test_the_bound_of_the_cache_is_a_setting(
    text: str, found: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERLOOP_OBJECT_CACHE", text)
    assert settings.load().object_cache == found
    monkeypatch.setenv("EVERLOOP_OBJECT_CACHE", "a lot")
    with pytest.raises(InvalidInput, match="EVERLOOP_OBJECT_CACHE"):
        settings.load()


def test_objects_beside_a_server_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="not through a server"):
        ev.open("http://127.0.0.1:1", objects="s3://bucket/x")


def test_without_obstore_the_install_line_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(MissingExtra, match=r"everloop\[s3\]"):
        ev.open(tmp_path / "w", objects="s3://bucket/x")


def test_a_commit_that_loses_the_server_leaves_the_version_before(
    ws: Workspace, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws.data.commit("rows", pa.table({"x": [1]}))
    real, left = Bucket.put, [1]

    def put(self: Bucket, key: str, data: bytes) -> None:
        if not left[0]:
            raise BackendError("could not write objects: the line is cut")
        left[0] -= 1
        real(self, key, data)

    monkeypatch.setattr(Bucket, "put", put)
    with pytest.raises(BackendError, match="cut"):
        ws.data.commit("rows", pa.table({"x": range(3_000_000)}))
    monkeypatch.setattr(Bucket, "put", real)
    assert [version.number for version in ws.data.versions("rows")] == [1]
    assert ws.data.read("rows").num_rows == 1
    assert ws.data.commit("rows", pa.table({"x": [2, 3]})).number == 2


def test_a_prefix_is_watched(
    s3: str, s3_endpoint: str, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bucket.put("raw/2025/a.csv", b"1")
    bucket.put("raw/b.csv", b"1")
    bucket.put("rawer/c.csv", b"1")
    with ev.open() as ws:
        below = ("raw", "raw/**/*.csv", "raw/*.csv", "raw/b.csv", "raw/**/[!b].csv", "raw/?.csv")
        patterns = [*(f"{s3}/{pattern}" for pattern in below), "s3://no-such-bucket/x"]
        for pattern in patterns:
            name = f"n{patterns.index(pattern)}"
            ws.automation.automate(ev.on(ev.files(pattern), name=name).run("a.py:b"))
        runner = ws.loop_runner()
        runner.look_at_files()
        assert ws.catalog is not None
        assert ws.catalog.events(kind="files.Changed") == []  # where it begins
        bucket.put("raw/2025/a.csv", b"2")
        runner.look_at_files()
        bucket.delete(["raw/b.csv"])
        runner.look_at_files()
        told: dict[str, list[str]] = {}
        for event in ws.catalog.events(kind="files.Changed"):
            body = event.body
            told.setdefault(event.subject.removeprefix("files:"), []).extend(
                ["~" + f for f in body["changed"]] + ["-" + f for f in body["removed"]]
            )
    a, b = f"~{s3}/raw/2025/a.csv", f"-{s3}/raw/b.csv"
    assert told == {
        patterns[0]: [a, b], patterns[1]: [a, b], patterns[2]: [b], patterns[3]: [b],
        patterns[4]: [a], patterns[5]: [b],
    }  # fmt: skip
    with pytest.raises(InvalidInput):
        ev.files("gs://bucket/x")
    with pytest.raises(InvalidInput):
        ev.files("s3://key:hush@bucket/x")


def test_an_object_that_is_nowhere_is_not_found(ws: Workspace) -> None:
    with pytest.raises(NotFound):
        ws.objects.get("0" * 64)
