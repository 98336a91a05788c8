"""Serving on the real services: a registered model, a deployment, its rollout, its log."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import lightgbm
import numpy as np
import orjson
import pytest
from prometheus_client import CollectorRegistry

from everloop.api.oip import InferenceApp
from everloop.core.machines import RolloutPlan
from everloop.core.model import Signature
from everloop.core.schema import Field, Schema
from everloop.core.time import ManualClock
from everloop.registry.flavors import load_predictor, pack
from everloop.serving.loader import RouteLoader, Router
from everloop.serving.log import PredictionLog
from everloop.serving.metrics import ServingMetrics
from everloop.workspace import Workspace

# A worker has the catalog and the objects at hand; it does not serve through another server.
pytestmark = pytest.mark.parametrize("ws", ["sqlite", "postgres"], indirect=True)

SIGNATURE = Signature(
    Schema((Field("x", "float64", nullable=False), Field("y", "float64"))),
    Schema((Field("late", "float64"),)),
)


def booster(sign: float) -> Any:
    rng = np.random.default_rng(3)
    features = rng.normal(size=(200, 2))
    data = lightgbm.Dataset(features, sign * features[:, 0], feature_name=["x", "y"])
    return lightgbm.train({"verbose": -1, "num_threads": 1, "num_leaves": 4}, data, 3)


@pytest.fixture
def deployed(ws: Workspace) -> Workspace:
    for sign in (1.0, -1.0):
        ws.registry.register("delay", pack(booster(sign), signature=SIGNATURE))
    ws.deployment.create("delay", model="delay", version=1)
    return ws


def router_of(ws: Workspace) -> Router:
    loader = RouteLoader(ws.registry, load_predictor)
    return Router(ws.deployment, loader, worker="worker-0", pid=7)


def test_rollout_is_followed_logged_and_labelled(deployed: Workspace, clock: ManualClock) -> None:
    ws, router = deployed, router_of(deployed)
    router.refresh()
    log = PredictionLog(ws.predictions)
    xs = np.linspace(-2, 2, 40)
    columns = {"x": xs, "y": np.zeros(40)}
    ids = [f"flight-{i}" for i in range(40)]
    at_us = np.full(40, int(clock.now().timestamp() * 1e6))
    wanted = booster(1.0).predict(np.column_stack([xs, np.zeros(40)]))

    first = router.route("delay").answer(columns, ids, at_us=at_us)
    assert first.values.tolist() == wanted.tolist()
    log.append(first)
    plan = RolloutPlan(steps=(50.0, 100.0), every_s=60, shadow_s=60)
    ws.deployment.start_rollout("delay", 2, plan)
    assert router.refresh() == ["delay"]
    router.acknowledge()
    shadowed = router.route("delay").answer(columns, ids, at_us=at_us)
    assert set(shadowed.versions.tolist()) == {1}
    log.append(shadowed)
    clock.advance(seconds=61)
    ws.deployment.advance("delay")
    assert router.refresh() == ["delay"]
    canary = router.route("delay").answer(columns, ids, at_us=at_us)
    assert set(canary.versions.tolist()) == {1, 2}
    log.append(canary)
    log.flush()
    log.close()

    assert [worker.revision for worker in ws.deployment.workers("delay")] == [2]
    since = clock.now() - timedelta(days=1)
    rows = ws.predictions.read("delay", since=since, until=clock.now()).to_pylist()
    assert len(rows) == 40 * 4
    shadow = [row for row in rows if row["arm"] == "shadow"]
    assert {row["version"] for row in shadow} == {2}
    assert sorted({row["request_id"] for row in shadow}) == sorted(ids)
    kept = ws.predictions.get(canary.ids[0])
    assert (kept.request_id, kept.value) == ("flight-0", canary.values[0])
    assert kept.features == {"x": xs[0], "y": 0.0}


def test_failed_prediction_is_kept_without_a_value(deployed: Workspace) -> None:
    class Failing:
        names = ("x", "y")

        def predict(self, matrix: np.ndarray) -> np.ndarray:
            if matrix.any():
                raise RuntimeError
            return np.zeros(len(matrix))

    router = Router(deployed.deployment, RouteLoader(deployed.registry, lambda _v, _f: Failing()))
    router.refresh()
    answers = router.route("delay").answer({"x": [1.0], "y": [1.0]})
    log = PredictionLog(deployed.predictions)
    log.log_batch(answers)
    log.close()
    since = deployed.predictions.segments("delay")[0].from_at
    (row,) = deployed.predictions.read(
        "delay", since=since, until=since + timedelta(seconds=1)
    ).to_pylist()
    assert (row["value"], row["error"]) == (None, "RuntimeError")


def test_http_and_batch_give_equal_answers(deployed: Workspace) -> None:
    router = router_of(deployed)
    router.refresh()
    app = InferenceApp(router, None, ServingMetrics(CollectorRegistry()))
    route = router.route("delay")
    xs = np.linspace(-1, 1, 20)
    batch = route.answer({"x": xs, "y": np.full(20, np.nan)}).values
    for x, wanted in zip(xs.tolist(), batch.tolist(), strict=True):
        body = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP64", "data": [x]}]}
        reply = app._do_infer(route, None, {}, orjson.dumps(body))
        assert orjson.loads(reply.body)["outputs"][0]["data"] == [wanted]


def test_hundred_thousand_rows_are_one_call(deployed: Workspace) -> None:
    router = router_of(deployed)
    router.refresh()
    route = router.route("delay")
    columns = route.validator.columns({"x": np.arange(100_000.0), "y": np.zeros(100_000)})
    answers = route.answer(columns)
    assert len(set(answers.ids)) == 100_000
