"""Steps of pipelines against the memo limit: a content key and one durable SQLite commit a step."""

from __future__ import annotations

import inspect
import json
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

from blake3 import blake3

from benchmarks.harness import Context, Row, bench
from benchmarks.pipeline_steps import fan, spin
from benchmarks.pipelines_keys import key_rows
from benchmarks.pipelines_peers import measure_peers
from benchmarks.pipelines_ray import ray_row
from benchmarks.pipelines_sweep import sweep_rows
from benchmarks.pipelines_whole import hand_over_rows, whole_process_rows
from everloop.access.policy import EmbeddedAuthorizer
from everloop.backends.blobs.local import LocalBlobs
from everloop.catalog.engine import Catalog
from everloop.core.context import using
from everloop.core.process import usable_cores
from everloop.pipelines import api as ev
from everloop.pipelines.service import PipelineService
from everloop.tracking.service import TrackingService
from everloop.workspace import open_workspace

STEPS = 1_000
LIMIT = "a loop with a blake3 key and one durable SQLite commit a step (WAL, synchronous FULL)"


def increase(x: int) -> int:
    return x + 1


step = ev.step(increase)


@ev.pipeline
def chain(start: int, steps: int) -> int:
    value = start
    for _ in range(steps):
        value = step(value)
    return value


@ev.pipeline
def wide(start: int, steps: int) -> int:
    return sum(step(start + number) for number in range(steps))


class Limit:
    """The least that a durable memory of steps has to do."""

    def __init__(self, folder: Path) -> None:
        self._connection = sqlite3.connect(folder / "limit.sqlite", isolation_level=None)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.execute("CREATE TABLE memo (key TEXT PRIMARY KEY, value TEXT)")
        self._code = inspect.getsource(increase).encode()

    def chain(self, start: int, steps: int) -> int:
        value = start
        for _ in range(steps):
            value = self._step(value)
        return value

    def fan(self, start: int, steps: int) -> int:
        return sum(self._step(start + number) for number in range(steps))

    def _step(self, value: int) -> int:
        key = blake3(self._code + json.dumps(value).encode()).hexdigest()
        row = self._connection.execute("SELECT value FROM memo WHERE key = ?", (key,))
        found = row.fetchone()
        if found is not None:
            return int(json.loads(found[0]))
        result = increase(value)
        self._connection.execute("INSERT INTO memo VALUES (?, ?)", (key, json.dumps(result)))
        return result


def _workspace(folder: Path) -> Any:
    catalog = Catalog(f"sqlite:///{folder}/catalog.sqlite")
    blobs, authorizer = LocalBlobs(folder / "objects"), EmbeddedAuthorizer()
    return SimpleNamespace(
        catalog=catalog,
        blobs=blobs,
        data=None,
        tracking=TrackingService(catalog, blobs, authorizer),
        pipelines=PipelineService(catalog, blobs, authorizer),
    )


def _timed(call: Callable[..., int], start: int) -> tuple[float, int]:
    """Seconds for one more step, from a long chain less a short one: without start and end."""
    began = time.perf_counter()
    call(start=start, steps=1)
    short = time.perf_counter() - began
    began = time.perf_counter()
    value = call(start=start + 1, steps=STEPS)
    return (time.perf_counter() - began - short) / (STEPS - 1), value


@bench
def steps(context: Context) -> list[Row]:
    repeats = context.repeats(10)
    seconds: dict[tuple[str, str, str], list[float]] = {}
    equal = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workspace, limit = _workspace(folder), Limit(folder)
        sides = {
            "chain": (chain.run, limit.chain, lambda start: start + STEPS),
            "fan": (wide.run, limit.fan, lambda start: sum(range(start + 1, start + 1 + STEPS))),
        }
        with using(workspace):
            for repeat in range(repeats + 1):
                for number, (shape, (ours, raw, expected)) in enumerate(sides.items()):
                    start = (2 * repeat + number) * 10_000
                    for kind in ("first", "again"):
                        for who, call in (("everloop", ours), ("limit", raw)):
                            spent, value = _timed(call, start)
                            equal = equal and value == expected(start + 1)
                            if repeat:  # the first turn warms up
                                seconds.setdefault((who, shape, kind), []).append(spent)
        workspace.catalog.close()
    peers, peers_right = measure_peers(context)
    return [
        Row(
            area="pipelines",
            work=f"one step of a {shape} of {STEPS}, {kind}",
            unit="s",
            everloop=median(seconds["everloop", shape, kind]),
            limit=median(seconds["limit", shape, kind]),
            limit_name=LIMIT,
            peers=peers[shape, kind],
            answers_equal=equal and peers_right,
            repeats=repeats,
        )
        for shape in ("chain", "fan")
        for kind in ("first", "again")
    ]


@bench
def fan_of_small_steps(context: Context) -> Row:
    repeats, calls = context.repeats(3), 10_000
    seconds: dict[str, list[float]] = {"everloop": [], "limit": []}
    equal = True
    with tempfile.TemporaryDirectory() as name, open_workspace(name) as workspace, using(workspace):
        for repeat in range(repeats):
            start = repeat * calls
            began = time.perf_counter()
            value = fan.run(start=start, calls=calls)
            seconds["everloop"].append(time.perf_counter() - began)
            began = time.perf_counter()
            with ProcessPoolExecutor(usable_cores()) as pool:
                expected = sum(pool.map(spin, range(start, start + calls), chunksize=50))
            seconds["limit"].append(time.perf_counter() - began)
            equal = equal and value == expected
    return Row(
        area="pipelines",
        work=f"a map of {calls} steps of 1 ms, each stored durably",
        unit="s",
        everloop=median(seconds["everloop"]),
        limit=median(seconds["limit"]),
        limit_name="ProcessPoolExecutor.map of the bare function, nothing stored",
        answers_equal=equal,
        repeats=repeats,
    )


@bench
def step_outside_a_run(context: Context) -> Row:
    repeats, calls = context.repeats(50), 10_000
    seconds: dict[str, list[float]] = {"everloop": [], "limit": []}
    for _ in range(repeats):
        for name, function in (("everloop", step), ("limit", increase)):
            began = time.perf_counter()
            for value in range(calls):
                function(value)
            seconds[name].append((time.perf_counter() - began) / calls)
    return Row(
        area="pipelines",
        work="a step called outside a run",
        unit="s",
        everloop=median(seconds["everloop"]),
        limit=median(seconds["limit"]),
        limit_name="a call of the bare function",
        answers_equal=step(1) == increase(1),
        repeats=repeats,
    )


@bench
def key_of_a_thousand_functions(context: Context) -> list[Row]:
    repeats = context.repeats(10)
    return [
        Row(area="pipelines", unit="s", repeats=repeats, **figures)  # type: ignore[arg-type]
        for figures in key_rows(repeats)
    ]


@bench
def fan_of_small_steps_on_ray(context: Context) -> Row:
    return ray_row(context)


@bench
def trials_of_a_sweep(context: Context) -> Iterator[Row]:
    yield from sweep_rows(context)


@bench
def whole_processes(context: Context) -> list[Row]:
    return whole_process_rows(context)


@bench
def large_results(context: Context) -> list[Row]:
    return hand_over_rows(context)
