"""Directories and files as versions: added, compared, written back, whatever they hold."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest

import everloop as ev
from everloop.data import chunks, scan
from everloop.data.files import add, checkout, difference, status
from everloop.errors import BackendError, Conflict, InvalidInput, NotFound
from everloop.workspace import Workspace
from tests.folders import content, make, told

pytestmark = pytest.mark.usefixtures("settled")

# Ten names that file systems take and programs stumble over.
ODD = [b"\xff\xfe", b"new\nline", b"-rf", b" ", b"A", b"a", b"n" * 255, "é".encode(), b"e\xcc\x81"]


# --- the life of a directory, on each kind of workspace -------------------------------------------


def test_a_directory_there_and_back(
    ws: Workspace, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = ev.commit("photos", images, note="first batch")
    assert (first.ref, first.kind, first.files, first.size) == ("photos@1", "directory", 5, 8)
    assert (first.note, first.author, first.rows, first.blocks) == ("first batch", "tester", 0, ())
    assert ev.commit("photos", images) == first
    assert status(ws, images, "photos") == []
    before = content(images)
    make(images, {"a.txt": b"changed", "new/x": b"new"})
    (images / "sub/deep/c").unlink()
    (images / "run.sh").chmod(0o644)
    wanted = {
        "a.txt": "changed", "new/x": "added", "sub/deep/c": "removed", "run.sh": "changed",
    }  # fmt: skip
    assert told(status(ws, images, "photos")) == wanted
    second = ev.commit("photos", images)
    assert (second.number, second.parent, second.digest != first.digest) == (2, 1, True)
    assert told(difference(ws, "photos", 1, 2)) == wanted
    assert difference(ws, "photos", 2, 2) == []
    files = ev.read("photos", 1)
    assert isinstance(files, ev.Files)
    assert files.paths == ["a.txt", "run.sh", "sub/b.txt", "sub/deep/c", "sub/link"]
    assert (files["a.txt"], files["sub/link"], len(files)) == (b"one", b"one", 5)
    assert ev.read("photos")["new/x"] == b"new"
    assert files.folder("sub") == [
        ("sub/b.txt", "file", 3), ("sub/deep", "directory", 0), ("sub/link", "link", 0),
    ]  # fmt: skip
    checkout(ws, "photos", 1, tmp_path / "out")
    assert content(tmp_path / "out") == before
    checkout(ws, "photos", 2, tmp_path / "out")
    assert content(tmp_path / "out") == content(images)
    [edge] = ws.lineage.upstream("dataset:photos@2", depth=1).edges
    assert (edge.source, edge.kind) == ("dataset:photos@1", "replaced")
    event = ws.lineage.events(kind="dataset.VersionCommitted")[-1]
    assert {k: event.body[k] for k in ("files", "added", "removed", "changed")} == {
        "files": 5, "added": 1, "removed": 1, "changed": 2,
    }  # fmt: skip


def test_one_file_is_a_version_too(
    ws: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(chunks, "LARGE", 1000)
    monkeypatch.setattr(scan, "LARGE", 1000)
    weights = tmp_path / "weights.bin"
    data = bytes(range(256)) * 4000
    weights.write_bytes(data)
    version = ev.commit("weights", weights)
    assert (version.kind, version.files, version.size) == ("file", 1, len(data))
    with ev.read("weights").open("weights.bin") as file:
        file.seek(999_999)
        assert file.read(300) == data[999_999:1_000_299]
    assert ev.read("weights")["weights.bin"] == data
    make(tmp_path, {"out/other": b"stays"})
    assert checkout(ws, "weights", None, tmp_path / "out").written == 1
    assert content(tmp_path / "out") == {b"other": (b"stays", False), b"weights.bin": (data, False)}
    weights.write_bytes(data[:-1])
    assert told(status(ws, weights, "weights")) == {"weights.bin": "changed"}


def test_a_dataset_is_of_one_kind(ws: Workspace, images: Path) -> None:
    ev.commit("photos", images)
    ev.commit("rows", pa.table({"x": [1]}))
    for name, rows in (("photos", pa.table({"x": [1]})), ("rows", images)):
        with pytest.raises(Conflict, match="cannot be a version of it"):
            ev.commit(name, rows)
    with pytest.raises(Conflict, match="photos is a directory, and a file"):
        ev.commit("photos", images / "a.txt")
    with pytest.raises(InvalidInput, match="has no rows"):
        ws.data.read("photos")
    with pytest.raises(InvalidInput, match="has no columns"):
        ev.read("photos", columns=["x"])
    with pytest.raises(InvalidInput, match="is a table"):
        status(ws, images, "rows")
    with pytest.raises(InvalidInput, match="no schema"):
        ev.commit("photos", images, mode="append")
    with pytest.raises(NotFound, match="nothing at"):
        ev.commit("photos", images / "absent")
    with pytest.raises(InvalidInput, match="no name"):
        ev.commit("../x", images)


def test_a_root_that_nobody_stored_makes_no_version(ws: Workspace) -> None:
    with pytest.raises(NotFound) as refused:
        ws.files.commit("photos", "0" * 64)
    assert refused.value.details["missing"] == ["0" * 64]
    [(hostile, _)] = ws.blobs.put_many(
        [msgspec.msgpack.encode(["everloop-tree-1", [[b"..", "f", bytes(32), 1, 1]]])]
    )
    with pytest.raises(BackendError, match="is no name of a file"):
        ws.files.commit("photos", hostile)
    assert ws.data.datasets() == []


# --- what a directory may hold --------------------------------------------------------------------


def test_odd_names_are_kept_exactly(home: Workspace, tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path / "odd")
    for name in ODD:
        os.makedirs(folder + b"/d" + name[:254])
        for path in (folder + b"/" + name, folder + b"/d" + name[:254] + b"/" + name):
            Path(os.fsdecode(path)).write_bytes(name)
    ev.commit("odd", tmp_path / "odd")
    files = ev.read("odd")
    assert files["\udcff\udcfe"] == b"\xff\xfe"
    assert (files["A"], files["a"]) == (b"A", b"a")
    files.checkout(tmp_path / "out")
    assert content(tmp_path / "out") == content(tmp_path / "odd")
    assert status(home, tmp_path / "out", "odd") == []
    os.unlink(folder + b"/\xff\xfe")
    assert told(status(home, tmp_path / "odd", "odd")) == {"\udcff\udcfe": "removed"}


def test_names_that_differ_by_case_need_a_file_system_that_tells_them_apart(
    home: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "in", {"A/x": b"1", "a/x": b"2", "b": b"3"})
    files = ev.read(ev.commit("odd", tmp_path / "in").dataset)
    monkeypatch.setattr("everloop.data.checkout._Target._ignores_case", lambda _: True)
    with pytest.raises(BackendError, match=r"2 names differ .* a, a/x"):
        files.checkout(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    files.checkout(tmp_path / "out")
    assert content(tmp_path / "out") == content(tmp_path / "in")


def test_equal_content_is_equal_wherever_and_in_whatever_order(
    home: Workspace, tmp_path: Path
) -> None:
    files = {f"{n % 7}/{n}": b"%d" % n for n in range(300)}
    make(tmp_path / "one", files)
    make(tmp_path / "two", dict(reversed(files.items())))
    os.utime(tmp_path / "two/0/0", (1, 1))
    first, second = (ev.commit(name, tmp_path / name) for name in ("one", "two"))
    assert first.digest == second.digest


def test_everything_that_cannot_be_stored_is_told_together(
    home: Workspace, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(images / "pipe")  # opening it would wait for ever
    with socket.socket(socket.AF_UNIX) as bound:
        monkeypatch.chdir(images)
        bound.bind("socket")
    links = {
        "up": "../outside", "sub/up": "../../x", "absolute": "/etc/passwd", "self": "self",
        "sub/above": "..", "ring1": "ring2", "ring2": "ring1", "twist": "sub/../a.txt",
    }  # fmt: skip
    for name, target in links.items():
        (images / name).symlink_to(target)
    (images / "dangling").symlink_to("absent")  # which harms nobody
    real = os.open

    def opened(path: Any, *args: Any, **kwargs: Any) -> int:
        if path == os.fsencode(images / "sub/b.txt"):
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **kwargs)

    monkeypatch.setattr("everloop.data.scan.os.open", opened)
    with pytest.raises(InvalidInput) as refused:
        ev.commit("photos", images)
    faults = {fault.path: fault.message for fault in refused.value.faults}
    assert faults.keys() == {"pipe", "socket", "sub/b.txt", *links}
    assert faults["pipe"] == "is a named pipe"
    assert faults["sub/b.txt"] == "Permission denied"
    assert "circle" in faults["ring1"]
    assert home.data.datasets() == []
    monkeypatch.undo()
    for name in ("pipe", "socket", *links):
        (images / name).unlink()
    found = reads(monkeypatch)
    monkeypatch.setattr(scan, "SETTLED_NS", -1_000_000_000)
    assert ev.commit("photos", images).files == 6
    assert found == [b"b.txt"], "what was stored before the faults were told is not read again"


def test_the_workspace_itself_is_not_stored(home: Workspace, tmp_path: Path) -> None:
    make(tmp_path, {"x": b"1"})
    with pytest.raises(InvalidInput) as refused:
        ev.commit("all", tmp_path)
    assert refused.value.faults == [(".everloop", "is the workspace itself")]


@pytest.mark.parametrize("changes", [1, 2])
def test_a_file_that_changes_while_it_is_read(
    home: Workspace, images: Path, monkeypatch: pytest.MonkeyPatch, changes: int
) -> None:
    """Once it is read again, twice it is told."""
    real, left = os.read, [changes]

    def read(handle: int, size: int) -> bytes:
        data = real(handle, size)
        if left[0] and data == b"one":
            left[0] -= 1
            os.utime(images / "a.txt", ns=(1, left[0] + 5))
        return data

    monkeypatch.setattr("everloop.data.scan.os.read", read)
    if changes == 1:
        assert ev.commit("photos", images).files == 5
        assert ev.read("photos")["a.txt"] == b"one"
        return
    with pytest.raises(InvalidInput) as refused:
        ev.commit("photos", images)
    assert refused.value.faults == [("a.txt", "changed while it was read, twice")]


# --- what is known of files -----------------------------------------------------------------------


def reads(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Paths that are opened from now on."""
    real, found = os.open, []

    def opened(path: Any, *args: Any, **kwargs: Any) -> int:
        if isinstance(path, bytes):
            found.append(path.rpartition(b"/")[2])
        return real(path, *args, **kwargs)

    monkeypatch.setattr("everloop.data.scan.os.open", opened)
    return found


