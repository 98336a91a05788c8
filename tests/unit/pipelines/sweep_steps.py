"""Pipelines of the sweeps in tests; in a file, so that worker processes find them."""

from __future__ import annotations

import math
import os
from pathlib import Path

from everloop.pipelines import api as ev


def noted(folder: str, word: str) -> None:
    """Leave a line behind that says what was executed."""
    with open(Path(folder) / "executed", "a") as file:
        file.write(word + "\n")


@ev.step
def prepare(folder: str, size: int) -> list[float]:
    noted(folder, "prepare")
    return [number / size for number in range(size)]


@ev.step
def train(folder: str, rows: list[float], rate: float, depth: int) -> float:
    noted(folder, f"train {rate} {depth}")
    if depth == 13:
        raise ValueError("thirteen is too deep")
    if depth == 66 and not (Path(folder) / "died").exists():
        (Path(folder) / "died").touch()
        os.kill(os.getpid(), 9)
    loss = (math.log10(rate) + 2) ** 2 + (depth - 5) ** 2
    for epoch in range(3):
        ev.log(step=epoch, loss=loss + 2 - epoch)
    return loss


@ev.pipeline
def tune(folder: str, size: int, rate: float, depth: int = 5) -> float:
    return train(folder, prepare(folder, size), rate, depth)


@ev.step
def score(x: float) -> dict[str, float]:
    return {"score": 1 / x if x else math.nan, "other": 0.0}


@ev.pipeline
def scored(x: float) -> dict[str, float]:
    """Returns the metric instead of logging it."""
    return score(x)


@ev.pipeline
def silent(x: float) -> str:
    return f"{x}"
