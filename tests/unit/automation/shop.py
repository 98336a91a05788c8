"""A small shop for CI: a source with data, a champion that serves, and labels; and a loop file."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import everloop as ev
from everloop.core.context import using
from everloop.core.ids import new_ids
from everloop.core.time import ManualClock, to_micros
from everloop.pipelines.load import load_pipeline
from everloop.registry.flavors import load_predictor

NAME = "sales"
START = datetime(2024, 1, 1, tzinfo=UTC)
DAYS, HELD_OUT, A_DAY = 40, 12, 60

LOOP = '''
"""Will they buy?"""
from datetime import datetime

import lightgbm
import numpy as np

import everloop as ev

VISITS = ev.Schema(
    fields=(
        ev.Field("id", "string", nullable=False),
        ev.Field("visited", "timestamp", nullable=False),
        ev.Field("price", "float64", nullable=False, ge=0, le=1, owner="prices@example.org"),
        ev.Field("weather", "float64", nullable=False),
        ev.Field("bought", "float64", nullable=False, among=(0, 1)),
    ),
    key=("id",),
    time="visited",
)
NAMES = ("price", "weather")


@ev.step
def known(visits: ev.Table, until: datetime) -> ev.Table:
    return visits.filter(f"visited <= TIMESTAMP '{until:%Y-%m-%d %H:%M:%S}'")


@ev.step
def train(rows: ev.Table, until: datetime, trees: int = 15) -> ev.ModelArtifact:
    x, y = rows.to_numpy(NAMES), rows.to_numpy(["bought"])[:, 0]
    options = {"objective": "binary", "num_leaves": 7, "verbose": -1, "num_threads": 1, "seed": 1}
    booster = lightgbm.train(options, lightgbm.Dataset(x, y, feature_name=list(NAMES)), trees)
    ev.log(rows=len(rows), loss=0.5)
    return ev.model(booster, trained_until=until, rows=len(rows))


@ev.pipeline
def retrain(until: datetime, trees: int = 15) -> object:
    visits = ev.read("visits")
    return ev.register("sales", train(known(visits, until), until, trees))


ev.loop(
    "sales", owner="ops@example.org", pipeline=retrain,
    gate=[ev.beats_champion("brier", on="latest 12 days"),
          ev.no_group_worse("shop", "brier", by=0.05, on="latest 12 days", min_rows=50),
          ev.threshold("auc", 0.7, on="latest 12 days"),
          ev.directional("price", +0.3, "up", by=0.6),
          ev.answers("dear", {"price": 0.95, "weather": 0.5}, "> 0.5"),
          ev.max_latency_ms(5000), ev.max_size_mb(5)],
    contracts={"visits": VISITS},
)
'''


def visits(days: int = DAYS) -> pa.Table:
    """The dearer, the likelier (it is a queer shop)."""
    n = days * A_DAY
    random = np.random.default_rng(5)
    price = random.uniform(size=n)
    bought = (random.uniform(size=n) < 1 / (1 + np.exp(-8 * (price - 0.5)))).astype(float)
    at = to_micros(START) + np.arange(n) * (86_400_000_000 // A_DAY)
    return pa.table(
        {
            "id": [f"visit-{i}" for i in range(n)],
            "visited": pa.array(at, pa.timestamp("us", tz="UTC")),
            "price": price,
            "weather": random.uniform(size=n),
            "bought": bought,
        }
    )


def make_source(folder: Path, *, one_class: bool = False) -> Path:
    """A workspace where a first model has served for twelve days."""
    home, file = folder / "live", folder / "live.py"
    file.write_text(LOOP)
    end = START + timedelta(days=DAYS)
    until = end - timedelta(days=HELD_OUT)
    rows = visits()
    with ev.open(home, clock=ManualClock(end), actor="the live one") as ws, using(ws):
        pipeline: Any = load_pipeline(f"{file}:retrain")
        ws.data.commit("visits", rows, schema=_schema(file), owner="visits@example.org")
        made = pipeline.run(until=until, trees=10)
        ws.deployment.create(NAME, model=NAME, version=made.version, owner="ops@example.org")
        scorer = load_predictor(made, ws.registry.files(NAME, made.version))
        later = rows.slice((DAYS - HELD_OUT) * A_DAY)
        n = later.num_rows
        x = np.column_stack([later.column("price").to_numpy(), later.column("weather").to_numpy()])
        log = {
            "id": new_ids(n),
            "request_id": later.column("id"),
            "at": later.column("visited"),
            "version": pa.array([made.version] * n, pa.int32()),
            "arm": ["champion"] * n,
            "value": scorer.predict(x),
            "request": ['{"shop": "north"}', '{"shop": "south"}'] * (n // 2),
            "f.price": x[:, 0],
            "f.weather": x[:, 1],
        }
        ws.predictions.log(NAME, pa.table(log))
        truth = np.zeros(n) if one_class else later.column("bought").to_numpy()
        labels = {
            "request_id": later.column("id"),
            "label": truth,
            "known_at": later.column("visited"),
        }
        ws.predictions.labels(NAME, pa.table(labels))
    return home


def _schema(file: Path) -> ev.Schema:
    from everloop.pipelines.load import load_module

    schema: ev.Schema = load_module(file).VISITS
    return schema
