"""What workers execute in the benchmark of a fan-out: quick to import."""

from __future__ import annotations

import time

from everloop.pipelines import api as ev

__all__ = ["fan", "spin", "spin_step"]


def spin(x: int) -> int:
    """Keep a core busy for a millisecond."""
    until = time.perf_counter() + 0.001
    while time.perf_counter() < until:
        pass
    return x + 1


spin_step = ev.step(spin)


@ev.pipeline
def fan(start: int, calls: int) -> int:
    """Many small steps side by side."""
    return sum(spin_step.map(range(start, start + calls)))
