"""The third level of maturity: from a commit to models that renew themselves, and nobody between.

What a person does here is to push commits. Whatever follows is done by the commands of the delivery
script below, which a CI runs for each commit, and by the supervisor.
"""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import everloop as ev
from everloop.automation.deploying import Deployer
from everloop.core.ids import new_ids
from everloop.core.time import ManualClock, to_micros
from everloop.registry.flavors import load_predictor

NAME = "demand"
DAY = timedelta(days=1)
ROWS = 250
#: The days end today, as the commands tell the time by the machine.
TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
START = TODAY - 64 * DAY
#: From here on it is the weather that decides, and no longer the price.
SHIFT = START + 28 * DAY

PROJECT = '''
"""What will be sold, by price and weather."""

from datetime import datetime

import lightgbm

import everloop as ev
from everloop import col
from trees import TREES

SALES = ev.Schema(
    fields=(
        ev.Field("id", "string", nullable=False, semantic="id"),
        ev.Field("sold_at", "timestamp", nullable=False),
        ev.Field("price", "float64", nullable=False, ge=-10, le=10),
        ev.Field("weather", "float64", nullable=False, ge=-10, le=10),
        ev.Field("sold", "float64", nullable=False, among=(0, 1)),
    ),
    key=("id",),
    time="sold_at",
)

features = ev.feature_set(
    "demand-features",
    time="sold_at",
    request={"price": float, "weather": float},
    on_demand={"price": col.price, "weather": col.weather},
)


@ev.step
def train(rows: ev.Table, until: datetime, trees: int) -> ev.ModelArtifact:
    past = rows.filter(f"sold_at < TIMESTAMP '{until:%Y-%m-%d}'")
    last = max(past.to_arrow()["sold_at"].to_pylist())
    latest = past.filter(f"sold_at > TIMESTAMP '{last:%Y-%m-%d}' - INTERVAL 4 DAY")
    known = features.history(latest)
    x, y = known.to_numpy(features.names), known.to_numpy(["sold"])[:, 0]
    data = lightgbm.Dataset(x, y, feature_name=list(features.names))
    booster = lightgbm.train(
        {"objective": "binary", "num_leaves": 7, "verbose": -1, "num_threads": 1, "seed": 1},
        data, trees,
    )
    ev.log(rows=float(len(y)))
    scores = booster.predict(x)
    at = known.to_arrow()["sold_at"].cast("int64").to_numpy()
    values = {name: x[:, n] for n, name in enumerate(features.names)}
    reference = ev.make_reference(scores, y, at, values)
    return ev.model(
        booster, feature_set=features, trained_until=until, reference=reference,
        params={"trees": trees},
    )


@ev.pipeline
def retrain(until: datetime) -> object:
    until = until.replace(hour=0, minute=0, second=0, microsecond=0)
    return ev.register("demand", train(ev.read("sales"), until, TREES), feature_set=features)


ev.loop(
    "demand", owner="ops@example.org", pipeline=retrain, contracts={"sales": SALES},
    charter=ev.charter(problem="how much will sell", value="less waste",
                       sla=[ev.sla("renewal", "90d")]),
    watch=[ev.performance("auc", label_delay="1d", fire="3 of 5 days", width=4, min_rows=100),
           ev.quality(), ev.drift()],
    retrain_on=[ev.alert("performance")],
    gate=[ev.max_latency_ms(500), ev.beats_champion("brier", on="latest 8 days"),
          ev.no_group_worse("shop", "brier", by=0.05, on="latest 8 days", min_rows=50)],
    rollout=ev.canary(50, 100, every="1d", shadow="1d", min_requests=20,
                      abort_on=[ev.slo("p99_ms < 500")]),
    cooldown="4d", budget="6 per month",
)
'''

#: What CI does with each commit, in a fresh clone.
DELIVERY = (
    "ci demand.py --against {live} --record --sample 20%",
    "package build demand.py --dir {live}",
    "package promote demand@dev staging --reason delivery --dir {live}",
    "package promote demand@staging production --reason delivery --dir {live}",
)


def everloop(folder: Path, command: str) -> str:
    words = [sys.executable, "-m", "everloop", *command.split()]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def git(folder: Path, *words: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)


