"""A small world whose truth changes one day, and a loop that lives in it with every real room."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from everloop.core.ids import new_ids
from everloop.core.time import ManualClock, to_micros
from everloop.registry.flavors import load_predictor
from everloop.workspace import Workspace

NAME = "demand"
START = datetime(2024, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
ROWS = 250

LOOP_FILE = '''
"""The user's file: what sells depends on the price until the SHIFT, then on the weather."""
from datetime import datetime, timedelta, timezone
import lightgbm
import numpy as np
import everloop as ev
from everloop.monitoring.reference import make_reference

SHIFT = datetime({shift}, tzinfo=timezone.utc)
START = datetime(2024, 1, 1, tzinfo=timezone.utc)

def day_rows(day, n={rows}):
    random = np.random.default_rng((day - START).days + 1000)
    x = random.normal(size=(n, 2))
    odds = 2.5 * (x[:, 1] if day >= SHIFT else x[:, 0])
    y = (random.random(n) < 1 / (1 + np.exp(-odds))).astype(float)
    return x, y

def span(since, until):
    days = [since + timedelta(days=d) for d in range((until - since).days)]
    parts = [day_rows(day) for day in days]
    at = np.repeat([int(day.timestamp() * 1e6) for day in days], {rows})
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts]), at

@ev.step
def train(until: datetime, trees: int = 20) -> ev.ModelArtifact:
    {broken}
    held = until - timedelta(days=4)
    x, y, _ = span(held - timedelta(days={memory}), held)
    booster = lightgbm.train(
        {{"objective": "binary", "num_leaves": 7, "verbose": -1, "num_threads": 1, "seed": 1}},
        lightgbm.Dataset(x, y, feature_name=["price", "weather"]), trees,
    )
    later, truth, at = span(held, until)
    scores = np.asarray(booster.predict(later))
    features = {{"price": later[:, 0], "weather": later[:, 1]}}
    reference = make_reference(scores, truth, at, features)
    return ev.model(booster, trained_until=until, params={{"trees": trees}}, reference=reference)

@ev.pipeline
def retrain(until: datetime) -> object:
    until = until.replace(hour=0, minute=0, second=0, microsecond=0)
    return ev.register("demand", train(until))

ev.loop(
    "demand", owner="ops@example.org", pipeline=retrain,
    charter=ev.charter(problem="how much will sell", value="less waste",
                       sla=[ev.sla("prediction", "50ms"), ev.sla("renewal", "90d"),
                            ev.sla("deployment", "5d"), ev.sla("retraining", "10min")]),
    watch=[ev.performance("auc", label_delay="1d", fire="3 of 5 days", width=4, min_rows=100),
           ev.quality(), ev.drift()],
    retrain_on=[ev.alert("performance")],
    gate=[{gate} ev.beats_champion("brier", margin=0.01, on="latest 8 days"),
          ev.no_group_worse("shop", "brier", by=0.05, on="latest 8 days", min_rows=50)],
    rollout=ev.canary(50, 100, every="1d", shadow="1d", min_requests=20,
                      abort_on=[ev.slo("p99_ms < 500")]),
    cooldown="5d", budget="6 per month",
)
'''


class ClosedWorld:
    """Serves, labels and ticks day by day."""

    def __init__(
        self,
        folder: Path,
        *,
        shift: int = 8,
        memory: int = 6,
        broken: str = "pass",
        gate: str = "",
    ) -> None:
        self.clock = ManualClock(START)
        self.workspace = Workspace(str(folder / "home"), clock=self.clock, actor="test")
        self.file = folder / f"demand_{folder.name.replace('-', '_')}.py"
        self.shift = START + shift * DAY
        text = LOOP_FILE.format(
            shift=f"{self.shift.year}, {self.shift.month}, {self.shift.day}",
            rows=ROWS,
            memory=memory,
            broken=broken,
            gate=gate,
        )
        self.file.write_text(text)
        self.runner = self.workspace.loop_runner(folder)
        self.runner.load(self.file)
        self._predictors: dict[int, Any] = {}
        self.latency_us = 900

    def begin(self) -> None:
        """The first tick trains and deploys the first model."""
        self.runner.tick()

    def live(self, days: int) -> list[str]:
        """Serve, label and tick each day; what firings came to."""
        told = []
        for _ in range(days):
            day = self.clock.now()
            self._serve(day)
            self.clock.set(day + DAY)
            told += [firing.reason for firing in self.runner.tick().finished]
        return told

    def champion(self) -> int:
        arm = self.workspace.deployment.deployment(NAME).arm("champion")
        assert arm is not None
        return arm.version

    def close(self) -> None:
        self.workspace.close()

    def _serve(self, day: datetime) -> None:
        random = np.random.default_rng((day - START).days + 1000)
        x = random.normal(size=(ROWS, 2))
        odds = 2.5 * (x[:, 1] if day >= self.shift else x[:, 0])
        y = (random.random(ROWS) < 1 / (1 + np.exp(-odds))).astype(float)
        requests = [f"{day:%m%d}-{i}" for i in range(ROWS)]
        deployment = self.workspace.deployment.deployment(NAME)
        begin = 0
        for arm in deployment.arms:
            size = ROWS if arm.name == "shadow" else round(ROWS * arm.weight / 100)
            rows = slice(0, ROWS) if arm.name == "shadow" else slice(begin, begin + size)
            begin += 0 if arm.name == "shadow" else size
            self._log(day, x[rows], requests[rows], arm.version, arm.name, deployment.revision)
        known_at = pa.array([to_micros(day + DAY)] * ROWS, pa.timestamp("us", tz="UTC"))
        labels = pa.table({"request_id": requests, "label": y, "known_at": known_at})
        self.workspace.predictions.labels(NAME, labels)

    def _log(
        self, day: datetime, x: Any, requests: list[str], version: int, arm: str, revision: int
    ) -> None:
        n = len(requests)
        at = to_micros(day) + np.linspace(0, 86_399_000_000, n).astype(np.int64)
        shops = ['{"shop": "north"}', '{"shop": "south"}']
        table = pa.table(
            {
                "id": new_ids(n),
                "request_id": requests,
                "at": pa.array(at, pa.timestamp("us", tz="UTC")),
                "version": pa.array([version] * n, pa.int32()),
                "revision": pa.array([revision] * n, pa.int32()),
                "arm": [arm] * n,
                "value": self._predictor(version).predict(x),
                "latency_us": [self.latency_us] * n,
                "request": [shops[i % 2] for i in range(n)],
                "f.price": x[:, 0],
                "f.weather": x[:, 1],
            }
        )
        self.workspace.predictions.log(NAME, table)

    def _predictor(self, version: int) -> Any:
        if version not in self._predictors:
            registry = self.workspace.registry
            found = registry.version(NAME, version)
            self._predictors[version] = load_predictor(found, registry.files(NAME, version))
        return self._predictors[version]