def test_what_did_not_change_is_not_read(
    home: Workspace, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = reads(monkeypatch)
    ev.commit("photos", images)
    assert sorted(found) == [b"a.txt", b"b.txt", b"c", b"run.sh"]
    found.clear()
    status(home, images, "photos")
    ev.commit("photos", images)
    assert found == []
    kept = (images / "a.txt").stat()
    (images / "a.txt").write_bytes(b"two")  # of the same size, and then of the same time
    os.utime(images / "a.txt", ns=(kept.st_atime_ns, kept.st_mtime_ns))
    assert told(status(home, images, "photos")) == {"a.txt": "changed"}
    assert found == [b"a.txt"]
    # What status digested it did not store: the commit reads it once more.
    ev.commit("photos", images)
    assert found == [b"a.txt", b"a.txt"]
    assert ev.read("photos")["a.txt"] == b"two"
    (images / "a.txt").unlink()
    assert told(status(home, images, "photos")) == {"a.txt": "removed"}
    assert ev.commit("photos", images).files == 4
    assert ev.read("photos").folder() == [
        ("empty", "directory", 0), ("run.sh", "file", 2), ("sub", "directory", 3),
    ]  # fmt: skip


def test_what_was_changed_just_now_is_read_again(
    home: Workspace, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been changed again within the same tick of its clock."""
    monkeypatch.setattr(scan, "SETTLED_NS", 2_000_000_000)
    found = reads(monkeypatch)
    ev.commit("photos", images)
    status(home, images, "photos")
    assert len(found) == 8


@pytest.mark.parametrize("harm", ["deleted", "no database", "other bytes", "read-only"])
def test_the_cache_costs_time_only(home: Workspace, images: Path, harm: str) -> None:
    ev.commit("photos", images)
    cache = home.folder / "cache/files.sqlite"
    if harm == "deleted":
        cache.unlink()
    elif harm == "no database":
        cache.write_bytes(b"x" * 5000)
    elif harm == "other bytes":
        data = cache.read_bytes()
        at = data.index(b"a.txt")
        cache.write_bytes(data[: at + 30] + b"\x01\x02\x03" + data[at + 33 :])
    else:
        cache.unlink()
        cache.mkdir()
    assert status(home, images, "photos") == []
    make(images, {"a.txt": b"other"})
    assert told(status(home, images, "photos")) == {"a.txt": "changed"}


def test_objects_that_the_store_lost_are_stored_again(
    home: Workspace, images: Path, tmp_path: Path
) -> None:
    """The cache says that they were stored, and a killed add may have stored and named nothing."""
    ev.commit("photos", images)
    with ev.open(tmp_path / "second" / ".everloop") as other:
        (other.folder / "cache").mkdir()
        cache = (home.folder / "cache/files.sqlite").read_bytes()
        (other.folder / "cache/files.sqlite").write_bytes(cache)
        assert add(other, "photos", images).digest == home.data.version("photos").digest
        assert checkout(other, "photos", 1, tmp_path / "out").written == 6
    assert content(tmp_path / "out") == content(images)


# --- checking out ---------------------------------------------------------------------------------


@pytest.fixture
def two(home: Workspace, images: Path) -> Workspace:
    """Two versions; `images` is the second."""
    ev.commit("photos", images)
    make(images, {"a.txt": b"second", "sub/new": b"new"})
    (images / "run.sh").unlink()
    ev.commit("photos", images)
    return home


def test_only_what_differs_is_written(two: Workspace, images: Path) -> None:
    inode = (images / "sub/b.txt").stat().st_ino
    assert checkout(two, "photos", 2, images) == (0, 0, [])
    assert checkout(two, "photos", 1, images) == (2, 1, [])
    assert (images / "sub/b.txt").stat().st_ino == inode
    assert status(two, images, "photos", 1) == []
    (images / "a.txt").write_bytes(b"an edit does not reach the store")
    assert ev.read("photos", 1)["a.txt"] == b"one"


def test_local_changes_are_not_overwritten(two: Workspace, images: Path) -> None:
    make(images, {"a.txt": b"mine", "run.sh": b"mine", "notes": b"untracked", "sub/b.txt": b"edit"})
    before = content(images)
    with pytest.raises(Conflict) as refused:
        checkout(two, "photos", 1, images)
    assert refused.value.details["paths"] == ["a.txt", "run.sh", "sub/b.txt"]
    assert content(images) == before
    done = checkout(two, "photos", 1, images, force=True)
    assert done.left == ["notes"]
    assert told(status(two, images, "photos", 1)) == {"notes": "added"}
    assert (images / "notes").read_bytes() == b"untracked"


@pytest.mark.parametrize("shape", ["file for folder", "folder for file", "link for folder"])
def test_other_kinds_in_the_way_are_local_changes(
    two: Workspace, images: Path, tmp_path: Path, shape: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    out = tmp_path / "out"
    out.mkdir()
    if shape == "file for folder":
        make(out, {"sub": b"mine"})
    elif shape == "folder for file":
        make(out, {"a.txt/x/y": b"mine"})
    else:
        (out / "sub").symlink_to(outside)
    with pytest.raises(Conflict):
        checkout(two, "photos", 2, out)
    assert len(content(out)) <= 3
    checkout(two, "photos", 2, out, force=True)
    assert content(out) == content(images)
    assert list(outside.iterdir()) == [], "nothing is written through a link"


def test_kinds_that_change_between_versions(home: Workspace, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    shapes: list[dict[str, bytes]] = [
        {"x": b"file"}, {"x/y": b"in a folder"}, {"x/": b""}, {"x": b"file"},
        {"z/": b"", "x/": b""},
    ]  # fmt: skip
    for shape in shapes:
        subprocess.run(["rm", "-rf", str(source)], check=True)
        source.mkdir()
        for name, data in shape.items():
            (source / name).mkdir() if name.endswith("/") else make(source, {name: data})
        ev.commit("shapes", source)
    for number in (1, 2, 3, 2, 1, 3, 1, 5, 2, 5):
        checkout(home, "shapes", number, out)
        assert status(home, out, "shapes", number) == [], number


def test_a_checkout_that_fails_leaves_whole_files(
    two: Workspace, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = os.write, [2]

    def write(handle: int, data: Any) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return real(handle, data)

    monkeypatch.setattr("everloop.data.checkout.os.write", write)
    with pytest.raises(BackendError, match="No space left"):
        checkout(two, "photos", 1, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".everloop-*"))
    left[0] = 1
    before = content(images)
    with pytest.raises(BackendError, match="No space left"):
        checkout(two, "photos", 1, images)
    after = content(images)
    assert after.keys() <= before.keys() | {b"run.sh"}
    known = {b"one", b"second", b"#!"}
    assert all(after[name][0] in known for name in (b"a.txt", b"run.sh") if name in after)
    monkeypatch.undo()
    checkout(two, "photos", 1, images)
    assert status(two, images, "photos", 1) == []
