"""SQL over a table sees the table and nothing else."""

from __future__ import annotations

import os
import threading
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest

from everloop.data import sql
from everloop.errors import InvalidInput

ROWS = pa.table({"x": [3, None, 1], "s": ["a", "b", None], "__row": [0, 0, 0]})


@pytest.mark.parametrize(
    "expression",
    [
        "(SELECT count(*) FROM read_csv('/etc/passwd')) > 0",
        "(SELECT count(*) FROM '/etc/passwd') > 0",
        "(SELECT count(*) FROM ROWS_OF_THE_TEST) > 0",
        "(SELECT count(*) FROM read_text('/etc/hostname')) > 0",
        "getenv('HOME') = ''",
        "true) FROM rows; COPY rows TO '/tmp/leak'; SELECT (true",
        "true) FROM rows; SET enable_external_access = true; SELECT (true",
        "true); DROP VIEW rows; --",
    ],
)
def test_expression_cannot_reach_outside(expression: str) -> None:
    with pytest.raises(InvalidInput, match="cannot be evaluated"):
        sql.matching_rows(ROWS, "rule", expression)
    assert sql.matching_rows(ROWS, "rule", "x = 3").tolist() == [0]


@pytest.mark.parametrize(
    "expression",
    ["", "x >", "'", '"', "(", ")", "x; x", "/*", "nope", "$1", "x, x", "-- x", "x ELSE"],
)
def test_expression_that_is_no_sql_names_the_rule(expression: str) -> None:
    with pytest.raises(InvalidInput) as got:
        sql.evaluate(ROWS, "my_rule", expression)
    [fault] = got.value.faults
    assert fault.path == "my_rule"
    assert "\n" not in fault.message


def test_comment_does_not_swallow_the_rest() -> None:
    assert sql.matching_rows(ROWS, "rule", "x = 1 -- the last one").tolist() == [2]


def test_null_is_neither_matching_nor_kept() -> None:
    assert sql.matching_rows(ROWS, "rule", "x > 0").tolist() == [0, 2]
    assert sql.broken_rows(ROWS, {"a": "x > 1", "b": "s = 'a'"})["a"].tolist() == [1, 2]
    assert sql.broken_rows(ROWS, {}) == {}


def test_values_stand_in_the_order_of_the_rows() -> None:
    table = pa.table({"x": np.random.default_rng(0).permutation(300_000)})
    found = sql.evaluate(table, "rule", "x - row_number() OVER (ORDER BY x)")
    assert found.to_pylist() == [-1] * 300_000
    assert sql.evaluate(table, "rule", "x").to_pylist() == table["x"].to_pylist()


def test_condition_may_hold_a_window() -> None:
    condition = "x = max(x) OVER ()"
    assert sql.matching_rows(ROWS, "rule", condition).tolist() == [0]


def test_times_are_seen_in_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    at = datetime(2013, 7, 1, 23, 30, tzinfo=UTC)
    table = pa.table({"at": pa.array([at], pa.timestamp("us", "America/New_York"))})
    assert sql.evaluate(table, "rule", 'hour("at")').to_pylist() == [23]
    assert sql.matching_rows(table, "rule", "\"at\" < '2013-07-02'").tolist() == [0]
    later = sql.evaluate(table, "rule", '"at" + INTERVAL 1 HOUR')
    assert later.type == pa.timestamp("us", "UTC")
    assert later.to_pylist() == [datetime(2013, 7, 2, 0, 30, tzinfo=UTC)]


def test_nan_is_seen_as_null() -> None:
    table = pa.table({"x": [1.0, float("nan"), float("inf")]})
    assert sql.matching_rows(table, "rule", "x > 0").tolist() == [0, 2]
    assert sql.matching_rows(table, "rule", "x IS NULL").tolist() == [1]


def test_empty_table_gives_no_rows() -> None:
    table = pa.table({"x": pa.array([], pa.int64())})
    assert sql.matching_rows(table, "rule", "x > 0").tolist() == []
    assert len(sql.evaluate(table, "rule", "x + 1")) == 0


def test_threads_do_not_see_each_other() -> None:
    wrong: list[int] = []

    def work(mine: int) -> None:
        table = pa.table({"x": [mine] * 1000})
        for _ in range(10):
            if len(sql.matching_rows(table, "rule", f"x = {mine}")) != 1000:
                wrong.append(mine)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_forked_child_gets_an_engine_of_its_own() -> None:
    sql.matching_rows(ROWS, "rule", "x = 3")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if sql.matching_rows(ROWS, "rule", "x = 3").tolist() == [0] else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


def test_columns_that_sql_takes_for_one_are_refused() -> None:
    table = pa.table({"A": [1, 2], "a": [2, 1], "b": [3, 4]})
    with pytest.raises(InvalidInput, match="cannot tell the columns 'A' and 'a' apart"):
        sql.matching_rows(table, "rule", "a = 2")
    assert sql.matching_rows(table.rename_columns(["xx", "XX", "b"]), "r", "b = 4").tolist() == [1]


def test_a_column_with_the_name_of_our_own_is_no_row_number() -> None:
    table = pa.table({"__ROW": [5, 6], "b": [2, 1]})
    assert sql.matching_rows(table, "rule", "b = 2").tolist() == [0]
