"""Masks: what stands in a column for whoever may not see its values, written as a short text.

============================  ====================================================================
``redact``                    text becomes ``(masked)``, everything else null
``null``                      null
``hash``                      the keyed hash of the value: 32 hex digits for text, 16 bytes for
                              bytes, a positive number for whole numbers; equal values stay equal
``bucket:10``                 the lower bound of the bucket of this width that a number is in
``bucket:month`` (``year``)   the first instant of the month or year of a date or time
``shift:patient``             dates and times of one ``patient`` are all moved by the same whole
                              days, at most 180; ``shift:patient:30`` by at most 30
============================  ====================================================================

A mask never changes the type of a column. They are applied by ``everloop.data.masking``.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from everloop.core.kinds import FieldType
from everloop.errors import InvalidInput

__all__ = ["MaskKind", "MaskRule", "default_mask", "mask_fault", "mask_of"]

MaskKind = Literal["redact", "null", "hash", "bucket", "shift"]
_KINDS = ("redact", "null", "hash", "bucket", "shift")
_TIMES = ("date", "timestamp")
#: Days that a shift moves by at most, unless told otherwise, and the most that can be told.
DAYS, _MOST_DAYS = 180, 36_525


class MaskRule(NamedTuple):
    """A mask taken apart.

    Attributes:
        width: Of a bucket of numbers, in their unit; else 0.
        unit: Of a bucket of times: ``month`` or ``year``; else empty.
        by: Of a shift, the column whose values have one shift each.
        days: Of a shift, the most days, in either direction.
    """

    kind: MaskKind
    width: float = 0.0
    unit: str = ""
    by: str = ""
    days: int = DAYS


def mask_of(text: str) -> MaskRule:
    """The mask that a text means.

    Raises:
        InvalidInput: If it means none.
    """
    kind, _, rest = text.partition(":")
    if kind not in _KINDS:
        raise _wrong(text, f"there are {', '.join(_KINDS)}")
    if kind == "bucket":
        return _bucket(text, rest)
    if kind == "shift":
        by, _, days = rest.rpartition(":")
        by, days = (by, days) if by and days.isdecimal() else (rest, str(DAYS))
        if not by or not 1 <= int(days) <= _MOST_DAYS:
            raise _wrong(text, f"write shift:COLUMN or shift:COLUMN:DAYS, 1 to {_MOST_DAYS} days")
        return MaskRule("shift", by=by, days=int(days))
    if rest:
        raise _wrong(text, f"{kind} takes nothing behind it")
    return MaskRule(kind)  # type: ignore[arg-type]  # one of _KINDS


def _bucket(text: str, rest: str) -> MaskRule:
    if rest in ("month", "year"):
        return MaskRule("bucket", unit=rest)
    try:
        width = float(rest)
    except ValueError:
        width = 0.0
    if not math.isfinite(width) or width <= 0:
        raise _wrong(text, "write bucket:WIDTH (a number above 0), bucket:month or bucket:year")
    return MaskRule("bucket", width=width)


def _wrong(text: str, why: str) -> InvalidInput:
    return InvalidInput(f"{text!r} is no mask", hint=why)


def mask_fault(text: str, kind: FieldType) -> str:
    """Why a column of this type cannot be masked so; empty if it can."""
    try:
        rule = mask_of(text)
    except InvalidInput as error:
        return f"{error.summary}: {error.hint}"
    is_number = kind.startswith(("int", "uint", "float"))
    if rule.kind == "hash" and kind not in _HASHED:
        return f"a keyed hash is of text, bytes or whole numbers of 64 bits, not of {kind}"
    if rule.kind == "shift" and kind not in _TIMES:
        return f"a shift is of dates and times, not of {kind}"
    if rule.kind == "bucket" and rule.unit and kind not in _TIMES:
        return f"a bucket of a {rule.unit} is of dates and times, not of {kind}"
    if rule.kind == "bucket" and not rule.unit and not is_number:
        return f"a bucket of a width is of numbers, not of {kind}"
    if rule.width and kind.startswith(_WHOLE) and not rule.width.is_integer():
        return f"buckets of {kind} have a whole width, not {rule.width:g}"
    return ""


_WHOLE = ("int", "uint")
#: What holds a hash without many values having the same.
_HASHED = ("string", "binary", "int64", "uint64")


def default_mask(kind: FieldType) -> str:
    """The mask of personal data for which nobody declared one."""
    return "redact" if kind == "string" else "null"
