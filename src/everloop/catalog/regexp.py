"""Regular expressions in searches, matched in a time that grows with the text alone.

SQLite has none of its own. Python's ``re`` would let a pattern such as ``(a+)+$`` hold the whole
process; RE2, which pyarrow brings along, knows no back references and never tries anything twice.
"""

from __future__ import annotations

import sqlite3
from functools import lru_cache
from typing import Any

from everloop.errors import InvalidInput

__all__ = ["add_regexp", "check_pattern"]

_LONGEST = 1000


def check_pattern(pattern: str) -> None:
    """Refuse what is no regular expression.

    Raises:
        InvalidInput: With what is wrong with it.
    """
    if len(pattern) > _LONGEST:
        raise InvalidInput(
            "Invalid regular expression",
            [("filter", f"has {len(pattern)} characters, at most {_LONGEST} are allowed")],
        )
    try:
        _found(pattern, "")
    except ValueError as error:
        raise InvalidInput(
            f"Invalid regular expression {pattern[:80]!r}",
            [("filter", str(error)[:200])],
            hint="look-around and back references are not known",
        ) from None


def add_regexp(connection: sqlite3.Connection) -> None:
    """Let ``text REGEXP pattern`` be asked on a connection."""
    connection.create_function("regexp", 2, _regexp, deterministic=True)


def _regexp(pattern: str | None, text: str | None) -> bool | None:
    return None if pattern is None or text is None else _found(pattern, text)


@lru_cache(maxsize=64)
def _options(pattern: str) -> Any:
    from pyarrow.compute import MatchSubstringOptions

    return MatchSubstringOptions(pattern)


def _found(pattern: str, text: str) -> bool:
    import pyarrow
    from pyarrow.compute import call_function

    found = call_function("match_substring_regex", [pyarrow.scalar(text)], _options(pattern))
    return bool(found.as_py())
