"""The prediction log: what a row holds, what may be lost, and what is counted."""

from __future__ import annotations

import json
import threading
from typing import Any

import numpy as np
import pytest

from everloop.errors import BackendError, InvalidInput, StateError
from everloop.serving.log import PredictionLog, prediction_table
from everloop.serving.route import Answers
from tests.unit.serving_fakes import FakeModels, FakeSink, route
from tests.unit.test_serving_route import CANARY, with_features


def answers(rows: int = 1, **more: Any) -> Answers:
    return route(**more).answer({"x": np.arange(float(rows)), "y": np.zeros(rows)})


def test_row_holds_everything_that_led_to_the_answer() -> None:
    hour = 3_600_000_000
    one = with_features().answer({"origin": ["JFK"], "sched_dep": [7 * hour]}, ["flight-1"])
    (row,) = prediction_table([one]).to_pylist()
    assert row.pop("id") == one.ids[0]
    assert row.pop("latency_us") >= 0
    assert json.loads(row.pop("request")) == {"origin": "JFK", "sched_dep": 7 * hour}
    assert row.pop("at").isoformat() == "1970-01-01T07:00:00+00:00"
    assert row.pop("t.weather").isoformat() == "1970-01-01T06:59:59.999999+00:00"
    assert row == {
        "request_id": "flight-1",
        "version": 1,
        "revision": 1,
        "arm": "champion",
        "value": 1037.0,
        "error": "",
        "f.x": 7.0,
        "f.y": 3.0,
    }


def test_view_without_a_value_has_no_time() -> None:
    one = with_features().answer({"origin": ["JFK"], "sched_dep": [0]})
    assert prediction_table([one]).column("t.weather").to_pylist() == [None]


def test_shadow_answers_the_same_rows_under_ids_of_its_own() -> None:
    one = route(*CANARY).answer({"x": np.arange(5.0), "y": np.zeros(5)})
    rows = prediction_table([one, one]).to_pylist()
    primary = [row for row in rows if row["arm"] != "shadow"]
    shadow = [row for row in rows if row["arm"] == "shadow"]
    assert [row["request_id"] for row in shadow] == [row["request_id"] for row in primary]
    assert [row["value"] for row in shadow] == [3000.0 + x for x in (0, 1, 2, 3, 4) * 2]
    assert {row["version"] for row in shadow} == {3}
    assert {row["id"] for row in shadow}.isdisjoint({row["id"] for row in primary})


def test_failed_arm_is_told_in_its_rows() -> None:
    models = FakeModels(files_of={2: {"model.txt": b"broken"}})
    one = route(*CANARY, models=models).answer({"x": np.ones(100), "y": np.zeros(100)})
    for row in prediction_table([one]).to_pylist():
        failed = row["arm"] == "challenger"
        assert row["error"] == ("RuntimeError" if failed else "")
        assert (row["value"] is None) == failed


def test_flush_makes_all_durable_in_order() -> None:
    sink = FakeSink()
    log = PredictionLog(sink)
    parts = [answers(3) for _ in range(10)]
    for part in parts:
        assert log.append(part)
    log.flush()
    assert log.pending == 0
    assert {row["id"] for row in sink.rows} == {one for part in parts for one in part.ids}
    log.close()


def test_rows_of_one_route_become_one_table() -> None:
    sink, gate = FakeSink(gate=threading.Event()), route()
    log = PredictionLog(sink, max_loss_s=3600)
    for x in range(50):
        log.append(gate.answer({"x": [float(x)], "y": [0.0]}))
    assert sink.gate is not None
    sink.gate.set()
    log.close()
    assert [table.num_rows for _, table in sink.tables] == [50]
    assert [row["f.x"] for row in sink.rows] == [float(x) for x in range(50)]


def test_full_buffer_drops_and_counts() -> None:
    sink = FakeSink(gate=threading.Event())
    dropped: list[tuple[str, int]] = []
    log = PredictionLog(sink, capacity=5, on_drop=lambda name, rows: dropped.append((name, rows)))
    assert log.append(answers(4))
    assert not log.append(answers(4))
    assert log.append(answers(1))
    assert sink.gate is not None
    sink.gate.set()
    log.close()
    assert (log.dropped, dropped) == (4, [("delay", 4)])
    assert len(sink.rows) == 5


def test_store_that_fails_for_a_while_loses_nothing() -> None:
    sink = FakeSink(failures=2)
    log = PredictionLog(sink)
    log.append(answers(3))
    log.flush()
    assert len(sink.rows) == 3
    log.close()


def test_second_try_carries_the_same_ids() -> None:
    class Doubtful(FakeSink):
        def log(self, name: str, rows: Any) -> str:
            self.tables.append((name, rows))
            if len(self.tables) == 1:
                raise BackendError("stored, but the answer was lost")
            return "segment"

    sink = Doubtful()
    log = PredictionLog(sink)
    log.append(route(*CANARY).answer({"x": [1.0, 2.0], "y": [0.0, 0.0]}))
    log.close()
    first, second = (table.column("id").to_pylist() for _, table in sink.tables)
    assert first == second
    assert len(first) == 4


@pytest.mark.parametrize("error", [InvalidInput("wrong"), ValueError("odd")])
def test_refused_rows_are_counted_and_do_not_stop_the_log(error: Exception) -> None:
    class Picky(FakeSink):
        def log(self, name: str, rows: Any) -> str:
            if rows.num_rows == 3:
                raise error
            return super().log(name, rows)

    sink = Picky()
    log = PredictionLog(sink)
    log.append(answers(3))
    log.flush()
    log.append(answers(2))
    log.close()
    assert (log.dropped, len(sink.rows)) == (3, 2)


def test_flush_says_when_the_store_does_not_come_back() -> None:
    sink = FakeSink(gate=threading.Event())
    log = PredictionLog(sink)
    log.append(answers(2))
    with pytest.raises(StateError, match="2 predictions are not stored"):
        log.flush(timeout_s=0.01)
    assert sink.gate is not None
    sink.gate.set()
    log.close()


def test_batch_is_durable_when_it_returns() -> None:
    sink = FakeSink()
    log = PredictionLog(sink)
    assert log.log_batch(answers(1000)) == "segment"
    assert len(sink.rows) == 1000
    log.close()


def test_closed_log_takes_nothing_more() -> None:
    log = PredictionLog(FakeSink())
    log.close()
    log.close()
    with pytest.raises(StateError):
        log.append(answers())
