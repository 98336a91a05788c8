"""A month of weather in other units: caught, blamed, corrected through the work list, weighed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest

import everloop as ev
from everloop.core.context import using
from everloop.errors import InvalidInput
from everloop.workspace import Workspace

EXAMPLE = Path(__file__).parents[2] / "examples" / "flights"

pytestmark = pytest.mark.timeout(900)


class Lived(NamedTuple):
    """A workspace after the story of ``broken_weather.py``, with the run of each training set."""

    ws: Workspace
    runs: dict[str, str]
    waiting: Any
    refused: str
    story: Any


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lived]:
    sys.path.insert(0, str(EXAMPLE))
    import broken_weather as story

    folder = tmp_path_factory.mktemp("weather") / ".everloop"
    with ev.open(folder, actor="the test") as ws, using(ws):
        story.arrive()
        runs = dict([story.keep("weather-let-through", "with the wrong month")])
        runs |= dict([story.keep("weather", "without it")])
        waiting = ws.data.work(owner=story.OWNER, limit=1000)
        rows = ev.Table(ws.data.work_rows("weather", owner=story.OWNER))
        with pytest.raises(InvalidInput) as got:  # handed back as they are
            ws.data.fix_rows("weather", rows.to_arrow())
        ws.data.fix_rows("weather", story.corrected(rows).to_arrow(), note="was metric")
        runs |= dict([story.keep("weather", "with the corrected month")])
        yield Lived(ws, runs, waiting, str(got.value), story)
    sys.path.remove(str(EXAMPLE))


def test_the_contract_catches_the_month_and_names_its_owner(lived: Lived) -> None:
    came = lived.story.as_it_came()
    wrong = (pl.col("origin") == "JFK") & (pl.col("observed_at") < lived.story.END)
    keys = {(r["origin"], r["observed_at"].isoformat()) for r in came.filter(wrong).to_dicts()}
    told = {(i.key["origin"], i.key["observed_at"]) for i in lived.waiting.items}
    assert len(told & keys) / len(keys) > 0.99
    # Where only one other station was there nobody can say which of the two is wrong.
    assert len(told - keys) < 5
    assert {i.owner for i in lived.waiting.items} == {"weather-data@example.org"}
    assert "is it in other units?" in lived.refused
    read = {use.version for use in lived.ws.tracking.run(lived.runs["training@2"]).inputs}
    assert read == {1}  # trained on the version that had left the rows out


def test_the_fix_brings_back_what_was_meant(lived: Lived) -> None:
    world = sys.modules["world"]
    begin, end = lived.story.BEGIN, lived.story.HELD_OUT_UNTIL
    meant = world.weather().filter(pl.col("observed_at").is_between(begin, end))
    now = ev.read("weather").to_polars().sort("observed_at", "origin")
    # In one hour the station was alone, and had nobody to be held against.
    alone = (pl.col("origin") == "JFK") & (pl.len().over("observed_at") == 1)
    alone &= pl.col("observed_at") < lived.story.END
    assert now.filter(alone).height == 1
    now, meant = now.filter(~alone), meant.filter(~alone)
    assert now.drop("origin", "observed_at").to_numpy() == pytest.approx(
        meant.drop("origin", "observed_at").to_numpy(), nan_ok=True
    )
    [closed] = lived.ws.data.change_totals(dataset="weather", act="fixed")
    assert (closed.rows, closed.owner) == (lived.waiting.total, "weather-data@example.org")
    why = lived.ws.data.why_absent("weather", {"origin": "JFK", "observed_at": "2013-07-04T12:00"})
    assert [s.what for s in why.stations] == ["quarantined", "there", "fixed"]
    assert lived.ws.data.work(dataset="weather").total == 0


def test_only_flights_of_that_station_are_trained_on_otherwise(lived: Lived) -> None:
    before, after = (ev.read(f"training@{n}").to_polars().sort("flight_id") for n in (1, 3))
    assert before["flight_id"].equals(after["flight_id"])
    differs = pl.Series([False]).new_from_index(0, before.height)
    for name in before.columns:
        unlike = (
            before[name].is_close(after[name]).not_()
            if before[name].dtype.is_float()
            else (before[name].ne_missing(after[name]))
        )
        unlike = unlike.fill_null(value=False) | (before[name].is_null() != after[name].is_null())
        if name not in ("temp", "wind_speed", "precip", "visib"):
            assert not unlike.any(), name
        differs |= unlike
    assert set(before.filter(differs)["origin"]) == {"JFK"}
    assert differs.sum() > 0.95 * (before["origin"] == "JFK").sum()


def test_the_ledger_explains_every_flight_that_is_not_trained_on(lived: Lived) -> None:
    flights = ev.read("flights").to_polars()
    trained = set(ev.read("training@3").to_polars()["flight_id"])
    told = lived.ws.data.changes(scope=f"run:{lived.runs['training@3']}")
    left: dict[str, set[str]] = {}
    for entry in told:
        assert entry.reason
        assert entry.owner
        rows = lived.ws.data.changed_page("flights", entry.detail, limit=100_000)
        left[entry.rule] = set(rows.column("flight_id").to_pylist())
        assert len(left[entry.rule]) == entry.rows
    assert set(left) == {"not_landed_yet", "cancelled", "diverted"}
    assert sum(map(len, left.values())) + len(trained) == flights.height
    assert set().union(*left.values()) | trained == set(flights["flight_id"])
    for rule, ids in left.items():
        why = lived.ws.data.why_absent(
            "flights", {"flight_id": min(ids)}, run=lived.runs["training@3"]
        )
        assert why.present is False
        assert f"dropped by rule {rule}" in why.answer
    there = lived.ws.data.why_absent(
        "flights", {"flight_id": min(trained)}, run=lived.runs["training@3"]
    )
    assert there.present is True


def test_a_data_test_says_what_the_fix_is_worth(lived: Lived) -> None:
    found = lived.story.compare()
    for name in ("set aside", "fixed"):
        effect = found.effect(name, "auc")
        assert effect.low < effect.estimate < effect.high
        assert effect.high - effect.low < 0.05
        wanted = "better" if effect.low > 0 else "worse" if effect.high < 0 else "no difference"
        assert effect.answer.startswith(wanted)
    scores = [row["value"] for row in found.table() if row["metric"] == "auc"]
    assert all(0.65 < score < 0.85 for score in scores)
    assert np.ptp(scores) > 0
