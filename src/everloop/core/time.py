"""Instants and clocks. An instant is an aware UTC ``datetime`` or microseconds since 1970.

Whatever decides by time gets a :class:`Clock`, so that a year can be replayed in a minute.
"""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

from everloop.errors import InvalidInput

__all__ = [
    "Clock",
    "ManualClock",
    "SystemClock",
    "duration_micros",
    "from_micros",
    "parse_instant",
    "span_text",
    "to_micros",
    "utc",
]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
# 500 years: longer than any window or cooldown, and short enough to be added to any present date.
_LONGEST = 182_625 * 86_400_000_000
_UNITS = {"us": 1, "ms": 1_000, "s": 1_000_000, "m": 60_000_000, "min": 60_000_000}
_UNITS |= {"h": 3_600_000_000, "d": 86_400_000_000, "w": 604_800_000_000}


class Clock(Protocol):
    """Tells the time. ``now`` never has to be monotonic: order is by sequence, not by clock."""

    def now(self) -> datetime:
        """The present instant, aware, in UTC."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)


class ManualClock:
    """A clock that stands where it is put; for tests and for replaying the past."""

    def __init__(self, at: datetime) -> None:
        self._at = utc(at)

    def now(self) -> datetime:
        return self._at

    def set(self, at: datetime) -> None:
        """Put the clock to `at`; earlier is allowed."""
        self._at = utc(at)

    def advance(self, **delta: float) -> datetime:
        """Move on by ``timedelta(**delta)`` and return the new time."""
        self._at += timedelta(**delta)
        return self._at


def utc(at: datetime) -> datetime:
    """`at` in UTC; a naive value is taken as UTC.

    Raises:
        InvalidInput: If it lies outside the years 1 to 9999 there.
    """
    try:
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except OverflowError:
        raise InvalidInput(f"{at.isoformat()} lies outside the years 1 to 9999 in UTC") from None


def to_micros(at: datetime) -> int:
    """Microseconds since 1970, exact."""
    return (utc(at) - _EPOCH) // _MICROSECOND


def from_micros(micros: int) -> datetime:
    """The aware UTC instant of `micros` since 1970."""
    return _EPOCH + timedelta(microseconds=micros)


def parse_instant(text: str) -> datetime:
    """Read an ISO 8601 date or time; without a zone it means UTC.

    Raises:
        InvalidInput: If it is no date or time.
    """
    try:
        return utc(datetime.fromisoformat(text))
    except ValueError:
        raise InvalidInput(
            f"{text!r} is no time", hint="write it as 2013-04-01 or 2013-04-01T06:30:00+00:00"
        ) from None


def duration_micros(text: str | timedelta) -> int:
    """Read a length of time such as ``"3h"``, ``"7d"`` or ``"1h30m"``; microseconds, at least 1.

    Raises:
        InvalidInput: If it is no length of time, not above zero, or longer than 500 years.
    """
    if isinstance(text, timedelta):
        length: float = text // _MICROSECOND
    else:
        parts = re.findall(r"(\d+(?:\.\d+)?)\s*(us|ms|min|[smhdw])", text)
        rest = re.sub(r"(\d+(?:\.\d+)?)\s*(us|ms|min|[smhdw])", "", text).strip()
        if not parts or rest:
            raise InvalidInput(f"{text!r} is no length of time", hint='write it as "3h" or "7d"')
        length = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if length > _LONGEST:
        raise InvalidInput(f"a length of time may be 500 years at most, got {text!r}")
    total = round(length)
    if total <= 0:
        raise InvalidInput(f"a length of time must be above zero, got {text!r}")
    return total


def monotonic_ns() -> int:
    """Nanoseconds for measuring; never compared between processes."""
    return time.perf_counter_ns()


def span_text(seconds: float) -> str:
    """A length of time for people, such as ``"7.35 s"`` or ``"4 d"``."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= length:
            number = seconds / length
            return f"{number:.3g} {unit}" if number < 1000 else f"{number:.0f} {unit}"
    return f"{seconds * 1000:.3g} ms"
