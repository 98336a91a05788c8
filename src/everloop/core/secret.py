"""Secrets: passwords and tokens that code uses, and that nothing shows or keeps.

A secret is named, and its value stands in the environment variable of that name. What is stored,
sent or made a key of is the name with its version, never the value. Once it was asked for in a
process, its value is masked in all that this process logs and prints, and in the errors of its
runs.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from typing import Any, TextIO

from everloop.errors import InvalidInput, NotFound

__all__ = ["MASK", "Secret", "is_shown", "masked"]

MASK = "***"
#: Shorter values are not masked: they are found in every other word.
_SHORTEST = 4

#: The longest first: one may be a part of another.
_known: tuple[str, ...] = ()
_lock = threading.Lock()


class Secret:
    """The name of a secret; its value is in the environment variable of that name.

    Two are equal if name and version are. As an argument or a constant of a step it counts by both,
    so change the version where another value should have the step run again.

    Args:
        name: Of the environment variable.
        version: Any text.

    Raises:
        InvalidInput: If the name is no name of a variable.
    """

    __slots__ = ("name", "version")

    def __init__(self, name: str, *, version: str = "") -> None:
        if type(name) is not str or not name.isidentifier():
            raise InvalidInput(
                "a secret is the name of an environment variable",
                [("name", "wanted letters, digits and _")],
                hint='such as ev.Secret("WAREHOUSE_PASSWORD"), never the value itself',
            )
        self.name = name
        self.version = str(version)

    def reveal(self) -> str:
        """The value; from here on it is masked in what this process logs and prints.

        Raises:
            NotFound: If the variable is not set, or empty.
        """
        value = os.environ.get(self.name, "")
        if not value:
            raise NotFound(
                f"the secret {self.name} has no value here",
                hint=f"set the environment variable {self.name} where the pipeline runs",
            )
        _mask(value)
        return value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return (self.name, self.version) == (other.name, other.version)

    def __hash__(self) -> int:
        return hash((self.name, self.version))

    def __repr__(self) -> str:
        version = f", version={self.version!r}" if self.version else ""
        return f"Secret({self.name!r}{version})"


def masked(text: str) -> str:
    """`text` with a mask in place of the values that were asked for in this process."""
    for value in _known:
        if value in text:
            text = text.replace(value, MASK)
    return text


def is_shown(text: str) -> bool:
    """Whether one of those values is in `text`."""
    return any(value in text for value in _known)


def _mask(value: str) -> None:
    global _known
    with _lock:
        if len(value) >= _SHORTEST and value not in _known:
            if not _known:
                logging.setLogRecordFactory(_Records(logging.getLogRecordFactory()))
            lines = {line for line in value.splitlines() if len(line) >= _SHORTEST}
            _known = tuple(sorted({*_known, value, *lines}, key=len, reverse=True))
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is not None and not isinstance(stream, _Stream):
                setattr(sys, name, _Stream(stream))


class _Records:
    """Makes log records without secrets in them."""

    def __init__(self, make: Any) -> None:
        self._make = make

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record: logging.LogRecord = self._make(*args, **kwargs)
        try:
            message = record.getMessage()
        except (TypeError, ValueError, KeyError):
            return record  # wrong arguments: logging itself complains
        if is_shown(message):
            record.msg, record.args = masked(message), ()
        if record.exc_info and record.exc_info[0] is not None:
            text = logging.Formatter().formatException(record.exc_info)
            if is_shown(text):
                record.exc_text = masked(text)
        return record


class _Stream:
    """A text stream that masks what is written; a value written in two pieces is not known."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(masked(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __iter__(self) -> Any:
        return iter(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
