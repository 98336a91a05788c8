"""A table that two processes save, branch, merge, expire, collect and erase, beside plain tables.

Each process has the workspace open all the time, so that their caches differ. What ought to be
there stands in DuckDB tables, and after each step the other process reads all of it.
``EVERLOOP_TEST_MACHINE=50`` plays fifty times as long.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar, Literal

import duckdb
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.contracts.conftest import START
from tests.contracts.data_actor import (
    Actor,
    Look,
    Refused,
    Row,
    child,
    few_rows_are_many_blocks,
    table,
)

LONGER = int(os.environ.get("EVERLOOP_TEST_MACHINE", "1"))
HOUR = timedelta(hours=1)
NAN = float("nan")

KEYS = st.integers(0, 23)
CELLS = st.tuples(st.sampled_from([None, NAN, 0.0, -0.0, 1.5]), st.sampled_from([None, "", "é"]))
FRAMES = st.dictionaries(KEYS, CELLS, max_size=24)
NAMES = st.sampled_from(["b1", "b2"])


class Plain:
    """Versions of a table, in DuckDB, and what points at them."""

    def __init__(self) -> None:
        self._sql = duckdb.connect(config={"threads": 1})
        self._sql.execute("CREATE TABLE saved (v INT, id BIGINT, x DOUBLE, s VARCHAR)")
        self.parents: dict[int, tuple[int, int]] = {}
        self.times: dict[int, datetime] = {}
        self.lines: dict[int, str] = {}
        self.heads: dict[str, int] = {}
        self.began: dict[str, int] = {}
        self.tags: dict[str, int] = {}

    def close(self) -> None:
        self._sql.close()

    def rows(self, number: int) -> dict[int, Row]:
        query = "SELECT id, x, s FROM saved WHERE v = ? ORDER BY id"
        return {row[0]: row for row in self._sql.execute(query, [number]).fetchall()}

    def add(self, number: int, line: str, rows: list[Row], merged: int, now: datetime) -> None:
        assert number == max(self.times, default=0) + 1
        given = table(rows)
        self._sql.register("given", given)
        self._sql.execute(f"INSERT INTO saved SELECT {number}, id, x, s FROM given")
        self._sql.unregister("given")
        self.parents[number] = (self.heads.get(line, 0), merged)
        self.times[number], self.lines[number], self.heads[line] = now, line, number

    def is_now(self, number: int, rows: list[Row]) -> bool:
        """Whether a version has just these rows."""
        self._sql.register("given", table(rows))
        unlike = self._unlike("SELECT * EXCLUDE v FROM saved WHERE v = ?", "FROM given", [number])
        self._sql.unregister("given")
        return not unlike

    def diff(self, old: int, new: int) -> set[tuple[str, int, str, str]]:
        query = "SELECT * EXCLUDE v FROM saved WHERE v = ?"
        return self._unlike(query, query, [old, new])

    def same_in_files(self, number: int, files: list[str]) -> bool:
        """Whether Parquet files hold just the rows of a version."""
        query = "SELECT * EXCLUDE v FROM saved WHERE v = ?"
        return not self._unlike(query, "FROM read_parquet(?)", [number, files])

    def _unlike(self, one: str, two: str, given: list[Any]) -> set[tuple[str, int, str, str]]:
        query = f"""
            WITH a AS ({one}), b AS ({two})
            SELECT CASE WHEN a.id IS NULL THEN 'added' WHEN b.id IS NULL THEN 'removed'
                        ELSE 'changed' END,
                   coalesce(a.id, b.id), a.x IS DISTINCT FROM b.x, a.s IS DISTINCT FROM b.s,
                   a.x, a.s, b.x, b.s
            FROM a FULL JOIN b ON a.id = b.id
            WHERE a.id IS NULL OR b.id IS NULL OR a.x IS DISTINCT FROM b.x
               OR a.s IS DISTINCT FROM b.s"""
        found = set()
        for kind, key, x, s, *values in self._sql.execute(query, given).fetchall():
            shown = [n for n, named in (("x", x), ("s", s)) if named or kind != "changed"]
            old = dict(zip(("x", "s"), values[:2], strict=True))
            new = dict(zip(("x", "s"), values[2:], strict=True))
            found.add(
                (
                    kind,
                    key,
                    text({n: old[n] for n in shown} if kind != "added" else {}),
                    text({n: new[n] for n in shown} if kind != "removed" else {}),
                )
            )
        return found

    def forget(self, ids: list[int]) -> int:
        """Erase; how many rows there were."""
        gone = self._sql.execute("SELECT count(*) FROM saved WHERE id IN ?", [ids]).fetchone()
        self._sql.execute("DELETE FROM saved WHERE id IN ?", [ids])
        return int(gone[0]) if gone else 0

    def drop(self, number: int) -> None:
        self._sql.execute("DELETE FROM saved WHERE v = ?", [number])
        before = self.parents.pop(number)[0]
        for later, pair in self.parents.items():
            self.parents[later] = tuple(before if n == number else n for n in pair)  # type: ignore[assignment]
        del self.times[number], self.lines[number]

    def ancestors(self, number: int) -> set[int]:
        found: set[int] = set()
        waiting = [number]
        while waiting:
            at = waiting.pop()
            if at in self.times and at not in found:
                found.add(at)
                waiting += self.parents[at]
        return found

    def line(self, head: int) -> list[int]:
        """The versions of a line, newest first."""
        found = []
        while head in self.times:
            found.append(head)
            head = self.parents[head][0]
        return found

    def old(self, now: datetime, days: float, last: int) -> list[int]:
        """What a rule lets go."""
        named = {*self.heads.values(), *self.began.values(), *self.tags.values()}
        numbers = sorted(self.times)[:-last]
        return [n for n in numbers if n not in named and self.times[n] < now - timedelta(days=days)]


def text(cells: dict[str, Any]) -> str:
    """Cells so that equal values are equal: NaN is itself, and there is one zero."""
    return repr(sorted(cells.items())).replace("-0.0", "0.0")


def plain(rows: list[Row]) -> list[str]:
    return sorted(repr(row).replace("-0.0", "0.0") for row in rows)


def merged(
    base: dict[int, Row], ours: dict[int, Row], theirs: dict[int, Row], strategy: str
) -> tuple[list[Row], int]:
    """A three-way merge, cell by cell, and how many conflicts there are in it."""
    rows: list[Row] = []
    conflicts = 0

    def like(one: Any, two: Any) -> bool:
        return plain([one]) == plain([two])

    for key in {*base, *ours, *theirs}:
        was, one, two = base.get(key), ours.get(key), theirs.get(key)
        taken = one
        if like(one, two) or like(two, was):
            pass
        elif like(one, was):
            taken = two
        elif one is None or two is None:
            conflicts += 1
            taken = two if strategy == "theirs" else one
        else:
            cells: list[Any] = [key]
            for n in (1, 2):
                had: Any = object() if was is None else was[n]
                clash = not (like(one[n], two[n]) or like(two[n], had) or like(one[n], had))
                conflicts += clash
                from_two = like(one[n], had) or (clash and strategy == "theirs")
                cells.append(two[n] if from_two else one[n])
            taken = tuple(cells)  # type: ignore[assignment]
        if taken is not None:
            rows.append(taken)
    return rows, conflicts


class Machine(RuleBasedStateMachine):
    """What two processes do in turn."""

    actors: list[Any]
    place: Callable[[], str]
    done: ClassVar[dict[str, int]] = {}
    names = iter(range(1_000_000))

    def __init__(self) -> None:
        super().__init__()
        self.name = f"d{next(self.names)}"
        self.now = START
        self.plain = Plain()
        self.turn = 0
        self.erased = False
        self.location = self.place()
        for actor in self.actors:
            actor.open(self.location, START)

    def teardown(self) -> None:
        for actor in self.actors:
            actor.close()
        self.plain.close()

    def act(self, act: str, *given: Any) -> Any:
        """One step of the process whose turn it is."""
        self.now += HOUR
        self.turn += 1
        self.done[act] = self.done.get(act, 0) + 1
        return self.actors[self.turn % 2].do(act, self.now, *given)

    def refused(self, act: str, *given: Any) -> Refused | None:
        try:
            self.act(act, *given)
        except Refused as error:
            self.done[f"{act} refused"] = self.done.get(f"{act} refused", 0) + 1
            return error
        return None

    def ref(self, line: str) -> str:
        return self.name if line == "main" else f"{self.name}@{line}"

    def pick(self, data: Any, numbers: Any) -> Any:
        return data.draw(st.sampled_from(sorted(numbers)))

    # Rows

    @initialize(rows=FRAMES)
    def first(self, rows: dict[int, Any]) -> None:
        frame = [(key, *cells) for key, cells in rows.items()]
        number = self.act("save", self.name, frame, "append", None)
        self.plain.add(number, "main", frame, 0, self.now)
        self.check()

    def save(self, line: str, frame: list[Row], mode: Literal["append", "replace"]) -> None:
        head = self.plain.heads[line]
        was = list(self.plain.rows(head).values())
        number = self.act("save", self.ref(line), frame, mode, head)
        rows = was + frame if mode == "append" else frame
        if number != head:
            # Of a version that rows were erased from it is not always known what it is equal to.
            assert self.erased or not self.plain.is_now(head, rows)
            self.plain.add(number, line, rows, 0, self.now)
        self.check()

    @rule(data=st.data(), fresh=FRAMES, share=st.sampled_from([0.0, 0.1, 0.5]))
    def save_again(self, data: Any, fresh: dict[int, Any], share: float) -> None:
        """The whole frame: of the rows that are there some go, some change, some stay."""
        line = self.pick(data, self.plain.heads)
        rows = self.plain.rows(self.plain.heads[line])
        chance = data.draw(st.randoms(use_true_random=False))
        frame = {key: row for key, row in rows.items() if chance.random() >= share}
        new = {key: (key, *cells) for key, cells in fresh.items() if chance.random() < share}
        found = list((frame | new).values())
        if share == 0.5:
            chance.shuffle(found)
        self.save(line, found, "replace")

    @rule(data=st.data(), rows=FRAMES)
    def save_anything(self, data: Any, rows: dict[int, Any]) -> None:
        frame = [(key, *cells) for key, cells in rows.items()]
        self.save(self.pick(data, self.plain.heads), frame, "replace")

    @rule(data=st.data())
    def go_back(self, data: Any) -> None:
        """What an earlier version was is saved again."""
        number = self.pick(data, self.plain.times)
        frame = list(self.plain.rows(number).values())
        self.save(self.pick(data, self.plain.heads), frame, "replace")

    @rule(data=st.data(), rows=FRAMES)
    def append(self, data: Any, rows: dict[int, Any]) -> None:
        line = self.pick(data, self.plain.heads)
        there = self.plain.rows(self.plain.heads[line])
        frame = [(key, *cells) for key, cells in rows.items() if key not in there]
        if frame:
            self.save(line, frame, "append")

    @rule(data=st.data(), rows=FRAMES, cells=CELLS)
    def what_is_refused(self, data: Any, rows: dict[int, Any], cells: Any) -> None:
        """A key that is there already; a version that is not the latest."""
        line = self.pick(data, self.plain.heads)
        head = self.plain.heads[line]
        frame = [(key, *cells) for key, cells in rows.items()]
        error = self.refused("save", self.ref(line), frame, "replace", head + 1)
        assert error is not None
        assert error.args[0] == "Conflict"
        if there := self.plain.rows(head):
            # Another one beside it, or it could be an earlier commit done again.
            frame = [(self.pick(data, there), *cells), (1000 + self.turn, None, "")]
            error = self.refused("save", self.ref(line), frame, "append", None)
            assert error is not None
            assert error.args[0] == "InvalidInput"
        self.check()

    @rule(data=st.data(), one=FRAMES, two=FRAMES)
    def both_lines_change(self, data: Any, one: dict[int, Any], two: dict[int, Any]) -> None:
        branch = data.draw(NAMES)
        if branch not in self.plain.began:
            head = self.plain.heads["main"]
            self.act("branch", self.name, branch, head)
            self.plain.heads[branch] = self.plain.began[branch] = head
        for line, fresh in ((branch, one), ("main", two)):
            rows = self.plain.rows(self.plain.heads[line])
            rows |= {key: (key, *cells) for key, cells in fresh.items() if key % 3}
            gone = [key for key in fresh if not key % 3]
            self.save(line, [row for key, row in rows.items() if key not in gone], "replace")

    # Names

    @rule(data=st.data(), tag=st.sampled_from(["t1", "t2"]))
    def tag(self, data: Any, tag: str) -> None:
        number = self.pick(data, self.plain.times)
        self.act("tag", self.name, tag, number)
        self.plain.tags[tag] = number
        self.check()

    @precondition(lambda self: self.plain.tags)
    @rule(data=st.data())
    def untag(self, data: Any) -> None:
        tag = self.pick(data, self.plain.tags)
        self.act("untag", self.name, tag)
        del self.plain.tags[tag]
        self.check()

    @rule(data=st.data(), branch=NAMES)
    def begin_branch(self, data: Any, branch: str) -> None:
        number = self.pick(data, self.plain.times)
        if branch in self.plain.began:
            error = self.refused("branch", self.name, branch, number)
            assert (error is None) == (self.plain.began[branch] == number)
        else:
            self.act("branch", self.name, branch, number)
            self.plain.heads[branch] = self.plain.began[branch] = number
        self.check()

    @precondition(lambda self: self.plain.began)
    @rule(data=st.data())
    def delete_branch(self, data: Any) -> None:
        branch = self.pick(data, self.plain.began)
        self.act("delete_branch", self.name, branch)
        del self.plain.began[branch], self.plain.heads[branch]
        self.check()

    @precondition(lambda self: self.plain.began)
    @rule(data=st.data(), strategy=st.sampled_from(["refuse", "ours", "theirs"]))
    def merge(self, data: Any, strategy: str) -> None:
        branch = self.pick(data, self.plain.began)
        into = self.pick(data, self.plain.heads.keys() - {branch})
        ours, theirs = self.plain.heads[into], self.plain.heads[branch]
        both = self.plain.ancestors(ours) & self.plain.ancestors(theirs)
        parts = [self.plain.rows(n) for n in (max(both, default=0), ours, theirs)]
        rows, conflicts = merged(*parts, strategy)
        given = (self.name, branch, into, strategy)
        if not both or (conflicts and strategy == "refuse" and max(both) != theirs):
            error = self.refused("merge", *given)
            assert error is not None
            assert error.args[0] == "Conflict"
            assert both or "no version in common" in error.args[1]
        else:
            number, base, found = self.act("merge", *given)
            assert base == max(both)
            if base != theirs:
                assert found == conflicts
                self.plain.add(number, into, rows, theirs, self.now)
            assert number == self.plain.heads[into]
        self.check()

    # Upkeep

    @rule(days=st.sampled_from([0, 0.3]), last=st.integers(1, 4))
    def expire(self, days: float, last: int) -> None:
        wanted = self.plain.old(self.now + HOUR, days, last)
        found = self.act("expire", self.name, days, last)
        assert found == [f"{self.name}@{number}" for number in wanted]
        for number in wanted:
            self.plain.drop(number)
        self.check()

    @rule()
    def collect(self) -> None:
        _, left = self.act("collect")
        assert left == 0
        self.check()

    @rule(ids=st.lists(KEYS, min_size=1, max_size=3, unique=True))
    def erase(self, ids: list[int]) -> None:
        # Where no version has a row there is no column that could name anybody.
        rows, is_signed = self.act("erase", self.name, ids)
        assert is_signed
        gone = self.plain.forget(ids)
        # A row that several versions have in one block is one row.
        assert (rows > 0) == (gone > 0)
        assert rows <= gone
        self.erased = self.erased or gone > 0
        self.check()

    # What is there

    @rule(data=st.data())
    def export(self, data: Any) -> None:
        number = self.pick(data, self.plain.times)
        files = self.act("paths", self.name, number)
        assert self.plain.same_in_files(number, files)

    @rule()
    def read_every_byte(self) -> None:
        assert self.act("damaged") == []

    def check(self) -> None:
        """The other process reads everything."""
        other = self.actors[(self.turn + 1) % 2]
        plain_ = self.plain
        look: Look = other.do("look", self.now, self.name)
        assert look.rows.keys() == plain_.times.keys()
        for number, rows in look.rows.items():
            assert plain(rows) == plain(list(plain_.rows(number).values())), number
            assert look.counts[number] == len(rows)
        assert look.tags == plain_.tags
        assert look.branches == {b: (plain_.began[b], plain_.heads[b]) for b in plain_.began}
        assert look.latest == plain_.heads["main"]
        numbers = sorted(plain_.times)
        old, new = numbers[self.turn % len(numbers)], numbers[self.turn * 7 % len(numbers)]
        found = other.do("diff", self.now, self.name, old, new)
        keyed = {"id"}
        assert {
            (kind, key, _cells(one, keyed), _cells(two, keyed)) for kind, key, one, two in found
        } == plain_.diff(old, new)
        for line, head in plain_.heads.items():
            at = self.now - HOUR * (self.turn % 5)
            there = [n for n in plain_.line(head) if plain_.times[n] <= at]
            found_at = 0
            with suppress(Refused):
                found_at = other.do("at", self.now, self.ref(line), at)
            assert found_at == (there[0] if there else 0)


def _cells(row: dict[str, Any], without: set[str]) -> str:
    return text({n: NAN if v == "NaN" else v for n, v in row.items() if n not in without})


@pytest.fixture(scope="module")
def actors() -> Iterator[list[Any]]:
    with pytest.MonkeyPatch.context() as patch, child() as other:
        few_rows_are_many_blocks(patch)
        patch.setenv("EVERLOOP_SIGNING_KEY", "k")
        yield [Actor(), other]


def _play(actors: list[Any], place: Callable[[], str], examples: int, steps: int) -> dict[str, int]:
    played = type("Played", (Machine,), {"actors": actors, "place": staticmethod(place)})
    Machine.done = {}
    run_state_machine_as_test(
        played,
        settings=settings(
            max_examples=examples * LONGER,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    sys.stderr.write(f"{dict(sorted(Machine.done.items()))}\n")
    return Machine.done


def test_two_processes_do_what_plain_tables_do(actors: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        places = (f"{folder}/{n}/.everloop" for n in range(1_000_000))
        done = _play(actors, lambda: next(places), 4, 20)
    assert done["save"] >= 4


def test_on_postgresql_too(
    actors: list[Any], postgres_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERLOOP_OBJECTS", str(tmp_path / "objects"))
    monkeypatch.chdir(tmp_path)
    with child() as other:  # with this place of objects
        done = _play([actors[0], other], lambda: postgres_database, 2, 10)
    assert done["save"] >= 2
