from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everloop.access.policy import EmbeddedAuthorizer
from everloop.backends.blobs.local import LocalBlobs
from everloop.catalog.engine import Catalog
from everloop.core.ids import new_ids
from everloop.deployment.predictions import PredictionService
from everloop.deployment.segments import conform_labels, conform_predictions, to_parquet
from everloop.deployment.service import DeploymentService
from everloop.errors import InvalidInput, NotFound

START = datetime(2013, 4, 1, tzinfo=UTC)
END = START + timedelta(days=30)
HOUR = timedelta(hours=1)


def _rows(ids: list[str], *, start: datetime = START, **more: Any) -> pa.Table:
    count = len(ids)
    columns = {
        "id": ids,
        "request_id": [f"r-{id_[-6:]}" for id_ in ids],
        "at": pa.array([start + n * HOUR for n in range(count)], pa.timestamp("us", "UTC")),
        "version": [1] * count,
        "value": [n / 10 for n in range(count)],
        "f.distance": [100.0 + n for n in range(count)],
        "t.weather": pa.array([start] * count, pa.timestamp("us", "UTC")),
    }
    return pa.table({name: part for name, part in {**columns, **more}.items() if part is not None})


def _labels(*known: tuple[str, float, datetime]) -> pa.Table:
    request, label, at = zip(*known, strict=True)
    return pa.table(
        {
            "request_id": list(request),
            "label": list(label),
            "known_at": pa.array(at, pa.timestamp("us", "UTC")),
        }
    )


def _read(service: PredictionService, **more: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = service.read("d", since=START, until=END, **more).to_pylist()
    return rows


def test_what_was_logged_is_read_with_plain_types(predictions: PredictionService) -> None:
    ids = new_ids(3)
    segment = predictions.log("d", _rows(ids))
    assert (segment.rows, segment.first_id, segment.last_id) == (3, ids[0], ids[2])
    assert (segment.from_at, segment.to_at) == (START, START + 2 * HOUR)
    table = predictions.read("d", since=START, until=END)
    assert table.schema.field("id").type == pa.string()
    assert table.schema.field("at").type == pa.timestamp("us", "UTC")
    assert table.column("f.distance").to_pylist() == [100, 101, 102]
    row = table.to_pylist()[0]
    assert (row["arm"], row["revision"], row["error"], row["request"]) == ("champion", 0, "", "{}")
    assert predictions.segments("d") == [segment]


def test_times_from_since_until_before_until(predictions: PredictionService) -> None:
    predictions.log("d", _rows(new_ids(5)))
    later = predictions.read("d", since=START + HOUR, until=START + 3 * HOUR)
    assert later.column("value").to_pylist() == [0.1, 0.2]
    assert predictions.read("d", since=END, until=END).num_rows == 0
    with pytest.raises(InvalidInput, match="is after until"):
        predictions.read("d", since=END, until=START)


def test_logging_again_keeps_nothing_twice(
    predictions: PredictionService, catalog: Catalog
) -> None:
    ids = new_ids(6)
    first = predictions.log("d", _rows(ids[:4]))
    assert predictions.log("d", _rows(ids[:4])) == first
    assert predictions.log("d", _rows(ids[1:3])) == first
    rest = predictions.log("d", _rows(ids[2:]))
    assert (rest.rows, rest.first_id) == (2, ids[4])
    assert predictions.log("other", _rows(ids[:4])).rows == 4
    assert [row["id"] for row in _read(predictions, columns=["id"])].count(ids[3]) == 1
    assert predictions.count("d") == {
        "predictions": 6, "segments": 2, "labels": 0, "label_batches": 0
    }  # fmt: skip
    logged = catalog.events(kind="predictions.Logged")
    assert [event.subject for event in logged[:2]] == [f"segment:{first.id}", f"segment:{rest.id}"]
    assert logged[0].body["rows"] == 4


def test_rows_logged_by_many_at_once_are_kept_once(predictions: PredictionService) -> None:
    ids = new_ids(30)
    parts = [_rows(ids[start : start + 12]) for start in (0, 6, 12, 18, 0, 6)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda part: predictions.log("d", part), parts))
    assert sorted(row["id"] for row in _read(predictions, columns=["id"])) == ids
    assert predictions.count("d")["predictions"] == 30


