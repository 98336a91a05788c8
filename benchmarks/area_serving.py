"""Serving: one row over HTTP, against a bare ASGI app with the same model on the same server."""

from __future__ import annotations

import http.client
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np

from benchmarks.harness import Context, Row, bench
from everloop.core.process import ChildProcess
from everloop.serving.supervisor import bind

FEATURES = 30
#: CPU of the whole server for one row at concurrency 1, us, with an MLP of about 8 us on ONNX
#: Runtime, on another run of another machine (its bare echo: 69-112): an order of magnitude only.
QUOTED_CPU_US = {
    "MLServer 1.7.1 (quoted, MLP)": 1480.0,
    "LitServe 0.2.19 (quoted, MLP)": 1337.0,
    "BentoML 1.4.39 (quoted, MLP)": 3819.0,
    "Ray Serve 2.60 (quoted, MLP)": 16517.0,
}


@bench
def one_row(context: Context) -> Iterator[Row]:
    """Requests of one row on a kept connection, in turns of fifty to either server."""
    turns = context.repeats(40)
    rng = np.random.default_rng(7)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.txt"
        booster = train(rng)
        booster.save_model(path)
        rows = rng.normal(size=(50, FEATURES))
        names = booster.feature_name()
        bodies = [body(names, row) for row in rows]
        wanted = booster.predict(rows).tolist()
        with server("everloop", path) as ours, server("bare", path) as bare:
            sides = {"everloop": ours, "bare": bare}
            equal = all(side.values(bodies) == wanted for side in sides.values())
            latency: dict[str, list[float]] = {name: [] for name in sides}
            cpu: dict[str, list[float]] = {name: [] for name in sides}
            for _ in range(turns):
                for name, side in sides.items():
                    times, used = side.turn(bodies)
                    latency[name] += times
                    cpu[name].append(used / len(bodies))
    common: dict[str, Any] = {
        "area": "serving",
        "unit": "us",
        "limit_name": "bare ASGI app with the same LightGBM model, uvicorn + httptools + uvloop",
        "answers_equal": equal,
    }
    yield Row(
        work="infer, 1 row x 30 features, JSON, p50",
        everloop=statistics.median(latency["everloop"]),
        limit=statistics.median(latency["bare"]),
        repeats=turns * len(bodies),
        **common,
    )
    yield Row(
        work="infer, 1 row x 30 features, JSON, CPU of the server",
        everloop=statistics.median(cpu["everloop"]),
        limit=statistics.median(cpu["bare"]),
        repeats=turns,
        peers=QUOTED_CPU_US,
        **common,
    )


def train(rng: np.random.Generator) -> lightgbm.Booster:
    features = rng.normal(size=(5_000, FEATURES))
    label = (features[:, 0] + features[:, 1] * features[:, 2] > 0).astype(float)
    data = lightgbm.Dataset(features, label)
    options = {"objective": "binary", "num_leaves": 31, "verbose": -1, "num_threads": 1}
    return lightgbm.train(options, data, 150)


def body(names: list[str], row: np.ndarray) -> bytes:
    tensors = [
        {"name": name, "shape": [1], "datatype": "FP64", "data": [value]}
        for name, value in zip(names, row.tolist(), strict=True)
    ]
    return json.dumps({"inputs": tensors}).encode()


class Side:
    """One running server and a kept connection to it."""

    def __init__(self, pid: int, port: int) -> None:
        self.pid = pid
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def ask(self, content: bytes) -> bytes:
        self.connection.request("POST", "/v2/models/delay/infer", content)
        return self.connection.getresponse().read()

    def values(self, bodies: list[bytes]) -> list[float]:
        return [json.loads(self.ask(one))["outputs"][0]["data"][0] for one in bodies]

    def turn(self, bodies: list[bytes]) -> tuple[list[float], float]:
        """Microseconds of each request, and CPU microseconds of the server over all."""
        before = self.cpu_us()
        times = []
        for content in bodies:
            start = time.perf_counter_ns()
            self.ask(content)
            times.append((time.perf_counter_ns() - start) / 1_000)
        return times, self.cpu_us() - before

    def cpu_us(self) -> float:
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1_000


@contextmanager
def server(role: str, path: Path) -> Iterator[Side]:
    with bind("127.0.0.1", 0) as listening:
        fd = listening.fileno()
        command = (sys.executable, "-m", "benchmarks.serving_app", role, str(path), str(fd))
        child = ChildProcess(command, pass_fds=(fd,), environment={"OMP_NUM_THREADS": "1"})
        side = Side(child.pid, listening.getsockname()[1])
        try:
            yield side
        finally:
            side.connection.close()
            child.terminate()
            if not child.wait(20):
                child.kill()
