"""Where the files of versions lie: collected, damaged, killed, taken elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import everloop as ev
from everloop.core.context import using
from everloop.data import scan
from everloop.data.files import checkout
from everloop.errors import BackendError, NotFound
from everloop.pipelines.shipping import call_from_bytes, call_to_bytes
from everloop.workspace import Workspace
from tests.folders import content, make

# --- the store ------------------------------------------------------------------------------------


def age(home: Workspace) -> None:
    past = time.time() - 10 * 86_400
    for file in (home.folder / "objects").rglob("*"):
        if file.is_file():
            os.utime(file, (past, past))


def test_a_collection_keeps_what_versions_reach_and_nothing_else(
    home: Workspace, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "LARGE", 100_000)
    make(images, {f"many/{n}": b"%d" % n for n in range(100)})
    make(images, {"big": os.urandom(500_000)})
    ev.commit("photos", images)
    first = set(home.blobs.digests())
    make(images, {"big": os.urandom(500_000), "many/7": b"other"})
    ev.commit("photos", images)
    both = set(home.blobs.digests())
    make(images, {"big": os.urandom(500_000), "many/8": b"never named"})

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("everloop.data.file_service.publish_files", killed)
        with pytest.raises(KeyboardInterrupt):
            ev.commit("photos", images)
    rubbish = set(home.blobs.digests()) - both
    assert len(rubbish) > 4
    assert home.objects.collect().objects == 0, (
        "young ones stay: somebody may be about to name them"
    )
    age(home)
    assert home.objects.collect().objects == len(rubbish)
    assert set(home.blobs.digests()) == both > first
    assert home.files.verify().damaged == ()
    # The cache still says that the rubbish is there.
    third = ev.commit("photos", images)
    assert home.files.verify("photos").damaged == ()
    assert third.number == 3


def test_a_collection_beside_a_writer_takes_nothing_of_his(
    home: Workspace, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ev.commit("photos", images)
    make(images, {"a.txt": b"of a version that was never made"})
    with monkeypatch.context() as patch:
        patch.setattr("everloop.data.file_service.publish_files", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ev.commit("photos", images)
    age(home)  # old rubbish, which the next writer finds and keeps
    real = home.files._catalog.write

    def collect_first(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(home.files._catalog, "write", real)
        home.objects.collect()
        return real(*args, **kwargs)

    monkeypatch.setattr(home.files._catalog, "write", collect_first)
    assert ev.commit("photos", images).number == 2
    assert home.files.verify().damaged == ()


KILLED = """
import os, signal, sys
from pathlib import Path
import everloop as ev
from everloop.backends.blobs.local import LocalBlobs
from everloop.data import file_service
from everloop.data.files import add

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[3] == "bytes":
    LocalBlobs.put_many = die
else:
    file_service.publish_files = die
with ev.open(sys.argv[1]) as ws:
    add(ws, "photos", Path(sys.argv[2]))
