"""Keyed tables that are saved again as a whole: what is stored, what is read, what is compared."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import everloop as ev
from everloop.access.policy import EmbeddedAuthorizer
from everloop.backends.blobs.local import LocalBlobs
from everloop.catalog.engine import Catalog
from everloop.core.context import using
from everloop.core.dataset import RowDiff
from everloop.core.reads import fixing, noting
from everloop.core.schema import Field, Schema
from everloop.core.time import ManualClock
from everloop.data import blocks as blocks_module
from everloop.data import replace as replace_module
from everloop.data.objects import ObjectService
from everloop.data.service import DataService
from everloop.errors import BackendError, Conflict, InvalidInput, NotFound
from everloop.pipelines.reads import moved_on
from tests.contracts.conftest import START

KEYED = Schema(
    (Field("id", "int64", nullable=False), Field("x", "float64"), Field("s", "string")),
    key=("id",),
)
WIDER = Schema((*KEYED.fields, Field("more", "int32")), key=("id",))


def table(rows: list[tuple[Any, ...]], schema: Schema = KEYED) -> pa.Table:
    types = {"int64": pa.int64(), "float64": pa.float64(), "string": pa.string()}
    types["int32"] = pa.int32()
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(schema.fields)
    return pa.table(
        {f.name: pa.array(c, types[f.type]) for f, c in zip(schema.fields, columns, strict=True)}
    )


def loans(count: int) -> pa.Table:
    rng = np.random.default_rng(7)
    names = pa.array([f"name-{n}" for n in rng.integers(0, 10**9, count)])
    return pa.table({"id": np.arange(count), "x": rng.normal(size=count), "s": names})


def listed(found: pa.Table) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in found.to_pylist()]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows are many blocks then, and few blocks are too many."""
    _shrink(monkeypatch)


def _shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (blocks_module, replace_module):
        monkeypatch.setattr(module, "BLOCK_ROWS", 8)
    monkeypatch.setattr(replace_module, "DIRTY", 2)
    monkeypatch.setattr(replace_module, "MOST_DELTAS", 2)


# What is stored


def test_a_whole_frame_saved_again_stores_what_changed(
    data: DataService, blobs: LocalBlobs
) -> None:
    whole = loans(40_000)
    first = data.commit("d", whole, schema=KEYED, mode="replace")
    before = {digest: len(blobs.get(digest)) for digest in blobs.digests()}
    rng = np.random.default_rng(1)
    x = whole["x"].to_numpy().copy()
    x[rng.choice(40_000, 200, replace=False)] += 1
    changed = whole.set_column(1, "x", pa.array(x))
    left = np.sort(rng.choice(40_000, 39_900, replace=False))
    new = loans(100).set_column(0, "id", pa.array(np.arange(100) + 10**6))
    places = np.insert(left, np.sort(rng.integers(0, 39_900, 100)), 40_000 + np.arange(100))
    second_rows = pa.concat_tables([changed, new]).take(pa.array(places))
    second = data.commit("d", second_rows, mode="replace")
    added = sum(len(blobs.get(digest)) for digest in set(blobs.digests()) - set(before))
    assert added < 0.03 * sum(before.values())
    assert data.read("d").equals(second_rows.cast(data.read("d").schema))
    assert data.read("d", columns=["s", "id"]).equals(data.read("d").select(["s", "id"]))
    assert data.read("d", 1).equals(whole.cast(data.read("d", 1).schema))
    assert {block.digest for block in first.blocks} < {block.digest for block in second.blocks}
    diff = data.diff("d", 1, 2)
    assert (diff.added, diff.removed) == (100, 100)
    assert diff.changed in range(190, 201)  # some of the changed rows are among those that went


def test_order_alone_is_no_change(data: DataService) -> None:
    data.commit("d", table([(1, 0.0, "a"), (2, None, None)]), schema=KEYED, mode="replace")
    shuffled = table([(2, None, None), (1, -0.0, "a")]).select(["s", "x", "id"])
    assert data.commit("d", shuffled, mode="replace").number == 1
    assert data.read("d")["id"].to_pylist() == [1, 2]


