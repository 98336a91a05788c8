"""Table: what it reads, what it remembers."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everloop.data.frame import Table
from everloop.errors import InvalidInput, NotFound

SOURCE = ("flights", 3, "d" * 64)


def flights() -> Table:
    rows = pa.table(
        {"flight": [1, 2, 3, 4], "dep": [517, None, 542, None], "carrier": ["UA", "AA", "B6", "MQ"]}
    )
    return Table(rows, sources=[SOURCE], key=("flight",))


def test_making_a_table_copies_nothing() -> None:
    rows = pa.table({"x": [1, 2]})
    assert Table.of(rows).to_arrow() is rows
    table = Table.of(rows)
    assert Table.of(table) is table


@pytest.mark.parametrize(
    "data",
    [
        {"a": [1, 2], "b": ["x", None]},
        [{"a": 1, "b": "x"}, {"a": 2, "b": None}],
        pl.DataFrame({"a": [1, 2], "b": ["x", None]}),
        pd.DataFrame({"a": [1, 2], "b": ["x", None]}),
        pa.table({"a": [1, 2], "b": ["x", None]}).to_batches()[0],
    ],
)
def test_table_is_made_of_any_frame(data: Any) -> None:
    assert Table.of(data).to_arrow().to_pylist() == [{"a": 1, "b": "x"}, {"a": 2, "b": None}]


def test_pandas_index_stays_if_it_has_a_name() -> None:
    frame = pd.DataFrame({"x": [1.0, float("nan"), 3.0]}, index=pd.Index([7, 8, 9], name="id"))
    assert Table.of(frame).to_arrow().to_pylist() == [
        {"id": 7, "x": 1.0},
        {"id": 8, "x": None},
        {"id": 9, "x": 3.0},
    ]
    assert Table.of(frame.reset_index()[lambda f: f.id > 7]).column_names == ["id", "x"]


@pytest.mark.parametrize(
    "data",
    [
        {"a": [1, "x"]},
        {"a": [1], "b": [1, 2]},
        {"a": np.zeros((2, 2))},
        pd.DataFrame({"a": [1, "x"]}),
        pd.DataFrame([[1, 2]], columns=["a", "a"]),
        5,
        "a,b",
        None,
        [1, 2],
        {"a": 5},
        {"a": [2**70]},
    ],
)
def test_what_is_no_table_is_refused(data: Any) -> None:
    with pytest.raises(InvalidInput, match="no table can be made"):
        Table.of(data)


def test_dropped_rows_are_remembered_whole() -> None:
    table = flights().drop_where("no_departure", "dep IS NULL", reason="cancelled", owner="ops")
    assert table.column("flight").to_pylist() == [1, 3]
    [change] = table.changes
    assert change[:5] == ("flights", "no_departure", "dropped", "cancelled", "ops")
    assert change.rows.to_pylist() == [
        {"flight": 2, "dep": None, "carrier": "AA"},
        {"flight": 4, "dep": None, "carrier": "MQ"},
    ]
    assert table.sources == (SOURCE,)


def test_null_condition_drops_nothing() -> None:
    assert flights().drop_where("late", "dep > 530", reason="r").num_rows == 3
    assert flights().drop_where("none", "dep > 5300", reason="r").changes == ()


def test_set_values_are_remembered_old_and_new() -> None:
    table = flights().set_where("fix", "dep", "dep + 60", "carrier IN ('UA', 'AA')", reason="clock")
    assert table.column("dep").to_pylist() == [577, None, 542, None]
    assert table.schema == flights().schema
    [change] = table.changes
    assert change.action == "changed"
    assert change.rows.to_pylist() == [
        {"flight": 1, "dep": 517, "dep.new": 577},
        {"flight": 2, "dep": None, "dep.new": None},
    ]


def test_set_keeps_the_type_of_the_column() -> None:
    at = datetime(2013, 1, 1, tzinfo=UTC)
    rows = pa.table(
        {"at": pa.array([at], pa.timestamp("us", "UTC")), "n": pa.array([1], pa.int8())}
    )
    moved = Table.of(rows).set_where("r", "at", '"at" + INTERVAL 1 DAY', "n = 1", reason="r")
    assert moved.column("at").to_pylist() == [datetime(2013, 1, 2, tzinfo=UTC)]
    assert moved.schema == rows.schema
    with pytest.raises(InvalidInput, match="r: n is int8"):
        Table.of(rows).set_where("r", "n", "n + 1000", "true", reason="r")
    with pytest.raises(InvalidInput, match="r: n is int8"):
        Table.of(rows).set_where("r", "n", "'x'", "true", reason="r")


def test_changes_add_up_and_can_be_settled() -> None:
    table = (
        flights()
        .drop_where("a", "flight = 1", reason="r")
        .drop_where("b", "flight = 2", reason="r")
    )
    assert [change.rule for change in table.changes] == ["a", "b"]
    assert table.settled().changes == ()
    assert table.settled().equals(table)
    assert flights().changes == ()


def test_without_key_all_columns_name_the_row() -> None:
    table = Table.of({"a": [1], "b": [2]}).set_where("r", "b", "3", "true", reason="r")
    assert table.changes[0].rows.column_names == ["a", "b", "b.new"]


def test_derived_tables_keep_sources_and_changes() -> None:
    table = flights().drop_where("r", "flight = 1", reason="r")
    for derived in (
        table.select(["flight"]),
        table.filter("flight > 2"),
        table.with_columns(x="flight * 2"),
        table.take([0]),
    ):
        assert derived.sources == (SOURCE,)
        assert derived.changes == table.changes
    assert table.filter("dep IS NULL").num_rows == 2


def test_with_columns_sees_the_columns_as_they_were() -> None:
    table = Table.of({"x": [1, 2]}).with_columns(x="x + 1", y="x", z=np.array([5.0, 6.0]))
    assert table.to_arrow().to_pylist() == [{"x": 2, "y": 1, "z": 5.0}, {"x": 3, "y": 2, "z": 6.0}]
    with pytest.raises(InvalidInput, match="z: 1 values for 2 rows"):
        table.with_columns(z=[1])
    with pytest.raises(InvalidInput, match="a column cannot be made"):
        table.with_columns(z=object())


def test_unknown_columns_offer_near_ones() -> None:
    for call in (
        lambda t: t.select(["carier"]),
        lambda t: t.column("carier"),
        lambda t: t.set_where("r", "carier", "1", "true", reason="r"),
        lambda t: t.to_numpy(["carier"]),
    ):
        with pytest.raises(NotFound, match="did you mean 'carrier'"):
            call(flights())
    with pytest.raises(InvalidInput, match='my_rule: Binder Error: Referenced column "carier"'):
        flights().drop_where("my_rule", "carier = 'UA'", reason="r")


def test_concat_joins_rows_sources_and_changes() -> None:
    one = flights().drop_where("a", "flight = 1", reason="r")
    two = Table(pa.table({"flight": [9]}), sources=[("weather", 1, "e")])
    both = Table.concat([one, two])
    assert both.num_rows == 4
    assert both.column("dep").to_pylist()[-1] is None
    assert [source.dataset for source in both.sources] == ["flights", "weather"]
    assert len(both.changes) == 1
    with pytest.raises(InvalidInput):
        Table.concat([])
    with pytest.raises(InvalidInput):
        Table.concat([Table.of({"a": [1]}), Table.of({"a": ["x"]})])


def test_matrix_is_float64_with_nan_for_null() -> None:
    table = Table.of({"a": [1, None], "b": [True, False], "c": pa.array([1.5, 2.5], pa.float32())})
    expected = np.array([[1.0, 1.0, 1.5], [np.nan, 0.0, 2.5]])
    np.testing.assert_array_equal(table.to_numpy(), expected)
    with pytest.raises(InvalidInput) as got:
        Table.of({"a": ["x"], "b": [datetime(2013, 1, 1, tzinfo=UTC)], "c": [1]}).to_numpy()
    assert [fault.path for fault in got.value.faults] == ["a", "b"]


def test_table_goes_out_to_polars_pandas_and_arrow() -> None:
    table = flights()
    assert pl.DataFrame(table).equals(table.to_polars())
    assert table.to_pandas()["flight"].tolist() == [1, 2, 3, 4]
    assert pa.table(table).equals(table.to_arrow())


def test_table_survives_a_journey() -> None:
    table = flights().drop_where("a", "flight = 1", reason="r")
    again = pickle.loads(pickle.dumps(table))
    assert again.equals(table)
    assert (again.sources, again.key, again.changes) == (table.sources, table.key, table.changes)


@given(st.lists(st.none() | st.integers(-5, 5)), st.integers(-5, 5))
@settings(max_examples=25, deadline=None)
def test_kept_and_dropped_rows_are_all_rows(values: list[int | None], bound: int) -> None:
    table = Table.of({"x": pa.array(values, pa.int64()), "n": np.arange(len(values))})
    left = table.drop_where("r", f"x > {bound}", reason="r")
    dropped = left.changes[0].rows["n"].to_pylist() if left.changes else []
    assert dropped == [n for n, v in enumerate(values) if v is not None and v > bound]
    assert sorted(dropped + left.column("n").to_pylist()) == list(range(len(values)))


_RECORDS = st.lists(
    st.dictionaries(st.sampled_from("abc"), st.none() | st.integers(-9, 9), max_size=3)
)


@given(_RECORDS)
def test_a_list_of_dicts_keeps_the_columns_of_every_row(rows: list[dict[str, Any]]) -> None:
    names = {name for row in rows for name in row}
    found = Table.of(rows)
    assert set(found.column_names) == names
    wanted = [{name: row.get(name) for name in names} for row in rows]
    assert found.to_arrow().to_pylist() == (wanted if names else [])


@pytest.mark.parametrize(
    "column",
    [
        pl.Series(["1", "2"]),
        pa.array(["1", "2"], pa.string_view()),
        pa.array([1, 2], pa.date32()),
        pa.array([1, 2], pa.duration("s")),
        pa.array([b"1", b"2"]),
    ],
)
def test_a_matrix_reads_no_numbers_out_of_anything_else(column: Any) -> None:
    with pytest.raises(InvalidInput, match="is no number"):
        Table.of(
            pl.DataFrame({"a": column}) if isinstance(column, pl.Series) else {"a": column}
        ).to_numpy()


def test_a_value_of_a_coded_column_is_set() -> None:
    coded = pa.array(["x", "y", None]).dictionary_encode()
    rows = Table.of(pa.table({"c": coded})).set_where("r", "c", "'z'", "c = 'x'", reason="why")
    assert rows.column("c").to_pylist() == ["z", "y", None]
    assert rows.schema.field("c").type == coded.type


def test_nanoseconds_outlive_an_expression() -> None:
    rows = Table.of({"t": pa.array([1, 2], pa.timestamp("ns"))}).with_columns(again="t")
    assert rows.column("again").cast(pa.int64()).to_pylist() == [1, 2]


def test_zones_are_heeded_though_pandera_was_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYARROW_IGNORE_TIMEZONE", "1")
    seven = datetime(2013, 1, 1, 7, tzinfo=timezone(timedelta(hours=-5)))
    noon = datetime(2013, 1, 1, 12, tzinfo=UTC)
    assert Table.of({"at": [seven]}).column("at").cast(pa.timestamp("us", "UTC"))[0].as_py() == noon
    monkeypatch.setenv("PYARROW_IGNORE_TIMEZONE", "1")
    made = Table.of({"n": [1]})
    monkeypatch.setenv("PYARROW_IGNORE_TIMEZONE", "1")
    assert made.with_columns({"at": [seven]}).column("at")[0].as_py() == noon