"""


def test_a_killed_add_leaves_no_version_and_is_done_again(home: Workspace, images: Path) -> None:
    for point in ("bytes", "version"):
        arguments = [str(home.folder), str(images), point]
        done = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False)
        assert done.returncode == -9
        assert home.data.datasets() == []
    age(home)
    home.objects.collect()
    assert ev.commit("photos", images).files == 5
    assert home.files.verify().damaged == ()


def object_of(home: Workspace, what: str) -> str:
    """The digest of one object of photos@1."""
    from everloop.data.chunks import chunks_of, parts_of
    from everloop.data.tree import find

    load, root = home.blobs.get_many, home.data.version("photos", 1).root
    path = {"file": b"sub/b.txt", "folder": b"sub"}.get(what, b"big")
    entry = find(load, root, path)
    assert entry is not None
    part = parts_of(load, entry.digest)[0] if path == b"big" else None
    found = {"root": root, "file": entry.digest, "folder": entry.digest, "list": entry.digest}
    if part is not None:
        found |= {"part": part.content.hex(), "chunk": chunks_of(load, part)[1].content.hex()}
    return found[what]


@pytest.mark.parametrize("what", ["root", "folder", "file", "list", "part", "chunk"])
@pytest.mark.parametrize("how", ["flipped", "missing"])
def test_damage_is_named_and_never_served(
    home: Workspace, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    what: str, how: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(scan, "LARGE", 100_000)
    make(images, {"big": bytes(range(256)) * 2000})
    ev.commit("photos", images)
    make(images, {"later": b"x"})
    ev.commit("photos", images)
    digest = object_of(home, what)
    folder = home.folder / "objects"
    path, key = folder / digest[:2] / digest[2:], bytes.fromhex(digest)
    if how == "missing":
        home.blobs.delete(digest)
    elif path.exists():
        path.write_bytes(b"\xff" + path.read_bytes()[1:])
    for pack in (folder / "packs").glob("*.pack") if how == "flipped" else ():
        data = pack.read_bytes()
        at = data.find(key, len(data) // 4)
        while at >= 0:  # the list of a pack is at its end
            offset = int.from_bytes(data[at + 32 : at + 40], "little")
            if at > offset and int.from_bytes(data[at + 40 : at + 48], "little") < len(data):
                flipped = bytes([data[offset] ^ 1])
                pack.write_bytes(data[:offset] + flipped + data[offset + 1 :])
            at = data.find(key, at + 1)
    with ev.open(home.folder) as fresh, using(fresh):
        report = fresh.files.verify()
        [damage] = report.damaged
        assert damage.digest == digest
        places = {"root": "", "folder": "/sub/", "file": "/sub/b.txt"}
        shared = ["photos@1"] if what == "root" else ["photos@1", "photos@2"]
        assert damage.paths == tuple(ref + places.get(what, "/big") for ref in shared)
        assert fresh.files.verify("photos").damaged == report.damaged
        files = ev.read("photos", 1)
        with pytest.raises(BackendError, match="photos@1") as refused:
            files["big" if places.get(what) is None else "sub/b.txt"]
        assert "cannot be read" in refused.value.message
        with pytest.raises(BackendError, match="photos@1"):
            checkout(fresh, "photos", 1, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        if what in ("root", "folder", "list", "part"):
            with pytest.raises((BackendError, NotFound)):
                fresh.objects.collect()


@pytest.mark.parametrize("how", ["flipped", "missing"])
def test_a_damaged_version_does_not_hinder_the_next(
    home: Workspace, images: Path, how: str
) -> None:
    root = ev.commit("photos", images).root
    make(images, {"a.txt": b"second"})
    home.blobs.delete(root)
    if how == "flipped":
        [(other, _)] = home.blobs.put_many([b"other"])
        folder = home.folder / "objects"
        (folder / root[:2]).mkdir()
        (folder / other[:2] / other[2:]).rename(folder / root[:2] / root[2:])
    second = ev.commit("photos", images)
    [damage] = home.files.verify().damaged
    assert (second.number, damage.paths) == (2, ("photos@1",))


# --- elsewhere ------------------------------------------------------------------------------------


def test_a_step_that_takes_files_is_keyed_by_their_content(home: Workspace, images: Path) -> None:
    @ev.step
    def count(photos: ev.Files) -> int:
        return len(photos)

    @ev.step
    def pick(photos: ev.Files) -> ev.Files:
        return photos

    @ev.pipeline
    def counted() -> int:
        return count(pick(ev.read("photos")))

    ev.commit("photos", images)
    assert counted.run() == counted.run() == 5
    runs = home.tracking.runs().runs
    steps = sorted([step.outcome for step in home.pipelines.steps(run.id)] for run in runs)
    assert steps == [["cached", "cached"], ["ran", "ran"]]
    [taken] = home.tracking.run(runs[0].id).inputs
    assert (taken.dataset, taken.version) == ("photos", 1)
    make(images, {"new": b"x"})
    ev.commit("photos", images)
    assert counted.run() == 6


def test_files_reach_another_process_by_name(home: Workspace, images: Path) -> None:
    ev.commit("photos", images)
    sent = call_to_bytes((ev.read("photos"),), {}, home.blobs, "a step")
    (found,), _ = call_from_bytes(sent)
    assert (found.ref, found["a.txt"]) == ("photos@1", b"one")
    assert len(sent) < 2000


def test_lineage_tells_of_files_without_rows(home: Workspace, images: Path, tmp_path: Path) -> None:
    ev.commit("photos", images, owner="ann")
    home.lineage_exporter(str(tmp_path / "told")).run_once()
    [told] = [json.loads(line) for line in (tmp_path / "told").read_text().splitlines()]
    facets = told["dataset"]["facets"]
    assert "schema" not in facets
    assert facets["dataQualityMetrics"]["fileCount"] == 5
    assert "rowCount" not in facets["dataQualityMetrics"]


def test_another_workspace_takes_versions_over(
    home: Workspace, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "LARGE", 100_000)
    make(images, {"big": os.urandom(400_000)})
    ev.commit("photos", images)
    make(images, {"a.txt": b"second"})
    ev.commit("photos", images)
    lost = home.data.version("photos", 1)
    with ev.open(tmp_path / "other/.everloop") as other:
        report = other.merge(home.folder)
        assert report.refusals == ()
        assert other.files.verify().damaged == ()
        assert [v.digest for v in other.data.versions("photos")] == [
            v.digest for v in home.data.versions("photos")
        ]
        checkout(other, "photos", 2, tmp_path / "out")
    assert content(tmp_path / "out") == content(images)
    home.blobs.delete(lost.root)
    with ev.open(tmp_path / "third/.everloop") as third:
        refusals = str(third.merge(home.folder).refusals)
        assert f"no object {lost.root}" in refusals
        assert "photos@1" in refusals
        assert [v.number for v in third.data.versions("photos")] == [2]
