"""DataService on each database, called directly and through the wire."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from sqlalchemy import select

from everloop.backends.blobs.local import LocalBlobs
from everloop.catalog.engine import Catalog
from everloop.catalog.tables import lineage_edges, objects
from everloop.core.schema import Check, Field, Schema
from everloop.core.time import ManualClock
from everloop.data.service import DataService
from everloop.errors import BackendError, Conflict, InvalidInput, NotFound

KEYED = Schema((Field("id", "int64", nullable=False), Field("x", "float64")), key=("id",))
PLAIN = Schema((Field("id", "int64"), Field("x", "float64")))


def rows(ids: list[int | None], x: list[float | None] | None = None) -> pa.Table:
    values = [float(i or 0) for i in ids] if x is None else x
    return pa.table({"id": pa.array(ids, pa.int64()), "x": pa.array(values, pa.float64())})


def kinds(catalog: Catalog) -> list[str]:
    return [event.kind for event in catalog.events()]


# Versions


def test_first_commit_makes_dataset_and_version(data: DataService, clock: ManualClock) -> None:
    version = data.commit("flights", rows([1, 2]), owner="ops@example.org", note="first")
    assert (version.ref, version.rows, version.parent) == ("flights@1", 2, 0)
    assert (version.author, version.note, version.created_at) == ("tester", "first", clock.now())
    [dataset] = data.datasets()
    assert (dataset.name, dataset.owner, dataset.latest) == ("flights", "ops@example.org", 1)
    assert data.read("flights").equals(rows([1, 2]))


def test_append_keeps_earlier_blocks_and_order(data: DataService) -> None:
    first = data.commit("d", rows([3, 1]))
    second = data.commit("d", rows([2]))
    assert (second.number, second.parent) == (2, 1)
    assert second.blocks[: len(first.blocks)] == first.blocks
    assert data.read("d")["id"].to_pylist() == [3, 1, 2]
    assert data.read("d", 1)["id"].to_pylist() == [3, 1]


def test_replace_starts_anew(data: DataService) -> None:
    data.commit("d", rows([1, 2]))
    second = data.commit("d", rows([9]), mode="replace")
    assert (second.number, second.rows) == (2, 1)
    assert data.read("d", 1).num_rows == 2


def test_equal_content_makes_no_version(data: DataService, catalog: Catalog) -> None:
    first = data.commit("d", rows([1, 2]), mode="replace")
    assert data.commit("d", rows([1, 2]), mode="replace") == first
    shuffled_columns = rows([1, 2]).select(["x", "id"])
    assert data.commit("d", shuffled_columns, mode="replace") == first
    assert data.commit("d", rows([])) == first
    assert kinds(catalog) == ["dataset.VersionCommitted"]


def test_another_schema_is_another_version(data: DataService) -> None:
    first = data.commit("d", rows([1]), schema=PLAIN)
    second = data.commit("d", rows([1]), schema=KEYED, mode="replace")
    assert first.digest != second.digest
    assert [b.digest for b in first.blocks] == [b.digest for b in second.blocks]


def test_append_twice_without_key_keeps_both(data: DataService) -> None:
    data.commit("d", rows([1]))
    assert data.commit("d", rows([1])).rows == 2


def test_append_again_with_key_is_the_same_commit(data: DataService) -> None:
    data.commit("d", rows([1]), schema=KEYED)
    second = data.commit("d", rows([2]))
    assert data.commit("d", rows([1])) == second
    assert data.commit("d", rows([2])) == second


def test_empty_first_commit_has_no_blocks(data: DataService) -> None:
    version = data.commit("d", rows([]), schema=KEYED)
    assert (version.rows, version.blocks) == (0, ())
    assert data.read("d").schema.names == ["id", "x"]
    assert data.read("d").num_rows == 0
    assert data.commit("d", rows([1])).rows == 1


def test_large_frame_is_cut_into_blocks(data: DataService) -> None:
    version = data.commit("d", rows(list(range(1_200_000))), schema=KEYED)
    assert [block.rows for block in version.blocks] == [524_288, 524_288, 151_424]
    assert data.read("d", columns=["id"])["id"].to_pylist() == list(range(1_200_000))


def test_commit_tells_event_links_and_objects(data: DataService, catalog: Catalog) -> None:
    data.commit("d", rows([1]))
    version = data.commit("d", rows([2]), run_id="R1")
    event = catalog.events()[-1]
    assert (event.kind, event.subject) == ("dataset.VersionCommitted", "dataset:d@2")
    assert event.body["rows"] == 2
    assert event.body["added"] == 1
    assert event.body["run_id"] == "R1"
    with catalog.read() as tx:
        edges = {(e.source, e.target, e.kind) for e in tx.all(select(lineage_edges))}
        known = {row.digest for row in tx.all(select(objects.c.digest))}
    assert edges == {
        ("dataset:d@1", "dataset:d@2", "parent"),
        ("run:R1", "dataset:d@2", "produced"),
    }
    assert known == {block.digest for block in version.blocks}


@pytest.mark.parametrize("name", ["", "a b", "a/b", "../x", "x@1", "-x", "a" * 201, "ä", "x\n"])
def test_bad_name_is_refused(data: DataService, name: str) -> None:
    with pytest.raises(InvalidInput, match="no name of a dataset"):
        data.commit(name, rows([1]))


def test_expect_names_the_winner(data: DataService) -> None:
    data.commit("d", rows([1]), expect=0)
    data.commit("d", rows([2]), expect=1)
    with pytest.raises(
        Conflict, match=r"expected at version 1; the latest is d@2 by tester"
    ) as got:
        data.commit("d", rows([3]), expect=1)
    assert got.value.details == {"winner": 2}
    with pytest.raises(Conflict, match="there is none yet"):
        data.commit("new", rows([3]), expect=1)
    assert data.version("d").number == 2


# Reading


def test_unknown_names_offer_near_ones(data: DataService) -> None:
    data.commit("flights", rows([1]))
    with pytest.raises(NotFound, match="did you mean 'flights'"):
        data.version("flihgts")
    with pytest.raises(NotFound, match="did you mean 'flights'"):
        data.versions("fligts")
    with pytest.raises(NotFound, match="there are 1 to 1"):
        data.version("flights", 7)
    with pytest.raises(NotFound, match="did you mean 'id'"):
        data.read("flights", columns=["idd"])


def test_read_gives_columns_as_asked(data: DataService) -> None:
    data.commit("d", rows([1, 2]))
    assert data.read("d", columns=["x", "id"]).column_names == ["x", "id"]
    assert data.read("d", columns=["x"]).column_names == ["x"]


def test_damaged_block_is_not_read(data: DataService, blobs: LocalBlobs) -> None:
    version = data.commit("d", rows([1, 2]))
    blobs.path(version.blocks[0].digest).write_bytes(b"spoilt")
    blobs._verified.clear()
    with pytest.raises(BackendError, match="damaged"):
        data.read("d")


def test_every_field_type_reads_back_as_committed(data: DataService) -> None:
    at = datetime(2013, 7, 1, 12, 30, 15, 123456, tzinfo=UTC)
    columns = {
        "bool": pa.array([True, None]),
        "int8": pa.array([-128, None], pa.int8()),
        "int16": pa.array([-(2**15), None], pa.int16()),
        "int32": pa.array([-(2**31), None], pa.int32()),
        "int64": pa.array([-(2**63), 2**63 - 1]),
        "uint8": pa.array([255, None], pa.uint8()),
        "uint16": pa.array([2**16 - 1, None], pa.uint16()),
        "uint32": pa.array([2**32 - 1, None], pa.uint32()),
        "uint64": pa.array([2**64 - 1, None], pa.uint64()),
        "float32": pa.array([1.5, None], pa.float32()),
        "float64": pa.array([-0.0, float("inf")]),
        "string": pa.array(["", "ä\x00€😀"]),
        "binary": pa.array([b"", b"\x00\xff"]),
        "timestamp": pa.array([at, None], pa.timestamp("us", "UTC")),
        "date": pa.array([date(2013, 7, 1), date(1, 1, 1)]),
    }
    table = pa.table(columns)
    schema = Schema(tuple(Field(name, name) for name in columns))  # type: ignore[arg-type]
    data.commit("d", table, schema=schema)
    assert data.read("d").equals(table)
    assert data.read("d").schema == table.schema


# Refused frames


def test_refused_frame_makes_nothing(data: DataService, catalog: Catalog) -> None:
    schema = Schema((Field("id", "int64", nullable=False), Field("x", "float64", ge=0)))
    with pytest.raises(InvalidInput) as got:
        data.commit("d", rows([1, None, 3], [1.0, -1.0, -2.0]), schema=schema)
    assert [str(fault) for fault in got.value.faults] == [
        "rows[1].id: is null",
        "rows[1].x: -1.0 is below 0",
        "rows[2].x: -2.0 is below 0",
    ]
    assert got.value.details["counts"] == {"id.not_null": 1, "x.ge": 2}
    assert data.datasets() == []
    assert kinds(catalog) == []


def test_faults_of_columns_and_rows_come_together(data: DataService) -> None:
    schema = Schema((Field("a", "int64"), Field("b", "float64", le=1), Field("c", "string")))
    table = pa.table({"a": ["1"], "b": [2], "d": [0]})
    with pytest.raises(InvalidInput) as got:
        data.commit("d", table, schema=schema)
    paths = [fault.path for fault in got.value.faults]
    assert paths == ["a", "c", "d", "rows[0].b"]


def test_faults_are_capped_and_counted(data: DataService) -> None:
    schema = Schema((Field("id", "int64", le=-1), Field("x", "float64", le=4)))
    with pytest.raises(InvalidInput) as got:
        data.commit("d", rows(list(range(6000))), schema=schema)
    assert len(got.value.faults) == 1000
    assert got.value.details["total"] == 6000 + 5995
    assert str(got.value).count("\n") < 25


def test_repeated_key_within_the_frame_is_refused(data: DataService) -> None:
    with pytest.raises(
        InvalidInput, match=r"rows\[2\]\.id: the key \(id\) = 1 stands in an earlier row"
    ):
        data.commit("d", rows([1, 2, 1]), schema=KEYED)


def test_repeated_key_of_an_earlier_version_is_refused(data: DataService) -> None:
    data.commit("d", rows([1, 2, 3]), schema=KEYED)
    data.commit("d", rows([10, 12]))
    with pytest.raises(InvalidInput) as got:
        data.commit("d", rows([11, 3, 10]))
    assert [fault.path for fault in got.value.faults] == ["rows[1]", "rows[2]"]
    assert "stands in d@2 already" in got.value.faults[0].message
    assert data.version("d").number == 2


def test_repeated_key_is_numbered_as_given_after_drops(data: DataService) -> None:
    schema = Schema(
        (Field("id", "int64", nullable=False), Field("x", "float64", ge=0, on_fail="drop")),
        key=("id",),
    )
    data.commit("d", rows([1]), schema=schema)
    with pytest.raises(InvalidInput) as got:
        data.commit("d", rows([7, 8, 1], [-1.0, 0.0, 0.0]))
    assert [fault.path for fault in got.value.faults] == ["rows[2]"]


def test_replace_may_repeat_keys_of_earlier_versions(data: DataService) -> None:
    data.commit("d", rows([1, 2]), schema=KEYED)
    assert data.commit("d", rows([1, 3]), mode="replace").rows == 2


@pytest.mark.parametrize(
    ("frame", "fault"),
    [
        ({"a": pa.array([[1]])}, "list<"),
        ({"a": pa.array([None, None])}, "only nulls"),
        ({}, "no columns"),
    ],
)
def test_frame_without_field_types_is_refused(data: DataService, frame: Any, fault: str) -> None:
    with pytest.raises(InvalidInput, match=fault):
        data.commit("d", pa.table(frame))


# Schemas over time


def test_append_may_add_a_nullable_column(data: DataService) -> None:
    data.commit("d", rows([1]), schema=PLAIN)
    wider = Schema((*PLAIN.fields, Field("s", "string")))
    data.commit("d", rows([2]).append_column("s", pa.array(["new"])), schema=wider)
    assert data.read("d")["s"].to_pylist() == [None, "new"]
    assert data.read("d", columns=["s"])["s"].to_pylist() == [None, "new"]
    assert data.read("d", 1).column_names == ["id", "x"]


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ((Field("id", "int64"),), "x: is a column of d@1"),
        ((Field("id", "int32"), Field("x", "float64")), "id: is int64 in d@1, int32"),
        ((Field("id", "int64", nullable=False), Field("x", "float64")), "id: may be null in d@1"),
        ((*PLAIN.fields, Field("n", "int8", nullable=False)), "n: is new, so it must be nullable"),
    ],
)
def test_append_cannot_change_earlier_columns(
    data: DataService, fields: tuple[Field, ...], fault: str
) -> None:
    data.commit("d", rows([1]), schema=PLAIN)
    with pytest.raises(InvalidInput) as got:
        data.commit("d", rows([2]), schema=Schema(fields))
    assert fault in str(got.value)


def test_open_schema_takes_up_more_columns(data: DataService) -> None:
    schema = Schema((Field("id", "int64"),), extra="allow")
    data.commit("d", pa.table({"id": [1], "a": ["x"]}), schema=schema)
    data.commit("d", pa.table({"id": [2], "b": [True]}))
    assert data.read("d").to_pylist() == [
        {"id": 1, "a": "x", "b": None},
        {"id": 2, "a": None, "b": True},
    ]
    with pytest.raises(InvalidInput, match="a: wanted string, got int64"):
        data.commit("d", pa.table({"id": [3], "a": [5]}))


def test_later_commits_are_held_to_the_schema(data: DataService) -> None:
    data.commit("d", rows([1]), schema=KEYED)
    with pytest.raises(InvalidInput, match=r"rows\[0\]\.id: is null"):
        data.commit("d", rows([None]))


# The ledger

LEDGER = Schema(
    (
        Field("flight", "int64", nullable=False),
        Field("at", "timestamp"),
        Field("delay", "float64", ge=-60, on_fail="warn", owner="desk@example.org"),
        Field("tail", "string", nullable=False, on_fail="drop"),
    ),
    checks=(Check("left", "delay IS NOT NULL", on_fail="drop", reason="cancelled"),),
    key=("flight",),
)


def flights() -> pa.Table:
    start = datetime(2013, 1, 1, tzinfo=UTC)
    return pa.table(
        {
            "flight": [1545, 1714, 1141, 725],
            "at": pa.array([start + timedelta(hours=n) for n in range(4)]),
            "delay": [2.0, None, -90.0, None],
            "tail": ["N14228", "N24211", "N619AA", None],
        }
    )


def test_dropped_rows_stand_in_the_ledger(data: DataService) -> None:
    version = data.commit("flights", flights(), schema=LEDGER, owner="ops@example.org")
    assert (version.rows, version.dropped) == (2, 2)
    assert data.read("flights")["flight"].to_pylist() == [1545, 1141]
    found = {(c.rule, c.action, c.rows, c.reason, c.owner) for c in data.changes(dataset="flights")}
    assert found == {
        ("left", "dropped", 2, "cancelled", "ops@example.org"),
        ("tail.not_null", "dropped", 1, "tail is null", "ops@example.org"),
        ("delay.ge", "warned", 1, "delay is below -60", "desk@example.org"),
    }


def test_why_is_this_row_not_there(data: DataService) -> None:
    data.commit("flights", flights(), schema=LEDGER)
    [change] = data.changed_rows(dataset="flights", where={"flight": 1714})
    assert (change.rule, change.action, change.reason) == ("left", "dropped", "cancelled")
    assert change.scope == "dataset:flights@1"
    assert change.row == {
        "flight": 1714,
        "at": "2013-01-01T01:00:00+00:00",
        "delay": None,
        "tail": "N24211",
    }
    both = data.changed_rows(dataset="flights", where={"flight": 725})
    assert {change.rule for change in both} == {"left", "tail.not_null"}
    assert data.changed_rows(dataset="flights", where={"flight": 1545}) == []
    assert data.changed_rows(dataset="flights", where={"at": "2013-01-01T01:00", "flight": 1714})
    assert len(data.changed_rows(dataset="flights", where={"tail": None})) == 2
    assert len(data.changed_rows(dataset="flights", rule="left", limit=1)) == 1
    assert data.changed_rows(dataset="none such") == []


def test_bad_questions_to_the_ledger_are_explained(data: DataService) -> None:
    data.commit("flights", flights(), schema=LEDGER)
    with pytest.raises(NotFound, match="did you mean 'flight'"):
        data.changed_rows(dataset="flights", where={"fligth": 1})
    with pytest.raises(InvalidInput) as got:
        data.changed_rows(dataset="flights", where={"flight": "x", "delay": True})
    assert {fault.path for fault in got.value.faults} == {"where.flight", "where.delay"}


def test_repeated_commit_records_its_drops_once(data: DataService) -> None:
    data.commit("flights", flights(), schema=LEDGER)
    data.commit("flights", flights(), schema=LEDGER)
    assert len(data.changes(dataset="flights")) == 3


def test_commit_of_nothing_but_dropped_rows_is_recorded(data: DataService) -> None:
    first = data.commit("flights", flights().slice(0, 1), schema=LEDGER)
    assert data.commit("flights", flights().slice(1, 1)) == first
    [change] = data.changes(dataset="flights")
    assert (change.scope, change.rule) == ("dataset:flights@1", "left")


def test_step_changes_are_recorded_once(data: DataService, catalog: Catalog) -> None:
    arguments: dict[str, Any] = {
        "scope": "run:R1/clean",
        "dataset": "flights",
        "rule": "no_departure",
        "act": "dropped",
        "reason": "cancelled",
        "owner": "ops@example.org",
        "rows": pa.table({"flight": [7]}),
    }
    first = data.record_changes(**arguments)
    assert data.record_changes(**arguments) == first
    assert data.changes(scope="run:R1") == [first]
    assert data.changes(scope="run:R1/clean") == [first]
    assert data.changes(scope="run:R") == []
    assert kinds(catalog) == ["dataset.RowsChanged"]
    [row] = data.changed_rows(dataset="flights", where={"flight": 7})
    assert row.scope == "run:R1/clean"
    with pytest.raises(InvalidInput, match="rule: is empty"):
        data.record_changes(**{**arguments, "rule": ""})
