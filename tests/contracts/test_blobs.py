"""LocalBlobs keeps the contract, and what only a store on files can be asked."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from everloop.backends.blobs.local import LocalBlobs
from everloop.errors import BackendError, NotFound
from everloop.ports.blobs import BlobStore
from everloop.testing.blobs import BlobStoreContract


class TestLocalBlobs(BlobStoreContract):
    def make(self, folder: Path) -> BlobStore:
        return LocalBlobs(folder / "objects")


def _file(root: Path, digest: str) -> Path:
    return root / digest[:2] / digest[2:]


@pytest.mark.parametrize("damage", [b"", b"spoilt!", b"changed but longer"])
def test_damaged_object_is_never_handed_out(tmp_path: Path, damage: bytes) -> None:
    store = LocalBlobs(tmp_path)
    digest, _ = store.put(b"correct")
    _file(tmp_path, digest).write_bytes(damage)
    for read in (store.get, store.path, lambda d: list(store.stream(d))):
        with pytest.raises(BackendError, match="damaged"):
            read(digest)


def test_put_leaves_no_temporary_file(tmp_path: Path) -> None:
    store = LocalBlobs(tmp_path)
    store.put(b"a")
    store.put(iter([b"a"]))
    assert list((tmp_path / "tmp").iterdir()) == []


def test_uploads_that_nobody_goes_on_with_are_dropped_after_a_week(tmp_path: Path) -> None:
    store = LocalBlobs(tmp_path)
    old, fresh = store.begin_parts("old"), store.begin_parts("fresh")
    for upload in (old, fresh):
        store.put_part(upload, 1, [b"x"])
    week_ago = time.time() - 8 * 24 * 3600
    os.utime(tmp_path / "tmp" / "parts" / old, (week_ago, week_ago))
    store.begin_parts("next")
    with pytest.raises(NotFound):
        store.join_parts(old, "old", {1: ""})
    assert store.join_parts(fresh, "fresh", {1: ""})[1] == 1


def test_a_part_that_breaks_off_is_not_there(tmp_path: Path) -> None:
    store = LocalBlobs(tmp_path)
    upload = store.begin_parts("p")

    def broken() -> Iterator[bytes]:
        yield b"half"
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(BackendError, match="No space left"):
        store.put_part(upload, 1, broken())
    assert [file.name for file in (tmp_path / "tmp/parts" / upload).iterdir()] == ["purpose"]


def test_stray_files_are_not_listed(tmp_path: Path) -> None:
    store = LocalBlobs(tmp_path)
    store.put(b"a")
    (tmp_path / "tmp" / "half").write_bytes(b"half")
    (tmp_path / "note").write_text("by hand")
    assert len(list(store.digests())) == 1


@pytest.mark.parametrize("data", [b"x" * 100_000, [b"x" * 1000] * 100])
def test_full_disk_is_said_and_leaves_nothing(tmp_path: Path, data: object) -> None:
    # A child, as the limit on the size of files holds for the whole process.
    code = f"""
import resource, signal, sys
from everloop.backends.blobs.local import LocalBlobs
from everloop.errors import BackendError, NotFound
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
store = LocalBlobs({str(tmp_path)!r})
store.put(b"small")
try:
    store.put({data!r})
except BackendError as error:
    print(error)
else:
    sys.exit("no error")
assert len(list(store.digests())) == 1
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert os.strerror(errno.EFBIG) in done.stdout
    assert "free space" in done.stdout
    assert list((tmp_path / "tmp").iterdir()) == []


def test_read_only_folder_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The tests may run as root, for whom no folder is read-only: the system call is made to say it.
    store = LocalBlobs(tmp_path)

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(BackendError, match="Read-only file system"):
        store.put(b"data")
    assert list(store.digests()) == []


def test_killed_while_putting_leaves_no_object(tmp_path: Path) -> None:
    code = f"""
import os, signal
from everloop.backends.blobs.local import LocalBlobs
def pieces():
    yield b"x" * 100_000
    os.kill(os.getpid(), signal.SIGKILL)
LocalBlobs({str(tmp_path)!r}).put(pieces())
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    store = LocalBlobs(tmp_path)
    assert list(store.digests()) == []
    digest, _ = store.put(b"x" * 100_000)
    assert store.exists(digest)


def test_fault_of_the_disk_is_raised_although_it_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # While a large file is still coming, the disk is already at work on its beginning.
    monkeypatch.setattr("everloop.backends.blobs.files._AHEAD", 10)
    told: list[int] = []

    def fsync(handle: int) -> None:
        told.append(handle)
        if len(told) == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    store = LocalBlobs(tmp_path)
    small, _ = store.put(b"small")
    monkeypatch.setattr("everloop.backends.blobs.files.os.fsync", fsync)
    with pytest.raises(BackendError, match="could not store"):
        store.put(iter([b"0123456789"] * 3))
    assert list(store.digests()) == [small]
    assert list((tmp_path / "tmp").iterdir()) == []


def test_large_file_is_synced_while_it_comes_and_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everloop.backends.blobs.files._AHEAD", 1000)
    data = os.urandom(100_000)
    store = LocalBlobs(tmp_path)
    digest, size = store.put(data[n : n + 777] for n in range(0, len(data), 777))
    assert (store.get(digest), size) == (data, len(data))


def test_many_that_cannot_be_written_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalBlobs(tmp_path)
    real, renamed = os.rename, []

    def rename(source: str, target: str) -> None:
        if len(renamed) == 40:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        renamed.append(target)
        real(source, target)

    monkeypatch.setattr("everloop.backends.blobs.local.os.rename", rename)
    with pytest.raises(BackendError, match="No space left"):
        store.put_many([b"%d" % n for n in range(100)])
    assert list((tmp_path / "tmp").iterdir()) == []
    # What got its name is whole, and is there when the call is made again.
    monkeypatch.undo()
    found = store.put_many([b"%d" % n for n in range(100)])
    assert [store.get(digest) for digest, _ in found] == [b"%d" % n for n in range(100)]
