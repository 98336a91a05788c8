"""How results are written: a table on a terminal, tab-separated in a pipe, JSON when asked.

Results go to stdout, talk to stderr.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import msgspec

__all__ = ["json_document", "key_values", "say", "table", "text"]


def json_document(value: Any) -> None:
    """Write `value` (structs, builtins) as one JSON document."""
    encoded = msgspec.json.encode(value)
    if sys.stdout.isatty():
        encoded = msgspec.json.format(encoded, indent=2)
    sys.stdout.write(encoded.decode() + "\n")


def text(value: Any) -> str:
    """One cell, for people."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M")
    return str(value)


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table: aligned on a terminal, tab-separated in a pipe."""
    cells = [[text(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for line in [list(headers), *cells]:
            sys.stdout.write("\t".join(line) + "\n")
        return
    widths = [
        max(len(line[index]) for line in [list(headers), *cells]) for index in range(len(headers))
    ]
    limit = shutil.get_terminal_size().columns
    bold, plain = ("\033[1m", "\033[0m") if _colour() else ("", "")
    head = "  ".join(name.ljust(width) for name, width in zip(headers, widths, strict=True))
    sys.stdout.write(f"{bold}{head[:limit]}{plain}\n")
    for line in cells:
        row = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        sys.stdout.write(row.rstrip()[:limit] + "\n")


def key_values(pairs: Iterable[tuple[str, Any]]) -> None:
    """Write names with their values, a line each."""
    shown = [(name, text(value)) for name, value in pairs]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        sys.stdout.write(f"{name.ljust(width)}  {value}\n")


def say(message: str) -> None:
    """Talk to the person at the terminal; never part of a result."""
    sys.stderr.write(message + "\n")
    sys.stderr.flush()


def _colour() -> bool:
    return "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
