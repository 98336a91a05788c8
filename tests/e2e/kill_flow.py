"""What test_kill_pipeline.py kills: a pipeline with steps of every kind, in a process of its own.

Each execution of a step leaves a line in the file that ``EVERLOOP_TEST_MARKS`` names.
"""

from __future__ import annotations

import os
import sys
import time

import numpy as np

import everloop as ev


def mark(name: str) -> int:
    """Note an execution of the call `name`; how many there were before."""
    path = os.environ["EVERLOOP_TEST_MARKS"]
    with open(path, "a+b", buffering=0) as file:
        file.write(f"{name}\n".encode())
        file.seek(0)
        return file.read().split().count(name.encode()) - 1


@ev.step
def plain(name: str, x: int) -> int:
    mark(name)
    time.sleep(0.003)
    return x + 1


@ev.step
def rows(name: str, n: int) -> np.ndarray:
    mark(name)
    return np.arange(n, dtype="float64")


@ev.step
def item(name: str, values: np.ndarray) -> float:
    mark(name)
    time.sleep(0.004)
    return float(values.sum()) + len(name)


@ev.step
def side(name: str, x: int) -> list[int]:
    mark(name)
    time.sleep(0.01)
    return [x, x]


@ev.step(isolate=True)
def apart(name: str, pairs: list[list[int]]) -> int:
    mark(name)
    return sum(map(sum, pairs))


@ev.step(retries=2, backoff="1ms")
def flaky(name: str, x: int) -> int:
    if mark(name) == 0:
        raise OSError("the first try of all")
    return x


@ev.step(cache=False)
def counted(name: str) -> int:
    mark(name)
    return 1


@ev.pipeline
def main(salt: int) -> float:
    total = 0.0
    for turn in range(2):
        tag = f"{salt}.{turn}"
        handles = [side.submit(f"side{n}.{tag}", n) for n in range(4)]
        x = 0
        for n in range(6):
            x = plain(f"plain{n}.{tag}", x)
        values = rows(f"rows.{tag}", 20_000 + turn)
        items = item.map([f"item{n}.{tag}" for n in range(24)], values=values)
        total += sum(items) + apart(f"apart.{tag}", handles) + counted(f"counted.{tag}")  # type: ignore[arg-type]
        total += flaky(f"flaky.{tag}", x) + flaky.submit(f"later.{tag}", 1).result()
    return total


if __name__ == "__main__":
    # As a module, so that workers import it and its classes have one name.
    from tests.e2e.kill_flow import main as flow

    salt, resume = sys.argv[1:3]
    print(flow.run(resume=resume) if resume else flow.run(salt=int(salt)))
