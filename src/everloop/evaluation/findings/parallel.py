"""Work on rows in parts, on all cores: NumPy releases the interpreter while it computes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, TypeVar

__all__ = ["in_parts", "on_threads"]

_T = TypeVar("_T")
# Below this a thread costs more than it saves.
_SMALL = 1 << 16


def in_parts(rows: int, work: Callable[[slice], Any]) -> None:
    """Call `work` with slices that together are all `rows`."""
    threads = (os.cpu_count() or 1) if rows >= _SMALL else 1
    ends = [rows * n // threads for n in range(threads + 1)]
    on_threads(work, [slice(*pair) for pair in pairwise(ends)])


def on_threads(work: Callable[[Any], _T], given: Iterable[Any]) -> list[_T]:
    """`work` of each of `given`, in order; as many at a time as there are cores."""
    every = list(given)
    if len(every) < 2:
        return [work(one) for one in every]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(work, every))
