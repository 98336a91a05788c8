"""Constants that code refers to: a canonical text for each, and a snapshot to see it change."""

from __future__ import annotations

import contextlib
import datetime as dt
import decimal
import enum
import fractions
import functools
import logging
import pathlib
import re
import struct
import uuid
import zoneinfo
from collections.abc import Callable, Iterator
from types import (
    BuiltinFunctionType,
    FunctionType,
    MappingProxyType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any

import msgspec
from blake3 import blake3

from everloop.core.project import is_project
from everloop.core.secret import Secret

__all__ = ["SCALARS", "NotCanonical", "canonical", "shown", "snapshot"]

#: Texts up to this length are shown in the key as they are.
_SHOWN = 40


class NotCanonical(Exception):
    """`value` has no canonical form: equal values could give different texts, or the reverse."""

    def __init__(self, value: Any) -> None:
        super().__init__(type(value).__qualname__)
        self.value = value


SCALARS = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), type(NotImplemented))
_BY_REPR = (
    dt.datetime, dt.date, dt.time, dt.timedelta, dt.tzinfo, decimal.Decimal, fractions.Fraction,
    uuid.UUID, pathlib.PurePath, range, slice, zoneinfo.ZoneInfo,
)  # fmt: skip


_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made by a class statement (or a C module's own type)


def canonical(
    value: Any,
    follow: Callable[[Any], str | None],
    *,
    seen: Callable[[Any], None] = lambda value: None,
    open_: dict[int, int] | None = None,
) -> str:
    """A text that is equal only for equal constants.

    Args:
        value: The constant.
        follow: Given code (a function, a class...), returns its token; None for anything else.
        seen: Told every text and path in it.
        open_: What is being taken apart already, with its depth: kept by a caller whose `follow`
            comes back here, so that what holds itself has an end.

    Raises:
        NotCanonical: For what has no such form.
    """
    try:
        return _text(value, follow, seen, {} if open_ is None else open_)
    except RecursionError:
        raise NotCanonical(value) from None


def shown(text: str) -> str:
    """How the canonical text of a constant stands in a key: as it is, or as a digest."""
    if len(text) <= _SHOWN:
        return text
    return blake3(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _text(
    value: Any,
    follow: Callable[[Any], str | None],
    seen: Callable[[Any], None],
    open_: dict[int, int],
) -> str:
    kind = type(value)
    if kind in SCALARS:
        if kind is str:
            seen(value)
        return f"{kind.__name__}:{value!r}"
    if id(value) in open_:
        return f"^{open_[id(value)]}"  # it holds itself: by how far out it was met
    open_[id(value)] = len(open_)
    try:
        token = follow(value)
        if token is not None:
            return token
        if isinstance(value, pathlib.PurePath):
            seen(value)
        return _compound(value, lambda item: _text(item, follow, seen, open_))
    finally:
        del open_[id(value)]


def _compound(value: Any, text: Callable[[Any], str]) -> str:
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, enum.Enum):
        return f"{name}.{value.name}({text(value.value)})"
    if isinstance(value, _BY_REPR):
        if " at 0x" in repr(value):
            raise NotCanonical(value)
        return f"{name}:{value!r}"
    if isinstance(value, Secret):
        return f"{name}:{value!r}"
    if isinstance(value, re.Pattern):
        return f"{name}:{value.flags}:{value.pattern!r}"
    if isinstance(value, logging.Logger):
        return f"{name}:{value.name}"  # which logger, not how it is set up: it changes no result
    frame = _frame(value, name)
    if frame is not None:
        return f"{name}:{frame}"
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
    return _of_installed(value, name, text)


def _of_installed(value: Any, name: str, text: Callable[[Any], str]) -> str:
    array = _array(value)
    if array is not None:
        return f"{name}:{array}"
    if _is_object_array(value):
        return f"{name}:{value.shape}{text(value.tolist())}"
    return f"{name}{text(_reduced(value))}"


def _extra(value: Any, text: Callable[[Any], str]) -> str:
    # A subclass of a container may hold more: a defaultdict its factory, others attributes.
    extra = {**getattr(value, "__dict__", {})}
    if hasattr(value, "default_factory"):
        extra["default_factory"] = value.default_factory
    return text(extra) if extra else ""


# What `functools.update_wrapper` puts on an object: names and documentation, not behaviour.
_NAMES = frozenset(
    {"__doc__", "__module__", "__name__", "__qualname__", "__annotations__", "__type_params__"}
)


def _fields(value: Any) -> list[tuple[str, Any]] | None:
    """All that an instance of a class written in Python holds; None for anything else."""
    if isinstance(value, msgspec.Struct):
        return [(name, getattr(value, name, None)) for name in value.__struct_fields__]
    kind: Any = type(value)
    slots = _slots(kind)
    if slots is None:
        return None
    held = dict(getattr(value, "__dict__", {}))
    for name, slot in slots:
        with contextlib.suppress(AttributeError):  # never set
            held[name] = slot.__get__(value)
    return sorted(item for item in held.items() if item[0] not in _NAMES)


@functools.lru_cache(maxsize=4096)
def _slots(kind: Any) -> tuple[tuple[str, Any], ...] | None:
    """The slots of a class; None if its instances may hold more than we can see."""
    found = []
    for cls in kind.__mro__[:-1]:
        if not cls.__flags__ & _HEAP_TYPE:
            return None
        if "__slots__" in cls.__dict__:
            members = cls.__dict__.items()
            found += [(name, m) for name, m in members if isinstance(m, MemberDescriptorType)]
    # A type of a C module keeps what it holds in its own structure, which makes it larger.
    pointers = len(found) + (kind.__dictoffset__ > 0) + (kind.__weakrefoffset__ > 0)
    size = object.__basicsize__ + pointers * struct.calcsize("P")
    return tuple(found) if kind.__basicsize__ == size and not kind.__itemsize__ else None


def _reduced(value: Any) -> Any:
    """What a copy of `value` would be made from, as :mod:`copy` and :mod:`pickle` ask for it.

    Raises:
        NotCanonical: If it cannot be copied, or a class of the project says how, as it may leave
            out what a copy does not need.
    """
    if type(value).__module__.partition(".")[0] == "pyarrow":
        return _arrow(value)
    for cls in type(value).__mro__[:-1]:
        ours = {"__reduce__", "__reduce_ex__", "__getstate__", "__getnewargs_ex__"} & set(vars(cls))
        if ours and is_project(cls.__module__):
            raise NotCanonical(value)
    try:
        reduced = value.__reduce_ex__(4)
    except Exception as error:  # an object may refuse to be copied in any way
        raise NotCanonical(value) from error
    if isinstance(reduced, str):
        if is_project(type(value).__module__):
            raise NotCanonical(value)
        return (reduced, getattr(value, "__module__", ""))
    if any(isinstance(part, Iterator) for part in reduced[:3]):
        raise NotCanonical(value)
    return tuple(list(part) if isinstance(part, Iterator) else part for part in reduced)


def _frame(value: Any, name: str) -> str | None:
    """Digest of a frame or column of pandas or Polars; None for anything else, or what has none."""
    if not name.startswith(("pandas.", "polars.")):
        return None
    import pyarrow as pa

    try:
        if hasattr(value, "to_arrow"):
            return str(_arrow(value.to_arrow()))
        framed = value if hasattr(value, "columns") else value.to_frame()
        return str(_arrow(pa.Table.from_pandas(framed)))
    except (AttributeError, TypeError, ValueError, pa.ArrowException):
        return None


def _arrow(value: Any) -> Any:
    """The bytes of a table, array or schema of Arrow."""
    import pyarrow as pa

    if isinstance(value, pa.Array | pa.ChunkedArray):
        value = pa.table({"": value})
    elif isinstance(value, pa.RecordBatch):
        value = pa.Table.from_batches([value])
    if isinstance(value, pa.Schema):
        return value.serialize().to_pybytes()
    if not isinstance(value, pa.Table):
        return (type(value).__name__, str(value))
    sink = pa.BufferOutputStream()
    whole = value.unify_dictionaries().combine_chunks()
    with pa.ipc.new_stream(sink, whole.schema) as writer:
        writer.write_table(whole)
    return blake3(memoryview(sink.getvalue())).hexdigest()


def _array(value: Any) -> str | None:
    """Digest of a NumPy array or scalar or an Arrow table; None for anything else."""
    module = type(value).__module__
    if module == "numpy" and hasattr(value, "dtype") and hasattr(value, "tobytes"):
        if value.dtype.hasobject:
            return None
        head = f"{value.dtype.str}{getattr(value, 'shape', ())}"
        return f"{head}{blake3(value.tobytes()).hexdigest()}"
    if module.startswith("numpy") and type(value).__name__.endswith("DType"):
        return repr(value)
    return None


def _is_object_array(value: Any) -> bool:
    is_array = type(value).__module__ == "numpy" and type(value).__name__ == "ndarray"
    return is_array and bool(value.dtype.hasobject)


def snapshot(value: Any) -> Any:
    """What `value` is now, such that a later snapshot is equal only if nothing in it changed.

    Immutable values and code are their own snapshot; containers are taken apart, arrays digested.
    """
    return _snapshot(value, frozenset())


_CODE = (type, FunctionType, MethodType, ModuleType, BuiltinFunctionType, property)


def _snapshot(value: Any, open_: frozenset[int]) -> Any:
    if isinstance(value, SCALARS):
        # Told apart by type and sign: 1 from True, 0.0 from -0.0.
        return (type(value), repr(value)) if type(value) in (bool, int, float) else value
    if isinstance(value, (*_CODE, *_BY_REPR)):
        return value
    if id(value) in open_:
        return ("again", id(value))
    return _taken_apart(value, open_ | {id(value)})


def _taken_apart(value: Any, open_: frozenset[int]) -> Any:
    if isinstance(value, list | tuple):
        items = tuple(_snapshot(item, open_) for item in value)
        if type(value) is tuple and all(map(_is, items, value)):
            return value
        return (type(value), items, _held(value, open_))
    if isinstance(value, dict | MappingProxyType):
        pairs = tuple((_snapshot(k, open_), _snapshot(v, open_)) for k, v in value.items())
        return (type(value), pairs, _held(value, open_))
    if isinstance(value, set | frozenset):
        return (type(value), frozenset(value), frozenset(map(type, value)))
    if isinstance(value, functools.partial):
        inner = (value.func, value.args, value.keywords)
        return (functools.partial, _snapshot(inner, open_))
    return _object_snapshot(value, open_)


def _object_snapshot(value: Any, open_: frozenset[int]) -> Any:
    array = _array(value) or _frame(value, f"{type(value).__module__}.{type(value).__qualname__}")
    if array is not None:
        return ("array", array)
    held = getattr(value, "__dict__", None)
    if type(held) is dict and "__wrapped__" in held and not is_project(type(value).__module__):
        return value  # a step, a cached function: what they wrap has checks of its own
    fields = _fields(value)
    if fields is not None:
        return (type(value), tuple((name, _snapshot(item, open_)) for name, item in fields))
    try:
        if _is_object_array(value):
            return _snapshot(value.tolist(), open_)
        return (type(value), _snapshot(_reduced(value), open_))
    except NotCanonical:
        return value


def _held(value: Any, open_: frozenset[int]) -> Any:
    held = getattr(value, "__dict__", None)
    return _snapshot(held, open_) if held else None


def _is(left: object, right: object) -> bool:
    return left is right
