"""A deployment under a clock: answers, labels and versions without the rooms that make them."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from everloop.access.policy import EmbeddedAuthorizer
from everloop.catalog import tables
from everloop.catalog.engine import Catalog
from everloop.core.deploy import Arm, Deployment
from everloop.core.ids import new_id, new_ids
from everloop.core.model import ModelVersion, Signature
from everloop.core.monitor import Monitor
from everloop.core.schema import Schema
from everloop.core.time import ManualClock, to_micros
from everloop.monitoring.reference import make_reference
from everloop.monitoring.service import MonitoringService
from everloop.ports.blobs import BlobStore

NAME = "delay"
START = datetime(2013, 4, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def rows_of(
    day: datetime, n: int, *, skill: float, rate: float = 0.3, seed: int = 0
) -> dict[str, Any]:
    """`n` answers over a day whose log odds carry `skill` of the truth's."""
    random = np.random.default_rng([seed, to_micros(day) // 86_400_000_000])
    truth = random.normal(np.log(rate / (1 - rate)), 1.2, n)
    label = (random.random(n) < 1 / (1 + np.exp(-truth))).astype(float)
    seen = skill * truth + (1 - skill) * random.normal(0, 1.2, n)
    return {
        "at": to_micros(day) + np.sort(random.integers(0, 86_400_000_000, n)),
        "value": 1 / (1 + np.exp(-seen)),
        "label": label,
        "x": random.normal(size=n),
        "carrier": random.integers(0, 8, n).astype(float),
    }


def reference(days: int = 20, n: int = 400, *, skill: float = 0.9, seed: int = 9) -> bytes:
    parts = [rows_of(START - (d + 1) * DAY, n, skill=skill, seed=seed) for d in range(days)]
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    features = {"x": whole["x"], "carrier": whole["carrier"]}
    return make_reference(
        whole["value"], whole["label"], whole["at"], features, categorical=["carrier"]
    )


class World:
    """Stands in for predictions, registry and deployments."""

    def __init__(self, catalog: Catalog, blobs: BlobStore, clock: ManualClock) -> None:
        self.catalog, self.blobs, self.clock = catalog, blobs, clock
        self.answers = pa.table({})
        self.labels = pa.table({})
        self.versions: dict[int, str] = {}
        self.champion = 1
        self.changed_at = clock.now()
        self.created_at = clock.now()
        self.reads: list[tuple[datetime, datetime]] = []
        self.service = self.another_process()

    def another_process(self) -> MonitoringService:
        return MonitoringService(self.catalog, self.blobs, EmbeddedAuthorizer(), self, self, self)

    def add_version(self, number: int, data: bytes) -> None:
        self.versions[number] = self.blobs.put(data)[0] if data else ""

    def promote(self, number: int) -> None:
        self.champion, self.changed_at = number, self.clock.now()

    def answer(
        self, rows: dict[str, Any], *, version: int = 1, arm: str = "champion", tag: str = ""
    ) -> list[str]:
        n = len(rows["at"])
        requests = [f"{tag}{at}-{i}" for i, at in enumerate(rows["at"].tolist())]
        table = pa.table(
            {
                "id": new_ids(n),
                "request_id": requests,
                "at": pa.array(rows["at"], pa.timestamp("us", tz="UTC")),
                "version": pa.array([version] * n, pa.int32()),
                "arm": [arm] * n,
                "value": rows["value"],
                "error": [""] * n,
                "f.x": rows["x"],
                "f.carrier": rows["carrier"],
            }
        )
        self.answers = pa.concat_tables([self.answers, table]) if self.answers.num_rows else table
        self._log(tables.prediction_segments, "predictions.Logged", "segment", table, "at")
        return requests

    def label(self, requests: list[str], labels: Any, known_at: datetime) -> None:
        n = len(requests)
        table = pa.table(
            {
                "request_id": requests,
                "label": np.asarray(labels, dtype=float),
                "known_at": pa.array([to_micros(known_at)] * n, pa.timestamp("us", tz="UTC")),
            }
        )
        self.labels = pa.concat_tables([self.labels, table]) if self.labels.num_rows else table
        self._log(tables.label_batches, "labels.Logged", "labels", table, "known_at")

    def _log(self, into: Any, kind: str, noun: str, table: pa.Table, time: str) -> None:
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        digest, _ = self.blobs.put(buffer.getvalue())
        at = table.column(time).to_pylist()
        row = {"id": new_id(), "deployment": NAME, "digest": digest, "rows": table.num_rows}
        row |= {"from_at": min(at), "to_at": max(at)}
        with self.catalog.write() as tx:
            row["created_at"] = tx.now
            if noun == "segment":
                row |= {"first_id": row["id"], "last_id": row["id"]}
            tx.execute(into.insert().values(row))
            told = {name: row[name] for name in ("deployment", "from_at", "to_at", "digest")}
            tx.append(kind, f"{noun}:{row['id']}", told)

    # what the services of other rooms would say

    def read(
        self,
        deployment: str,
        *,
        since: datetime,
        until: datetime,
        labelled: bool = False,
        columns: list[str] | None = None,
        as_of: datetime | None = None,
    ) -> pa.Table:
        self.reads.append((since, until))
        at = self.answers.column("at").cast(pa.int64()).to_numpy()
        table = self.answers.filter((at >= to_micros(since)) & (at < to_micros(until)))
        if labelled:
            known: dict[str, tuple[int, float]] = {}
            limit = to_micros(as_of or self.clock.now())
            for row in self.labels.to_pylist():
                when = to_micros(row["known_at"])
                if when <= limit and when >= known.get(row["request_id"], (0, 0.0))[0]:
                    known[row["request_id"]] = (when, row["label"])
            found = [known.get(r, (0, None))[1] for r in table.column("request_id").to_pylist()]
            table = table.append_column("label", pa.array(found, pa.float64()))
        return table.select(columns) if columns else table

    def version(self, name: str, version: int) -> ModelVersion:
        empty = Schema(())
        return ModelVersion(
            name=name,
            version=version,
            digest="",
            files=(),
            flavor="fake",
            tier="safe",
            signature=Signature(empty, empty),
            reference=self.versions[version],
            created_at=START,
            updated_at=START,
        )

    def deployment(self, name: str) -> Deployment:
        return Deployment(
            name=name,
            model=name,
            revision=1,
            arms=(Arm(name="champion", version=self.champion, weight=100.0),),
            created_at=self.created_at,
            updated_at=self.changed_at,
        )


def performance(**changes: Any) -> Monitor:
    options: dict[str, Any] = {
        "name": "performance",
        "deployment": NAME,
        "kind": "performance",
        "metric": "auc",
        "fire": (3, 5),
        "clear": (0, 5),
        "min_rows": 100,
        "width": 3.0,
    }
    return Monitor(**options | changes)
