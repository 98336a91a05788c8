"""A month in which one weather station sends metric units, and what becomes of it.

The contract catches it before anything is trained, sets the rows aside and names their owner; they
come back, corrected, through the work list; and a data test says what that was worth. Run it with
``python broken_weather.py [FOLDER]``; it needs what ``everloop demo`` needs.
"""

from __future__ import annotations

import sys
import tempfile
from datetime import UTC, datetime
from typing import Any

import lightgbm
import loop
import polars as pl
import world

import everloop as ev
from everloop.core.context import using

STATION, OWNER = "JFK", "weather-data@example.org"
BEGIN, END = datetime(2013, 7, 1, tzinfo=UTC), datetime(2013, 8, 1, tzinfo=UTC)
HELD_OUT_UNTIL = datetime(2013, 8, 22, tzinfo=UTC)
MILE, INCH = 1.609344, 25.4  # in kilometres, in millimetres

# Celsius in July are fine degrees Fahrenheit for a winter's day: no bound finds them. The stations
# lie within 35 km of each other, so they can be held against one another.
CONTRACT = ev.Schema(
    loop.WEATHER.fields,
    checks=(
        ev.Check(
            "stations_agree",
            "temp IS NULL OR abs(temp - median(temp) OVER (PARTITION BY observed_at)) <= 25",
            on_fail="quarantine",
            owner=OWNER,
            reason="over 25 °F from the stations nearby: is it in other units?",
        ),
    ),
    key=loop.WEATHER.key,
    time=loop.WEATHER.time,
)


def as_it_came() -> pl.DataFrame:
    """The weather from July on, of which one station has sent July in metric units."""
    weather = world.weather().filter(pl.col("observed_at").is_between(BEGIN, HELD_OUT_UNTIL))
    wrong = (pl.col("origin") == STATION) & (pl.col("observed_at") < END)
    metric = {
        "temp": (pl.col("temp") - 32) / 1.8,
        "wind_speed": pl.col("wind_speed") * MILE,
        "precip": pl.col("precip") * INCH,
        "visib": pl.col("visib") * MILE,
    }
    return weather.with_columns(
        pl.when(wrong).then(value).otherwise(pl.col(name)).alias(name)
        for name, value in metric.items()
    )


def corrected(rows: ev.Table) -> ev.Table:
    """What the owner does about the rows on the work list.

    Where one station alone was there to compare with, its rows wait too, and are right as they are.
    """
    imperial = {
        "temp": "temp * 1.8 + 32",
        "wind_speed": f"wind_speed / {MILE}",
        "precip": f"precip / {INCH}",
        "visib": f"visib / {MILE}",
    }
    mine = f"CASE WHEN origin = '{STATION}' THEN {{}} ELSE {{}} END"
    return rows.with_columns({name: mine.format(sql, name) for name, sql in imperial.items()})


@ev.pipeline
def training_rows(until: datetime, weather: str) -> ev.Table:
    """What the model of ``loop.py`` is trained on, with this weather."""
    flights, planes = ev.read("flights"), ev.read("planes")
    return loop.features(loop.labelled(flights, until), flights, ev.read(weather), planes)


def train(rows: ev.Table, seed: int) -> Any:
    """The algorithm, which stays as it is: only the data differs."""
    names = list(loop.delay_features.names)
    late = rows.to_numpy(["late"])[:, 0]
    data = lightgbm.Dataset(rows.to_numpy(names), late, feature_name=names)
    parameters = loop.PARAMETERS | {"seed": seed, "num_threads": 1}
    model = lightgbm.train(parameters, data, 60)
    return lambda given: model.predict(given.to_numpy(names))


def arrive() -> None:
    """Flights, aircraft and weather: as they came, and past the contract."""
    flights = world.flights().filter(pl.col("sched_dep").is_between(BEGIN, HELD_OUT_UNTIL, "left"))
    ev.commit("flights", flights, schema=loop.FLIGHTS, owner=loop.OWNER)
    ev.commit("planes", world.planes(), schema=loop.PLANES, owner=loop.OWNER)
    came = as_it_came()
    source = ["https://weather.example.org/hourly"]
    ev.commit("weather-let-through", came, sources=source)
    ev.commit("weather", came, schema=CONTRACT, owner=OWNER, sources=source)


def keep(weather: str, note: str) -> tuple[str, str]:
    """Commit the training rows that follow from a weather; the version and the run behind it."""
    rows = training_rows.run(until=END, weather=weather)
    columns = ["flight_id", "origin", "sched_dep", *loop.delay_features.names, "late"]
    names = list(dict.fromkeys(columns))
    kinds = ev.Table(rows.to_arrow().select(names))
    schema = ev.Schema(schema_of(kinds), key=("flight_id",))
    return ev.commit("training", kinds, schema=schema, note=note).ref, training_rows.run_id


def schema_of(rows: ev.Table) -> tuple[ev.Field, ...]:
    """Fields of the types that the columns have, the key not nullable."""
    names = {pl.String: "string", pl.Datetime: "timestamp", pl.Float64: "float64"}
    names |= {pl.Int64: "int64", pl.Int32: "int32"}
    return tuple(
        ev.Field(name, names[kind.base_type()], nullable=name != "flight_id")
        for name, kind in rows.to_polars().schema.items()
    )


def held_out() -> ev.Table:
    """The flights of three weeks of August, with the weather as it was."""
    flights = ev.read("flights").to_polars()
    later = flights.filter((pl.col("sched_dep") >= END) & pl.col("arr_delay").is_not_null())
    late = later.with_columns(late=(pl.col("arr_delay") > 15).cast(pl.Float64))
    return loop.delay_features.history(late)


def compare() -> Any:
    """What setting aside and fixing are worth, against letting the wrong month through."""
    versions = {"let through": "training@1", "set aside": "training@2", "fixed": "training@3"}
    return ev.data_test(
        train, versions, holdout=held_out(), label="late", metrics=("auc",), seeds=3,
        slices={STATION: f"origin = '{STATION}'"}, at="sched_dep",
    )  # fmt: skip


def main(folder: str) -> None:
    with ev.open(folder) as workspace, using(workspace):
        arrive()
        keep("weather-let-through", "with the wrong month")
        keep("weather", "without it")
        for item in workspace.data.work(owner=OWNER).counts:
            print(f"{item.items} rows of {item.dataset} wait for {item.owner}: {item.rule}")
        rows = ev.Table(workspace.data.work_rows("weather", owner=OWNER))
        told = workspace.data.fix_rows("weather", corrected(rows).to_arrow(), note="was metric")
        print(f"fixed as {told.ref}")
        keep("weather", "with the corrected month")
        print(compare().summary())


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
