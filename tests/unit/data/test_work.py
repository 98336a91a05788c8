"""Work lists: who must correct what, how it is handed out, handed back, closed and dismissed."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import everloop as ev
from everloop.core.schema import Field, Schema
from everloop.core.work import WorkItem
from everloop.data.handed import ledger_rows, read_file, write_file
from everloop.errors import Conflict, InvalidInput, NotFound
from everloop.workspace import Workspace

DESK, SENSORS, OPS = "desk@example.org", "sensors@example.org", "ops@example.org"
FLIGHTS = Schema(
    (
        Field("flight", "int64", nullable=False),
        Field("at", "timestamp"),
        Field("delay", "float64", ge=-60, on_fail="warn", owner=DESK),
        Field("temp", "float64", le=130, on_fail="quarantine", owner=SENSORS),
        Field("mail", "string", pii="email"),
    ),
    key=("flight",),
)
START = datetime(2013, 1, 1, tzinfo=UTC)
ROWS = [
    {
        "flight": 1500 + n, "at": START + timedelta(hours=n), "delay": float(n),
        "temp": 50.0 + n, "mail": f"secret-{n}@example.org",
    }
    for n in range(10)
]  # fmt: skip


def rows(**changed: Any) -> list[dict[str, Any]]:
    """The ten rows, with values like ``temp_3=999.0`` in the place of theirs."""
    made = [dict(row) for row in ROWS]
    for what, value in changed.items():
        name, _, n = what.partition("_")
        made[int(n)][name] = value
    return made


def fill(ws: Workspace, **changed: Any) -> None:
    table = pa.Table.from_pylist(rows(**changed))
    ws.data.commit("flights", table, schema=FLIGHTS, mode="replace", owner=OPS)


def open_items(ws: Workspace, **asked: Any) -> list[tuple[str, str, Any, str]]:
    found: list[WorkItem] = list(ws.data.work(**asked).items)
    return sorted((i.kind, i.rule, i.key.get("flight"), i.owner) for i in found)


def handed(ws: Workspace, **changed: Any) -> pa.Table:
    """What the list gives out, with values like ``temp_1503=20.0`` in it."""
    given = ws.data.work_rows("flights").to_pylist()
    for what, value in changed.items():
        name, _, flight = what.partition("_")
        [row] = [row for row in given if row["flight"] == int(flight)]
        row[name] = value
    return pa.Table.from_pylist(given)


FINDING = {"flight": 1505, "rule": "label", "reason": "the model disagrees", "suggestion": "0"}


def test_a_work_list_tells_each_owner_what_to_correct(ws: Workspace) -> None:
    fill(ws, temp_3=999.0, delay_4=-90.0)
    assert ws.data.add_work("flights", [FINDING]) == 1
    assert ws.data.add_work("flights", [FINDING]) == 0
    assert open_items(ws) == [
        ("found", "label", 1505, OPS),
        ("quarantined", "temp.le", 1503, SENSORS),
        ("warned", "delay.ge", 1504, DESK),
    ]
    assert open_items(ws, owner=DESK) == [("warned", "delay.ge", 1504, DESK)]
    assert open_items(ws, rule="label", dataset="flights") == [("found", "label", 1505, OPS)]
    assert open_items(ws, dismissed=True) == []
    found = ws.data.work(limit=1)
    assert (found.total, len(found.items)) == (3, 1)
    assert sum(count.items for count in found.counts) == 3
    with pytest.raises(NotFound, match="did you mean"):
        ws.data.work(dataset="flihgts")


def test_a_file_is_handed_out_corrected_and_handed_back_as_a_version(
    ws: Workspace, tmp_path: Path
) -> None:
    fill(ws, temp_3=999.0, delay_4=-90.0)
    ws.data.add_work("flights", [FINDING])
    for end in (".csv", ".parquet"):
        file = tmp_path / f"work{end}"
        assert write_file(file, [ws.data.work_rows("flights")]) == 3
        out = read_file(file)
        assert set(out.column("mail").to_pylist()) == {"(masked)"}
    edited = (tmp_path / "work.csv").read_text()
    for old, new in ((",999,", ",43.5,"), (",-90,", ",4.5,"), (",5,55,", ",0,,")):
        assert old in edited
        edited = edited.replace(old, new)
    (tmp_path / "work.csv").write_text(edited)
    version = ws.data.fix_rows("flights", read_file(tmp_path / "work.csv"), note="by hand")
    assert (version.ref, version.rows, version.note) == ("flights@2", 10, "by hand")
    now = {row["flight"]: row for row in ws.data.read("flights").to_pylist()}
    wanted = rows(temp_3=43.5, delay_4=4.5, delay_5=0.0, temp_5=None)
    assert now == {row["flight"]: row for row in wanted}  # also what was masked
    assert ws.data.work().total == 0
    closed = ws.data.changed_rows(scope="dataset:flights@2", act="fixed")
    told = {(c.rule, c.owner, c.row["flight"]) for c in closed}
    assert told == {("temp.le", SENSORS, 1503), ("delay.ge", DESK, 1504), ("label", OPS, 1505)}
    assert all(c.reason.endswith("; fixed by tester: by hand") for c in closed)
    [temp] = [c.row for c in closed if c.rule == "temp.le"]
    assert (temp["temp"], temp["temp.new"]) == (999.0, 43.5)
    [event] = ws.lineage.events(kind="dataset.WorkClosed", limit=9)
    assert (event.actor, event.body["rows"]) == ("tester", 3)


def test_a_fix_that_is_none_is_refused_with_all_faults(ws: Workspace) -> None:
    fill(ws, temp_3=999.0, temp_6=500.0, delay_4=-90.0)
    ws.data.add_work("flights", [FINDING])
    bad = handed(ws, temp_1503=131.0, temp_1506=132.0, delay_1504=-61.0, delay_1505=1.0)
    with pytest.raises(InvalidInput) as got:
        ws.data.fix_rows("flights", bad)
    assert [str(fault) for fault in got.value.faults] == [
        "rows[2]: delay is below -60", "rows[0]: temp is above 130", "rows[1]: temp is above 130",
    ]  # fmt: skip
    with pytest.raises(InvalidInput, match="as it was"):
        ws.data.fix_rows("flights", handed(ws, temp_1503=1.0, temp_1506=1.0, delay_1504=1.0))
    with pytest.raises(InvalidInput, match="names the row"):
        ws.data.fix_rows("flights", handed(ws, flight_1504=9))
    given = handed(ws)
    texts = given.set_column(7, "at", pa.array(["soon"] * given.num_rows))
    with pytest.raises(InvalidInput, match="is no timestamp"):
        ws.data.fix_rows("flights", texts)
    with pytest.raises(NotFound, match="did you mean 'delay'"):
        ws.data.fix_rows(
            "flights", given.rename_columns([*given.column_names[:-3], "dely", "t", "m"])
        )
    with pytest.raises(InvalidInput, match="once for each row"):
        ws.data.fix_rows("flights", pa.concat_tables([given, given]))
    with pytest.raises(InvalidInput, match="work_id"):
        ws.data.fix_rows("flights", given.drop_columns(["work_id"]))
    assert ws.data.version("flights").number == 1
    assert ws.data.work().total == 4


def test_of_two_who_fix_the_same_item_the_second_is_told_of_the_first(ws: Workspace) -> None:
    fill(ws, temp_3=999.0)
    given = handed(ws, temp_1503=20.0)
    ws.data.fix_rows("flights", given)
    with pytest.raises(Conflict, match="fixed by tester") as got:
        ws.data.fix_rows("flights", given)
    assert got.value.details["winner"]["version"] == "flights@2"
    stranger = given.set_column(0, "work_id", pa.array(["nobody knows me"]))
    with pytest.raises(Conflict, match="never here"):
        ws.data.fix_rows("flights", stranger)


@pytest.mark.parametrize("ws", ["sqlite", "postgres"], indirect=True)
def test_of_many_who_fix_the_same_item_at_once_one_does(ws: Workspace) -> None:
    fill(ws, temp_3=999.0)
    given = [handed(ws, temp_1503=float(n)) for n in range(4)]
    ended: list[Any] = []
    ready = threading.Barrier(len(given))

    def fix(rows: pa.Table) -> None:
        ready.wait()
        try:
            ended.append(ws.data.fix_rows("flights", rows).ref)
        except Conflict as error:
            ended.append(error.details["winner"]["version"])

    threads = [threading.Thread(target=fix, args=(rows,)) for rows in given]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended == ["flights@2"] * 4
    assert ws.data.read("flights").num_rows == 10
    [entry] = ws.data.changes(act="fixed")
    assert entry.rows == 1


def test_a_row_that_changed_since_it_was_handed_out_is_not_overwritten(ws: Workspace) -> None:
    fill(ws, delay_4=-90.0)
    given = handed(ws, delay_1504=4.0)
    fill(ws, delay_4=-95.0, temp_4=1.0)  # still wrong, but another row
    with pytest.raises(Conflict, match="changed in flights since"):
        ws.data.fix_rows("flights", given)
    ws.data.fix_rows("flights", handed(ws, delay_1504=4.0))
    assert ws.data.read("flights").to_pylist()[4]["temp"] == 1.0


def test_an_ordinary_commit_in_which_the_row_is_right_closes_the_item(ws: Workspace) -> None:
    fill(ws, temp_3=999.0, delay_4=-90.0)
    ws.data.add_work("flights", [FINDING])
    fill(ws, temp_3=999.0, delay_4=-90.0)  # the same again changes nothing
    assert ws.data.work().total == 3
    fill(ws, temp_3=21.0, delay_4=-90.0, delay_5=7.5)
    assert open_items(ws) == [("warned", "delay.ge", 1504, DESK)]
    closed = {(c.rule, c.row["flight"]) for c in ws.data.changed_rows(act="fixed")}
    assert closed == {("temp.le", 1503), ("label", 1505)}
    left = pa.Table.from_pylist([row for row in rows() if row["flight"] != 1504])
    ws.data.commit("flights", left, mode="replace")
    assert ws.data.work().total == 0


def test_dismissed_is_a_state_of_its_own_with_a_reason(ws: Workspace) -> None:
    fill(ws, temp_3=999.0, delay_4=-90.0)
    ids = {item.rule: item.id for item in ws.data.work().items}
    with pytest.raises(InvalidInput, match="reason"):
        ws.data.dismiss("flights", list(ids.values()), " ")
    told = ws.data.dismiss("flights", list(ids.values()), "so it was")
    assert {(c.rule, c.action, c.rows) for c in told} == {
        ("temp.le", "dismissed", 1), ("delay.ge", "dismissed", 1),
    }  # fmt: skip
    assert ws.data.work().total == 0
    found = ws.data.work(dismissed=True)
    assert {(i.rule, i.state, i.note, i.by) for i in found.items} == {
        ("temp.le", "dismissed", "so it was", "tester"),
        ("delay.ge", "dismissed", "so it was", "tester"),
    }
    with pytest.raises(Conflict, match="dismissed by tester: so it was"):
        ws.data.dismiss("flights", [ids["temp.le"]], "again")
    fill(ws, temp_3=999.0, delay_4=-90.0, delay_7=1.0)  # neither comes back
    assert ws.data.work().total == 0
    fill(ws, temp_3=998.0, delay_4=-91.0)  # but another value does
    assert open_items(ws) == [
        ("quarantined", "temp.le", 1503, SENSORS), ("warned", "delay.ge", 1504, DESK),
    ]  # fmt: skip


def test_bad_findings_are_refused_together(ws: Workspace) -> None:
    fill(ws)
    with pytest.raises(InvalidInput) as got:
        ws.data.add_work("flights", [{"flight": 1, "rule": "r"}, {"fligth": 2, "reason": "x"}])
    assert {fault.path for fault in got.value.faults} == {
        "rows[0].reason", "rows[1].flight", "rows[1].rule", "rows[1].fligth",
    }  # fmt: skip
    with pytest.raises(InvalidInput, match="no such row"):
        ws.data.add_work("flights", [{**FINDING, "flight": 99}])
    with pytest.raises(InvalidInput, match="int64"):
        ws.data.add_work("flights", [{**FINDING, "flight": "x"}])
    ws.data.commit("keyless", pa.table({"n": [1]}))
    with pytest.raises(InvalidInput, match="has no key"):
        ws.data.add_work("keyless", [FINDING])


def test_without_a_key_rows_wait_and_rules_are_items(ws: Workspace) -> None:
    schema = Schema(
        (
            Field("n", "int64", le=9, on_fail="quarantine", owner=SENSORS),
            Field("x", "float64", ge=0, on_fail="warn"),
        )
    )
    ws.data.commit("d", pa.table({"n": [1, 99], "x": [-1.0, 5.0]}), schema=schema, owner=OPS)
    found = {(i.kind, i.rows, i.owner) for i in ws.data.work().items}
    assert found == {("quarantined", 1, SENSORS), ("rule", 1, OPS)}
    out = ws.data.work_rows("d")
    assert out.num_rows == 1
    out = out.set_column(out.schema.get_field_index("n"), "n", pa.array([9]))
    ws.data.fix_rows("d", out)
    assert sorted(ws.data.read("d").column("n").to_pylist()) == [1, 9]
    [fixed] = ws.data.changed_rows(act="fixed")
    assert (fixed.row["n"], fixed.row["n.new"]) == (99, 9)
    [rule] = ws.data.work().items
    given = pa.table({"work_id": [rule.id], "x": [1.0]})
    with pytest.raises(InvalidInput, match="stands for a rule"):
        ws.data.fix_rows("d", given)
    ws.data.commit("d", pa.table({"n": [1], "x": [1.0]}), mode="replace")
    assert ws.data.work().total == 0


def test_what_happens_on_a_branch_is_no_work_yet(ws: Workspace) -> None:
    fill(ws)
    ws.data.branch("flights", "try")
    table = pa.Table.from_pylist(rows(delay_4=-90.0))
    ws.data.commit("flights", table, mode="replace", branch="try")
    assert ws.data.work().total == 0


def test_personal_data_is_masked_wherever_rows_are_told(ws: Workspace, tmp_path: Path) -> None:
    mail = msgspec.structs.replace(FLIGHTS.fields[4], nullable=False)
    schema = Schema((*FLIGHTS.fields[:4], mail), key=("mail",))
    table = pa.Table.from_pylist(rows(temp_3=999.0, delay_4=-90.0))
    ws.data.commit("flights", table, schema=schema, mode="replace")
    ws.data.record_changes("run:r/s", "flights", "r", "dropped", "why", "", table)
    write_file(tmp_path / "all.jsonl", ledger_rows(ws.data, ws.data.changes()))
    assert (tmp_path / "all.jsonl").read_text().count("(masked)") == 12
    told = [
        ws.data.work(),
        ws.data.work_rows("flights").to_pylist(),
        ws.data.changed_rows(dataset="flights"),
        ws.data.why_absent("flights", {"mail": "secret-3@example.org"}),
        (tmp_path / "all.jsonl").read_text(),
    ]
    assert all("secret" not in str(msgspec.to_builtins(one)) for one in told)
    assert ws.data.why_absent("flights", {"mail": "secret-3@example.org"}).stations
    out = ws.data.work_rows("flights", owner=DESK)
    at = out.schema.get_field_index("delay")
    ws.data.fix_rows("flights", out.set_column(at, "delay", pa.array([1.0])))
    assert "secret-4@example.org" in ws.data.read("flights").column("mail").to_pylist()
    assert "secret" not in str(ws.data.changed_rows(dataset="flights", act="fixed"))


VALUES = st.one_of(st.none(), st.sampled_from([-90.0, -70.0, 0.0, 5.0]))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.sampled_from(["replace", "fix", "dismiss"]), st.lists(VALUES, max_size=4)),
        min_size=1, max_size=5,
    )
)  # fmt: skip
def test_what_is_open_is_what_the_latest_version_breaks(
    tmp_path_factory: pytest.TempPathFactory, acts: list[tuple[str, list[float | None]]]
) -> None:
    """Held against an oracle that keeps the table, what waits and what was dismissed in dicts."""
    schema = Schema(
        (
            Field("k", "int64", nullable=False),
            Field("x", "float64", ge=-80, on_fail="quarantine"),
            Field("y", "float64", ge=-60, on_fail="warn"),
        ),
        key=("k",),
    )
    table: dict[int, float | None] = {}
    quiet: dict[int, float] = {}

    def check(ws: Workspace) -> None:
        wrong = {k for k, y in table.items() if y is not None and y < -60 and quiet.get(k) != y}
        assert {item.key["k"] for item in ws.data.work().items} == wrong
        now = {r["k"]: r["y"] for r in ws.data.read("d").to_pylist()}
        assert now == table

    with ev.open(tmp_path_factory.mktemp("w") / ".everloop") as ws:
        ws.data.commit("d", pa.table({"k": [0], "x": [0.0], "y": [0.0]}), schema=schema)
        table[0] = 0.0
        for act, values in acts:
            items = list(ws.data.work().items)
            if act == "replace" and values:
                table = dict(enumerate(values))
                quiet = {k: y for k, y in quiet.items() if table.get(k) == y}
                given = {"k": list(table), "x": [0.0] * len(table), "y": list(table.values())}
                ws.data.commit("d", pa.table(given, schema=_arrow()), mode="replace")
            elif act == "fix" and items:
                out = ws.data.work_rows("d").slice(0, 1 + len(values) % 2)
                good = pa.array([1.0 + len(values)] * out.num_rows)
                ws.data.fix_rows("d", out.set_column(out.schema.get_field_index("y"), "y", good))
                table |= dict.fromkeys(out.column("k").to_pylist(), 1.0 + len(values))
            elif act == "dismiss" and items:
                ws.data.dismiss("d", [items[0].id], "so it is")
                key: Any = items[0].key["k"]
                quiet[key] = table[key] or 0.0
            check(ws)


def _arrow() -> pa.Schema:
    return pa.schema([("k", pa.int64()), ("x", pa.float64()), ("y", pa.float64())])
