"""The contract of an OnlineStore: subclass it, give the fixture ``open_store``, and it is proved.

>>> class TestMine(OnlineStoreContract):  # doctest: +SKIP
...     @pytest.fixture
...     def open_store(self, tmp_path):
...         return lambda: MyStore(tmp_path)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from everloop.ports.online import OnlineStore

__all__ = ["OnlineStoreContract"]

Opener = Callable[[], OnlineStore]

KEYS = [b"", b"\0", b"a", b"a\0", b"a\0b", b"b", b"\xff" * 40, b"k" * 511, b"k" * 512, b"k" * 9000]


class OnlineStoreContract:
    """What every adapter must do. ``open_store()`` opens the same place each time it is called."""

    @pytest.fixture
    def store(self, open_store: Opener) -> Iterator[OnlineStore]:
        """A store that is empty."""
        opened = open_store()
        yield opened
        opened.close()

    def test_unknown_key_is_none(self, store: OnlineStore) -> None:
        assert store.read("v", [b"a", b"b"]) == [None, None]

    def test_no_keys_give_no_values(self, store: OnlineStore) -> None:
        assert store.read("v", []) == []

    def test_values_come_in_the_order_asked(self, store: OnlineStore) -> None:
        store.write({"v": {b"a": b"1", b"b": b"2"}})
        assert store.read("v", [b"b", b"x", b"a", b"b"]) == [b"2", None, b"1", b"2"]

    def test_write_replaces(self, store: OnlineStore) -> None:
        store.write({"v": {b"a": b"old", b"b": b"kept"}})
        store.write({"v": {b"a": b"new"}})
        assert store.read("v", [b"a", b"b"]) == [b"new", b"kept"]

    def test_empty_write_does_nothing(self, store: OnlineStore) -> None:
        store.write({"v": {}})
        assert store.read("v", [b"a"]) == [None]

    def test_any_bytes_are_a_key_and_none_collide(self, store: OnlineStore) -> None:
        store.write({"v": {key: str(place).encode() for place, key in enumerate(KEYS)}})
        assert store.read("v", KEYS) == [str(place).encode() for place in range(len(KEYS))]

    def test_any_bytes_are_a_value(self, store: OnlineStore) -> None:
        values = {b"empty": b"", b"nul": b"\0", b"large": bytes(range(256)) * 8192}
        store.write({"v": values})
        assert store.read("v", list(values)) == list(values.values())

    def test_views_do_not_see_each_other(self, store: OnlineStore) -> None:
        store.write({"v": {b"a": b"1", b"w": b"3"}, "vw": {b"a": b"2"}})
        assert store.read("v", [b"a"]) + store.read("vw", [b"a"]) == [b"1", b"2"]

    def test_clear_forgets_one_view(self, store: OnlineStore) -> None:
        for view in ("u", "v", "w"):
            store.write({view: {str(i).encode() * 3: b"1" for i in range(50)}})
        store.clear("v")
        store.clear("never written")
        assert store.read("v", [b"111", b"494949"]) == [None, None]
        assert store.read("u", [b"111"]) + store.read("w", [b"494949"]) == [b"1", b"1"]

    def test_what_was_written_outlives_the_handle(self, open_store: Opener) -> None:
        first = open_store()
        first.write({"v": {b"a": b"1"}})
        first.close()
        second = open_store()
        assert second.read("v", [b"a"]) == [b"1"]
        second.close()

    def test_two_handles_see_each_other(self, store: OnlineStore, open_store: Opener) -> None:
        other = open_store()
        store.write({"v": {b"a": b"1"}})
        assert other.read("v", [b"a"]) == [b"1"]
        other.write({"v": {b"a": b"2"}})
        other.close()
        assert store.read("v", [b"a"]) == [b"2"]

    def test_close_twice_is_allowed(self, open_store: Opener) -> None:
        opened = open_store()
        opened.close()
        opened.close()

    def test_reader_sees_a_whole_write_or_nothing(self, store: OnlineStore) -> None:
        keys = [str(place).encode() for place in range(40)]
        store.write({"v": dict.fromkeys(keys, b"0")})
        torn: list[set[bytes | None]] = []
        done = threading.Event()

        def watch() -> None:
            while not done.is_set():
                seen = set(store.read("v", keys))
                if len(seen) > 1:
                    torn.append(seen)

        watchers = [threading.Thread(target=watch) for _ in range(2)]
        for watcher in watchers:
            watcher.start()
        for number in range(30):
            store.write({"v": dict.fromkeys(keys, str(number).encode() * 100)})
        done.set()
        for watcher in watchers:
            watcher.join()
        assert torn == []
