"""References: what they refuse, and the bands that come of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from everloop.core.monitor import Monitor
from everloop.core.time import to_micros
from everloop.errors import BackendError, InvalidInput
from everloop.monitoring.evaluate import evaluate
from everloop.monitoring.reference import Reference, make_reference
from everloop.monitoring.tally import Tally, merge, metric_value, tally
from tests.unit.monitoring.world import DAY, START, performance, reference, rows_of

WEEK_S = 7 * 86_400


def test_the_same_rows_give_the_same_bytes(good_reference: bytes) -> None:
    assert reference() == good_reference


def test_the_band_is_of_the_references_own_days(good_reference: bytes) -> None:
    found = Reference(good_reference)
    values = [metric_value("brier", part) for part in found.days.values()]
    band = found.performance_band("brier", 86_400)
    assert band is not None
    assert band.mean == pytest.approx(np.mean(values))
    assert band.sd == pytest.approx(np.std(values, ddof=1))
    assert band.blocks == 20


def test_weeks_vary_less_than_days_but_not_less_than_independent_ones(
    good_reference: bytes,
) -> None:
    found = Reference(good_reference)
    day, week = (found.performance_band("auc", s) for s in (86_400, WEEK_S))
    hours = found.performance_band("auc", 6 * 3600)
    assert day is not None
    assert week is not None
    assert hours is not None
    assert day.sd / np.sqrt(7) <= week.sd + 1e-12 < day.sd
    assert hours.sd == pytest.approx(2 * day.sd)


def test_a_single_day_has_no_band() -> None:
    found = Reference(reference(days=1))
    assert found.performance_band("auc", 86_400) is None


def test_a_window_is_compared_with_the_rest_and_not_with_the_whole(good_reference: bytes) -> None:
    found = Reference(good_reference)
    rests = []
    found.band("rows", 86_400, lambda window, rest: rests.append(window.rows + rest.rows) or 0.0)
    assert set(rests) == {found.total.rows}


def test_every_fault_of_a_hold_out_is_told_at_once() -> None:
    at = np.array([to_micros(START)] * 3)
    with pytest.raises(InvalidInput) as caught:
        make_reference(
            [0.5, 1.5, np.nan],
            [0, 2],
            at,
            {"x": [1.0]},
            categorical=["y"],
            trained_until=START,
        )
    paths = [fault.path for fault in caught.value.faults]
    assert paths == ["labels", "features.x", "scores", "labels", "categorical", "at_us"]


def test_training_rows_in_the_hold_out_are_refused() -> None:
    """A hold-out of the training days flatters the model, and every later day looks bad."""
    rows = rows_of(START, 50, skill=0.9)
    with pytest.raises(InvalidInput, match="not later than the training rows"):
        make_reference(rows["value"], rows["label"], rows["at"], trained_until=START + DAY / 2)


def test_nothing_at_all_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no rows"):
        make_reference([], [], np.array([], dtype=np.int64))
    with pytest.raises(InvalidInput, match="numbers"):
        make_reference(["high"], [1], np.array([0]))
    with pytest.raises(InvalidInput, match="microseconds"):
        make_reference([0.5], [1], [0.25])


def test_times_may_be_datetimes_of_numpy_or_arrow() -> None:
    at = np.array(["2013-01-01T10:00", "2013-01-02T10:00"], dtype="datetime64[s]")
    as_numpy = make_reference([0.1, 0.9], [0, 1], at)
    as_arrow = make_reference(
        pa.array([0.1, 0.9]), pa.array([0, 1]), pa.array(at).cast(pa.timestamp("us"))
    )
    assert as_numpy == as_arrow
    first = datetime(2013, 1, 1, tzinfo=UTC)
    assert sorted(Reference(as_numpy).days) == [
        to_micros(first),
        to_micros(first + timedelta(days=1)),
    ]


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b'{"format": "everloop.reference/9"}'])
def test_bytes_that_are_no_reference_are_said_to_be_so(data: bytes) -> None:
    with pytest.raises(BackendError, match="reference"):
        Reference(data)


def _drift(kind: str = "feature_drift", **options: object) -> Monitor:
    made = {"name": "d", "deployment": "d", "metric": "distance", "floor": 0.02}
    return Monitor(kind=kind, **made | options)  # type: ignore[arg-type]


def test_a_short_reference_says_too_few_blocks_to_tell() -> None:
    found = Reference(reference(days=5))
    window = next(iter(found.days.values()))
    finding = evaluate(_drift(), window, window, found)
    assert finding.value is None
    assert "too few blocks" in finding.detail["why"]


def test_drift_alarms_stay_rare_within_the_references_own_kind_of_days(
    good_reference: bytes,
) -> None:
    """Sixty days that are like the reference's: the family error is 5 % for each window."""
    found = Reference(good_reference)
    breaches = 0
    for day in range(60):
        rows = rows_of(START + day * DAY, 400, skill=0.9, seed=77)
        columns = {name: pa.array(rows[name]) for name in ("x", "carrier")}
        part = tally(rows["value"], rows["label"], columns, found.bins)
        breaches += evaluate(_drift(), part, part, found).breach
    assert breaches <= 3


def test_ranking_like_a_coin_is_a_breach_however_wide_the_band() -> None:
    """A hold-out with a break in it gives a band that would excuse anything."""
    days = [rows_of(START - d * DAY, 300, skill=0.95 if d % 2 else 0.0) for d in range(10)]
    whole = {name: np.concatenate([day[name] for day in days]) for name in days[0]}
    flipped = np.where(
        np.arange(len(whole["value"])) // 300 % 2, whole["value"], 1 - whole["value"]
    )
    found = Reference(make_reference(flipped, whole["label"], whole["at"]))
    finding = evaluate(performance(width=10.0), Tally(), Tally(), found)
    assert finding.bound == 0.5


def test_merging_nothing_is_nothing() -> None:
    assert merge([]).rows == 0
    finding = evaluate(performance(), merge([]), merge([]), None)
    assert (finding.value, finding.bound, finding.breach) == (None, None, False)
