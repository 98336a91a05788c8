"""Texts that stand for values: which type all texts of a column are of, and reading them as it.

Types are told from every text, never from a sample, and what is ambiguous stays text: numbers with
leading zeros are codes, and whole numbers that no int64 holds are identifiers.
"""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from everloop.core.schema import FieldType
from everloop.data.arrow import arrow_type

__all__ = ["Guess", "Unreadable", "read_texts"]

_BOOLS = {"true": True, "false": False}
_MORE_BOOLS = _BOOLS | {"t": True, "f": False, "1": True, "0": False}
_CODE = r"^[+-]?0\d"
_WHOLE = r"^-?(0|[1-9]\d*)$"
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$|^[+-]?(inf|Inf|nan|NaN)$"
_DATE = r"^\d{4}-\d\d-\d\d$"
_TIME = r"^\d{4}-\d\d-\d\d[T ]\d\d:\d\d"
_ZONED = r"(Z|[+-]\d\d:?\d\d|[+-]\d\d)$"
_NAIVE = pa.timestamp("us")


class Unreadable(NamedTuple):
    """The first text of a column that is not of the type.

    Attributes:
        row: Its number in what was given.
    """

    row: int
    text: str


class Guess:
    """The type of a column, from all its texts, a part at a time."""

    def __init__(self) -> None:
        self._left: list[FieldType] = ["bool", "int64", "float64", "date", "timestamp"]
        self._zones: set[bool] = set()
        self._any = False

    def look(self, texts: pa.Array) -> None:
        """Take further texts into account."""
        texts = texts.drop_null()
        if not len(texts):
            return
        self._any = True
        self._left = [kind for kind in self._left if self._fits(texts, kind)]

    @property
    def type(self) -> FieldType | None:
        """The type; None if there was no text to tell it from."""
        if not self._any:
            return None
        return self._left[0] if self._left else "string"

    def _fits(self, texts: pa.Array, kind: FieldType) -> bool:
        if kind == "bool":
            return _all(pc.is_in(pc.utf8_lower(texts), pa.array(list(_BOOLS))))
        if kind in ("int64", "float64"):
            shape = _WHOLE if kind == "int64" else _NUMBER
            if not _all(pc.match_substring_regex(texts, shape)):
                return False
            if kind == "float64" and pc.any(pc.match_substring_regex(texts, _CODE)).as_py():
                return False
            if kind == "float64":
                # Beyond int64 a float would not be the number that is written.
                whole = texts.filter(pc.match_substring_regex(texts, _WHOLE))
                if not _reads(whole, "int64"):
                    return False
            return _reads(texts, kind)
        if kind == "date":
            return _all(pc.match_substring_regex(texts, _DATE)) and _reads(texts, kind)
        if not _all(pc.match_substring_regex(texts, _TIME)):
            return False
        zoned = pc.match_substring_regex(texts, _ZONED)
        self._zones |= set(pc.unique(zoned).to_pylist())
        return len(self._zones) == 1 and _reads(texts, kind)


def _all(values: pa.Array) -> bool:
    return bool(pc.all(values).as_py())


def _reads(texts: pa.Array, kind: FieldType) -> bool:
    return not isinstance(read_texts(texts, kind), Unreadable)


def read_texts(texts: pa.Array, kind: FieldType) -> pa.Array | Unreadable:
    """Texts as values of a type; null stays null. Times without a zone are in UTC.

    Returns:
        The values, or the first text that is none.
    """
    if kind == "string":
        return texts
    try:
        return _cast(texts, kind)
    except pa.ArrowException:
        return _first_bad(texts, kind)


def _cast(texts: pa.Array, kind: FieldType) -> pa.Array:
    if kind == "bool":
        lower = pc.utf8_lower(texts)
        names = pa.array(list(_MORE_BOOLS))
        found = pc.index_in(lower, names)
        if found.null_count != texts.null_count:
            raise pa.ArrowInvalid("no boolean")
        return pc.take(pa.array(list(_MORE_BOOLS.values())), found)
    if kind == "binary":
        return texts.cast(pa.binary())
    if kind == "timestamp":
        zoned = pc.match_substring_regex(texts, _ZONED)
        has_zone = pc.and_(zoned, pc.match_substring_regex(texts, _TIME))
        if pc.any(has_zone).as_py():
            return texts.cast(arrow_type(kind))
        return texts.cast(_NAIVE).cast(arrow_type(kind))
    return texts.cast(arrow_type(kind))


def _first_bad(texts: pa.Array, kind: FieldType) -> Unreadable:
    """By halves: as many casts as the number of rows has bits."""
    start, count = 0, len(texts)
    while count > 1:
        half = count // 2
        try:
            _cast(texts.slice(start, half), kind)
        except pa.ArrowException:
            count = half
        else:
            start, count = start + half, count - half
    return Unreadable(start, str(texts[start].as_py()))
