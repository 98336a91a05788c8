"""Many small steps on a Ray cluster of two nodes, against raw Ray tasks that do the same work."""

from __future__ import annotations

import tempfile
import time
from importlib.metadata import version

from benchmarks.harness import Context, Row, in_turns
from benchmarks.pipeline_steps import fan, spin
from everloop.core.context import using
from everloop.workspace import open_workspace
from tests.clusters import ray_cluster

__all__ = ["ray_row"]

#: Calls in a task: about as many as our engine packs of this length.
BATCH = 500


def ray_row(context: Context) -> Row:
    """A map of 10,000 steps of 1 ms; both sides have their processes on the nodes already."""
    calls, repeats = 10_000, context.repeats(3)
    answers: dict[str, list[int]] = {"everloop": [], "batches": [], "one by one": []}
    starts = iter(range(0, 10**9, calls))
    with (
        ray_cluster(),
        tempfile.TemporaryDirectory() as name,
        open_workspace(name) as workspace,
        using(workspace),
    ):
        import ray

        @ray.remote(num_cpus=1)
        def batch(first: int, count: int) -> list[int]:
            return [spin(x) for x in range(first, first + count)]

        def ours() -> float:
            start = next(starts)
            began = time.perf_counter()
            value = fan.run(on="ray", start=start, calls=calls)
            answers["everloop"].append(value - start * calls)
            return time.perf_counter() - began

        def raw(kind: str, size: int) -> float:
            began = time.perf_counter()
            tasks = [batch.remote(first, size) for first in range(0, calls, size)]
            answers[kind].append(sum(map(sum, ray.get(tasks))))
            return time.perf_counter() - began

        seconds = in_turns(
            {
                "everloop": ours,
                "batches": lambda: raw("batches", BATCH),
                "one by one": lambda: raw("one by one", 1),
            },
            repeats=repeats,
        )
    return Row(
        area="pipelines",
        work=f"a map of {calls} steps of 1 ms on two Ray nodes, each stored durably",
        unit="s",
        everloop=seconds["everloop"],
        limit=seconds["batches"],
        limit_name=f"raw Ray tasks of {BATCH} calls each, nothing stored",
        peers={f"ray {version('ray')}, a task for each call": seconds["one by one"]},
        answers_equal=len({value for found in answers.values() for value in found}) == 1,
        repeats=repeats,
    )
