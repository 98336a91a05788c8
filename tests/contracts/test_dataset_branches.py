"""Lines of versions beside the main one: begun, committed to, merged by key, by path, forgotten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import everloop as ev
from everloop.access.policy import EmbeddedAuthorizer
from everloop.backends.blobs.local import LocalBlobs
from everloop.catalog.engine import Catalog
from everloop.core.context import using
from everloop.core.schema import Check, Field, Schema
from everloop.core.time import ManualClock
from everloop.data.service import DataService
from everloop.errors import Conflict, InvalidInput, NotFound
from everloop.lineage.service import LineageService
from everloop.workspace import Workspace
from tests.contracts.conftest import START
from tests.folders import make

KEYED = Schema(
    (
        Field("id", "int64", nullable=False),
        Field("x", "float64"),
        Field("s", "string"),
        Field("at", "timestamp"),
    ),
    key=("id",),
)
ROWS = {1: (0.5, "a"), 2: (1.5, "b"), 3: (2.5, None), 4: (None, "d")}
Row = tuple[float | None, str | None]


#: What is said of rows here hangs on no database.
anywhere = pytest.mark.parametrize("place", ["sqlite"], indirect=True)


def table(rows: dict[int, Row], **more: list[Any]) -> pa.Table:
    return pa.table(
        {
            "id": pa.array(list(rows), pa.int64()),
            "x": pa.array([x for x, _ in rows.values()], pa.float64()),
            "s": pa.array([s for _, s in rows.values()], pa.string()),
            "at": pa.array([START] * len(rows), pa.timestamp("us", tz="UTC")),
            **more,
        }
    )


def read(data: DataService, ref: str) -> dict[int, Row]:
    version = data.find(ref)
    rows = data.read(version.dataset, version.number).to_pylist()
    return {row["id"]: (row["x"], row["s"]) for row in rows}


def commit(data: DataService, rows: dict[int, Row], branch: str = "main", **more: Any) -> Any:
    return data.commit("d", table(rows), schema=KEYED, mode="replace", branch=branch, **more)


# --- lines ----------------------------------------------------------------------------------------


def test_a_branch_is_a_line_that_nobody_reads_who_does_not_name_it(
    data: DataService, catalog: Catalog, clock: ManualClock
) -> None:
    commit(data, ROWS)
    clock.advance(days=1)
    commit(data, ROWS | {1: (0.75, "a")})
    clock.advance(days=1)
    line = data.branch("d", "fix", at=1, note="the weather")
    assert (line.base, line.number, line.actor, line.ref) == (1, 1, "tester", "d@fix")
    assert data.branch("d", "fix", at="2013-01-01") == line, "once more is the same"
    made = commit(data, ROWS | {9: (9.0, "z")}, "fix")
    assert (made.number, made.branch, made.parent) == (3, "fix", 1)
    clock.advance(days=1)
    main = commit(data, ROWS | {1: (0.75, "A")})
    assert (main.number, main.parent) == (4, 2)
    assert data.datasets()[0].latest == 4
    assert data.version("d").number == data.find("d@main").number == 4
    assert data.find("d@fix").number == 3
    assert sorted(read(data, "d@fix")) == [1, 2, 3, 4, 9]
    assert [v.number for v in data.versions("d")] == [1, 2, 4]
    assert [v.number for v in data.versions("d", branch="fix")] == [1, 3]
    assert [v.number for v in data.versions("d", branch=None)] == [1, 2, 3, 4]
    # By time: the main line does not see the branch, nor the branch what came later beside it.
    assert data.version_at("d", "2013-01-03T12:00:00").number == 2
    assert data.version_at("d", "2013-01-02T12:00:00", branch="fix").number == 1
    assert data.find("d@fix@2013-01-09T00:00:00").number == 3
    kinds = [event.kind for event in catalog.events() if event.kind.startswith("dataset.")]
    assert kinds == [
        "dataset.VersionCommitted",
        "dataset.VersionCommitted",
        "dataset.BranchMade",
        "dataset.BranchCommitted",
        "dataset.VersionCommitted",
    ], "triggers listen to the main line"
    data.tag("d", "kept", 3)
    with pytest.raises(Conflict, match="expected at version 1"):
        data.delete_branch("d", "fix", expected=1)
    data.delete_branch("d", "fix", expected=3)
    data.delete_branch("d", "fix")
    assert data.branches("d") == []
    assert data.find("d@kept").number == 3, "its versions stay"
    assert 9 in read(data, "d@3")
    with pytest.raises(NotFound, match="tag or branch of dataset d called"):
        data.find("d@fix")
    # A branch of the old name has nothing to do with it.
    data.branch("d", "fix")
    assert [v.number for v in data.versions("d", branch="fix")] == [1, 2, 4]


def test_names_that_would_mean_two_things_are_refused(data: DataService) -> None:
    commit(data, ROWS)
    data.tag("d", "q1", 1)
    data.branch("d", "fix")
    commit(data, ROWS | {5: (None, None)})
    with pytest.raises(Conflict, match="has a tag called q1"):
        data.branch("d", "q1")
    with pytest.raises(Conflict, match="has a branch called fix"):
        data.tag("d", "fix", 1)
    with pytest.raises(Conflict, match="began at version 1"):
        data.branch("d", "fix", at=2)
    for name in ("main", "latest", "7", "a b", "", "../x"):
        with pytest.raises(InvalidInput, match="is no name of a branch"):
            data.branch("d", name)
    with pytest.raises(NotFound, match="branch of dataset d called 'fox'") as refused:
        commit(data, ROWS, "fox")
    assert "fix" in str(refused.value)
    with pytest.raises(NotFound, match="no version 9"):
        data.branch("d", "later", at=9)
    with pytest.raises(InvalidInput):
        data.branch("d", "later", at="no-such-tag")


def test_plain_functions_take_a_branch_by_name(tmp_path: Path, clock: ManualClock) -> None:
    with ev.open(tmp_path / ".everloop", clock=clock, actor="tester") as ws, using(ws):
        ev.commit("d", table(ROWS), schema=KEYED)
        ws.data.branch("d", "fix")
        clock.advance(days=1)
        ev.commit("d@fix", table(ROWS | {7: (7.0, "g")}))
        assert len(ev.read("d")) == 4
        assert len(ev.read("d@fix")) == 5
        assert ev.read("d@fix").sources[0].version == 2
        assert ev.read("d@fix", at="2013-01-01").sources[0].version == 1
        make(tmp_path / "images", {"a": b"1"})
        ev.commit("photos", tmp_path / "images")
        ws.data.branch("photos", "more")
        make(tmp_path / "images", {"b": b"2"})
        ev.commit("photos@more", tmp_path / "images")
        assert (len(ev.read("photos")), len(ev.read("photos@more"))) == (1, 2)


# --- merge ----------------------------------------------------------------------------------------


def test_rows_and_columns_that_one_line_changed_are_merged(
    data: DataService, lineage: LineageService, catalog: Catalog
) -> None:
    commit(data, ROWS)
    data.branch("d", "fix")
    commit(data, {1: (0.5, "A"), 2: (1.5, "b"), 3: (2.5, None), 8: (8.0, "new")}, "fix")
    commit(data, {1: (99.0, "a"), 2: (1.5, "B"), 7: (7.0, "g"), 4: (None, "d")})
    done = data.merge("d", "fix", note="mended")
    made = done.version
    assert (done.base, done.ours, done.theirs, done.conflicted) == (1, 3, 2, 0)
    assert (made.number, made.parent, made.merged, made.branch) == (4, 3, 2, "main")
    assert (made.note, made.author) == ("mended", "tester")
    merged = {1: (99.0, "A"), 2: (1.5, "B"), 8: (8.0, "new"), 7: (7.0, "g")}
    assert read(data, "d") == merged, "3 was removed on one line, 4 on the other"
    assert made.digest == commit(data, merged).digest, "equal content, equal digest"
    edges = {(e.source, e.kind) for e in lineage.upstream("dataset:d@4", depth=1).edges}
    assert edges == {("dataset:d@3", "replaced"), ("dataset:d@2", "merged")}
    told = [e.body for e in catalog.events() if e.kind == "dataset.VersionCommitted"][-1]
    assert (told["mode"], told["merged"]) == ("merge", 2)
    # The branch goes on, and only what is new of it comes.
    assert data.merge("d", "fix").version.number == 4, "nothing is lacking"
    commit(data, read(data, "d@fix") | {9: (9.0, "i")}, "fix")
    again = data.merge("d", "fix")
    assert (again.base, again.conflicted) == (2, 0)
    assert read(data, "d") == merged | {9: (9.0, "i")}
    # And the other way round it is taken as it is.
    back = data.merge("d", "main", into="fix")
    assert (back.version.branch, back.version.digest) == ("fix", again.version.digest)
    assert read(data, "d@fix") == read(data, "d")


def test_what_both_changed_is_named_and_decided_by_a_strategy(data: DataService) -> None:
    commit(data, ROWS)
    data.branch("d", "fix")
    commit(data, {1: (5.0, "t"), 2: (2.0, "t"), 3: (2.5, "t"), 6: (None, "six")}, "fix")
    commit(data, {1: (6.0, "a"), 2: (2.0, "o"), 4: (4.0, "d"), 6: (6.0, "six")})
    with pytest.raises(Conflict, match="5 times") as refused:
        data.merge("d", "fix")
    assert data.version("d").number == 3, "nothing was made"
    found = {
        (c["kind"], c["key"]["id"], c["column"]): (c["base"], c["ours"], c["theirs"])
        for c in refused.value.details["conflicts"]
    }
    assert found == {
        ("value", 1, "x"): (0.5, 6.0, 5.0),
        ("value", 2, "s"): ("b", "o", "t"),
        ("value", 6, "x"): (None, 6.0, None),
        ("row", 3, ""): ("there", "removed", "changed"),
        ("row", 4, ""): ("there", "changed", "removed"),
    }
    assert "id 1 x: 0.5 became 6.0 and 5.0" in str(refused.value)
    data.branch("d", "ours")
    done = data.merge("d", "fix", into="ours", strategy="ours")
    assert (done.conflicted, len(done.conflicts), done.version.branch) == (5, 5, "ours")
    assert read(data, "d@ours") == {
        1: (6.0, "t"), 2: (2.0, "o"), 4: (4.0, "d"), 6: (6.0, "six"),
    }, "the text of 1 only the branch had changed"  # fmt: skip
    data.merge("d", "fix", strategy="theirs")
    assert read(data, "d") == {1: (5.0, "t"), 2: (2.0, "t"), 3: (2.5, "t"), 6: (None, "six")}


@anywhere
def test_rows_keep_their_places_between_rows_that_the_other_line_changed(
    data: DataService,
) -> None:
    rows: dict[int, Row] = {n: (float(n), "a") for n in range(30)}
    commit(data, rows)
    data.branch("d", "fix")
    commit(data, {n: (x, "b" if n % 3 else s) for n, (x, s) in rows.items()}, "fix")
    commit(data, {n: (x if n % 2 else -1.0, s) for n, (x, s) in rows.items()})
    data.merge("d", "fix")
    found = read(data, "d")
    assert list(found) == list(range(30))
    assert found == {n: (float(n) if n % 2 else -1.0, "b" if n % 3 else "a") for n in range(30)}


@anywhere
def test_what_was_merged_and_taken_back_stays_taken_back(data: DataService) -> None:
    commit(data, ROWS)
    data.branch("d", "fix")
    both = ROWS | {1: (1.0, "both")}
    commit(data, both, "fix")
    commit(data, both)
    done = data.merge("d", "fix")
    assert (done.version.merged, done.version.digest) == (2, data.version("d", 3).digest)
    commit(data, ROWS, "fix")
    data.merge("d", "fix")
    assert read(data, "d") == ROWS


@anywhere
def test_schemas_are_merged_by_column(data: DataService) -> None:
    def fields(*more: Field, **replaced: Field) -> Schema:
        kept = [replaced.get(field.name, field) for field in KEYED.fields]
        return Schema((*kept, *more), key=("id",))

    commit(data, ROWS)
    data.branch("d", "wider")
    theirs = fields(Field("wind", "float64"), x=Field("x", "float64", unit="mile"))
    more = {"wind": pa.array([1.0, None, 3.0, 4.0])}
    data.commit("d", table(ROWS, **more), schema=theirs, mode="replace", branch="wider")
    ours = fields(Field("rain", "int32"))
    rain = {"rain": pa.array([10, 20, 30, 40, 50], pa.int32())}
    changed = ROWS | {2: (22.0, "b"), 5: (5.0, "e")}
    data.commit("d", table(changed, **rain), schema=ours, mode="replace")
    made = data.merge("d", "wider").version
    assert made.schema == fields(
        Field("rain", "int32"), Field("wind", "float64"), x=Field("x", "float64", unit="mile")
    )
    rows = {row.pop("id"): row for row in data.read("d").to_pylist()}
    assert [rows[1][name] for name in ("x", "rain", "wind")] == [0.5, 10, 1.0]
    assert [rows[2][name] for name in ("x", "rain", "wind")] == [22.0, 20, None]
    assert [rows[5][name] for name in ("x", "rain", "wind")] == [5.0, 50, None]
    # What both changed of one column is told, and so is a change in a column that went.
    data.branch("d", "narrow")
    less = data.read("d").drop_columns(["rain"])
    kept = tuple(field for field in made.schema.fields if field.name != "rain")
    narrow = Schema((*kept[:-1], Field("wind", "float64", unit="knot")), key=("id",))
    data.commit("d", less, schema=narrow, mode="replace", branch="narrow")
    at = data.read("d").schema.get_field_index("rain")
    wetter = data.read("d").set_column(at, "rain", pa.array([11, 20, 30, 40, 50], pa.int32()))
    wide = Schema((*made.schema.fields[:-1], Field("wind", "float64", unit="m/s")), key=("id",))
    data.commit("d", wetter, schema=wide, mode="replace")
    with pytest.raises(Conflict, match="2 times") as refused:
        data.merge("d", "narrow")
    told = {c["column"]: (c["ours"], c["theirs"]) for c in refused.value.details["conflicts"]}
    assert told == {
        "wind": ("float64, unit m/s", "float64, unit knot"),
        "rain": ("changed", "dropped"),
    }
    merged = data.merge("d", "narrow", strategy="ours").version
    assert data.read("d", merged.number).column("rain").to_pylist()[0] == 11
    # Rows that each line holds to its rules may break them together.
    data.branch("d", "strict")
    rule = Schema(
        merged.schema.fields, key=("id",), checks=(Check("cap", "x <= 100 OR x IS NULL"),)
    )
    data.commit("d", data.read("d"), schema=rule, mode="replace", branch="strict")
    at = data.read("d").schema.get_field_index("x")
    high = data.read("d").set_column(at, "x", pa.array([1e3, 0, 0, 0, 0], pa.float64()))
    data.commit("d", high, mode="replace")
    with pytest.raises(InvalidInput, match="cap 1"):
        data.merge("d", "strict")


@anywhere
def test_tables_without_a_key_are_merged_where_that_has_one_answer(data: DataService) -> None:
    def log(*values: int) -> pa.Table:
        return pa.table({"n": pa.array(values, pa.int64())})

    data.commit("d", log(1, 2))
    data.branch("d", "more")
    data.commit("d", log(3), branch="more")
    data.commit("d", log(4))
    assert data.read("d", data.merge("d", "more").version.number).to_pydict() == {"n": [1, 2, 4, 3]}
    data.commit("d", log(5), branch="more", mode="replace")
    data.commit("d", log(6))
    with pytest.raises(Conflict, match="table: '3 rows' became '5 rows' and '1 rows'"):
        data.merge("d", "more")
    assert data.read("d", data.merge("d", "more", strategy="theirs").version.number).num_rows == 1


@anywhere
def test_a_merge_that_lost_a_race_looks_again(
    catalog: Catalog, blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DataService(catalog, blobs, EmbeddedAuthorizer())
    commit(data, ROWS)
    data.branch("d", "fix")
    commit(data, ROWS | {1: (1.0, "fix")}, "fix")
    commit(data, ROWS | {2: (2.0, "main")})
    from everloop.data import merge

    real, raced = merge.merged, []

    def slow(*args: Any, **more: Any) -> Any:
        done = real(*args, **more)
        if not raced:
            raced.append(commit(data, ROWS | {2: (2.0, "main"), 3: (3.0, "raced")}))
        return done

    monkeypatch.setattr(merge, "merged", slow)
    done = data.merge("d", "fix")
    assert done.ours == raced[0].number
    assert read(data, "d") == ROWS | {1: (1.0, "fix"), 2: (2.0, "main"), 3: (3.0, "raced")}
    with pytest.raises(Conflict, match="expected at version 1"):
        data.merge("d", "fix", expect=1)


_ROWS = st.dictionaries(
    st.integers(0, 5),
    st.tuples(
        st.sampled_from([None, 0.0, -0.0, 1.0, float("nan")]), st.sampled_from([None, "", "s"])
    ),
    max_size=6,
)


def _same(one: object, two: object) -> bool:
    return one == two or (one != one and two != two)


def _model(base: Any, ours: Any, theirs: Any, strategy: str) -> tuple[dict[int, Row], int]:
    """A three-way merge, cell by cell, as one would write it down."""
    merged, conflicts = {}, 0
    for key in {*base, *ours, *theirs}:
        was, one, two = base.get(key), ours.get(key), theirs.get(key)

        def like(a: Any, b: Any) -> bool:
            if a is None or b is None:
                return a is b
            return all(_same(x, y) for x, y in zip(a, b, strict=True))

        if like(one, two) or like(two, was):
            taken = one
        elif like(one, was):
            taken = two
        elif one is None or two is None:
            conflicts += 1
            taken = two if strategy == "theirs" else one
        else:
            cells = []
            for n in range(2):
                had = (object(),) if was is None else (was[n],)
                if _same(one[n], two[n]) or _same(two[n], had[0]):
                    cells.append(one[n])
                elif _same(one[n], had[0]):
                    cells.append(two[n])
                else:
                    conflicts += 1
                    cells.append(two[n] if strategy == "theirs" else one[n])
            taken = tuple(cells)
        if taken is not None:
            merged[key] = taken
    return merged, conflicts


@settings(max_examples=60, deadline=None)
@given(base=_ROWS, ours=_ROWS, theirs=_ROWS, strategy=st.sampled_from(["ours", "theirs"]))
def test_a_merge_is_what_one_would_write_down_cell_by_cell(
    merging: DataService, base: Any, ours: Any, theirs: Any, strategy: Any
) -> None:
    name = f"d{len(merging.datasets())}"

    def put(rows: dict[int, Row], branch: str = "main") -> None:
        merging.commit(name, table(rows), schema=KEYED, mode="replace", branch=branch)

    put(base)
    merging.branch(name, "fix")
    put(theirs, "fix")
    put(ours)
    wanted, conflicts = _model(base, ours, theirs, strategy)
    done = merging.merge(name, "fix", strategy=strategy)
    found = read(merging, name)
    assert str(sorted(found.items())).replace("-0.0", "0.0") == str(sorted(wanted.items())).replace(
        "-0.0", "0.0"
    )
    if done.version.merged:
        assert done.conflicted == conflicts
    if conflicts and done.version.merged:
        assert len(done.conflicts) == conflicts


@pytest.fixture(scope="module")
def merging(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("merging")
    catalog = Catalog(f"sqlite:///{folder}/catalog.sqlite", clock=ManualClock(START), actor="t")
    yield DataService(catalog, LocalBlobs(folder / "objects"), EmbeddedAuthorizer())
    catalog.close()


# --- files ----------------------------------------------------------------------------------------


def test_directories_are_merged_by_path(tmp_path: Path, clock: ManualClock) -> None:
    images = tmp_path / "images"

    def put(ref: str, **files: bytes | None) -> None:
        for path, content in files.items():
            where = images / path.replace("__", "/")
            where.parent.mkdir(parents=True, exist_ok=True)
            where.unlink(missing_ok=True) if content is None else where.write_bytes(content)
        ev.commit(ref, images)

    with ev.open(tmp_path / ".everloop", clock=clock, actor="tester") as ws, using(ws):
        start = {"a__1": b"1", "a__2": b"2", "a__3": b"3", "c": b"c"}
        put("photos", **start)  # type: ignore[arg-type]
        ws.data.branch("photos", "fix")
        put("photos@fix", a__1=b"fixed", b__new=b"new", c=None)
        put("photos", a__1=b"1", a__2=b"main", b__new=None, c=b"c", d=b"d")
        done = ws.data.merge("photos", "fix")
        found = ev.read("photos")
        wanted = {
            "a/1": b"fixed", "a/2": b"main", "a/3": b"3", "b/new": b"new", "d": b"d",
        }  # fmt: skip
        assert {path: found[path] for path in found} == wanted
        assert (done.version.parent, done.version.merged) == (3, 2)
        assert (done.version.files, done.version.size) == (5, 14)
        assert ws.files.verify().damaged == ()
        # Both changed one path; and one made a directory where the other made a file.
        ws.data.merge("photos", "main", into="fix")
        ev.read("photos").checkout(images, force=True)
        put("photos@fix", a__1=b"theirs", e__f=b"a directory")
        put("photos", a__1=b"ours", e__f=None)
        (images / "e").rmdir()
        put("photos", e=b"a file")
        with pytest.raises(Conflict, match="2 times") as refused:
            ws.data.merge("photos", "fix")
        assert [c["path"] for c in refused.value.details["conflicts"]] == ["a/1", "e"]
        ws.data.branch("photos", "theirs")
        ws.data.merge("photos", "fix", into="theirs", strategy="theirs")
        found = ev.read("photos@theirs")
        assert (found["a/1"], found["e/f"]) == (b"theirs", b"a directory")
        ws.data.merge("photos", "fix", strategy="ours")
        found = ev.read("photos")
        assert (found["a/1"], found["e"]) == (b"ours", b"a file")


# --- duplicate keys -------------------------------------------------------------------------------


@anywhere
def test_of_rows_with_one_key_the_last_may_stay(data: DataService) -> None:
    doubled = pa.concat_tables([table(ROWS), table({2: (22.0, "last"), 1: (11.0, "last")})])
    with pytest.raises(InvalidInput, match=r"key\.unique 2") as refused:
        data.commit("d", doubled, schema=KEYED)
    told = [fault.message for fault in refused.value.faults]
    assert told == [f"the key (id) = {n} stands in an earlier row already" for n in (2, 1)]
    made = data.commit("d", doubled, schema=KEYED, mode="replace", on_duplicate="last")
    assert (made.rows, made.dropped) == (4, 2)
    assert read(data, "d") == ROWS | {2: (22.0, "last"), 1: (11.0, "last")}
    [left] = data.changed_rows(dataset="d", where={"id": 2})
    assert (left.rule, left.action, left.row["s"]) == ("key.unique", "dropped", "b")
    assert "a later row, which stays" in left.reason
    # Keys of earlier versions are no doubles within the frame.
    with pytest.raises(InvalidInput, match="stands in d@1 already"):
        data.commit("d", table({1: (0.0, "x")}), on_duplicate="last")


def test_a_merge_sets_no_row_aside(ws: Workspace) -> None:
    schema = Schema(
        (Field("id", "int64"), Field("low", "float64"), Field("high", "float64")),
        key=("id",),
        checks=(Check("order", "low <= high", on_fail="quarantine"),),
    )
    ws.data.commit("d", pa.table({"id": [1], "low": [1.0], "high": [5.0]}), schema=schema)
    ws.data.branch("d", "side")
    ws.data.commit("d", pa.table({"id": [1], "low": [4.0], "high": [5.0]}), mode="replace")
    lower = pa.table({"id": [1], "low": [1.0], "high": [2.0]})
    ws.data.commit("d", lower, mode="replace", branch="side")
    with pytest.raises(InvalidInput, match="set rows aside: order"):
        ws.data.merge("d", "side")
    assert ws.data.read("d")["high"].to_pylist() == [5.0]
