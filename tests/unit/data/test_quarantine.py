"""What follows from a broken rule: rows repaired, set aside, released, and what the ledger says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

import everloop as ev
from everloop.core.schema import Check, Field, Schema
from everloop.data import functions
from everloop.errors import Conflict, InvalidInput, NotFound, UserCodeError
from everloop.workspace import Workspace

FIELDS = (Field("id", "int64", nullable=False), Field("t", "float64"), Field("place", "string"))
SET_ASIDE = Schema(
    (
        FIELDS[0],
        Field("t", "float64", le=60, on_fail="quarantine", owner="sensors"),
        Field("place", "string", among=("EWR", "JFK"), on_fail="drop"),
    ),
    checks=(Check("cold", ev.col.t > -60, on_fail="quarantine", reason="colder than ever"),),
    key=("id",),
)
MENDED = Schema(
    (FIELDS[0], Field("t", "float64", le=60, on_fail="repair", repair="celsius"), FIELDS[2]),
    key=("id",),
)


def rows(*values: tuple[int, float | None, str | None]) -> pa.Table:
    kinds = {"id": pa.int64(), "t": pa.float64(), "place": pa.string()}
    return pa.table(
        {name: pa.array([v[n] for v in values], k) for n, (name, k) in enumerate(kinds.items())}
    )


@pytest.fixture
def celsius() -> Iterator[None]:
    @ev.repair("celsius")
    def celsius(given: ev.Table) -> ev.Table:
        return given.with_columns(t="(t - 32) / 1.8")

    yield
    functions.forget("celsius")


def test_rows_are_set_aside_corrected_and_released_once(ws: Workspace) -> None:
    given = rows((1, 10.0, "EWR"), (2, 99.0, "EWR"), (3, -99.0, "JFK"), (4, 99.0, "XXX"))
    made = ws.data.commit("weather", given, schema=SET_ASIDE, mode="replace", owner="met")
    assert (made.rows, made.dropped) == (1, 3)
    # Done again, after a failure or with the next full extract: what waits is not set aside twice.
    ws.data.commit("weather", given, schema=SET_ASIDE, mode="replace")
    waiting = ws.data.read("weather.quarantine")
    assert ws.data.version("weather.quarantine").number == 1
    told = [
        (r["id"], r["quarantine_rule"], r["quarantine_reason"], r["quarantine_owner"])
        for r in waiting.to_pylist()
    ]
    assert sorted(told) == [
        (2, "t.le", "t is above 60", "sensors"),
        (3, "cold", "colder than ever", "met"),
        (4, "t.le", "t is above 60", "sensors"),
    ]
    # The row that another rule would drop waits too, and is in the ledger once.
    acts = {(c.rule, c.action, c.rows) for c in ws.data.changes(dataset="weather")}
    assert acts == {("t.le", "quarantined", 2), ("cold", "quarantined", 1)}
    frame = pl.from_arrow(waiting)
    assert isinstance(frame, pl.DataFrame)
    two = frame.filter(pl.col("id") == 2)
    with pytest.raises(InvalidInput, match=r"t\.le 1"):
        ws.data.fix_rows("weather", two.to_arrow())
    fixed = two.with_columns(t=37.2)
    version = ws.data.fix_rows("weather", fixed.to_arrow(), note="units were swapped")
    assert ws.data.read("weather").column("id").to_pylist() == [1, 2]
    assert (version.number, version.note) == (2, "units were swapped")
    assert sorted(ws.data.read("weather.quarantine").column("id").to_pylist()) == [3, 4]
    with pytest.raises(Conflict, match="are not open"):
        ws.data.fix_rows("weather", fixed.to_arrow())
    four = frame.filter(pl.col("id") == 4).with_columns(t=1.0).to_arrow()
    with pytest.raises(InvalidInput, match=r"place\.among"):  # nobody sees it leave again
        ws.data.fix_rows("weather", four)
    assert ws.data.version("weather").number == 2


def test_a_fix_needs_ids_that_wait(ws: Workspace) -> None:
    ws.data.commit("weather", rows((1, 10.0, "EWR")), schema=SET_ASIDE)
    with pytest.raises(InvalidInput, match="work_id"):
        ws.data.fix_rows("weather", rows((1, 1.0, "EWR")))
    ws.data.commit("weather", rows((2, 99.0, "EWR")), schema=SET_ASIDE)
    with pytest.raises(NotFound, match="no dataset 'wether'"):
        ws.data.fix_rows("wether", rows((2, 1.0, "EWR")))
    waiting = ws.data.read("weather.quarantine")
    with pytest.raises(InvalidInput, match="once for each row"):
        ws.data.fix_rows("weather", pa.concat_tables([waiting, waiting]))


@pytest.mark.parametrize("ws", ["sqlite"], indirect=True)
def test_repaired_rows_are_checked_again_and_in_the_ledger(ws: Workspace, celsius: None) -> None:
    ws.data.commit("weather", rows((1, 68.0, "EWR"), (2, 9.0, "JFK")), schema=MENDED)
    assert ws.data.read("weather").column("t").to_pylist() == [20.0, 9.0]
    [change] = ws.data.changes(dataset="weather")
    assert (change.action, change.rows) == ("changed", 1)
    assert change.reason == "t is above 60; corrected by celsius"
    [row] = ws.data.changed_rows(dataset="weather", where={"id": 1})
    assert row.row == {"id": 1, "t": 68.0, "t.new": 20.0}
    with pytest.raises(InvalidInput, match="also after its repair"):
        ws.data.commit("weather", rows((3, 900.0, "EWR")), schema=MENDED)


@pytest.mark.parametrize("ws", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("function", "error", "told"),
    [
        (lambda t: t.take([0]), InvalidInput, "gave 1 rows for 2"),
        (lambda t: t.select(["id", "t"]), InvalidInput, "gave the columns id, t"),
        (lambda t: t.with_columns(t=["a", "b"]), InvalidInput, "another schema"),
        (lambda t: 1 / 0, UserCodeError, "ZeroDivisionError"),
        (None, InvalidInput, "no repair 'celsius'"),
    ],
)
def test_a_repair_that_does_not_do_makes_no_version(
    ws: Workspace, function: Any, error: type[Exception], told: str
) -> None:
    if function is not None:
        ev.repair("celsius")(function)
    try:
        with pytest.raises(error, match=told):
            ws.data.commit("w", rows((1, 68.0, "EWR"), (2, 90.0, "JFK")), schema=MENDED)
    finally:
        functions.forget("celsius")
    assert ws.data.datasets() == []


def test_a_version_is_checked_against_more_than_its_own_rules(ws: Workspace) -> None:
    schema = Schema((*FIELDS[:2], Field("place", "string", owner="maps")), key=("id",))
    ws.data.commit("places", pa.table({"place": ["EWR"]}))
    ws.data.commit("weather", rows((1, 1.0, "EWR"), (2, None, "LGA")), schema=schema)
    ws.data.commit("weather", rows((3, 5.0, "JFK")))
    report = ws.data.check(
        "weather",
        [
            Check("known", kind="references", columns=("place",), to="places", owner="maps"),
            Check("complete", kind="null_share", columns=("t",), le=0.1, on_fail="warn"),
        ],
    )
    assert (report.ref, report.rows, report.ok) == ("weather@2", 3, False)
    assert [(r.rule, r.failed, r.reason) for r in report.broken] == [
        ("known", 2, "is not in places"),
        ("complete", 0, "null_share of t is 0.333333, above 0.1"),
    ]
    assert [row.key for row in report.broken[0].rows] == [{"id": 2}, {"id": 3}]
    assert ev.check("weather@1", [Check("known", "t > 0")]).broken[0].failed == 1
    with pytest.raises(InvalidInput, match="no dataset 'place'"):
        ws.data.check("weather", [Check("k", kind="references", columns=("place",), to="place")])


def test_a_figure_refuses_or_warns(ws: Workspace) -> None:
    mean = Check("mean t", kind="mean", columns=("t",), le=10, owner="met")
    with pytest.raises(InvalidInput, match="mean of t is 20, above 10"):
        ws.data.commit("w", rows((1, 20.0, "EWR")), schema=Schema(FIELDS, (mean,)))
    warns = Schema(FIELDS, (Check("mean t", kind="mean", columns=("t",), le=10, on_fail="warn"),))
    ws.data.commit("w", rows((1, 20.0, "EWR")), schema=warns)
    [change] = ws.data.changes(dataset="w")
    assert (change.action, change.rows, change.reason) == (
        "warned", 0, "mean of t is 20, above 10",
    )  # fmt: skip
