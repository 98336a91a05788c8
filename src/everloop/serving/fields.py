"""Rules of one schema field, compiled: ``item`` for one value, ``vector`` for a whole column.

``vector`` only ever says yes: it answers the canonical column when every value is right, and None
when it found, or could not rule out, a fault. Then ``item`` is asked value by value, so a fault
has its row and both agree by construction on what is wrong.

Widening is allowed (whole number to number), narrowing never: no number from text, no whole number
from a fraction, none from true or false.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from everloop.core.schema import Field
from everloop.core.time import to_micros, utc

__all__ = ["Column", "FieldRules", "Wrong"]

Column = list[Any] | npt.NDArray[Any]

#: Instants that a ``datetime`` can hold; anything beyond could be stored but never shown.
_FIRST_US = to_micros(datetime(1, 1, 1, tzinfo=UTC))
_LAST_US = to_micros(datetime(9999, 12, 31, 23, 59, 59, 999_999, UTC))


class Wrong(Exception):
    """A value breaks a rule; the text says which, and never repeats the value."""


class FieldRules:
    """The rules of one field.

    Args:
        field: What the schema says.
    """

    def __init__(self, field: Field) -> None:
        self.field = field
        self.name = field.name
        self.nullable = field.nullable
        self._value = _value_rule(field)
        self._vector = _vector_rule(field)
        self._usual = _USUAL.get(field.type, str)
        self._null: Any = np.nan if field.type in ("float32", "float64") else None

    def item(self, value: Any) -> Any:
        """The canonical form of one value; a null is NaN for ``float*`` and None otherwise.

        Raises:
            Wrong: If it breaks a rule.
        """
        if type(value) is self._usual and value == value:
            return self._value(value)
        if isinstance(value, np.generic):
            value = value.item() if value.dtype.kind != "M" else _instant_of(value)
        if value is None or value != value:
            if self.nullable:
                return self._null
            raise Wrong("must not be null" if value is None else "must not be NaN")
        return self._value(value)

    def vector(self, values: Sequence[Any] | npt.NDArray[Any]) -> Column | None:
        """The canonical column if every value is right for certain, else None."""
        return self._vector(values)

    def column(self, items: list[Any]) -> Column:
        """Make a column of what :meth:`item` gave: an array unless it is text or has nulls."""
        kind = _DTYPES.get(self.field.type)
        if kind is None or None in items:
            return items
        return np.array(items, dtype=kind)


_DTYPES: dict[str, Any] = {
    "bool": np.bool_,
    "float32": np.float64,  # rounded to single precision already, computed with in double
    "float64": np.float64,
    "timestamp": np.int64,
} | {name: np.dtype(name) for name in (f"{s}int{b}" for s in ("", "u") for b in (8, 16, 32, 64))}


#: The type that a value of a field usually has; all others are looked at more closely.
_WHOLE = ("timestamp", *(f"{s}int{b}" for s in ("", "u") for b in (8, 16, 32, 64)))
_USUAL: dict[str, type] = {"bool": bool, "float32": float, "float64": float}
_USUAL |= dict.fromkeys(_WHOLE, int)


def _kind_of(value: Any) -> str:
    kinds = {
        bool: "true or false", int: "a whole number", float: "a number with a fraction",
        str: "text", bytes: "bytes", list: "a list", tuple: "a list", dict: "an object",
        datetime: "a time", date: "a date",
    }  # fmt: skip
    return kinds.get(type(value), "something else")


def _expected(what: str, value: Any) -> Wrong:
    return Wrong(f"expected {what}, got {_kind_of(value)}")


def _instant_of(value: Any) -> int | None:
    return None if np.isnat(value) else int(value.astype("datetime64[us]").astype(np.int64))


# One value ----------------------------------------------------------------------------------------


def _value_rule(field: Field) -> Callable[[Any], Any]:
    kind = field.type
    if kind == "bool":
        rule: Callable[[Any], Any] = _bool_value
    elif kind in ("float32", "float64"):
        rule = _float_value(field)
    elif field.is_numeric:
        rule = _int_value(field)
    elif kind == "string":
        rule = _text_value(field)
    else:
        rule = {"timestamp": _timestamp_value, "date": _date_value, "binary": _binary_value}[kind]
    return _among(field, rule) if field.among else rule


def _among(field: Field, rule: Callable[[Any], Any]) -> Callable[[Any], Any]:
    allowed = frozenset(field.among)
    shown = ", ".join(repr(item) for item in field.among[:8])
    more = f" and {len(field.among) - 8} more" if len(field.among) > 8 else ""

    def check(value: Any) -> Any:
        canonical = rule(value)
        if canonical not in allowed:
            raise Wrong(f"is not among {shown}{more}")
        return canonical

    return check


def _bool_value(value: Any) -> bool:
    if type(value) is not bool:
        raise _expected("true or false", value)
    return value


def _int_bounds(field: Field) -> tuple[int, int]:
    info = np.iinfo(np.dtype(field.type))
    return int(info.min), int(info.max)


def _int_value(field: Field) -> Callable[[Any], int]:
    least, most = _int_bounds(field)
    bounded = _bounds(field)

    def check(value: Any) -> int:
        if type(value) is not int:
            raise _expected("a whole number", value)
        if not least <= value <= most:
            raise Wrong(f"is outside {field.type}")
        bounded(value)
        return value

    return check


def _bounds(field: Field) -> Callable[[float], None]:
    ge, le = field.ge, field.le

    def check(value: float) -> None:
        if ge is not None and value < ge:
            raise Wrong(f"must be at least {ge:g}")
        if le is not None and value > le:
            raise Wrong(f"must be at most {le:g}")

    return check


def _float_value(field: Field) -> Callable[[Any], float]:
    single = field.type == "float32"
    bounded = _bounds(field)

    def check(value: Any) -> float:
        if type(value) is not float:
            if type(value) is not int:
                raise _expected("a number", value)
            try:
                value = float(value)
            except OverflowError:
                raise Wrong(f"is outside {field.type}") from None
        if single:
            try:
                value = struct.unpack("<f", struct.pack("<f", value))[0]
            except OverflowError:
                raise Wrong("is outside float32") from None
        bounded(value)
        return float(value)

    return check


def _text_value(field: Field) -> Callable[[Any], str]:
    longest = field.max_length
    pattern = re.compile(field.regex) if field.regex else None

    def check(value: Any) -> str:
        if type(value) is not str:
            raise _expected("text", value)
        if "\0" in value:
            raise Wrong("holds a NUL character")
        if longest and len(value) > longest:
            raise Wrong(f"is longer than {longest} characters")
        if pattern is not None and pattern.fullmatch(value) is None:
            raise Wrong("does not have the required form")
        return value

    return check


def _timestamp_value(value: Any) -> int:
    if type(value) is str:
        try:
            value = to_micros(datetime.fromisoformat(value))
        except (ValueError, OverflowError):
            raise Wrong("is no ISO 8601 time such as 2013-04-01T06:30:00Z") from None
    elif isinstance(value, datetime):
        value = to_micros(utc(value))
    elif type(value) is not int:
        raise _expected("a time (ISO 8601 text or whole microseconds since 1970)", value)
    if not _FIRST_US <= value <= _LAST_US:
        raise Wrong("is outside the years 1 to 9999; whole numbers are microseconds since 1970")
    return int(value)


def _date_value(value: Any) -> date:
    if type(value) is date:
        return value
    if type(value) is not str:
        raise _expected("a date such as 2013-04-01", value)
    try:
        return date.fromisoformat(value)
    except ValueError:
        raise Wrong("is no date such as 2013-04-01") from None


def _binary_value(value: Any) -> bytes:
    if type(value) is bytes:
        return value
    if type(value) is not str:
        raise _expected("bytes or base64 text", value)
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise Wrong("is no base64 text") from None


# A whole column -----------------------------------------------------------------------------------

_Vector = Callable[[Sequence[Any] | npt.NDArray[Any]], Column | None]


def _vector_rule(field: Field) -> _Vector:
    if field.type == "bool":
        return _bool_vector if not field.among else _never
    if field.type in ("float32", "float64"):
        return _float_vector(field)
    if field.is_numeric:
        return _int_vector(field, _int_bounds(field))
    if field.type == "timestamp":
        return _int_vector(field, (_FIRST_US, _LAST_US))
    if field.type == "string":
        return _text_vector(field)
    return _never


def _never(values: Sequence[Any] | npt.NDArray[Any]) -> Column | None:
    return None


def _types(values: Sequence[Any]) -> set[type]:
    return set(map(type, values))


def _bool_vector(values: Sequence[Any] | npt.NDArray[Any]) -> Column | None:
    if isinstance(values, np.ndarray):
        return values if values.dtype.kind == "b" else None
    return np.array(values, dtype=bool) if _types(values) <= {bool} else None


def _inside(field: Field, values: npt.NDArray[Any]) -> bool:
    """Whether all values keep the bounds and the set; NaN keeps both."""
    if field.ge is not None and (values < field.ge).any():
        return False
    if field.le is not None and (values > field.le).any():
        return False
    if not field.among:
        return True
    found = np.isin(values, np.array(field.among))
    if values.dtype.kind == "f":
        found |= np.isnan(values)
    return bool(found.all())


def _float_vector(field: Field) -> _Vector:
    def check(values: Sequence[Any] | npt.NDArray[Any]) -> Column | None:
        if isinstance(values, np.ndarray):
            if values.dtype.kind not in "fiu":
                return None
        elif not _types(values) <= {float, int}:
            return None
        try:
            numbers = np.array(values, dtype=np.float64)
        except OverflowError:
            return None
        if field.type == "float32":
            with np.errstate(over="ignore"):
                single = numbers.astype(np.float32).astype(np.float64)
            if (np.isinf(single) & ~np.isinf(numbers)).any():
                return None
            numbers = single
        if not field.nullable and np.isnan(numbers).any():
            return None
        return numbers if _inside(field, numbers) else None

    return check


def _int_vector(field: Field, limits: tuple[int, int]) -> _Vector:
    least, most = limits
    dtype = _DTYPES[field.type]

    def check(values: Sequence[Any] | npt.NDArray[Any]) -> Column | None:
        if isinstance(values, np.ndarray):
            if values.dtype.kind not in "iu":
                return None
            numbers = values
        else:
            if not _types(values) <= {int}:
                return None
            try:
                numbers = np.array(values, dtype=np.uint64 if most > 2**63 else np.int64)
            except OverflowError:
                return None
        if not len(numbers):
            return numbers.astype(dtype)
        if int(numbers.min()) < least or int(numbers.max()) > most:
            return None
        return numbers.astype(dtype) if _inside(field, numbers) else None

    return check


def _text_vector(field: Field) -> _Vector:
    rule = _value_rule(field)

    def check(values: Sequence[Any] | npt.NDArray[Any]) -> Column | None:
        texts = values.tolist() if isinstance(values, np.ndarray) else list(values)
        if not _types(texts) <= {str}:
            return None
        try:
            for text in set(texts):  # texts repeat: a carrier, an origin
                rule(text)
        except Wrong:
            return None
        return texts

    return check
