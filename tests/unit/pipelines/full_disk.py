"""Steps that need room on the disk. As a program, a run whose disk is full after its first step.

``python -m tests.unit.pipelines.full_disk BYTES`` lets no file grow beyond so many bytes.
"""

from __future__ import annotations

import resource
import sys

import numpy as np

from everloop.pipelines import api as ev

room = 0


@ev.step
def small(n: int) -> int:
    return n + 1


@ev.step
def large(n: int) -> np.ndarray:
    return np.full(400_000, float(n))


@ev.step
def total(values: np.ndarray) -> float:
    return float(values.sum())


@ev.step
def text(n: int) -> str:
    return f"{n}" * 8_000


@ev.step(isolate=True)
def apart(n: int) -> list[float]:
    return [n / 3] * 200_000


@ev.pipeline
def main(where: str) -> float:
    first = small(0)
    if where == "result":
        return total(large(first))
    if where == "worker":
        return total(large.submit(first).result())
    if where == "map":
        return sum(total(values) for values in large.map([first, first + 1, first + 2]))
    if where == "argument":
        return total.submit(np.full(400_000, float(first))).result()
    if where == "isolated":
        return sum(apart(first))
    if room:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    return float(sum(len(text(n)) for n in range(40)))


if __name__ == "__main__":
    room = int(sys.argv[1])
    main.run(where="catalog")