def test_a_column_that_a_segment_lacks_is_null_there(predictions: PredictionService) -> None:
    ids = new_ids(2)
    predictions.log("d", _rows(ids[:1]))
    predictions.log("d", _rows(ids[1:], **{"f.wind": [3.5], "f.carrier": ["UA"]}))
    rows = {row["id"]: row for row in _read(predictions)}
    assert (rows[ids[0]]["f.wind"], rows[ids[1]]["f.wind"]) == (None, 3.5)
    assert rows[ids[1]]["f.carrier"] == "UA"
    with pytest.raises(NotFound, match=r"f\.wind"):
        predictions.read("d", since=START, until=END, columns=["f.winds"])


def test_labels_join_as_of_a_time(predictions: PredictionService) -> None:
    predictions.log("d", _rows(new_ids(3), request_id=["a", "b", ""]))
    prediction_id = _read(predictions, columns=["id"])[2]["id"]
    early, late = START + 5 * HOUR, START + 50 * HOUR
    predictions.labels("d", _labels(("a", 1.0, late), ("nobody", 1.0, early)))
    predictions.labels("d", _labels(("a", 0.0, early), (prediction_id, 1.0, early)))

    def shown(as_of: datetime | None) -> list[tuple[float | None, datetime | None]]:
        rows = _read(predictions, labelled=True, columns=["id"], as_of=as_of)
        return [(row["label"], row["label_at"]) for row in rows]

    assert shown(None) == [(1.0, late), (None, None), (1.0, early)]
    assert shown(early) == [(0.0, early), (None, None), (1.0, early)]
    assert shown(early - timedelta(microseconds=1)) == [(None, None)] * 3
    columns = predictions.read("d", since=START, until=END, labelled=True, columns=["value"])
    assert columns.column_names == ["value", "label", "label_at"]


def test_labels_may_come_first_and_twice(predictions: PredictionService) -> None:
    known = _labels(("r1", 1.0, START + HOUR), ("r1", 1.0, START + HOUR))
    batch = predictions.labels("d", known)
    assert predictions.labels("d", known) == batch
    assert batch.rows == 1
    predictions.log("d", _rows(new_ids(2), request_id=["r1", "r1"]))
    assert [row["label"] for row in _read(predictions, labelled=True)] == [1.0, 1.0]
    assert predictions.label_batches("d") == [batch]


def test_a_label_long_before_its_prediction_is_another_s(predictions: PredictionService) -> None:
    predictions.log("d", _rows(new_ids(1), request_id=["r1"], start=START + 48 * HOUR))
    for hours, label in ((1, None), (24, 1.0)):
        predictions.labels("d", _labels(("r1", 1.0, START + hours * HOUR)))
        assert [row["label"] for row in _read(predictions, labelled=True)] == [label]


def test_reading_without_labels_gives_nulls(predictions: PredictionService) -> None:
    predictions.log("d", _rows(new_ids(1)))
    [row] = _read(predictions, labelled=True)
    assert (row["label"], row["label_at"]) == (None, None)


def test_one_prediction_is_found_by_id_or_beginning(predictions: PredictionService) -> None:
    ids = new_ids(40)
    predictions.log("d", _rows(ids[::2], request=['{"carrier": "UA"}'] * 20))
    predictions.log("d", _rows(ids[1::2], value=[None] * 20, error=["model failed"] * 20))
    predictions.labels("d", _labels((f"r-{ids[4][-6:]}", 1.0, START + 9 * HOUR)))
    found = predictions.get(ids[4])
    assert (found.deployment, found.value, found.label) == ("d", 0.2, 1.0)
    assert found.label_at == START + 9 * HOUR
    assert (found.request, found.features) == ({"carrier": "UA"}, {"distance": 102.0})
    assert found.times == {"weather": START}
    assert predictions.get(ids[4].lower()) == found
    assert predictions.get(ids[5]).value != predictions.get(ids[5]).value  # NaN
    other = "7ZZZZZZZZZ0000000000000001"
    predictions.log("d", _rows([other]))
    assert predictions.get(other[:8]).id == other
    with pytest.raises(InvalidInput, match="40 predictions begin with"):
        predictions.get(ids[0][:9])
    with pytest.raises(InvalidInput, match="too short"):
        predictions.get(ids[0][:7])
    for absent in ("0" * 26, "ZZZZZZZZ", "bad\x00 id here", "\ud800" * 8):
        with pytest.raises(NotFound, match="no prediction"):
            predictions.get(absent)


