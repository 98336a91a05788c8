"""Keys of new rows against keys of stored blocks."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everloop.backends.blobs.local import LocalBlobs
from everloop.core.schema import FIELD_TYPES
from everloop.data import keys
from everloop.data.arrow import arrow_type
from everloop.data.blocks import open_block, write_block
from everloop.data.keys import repeated
from tests.unit.data.strategies import values

PAIRS = st.lists(st.tuples(st.integers(0, 6), st.sampled_from("abc")), max_size=8)


def table(pairs: list[tuple[int, str]]) -> pa.Table:
    return pa.table(
        {
            "a": pa.array([a for a, _ in pairs], pa.int64()),
            "b": pa.array([b for _, b in pairs], pa.string()),
        }
    )


@given(st.lists(PAIRS.filter(bool), max_size=4), PAIRS)
@settings(max_examples=30, deadline=None)
def test_repeated_keys_are_those_that_stand_in_a_block(
    earlier: list[list[tuple[int, str]]], new: list[tuple[int, str]]
) -> None:
    with TemporaryDirectory() as folder:
        blobs = LocalBlobs(Path(folder))
        blocks = [write_block(blobs, table(pairs)) for pairs in earlier]
        found = repeated(blobs, [(b, None) for b in blocks], table(new), ["a", "b"])
    known = {pair for pairs in earlier for pair in pairs}
    assert found.tolist() == [n for n, pair in enumerate(new) if pair in known]


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_keys_of_every_type_are_compared(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(FIELD_TYPES))
    cell = values(kind).filter(lambda v: v == v)  # NaN is no key
    old, new = (
        data.draw(st.lists(cell, min_size=1, max_size=4)),
        data.draw(st.lists(cell, max_size=4)),
    )
    new += data.draw(st.lists(st.sampled_from(old), max_size=2))
    with TemporaryDirectory() as folder:
        blobs = LocalBlobs(Path(folder))
        block = write_block(blobs, pa.table({"k": pa.array(old, arrow_type(kind))}))
        rows = pa.table({"k": pa.array(new, arrow_type(kind))})
        found = repeated(blobs, [(block, None)], rows, ["k"])
    assert found.tolist() == [n for n, value in enumerate(new) if value in old]


def test_rows_that_do_not_count_are_passed_over(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path)
    block = write_block(blobs, table([(1, "a"), (2, "b")]))
    part = (block, np.array([True, False]))
    assert repeated(blobs, [part], table([(2, "b"), (1, "a")]), ["a", "b"]).tolist() == [1]


def test_block_that_lies_apart_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = LocalBlobs(tmp_path)
    block = write_block(blobs, table([(1, "a"), (2, "c")]))

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the block was read")

    monkeypatch.setattr(pq.ParquetFile, "read", refuse)
    assert repeated(blobs, [(block, None)], table([(3, "a")]), ["a", "b"]).tolist() == []
    assert repeated(blobs, [(block, None)], table([(0, "a")]), ["a", "b"]).tolist() == []
    with pytest.raises(AssertionError, match="was read"):
        repeated(blobs, [(block, None)], table([(2, "a")]), ["a", "b"])


def test_the_footer_of_a_block_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def counting(blobs: LocalBlobs, digest: str) -> pq.ParquetFile:
        opened.append(digest)
        return open_block(blobs, digest)

    blobs = LocalBlobs(tmp_path)
    monkeypatch.setattr(keys, "open_block", counting)
    monkeypatch.setattr(keys, "_footers", {})
    blocks = [write_block(blobs, table([(n, "a")])) for n in range(5)]
    for _ in range(3):
        assert not repeated(blobs, [(b, None) for b in blocks], table([(9, "a")]), ["a"]).size
    assert sorted(opened) == sorted(b.digest for b in blocks)
    # Of other columns the footer is another matter.
    assert repeated(blobs, [(blocks[0], None)], table([(9, "a")]), ["b"]).tolist() == [0]


def test_footers_that_are_known_stay_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = LocalBlobs(tmp_path)
    monkeypatch.setattr(keys, "_MOST_FOOTERS", 4)
    monkeypatch.setattr(keys, "_footers", {})
    blocks = [(write_block(blobs, table([(n, "a")])), None) for n in range(9)]
    assert repeated(blobs, blocks, table([(3, "a"), (20, "a")]), ["a"]).tolist() == [0]
    assert len(keys._footers) <= 4
