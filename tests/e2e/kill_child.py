"""What test_kill_writes.py kills: writes of every kind, each told once it was answered."""

from __future__ import annotations

import json
import os
import random
from multiprocessing.connection import Connection

import blake3  # noqa: F401 - loaded before the forks, as is what follows: a round is short
import numpy as np
import polars  # noqa: F401
import pyarrow as pa
import pyarrow.parquet

import everloop as ev
import everloop.data.service
import everloop.registry.service
import everloop.tracking.service
import everloop.workspace
from everloop.core.artifact import ModelArtifact
from everloop.core.run import Metric
from everloop.core.schema import Field, Schema
from everloop.workspace import Workspace

__all__ = ["COLUMNS", "files", "rows", "work"]

#: Keys of one batch of points: all of them have the same value, or none is there.
COLUMNS = ("a", "b", "c")
_SCHEMA = Schema((Field("value", "int64"), Field("square", "int64")))


def rows(value: int) -> pa.Table:
    """Rows that all say the same; as many as it takes to be several pages of a file."""
    column = np.full(2000, value, dtype="int64")
    return pa.table({"value": column, "square": column * column})


def files(text: str) -> dict[str, bytes]:
    """Two files of a model that belong together."""
    return {"one": text.encode() * 1000, "two": text.encode() * 2000}


def work(location: str, objects: str, seed: int, run_id: str, told: Connection) -> None:
    """Write until killed."""
    os.environ["EVERLOOP_OBJECTS"] = objects  # the server of forks has that of an earlier test
    chance = random.Random(seed)
    with ev.open(location, actor=f"child-{seed}") as ws:
        step = seed * 1_000
        while True:
            step += 1
            kind = chance.choice(("log", "commit", "register", "alias", "gc", "log"))
            done = act(ws, kind, step, run_id, chance)
            if done is not None:
                told.send_bytes(json.dumps({"kind": kind, "step": step, **done}).encode())


def act(
    ws: Workspace, kind: str, step: int, run_id: str, chance: random.Random
) -> dict[str, int] | None:
    """One write; what its answer said, or None if there was nothing to do."""
    if kind == "log":
        points = [Metric(key=key, value=float(step), step=step, at_ms=step) for key in COLUMNS]
        ws.tracking.log(run_id, points)
        return {}
    if kind == "commit":
        version = ws.data.commit("d", rows(step), schema=_SCHEMA, mode="replace")
        return {"number": version.number}
    if kind == "register":
        made = ws.registry.register("m", ModelArtifact(flavor="x", files=files(str(step))))
        return {"number": made.version}
    numbers = [found.version for found in ws.registry.versions("m")] if has_model(ws) else []
    if not numbers:
        return None
    if kind == "alias":
        number = chance.choice(numbers)
        ws.registry.set_alias("m", "champion", number)
        return {"number": number}
    champion = ws.registry.model("m").aliases.get("champion", 0)
    gone = [number for number in numbers[:-1] if number != champion]
    if gone:
        ws.registry.delete_version("m", gone[0])
    ws.objects.collect(older_than="0d", grace="0")
    return {"number": gone[0] if gone else 0}


def has_model(ws: Workspace) -> bool:
    return any(model.name == "m" for model in ws.registry.models())
