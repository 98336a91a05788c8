"""Values that a step may do with as it likes: what it changes in place, nobody else sees.

A call that is answered from the store changes nothing. So a call that is executed must not either:
the step gets lists, dicts and frames of its own, and arrays that it can only read.
"""

from __future__ import annotations

import copy
import dataclasses
import datetime as dt
import decimal
import enum
import uuid
from pathlib import PurePath
from typing import Any

import msgspec

from everloop.pipelines.loaded import is_a, is_exactly

__all__ = ["is_fixed", "private"]

_FIXED = frozenset(
    {
        *(type(None), bool, int, float, complex, str, bytes, range, decimal.Decimal, uuid.UUID),
        *(dt.date, dt.time, dt.datetime, dt.timedelta),
    }
)


def is_fixed(value: Any) -> bool:
    """Whether nobody can change `value` in place, at a glance."""
    return (
        type(value) in _FIXED
        or isinstance(value, enum.Enum | PurePath)
        or (is_a(value, "numpy", "generic"))
    )


def private(value: Any) -> Any:
    """`value`, or where it could be changed in place a copy of it.

    Arrays come as views that cannot be written. What cannot be stored either, such as an open
    connection, is given as it is.
    """
    return value if type(value) in _FIXED else _Copier().copy(value)


class _Copier:
    def __init__(self) -> None:
        # By identity: what holds itself, or one thing twice, does so in the copy.
        self._made: dict[int, Any] = {}

    def copy(self, value: Any) -> Any:
        kind = type(value)
        if kind in _FIXED:
            return value
        known = self._made.get(id(value))
        if known is not None:
            return known
        if kind is list:
            made: Any = []
            self._made[id(value)] = made
            made.extend(map(self.copy, value))
        elif kind is dict:
            made = self._made[id(value)] = {}
            made.update((key, self.copy(item)) for key, item in value.items())
        elif isinstance(value, tuple):
            made = self._made[id(value)] = self._tuple(value)
        else:
            made = self._made[id(value)] = self._other(value)
        return made

    def _tuple(self, value: tuple[Any, ...]) -> Any:
        items = [self.copy(item) for item in value]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)

    def _other(self, value: Any) -> Any:
        kind = type(value)
        if kind is set:
            return set(value)
        if is_exactly(value, "numpy", "ndarray"):
            return _read_only(value)
        if kind.__name__ in ("DataFrame", "Series"):
            package = kind.__module__.partition(".")[0]
            if package == "polars":
                return value.clone()
            if package == "pandas":
                return value.copy(deep=not _copies_on_write())
        if isinstance(value, msgspec.Struct):
            return self._struct(value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return self._dataclass(value)
        return value

    def _struct(self, value: msgspec.Struct) -> Any:
        changed = {
            name: new
            for name in value.__struct_fields__
            if (new := self.copy(old := getattr(value, name))) is not old
        }
        if changed or not value.__struct_config__.frozen:
            return msgspec.structs.replace(value, **changed)
        return value

    def _dataclass(self, value: Any) -> Any:
        made = copy.copy(value)
        for field in dataclasses.fields(value):
            old = getattr(value, field.name, None)
            new = self.copy(old)
            if new is not old:
                object.__setattr__(made, field.name, new)
        return made


def _read_only(array: Any) -> Any:
    if not array.flags.writeable:
        return array
    view = array.view()
    view.setflags(write=False)
    return view


def _copies_on_write() -> bool:
    import pandas as pd

    return int(pd.__version__.partition(".")[0]) >= 3
