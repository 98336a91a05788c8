"""What test_full_disk.py starts: a run whose disk is full from a certain place on, or never.

``EVERLOOP_TEST_ROOM`` is how many bytes a file may have from then on: the limit that the system
sets on files fails a write in the same way as a disk without room does.
"""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import numpy as np

from everloop.pipelines import api as ev


def fill_up() -> None:
    room = os.environ.get("EVERLOOP_TEST_ROOM")
    if room:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(room), resource.RLIM_INFINITY))


@ev.step
def small(n: int) -> int:
    return n + 1


@ev.step
def large(n: int) -> np.ndarray:
    return np.full(1_000_000, float(n))


@ev.step
def total(values: np.ndarray) -> float:
    return float(values.sum())


@ev.step
def text(n: int) -> str:
    return f"{n}" * 8_000


@ev.step(isolate=True)
def apart(n: int) -> list[float]:
    return [float(n)] * 2_000_000


@ev.pipeline
def main(where: str) -> float:
    first = small(0)
    fill_up()
    if where == "result":
        return total(large(first))
    if where == "worker":
        return total(large.submit(first).result())
    if where == "map":
        return sum(total(values) for values in large.map([first, first + 1, first + 2]))
    if where == "argument":
        return total.submit(np.full(1_000_000, float(first))).result()
    if where == "isolated":
        return sum(apart(first))
    return float(sum(len(text(n)) for n in range(40)))


if __name__ == "__main__":
    where, resume = sys.argv[1:]
    Path("pid").write_text(str(os.getpid()))
    print(main.run(resume=resume) if resume else main.run(where=where))
