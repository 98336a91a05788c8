"""Steps for workers: in a module of their own, which a worker can import quickly."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from everloop.data.api import read
from everloop.data.frame import Table
from everloop.pipelines import api as ev


@dataclass
class Pair:
    left: int
    right: float


def note(folder: str, name: object) -> None:
    """Leave a mark for each execution."""
    (Path(folder) / f"{name}-{os.getpid()}-{time.monotonic_ns()}").touch()


@ev.step
def square(x: int, folder: str = "") -> int:
    if folder:
        note(folder, x)
    ev.log(x=float(x))
    return x * x


@ev.step
def pair(left: int) -> Pair:
    return Pair(left, left / 2)


@ev.step
def add(left: Pair, right: Pair) -> float:
    return left.right + right.right


@ev.step
def all_of(values: list[int]) -> int:
    return sum(values)


@ev.step
def refuses_odd(x: int, folder: str) -> int:
    note(folder, x)
    if x % 2 and not (Path(folder) / "mended").exists():
        raise ValueError(f"{x} is odd")
    return x


@ev.step(retries=2, backoff="1ms")
def third_time(x: int, folder: str) -> int:
    note(folder, x)
    if len(list(Path(folder).glob(f"{x}-*"))) < 3:
        raise ValueError("not yet")
    return x


@ev.step(timeout="1s")
def waits(seconds: float, folder: str) -> float:
    note(folder, seconds)
    time.sleep(seconds)
    return seconds


@ev.step
def crashes_at(x: int, at: int) -> int:
    if x == at:
        os.kill(os.getpid(), signal.SIGSEGV)
    return x


@ev.step(isolate=True)
def own_process() -> int:
    return os.getpid()


@ev.step(memory="1500MB")
def takes(megabytes: int) -> int:
    return len(np.ones(megabytes * 125_000)) // 125_000


@ev.step
def numbers(n: int) -> np.ndarray:
    return np.arange(n, dtype=float)


@ev.step
def first_of(values: np.ndarray, place: int) -> float:
    assert not values.flags.writeable
    return float(values[place])


@ev.step
def rows(n: int) -> Table:
    return Table.of({"x": list(range(n))})


@ev.step
def kept(table: Table, least: int) -> Table:
    return table.drop_where("small", f"x < {least}", reason="too small")


@ev.step
def locked() -> int:
    with _lock:
        return 1


@ev.step
def takes_lock(lock: object) -> int:
    return 1


@ev.step(cache=False)
def gives_lock() -> object:
    return threading.Lock()


@ev.step
def slowly(x: int, folder: str) -> int:
    note(folder, x)
    time.sleep(0.05)
    (Path(folder) / f"ended-{x}").touch()
    return x


_lock = threading.Lock()


@ev.step
def newest(least: int) -> int:
    return len(read("numbers").filter(f"x >= {least}"))


@ev.step
def says_int(x: int) -> int:
    return x if x < 2 else str(x)  # type: ignore[return-value]
