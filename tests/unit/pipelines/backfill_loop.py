"""A pipeline with a partition, loaded by its path."""

from datetime import date

import everloop as ev


@ev.step
def load(day: date, region: str) -> str:
    if day == date(2013, 1, 3) and region == "bad":
        raise ValueError("no rows on that day")
    return f"{day} {region}"


@ev.pipeline
def daily(day: date, region: str = "eu", rows: int = 1) -> str:
    return load(day, region)
