"""Statements over the tables of monitoring, and its places in the event log.

Two kinds of rows share ``summaries``: ``unit:<seconds>`` holds the tallies by version of that long
a stretch, and ``champion`` which version became champion when.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import Row, Select, and_, bindparam, delete, func, or_, select

from everloop.catalog import tables
from everloop.catalog.edges import link, link_all
from everloop.catalog.transaction import Transaction
from everloop.core.monitor import Alert, Monitor, Window
from everloop.core.time import from_micros, parse_instant

if TYPE_CHECKING:
    from everloop.monitoring.tally import Tally

__all__ = [
    "News",
    "alerts",
    "champions",
    "clear_alert",
    "cursors",
    "drop_monitor",
    "fire_alert",
    "immature_windows",
    "judged_monitors",
    "monitors",
    "news",
    "open_alerts",
    "put_champion",
    "put_cursors",
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
# Databases limit the parameters of a statement; this many keys are asked for at once.
_AT_ONCE = 500

# What an update asks every time is built once: building costs more than asking.
_W, _S, _A = tables.monitor_windows.c, tables.summaries.c, tables.alerts.c
_MONITORS = (
    select(tables.monitors.c.spec)
    .where(tables.monitors.c.deployment == bindparam("deployment"))
    .order_by(tables.monitors.c.name)
)
_CURSORS = select(tables.cursors).where(
    tables.cursors.c.name.in_(bindparam("names", expanding=True))
)
_NEWEST = select(func.max(tables.events.c.seq))
_LOGGED = select(tables.events.c.kind, tables.events.c.body).where(
    tables.events.c.seq > bindparam("after"),
    tables.events.c.seq <= bindparam("until"),
    tables.events.c.kind.in_(("predictions.Logged", "labels.Logged")),
)
_WAITING = select(tables.label_batches.c.digest).where(
    tables.label_batches.c.deployment == bindparam("deployment"),
    tables.label_batches.c.to_at > bindparam("known_since"),
    tables.label_batches.c.from_at <= bindparam("now"),
)
_OF_KIND = (_S.deployment == bindparam("deployment"), _S.kind == bindparam("kind"))
_CHAMPIONS = select(_S.start, _S.body).where(*_OF_KIND).order_by(_S.start)
_UNITS = select(_S.start).where(*_OF_KIND).order_by(_S.start.desc())
_TALLIES = select(_S.start, _S.body).where(
    *_OF_KIND, _S.start >= bindparam("since"), _S.start < bindparam("until")
)
_IMMATURE = select(tables.monitor_windows).where(
    _W.deployment == bindparam("deployment"), _W.mature.is_(False)
)
_JUDGED = select(_W.monitor).where(_W.deployment == bindparam("deployment")).distinct()
_RECENT = (
    select(tables.monitor_windows)
    .where(
        _W.deployment == bindparam("deployment"),
        _W.monitor == bindparam("monitor"),
        _W.start >= bindparam("since"),
        _W.mature.is_(True),
        _W.value.is_not(None),
    )
    .order_by(_W.start.desc())
    .limit(bindparam("limit"))
)
_OPEN_ALERTS = (
    select(tables.alerts)
    .where(_A.deployment == bindparam("deployment"), _A.state == "firing")
    .order_by(_A.opened_at, _A.id)
)


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
    rows = _all(tx, _MONITORS, deployment=deployment)
    return [msgspec.convert(row.spec, Monitor) for row in rows]


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


def cursors(tx: Transaction, *names: str) -> list[int]:
    """The places of readers; 0 for one that has none yet."""
    found = {row.name: int(row.seq) for row in _all(tx, _CURSORS, names=list(names))}
    return [found.get(name, 0) for name in names]


def put_cursors(tx: Transaction, places: dict[str, int]) -> None:
    """Move readers' places."""
    rows = [{"name": name, "seq": seq} for name, seq in places.items()]
    tx.upsert(tables.cursors, rows, ["name"])


def news(
    tx: Transaction, deployment: str, *, after: int, known_since: datetime, now: datetime
) -> News:
    """Segments and label batches logged after place `after`, and labels known by `now` only now."""
    seq = int(tx.scalar(_NEWEST) or 0)
    logged = _all(tx, _LOGGED, after=after, until=seq) if seq > after else ()
    own = [row for row in logged if row.body.get("deployment") == deployment]
    waiting = _all(tx, _WAITING, deployment=deployment, known_since=known_since, now=now)
    batches = {row.digest: False for row in waiting}
    batches |= {row.body["digest"]: True for row in own if row.kind == "labels.Logged"}
    spans = tuple(
        (parse_instant(row.body["from_at"]), parse_instant(row.body["to_at"]))
        for row in own
        if row.kind == "predictions.Logged"
    )
    return News(seq, spans, tuple(batches.items()))


