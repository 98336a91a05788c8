"""LocalBlobs keeps the contract, and what only a store on files can be asked."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3

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
        store.put_many([_BIG % n for n in range(100)])
    assert list((tmp_path / "tmp").iterdir()) == []
    # What got its name is whole, and is there when the call is made again.
    monkeypatch.undo()
    found = store.put_many([_BIG % n for n in range(100)])
    assert [store.get(digest) for digest, _ in found] == [_BIG % n for n in range(100)]


#: Too large for a pack: each gets a file of its own.
_BIG = b"%d" + bytes(1 << 18)


def _several(count: int) -> list[bytes]:
    return [b"%d small" % n for n in range(count)]


def test_small_ones_put_together_are_one_file_and_two_waits_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalBlobs(tmp_path)
    store.put_many(_several(2))  # makes the folders
    real, synced = os.fsync, []

    def fsync(handle: int) -> None:
        synced.append(handle)
        real(handle)

    monkeypatch.setattr("everloop.backends.blobs.packs.os.fsync", fsync)
    found = store.put_many([b"more", *_several(500)])
    assert len(synced) == 2
    assert len(list((tmp_path / "packs").glob("*.pack"))) == 2
    for (digest, size), data in zip(found, [b"more", *_several(500)], strict=True):
        assert (store.get(digest), b"".join(store.stream(digest, 3)), size) == (
            data,
            data,
            len(data),
        )
    assert len(list(store.digests())) == 501
    assert store.put_many(_several(500)) == found[1:]
    assert len(list((tmp_path / "packs").glob("*.pack"))) == 2


def test_pack_of_another_process_is_seen_at_once(tmp_path: Path) -> None:
    first, second = LocalBlobs(tmp_path), LocalBlobs(tmp_path)
    for turn in range(5):
        wanted = [f"{turn} {n}".encode() for n in range(3)]
        assert not any(second.exists(blake3(data).hexdigest()) for data in wanted)
        found = first.put_many(wanted)
        assert [second.get(digest) for digest, _ in found] == wanted
        assert [second.put(data) for data in wanted] == found  # which stores nothing
    assert not list(tmp_path.glob("[0-9a-f][0-9a-f]"))


def test_path_of_a_packed_object_is_a_file_of_its_own(tmp_path: Path) -> None:
    store = LocalBlobs(tmp_path)
    [(digest, _), *_] = store.put_many(_several(3))
    assert store.path(digest).read_bytes() == b"0 small"
    assert sorted(store.digests()) == sorted(blake3(d).hexdigest() for d in _several(3))
    assert len(list(store.ages())) == 3
    store.delete(digest)
    assert not store.exists(digest)
    with pytest.raises(NotFound):
        store.path(digest)


def test_removed_from_a_pack_it_is_gone_for_every_process_and_can_come_back(
    tmp_path: Path,
) -> None:
    store, other = LocalBlobs(tmp_path), LocalBlobs(tmp_path)
    found = [digest for digest, _ in store.put_many(_several(10))]
    assert all(other.exists(digest) for digest in found)
    [pack] = (tmp_path / "packs").glob("*.pack")
    os.utime(pack, (1000, 1000))
    assert not store.remove_old(found[0], 999)
    for digest in found[:4]:
        assert store.remove_old(digest, 2000)
        assert not store.remove_old(digest, 2000)
    for seen in (store, other, LocalBlobs(tmp_path)):
        assert not any(seen.exists(digest) or seen.keep(digest) for digest in found[:4])
        assert sorted(seen.digests()) == sorted(found[4:])
    assert store.remove_old(found[4], 2000)
    assert store.remove_old(found[5], 2000)  # less than half is left: the rest moves
    assert not pack.exists()
    [moved] = (tmp_path / "packs").glob("*.pack*")
    assert moved.stat().st_mtime == 1000
    for seen in (store, other, LocalBlobs(tmp_path)):
        assert [seen.get(digest) for digest in found[6:]] == _several(10)[6:]
        assert not seen.exists(found[5])
    # Kept, a pack is young, and nothing of it is removed.
    assert other.keep(found[6])
    assert not store.remove_old(found[7], 2000)
    assert other.put_many(_several(10)) == [(digest, 7) for digest in found]
    assert LocalBlobs(tmp_path).get(found[0]) == b"0 small"
    os.utime(moved, (1000, 1000))
    for digest in found[6:]:
        assert store.remove_old(digest, 2000)
    assert not moved.exists()
    assert sorted(other.digests()) == sorted(found[:6])


def test_damaged_pack_is_told_and_its_objects_can_be_put_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = LocalBlobs(tmp_path).put_many(_several(3))
    kept, _ = LocalBlobs(tmp_path).put(b"own")
    [pack] = (tmp_path / "packs").glob("*.pack")
    data = pack.read_bytes()
    for damaged in (data[:-1], data[:-60] + b"x" + data[-59:], b"", b"x" * 10):
        pack.write_bytes(damaged)
        store = LocalBlobs(tmp_path)
        assert store.get(kept) == b"own"
        with pytest.raises(NotFound):
            store.get(found[0][0])
        assert "is damaged" in caplog.text
        caplog.clear()
    pack.write_bytes(b"9" + data[1:])
    with pytest.raises(BackendError, match="damaged"):
        LocalBlobs(tmp_path).get(found[0][0])
    pack.write_bytes(data[:-1])
    store = LocalBlobs(tmp_path)
    assert store.put_many(_several(3)) == found
    assert LocalBlobs(tmp_path).get(found[0][0]) == b"0 small"


def test_pack_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalBlobs(tmp_path)
    for call in ("fsync", "rename"):

        def fails(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(f"everloop.backends.blobs.packs.os.{call}", fails)
            with pytest.raises(BackendError, match="could not store"):
                store.put_many(_several(5))
        assert list((tmp_path / "tmp").iterdir()) == []
        assert list(store.digests()) == []
    assert len(store.put_many(_several(5))) == 5


def test_threads_that_put_and_remove_packs_lose_nothing(tmp_path: Path) -> None:
    stores = [LocalBlobs(tmp_path) for _ in range(3)]
    failures: list[BaseException] = []

    def work(store: LocalBlobs, turn: int) -> None:
        try:
            for n in range(15):
                shared = [b"%d shared" % (n + i) for i in range(2)]
                mine = [f"{id(store)} {turn} {n} {i}".encode() for i in range(4)]
                found = store.put_many([*shared, *mine])
                for digest, _ in found[2:]:
                    assert store.remove_old(digest, time.time() + 60)
                assert [store.get(digest) for digest, _ in found[:2]] == shared
        except BaseException as error:  # noqa: BLE001 - the main thread asserts on it
            failures.append(error)

    threads = [
        threading.Thread(target=work, args=(store, turn)) for store in stores for turn in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    wanted = sorted(blake3(b"%d shared" % n).hexdigest() for n in range(16))
    for store in (*stores, LocalBlobs(tmp_path)):
        assert sorted(store.digests()) == wanted
