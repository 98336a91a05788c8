"""What every BlobStore must do.

A plug-in proves itself by a subclass with one method::

    class TestMyBlobs(BlobStoreContract):
        def make(self, folder: Path) -> BlobStore:
            return MyBlobs(folder)

The class is plain: pytest collects it, and any other runner can call its methods.
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from blake3 import blake3

from everloop.errors import EverloopError, InvalidInput, NotFound
from everloop.ports.blobs import BlobStore, HasAges, HasParts, HasPaths

__all__ = ["BlobStoreContract"]

_ABSENT = "0" * 64
_LARGE = 3 * (1 << 20) + 7


def _digest(data: bytes) -> str:
    return blake3(data).hexdigest()


def _raises(kind: type[EverloopError], call: Callable[[], object]) -> None:
    try:
        call()
    except kind:
        return
    raise AssertionError(f"{kind.__name__} was not raised")


class BlobStoreContract:
    """The contract of ``everloop.ports.blobs``; `tmp_path` is an empty folder for each test."""

    def make(self, folder: Path) -> BlobStore:
        """A store that keeps its objects in `folder`; the same folder gives the same objects.

        Raises:
            TypeError: Unless a subclass says how.
        """
        raise TypeError(f"{type(self).__name__} must say how to make its store in {folder}")

    def test_what_was_put_is_got_back(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)
        for data in (b"", b"x", b"\x00\xff" * 5000, bytes(_LARGE)):
            digest, size = store.put(data)
            assert (digest, size) == (_digest(data), len(data))
            assert store.get(digest) == data

    def test_many_are_put_as_one_by_one(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)
        there, _ = store.put(b"there")
        data = [b"there", b"", b"twice", b"x" * 100_000, b"twice"]
        assert store.put_many(data) == [(_digest(item), len(item)) for item in data]
        assert [store.get(_digest(item)) for item in data] == data
        assert sorted(store.digests()) == sorted({there, *map(_digest, data)})
        assert store.put_many([]) == []

    def test_many_are_got_and_kept_as_one_by_one(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)
        data = [b"", b"x" * 100_000, bytes(_LARGE), b"packed", b"twice", b"twice"]
        digests = [digest for digest, _ in (*store.put_many(data[:3]), *store.put_many(data[3:]))]
        assert store.get_many(digests) == data
        assert store.get_many([]) == []
        assert store.keep_many([digests[0], _ABSENT, *digests[1:]]) == [_ABSENT]
        _raises(NotFound, lambda: store.get_many([digests[0], _ABSENT]))
        _raises(InvalidInput, lambda: store.get_many(["../../etc/passwd"]))
        _raises(InvalidInput, lambda: store.keep_many([digests[0], "abc"]))

    def test_bytes_pieces_and_files_give_one_digest(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)
        data = bytes(range(256)) * 9000
        pieces = [data[start : start + 1000] for start in range(0, len(data), 1000)]
        puts = [store.put(data), store.put(iter(pieces)), store.put(io.BytesIO(data))]
        assert puts == [(_digest(data), len(data))] * 3
        assert list(store.digests()) == [_digest(data)]

    def test_buffers_are_taken_as_bytes(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)
        digest, _ = store.put(b"abc")
        assert store.put(memoryview(b"abc")) == (digest, 3)
        assert store.put(bytearray(b"abc")) == (digest, 3)  # type: ignore[arg-type]

    def test_stream_gives_the_same_bytes(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)
        data = bytes(range(251)) * 4096
        digest, _ = store.put(data)
        assert b"".join(store.stream(digest)) == data
        assert b"".join(store.stream(digest, 1000)) == data

    def test_absent_object_is_not_found(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)
        _raises(NotFound, lambda: store.get(_ABSENT))
        _raises(NotFound, lambda: list(store.stream(_ABSENT)))
        if isinstance(store, HasPaths):
            paths: HasPaths = store
            _raises(NotFound, lambda: paths.path(_ABSENT))
        assert not store.exists(_ABSENT)

    def test_text_that_is_no_digest_is_refused(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)
        for text in ("", "abc", "../../etc/passwd", "A" * 64, "g" * 64, _ABSENT + "0"):
            _raises(InvalidInput, lambda text=text: store.get(text))  # type: ignore[misc]

    def test_deleted_object_is_gone_and_can_come_back(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)
        digest, _ = store.put(b"once")
        store.delete(digest)
        store.delete(digest)
        assert not store.exists(digest)
        _raises(NotFound, lambda: store.get(digest))
        store.put(b"once")
        assert store.get(digest) == b"once"

    def test_digests_lists_each_object_once(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)
        assert list(store.digests()) == []
        wanted = sorted(store.put(str(n).encode())[0] for n in range(50))
        store.put(b"7")
        assert sorted(store.digests()) == wanted

    def test_another_store_on_the_same_place_sees_the_objects(self, tmp_path: Path) -> None:
        digest, _ = self.make(tmp_path).put(b"shared")
        other = self.make(tmp_path)
        assert other.exists(digest)
        assert other.get(digest) == b"shared"

    def test_input_that_breaks_off_leaves_nothing(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)

        def broken() -> Iterator[bytes]:
            yield b"the first half"
            raise RuntimeError("the source broke off")

        try:
            store.put(broken())
        except RuntimeError:
            pass
        else:
            raise AssertionError("the source's error was swallowed")
        assert list(store.digests()) == []

    def test_parts_in_any_order_make_one_object(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)
        if not isinstance(store, HasParts):
            return
        upload = store.begin_parts("a/b")
        digests = {n: store.put_part(upload, n, iter([b"%d" % n, b"-"])) for n in (3, 1, 2)}
        digests[2] = store.put_part(upload, 2, [b"again"])
        other = self.make(tmp_path)
        assert isinstance(other, HasParts)
        for _ in range(2):
            digest, size = other.join_parts(upload, "a/b", digests)
            assert (digest, size) == (_digest(b"1-again3-"), 9)
        assert other.get(digest) == b"1-again3-"
        other.drop_parts(upload, "a/b")
        _raises(NotFound, lambda: store.join_parts(upload, "a/b", digests))
        _raises(NotFound, lambda: store.put_part(upload, 4, [b"late"]))
        assert list(store.digests()) == [digest]

    def test_parts_that_are_missing_or_of_another_are_refused(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)
        if not isinstance(store, HasParts):
            return
        parts: HasParts = store
        upload = parts.begin_parts("mine")
        digest = parts.put_part(upload, 1, [b"one"])
        _raises(InvalidInput, lambda: parts.join_parts(upload, "mine", {1: digest, 2: ""}))
        _raises(InvalidInput, lambda: parts.join_parts(upload, "mine", {1: _ABSENT}))
        _raises(InvalidInput, lambda: parts.put_part(upload, 0, [b""]))
        _raises(NotFound, lambda: parts.join_parts(upload, "yours", {1: digest}))
        _raises(NotFound, lambda: parts.drop_parts("../..", "mine"))
        assert parts.join_parts(upload, "mine", {1: ""})[1] == 3

    def test_many_threads_put_the_same_and_different_bytes(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)
        datas = [str(n).encode() * 2000 for n in range(12)]
        failures: list[BaseException] = []

        def work(turn: int) -> None:
            try:
                for n in range(len(datas)):
                    data = datas[(n + turn) % len(datas)]
                    digest, _ = store.put(data)
                    assert store.get(digest) == data
            except BaseException as error:  # noqa: BLE001 - the main thread asserts on it
                failures.append(error)

        threads = [threading.Thread(target=work, args=(turn,)) for turn in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert sorted(store.digests()) == sorted(map(_digest, datas))

    def test_path_holds_the_bytes(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)
        digest, _ = store.put(b"mapped")
        if isinstance(store, HasPaths):
            assert store.path(digest).read_bytes() == b"mapped"

    def test_what_is_wanted_is_kept(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)
        digest, _ = store.put(b"wanted")
        assert store.keep(digest)
        assert not store.keep(_ABSENT)

    def test_only_what_is_old_is_removed(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)
        if not isinstance(store, HasAges):
            return
        digest, size = store.put(b"rubbish")
        [age] = store.ages()
        assert (age.digest, age.size) == (digest, size)
        assert not store.remove_old(digest, age.put_at)
        assert store.get(digest) == b"rubbish"
        assert store.remove_old(digest, age.put_at + 1)
        assert not store.exists(digest)
        assert not store.remove_old(digest, age.put_at + 1)
        assert list(store.ages()) == []

    def test_many_are_removed_as_one_by_one(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)
        if not isinstance(store, HasAges):
            return
        data = [b"%d" % n for n in range(5)]
        digests = [digest for digest, _ in store.put_many(data)]
        own, _ = store.put(b"by itself")
        ages = [age.put_at for age in store.ages()]
        limit = max(ages) + 1
        assert store.remove_old_many(digests, min(ages)) == []
        assert sorted(store.remove_old_many([*digests[1:], own, _ABSENT], limit)) == sorted(
            [*digests[1:], own]
        )
        assert store.missing([*digests, own, _ABSENT]) == [*digests[1:], own, _ABSENT]
        assert [age.digest for age in store.ages()] == [digests[0]] == list(store.digests())
        assert store.get(digests[0]) == data[0]
        assert store.remove_old_many([], limit) == []

    def test_putting_again_makes_an_object_young(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)
        if not isinstance(store, HasAges):
            return
        for renew in (
            store.put,
            lambda data: store.put(iter([data])),
            lambda d: store.keep(_digest(d)),
        ):
            digest, _ = store.put(b"again")
            [before] = store.ages()
            deadline = time.monotonic() + 30
            renew(b"again")
            while next(store.ages()).put_at <= before.put_at:
                assert time.monotonic() < deadline, "the age did not change"
                renew(b"again")
            assert not store.remove_old(digest, before.put_at + 1e-6)

    def test_nothing_is_left_of_writers_that_ended_well(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)
        if isinstance(store, HasAges):
            store.put(b"x")
            store.put(iter([b"x", b"y"]))
            assert store.remove_leftovers(time.time() + 60) == (0, 0)
