"""Ids: unique, sortable, also over threads and forks."""

from __future__ import annotations

import os
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everloop.core import ids
from everloop.core.ids import is_id, new_id, new_ids, time_ms_of


def test_ids_increase_strictly() -> None:
    made = [new_id() for _ in range(2000)] + new_ids(2000) + [new_id()]
    assert made == sorted(set(made))
    assert all(is_id(identifier) for identifier in made)


def test_ids_increase_when_the_clock_steps_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = new_id()
    monkeypatch.setattr(ids.time, "time", lambda: 1.0)
    assert new_id() > before


def test_id_holds_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    at = time.time() + 1000
    monkeypatch.setattr(ids.time, "time", lambda: at)
    assert time_ms_of(new_id()) == int(at * 1000)


def test_no_ids_is_an_empty_list() -> None:
    assert new_ids(0) == []


def test_threads_share_no_id() -> None:
    made: list[str] = []

    def work() -> None:
        made.extend(new_id() for _ in range(500))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 2000


def test_forked_child_makes_other_ids() -> None:
    new_id()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, " ".join(new_ids(50)).encode())
        os._exit(0)
    mine = set(new_ids(50))
    os.waitpid(child, 0)
    theirs = set(os.read(read, 10_000).decode().split())
    os.close(read)
    os.close(write)
    assert len(theirs) == 50
    assert not mine & theirs


@given(st.integers(0, 2**128 - 1), st.integers(0, 2**128 - 1))
def test_text_sorts_as_the_number(one: int, two: int) -> None:
    assert (ids._encode(one, 26) < ids._encode(two, 26)) == (one < two)
    assert is_id(ids._encode(one, 26))


@pytest.mark.parametrize("text", ["", "0" * 25, "0" * 27, "8" + "0" * 25, "0" * 25 + "U", "o" * 26])
def test_other_text_is_no_id(text: str) -> None:
    assert not is_id(text)