def test_what_was_appended_is_held_against_the_frame_too(data: DataService) -> None:
    data.commit("d", table([(1, 1.0, "a"), (2, 2.0, "b")]), schema=KEYED)
    data.commit("d", table([(3, 3.0, "c")]))
    assert (
        data.commit(
            "d", table([(3, 3.0, "c"), (1, 1.0, "a"), (2, 2.0, "b")]), mode="replace"
        ).number
        == 2
    )
    third = data.commit("d", table([(1, 1.0, "a"), (3, 9.0, "c")]), mode="replace")
    assert listed(data.read("d")) == [(1, 1.0, "a"), (3, 9.0, "c")]
    fourth = data.commit("d", table([(2, 2.0, "again")]))
    assert listed(data.read("d"))[-1] == (2, 2.0, "again")
    assert fourth.rows == 3
    with pytest.raises(InvalidInput, match="stands in d@4 already"):
        data.commit("d", table([(3, 0.0, "")]))
    assert third.digest != fourth.digest


def test_a_deleted_row_may_be_appended_again(data: DataService, small_blocks: None) -> None:
    rows = [(n, 0.0, "") for n in range(8)]
    data.commit("d", table(rows), schema=KEYED)
    data.commit("d", table(rows[1:]), mode="replace")
    with pytest.raises(InvalidInput, match="stands in d@2 already"):
        data.commit("d", table(rows))
    assert data.commit("d", table(rows[:1])).rows == 8
    assert listed(data.read("d")) == rows[1:] + rows[:1]


def test_equal_content_has_an_equal_digest_whatever_its_history(data: DataService) -> None:
    rows = [(n, float(n), "x") for n in range(30)]
    one = data.commit("one", table(rows), schema=KEYED, mode="replace")
    data.commit("two", table(rows[5:20]), schema=KEYED, mode="replace")
    data.commit("two", table(rows[:3]))
    data.commit("two", table([(9, 1.0, "y"), *rows[:2]]), mode="replace")
    two = data.commit("two", table(rows[::-1]), mode="replace")
    assert one.digest == two.digest
    assert data.commit("one", table([(99, 0.0, "")])).digest != one.digest


def test_a_new_column_of_nulls_leaves_the_rows(data: DataService) -> None:
    first = data.commit("d", table([(1, 1.0, "a")]), schema=KEYED, mode="replace")
    wide = table([(1, 1.0, "a", None)], WIDER)
    second = data.commit("d", wide, schema=WIDER, mode="replace")
    assert [b.digest for b in second.blocks] == [b.digest for b in first.blocks]
    third = data.commit("d", table([(1, 1.0, "a", 5)], WIDER), mode="replace")
    assert listed(data.read("d")) == [(1, 1.0, "a", 5)]
    data.commit("d", table([(1, 1.0, "a")]), schema=KEYED, mode="replace")
    data.commit("d", wide, schema=WIDER, mode="replace")
    assert listed(data.read("d")) == [(1, 1.0, "a", None)], "what a column held once is gone"
    assert third.number == 3


@pytest.mark.parametrize(
    ("frame", "fault"),
    [
        ({"id": [1, 1, 2, 1], "x": [0.0] * 4, "s": ["a"] * 4}, "key.unique 2"),
        ({"id": [1, None], "x": [0.0] * 2, "s": ["a"] * 2}, "is null"),
        ({"id": ["1"], "x": [0.0], "s": ["a"]}, "wanted int64, got string"),
        ({"id": [1], "x": [[0.0]], "s": ["a"]}, "wanted float64, got list"),
        ({"id": [1], "x": [0.0]}, "the column is missing"),
        ({}, "the column is missing"),
    ],
)
def test_a_frame_that_cannot_be_is_refused_before_a_byte_is_written(
    data: DataService, blobs: LocalBlobs, frame: dict[str, Any], fault: str
) -> None:
    data.commit("d", table([(1, 1.0, "a")]), schema=KEYED, mode="replace")
    before = set(blobs.digests())
    with pytest.raises(InvalidInput, match=fault):
        data.commit("d", pa.table(frame), mode="replace")
    assert set(blobs.digests()) == before
    assert data.version("d").number == 1


