"""Reads Universal Binary JSON, of which XGBoost's own format is a corner.

XGBoost's reader trusts what it reads: a file that is cut short makes it allocate until the process
is killed. This one checks each length against the bytes that are there.

Source: the specification of UBJSON, draft 12, without the types that XGBoost does not write.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from everloop.errors import InvalidInput

__all__ = ["read_ubjson"]

_DEEPEST = 32
_NUMBERS = {"i": ">i1", "U": ">u1", "I": ">i2", "l": ">i4", "L": ">i8", "d": ">f4", "D": ">f8"}
_WORDS = {"T": True, "F": False, "Z": None}


def read_ubjson(data: bytes) -> Any:
    """The one value in `data`: objects as dicts, typed arrays as NumPy ones.

    Raises:
        InvalidInput: If it is cut short, holds what is not known, a name twice or more after it.
    """
    reader = _Reader(data)
    try:
        value = reader.value(reader.marker(), 0)
    except (struct.error, UnicodeDecodeError, ValueError, IndexError) as error:
        raise InvalidInput(f"no UBJSON: {error}, at byte {reader.at}") from None
    if reader.at != len(data):
        raise InvalidInput(f"no UBJSON: {len(data) - reader.at} bytes follow after its end")
    return value


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def take(self, size: int) -> bytes:
        if size < 0 or size > len(self._data) - self.at:
            raise ValueError(f"{size} bytes are announced and {len(self._data) - self.at} left")
        self.at += size
        return self._data[self.at - size : self.at]

    def marker(self) -> str:
        return chr(self.take(1)[0])

    def length(self) -> int:
        kind = self.marker()
        if kind not in "iUIlL":
            raise ValueError(f"{kind!r} is no kind of length")
        return int(self.value(kind, 0))

    def text(self) -> str:
        return self.take(self.length()).decode()

    def value(self, kind: str, depth: int) -> Any:
        if kind in _NUMBERS:
            dtype = np.dtype(_NUMBERS[kind])
            return np.frombuffer(self.take(dtype.itemsize), dtype)[0].item()
        if kind in _WORDS:
            return _WORDS[kind]
        if kind == "S":
            return self.text()
        if kind in "[{" and depth < _DEEPEST:
            return self.array(depth) if kind == "[" else self.object(depth)
        raise ValueError(f"{kind!r} is no kind of value here")

    def array(self, depth: int) -> Any:
        kind = self.marker()
        if kind == "$":
            dtype = np.dtype(_NUMBERS.get(self.marker(), "V1"))
            if dtype.kind == "V" or self.marker() != "#":
                raise ValueError("an array of a type that is not known")
            return np.frombuffer(self.take(self.length() * dtype.itemsize), dtype)
        if kind == "#":
            count = self.length()
            self.take(count)  # each is a byte at least
            self.at -= count
            return [self.value(self.marker(), depth + 1) for _ in range(count)]
        found = []
        while kind != "]":
            found.append(self.value(kind, depth + 1))
            kind = self.marker()
        return found

    def object(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while self._data[self.at : self.at + 1] != b"}":
            name = self.text()
            if name in found:
                raise ValueError(f"the name {name[:40]!r} twice")
            found[name] = self.value(self.marker(), depth + 1)
        self.take(1)
        return found
