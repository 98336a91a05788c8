"""One of the eight writers of test_kill_writes.py: mixed writes to what all of them share."""

from __future__ import annotations

import json
import os
import random
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import everloop as ev
from everloop.core.artifact import ModelArtifact
from everloop.core.run import Metric
from everloop.errors import Conflict, InvalidInput
from tests.e2e.kill_child import COLUMNS, files, rows

__all__ = ["mixed"]

_ROUNDS = 3


def mixed(location: str, objects: str, me: int, run_id: str, told: Connection) -> None:
    """Some rounds of writes; tells the answers of all of them at the end."""
    os.environ["EVERLOOP_OBJECTS"] = objects
    chance = random.Random(me)
    done: dict[str, list[Any]] = {"log": [], "commit": [], "register": [], "alias": [], "param": []}
    with ev.open(location, actor=f"writer-{me}") as ws:
        for turn in range(_ROUNDS):
            step = me * 1000 + turn
            points = [Metric(key=key, value=float(step), step=step, at_ms=step) for key in COLUMNS]
            ws.tracking.log(run_id, points)
            done["log"].append(step)
            with suppress(Conflict):  # another one replaced the table meanwhile
                done["commit"].append(ws.data.commit("d", rows(step), mode="replace").number)
            made = ws.registry.register("m", ModelArtifact(flavor="x", files=files(str(step))))
            done["register"].append(made.version)
            for _ in range(3):
                before = ws.registry.model("m").aliases.get("champion", 0)
                after = chance.choice([v.version for v in ws.registry.versions("m")])
                try:
                    ws.registry.set_alias("m", "champion", after, expected=before)
                except Conflict:
                    continue
                if before != after:
                    done["alias"].append([before, after])
                break
        with suppress(InvalidInput):  # another one gave it first
            ws.tracking.log(run_id, [], params={"winner": str(me)})
            done["param"].append(me)
    told.send_bytes(json.dumps(done).encode())
