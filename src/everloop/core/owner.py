"""Who runs a run: host, process and its start, so that a killed owner is known at once here.

Elsewhere, or where the system does not tell, only the lease says it.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

__all__ = ["is_dead", "this_process"]


@functools.cache
def _host() -> str:
    # Two containers may share a host name; their process numbers mean different things then.
    try:
        space = os.readlink("/proc/self/ns/pid").strip("pid:[]")
    except OSError:
        space = ""
    return f"{os.uname().nodename}/{space}"


def _start_of(pid: int) -> str:
    """Clock ticks at which a process began; empty if it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    state, *rest = stat.rpartition(")")[2].split()
    return "" if state in "ZX" else rest[18]


def this_process() -> str:
    """The owner text of this process: ``host:pid:start``."""
    return _owner_of(os.getpid())


@functools.lru_cache(maxsize=1)
def _owner_of(pid: int) -> str:
    # Kept by the number of the process: after a fork it is another.
    return f"{_host()}:{pid}:{_start_of(pid)}"


def is_dead(owner: str) -> bool:
    """Whether `owner` is known to be gone; False where that cannot be told from here."""
    host, _, rest = owner.rpartition(":")[0].rpartition(":")
    start = owner.rpartition(":")[2]
    if host != _host() or not rest.isdigit() or not start:
        return False
    return _start_of(int(rest)) != start