def test_all_rows_may_go(data: DataService) -> None:
    data.commit("d", table([(1, 1.0, "a")]), schema=KEYED, mode="replace")
    assert data.commit("d", table([]), mode="replace").rows == 0
    assert data.read("d").num_rows == 0
    assert data.commit("d", table([(1, 1.0, "a")]), mode="replace").rows == 1


# Differences


def test_diff_names_rows_by_key_with_old_and_new_values(data: DataService) -> None:
    old = [(1, 1.0, "a"), (2, 2.0, "b"), (3, None, "c")]
    data.commit("d", table(old), schema=KEYED, mode="replace")
    data.commit("d", table([(2, 2.0, "B"), (1, 1.0, "a"), (4, 4.0, None)]), mode="replace")
    diff = data.diff("d", 1, 2, rows=5)
    assert (diff.old, diff.new, diff.added, diff.removed, diff.changed) == ("d@1", "d@2", 1, 1, 1)
    assert diff.rows == (
        RowDiff(kind="changed", key={"id": 2}, old={"s": "b"}, new={"s": "B"}),
        RowDiff(kind="added", key={"id": 4}, new={"id": 4, "x": 4.0, "s": None}),
        RowDiff(kind="removed", key={"id": 3}, old={"id": 3, "x": None, "s": "c"}),
    )
    assert data.diff("d", 1, 1).changed == 0


def test_a_change_of_the_schema_is_no_change_of_every_row(data: DataService) -> None:
    rows = [(n, float(n), "x") for n in range(20)]
    data.commit("d", table(rows), schema=KEYED, mode="replace")
    fields = (
        Field("id", "int32", nullable=False), Field("s", "string", unit="m"), Field("n", "int64"),
    )  # fmt: skip
    other = pa.table(
        {"id": pa.array(range(20), pa.int32()), "s": ["x"] * 19 + ["y"], "n": [1] * 20}
    )
    data.commit("d", other, schema=Schema(fields, key=("id",)), mode="replace")
    diff = data.diff("d", 1, 2, rows=9)
    assert diff.columns.added == ("n",)
    assert diff.columns.removed == ("x",)
    assert diff.columns.retyped == {"id": ("int64", "int32")}
    assert diff.columns.rules == ("s",)
    assert (diff.added, diff.removed, diff.changed) == (0, 0, 1)
    assert diff.rows == (RowDiff(kind="changed", key={"id": 19}, old={"s": "x"}, new={"s": "y"}),)


def test_without_a_key_rows_are_added_and_removed(data: DataService) -> None:
    plain = Schema(KEYED.fields)
    data.commit("d", table([(1, 0.0, "a")] * 3), schema=plain)
    data.commit("d", table([(1, 0.0, "a")] * 3))
    data.commit("d", table([(1, 0.0, "a")] * 2 + [(1, 0.0, "b")]), mode="replace")
    assert (data.diff("d", 1, 2).added, data.diff("d", 1, 2).removed) == (3, 0)
    assert (data.diff("d", 2, 3).added, data.diff("d", 2, 3).removed) == (1, 4)


# Two at once


class Rival:
    """Commits once, in the middle of a commit of another."""

    def __init__(self, data: DataService, blobs: LocalBlobs, rows: pa.Table) -> None:
        self.data, self.blobs, self.rows = data, blobs, rows
        self._put = blobs.put
        blobs.put = self.put  # type: ignore[method-assign, assignment]

    def put(self, content: Any) -> tuple[str, int]:
        done = self._put(content)
        if self.blobs.put == self.put:
            self.blobs.put = self._put  # type: ignore[method-assign]
            self.data.commit("d", self.rows, mode="replace")
        return done


def _edited(rows: list[tuple[Any, ...]], **changes: str) -> list[tuple[Any, ...]]:
    texts = {int(name[1:]): text for name, text in changes.items()}
    return [(n, x, texts.get(n, s)) for n, x, s in rows if texts.get(n, s)]


ROWS = [(n, float(n), "old") for n in range(20)]


