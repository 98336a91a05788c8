"""Serving in the server's process, and the guard before a worker: what starts also stops."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import lightgbm
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

import everloop as ev
from everloop.api.serving import WorkerInference
from everloop.core.model import Signature
from everloop.core.schema import Field, Schema
from everloop.serving.log import PredictionLog
from everloop.serving.metrics import ServingMetrics
from everloop.workspace import Workspace
from tests.servers import ask, serve
from tests.unit.serving_fakes import FakeSink, router

INFER = "/v2/models/delay/infer"
SIGNATURE = Signature(
    Schema((Field("x", "float64", nullable=False),)), Schema((Field("late", "float64"),))
)


def request(x: float = 1.0) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "shape": [1], "datatype": "FP64", "data": [x]}]}


@pytest.fixture
def deployed(tmp_path: Path) -> Workspace:
    """A workspace with a model to serve; the server closes it."""
    features = np.linspace(-1, 1, 100).reshape(-1, 1)
    data = lightgbm.Dataset(features, features[:, 0], feature_name=["x"])
    booster = lightgbm.train({"verbose": -1, "num_threads": 1, "num_leaves": 4}, data, 2)
    workspace = ev.open(tmp_path / ".everloop", actor="tester")
    workspace.registry.register("delay", ev.model(booster, signature=SIGNATURE))
    workspace.deployment.create("delay", model="delay", version=1)
    return workspace


# The server's own process


def test_clean_stop_of_the_server_stores_all_that_it_answered(
    deployed: Workspace, tmp_path: Path
) -> None:
    before = set(threading.enumerate())
    with serve(deployed) as url, httpx.Client(base_url=url) as client:
        answers = [client.post(INFER, json=request(x)) for x in (0.1, 0.2, 0.3)]
    assert [answer.status_code for answer in answers] == [200] * 3
    left = {thread.name for thread in set(threading.enumerate()) - before}
    assert left & {"prediction-log", "routes"} == set()
    with ev.open(tmp_path / ".everloop") as again:
        for answer in answers:
            kept = again.predictions.get(answer.headers["everloop-prediction-id"])
            assert kept.value == answer.json()["outputs"][0]["data"][0]


def test_first_requests_at_once_open_serving_once(deployed: Workspace) -> None:
    before = set(threading.enumerate())
    ready = threading.Barrier(8)

    def infer(url: str) -> int:
        with httpx.Client(base_url=url, timeout=60) as client:
            client.get("/health")
            ready.wait(60)
            return client.post(INFER, json=request()).status_code

    with serve(deployed) as url, ThreadPoolExecutor(8) as pool:
        assert list(pool.map(infer, [url] * 8)) == [200] * 8
        started = [thread.name for thread in set(threading.enumerate()) - before]
        assert started.count("routes") == started.count("prediction-log") == 1


# A worker's door


@pytest.fixture
def worker() -> Iterator[WorkerInference]:
    log = PredictionLog(FakeSink())
    yield WorkerInference(router(), log, ServingMetrics(CollectorRegistry()), "127.0.0.1")
    log.close()


def test_worker_answers_its_own_address_and_no_rebound_name(worker: WorkerInference) -> None:
    assert ask(worker, "GET", "/v2", host="127.0.0.1:7411").status == 200
    assert ask(worker, "GET", "/v2", host="localhost:7411").status == 200
    assert ask(worker, "GET", "/v2", host="rebound.example:7411").status == 403


def test_page_of_another_site_cannot_ask_a_worker(worker: WorkerInference) -> None:
    body = {"dataframe_records": [{"x": 1.0, "y": 2.0}]}
    forged = {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}
    assert ask(worker, "POST", "/invocations", body).status == 200
    assert ask(worker, "POST", "/invocations", body, headers=forged).status == 403


def test_draining_reaches_the_door_behind_the_guard(worker: WorkerInference) -> None:
    assert ask(worker, "GET", "/v2/health/ready").status == 200
    worker.draining = True
    assert worker.draining
    assert ask(worker, "GET", "/v2/health/ready").status == 503
