"""Steps that the tests of a cluster execute, beside those of the tests of side by side."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import everloop as ev
from tests.unit.pipelines.fan_steps import note


@ev.step
def where(x: int) -> str:
    return os.environ.get("RAY_ADDRESS", "")


@ev.step(cpus=0)
def beside_the_driver() -> int:
    return os.getpid()


@ev.step(cpus=0.5)
def half(x: int, folder: str) -> int:
    began = time.monotonic()
    note(folder, x)
    # Two of them meet on one processor.
    until = began + 20
    while len(list(Path(folder).glob("*"))) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    return len(list(Path(folder).glob("*")))


@ev.step
def takes_a_while(x: int, folder: str) -> int:
    note(folder, x)
    time.sleep(0.25)
    (Path(folder) / f"ended-{x}").touch()
    return x


@ev.step(cpus=0.5)
def prepare(folder: str) -> int:
    note(folder, "prepare")
    return 5


@ev.step(cpus=0.5)
def loss_of(folder: str, depth: int, wanted: int) -> float:
    is_first = not list(Path(folder).glob(f"{depth}-*"))
    note(folder, depth)
    if depth == 13:
        raise ValueError("thirteen is too deep")
    if depth == 77 and is_first:
        os.kill(os.getppid(), signal.SIGKILL)  # what Ray started, and with it this process
        time.sleep(60)
    return float((depth - wanted) ** 2)


@ev.pipeline
def tune(folder: str, depth: int) -> float:
    loss = loss_of(folder, depth, prepare(folder))
    ev.log(loss=loss)
    return loss


@ev.step
def variable() -> str:
    return os.environ.get("EVERLOOP_TEST_REGION", "none")


@ev.step
def text_of(path: Path) -> str:
    return path.read_text()


@ev.step
def raises(x: int) -> int:
    return deeper(x)


def deeper(x: int) -> int:
    raise ValueError(f"no {x}")
