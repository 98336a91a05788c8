"""Whole processes and large results of pipelines, beside the least that such work can take.

Rows for ``benchmarks.area_pipelines``: a process from start to end, and a table of 500 MB on its
way to the next step.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa

from benchmarks.harness import Context, Row
from everloop.backends.blobs.local import LocalBlobs
from everloop.pipelines.values import load, store

__all__ = ["hand_over_rows", "whole_process_rows"]

_FLOW = """
import sys

import everloop as ev


@ev.step
def increase(x: int) -> int:
    return x + 1


@ev.pipeline
def main(steps: int) -> int:
    value = 0
    for _ in range(steps):
        value = increase(value)
    return value


print(main.run(steps=int(sys.argv[1])))
"""
_LIMIT = """
import inspect, json, sqlite3, sys
from blake3 import blake3


def increase(x):
    return x + 1


memo = sqlite3.connect("limit.sqlite", isolation_level=None)
memo.execute("PRAGMA journal_mode=WAL")
memo.execute("PRAGMA synchronous=FULL")
memo.execute("CREATE TABLE IF NOT EXISTS memo (key TEXT PRIMARY KEY, value TEXT)")
code, value = inspect.getsource(increase).encode(), 0
for _ in range(int(sys.argv[1])):
    key = blake3(code + json.dumps(value).encode()).hexdigest()
    found = memo.execute("SELECT value FROM memo WHERE key = ?", (key,)).fetchone()
    if found is None:
        value = increase(value)
        memo.execute("INSERT INTO memo VALUES (?, ?)", (key, json.dumps(value)))
    else:
        value = json.loads(found[0])
print(value)
"""
#: Rows of one column of 8 bytes: 500 MB.
_ROWS = 62_500_000


def whole_process_rows(context: Context) -> list[Row]:
    """A process whose steps are all stored, from its start to its end."""
    repeats = context.repeats(7)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "flow.py").write_text(_FLOW)
        (folder / "limit.py").write_text(_LIMIT)
        for steps in (1, 100):
            seconds: dict[str, list[float]] = {"flow": [], "limit": []}
            answers = set()
            for repeat in range(repeats + 1):
                for who, spent in seconds.items():
                    began = time.perf_counter()
                    answers.add(_run(folder, who, steps))
                    if repeat:  # the first turn stores
                        spent.append(time.perf_counter() - began)
            rows.append(
                Row(
                    area="pipelines",
                    work=f"a whole process with {steps} cached step{'s' * (steps > 1)}",
                    unit="s",
                    everloop=median(seconds["flow"]),
                    limit=median(seconds["limit"]),
                    limit_name="python with sqlite3 and blake3, a key and a row for each step",
                    answers_equal=answers == {str(steps)},
                    repeats=repeats,
                )
            )
    return rows


def _run(folder: Path, script: str, steps: int) -> str:
    environment = {**os.environ, "EVERLOOP_DIR": str(folder / "ws")}
    done = subprocess.run(
        [sys.executable, f"{script}.py", str(steps)],
        cwd=folder, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


def hand_over_rows(context: Context) -> list[Row]:
    """A table of 500 MB to the next step: durable, and mapped there; then the same once more."""
    repeats = context.repeats(5)
    seconds: dict[str, list[float]] = {"first": [], "again": [], "limit": []}
    equal = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        blobs = LocalBlobs(folder / "objects")
        for repeat in range(repeats + 1):
            table = pa.table({"x": np.random.default_rng(repeat).random(_ROWS)})
            turns = ("limit", "first", "again") if repeat % 2 else ("first", "again", "limit")
            for who in turns:
                began = time.perf_counter()
                found = _limit(table, folder) if who == "limit" else _handed(table, blobs)
                if repeat:  # the first turn warms up
                    seconds[who].append(time.perf_counter() - began)
                equal = equal and found.num_rows == _ROWS and found["x"][-1] == table["x"][-1]
                del found
            for digest in list(blobs.digests()):
                blobs.delete(digest)
    return [
        Row(
            area="pipelines",
            work=f"a table of 500 MB to the next step{what}",
            unit="s",
            everloop=median(seconds[who]),
            limit=median(seconds["limit"]),
            limit_name="Arrow IPC written, flushed to disk and mapped",
            answers_equal=equal,
            repeats=repeats,
        )
        for who, what in (("first", ""), ("again", ", stored already"))
    ]


def _handed(table: pa.Table, blobs: LocalBlobs) -> pa.Table:
    stored, _ = store(table, blobs, "a step")
    return load(stored, blobs)


def _limit(table: pa.Table, folder: Path) -> pa.Table:
    file = folder / "limit.arrow"
    with open(file, "wb") as sink:
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        sink.flush()
        os.fsync(sink.fileno())
    found = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
    file.unlink()
    return found
