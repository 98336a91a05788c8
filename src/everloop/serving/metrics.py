"""Prometheus metrics of one serving worker: per deployment, version and arm.

Several workers share one port, so a scrape reaches any of them. The supervisor gives its workers a
folder (``PROMETHEUS_MULTIPROC_DIR``) where prometheus-client keeps their counts, and whichever
worker is asked answers for all, the dead ones included.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from everloop.serving.route import Answers

__all__ = ["ServingMetrics", "Tally"]

#: Seconds; half of them below 5 ms, where tabular models answer.
_BUCKETS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)


@dataclass(slots=True)
class Tally:
    """What one version answered since this worker started; for the protocol's statistics.

    Attributes:
        last_ms: When it last answered, milliseconds since 1970.
    """

    rows: int = 0
    calls: int = 0
    call_ns: int = 0
    failed: int = 0
    failed_ns: int = 0
    last_ms: int = 0


@dataclass(slots=True)
class _Meters:
    rows: Any
    seconds: Any
    tally: Tally


class ServingMetrics:
    """Counts what was answered.

    Args:
        registry: Where the metrics are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        labels = ("deployment", "version", "arm")
        self._rows = Counter("everloop_predictions", "Rows answered", labels, registry=registry)
        self._errors = Counter(
            "everloop_prediction_errors", "Rows that a model failed on", labels, registry=registry
        )
        self._seconds = Histogram(
            "everloop_prediction_seconds",
            "Time of a call, from checked request to values",
            labels,
            buckets=_BUCKETS,
            registry=registry,
        )
        self._refused = Counter(
            "everloop_requests_refused",
            "Requests answered with an error",
            ("deployment", "status"),
            registry=registry,
        )
        self._dropped = Counter(
            "everloop_log_dropped",
            "Predictions that did not get into the log",
            ("deployment",),
            registry=registry,
        )
        self._meters: dict[tuple[str, int, str], _Meters] = {}

    def answered(self, answers: Answers) -> None:
        """Count the rows of one call, by the arm that answered each."""
        arms = answers.arm
        rows = len(arms)
        if rows == 1:
            self._count(answers, int(arms[0]), 1)
        elif rows:
            counts = [(int(p), int((arms == p).sum())) for p in sorted(set(arms.tolist()))]
            for position, count in counts:
                self._count(answers, position, count)

    def refused(self, deployment: str, status: int) -> None:
        """Count a request that got an error; an unknown deployment must be passed as empty."""
        self._refused.labels(deployment, str(status)).inc()

    def dropped(self, deployment: str, rows: int) -> None:
        """Count predictions that the log dropped."""
        self._dropped.labels(deployment).inc(rows)

    def tally(self, deployment: str, version: int) -> Tally:
        """What a version answered since this worker started, over its arms."""
        found = Tally()
        for (name, number, _), meters in self._meters.items():
            if (name, number) == (deployment, version):
                for part in Tally.__slots__:
                    mine, more = getattr(found, part), getattr(meters.tally, part)
                    setattr(found, part, max(mine, more) if part == "last_ms" else mine + more)
        return found

    def exposition(self) -> bytes:
        """All metrics as Prometheus text, of all workers where they share a folder."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self._registry)
        shared = CollectorRegistry()
        MultiProcessCollector(shared)  # type: ignore[no-untyped-call]
        return generate_latest(shared)

    def _count(self, answers: Answers, position: int, rows: int) -> None:
        snapshot = answers.snapshot
        arm = snapshot.arms[position]
        key = (snapshot.deployment, arm.version, arm.name)
        meters = self._meters.get(key)
        if meters is None:
            labels = (snapshot.deployment, str(arm.version), arm.name)
            meters = _Meters(self._rows.labels(*labels), self._seconds.labels(*labels), Tally())
            self._meters[key] = meters
        meters.rows.inc(rows)
        meters.seconds.observe(answers.call_us / 1e6)
        tally = meters.tally
        tally.last_ms = time.time_ns() // 1_000_000
        if position in answers.errors:
            self._errors.labels(*key[:1], str(arm.version), arm.name).inc(rows)
            tally.failed += 1
            tally.failed_ns += answers.call_us * 1_000
            return
        tally.rows += rows
        tally.calls += 1
        tally.call_ns += answers.call_us * 1_000