def test_changes_of_other_rows_at_once_are_both_kept(data: DataService, blobs: LocalBlobs) -> None:
    data.commit("d", table(ROWS), schema=KEYED, mode="replace")
    Rival(data, blobs, table([*_edited(ROWS, n3="theirs", n9="", n7="alike"), (50, 5.0, "theirs")]))
    mine = [*_edited(ROWS, n5="mine", n8="", n7="alike"), (60, 6.0, "mine")]
    third = data.commit("d", table(mine), mode="replace")
    both = _edited(ROWS, n3="theirs", n5="mine", n7="alike", n8="", n9="")
    assert third.number == 3
    assert sorted(listed(data.read("d"))) == [*both, (50, 5.0, "theirs"), (60, 6.0, "mine")]
    anew = data.commit("e", table(listed(data.read("d"))), schema=KEYED, mode="replace")
    assert anew.digest == third.digest


@pytest.mark.parametrize("mine", [{"n3": "mine"}, {"n3": ""}, {"n9": "mine"}])
def test_changes_of_the_same_row_at_once_are_a_conflict(
    data: DataService, blobs: LocalBlobs, mine: dict[str, str]
) -> None:
    data.commit("d", table(ROWS), schema=KEYED, mode="replace")
    Rival(data, blobs, table(_edited(ROWS, n3="theirs", n9="")))
    with pytest.raises(Conflict, match=r"d@2 by tester.*changed 1 of the same rows.*'id': ") as got:
        data.commit("d", table(_edited(ROWS, **mine)), mode="replace")
    assert got.value.details == {"winner": 2}
    assert listed(data.read("d")) == _edited(ROWS, n3="theirs", n9="")


def test_without_a_key_the_second_replacement_is_a_conflict(
    data: DataService, blobs: LocalBlobs
) -> None:
    data.commit("d", table(ROWS), schema=Schema(KEYED.fields), mode="replace")
    Rival(data, blobs, table(_edited(ROWS, n3="theirs")))
    with pytest.raises(Conflict, match="d@2 by tester") as got:
        data.commit("d", table(_edited(ROWS, n5="mine")), mode="replace")
    assert got.value.details == {"winner": 2}
    Rival(data, blobs, table(ROWS))
    assert data.commit("d", table(ROWS), mode="replace").number == 3


# Broken off


