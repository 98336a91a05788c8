"""Stand-ins for the services that serving is composed of, with the same methods."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from blake3 import blake3

from everloop.core.deploy import Arm, Deployment
from everloop.core.model import ModelVersion, Signature
from everloop.core.run import Artifact
from everloop.core.schema import Field, Schema
from everloop.errors import BackendError
from everloop.serving.loader import RouteLoader, Router
from everloop.serving.route import RouteSnapshot

AT = datetime(2013, 4, 1, tzinfo=UTC)
INPUTS = Schema((Field("x", "float64", nullable=False), Field("y", "float64", nullable=False)))
OUTPUTS = Schema((Field("late", "float64", nullable=False),))


class Linear:
    """Answers ``version * 1000 + x + 10 y``, so that the version shows in the value."""

    def __init__(self, offset: float, names: tuple[str, ...] = ("x", "y")) -> None:
        self.offset = offset
        self.names = names
        self.rows: list[int] = []

    def predict(self, matrix: np.ndarray) -> np.ndarray:
        self.rows.append(len(matrix))
        weights = np.array([10.0**place for place in range(matrix.shape[1])])
        return self.offset + matrix @ weights


class Broken(Linear):
    """Answers zeros as in the warm-up, and raises on everything else."""

    def predict(self, matrix: np.ndarray) -> np.ndarray:
        if matrix.any():
            raise RuntimeError("secret of the model")
        return np.zeros(len(matrix))


def load(version: ModelVersion, files: dict[str, bytes]) -> Linear:
    if version.files[0].digest != blake3(files["model.txt"]).hexdigest():
        raise BackendError("the bytes are not what the manifest says")
    if files["model.txt"].startswith(b"broken"):
        return Broken(0.0)
    return Linear(1000.0 * version.version)


@dataclass
class FakeModels:
    files_of: dict[int, dict[str, bytes]] = field(default_factory=dict)
    signature: Signature = field(default_factory=lambda: Signature(INPUTS, OUTPUTS))
    feature_set: str = ""
    reads: list[int] = field(default_factory=list)
    damaged: set[int] = field(default_factory=set)

    def version(self, name: str, version: int) -> ModelVersion:
        data = self._data(version)
        return ModelVersion(
            name=name,
            version=version,
            digest="0" * 64,
            files=(Artifact(path="model.txt", digest=blake3(data).hexdigest(), size=len(data)),),
            flavor="fake",
            tier="safe",
            signature=self.signature,
            feature_set=self.feature_set,
            created_at=AT,
            updated_at=AT,
        )

    def files(self, name: str, version: int) -> dict[str, bytes]:
        self.reads.append(version)
        damage = b"!" if version in self.damaged else b""
        return {"model.txt": self._data(version) + damage}

    def _data(self, version: int) -> bytes:
        return self.files_of.get(version, {}).get("model.txt", b"model %d" % version)


def deployment(
    *arms: tuple[str, int, float], name: str = "delay", revision: int = 1, **more: Any
) -> Deployment:
    return Deployment(
        name=name,
        model="delay",
        revision=revision,
        arms=tuple(
            Arm(name=arm, version=version, weight=weight)  # type: ignore[arg-type]
            for arm, version, weight in arms or [("champion", 1, 100.0)]
        ),
        salt=more.pop("salt", "salt"),
        created_at=AT,
        updated_at=AT,
        **more,
    )


@dataclass
class FakeDeployments:
    held: dict[str, Deployment] = field(default_factory=dict)
    acknowledged: list[tuple[str, str, int, int]] = field(default_factory=list)
    down: bool = False

    def put(self, one: Deployment) -> None:
        self.held = {**self.held, one.name: one}

    def deployment(self, name: str) -> Deployment:
        return self.held[name]

    def deployments(self) -> list[Deployment]:
        if self.down:
            raise BackendError("the catalog is away")
        return list(self.held.values())

    def acknowledge(self, name: str, worker: str, pid: int, revision: int) -> None:
        self.acknowledged.append((name, worker, pid, revision))


@dataclass
class FakeSink:
    tables: list[tuple[str, pa.Table]] = field(default_factory=list)
    failures: int = 0
    gate: threading.Event | None = None

    def log(self, name: str, rows: pa.Table) -> str:
        if self.gate is not None:
            self.gate.wait(10)
        if self.failures:
            self.failures -= 1
            raise BackendError("the disk is full")
        self.tables.append((name, rows))
        return "segment"

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [row for _, table in self.tables for row in table.to_pylist()]


@dataclass
class FakeRows:
    values: np.ndarray
    names: tuple[str, ...]
    times: Mapping[str, np.ndarray]


class HourLookup:
    """Features: the hour of the request's time, and the length of its origin's name."""

    def lookup(self, columns: Mapping[str, Any], at_us: np.ndarray) -> FakeRows:
        hours = at_us // 3_600_000_000 % 24
        lengths = [len(origin) for origin in columns["origin"]]
        values = np.column_stack([hours, lengths]).astype(np.float64)
        known = np.where(hours > 0, at_us - 1, -1)
        return FakeRows(values, ("x", "y"), {"weather": known})


def route(*arms: tuple[str, int, float], models: FakeModels | None = None) -> RouteSnapshot:
    return RouteLoader(models or FakeModels(), load).load(deployment(*arms))


def router(*held: Deployment, models: FakeModels | None = None) -> Router:
    deployments = FakeDeployments({one.name: one for one in held or [deployment()]})
    made = Router(deployments, RouteLoader(models or FakeModels(), load), worker="w", pid=7)
    made.refresh()
    return made