def champions(tx: Transaction, deployment: str) -> list[tuple[datetime, int]]:
    """Since when which version was champion, oldest first."""
    rows = _all(tx, _CHAMPIONS, deployment=deployment, kind=_CHAMPION)
    return [(row.start, int(row.body["version"])) for row in rows]


def put_champion(tx: Transaction, deployment: str, since: datetime, version: int) -> None:
    """Note that `version` has been champion since then."""
    row = {"deployment": deployment, "kind": _CHAMPION, "start": since}
    tx.upsert(
        tables.summaries, row | {"body": {"version": version}}, ["deployment", "kind", "start"]
    )


def units(tx: Transaction, deployment: str, unit_s: int) -> list[datetime]:
    """Starts of the summarised units, newest first."""
    return [row.start for row in _all(tx, _UNITS, deployment=deployment, kind=_unit(unit_s))]


def tallies(
    tx: Transaction, deployment: str, unit_s: int, since: datetime, until: datetime
) -> dict[datetime, dict[int, Tally]]:
    """Tallies by version of the units that start within ``[since, until)``."""
    span = {"since": since, "until": until}
    from everloop.monitoring.tally import Tally

    rows = _all(tx, _TALLIES, deployment=deployment, kind=_unit(unit_s), **span)
    return {
        row.start: {int(version): Tally.from_json(part) for version, part in row.body.items()}
        for row in rows
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
    return [Window(**row._asdict()) for row in _all(tx, _IMMATURE, deployment=deployment)]


def judged_monitors(tx: Transaction, deployment: str) -> set[str]:
    """Names of the monitors that have windows."""
    return {row.monitor for row in _all(tx, _JUDGED, deployment=deployment)}


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
    """The latest `limit` mature windows that could be told, that start at `since` or later."""
    asked = {"since": since or from_micros(0), "limit": limit}
    rows = _all(tx, _RECENT, deployment=deployment, monitor=monitor, **asked)
    return [Window(**row._asdict()) for row in reversed(rows)]


def open_alerts(tx: Transaction, deployment: str) -> list[Alert]:
    """Open alerts of a deployment, oldest first."""
    return [Alert(**row._asdict()) for row in _all(tx, _OPEN_ALERTS, deployment=deployment)]


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


def fire_alert(
    tx: Transaction, alert: Alert, windows: Iterable[Window] = (), *, cause: str = ""
) -> None:
    """Store an alert and tell of it; `windows` are the evidence, `cause` the event behind it."""
    tx.execute(tables.alerts.insert().values(msgspec.structs.asdict(alert)))
    body = {"deployment": alert.deployment, "monitor": alert.monitor}
    subject = f"alert:{alert.id}"
    link(tx, f"deployment:{alert.deployment}", subject, "raised")
    link_all(tx, _judged(tx, alert, list(windows)), subject, "judged")
    tx.append("alert.Fired", subject, body | {"evidence": alert.evidence}, cause=cause)


def _judged(tx: Transaction, alert: Alert, windows: list[Window]) -> list[str]:
    """The segments of the windows; for realised performance the labels that could tell of them."""
    if not windows:
        return []
    segments, batches = tables.prediction_segments, tables.label_batches
    spans = [and_(segments.c.to_at >= w.start, segments.c.from_at < w.end) for w in windows]
    own = select(segments.c.id).where(segments.c.deployment == alert.deployment, or_(*spans))
    found = [f"segment:{row.id}" for row in tx.all(own.order_by(segments.c.id))]
    if alert.evidence.get("kind") == "performance":
        known = (
            batches.c.deployment == alert.deployment,
            batches.c.to_at >= min(window.start for window in windows),
            batches.c.from_at <= tx.now,
        )
        told = select(batches.c.id).where(*known).order_by(batches.c.id)
        found += [f"labels:{row.id}" for row in tx.all(told)]
    return found


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
    for alert in open_alerts(tx, deployment):
        if alert.monitor == name:
            clear_alert(tx, alert, "the monitor was removed")
    return True


def _all(tx: Transaction, statement: Select[Any], **values: Any) -> Sequence[Row[Any]]:
    return tx.connection.execute(statement, values).all()


def _unit(unit_s: int) -> str:
    return f"unit:{unit_s}"


def _chunks(items: list[Any]) -> Iterable[list[Any]]:
    return (items[at : at + _AT_ONCE] for at in range(0, len(items), _AT_ONCE))
