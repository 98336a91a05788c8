"""Constants that code refers to: a canonical text for each, and a snapshot to see it change."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import logging
import pathlib
import re
import uuid
import zoneinfo
from collections.abc import Callable
from typing import Any

import msgspec
from blake3 import blake3

__all__ = ["NotCanonical", "canonical", "snapshot"]


class NotCanonical(Exception):
    """`value` has no canonical form: equal values could give different texts, or the reverse."""

    def __init__(self, value: Any) -> None:
        super().__init__(type(value).__qualname__)
        self.value = value


_SCALARS = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), type(NotImplemented))
_BY_REPR = (
    dt.datetime, dt.date, dt.time, dt.timedelta, dt.tzinfo, decimal.Decimal, fractions.Fraction,
    uuid.UUID, pathlib.PurePath, range, slice, zoneinfo.ZoneInfo,
)  # fmt: skip


_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made by a class statement (or a C module's own type)


def canonical(value: Any, follow: Callable[[Any], str | None]) -> str:
    """A text that is equal only for equal constants.

    Args:
        value: The constant.
        follow: Given code (a function, a class...), returns its token; None for anything else.

    Raises:
        NotCanonical: For what has no such form.
    """
    return _text(value, follow, set())


def _text(value: Any, follow: Callable[[Any], str | None], open_: set[int]) -> str:
    kind = type(value)
    if kind in _SCALARS:
        return f"{kind.__name__}:{value!r}"
    token = follow(value)
    if token is not None:
        return token
    if id(value) in open_:
        raise NotCanonical(value)  # it holds itself
    open_.add(id(value))
    try:
        return _compound(value, lambda item: _text(item, follow, open_))
    finally:
        open_.discard(id(value))


def _compound(value: Any, text: Callable[[Any], str]) -> str:
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, enum.Enum):
        return f"{name}.{value.name}({text(value.value)})"
    if isinstance(value, _BY_REPR):
        if " at 0x" in repr(value):
            raise NotCanonical(value)
        return f"{name}:{value!r}"
    if isinstance(value, re.Pattern):
        return f"{name}:{value.flags}:{value.pattern!r}"
    if isinstance(value, logging.Logger):
        return f"{name}:{value.name}"  # which logger, not how it is set up: it changes no result
    fields = _fields(value)
    if fields is not None:
        return f"{name}{{{','.join(f'{k}={text(v)}' for k, v in fields)}}}"
    if isinstance(value, list | tuple):
        return f"{name}[{','.join(text(item) for item in value)}]{_extra(value, text)}"
    if isinstance(value, set | frozenset):
        return f"{name}[{','.join(sorted(text(item) for item in value))}]{_extra(value, text)}"
    if isinstance(value, dict) or name == "builtins.mappingproxy":
        items = ",".join(f"{text(key)}={text(item)}" for key, item in value.items())
        return f"{name}{{{items}}}{_extra(value, text)}"
    array = _array(value)
    if array is not None:
        return f"{name}:{array}"
    raise NotCanonical(value)


def _extra(value: Any, text: Callable[[Any], str]) -> str:
    # A subclass of a container may hold more: a defaultdict its factory, others attributes.
    extra = {**getattr(value, "__dict__", {})}
    if hasattr(value, "default_factory"):
        extra["default_factory"] = value.default_factory
    return text(extra) if extra else ""


def _fields(value: Any) -> list[tuple[str, Any]] | None:
    if isinstance(value, msgspec.Struct):
        return [(name, getattr(value, name)) for name in value.__struct_fields__]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    if all(_is_plain(cls) for cls in type(value).__mro__[:-1]):
        own = getattr(value, "__dict__", None)
        return None if own is None else sorted(own.items())
    return None


def _is_plain(cls: type) -> bool:
    # Written in Python, and all of an instance is in its __dict__.
    return bool(cls.__flags__ & _HEAP_TYPE) and not cls.__dict__.get("__slots__", ())


def _array(value: Any) -> str | None:
    """Digest of a NumPy array or scalar or an Arrow table; None for anything else."""
    module = type(value).__module__.partition(".")[0]
    if module == "numpy" and hasattr(value, "dtype") and hasattr(value, "tobytes"):
        if value.dtype.hasobject:
            return None
        head = f"{value.dtype.str}{getattr(value, 'shape', ())}"
        return f"{head}{blake3(value.tobytes()).hexdigest()}"
    if module == "numpy" and type(value).__name__.endswith("DType"):
        return repr(value)
    return None


def snapshot(value: Any) -> Any:
    """What `value` is now, such that a later snapshot is equal only if nothing in it changed.

    Immutable values and code are their own snapshot; containers are taken apart, arrays digested.
    """
    if isinstance(value, list | tuple):
        items = tuple(snapshot(item) for item in value)
        if isinstance(value, tuple) and all(map(_is, items, value)):
            return value
        return (type(value), items)
    if isinstance(value, dict):
        return (type(value), tuple((snapshot(k), snapshot(v)) for k, v in value.items()))
    if isinstance(value, set | frozenset):
        return (type(value), frozenset(value), frozenset(map(type, value)))
    array = _array(value)
    if array is not None:
        return ("array", array)
    if isinstance(value, type) or callable(value) or isinstance(value, _BY_REPR):
        return value
    fields = _fields(value)
    if fields is not None:
        return (type(value), tuple((name, snapshot(item)) for name, item in fields))
    if type(value) in (bool, int, float):
        return (type(value), repr(value))
    return value


def _is(left: object, right: object) -> bool:
    return left is right
