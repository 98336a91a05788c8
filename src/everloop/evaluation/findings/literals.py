"""Values and names as SQL that DuckDB reads back as the same value."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime
from typing import Any

from everloop.errors import InvalidInput

__all__ = ["literal", "quoted", "shown"]

# A plain decimal with more digits is read as DECIMAL and rounded on the way to DOUBLE.
_EXACT_DIGITS = 15


def quoted(name: str) -> str:
    """A column's name."""
    return '"' + name.replace('"', '""') + '"'


def literal(value: Any) -> str:
    """A value; times are in UTC without a zone, as rules see them."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            return f"'{value}'::DOUBLE"
        text = repr(value)
        digits = text.lstrip("-").replace(".", "").strip("0")
        return text if "e" in text or len(digits) <= _EXACT_DIGITS else f"{value:.17e}"
    if isinstance(value, datetime):
        if value.tzinfo is not None:
            value = value.astimezone(UTC).replace(tzinfo=None)
        return f"TIMESTAMP '{value.isoformat(' ')}'"
    if isinstance(value, date):
        return f"DATE '{value.isoformat()}'"
    if isinstance(value, bytes):
        return "'" + "".join(f"\\x{byte:02X}" for byte in value) + "'::BLOB"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    raise InvalidInput(f"a rule cannot name a {type(value).__name__}")


def shown(value: Any) -> str:
    """A value for people."""
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, datetime):
        return value.isoformat(" ")
    return f"'{value}'" if isinstance(value, str) else str(value)
