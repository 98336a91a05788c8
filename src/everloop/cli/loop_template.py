"""A first loop of your own. Replace the rows, the features and the model; keep the shape.

everloop run loop.py:retrain        # trains, and registers a candidate
everloop up loop.py                 # serves it, watches it, retrains it
"""

from __future__ import annotations

from datetime import UTC, datetime

import lightgbm
import numpy as np

import everloop as ev
from everloop import col

NAME = "my-model"

ROWS = ev.Schema(
    fields=(
        ev.Field("id", "string", nullable=False, semantic="id"),
        ev.Field("asked_at", "timestamp", nullable=False),
        ev.Field("size", "float64", nullable=False, ge=0),
        ev.Field("price", "float64", nullable=False, ge=0),
        ev.Field("bought", "float64", nullable=False, among=(0, 1)),
    ),
    key=("id",),
    time="asked_at",
)

features = ev.feature_set(
    "my-features",
    time="asked_at",
    request={"size": float, "price": float},
    on_demand={"size": col.size, "price_per_size": col.price / (col.size + 1)},
)


def made_up_rows(count: int = 2_000) -> ev.Table:
    """Rows to start with; put your own source here (a file, a query, a frame)."""
    random = np.random.default_rng(0)
    size, price = random.uniform(1, 50, count), random.uniform(1, 100, count)
    at = np.datetime64("2025-01-01", "us") + np.arange(count) * np.timedelta64(1, "h")
    bought = (random.uniform(0, 1, count) < 1 / (1 + price / size / 2)).astype(float)
    return ev.Table.of(
        {
            "id": [f"row-{number}" for number in range(count)],
            "asked_at": [moment.replace(tzinfo=UTC) for moment in at.astype(datetime)],
            "size": size,
            "price": price,
            "bought": bought,
        }
    )


@ev.step
def train(rows: ev.Table, until: datetime, trees: int = 50) -> ev.ModelArtifact:
    """A model, with what the monitors will compare its life with."""
    known = features.history(rows.filter(f"asked_at <= TIMESTAMP '{until:%Y-%m-%d %H:%M:%S}'"))
    x, y = known.to_numpy(features.names), known.to_numpy(["bought"])[:, 0]
    data = lightgbm.Dataset(x, y, feature_name=list(features.names))
    booster = lightgbm.train({"objective": "binary", "verbose": -1, "seed": 7}, data, trees)
    return ev.model(booster, feature_set=features, trained_until=until)


@ev.pipeline
def retrain(until: datetime = datetime(2025, 3, 1, tzinfo=UTC)) -> object:
    """From rows to a registered candidate."""
    ev.commit("rows", made_up_rows(), schema=ROWS)
    return ev.register(NAME, train(ev.read("rows"), until), feature_set=features)


ev.loop(
    NAME,
    owner="you@example.org",
    pipeline=retrain,
    charter=ev.charter(problem="Say who will buy.", value="Not stated yet."),
    watch=[ev.performance("brier", window="1d", label_delay="1d", fire="3 of 5")],
    retrain_on=[ev.alert("performance")],
    gate=[ev.beats_champion("brier", on="latest 14 days")],
    rollout=ev.canary(25, 100, every="1d", shadow="1d"),
    cooldown="7d",
    budget="4 per month",
)
