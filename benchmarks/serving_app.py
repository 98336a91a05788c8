"""The two servers that area_serving compares: `python -m benchmarks.serving_app ROLE MODEL FD`.

`bare` is the least that a Python server with this model has to do: parse the body, make the matrix,
predict, answer. `everloop` is a whole worker: it checks the request, routes it, names it, counts it
and logs it. Both run LightGBM with one thread on the same uvicorn settings.
"""

from __future__ import annotations

import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import orjson
import pyarrow.parquet as pq
import uvicorn

from everloop.api.serving import WorkerInference
from everloop.core.deploy import Arm, Deployment
from everloop.core.ids import new_id
from everloop.core.model import ModelVersion, Signature
from everloop.core.schema import Field, Schema
from everloop.serving.worker import ServingServices, run_worker, uvicorn_config

AT = datetime(2013, 1, 1, tzinfo=UTC)


class Booster:
    def __init__(self, path: Path) -> None:
        self.booster = lightgbm.Booster(model_file=path)
        self.names = tuple(self.booster.feature_name())

    def predict(self, matrix: np.ndarray) -> np.ndarray:
        return self.booster.predict(matrix, num_threads=1)


class Bare:
    def __init__(self, path: Path) -> None:
        self.model = Booster(path)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        document = orjson.loads(body)
        matrix = np.array([[tensor["data"][0] for tensor in document["inputs"]]])
        value = float(self.model.predict(matrix)[0])
        outputs = [{"name": "late", "shape": [1], "datatype": "FP64", "data": [value]}]
        answer = orjson.dumps({"model_name": "delay", "outputs": outputs})
        headers = [
            (b"content-length", b"%d" % len(answer)),
            (b"content-type", b"application/json"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


class OneModel:
    """Stands in for the catalog, so that only serving is measured."""

    def __init__(self, path: Path) -> None:
        names = Booster(path).names
        inputs = Schema(tuple(Field(name, "float64", nullable=False) for name in names))
        self.signature = Signature(inputs, Schema((Field("late", "float64"),)))

    def deployment(self, name: str) -> Deployment:
        return self.deployments()[0]

    def deployments(self) -> list[Deployment]:
        arm = Arm(name="champion", version=1, weight=100)
        one = Deployment(
            name="delay", model="delay", revision=1, arms=(arm,), created_at=AT, updated_at=AT
        )
        return [one]

    def acknowledge(self, name: str, worker: str, pid: int, revision: int) -> None:
        return

    def version(self, name: str, version: int) -> ModelVersion:
        return ModelVersion(
            name=name,
            version=version,
            digest="",
            files=(),
            flavor="lightgbm",
            tier="safe",
            signature=self.signature,
            created_at=AT,
            updated_at=AT,
        )

    def files(self, name: str, version: int) -> dict[str, bytes]:
        return {}


class Segments:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def log(self, deployment: str, rows: Any) -> None:
        pq.write_table(rows, self.folder / f"{new_id()}.parquet")


def main() -> int:
    role, path, fd = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    if role == "bare":
        uvicorn.Server(uvicorn_config(Bare(path))).run(sockets=[_socket(fd)])
        return 0
    one = OneModel(path)
    with tempfile.TemporaryDirectory() as folder:
        services = ServingServices(
            deployments=one,
            models=one,
            predictions=Segments(Path(folder)),
            load=lambda _version, _files: Booster(path),
        )
        return run_worker(fd, services, WorkerInference)


def _socket(fd: int) -> Any:
    import socket

    return socket.socket(fileno=fd)


if __name__ == "__main__":
    sys.exit(main())
