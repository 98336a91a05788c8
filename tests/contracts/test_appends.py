"""Tables that are appended to again and again: few blocks, every version as it was."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everloop.backends.blobs.local import LocalBlobs
from everloop.core.schema import Check, Field, Schema
from everloop.core.time import ManualClock
from everloop.data.blocks import write_block
from everloop.data.service import DataService
from everloop.data.tail import _MOST, FAN, _run, put_together
from everloop.errors import InvalidInput

KEYED = Schema((Field("id", "int64", nullable=False), Field("x", "float64")), key=("id",))
PLAIN = Schema((Field("id", "int64", nullable=False), Field("x", "float64")))

#: Through the wire nothing of it is another; what is appended is decided where the catalog is.
anywhere = pytest.mark.parametrize("place", ["sqlite", "postgres"], indirect=True)
here = pytest.mark.parametrize("place", ["sqlite"], indirect=True)


def part(*ids: int, x: float = 0.5) -> pa.Table:
    return pa.table({"id": pa.array(ids, pa.int64()), "x": [x + n for n in ids]})


def ids(data: DataService, number: int | None = None) -> list[int]:
    found: list[int] = data.read("t", number)["id"].to_pylist()
    return found


@anywhere
@pytest.mark.parametrize("schema", [KEYED, PLAIN], ids=["keyed", "plain"])
def test_many_appends_leave_few_blocks_and_every_version(data: DataService, schema: Schema) -> None:
    for n in range(3 * FAN * FAN):
        data.commit("t", part(2 * n, 2 * n + 1), schema=schema)
    versions = data.versions("t")
    assert len(versions) == 3 * FAN * FAN
    assert max(len(version.blocks) for version in versions) <= 3 * FAN
    for version in versions[:: FAN + 1]:
        assert ids(data, version.number) == list(range(2 * version.number))
    assert data.read("t")["x"].to_pylist() == [0.5 + n for n in range(6 * FAN * FAN)]


@here
def test_a_commit_done_again_is_known_though_its_block_is_part_of_another(
    data: DataService,
) -> None:
    for n in range(2 * FAN):
        data.commit("t", part(2 * n, 2 * n + 1), schema=KEYED)
    last = data.versions("t")[-1]
    assert len(last.blocks) == 2
    assert data.commit("t", part(4, 5)).number == last.number
    assert len(data.versions("t")) == 2 * FAN
    with pytest.raises(InvalidInput, match=r"the key \(id\) stands in t@16 already"):
        data.commit("t", part(4, 500))
    with pytest.raises(InvalidInput, match="already"):
        data.commit("t", part(4, 5, x=9.5))
    assert ids(data) == list(range(4 * FAN))


@here
def test_what_a_layout_tells_of_stays_as_it_is(data: DataService) -> None:
    first = pa.concat_tables([part(*range(100, 200))])
    data.commit("t", first, schema=KEYED)
    changed = pa.concat_tables([part(*range(100, 130)), part(130, x=7.5), part(*range(131, 200))])
    told = data.commit("t", changed, mode="replace")
    assert told.layout
    for n in range(FAN * FAN):
        data.commit("t", part(1000 + n))
    latest = data.versions("t")[-1]
    assert latest.layout == told.layout
    assert latest.blocks[: len(told.blocks)] == told.blocks
    assert len(latest.blocks) <= len(told.blocks) + 2 * FAN
    assert ids(data) == [*range(100, 200), *range(1000, 1000 + FAN * FAN)]
    whole = data.read("t")
    assert data.commit("t", whole, mode="replace").number == latest.number


@here
def test_a_column_that_came_later_is_null_in_what_is_put_together(data: DataService) -> None:
    wider = Schema((*PLAIN.fields, Field("more", "string")))
    for n in range(FAN - 1):
        data.commit("t", part(n), schema=PLAIN)
    data.commit("t", part(99).append_column("more", pa.array(["new"])), schema=wider)
    latest = data.versions("t")[-1]
    assert len(latest.blocks) == 1
    assert data.read("t")["more"].to_pylist() == [None] * (FAN - 1) + ["new"]


@here
def test_lines_that_were_both_appended_to_are_merged_whatever_their_blocks(
    data: DataService,
) -> None:
    for n in range(FAN - 1):
        data.commit("t", part(n), schema=PLAIN)
    data.branch("t", "more")
    for n in range(FAN):
        data.commit("t", part(100 + n))
        data.commit("t", part(200 + n), branch="more")
    merged = data.merge("t", "more").version
    assert ids(data, merged.number) == [
        *range(FAN - 1), *range(100, 100 + FAN), *range(200, 200 + FAN),
    ]  # fmt: skip


@here
def test_rows_that_came_count_for_an_anomaly(data: DataService, clock: ManualClock) -> None:
    for n in range(3 * FAN):
        clock.advance(days=1)
        data.commit("t", part(*range(10 * n, 10 * n + 10)), schema=PLAIN)
    usual = Check("as usual", kind="anomaly")
    assert data.check("t", [usual]).ok
    clock.advance(days=1)
    data.commit("t", part(*range(10_000, 10_100)))
    [broken] = data.check("t", [usual]).broken
    assert "rows is 100; the median" in broken.reason


@here
def test_a_subject_is_erased_from_what_was_put_together_and_from_before(
    data: DataService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERLOOP_SIGNING_KEY", "a key of a test")
    for n in range(2 * FAN):
        data.commit("t", part(2 * n, 2 * n + 1), schema=KEYED)
    data.erase({"id": 5}, reason="asked")
    for version in data.versions("t"):
        assert ids(data, version.number) == [n for n in range(2 * version.number) if n != 5]
    data.commit("t", part(5, x=9.5))
    assert ids(data)[-1] == 5


@given(st.lists(st.integers(1, 5000), max_size=400))
@settings(max_examples=60, deadline=None)
def test_blocks_stay_few_and_rows_are_rarely_written(sizes: list[int]) -> None:
    blocks: list[int] = []
    written = 0
    for rows in sizes:
        blocks.append(rows)
        while run := _run(blocks):
            whole = sum(blocks[-run:])
            assert whole <= _MOST
            written += whole
            blocks[-run:] = [whole]
    assert sum(blocks) == sum(sizes)
    levels = 1 + int(np.log(_MOST) / np.log(FAN))
    # Blocks that are too large to be put together hold an eighth of the limit on average.
    assert len(blocks) <= FAN * levels + 2 * FAN * sum(sizes) / _MOST
    assert written <= levels * sum(sizes)


@given(
    st.lists(st.lists(st.integers(-5, 5), min_size=1, max_size=40), min_size=FAN, max_size=30),
    st.integers(0, 10),
)
@settings(max_examples=25, deadline=None)
def test_order_of_rows_is_kept(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[int]], fixed: int
) -> None:
    blobs = LocalBlobs(tmp_path_factory.getbasetemp() / "tail")
    blocks = [write_block(blobs, part(*rows)) for rows in parts]
    made = put_together(blobs, PLAIN, blocks, fixed, hashed=False)
    assert made.blocks[:fixed] == tuple(blocks[:fixed])
    from everloop.data.blocks import read_block

    found = [n for b in made.blocks for n in read_block(blobs, b, PLAIN, ["id"])["id"].to_pylist()]
    assert found == [n for rows in parts for n in rows]
    assert sum(block.rows for block in made.blocks) == len(found)
