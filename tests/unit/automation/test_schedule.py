"""The times of a schedule against an oracle that walks minute by minute over clock changes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import everloop as ev
from everloop.automation.schedule import due_ticks, latest_tick, next_tick, ticks
from everloop.errors import InvalidInput

ZONES = ("UTC", "Europe/Paris", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata")
#: Days in whose neighbourhood one of these zones changes its clock.
CHANGES = tuple(
    datetime(2024, month, day, tzinfo=UTC)
    for month, day in ((3, 10), (3, 31), (4, 7), (6, 1), (10, 6), (10, 27), (11, 3))
)


def field(text: str, low: int, high: int) -> set[int]:
    found: set[int] = set()
    for part in text.split(","):
        span, _, step = part.partition("/")
        first, _, last = span.partition("-")
        begin, end = (low, high) if span == "*" else (int(first), int(last or first))
        found |= set(range(begin, end + 1, int(step or 1)))
    return found


def oracle(cron: str, after: datetime, until: datetime, zone: str) -> list[datetime]:
    """Fixed times once a day, in a gap at its end, in a doubled hour the first time."""
    minute, hour, day, month, weekday = cron.split()
    minutes, hours = field(minute, 0, 59), field(hour, 0, 23)
    days, months, weekdays = field(day, 1, 31), field(month, 1, 12), field(weekday, 0, 7)
    place = ZoneInfo(zone)
    is_fixed = not (minute.startswith("*") or hour.startswith("*"))

    def matches(local: datetime) -> bool:
        on_day = local.day in days
        on_weekday = local.isoweekday() in weekdays or local.isoweekday() % 7 in weekdays
        both = day.startswith("*") or weekday.startswith("*")
        dated = (on_day and on_weekday) if both else (on_day or on_weekday)
        return local.minute in minutes and local.hour in hours and local.month in months and dated

    found = set()
    if is_fixed and zone != "UTC":
        wall = (after.astimezone(place) - timedelta(days=2)).replace(tzinfo=None, second=0)
        wall = wall.replace(microsecond=0)
        while wall < until.astimezone(place).replace(tzinfo=None) + timedelta(days=2):
            if matches(wall):
                real = wall.replace(tzinfo=place, fold=0)
                while real.astimezone(UTC).astimezone(place).replace(tzinfo=None) != real.replace(
                    tzinfo=None
                ):
                    real = (real.replace(tzinfo=None) + timedelta(minutes=1)).replace(tzinfo=place)
                found.add(real.astimezone(UTC))
            wall += timedelta(minutes=1)
    else:
        at = after.replace(second=0, microsecond=0)
        while at <= until:
            if matches(at.astimezone(place)):
                found.add(at)
            at += timedelta(minutes=1)
    return sorted(at for at in found if after < at <= until)


minute_field = st.one_of(
    st.integers(0, 59).map(str),
    st.sampled_from(["*", "*/7", "*/15", "0,30", "10-20/5", "59"]),
)
hour_field = st.one_of(
    st.integers(0, 23).map(str), st.sampled_from(["*", "*/2", "1-3", "0,2", "2"])
)
day_field = st.sampled_from(["*", "*", "*", "1", "31", "10,27", "1-7", "*/2"])
month_field = st.sampled_from(["*", "*", "*", "3", "10,11"])
weekday_field = st.sampled_from(["*", "*", "*", "0", "7", "1-5", "6"])
crons = st.tuples(minute_field, hour_field, day_field, month_field, weekday_field).map(" ".join)


@settings(max_examples=60)
@given(
    crons,
    st.sampled_from(ZONES),
    st.sampled_from(CHANGES),
    st.integers(-30 * 3600, 30 * 3600),
    st.integers(1, 50 * 3600),
)
def test_the_times_are_those_of_the_clock_on_the_wall(
    cron: str, zone: str, near: datetime, shift_s: int, length_s: int
) -> None:
    after = near + timedelta(seconds=shift_s)
    until = after + timedelta(seconds=length_s)
    wanted = oracle(cron, after, until, zone)
    assert list(ticks(cron, after, until, zone)) == wanted
    assert latest_tick(cron, after, until, zone) == (wanted[-1] if wanted else None)


def test_a_fixed_time_fires_once_in_the_gap_and_once_in_the_doubled_hour() -> None:
    begin = datetime(2024, 1, 1, tzinfo=UTC)
    found = list(ticks("30 2 * * *", begin, begin + timedelta(days=366), "Europe/Paris"))
    assert len({tick.astimezone(ZoneInfo("Europe/Paris")).date() for tick in found}) == len(found)
    assert datetime(2024, 3, 31, 1, tzinfo=UTC) in found  # 02:30 is not there: 03:00
    assert datetime(2024, 10, 27, 0, 30, tzinfo=UTC) in found  # the first of two


def test_what_was_missed_fires_as_it_was_asked_for() -> None:
    after = datetime(2024, 5, 1, tzinfo=UTC)
    now = datetime(2024, 5, 4, 3, 0, 30, tzinfo=UTC)
    days = [datetime(2024, 5, day, 3, tzinfo=UTC) for day in (1, 2, 3, 4)]

    def due(missed: str, at: datetime, most: int = 9) -> list[datetime]:
        return due_ticks("0 3 * * *", after, at, zone="", missed=missed, most=most)  # type: ignore[arg-type]

    assert due("all", now) == days
    assert due("all", now, most=2) == days[:2]
    assert due("latest", now) == days[-1:]
    assert due("skip", now) == days[-1:]
    assert due("skip", now + timedelta(minutes=2)) == []


def test_a_schedule_that_never_fired_is_found_quickly_after_years() -> None:
    now = datetime(2024, 5, 4, tzinfo=UTC)
    assert latest_tick("* * * * *", datetime(1990, 1, 1, tzinfo=UTC), now) == now
    assert next_tick("0 0 29 2 *", now) == datetime(2028, 2, 29, tzinfo=UTC)


@pytest.mark.parametrize(
    ("cron", "zone", "told"),
    [
        ("0 3 * *", "", "four|4 fields"),
        ("0 0 3 * * *", "", "6 fields"),
        ("61 3 * * *", "", "minute"),
        ("0 3 31 2 *", "", "day-of-month|never"),
        ("0 3 * * *", "Europe/Atlantis", "no time zone"),
        ("0 3 * * *", "../etc/passwd", "no time zone"),
        ("0 3 * * *", "paris", "Europe/Paris"),
    ],
)
def test_a_wrong_schedule_is_refused_where_it_is_written(cron: str, zone: str, told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        ev.schedule(cron, zone=zone)
