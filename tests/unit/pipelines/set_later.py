"""Steps that depend on what a program may change after it imported them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

from everloop.pipelines import api as ev

RATE = 3
LEVELS = {"low": 1}
CACHE: dict[int, int] = {}
CLIENT: object = None


class Options:
    width = 1
    names: ClassVar[list[str]] = ["a"]


@ev.step
def rated(x: int) -> int:
    return x * RATE


@ev.step
def leveled(x: int) -> list[int]:
    return [x, *LEVELS.values(), Options.width, len(Options.names)]


@ev.step
def cached(x: int) -> int:
    if x not in CACHE:
        CACHE[x] = x + 1
    return CACHE[x]


@ev.step
def connected(x: int) -> bool:
    return CLIENT is None


@ev.step(environment=["EVERLOOP_TEST_DECLARED"])
def region(x: int) -> list[str]:
    return [os.environ["EVERLOOP_TEST_DECLARED"], os.environ.get("EVERLOOP_TEST_READ", "unset")]


@ev.step
def text_of(path: Path) -> str:
    return path.read_text()


@ev.step(cache=False)
def moves_away(x: int) -> str:
    os.chdir("/")
    os.environ["EVERLOOP_TEST_DECLARED"] = "of another step"
    return os.getcwd()
