"""Instants, lengths of time, clocks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everloop.core.time import (
    ManualClock,
    SystemClock,
    duration_micros,
    from_micros,
    monotonic_ns,
    parse_instant,
    to_micros,
    utc,
)
from everloop.errors import InvalidInput


@given(st.datetimes(timezones=st.timezones()))
def test_micros_are_exact_in_every_zone(at: datetime) -> None:
    try:
        there = utc(at)
    except InvalidInput:  # at the very edges of the calendar a zone has no UTC
        return
    assert from_micros(to_micros(at)) == there
    assert from_micros(to_micros(at)).tzinfo is UTC


def test_naive_time_is_utc() -> None:
    naive = datetime(2013, 4, 1, 6, 30)  # noqa: DTZ001
    assert utc(naive) == datetime(2013, 4, 1, 6, 30, tzinfo=UTC)
    east = datetime(2013, 4, 1, 6, 30, tzinfo=timezone(timedelta(hours=2)))
    assert utc(east) == datetime(2013, 4, 1, 4, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2013-04-01", datetime(2013, 4, 1, tzinfo=UTC)),
        ("2013-04-01T06:30", datetime(2013, 4, 1, 6, 30, tzinfo=UTC)),
        ("2013-04-01T06:30:00Z", datetime(2013, 4, 1, 6, 30, tzinfo=UTC)),
        ("2013-04-01 06:30:00.000001+02:00", datetime(2013, 4, 1, 4, 30, 0, 1, UTC)),
    ],
)
def test_times_are_read(text: str, at: datetime) -> None:
    assert parse_instant(text) == at


@pytest.mark.parametrize(
    "at",
    [
        datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1))),
        datetime(9999, 12, 31, 23, tzinfo=timezone(-timedelta(hours=2))),
    ],
)
def test_an_instant_beyond_the_calendar_is_refused(at: datetime) -> None:
    with pytest.raises(InvalidInput, match="outside the years 1 to 9999"):
        utc(at)
    with pytest.raises(InvalidInput):
        parse_instant(at.isoformat())


@pytest.mark.parametrize("text", ["182626d", "9" * 400 + "d", timedelta.max])
def test_a_length_of_time_is_500_years_at_most(text: str | timedelta) -> None:
    with pytest.raises(InvalidInput, match="500 years at most"):
        duration_micros(text)
    assert duration_micros("182625d") == 182_625 * 86_400_000_000


@pytest.mark.parametrize("text", ["", "now", "2013-13-01", "01.04.2013", "12:30"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="is no time"):
        parse_instant(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("3h", 10_800),
        ("7d", 604_800),
        ("1w", 604_800),
        ("1h30m", 5_400),
        ("90 min", 5_400),
        ("250ms", 0.25),
        ("1.5s", 1.5),
        ("1us", 0.000001),
        (timedelta(days=1), 86_400),
    ],
)
def test_lengths_of_time_are_read(text: str | timedelta, seconds: float) -> None:
    assert duration_micros(text) == round(seconds * 1_000_000)


@pytest.mark.parametrize("text", ["", "3", "h", "3 hours", "-3h", "0s", "3h!", timedelta(0)])
def test_what_is_no_length_of_time_is_refused(text: str | timedelta) -> None:
    with pytest.raises(InvalidInput):
        duration_micros(text)


def test_manual_clock_stands_until_it_is_moved() -> None:
    clock = ManualClock(datetime(2013, 1, 1))  # noqa: DTZ001
    assert clock.now() == datetime(2013, 1, 1, tzinfo=UTC)
    assert clock.advance(days=1) == clock.now() == datetime(2013, 1, 2, tzinfo=UTC)
    clock.set(datetime(2012, 1, 1, tzinfo=UTC))
    assert clock.now().year == 2012


def test_system_clock_is_in_utc() -> None:
    assert SystemClock().now().tzinfo is UTC
    assert monotonic_ns() <= monotonic_ns()
