"""Statements over the tables of monitoring, and its places in the event log.

Two kinds of rows share ``summaries``: ``unit:<seconds>`` holds the tallies by version of that long
a stretch, and ``champion`` which version became champion when.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import and_, delete, func, or_, select

from everloop.catalog import tables
from everloop.catalog.engine import Transaction
from everloop.core.monitor import Alert, Monitor, Window
from everloop.monitoring.tally import Tally

__all__ = [
    "News",
    "alerts",
    "champions",
    "clear_alert",
    "cursor",
    "drop_monitor",
    "fire_alert",
    "immature_windows",
    "judged_monitors",
    "monitors",
    "news",
    "put_champion",
    "put_cursor",
    "put_monitor",
    "put_tallies",
    "put_windows",
    "recent_windows",
    "stored_windows",
    "tallies",
    "units",
    "windows",
]

_CHAMPION = "champion"
# Databases limit the parameters of a statement; this many ids are asked for at once.
_AT_ONCE = 500


class News(msgspec.Struct, frozen=True):
    """What was logged after a place in the event log.

    Attributes:
        seq: The place up to which this tells everything.
        spans: ``(from_at, to_at)`` of the new segments.
        batches: Digests of the label batches to look into, with whether they are new; one that is
            not was logged earlier with labels that became known since.
    """

    seq: int
    spans: tuple[tuple[datetime, datetime], ...]
    batches: tuple[tuple[str, bool], ...]


def monitors(tx: Transaction, deployment: str) -> list[Monitor]:
    """The monitors of a deployment, by name."""
    table = tables.monitors
    query = select(table.c.spec).where(table.c.deployment == deployment).order_by(table.c.name)
    return [msgspec.convert(row.spec, Monitor) for row in tx.all(query)]


def put_monitor(tx: Transaction, monitor: Monitor) -> bool:
    """Store a definition; whether it is new or differs. Windows of the old one are dropped."""
    table, windows_ = tables.monitors, tables.monitor_windows
    where = and_(table.c.deployment == monitor.deployment, table.c.name == monitor.name)
    before = tx.scalar(select(table.c.spec).where(where))
    if before is not None and msgspec.convert(before, Monitor) == monitor:
        return False
    row = {"deployment": monitor.deployment, "name": monitor.name, "spec": monitor}
    tx.upsert(table, row, ["deployment", "name"])
    tx.execute(
        delete(windows_).where(
            windows_.c.deployment == monitor.deployment, windows_.c.monitor == monitor.name
        )
    )
    return True


def cursor(tx: Transaction, name: str) -> int:
    """A reader's place; 0 where it has none yet."""
    table = tables.cursors
    return int(tx.scalar(select(table.c.seq).where(table.c.name == name)) or 0)


def put_cursor(tx: Transaction, name: str, seq: int) -> None:
    """Move a reader's place."""
    tx.upsert(tables.cursors, {"name": name, "seq": seq}, ["name"])


def news(
    tx: Transaction, deployment: str, *, after: int, known_since: datetime, now: datetime
) -> News:
    """Segments and label batches logged after place `after`, and labels known by `now` only now."""
    log, segments, batches = tables.events, tables.prediction_segments, tables.label_batches
    seq = int(tx.scalar(select(func.max(log.c.seq))) or 0)
    query = select(log.c.kind, log.c.subject).where(
        log.c.seq > after, log.c.seq <= seq, log.c.kind.in_(("predictions.Logged", "labels.Logged"))
    )
    fresh: dict[str, list[str]] = {"predictions.Logged": [], "labels.Logged": []}
    for row in tx.all(query):
        fresh[row.kind].append(row.subject.partition(":")[2])
    spans = [
        (row.from_at, row.to_at)
        for ids in _chunks(fresh["predictions.Logged"])
        for row in tx.all(
            select(segments.c.from_at, segments.c.to_at).where(
                segments.c.id.in_(ids), segments.c.deployment == deployment
            )
        )
    ]
    found: dict[str, bool] = {}
    waiting = select(batches.c.digest).where(
        batches.c.deployment == deployment,
        batches.c.to_at > known_since,
        batches.c.from_at <= now,
    )
    for row in tx.all(waiting):
        found[row.digest] = False
    for ids in _chunks(fresh["labels.Logged"]):
        for row in tx.all(
            select(batches.c.digest).where(
                batches.c.id.in_(ids), batches.c.deployment == deployment
            )
        ):
            found[row.digest] = True
    return News(seq, tuple(spans), tuple(found.items()))


