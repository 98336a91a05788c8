"""A finding becomes a rule, work or a version, by key or by row number, and shows no secrets."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import everloop as ev
from everloop.core.context import current_workspace
from everloop.core.finding import FindingReport
from everloop.errors import InvalidInput
from everloop.evaluation.findings.found import MOST_KEYS, Finding, Findings
from everloop.evaluation.findings.literals import literal
from everloop.evaluation.findings.looked import look

FIELDS = (
    ev.Field("id", "int64", nullable=False),
    ev.Field("part", "string", nullable=False),
    ev.Field("mail", "string", pii="email", owner="mail@example.org"),
    ev.Field("late", "int64", owner="late@example.org"),
)
SCHEMA = ev.Schema(FIELDS, key=("id", "part"))


def table(n: int = 6) -> ev.Table:
    return ev.Table.of({
        "id": [k // 2 for k in range(n)], "part": ["a", "b'"] * (n // 2),
        "mail": [f"who{k}@example.org" for k in range(n)], "late": [k % 2 for k in range(n)],
    })  # fmt: skip


def finding(numbers: list[int], rows: ev.Table | None = None, schema: Any = SCHEMA) -> Finding:
    told = FindingReport(
        kind="label_issue", name="doubts", reason="not believed", count=0, columns=("late",)
    )
    suggested = pa.array([7] * len(numbers))
    return Finding(
        look(rows or table(), schema), told, np.array(numbers, np.int64),
        np.arange(len(numbers))[::-1], {"suggested": suggested},
    )  # fmt: skip


def test_a_list_of_keys_is_a_rule_that_exactly_these_rows_break() -> None:
    found = finding([3, 0])
    check = found.as_check("ours", on_fail="warn", owner="x@example.org")
    assert (check.name, check.on_fail, check.owner) == ("ours", "warn", "x@example.org")
    report = ev.check(table(), ev.Schema(FIELDS, checks=(check,), key=("id", "part")))
    assert [row.row for row in report.broken[0].rows] == [0, 3]
    with pytest.raises(InvalidInput, match="no key"):
        finding([0], schema=None).as_check()
    with pytest.raises(InvalidInput, match=f"1 to {MOST_KEYS}"):
        finding([]).as_check()


values = st.one_of(
    st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False),
    st.text(st.characters(codec="utf-8", exclude_characters="\0")), st.binary(),
    st.datetimes(datetime(1, 1, 1), datetime(9999, 1, 1)),  # noqa: DTZ001
    st.dates(date(1, 1, 1), date(9999, 1, 1)),
)  # fmt: skip


@given(values)
@settings(max_examples=200, deadline=None)
def test_a_literal_is_read_back_as_the_same_value(value: Any) -> None:
    rows = ev.Table.of(pa.table({"x": pa.array([value])}))
    assert len(rows.filter(f"x = {literal(value)}")) == 1


def test_a_time_with_a_zone_is_named_in_utc() -> None:
    at = datetime(2013, 1, 1, 12, 30, tzinfo=UTC)
    assert len(ev.Table.of({"at": [at]}).filter(f'"at" = {literal(at)}')) == 1


def test_work_items_are_plain_and_name_row_key_and_owner() -> None:
    items = finding([3, 0]).work_items()
    assert items[0] == {
        "id": 1, "part": "b'", "rule": "doubts", "reason": "not believed",
        "owner": "late@example.org", "suggestion": "late = 7",
    }  # fmt: skip
    assert finding([0]).work_items("x@example.org", rule="r")[0]["owner"] == "x@example.org"


def test_rows_leave_a_table_by_key_in_another_order_and_are_remembered() -> None:
    found = finding([3, 0])
    other = table().take([5, 4, 3, 2, 1])
    left = found.drop_from(other, rule="gone", owner="x@example.org")
    assert left.column("mail").to_pylist() == [f"who{k}@example.org" for k in (5, 4, 2, 1)]
    [change] = left.changes
    assert (change.rule, change.action, change.reason) == ("gone", "dropped", "not believed")
    assert change.rows.num_rows == 1
    relabelled = found.relabelled(other)
    assert relabelled.column("late").to_pylist() == [1, 0, 7, 0, 1]
    assert relabelled.changes[0].rows.column("late.new").to_pylist() == [7]


def test_without_a_key_rows_are_found_by_number_if_they_are_the_same() -> None:
    found = finding([3, 0], schema=None)
    more = table().with_columns(new=[1] * 6)
    assert len(found.drop_from(more)) == 4
    with pytest.raises(InvalidInput, match="not found"):
        found.drop_from(table().take([5, 4, 3, 2, 1, 0]))
    with pytest.raises(InvalidInput, match="not found"):
        found.drop_from(table(8))


def test_set_rows_takes_them_in_any_order_and_refuses_what_is_not_there() -> None:
    done = table().set_rows("r", "late", [4, 1], [9, 8], reason="why")
    assert done.column("late").to_pylist() == [0, 8, 0, 1, 9, 1]
    assert done.changes[0].rows.column("late").to_pylist() == [1, 0]
    with pytest.raises(InvalidInput, match="no row 6 among 6"):
        table().drop_rows("r", [0, 6], reason="why")
    with pytest.raises(InvalidInput, match="late is int64"):
        table().set_rows("r", "late", [0], ["x"], reason="why")


def test_rows_are_taken_from_views_of_text_too() -> None:
    views = table().with_columns(part=table().column("part").cast(pa.string_view()))
    found = finding([3, 0], views)
    assert len(found.drop_from(views)) == 4
    assert found.rows[0].key == {"id": 1, "part": "b'"}
    coded = views.with_columns(part=table().column("part").dictionary_encode())
    assert len(found.drop_from(coded)) == 4
    with pytest.raises(InvalidInput, match="is int64 where it was looked at, and double here"):
        found.drop_from(table().with_columns(id=table().column("id").cast("float64")))


def test_personal_values_are_in_nothing_that_is_shown() -> None:
    schema = ev.Schema(
        (ev.Field("late", "int64", pii="health"), ev.Field("mail", "string", pii="email")),
        key=("mail",), extra="allow",
    )  # fmt: skip
    random = np.random.default_rng(0)
    late = random.integers(7000, 7002, 400)
    rows = {"mail": [f"who{k}@example.org" for k in range(400)], "late": late}
    sure = np.where(late == 7000, 0.9, 0.1)
    sure[:5] = 1 - sure[:5]
    found = ev.label_issues(rows, np.column_stack([sure, 1 - sure]), label="late", schema=schema)
    assert len(found) == 5
    told = [found.summary(), found._repr_html_(), str(found.to_frame().to_dicts()),
            str(found.report()), str(found.work_items()), repr(found)]  # fmt: skip
    for text in told:
        assert "example.org" not in text
        assert "7000" not in text
        assert "7001" not in text
    assert found.relabelled().column("late").to_pylist()[0] in (7000, 7001)


def test_a_report_is_plain_data_and_top_keeps_the_worst() -> None:
    found = finding([5, 3, 0])
    assert [row.row for row in found.report(2).rows] == [5, 3]
    assert found.report(2).count == 3
    assert [row.row for row in found.top(1).rows] == [5]
    assert found.to_frame().columns == ["row", "id", "part", "score", "suggested", "reason"]
    both = Findings("all", [found, found.top(1)], {"n": 2})
    assert len(both.work_items()) == 4
    assert both.to_frame()["rows"].to_list() == [3, 1]
    assert both["doubts"] is found
    with pytest.raises(KeyError):
        both["nothing"]
    assert Findings("none").to_frame().height == 0


def test_a_dataset_brings_its_key_owner_and_personal_columns(tmp_path: Path) -> None:
    with ev.open(str(tmp_path / "ws")):
        ev.commit("calls", table(400), schema=SCHEMA, owner="calls@example.org")
        sure = np.where(np.arange(400) % 2, 0.9, 0.1)
        sure[3] = 0.05
        found = ev.label_issues("calls@1", sure, label="late")
        [item] = found.work_items()
        assert (item["id"], item["part"], item["owner"]) == (1, "b'", "late@example.org")
        assert current_workspace().data.add_work("calls", found.work_items()) == 1
        [waiting] = current_workspace().data.work(owner="late@example.org").items
        assert (waiting.rule, waiting.suggestion) == (item["rule"], item["suggestion"])
        assert found.report().ref == "calls@1"
        read = ev.slices(ev.read("calls"), error=sure)
        assert read.figures["skipped"]["mail"] == "personal data"
        ev.commit("calls", found.relabelled().to_arrow())
        assert ev.read("calls", 2).column("late").to_pylist()[3] == 0