def test_every_fault_of_a_log_is_said_and_nothing_kept(predictions: PredictionService) -> None:
    ids = new_ids(3)
    rows = _rows(ids, at=["yesterday"] * 3, value=["0.5", "x", "y"], version=None, extra=[1, 2, 3])
    with pytest.raises(InvalidInput) as refused:
        predictions.log("d", rows)
    faults = {fault.path: fault.message for fault in refused.value.faults}
    assert faults.keys() == {"at", "value", "extra", "version"}
    assert faults["version"] == "missing column"
    with pytest.raises(InvalidInput) as refused:
        predictions.log("d", _rows(["", "a", "b"], version=[1, None, 1], value=[None, 0.5, None]))
    assert {fault.path for fault in refused.value.faults} == {
        "rows[0].id", "rows[1].version", "rows[0].value", "rows[2].value"
    }  # fmt: skip
    with pytest.raises(InvalidInput, match="there are none"):
        predictions.log("d", _rows(ids).slice(0, 0))
    with pytest.raises(NotFound):
        predictions.count("d")


def test_every_fault_of_labels_is_said(predictions: PredictionService) -> None:
    bad = pa.table({"request_id": ["", None], "label": [float("nan"), None], "why": [1, 2]})
    with pytest.raises(InvalidInput) as refused:
        predictions.labels("d", bad)
    assert {fault.path for fault in refused.value.faults} == {
        "why", "known_at", "rows[0].request_id", "rows[1].request_id", "rows[0].label",
        "rows[1].label",
    }  # fmt: skip


def test_naive_and_foreign_times_are_read_as_utc(predictions: PredictionService) -> None:
    naive = pa.array([START.replace(tzinfo=None)], pa.timestamp("ns"))
    foreign = pa.array([START], pa.timestamp("us", "America/New_York"))
    for at in (naive, foreign):
        predictions.log("d", _rows(new_ids(1), at=at))
    assert [row["at"] for row in _read(predictions, columns=["at"])] == [START, START]


def test_an_unknown_deployment_is_not_an_empty_one(
    deployment: DeploymentService, predictions: PredictionService
) -> None:
    assert deployment.deployment("d").name == "d"
    assert predictions.read("d", since=START, until=END, labelled=True).num_rows == 0
    assert predictions.read("d", since=START, until=END, columns=["f.x"]).column_names == ["f.x"]
    with pytest.raises(NotFound, match="did you mean 'd'"):
        predictions.read("dd", since=START, until=END)


def test_a_store_without_paths_reads_the_same(
    catalog: Catalog, blobs: LocalBlobs, predictions: PredictionService
) -> None:
    class Remote:
        put, get = blobs.put, blobs.get

    other = PredictionService(catalog, Remote(), EmbeddedAuthorizer())  # type: ignore[arg-type]
    other.log("d", _rows(new_ids(3)))
    other.labels("d", _labels(("x", 1.0, START)))
    assert _read(other, labelled=True) == _read(predictions, labelled=True)


def test_a_year_of_segments_is_pruned_by_time(
    predictions: PredictionService, blobs: LocalBlobs
) -> None:
    for day in range(12):
        predictions.log("d", _rows(new_ids(2), start=START + timedelta(days=day)))
    found = predictions.segments("d", since=START + timedelta(days=3), until=START + 6 * 24 * HOUR)
    assert [segment.from_at.day for segment in found] == [4, 5, 6]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(range(6)), st.lists(st.integers(0, 5), max_size=4))
def test_order_and_repeats_do_not_change_what_is_stored(order: list[int], again: list[int]) -> None:
    ids = [f"id-{n:04d}" for n in range(6)]
    straight = _rows(ids)
    assert to_parquet(conform_predictions(straight.take(order + again))) == to_parquet(
        conform_predictions(straight)
    )
    known = _labels(*[(f"r{n}", float(n % 2), START + n * HOUR) for n in range(6)])
    assert to_parquet(conform_labels(known.take(order + again))) == to_parquet(
        conform_labels(known)
    )


def test_all_of_time_can_be_read(predictions: PredictionService) -> None:
    ids = new_ids(1)
    predictions.log("d", _rows(ids))
    predictions.labels("d", _labels((f"r-{ids[0][-6:]}", 1.0, START)))
    found = predictions.read(
        "d",
        since=datetime.min.replace(tzinfo=UTC),
        until=datetime.max.replace(tzinfo=UTC),
        labelled=True,
        columns=["label", "id", "id"],
    )
    assert found.column_names == ["id", "label", "label_at"]
    assert found.to_pylist() == [{"id": ids[0], "label": 1.0, "label_at": START}]


@pytest.mark.parametrize("label", [float("nan"), float("inf"), float("-inf")])
def test_a_label_is_a_finite_number(predictions: PredictionService, label: float) -> None:
    with pytest.raises(InvalidInput, match="is NaN or infinite"):
        predictions.labels("d", _labels(("r", label, START)))
