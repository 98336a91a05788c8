"""The times of a cron expression in a time zone. Pure; what fires of them is decided elsewhere.

Five fields, as Debian's cron reads them. A job at a fixed time of day fires once on each day: in
the gap of a spring morning at the first minute that there is, in the doubled hour of autumn the
first time. One that runs every so often (a minute or an hour that begins with ``*``) follows
the time that really passes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from cronsim import CronSim, CronSimError

from everloop.core.policy import Missed
from everloop.errors import Fault

__all__ = ["due_ticks", "latest_tick", "next_tick", "schedule_faults", "ticks"]

_GRACE = timedelta(minutes=1)
#: How far back the latest time is looked for, in turn: most fire often.
_LOOK_BACK = tuple(timedelta(days=days) for days in (1 / 24, 1, 32, 370))
_NEVER = datetime.max.replace(tzinfo=UTC)


def schedule_faults(cron: str, zone: str = "") -> list[Fault]:
    """What is wrong with a schedule: its zone, its fields, or that it never comes."""
    faults = []
    try:
        where = _zone(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        near = sorted(name for name in available_timezones() if zone.lower() in name.lower())[:3]
        told = f"; there are: {', '.join(near)}" if near and zone else ""
        faults.append(Fault("zone", f"{zone!r} is no time zone{told}"))
        where = UTC
    if len(cron.split()) != 5:
        faults.append(Fault("cron", f"{cron!r} has {len(cron.split())} fields, wanted five"))
        return faults
    try:
        next(CronSim(cron, datetime(2000, 1, 1, tzinfo=where)))
    except CronSimError as error:
        faults.append(Fault("cron", f"{cron!r}: {error}"))
    except StopIteration:
        faults.append(Fault("cron", f"{cron!r} never comes"))
    return faults


@functools.lru_cache(maxsize=256)
def _zone(name: str) -> tzinfo:
    return UTC if name in ("", "UTC") else ZoneInfo(name)


def ticks(cron: str, after: datetime, until: datetime, zone: str = "") -> Iterator[datetime]:
    """The times within ``(after, until]``, ascending, in UTC."""
    last = after
    for tick in CronSim(cron, after.astimezone(_zone(zone))):
        at = tick.astimezone(UTC)
        if at > until:
            return
        # In the doubled hour a fixed time may be given although it has passed; a gap may give two
        # times of a day as one.
        if at > last:
            last = at
            yield at


def next_tick(cron: str, after: datetime, zone: str = "") -> datetime:
    """The first time after `after`."""
    return next(ticks(cron, after, _NEVER, zone), _NEVER)


def latest_tick(cron: str, after: datetime, now: datetime, zone: str = "") -> datetime | None:
    """The latest time within ``(after, now]``."""
    for span in _LOOK_BACK:
        begin = max(after, now - span)
        found = list(ticks(cron, begin, now, zone))
        if found:
            return found[-1]
        if begin == after:
            return None
    return max(ticks(cron, after, now, zone), default=None)


def due_ticks(
    cron: str, after: datetime, now: datetime, *, zone: str, missed: Missed, most: int
) -> list[datetime]:
    """The times within ``(after, now]`` that fire, ascending.

    Args:
        cron: The expression.
        after: The last time that is settled.
        now: The present.
        zone: Time zone of the expression.
        missed: With ``skip`` only a time within the last minute fires, with ``latest`` the newest,
            with ``all`` each, the oldest first.
        most: How many of ``all`` at once.
    """
    if missed == "all":
        found = []
        for tick in ticks(cron, after, now, zone):
            found.append(tick)
            if len(found) == most:
                break
        return found
    begin = max(after, now - _GRACE) if missed == "skip" else after
    latest = latest_tick(cron, begin, now, zone)
    return [] if latest is None else [latest]
