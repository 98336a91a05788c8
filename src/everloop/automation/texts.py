"""What people write in a loop, read: rules, budgets, hold-outs."""

from __future__ import annotations

import re

from everloop.core.time import duration_micros
from everloop.errors import InvalidInput

__all__ = ["budget_of", "days_of", "rule_of", "share_of"]

_UNITS = {"hour": 3600, "day": 86_400, "week": 7 * 86_400, "month": 30 * 86_400}
_UNITS |= {"quarter": 91 * 86_400, "year": 365 * 86_400}
_RULE = re.compile(r"(\d+)\s+of\s+(\d+)(?:\s+(hour|day|week|window)s?)?")


def budget_of(text: str) -> tuple[int, float]:
    """``"4 per month"`` as how many, in how many seconds; a month is 30 days."""
    match = re.fullmatch(r"\s*(\d+)\s+per\s+(\w+?)s?\s*", text)
    if match is None or int(match[1]) < 1:
        raise InvalidInput(f'{text!r} is no budget; write "4 per month"')
    unit = _UNITS.get(match[2])
    return int(match[1]), float(unit) if unit else duration_micros(match[2]) / 1e6


def rule_of(text: str) -> tuple[int, int, int]:
    """``"3 of 5 days"`` as k, m and the seconds of the unit, 0 where none is named."""
    match = _RULE.fullmatch(text.strip())
    if match is None or int(match[1]) > int(match[2]) or int(match[2]) < 1:
        raise InvalidInput(f'{text!r} is no rule; write "3 of 5 days"')
    return int(match[1]), int(match[2]), _UNITS.get(match[3] or "", 0)


def days_of(text: str) -> int:
    """``"latest 21 days"`` as 21."""
    match = re.fullmatch(r"\s*(?:latest\s+)?(\d+)\s*(?:d|days?)\s*", text)
    if match is None or int(match[1]) < 1:
        raise InvalidInput(f"{text!r} is no hold-out", hint='write "latest 21 days"')
    return int(match[1])


def share_of(text: str) -> float:
    """``"10%"`` as 0.1."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", text)
    if match is None:
        raise InvalidInput(f'{text!r} is no share; write "10%"')
    return float(match[1]) / 100