def champions(tx: Transaction, deployment: str) -> list[tuple[datetime, int]]:
    """Since when which version was champion, oldest first."""
    table = tables.summaries
    query = select(table.c.start, table.c.body).where(
        table.c.deployment == deployment, table.c.kind == _CHAMPION
    )
    return [(row.start, int(row.body["version"])) for row in tx.all(query.order_by(table.c.start))]


def put_champion(tx: Transaction, deployment: str, since: datetime, version: int) -> None:
    """Note that `version` has been champion since then."""
    row = {"deployment": deployment, "kind": _CHAMPION, "start": since}
    tx.upsert(
        tables.summaries, row | {"body": {"version": version}}, ["deployment", "kind", "start"]
    )


def units(tx: Transaction, deployment: str, unit_s: int) -> list[datetime]:
    """Starts of the summarised units, newest first."""
    table = tables.summaries
    query = select(table.c.start).where(
        table.c.deployment == deployment, table.c.kind == _unit(unit_s)
    )
    return [row.start for row in tx.all(query.order_by(table.c.start.desc()))]


def tallies(
    tx: Transaction, deployment: str, unit_s: int, since: datetime, until: datetime
) -> dict[datetime, dict[int, Tally]]:
    """Tallies by version of the units that start within ``[since, until)``."""
    table = tables.summaries
    query = select(table.c.start, table.c.body).where(
        table.c.deployment == deployment,
        table.c.kind == _unit(unit_s),
        table.c.start >= since,
        table.c.start < until,
    )
    return {
        row.start: {int(version): Tally.from_json(part) for version, part in row.body.items()}
        for row in tx.all(query)
    }


def put_tallies(
    tx: Transaction, deployment: str, unit_s: int, found: dict[datetime, dict[int, Tally]]
) -> None:
    """Store the tallies of whole units, in place of what was there."""
    rows = [
        {
            "deployment": deployment,
            "kind": _unit(unit_s),
            "start": start,
            "body": {str(version): part.to_json() for version, part in parts.items()},
        }
        for start, parts in found.items()
    ]
    tx.upsert(tables.summaries, rows, ["deployment", "kind", "start"])


def windows(
    tx: Transaction, deployment: str, *, monitor: str = "", since: datetime | None = None
) -> list[Window]:
    """Windows, oldest first."""
    table = tables.monitor_windows
    query = select(table).where(table.c.deployment == deployment)
    if monitor:
        query = query.where(table.c.monitor == monitor)
    if since is not None:
        query = query.where(table.c.end > since)
    return [Window(**row._asdict()) for row in tx.all(query.order_by(table.c.start))]


def immature_windows(tx: Transaction, deployment: str) -> list[Window]:
    """Windows whose labels were still awaited when they were last looked at."""
    table = tables.monitor_windows
    query = select(table).where(table.c.deployment == deployment, table.c.mature.is_(False))
    return [Window(**row._asdict()) for row in tx.all(query)]


def judged_monitors(tx: Transaction, deployment: str) -> set[str]:
    """Names of the monitors that have windows."""
    table = tables.monitor_windows
    query = select(table.c.monitor).where(table.c.deployment == deployment).distinct()
    return {row.monitor for row in tx.all(query)}