class Company:
    """A repository whose commits are delivered, and a production that lives day by day."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.live = folder / "production" / ".everloop"
        self.origin = folder / "origin"
        self.origin.mkdir()
        git(self.origin, "init", "-q", "-b", "main")
        self.clock = ManualClock(START)
        self.workspace = ev.open(self.live, clock=self.clock, actor="ops")
        self.deployer = Deployer(self.workspace, [f"{NAME}@production"])
        self.runner = self.workspace.loop_runner(self.live.parent)
        self.commits = 0
        self._predictors: dict[int, Any] = {}

    def push(self, **files: str) -> Path:
        """Commit and deliver; the clone that CI worked in."""
        for name, text in files.items():
            (self.origin / f"{name}.py").write_text(text)
        git(self.origin, "add", ".")
        git(self.origin, "commit", "-qm", "a change")
        self.commits += 1
        clone = self.folder / f"clone-{self.commits}"
        git(self.folder, "clone", "-q", str(self.origin), str(clone))
        for command in DELIVERY:
            everloop(clone, command.format(live=self.live))
        return clone

    def live_on(self, days: int) -> None:
        """Serve, learn the truth and tick, day by day."""
        for _ in range(days):
            self._serve(self.clock.now())
            self.sell()
            self.deployer.follow()
            self.runner.tick()

    def sell(self) -> None:
        """Record what is sold on a day; then it is the next one."""
        day = self.clock.now()
        x, y, at, ids = self._truth(day)
        rows = {"id": ids, "sold_at": at, "price": x[:, 0], "weather": x[:, 1], "sold": y}
        schema = None if self.workspace.data.datasets() else _schema(self.origin)
        self.workspace.data.commit("sales", pa.table(rows), schema=schema)
        self.clock.set(day + DAY)

    def _truth(self, day: datetime) -> tuple[Any, Any, Any, list[str]]:
        random = np.random.default_rng((day - START).days + 1000)
        x = random.normal(size=(ROWS, 2)).clip(-9, 9)
        odds = 2.5 * (x[:, 1] if day >= SHIFT else x[:, 0])
        y = (random.random(ROWS) < 1 / (1 + np.exp(-odds))).astype(float)
        at = to_micros(day) + np.linspace(0, 86_399_000_000, ROWS).astype(np.int64)
        return (
            x,
            y,
            pa.array(at, pa.timestamp("us", tz="UTC")),
            [f"{day:%m%d}-{i}" for i in range(ROWS)],
        )

    def _serve(self, day: datetime) -> None:
        x, y, at, requests = self._truth(day)
        deployment = self.workspace.deployment.deployment(NAME)
        begin = 0
        for arm in deployment.arms:
            size = ROWS if arm.name == "shadow" else round(ROWS * arm.weight / 100)
            first = 0 if arm.name == "shadow" else begin
            begin += 0 if arm.name == "shadow" else size
            some = slice(first, first + size)
            answers = {
                "id": new_ids(size),
                "request_id": requests[some],
                "at": at[some],
                "version": pa.array([arm.version] * size, pa.int32()),
                "revision": pa.array([deployment.revision] * size, pa.int32()),
                "arm": [arm.name] * size,
                "value": self._predictor(arm.version).predict(x[some]),
                "latency_us": [900] * size,
                "request": [f'{{"shop": "{"north" if i % 2 else "south"}"}}' for i in range(size)],
                "f.price": x[some, 0],
                "f.weather": x[some, 1],
            }
            self.workspace.predictions.log(NAME, pa.table(answers))
        known_at = pa.array([to_micros(day + DAY)] * ROWS, pa.timestamp("us", tz="UTC"))
        labels = pa.table({"request_id": requests, "label": y, "known_at": known_at})
        self.workspace.predictions.labels(NAME, labels)

    def _predictor(self, version: int) -> Any:
        if version not in self._predictors:
            registry = self.workspace.registry
            found = registry.version(NAME, version)
            self._predictors[version] = load_predictor(found, registry.files(NAME, version))
        return self._predictors[version]

    def champion(self) -> int:
        arm = self.workspace.deployment.deployment(NAME).arm("champion")
        assert arm is not None
        return arm.version


def _schema(folder: Path) -> Any:
    names: dict[str, Any] = {"ev": ev}
    text = PROJECT[PROJECT.index("SALES =") : PROJECT.index("features =")]
    exec(compile(text, str(folder / "demand.py"), "exec"), names)
    return names["SALES"]


def test_commits_are_delivered_and_models_renew_themselves(tmp_path: Path) -> None:
    company = Company(tmp_path)
    for _ in range(25):  # before there is a model there are sales
        company.sell()
    company.push(demand=PROJECT, trees="TREES = 20\n")
    # From now on only what CI has passed comes to production.
    company.workspace.packages.protect(NAME, "production", ci=True)
    company.deployer.deploy()
    company.runner.tick()
    first = company.champion()

    company.live_on(2)
    clone = company.push(trees="TREES = 25\n")
    # A try of the same commit, by hand and tracked; it takes nobody's place.
    everloop(clone, f"run demand.py:retrain until={TODAY:%Y-%m-%d} --dir {company.live}")
    company.live_on(34)
    assert company.champion() > first

    found = company.workspace.governance.maturity(NAME)
    told = [c for item in found.items for c in item.conditions if c.grade != "met"]
    assert told == []
    assert (found.level, found.name) == (2, "CI/CD automation")
    company.workspace.close()
