"""Checks of versions against the clock and against the versions before them."""

from __future__ import annotations

from datetime import UTC, datetime

import pyarrow as pa
import pytest

import everloop as ev
from everloop.core.schema import Check
from everloop.core.time import ManualClock
from everloop.errors import NotFound
from everloop.workspace import Workspace

pytestmark = pytest.mark.parametrize("ws", ["sqlite"], indirect=True)


def commit(ws: Workspace, rows: int, *, x: float = 0.0, s: str = "a") -> None:
    at = [datetime(2013, 3, 31, tzinfo=UTC)] * rows
    values = pa.table({"x": [x + n % 10 for n in range(rows)], "s": [s] * rows, "at": pa.array(at)})
    ws.data.commit("t", values, mode="replace")


def test_freshness_is_the_age_of_the_latest_value(ws: Workspace, clock: ManualClock) -> None:
    commit(ws, 3)
    old = Check("fresh", kind="freshness", columns=("at",), le=86_400, owner="feed")
    assert ws.data.check("t", [old]).ok
    clock.advance(hours=1)
    [found] = ws.data.check("t", [old]).broken
    assert (found.reason, found.owner) == (
        "the latest value is 90000 s old, above 86400 s", "feed",
    )  # fmt: skip
    assert ws.data.check("t", [Check("fresh", kind="freshness", le=3600)]).ok


def test_volume_and_drift_against_the_version_before(ws: Workspace) -> None:
    checks = [
        Check("volume", kind="volume", ge=0.5, le=2),
        Check("x", kind="drift", columns=("x",), le=0.2),
        Check("s", kind="drift", columns=("s",), le=0.2, to="first", on_fail="warn"),
    ]
    commit(ws, 100)
    ws.data.tag("t", "first", 1)
    first = ws.data.check("t", checks)
    assert (set(first.unjudged), first.rules) == ({"volume", "x"}, ("s",))
    commit(ws, 120, x=0.001)
    assert not ws.data.check("t", checks[:1]).broken
    commit(ws, 30, x=5, s="b")
    broken = {r.rule: r.reason for r in ws.data.check("t", checks).broken}
    assert broken["volume"] == "30 rows are 0.25 of the 120 of t@2, below 0.5"
    assert broken["x"].startswith("x is 0.5 from t@2")
    assert broken["s"] == "s is 1 from t@1, above 0.2"
    with pytest.raises(NotFound, match="frist"):
        ws.data.check("t", [Check("s", kind="drift", columns=("s",), le=0.2, to="frist")])


def test_an_anomaly_needs_no_threshold_and_knows_weekdays(
    ws: Workspace, clock: ManualClock
) -> None:
    check = [Check("odd", kind="anomaly", columns=("x",))]
    for day in range(42):  # START is a Monday; weekends have a tenth of the rows
        commit(ws, (20 if day % 7 >= 5 else 200) + day % 4, x=0.01 * (day % 3))
        clock.advance(days=1)
        if day == 3:
            assert "spread" in ws.data.check("t", check).unjudged["odd"]
    assert all(ws.data.check("t", check, number).ok for number in (40, 41, 42))
    commit(ws, 21)  # a Monday with the rows of a Sunday
    [found] = ws.data.check("t", check).broken
    told = "rows is 21; the median of 6 earlier versions of this weekday is 201.5"
    assert found.reason.startswith(told)
    commit(ws, 200, x=50)
    assert "mean of x is 54.5" in ws.data.check("t", check).broken[0].reason
    assert ev.check("t@43", check).broken[0].rule == "odd"