def stored_windows(
    tx: Transaction, deployment: str, keys: Iterable[tuple[str, datetime]]
) -> dict[tuple[str, datetime], Window]:
    """The stored windows at `keys` (monitor, start)."""
    table = tables.monitor_windows
    found = {}
    for part in _chunks(list(keys)):
        places = [and_(table.c.monitor == name, table.c.start == start) for name, start in part]
        query = select(table).where(table.c.deployment == deployment, or_(*places))
        found.update({(row.monitor, row.start): Window(**row._asdict()) for row in tx.all(query)})
    return found


def recent_windows(
    tx: Transaction, deployment: str, monitor: str, *, since: datetime | None, limit: int
) -> list[Window]:
    """The latest `limit` mature windows that could be told, that start after `since`."""
    table = tables.monitor_windows
    query = select(table).where(
        table.c.deployment == deployment,
        table.c.monitor == monitor,
        table.c.mature.is_(True),
        table.c.value.is_not(None),
    )
    if since is not None:
        query = query.where(table.c.start >= since)
    rows = tx.all(query.order_by(table.c.start.desc()).limit(limit))
    return [Window(**row._asdict()) for row in reversed(rows)]


def put_windows(tx: Transaction, found: Iterable[Window]) -> None:
    """Store windows, in place of what was there."""
    rows = [msgspec.structs.asdict(window) for window in found]
    tx.upsert(tables.monitor_windows, rows, ["deployment", "monitor", "start"])


def alerts(tx: Transaction, deployment: str = "", *, open_only: bool = False) -> list[Alert]:
    """Alerts, oldest first."""
    table = tables.alerts
    query = select(table).order_by(table.c.opened_at, table.c.id)
    if deployment:
        query = query.where(table.c.deployment == deployment)
    if open_only:
        query = query.where(table.c.state == "firing")
    return [Alert(**row._asdict()) for row in tx.all(query)]


def fire_alert(tx: Transaction, alert: Alert) -> None:
    """Store an alert and tell of it."""
    tx.execute(tables.alerts.insert().values(msgspec.structs.asdict(alert)))
    body = {"deployment": alert.deployment, "monitor": alert.monitor}
    tx.append("alert.Fired", f"alert:{alert.id}", body | {"evidence": alert.evidence})


def clear_alert(tx: Transaction, alert: Alert, reason: str) -> Alert:
    """Close an alert and tell of it; the event follows from the one that fired."""
    cleared = msgspec.structs.replace(
        alert, state="ok", cleared_at=tx.now, evidence=alert.evidence | {"cleared": reason}
    )
    tx.upsert(tables.alerts, msgspec.structs.asdict(cleared), ["id"])
    log = tables.events
    fired = tx.scalar(
        select(log.c.id).where(log.c.subject == f"alert:{alert.id}", log.c.kind == "alert.Fired")
    )
    body = {"deployment": alert.deployment, "monitor": alert.monitor, "reason": reason}
    tx.append("alert.Cleared", f"alert:{alert.id}", body, cause=fired or "")
    return cleared


def drop_monitor(tx: Transaction, deployment: str, name: str) -> bool:
    """Drop a monitor with its windows and clear its alert; whether it was there."""
    table, windows_ = tables.monitors, tables.monitor_windows
    gone = tx.execute(delete(table).where(table.c.deployment == deployment, table.c.name == name))
    tx.execute(
        delete(windows_).where(windows_.c.deployment == deployment, windows_.c.monitor == name)
    )
    if not gone.rowcount:
        return False
    tx.append("monitor.Removed", f"deployment:{deployment}", {"monitor": name})
    for alert in alerts(tx, deployment, open_only=True):
        if alert.monitor == name:
            clear_alert(tx, alert, "the monitor was removed")
    return True


def _unit(unit_s: int) -> str:
    return f"unit:{unit_s}"


def _chunks(items: list[Any]) -> Iterable[list[Any]]:
    return (items[at : at + _AT_ONCE] for at in range(0, len(items), _AT_ONCE))
