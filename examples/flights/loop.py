"""Will this flight arrive more than 15 minutes late? A whole production loop in one plain file.

Run it on a year of real flights with ``everloop demo``.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import lightgbm

import everloop as ev
from everloop import agg, col

NAME = "flights-delay"
OWNER = "flight-operations@example.org"
PARAMETERS = {"objective": "binary", "learning_rate": 0.08, "num_leaves": 63, "seed": 1,
              "min_data_in_leaf": 300, "feature_fraction": 0.5, "num_threads": 2, "verbose": -1,
              "deterministic": True, "force_row_wise": True}  # fmt: skip
CARRIERS = tuple("9E AA AS B6 DL EV F9 FL HA MQ OO UA US VX WN YV".split())  # noqa: SIM905

# --- data: what arrives, and what must hold of it ------------------------------------------------
FLIGHTS = ev.Schema(
    fields=(
        ev.Field("flight_id", "string", nullable=False, semantic="id"),
        ev.Field("sched_dep", "timestamp", nullable=False, description="scheduled departure"),
        ev.Field("carrier", "string", nullable=False, max_length=2),
        ev.Field("flight", "int64", nullable=False, ge=1),
        ev.Field("tailnum", "string", semantic="id", description="the aircraft"),
        ev.Field("origin", "string", nullable=False, among=("EWR", "JFK", "LGA")),
        ev.Field("dest", "string", nullable=False),
        ev.Field("hour", "float64", nullable=False, ge=0, le=24, description="local, scheduled"),
        ev.Field("distance", "float64", nullable=False, ge=1, unit="mile"),
        ev.Field("dep_delay", "float64", unit="minute", description="null: it never left"),
        ev.Field("arr_delay", "float64", unit="minute", description="null: it never arrived"),
        ev.Field("departed_at", "timestamp", description="when the departure became known"),
        ev.Field("landed_at", "timestamp", description="when the arrival became known"),
    ),
    key=("flight_id",),
    time="sched_dep",
)
WEATHER = ev.Schema(
    fields=(
        ev.Field("origin", "string", nullable=False),
        ev.Field("observed_at", "timestamp", nullable=False),
        ev.Field("temp", "float64", unit="degree Fahrenheit", ge=-60, le=130),
        ev.Field("wind_speed", "float64", unit="mile per hour", le=200, on_fail="drop",
                 owner="weather-data@example.org", description="above 200 the sensor is broken"),
        ev.Field("precip", "float64", unit="inch", ge=0),
        ev.Field("visib", "float64", unit="mile", ge=0),
    ),
    key=("origin", "observed_at"),
    time="observed_at",
)  # fmt: skip
PLANES = ev.Schema(
    fields=(
        ev.Field("tailnum", "string", nullable=False),
        ev.Field("built", "float64", unit="year", ge=1900, le=2013),
        ev.Field("manufacturer", "string"),
    ),
    key=("tailnum",),
)

# --- features: one definition for training and for serving; nothing counts before it was known ---
landed = ev.source("flights", time="sched_dep", known="landed_at", id="flight_id")
departed = ev.source("flights", time="departed_at", id="flight_id")
observed = ev.source("weather", time="observed_at")

delay_features = ev.feature_set(
    "delay",
    ev.feature_view("weather", entity=("origin",), source=observed, ttl="3h",
                    features=[col.temp, col.wind_speed, col.precip, col.visib]),
    ev.feature_view("aircraft", entity=("tailnum",), source=landed, ttl="24h",
                    features={"previous_delay": col.arr_delay}),
    ev.feature_view("carrier_late", entity=("carrier", "origin"), source=landed,
                    features={"late_24h": agg.mean(col.arr_delay > 15, "24h"),
                              "landed_24h": agg.count("24h")}),
    ev.feature_view("origin_load", entity=("origin",), source=departed,
                    features={"departures_1h": agg.count("1h"),
                              "dep_delay_1h": agg.mean(col.dep_delay, "1h")}),
    ev.feature_view("route", entity=("origin", "dest"), source=landed,
                    features={"route_delay_7d": agg.mean(col.arr_delay, "7d")}),
    ev.feature_view("plane", entity=("tailnum",), source=ev.source("planes"),
                    features=[col.built]),
    time="sched_dep",
    request={"carrier": str, "origin": str, "dest": str, "tailnum": str | None, "distance": float,
             "hour": float},
    on_demand={"distance": col.distance, "hour": col.hour,
               "carrier_code": col.carrier.code(CARRIERS),
               "origin_code": col.origin.code(("EWR", "JFK", "LGA")),
               "dest_bucket": col.dest.hash_bucket(64)},
)  # fmt: skip


# --- pipeline: plain functions; a step whose inputs did not change is not run again --------------
@ev.step
def labelled(flights: ev.Table, until: datetime) -> ev.Table:
    """The flights whose outcome was known at `until`; why the others are not among them is kept."""
    rows = flights.drop_where(
        "not_landed_yet",
        f"landed_at > TIMESTAMP '{until:%Y-%m-%d %H:%M:%S}'",
        reason="its outcome was not known yet",
    )
    rows = rows.drop_where(
        "cancelled",
        "dep_delay IS NULL",
        reason="cancelled: it never left, so it was neither late nor on time",
    )
    rows = rows.drop_where(
        "diverted",
        "arr_delay IS NULL",
        reason="diverted or lost from the records: it has no arrival delay",
    )
    return rows.with_columns(late="CAST(arr_delay > 15 AS DOUBLE)")


@ev.step
def features(rows: ev.Table, flights: ev.Table, weather: ev.Table, planes: ev.Table) -> ev.Table:
    """The features of each flight, as they were known at its scheduled departure."""
    sources = {"flights": flights, "weather": weather, "planes": planes}
    return delay_features.history(rows, sources=sources)


@ev.step
def train(rows: ev.Table, until: datetime, reference: bytes, trees: int = 90) -> ev.ModelArtifact:
    """A LightGBM model of all that was known at `until`."""
    model = fit(rows, trees)
    newest = rows.take(range(max(len(rows) - 10_000, 0), len(rows)))
    x, y = newest.to_numpy(delay_features.names), newest.to_numpy(["late"])[:, 0]
    ev.log(rows=len(rows), late_share=y.mean(), train_brier=((model.predict(x) - y) ** 2).mean())
    return ev.model(model, feature_set=delay_features, trained_until=until,
                    rows=len(rows), params=PARAMETERS | {"trees": trees}, reference=reference,
                    data={name: version for name, version, _ in rows.sources})  # fmt: skip


@ev.step
def first_reference(rows: ev.Table, until: datetime, days: int = 31) -> bytes:
    """What the monitors compare the first model with: a stand-in, on days later than its training.

    Later models bring such days along: the hold-out of the gate that they passed.
    """
    held_out_from = until - timedelta(days=days)
    moment = f"TIMESTAMP '{held_out_from:%Y-%m-%d %H:%M:%S}'"
    stand_in = fit(rows.filter(f"landed_at <= {moment}"), 90)
    later = rows.filter(f"sched_dep > {moment}")
    x = later.to_numpy(delay_features.names)
    by_name = dict(zip(delay_features.names, x.T, strict=True))
    late = later.to_numpy(["late"])[:, 0]
    return ev.make_reference(stand_in.predict(x), late, later.column("sched_dep"), by_name)


def fit(rows: ev.Table, trees: int) -> lightgbm.Booster:
    names = list(delay_features.names)
    data = lightgbm.Dataset(rows.to_numpy(names), rows.to_numpy(["late"])[:, 0], feature_name=names)
    return lightgbm.train(PARAMETERS, data, trees)


@ev.pipeline
def retrain(until: datetime) -> object:
    """From the newest data to a registered candidate."""
    flights, weather, planes = (ev.read(name) for name in ("flights", "weather", "planes"))
    rows = features(labelled(flights, until), flights, weather, planes)
    reference = b"" if ev.champion(NAME) else first_reference(rows, until)
    return ev.register(NAME, train(rows, until, reference), feature_set=delay_features)


# --- the loop: what watches the model, what starts a retraining, what a candidate must show ------
ev.loop(
    NAME,
    owner=OWNER,
    pipeline=retrain,
    charter=ev.charter(
        problem="Say at the scheduled departure whether a flight will arrive over 15 minutes late.",
        value="Passengers with a tight connection are rebooked before they board.",
        success="A mean Brier score below that of a model that is never renewed.",
        sla=[ev.sla("prediction", "50ms"), ev.sla("retraining", "10min"),
             ev.sla("deployment", "4d"), ev.sla("renewal", "120d")],
    ),
    watch=[ev.performance("auc", fire="3 of 5 days", clear="1 of 5", width=0.67, name="auc"),
           ev.performance("brier", fire="3 of 5 days", clear="1 of 5", width=0.67, name="brier"),
           ev.quality("nulls", floor=0.05),
           ev.drift(fire="2 of 3 weeks"), ev.prediction_drift(fire="2 of 3 weeks")],
    retrain_on=[ev.alert("auc"), ev.alert("brier"),  # not on drift: it tells almost nothing here
                ev.schedule("0 0 1 * *")],  # a model that has not got worse may still be behind
    gate=[ev.beats_champion("auc", on="latest 14 days"),
          ev.beats_champion("brier", on="latest 14 days"),
          ev.no_group_worse("carrier", "brier", by=0.02, on="latest 14 days")],
    rollout=ev.canary(25, 100, every="1d", shadow="1d",
                      abort_on=[ev.slo("p99_ms < 50"), ev.slo("error_rate < 0.1%")]),
    cooldown="7d", cooldown_most="14d", budget="4 per month",
    min_new="10%",  # fewer new labels could hardly make a difference that the gate can see
    contracts={"flights": FLIGHTS, "weather": WEATHER, "planes": PLANES},
)  # fmt: skip