def test_a_full_disk_at_any_point_leaves_the_old_version(
    catalog: Catalog, blobs: LocalBlobs, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DataService(catalog, blobs, EmbeddedAuthorizer())
    data.commit("d", table(ROWS), schema=KEYED)
    rows, put, steps = _edited(ROWS, n1="new", n9="", n15="new"), LocalBlobs.put, 0

    def fails_at(step: int) -> None:
        left = iter(range(step))

        def limited(self: LocalBlobs, content: Any) -> tuple[str, int]:
            if next(left, None) is None:
                raise BackendError("the disk is full")
            return put(self, content)

        monkeypatch.setattr(LocalBlobs, "put", limited)

    while True:
        fails_at(steps)
        try:
            data.commit("d", table(rows), mode="replace")
            break
        except BackendError:
            monkeypatch.setattr(LocalBlobs, "put", put)
            assert listed(data.read("d")) == ROWS
            assert data.version("d").number == 1
        steps += 1
    assert steps >= 5
    assert listed(data.read("d")) == rows
    monkeypatch.setattr(LocalBlobs, "put", put)
    objects = ObjectService(catalog, blobs, EmbeddedAuthorizer())
    rubbish = blobs.put(b"of a commit that was killed")[0]
    assert objects.collect(grace="0").objects >= 1
    assert not blobs.exists(rubbish)
    assert listed(data.read("d")) == rows
    assert listed(data.read("d", 1)) == ROWS
    assert data.commit("d", table(rows[1:]), mode="replace").number == 3


# Tags and times


def test_tags_move_by_compare_and_set(data: DataService, catalog: Catalog) -> None:
    for n in (1, 2):
        data.commit("d", table([(n, 0.0, "")]), schema=KEYED, mode="replace")
    data.tag("d", "2025q1", 1, reason="audited")
    data.tag("d", "2025q1", 1)
    with pytest.raises(Conflict, match=r"expected at version 2; it names d@1") as got:
        data.tag("d", "2025q1", 2, expected=2)
    assert got.value.details == {"winner": 1}
    assert data.find("d@2025q1").number == 1
    data.tag("d", "2025q1", 2, expected=1)
    assert [(tag.ref, tag.number, tag.actor) for tag in data.tags("d")] == [
        ("d@2025q1", 2, "tester")
    ]
    data.untag("d", "2025q1", expected=2)
    data.untag("d", "2025q1")
    moves = [e.body for e in catalog.events() if e.kind == "dataset.TagMoved"]
    assert [(m["from"], m["to"], m["reason"]) for m in moves] == [
        (0, 1, "audited"), (1, 2, ""), (2, 0, ""),
    ]  # fmt: skip
    data.tag("d", "stable", 1)
    with pytest.raises(NotFound, match="did you mean 'stable'"):
        data.find("d@stabel")
    with pytest.raises(NotFound, match="there are 1 to 2"):
        data.tag("d", "x", 3)
    for name in ("7", "latest", "", "a b", "a:b", "a@b"):
        with pytest.raises(InvalidInput, match="no name of a tag"):
            data.tag("d", name, 1)
    assert data.find("d").number == data.find("d@latest").number == data.find("d@2").number == 2


def test_versions_by_time_count_in_their_order(data: DataService, clock: ManualClock) -> None:
    hours = (0, 48, 24, 72)  # the clock of the third writer was a day behind
    for n, hour in enumerate(hours):
        clock.set(START)
        clock.advance(hours=hour)
        data.commit("d", table([(n, 0.0, "")]), schema=KEYED)
    cases = {
        "2013-01-01": 1,
        "2013-01-02T12:00:00Z": 1,
        "2013-01-03": 3,
        "2013-01-03T00:00:00+01:00": 1,
        "2013-01-04": 4,
        "2030-01-01": 4,
    }
    assert {at: data.version_at("d", at).number for at in cases} == cases
    assert data.find("d@2013-01-03T00:00:00").number == 3
    with pytest.raises(NotFound, match="had no version at 2012-12-31"):
        data.version_at("d", "2012-12-31")
    with pytest.raises(InvalidInput, match="is no time"):
        data.version_at("d", "yesterday")


def test_plain_functions_read_by_tag_and_time(tmp_path: Path, clock: ManualClock) -> None:
    with ev.open(tmp_path / ".everloop", clock=clock, actor="tester") as ws, using(ws):
        ev.commit("d", table(ROWS), schema=KEYED)
        clock.advance(days=1)
        ev.commit("d", table(ROWS[1:]), expect=1)
        with pytest.raises(Conflict, match="expected at version 1; the latest is d@2"):
            ev.commit("d", table(ROWS[2:]), expect=1)
        ws.data.tag("d", "first", 1)
        with noting() as reads:
            assert ev.read("d@first").sources[0].version == 1
            assert ev.read("d", at="2013-01-01").sources[0].version == 1
            assert ev.read("d", at=clock.now()).sources[0].version == 2
        assert moved_on(ws, reads) == ""
        ws.data.tag("d", "first", 2)
        assert moved_on(ws, reads) == "dataset d@first is no longer 1"
        with fixing("R1", {("dataset", "d@first"): ["1"]}):
            assert ev.read("d@first").sources[0].version == 1
        with pytest.raises(InvalidInput, match="stated twice"):
            ev.read("d@first", version=2)


# Anything in any order

Model = list[tuple[Any, ...]]


def woven(old: Model, new: Model) -> Model:
    """Old rows that stay in their order, each followed by the new ones that it has before them."""
    stay = set(old) & set(new)
    behind: dict[Any, Model] = {None: []}
    last = None
    for row in new:
        if row in stay:
            last = row
        else:
            behind.setdefault(last, []).append(row)
    return behind[None] + [r for kept in old if kept in stay for r in (kept, *behind.get(kept, []))]


class Player:
    """Saves at random, beside the same in plain lists."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.chance = random.Random(seed)
        self.clock = ManualClock(START)
        self.catalog = Catalog(f"sqlite:///{folder}/catalog.sqlite", clock=self.clock)
        blobs = LocalBlobs(folder / "objects")
        self.data = DataService(self.catalog, blobs, EmbeddedAuthorizer())
        self.objects = ObjectService(self.catalog, blobs, EmbeddedAuthorizer())
        self.schema = KEYED
        self.versions: list[Model] = []
        self.tags: dict[str, int] = {}
        self.used = 0

    def row(self) -> tuple[Any, ...]:
        self.used += 1
        return (self.used, *self.values())

    def values(self) -> tuple[Any, ...]:
        values = (self.chance.choice([None, 0.0, 1.5]), self.chance.choice("abc"))
        return (*values, self.chance.choice([None, 7])) if self.schema is WIDER else values

    def latest(self) -> Model:
        return self.versions[-1] if self.versions else []

    def append(self) -> None:
        rows = [self.row() for _ in range(self.chance.randrange(1, 12))]
        made = self.data.commit("d", table(rows, self.schema), schema=self.schema)
        self.take(made.number, self.latest() + rows)

    def replace(self) -> None:
        rate, rows = self.chance.choice([0.0, 0.05, 0.3]), []
        for row in self.latest():
            if self.chance.random() < rate / 3:
                continue
            is_new = self.chance.random() < rate
            rows.append((row[0], *self.values()) if is_new else row)
            if self.chance.random() < rate / 3:
                rows.append(self.row())
        if self.chance.random() < 0.2:
            self.chance.shuffle(rows)
        made = self.data.commit("d", table(rows, self.schema), schema=self.schema, mode="replace")
        self.take(made.number, woven(self.latest(), rows))

    def revert(self) -> None:
        if self.versions:
            rows = self.chance.choice(self.versions)
            frame = table(rows, self.schema)
            made = self.data.commit("d", frame, schema=self.schema, mode="replace")
            self.take(made.number, woven(self.latest(), rows))

    def widen(self) -> None:
        if self.schema is KEYED:
            self.schema = WIDER
            self.versions = [[(*row, None) for row in rows] for rows in self.versions]

    def tag(self) -> None:
        if self.versions:
            number = self.chance.randrange(len(self.versions)) + 1
            self.data.tag("d", "t", number, expected=self.tags.get("t", 0))
            self.tags["t"] = number

    def collect(self) -> None:
        self.objects.collect(grace="0")

    def take(self, number: int, rows: Model) -> None:
        if number > len(self.versions):
            self.versions.append(rows)
        assert listed(self.read(number)) == self.versions[number - 1] == rows

    def read(self, number: int) -> pa.Table:
        found = self.data.read("d", number)
        if self.schema is WIDER and "more" not in found.column_names:
            return found.append_column("more", pa.nulls(found.num_rows, pa.int32()))
        return found

    def check(self) -> None:
        for number, rows in enumerate(self.versions, 1):
            assert listed(self.read(number)) == rows
        for tag, number in self.tags.items():
            assert self.data.find(f"d@{tag}").number == number
        if not self.versions:
            return
        old, new = (self.chance.randrange(len(self.versions)) for _ in range(2))
        # A column that only one of them has makes no row a changed one.
        width = min(len(self.data.version("d", n + 1).schema.fields) for n in (old, new))
        before, after = ({row[0]: row[:width] for row in self.versions[n]} for n in (old, new))
        diff = self.data.diff("d", old + 1, new + 1, rows=100)
        found = {(row.kind, row.key["id"]) for row in diff.rows}
        wanted = {("added", n) for n in after.keys() - before}
        wanted |= {("removed", n) for n in before.keys() - after}
        wanted |= {("changed", n) for n in before.keys() & after if before[n] != after[n]}
        assert found == wanted


ACTS = st.sampled_from(["append", *["replace"] * 4, "revert", "widen", "tag", "collect"])


@pytest.fixture(scope="module")
def shrunk() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        _shrink(patch)
        yield


@settings(max_examples=12, deadline=None)
@given(acts=st.lists(ACTS, min_size=5, max_size=14), seed=st.integers(0, 10**6))
def test_saves_in_any_order_are_what_plain_lists_say(
    shrunk: None, acts: list[str], seed: int
) -> None:
    with tempfile.TemporaryDirectory() as place:
        player = Player(Path(place), seed)
        try:
            player.append()
            for act in acts:
                getattr(player, act)()
            player.check()
        finally:
            player.catalog.close()
