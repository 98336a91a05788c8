"""Service levels: what was promised beside what was measured."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import select

from everloop.catalog import tables
from everloop.catalog.transaction import Transaction
from everloop.core.policy import LoopSpec, MeasuredLevel

__all__ = ["Latencies", "live_model", "measure_levels", "prediction_time"]

# The prediction latency is taken over the latest days, for it is a promise on the present.
_LATENCY_DAYS = 7
_Measured = tuple[float | None, int]
#: Reads ``latency_us`` and ``arm`` of what was answered in a time; None if nothing is deployed.
Latencies = Callable[[datetime, datetime], pa.Table | None]


def measure_levels(tx: Transaction, spec: LoopSpec, latencies: Latencies) -> list[MeasuredLevel]:
    """Measure the promises of a loop's charter, up to the last answer.

    A service that rests, or a past that was replayed, is measured by what it did, not by how long
    ago that is.

    Args:
        tx: Where the runs and rollouts are.
        spec: The loop.
        latencies: Reads what was answered.
    """
    last = _last_answer(tx, spec)
    until = tx.now if last is None else min(last, tx.now)
    measures: dict[str, Callable[[], _Measured]] = {
        "prediction": lambda: prediction_time(until, latencies),
        "retraining": lambda: _retraining(tx, spec),
        "deployment": lambda: _deployment(tx, spec),
        "renewal": lambda: _renewal(tx, spec, until),
    }
    found = []
    for level in spec.charter.service_levels:
        measured, samples = measures[level.name]()
        found.append(
            MeasuredLevel(
                name=level.name,
                at_most_s=level.at_most_s,
                measured_s=measured,
                samples=samples,
                kept=None if measured is None else measured <= level.at_most_s,
                as_of=until,
                of_answers=last is not None,
                description=level.description,
            )
        )
    return found


def _last_answer(tx: Transaction, spec: LoopSpec) -> datetime | None:
    table = tables.prediction_segments
    query = select(table.c.to_at).where(table.c.deployment == spec.name)
    return cast("datetime | None", tx.scalar(query.order_by(table.c.to_at.desc()).limit(1)))


def prediction_time(at: datetime, latencies: Latencies) -> _Measured:
    """99th percentile of the latency of answers that went to a client up to `at`, in seconds."""
    until = at + timedelta(microseconds=1)
    log = latencies(until - timedelta(days=_LATENCY_DAYS), until)
    if log is None:
        return None, 0
    served = log.filter(pc.not_equal(log.column("arm"), "shadow"))
    micros = served.column("latency_us").drop_null().to_numpy()
    if not len(micros):
        return None, 0
    return float(np.percentile(micros, 99)) / 1e6, len(micros)


def _retraining(tx: Transaction, spec: LoopSpec) -> _Measured:
    """The longest training that a firing of the loop began, by the watch of who ran it."""
    events, firings = tables.events, tables.firings
    subjects = select("firing:" + firings.c.id).where(firings.c.loop == spec.name)
    query = select(events.c.body).where(
        events.c.kind == "trigger.Finished", events.c.subject.in_(subjects)
    )
    found = [row.body["seconds"] for row in tx.all(query) if "seconds" in row.body]
    return (max(found), len(found)) if found else (None, 0)


def _deployment(tx: Transaction, spec: LoopSpec) -> _Measured:
    """The longest rollout from its start to the promotion."""
    table = tables.rollouts
    query = select(table.c.state, table.c.started_at, table.c.updated_at).where(
        table.c.deployment == spec.name, table.c.open.is_(False)
    )
    promoted = [row for row in tx.all(query) if row.state["stage"] == "promoted"]
    spans = [(row.updated_at - row.started_at).total_seconds() for row in promoted]
    return (max(spans), len(spans)) if spans else (None, 0)


def _renewal(tx: Transaction, spec: LoopSpec, until: datetime) -> _Measured:
    """How old the live model is."""
    live = live_model(tx, spec.name)
    return (None, 0) if live is None else (max((until - live[1]).total_seconds(), 0.0), 1)


def live_model(tx: Transaction, deployment: str) -> tuple[str, datetime] | None:
    """The champion of a deployment as ``model:name/version``, and when it was registered."""
    table, versions = tables.deployments, tables.model_versions
    row = tx.first(select(table).where(table.c.name == deployment))
    champion = next((a for a in (row.arms if row else ()) if a["name"] == "champion"), None)
    if row is None or champion is None:
        return None
    made = tx.scalar(
        select(versions.c.created_at).where(
            versions.c.name == row.model, versions.c.version == champion["version"]
        )
    )
    return None if made is None else (f"model:{row.model}/{champion['version']}", made)
