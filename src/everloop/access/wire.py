"""Calls and answers as bytes: JSON for what is small, attachments for tables and bytes.

A message is a JSON head, then its attachments; the head's length travels in a header
(``HEAD_LENGTH``). In the head an attachment stands as ``{"$bytes": n}`` or ``{"$table": n}`` (an
Arrow IPC stream), a number that JSON lacks as ``{"$float": "nan"}``, and a user's own object whose
only key starts with ``$`` as ``{"$object": {...}}``. Values are decoded by the annotations of the
method, so both sides see the same types; nothing is ever unpickled.
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
import typing
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from everloop.errors import InvalidInput

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "HEAD_LENGTH",
    "decode_call",
    "decode_result",
    "encode_call",
    "encode_result",
    "hints_of",
]

HEAD_LENGTH = "Everloop-Head-Length"

#: Deepest nesting of objects and lists in a message.
MAX_DEPTH = 64

_BYTES = (bytes, bytearray, memoryview)
_Bytes = bytes | bytearray | memoryview
_INT64 = range(-(1 << 63), 1 << 63)


class _Head(msgspec.Struct):
    value: Any = {}
    sizes: list[Annotated[int, msgspec.Meta(ge=0)]] = []


def encode_call(arguments: dict[str, Any]) -> tuple[bytes, int]:
    """The body of a call and the length of its head."""
    return _encode(arguments)


def encode_result(value: Any) -> tuple[bytes, int]:
    """The body of an answer and the length of its head."""
    return _encode(value)


def decode_call(method: Callable[..., Any], body: bytes, head_length: int) -> dict[str, Any]:
    """The arguments of a call, by the annotations of `method`.

    Raises:
        InvalidInput: With every argument that is missing, unknown or of the wrong type.
    """
    given = _decode(body, head_length)
    if not isinstance(given, dict):
        raise InvalidInput("the arguments must be an object", [("", "expected {name: value}")])
    hints, parameters = _signature(method)
    faults: list[tuple[str, str]] = []
    arguments = {}
    for name in given.keys() - parameters.keys():
        faults.append((name, f"unknown argument; there are: {', '.join(parameters)}"))
    for name, parameter in parameters.items():
        if name not in given:
            if parameter.default is inspect.Parameter.empty:
                faults.append((name, "missing"))
            continue
        try:
            arguments[name] = _convert(given[name], hints[name])
        except msgspec.ValidationError as error:
            faults.append((name, str(error)))
    if faults:
        raise InvalidInput("the call is wrong", faults)
    return arguments


def decode_result(method: Callable[..., Any], body: bytes, head_length: int) -> Any:
    """The value that `method` returned on the other side."""
    hints, _ = _signature(method)
    return _convert(_decode(body, head_length), hints.get("return", Any))


def hints_of(method: Callable[..., Any]) -> dict[str, Any]:
    """The types of a service method's parameters, and of what it returns as ``return``."""
    plain = inspect.unwrap(method)
    known: dict[str, Any] = {}
    # Services name Arrow in annotations alone, so that whoever hands over no table loads none.
    if any("pa." in str(hint) for hint in plain.__annotations__.values()):
        import pyarrow as pa

        known["pa"] = pa
    return typing.get_type_hints(plain, localns=known)


@functools.cache
def _signature(method: Callable[..., Any]) -> tuple[dict[str, Any], dict[str, inspect.Parameter]]:
    parameters = dict(inspect.signature(method).parameters)
    parameters.pop("self", None)
    return hints_of(method), parameters


def _encode(value: Any) -> tuple[bytes, int]:
    streams: dict[int, memoryview] = {}

    def foreign(value: Any) -> memoryview:
        if not _is_table(value):
            raise InvalidInput(f"a value of type {type(value).__name__} cannot be sent to a server")
        view = memoryview(_stream_of(value))
        streams[id(view)] = view
        return view

    parts: list[_Bytes] = []
    builtins = msgspec.to_builtins(_listed(value), builtin_types=_BYTES, enc_hook=foreign)
    plain = _detach(builtins, parts, streams)
    try:
        head = msgspec.json.encode({"value": plain, "sizes": [len(part) for part in parts]})
    except UnicodeEncodeError:
        raise InvalidInput("a text holds half of a surrogate pair, which is no Unicode") from None
    return b"".join([head, *parts]), len(head)


def _listed(value: Any) -> Any:
    # msgspec leaves `builtin_types` as they are in lists and dicts, but not in tuples.
    if isinstance(value, tuple | list):
        return [_listed(item) for item in value]
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    return value


def _is_table(value: Any) -> bool:
    # Half of a server's start is loading Arrow; where it is not loaded there is no table.
    arrow = sys.modules.get("pyarrow")
    return arrow is not None and isinstance(value, arrow.Table)


def _stream_of(table: pa.Table) -> pa.Buffer:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _detach(value: Any, parts: list[_Bytes], streams: dict[int, memoryview]) -> Any:
    if isinstance(value, dict):
        plain = {key: _detach(item, parts, streams) for key, item in value.items()}
        return {"$object": plain} if _looks_like_a_mark(value) else plain
    if isinstance(value, list | tuple):
        return [_detach(item, parts, streams) for item in value]
    if isinstance(value, _BYTES):
        parts.append(value)
        return {"$table" if id(value) in streams else "$bytes": len(parts) - 1}
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": str(value)}
    return value


def _looks_like_a_mark(value: dict[Any, Any]) -> bool:
    return len(value) == 1 and str(next(iter(value))).startswith("$")


def _decode(body: bytes, head_length: int) -> Any:
    if not 0 <= head_length <= len(body):
        raise InvalidInput(f"{HEAD_LENGTH} {head_length} does not fit a body of {len(body)} bytes")
    try:
        head = msgspec.json.decode(body[:head_length] or b"{}", type=_Head)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"the head of the message is no JSON of ours: {error}") from None
    view, offset, parts = memoryview(body), head_length, []
    for size in head.sizes:
        parts.append(view[offset : offset + size])
        offset += size
    if offset != len(body):
        raise InvalidInput(f"the attachments do not fill the body: {offset} of {len(body)} bytes")
    return _attach(head.value, parts, 0)


def _attach(value: Any, parts: list[memoryview], depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise InvalidInput(f"the message is nested deeper than {MAX_DEPTH}")
    if isinstance(value, dict):
        if _looks_like_a_mark(value):
            [(mark, item)] = value.items()
            return _marked(mark, item, parts, depth)
        _refuse_nul(value)
        return {key: _attach(item, parts, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_attach(item, parts, depth + 1) for item in value]
    if isinstance(value, str):
        _refuse_nul([value])
    if isinstance(value, int) and not _INT64.start <= value < _INT64.stop:
        raise InvalidInput(f"a number of {value.bit_length()} bits does not fit 64 bits")
    return value


def _refuse_nul(texts: Iterable[str]) -> None:
    if any("\0" in text for text in texts):
        raise InvalidInput("a text holds a NUL character, which cannot be stored")


def _marked(mark: str, item: Any, parts: list[memoryview], depth: int) -> Any:
    if mark in ("$table", "$bytes"):
        if not isinstance(item, int) or not 0 <= item < len(parts):
            raise InvalidInput("the message names an attachment that it does not have")
        return _read_table(parts[item]) if mark == "$table" else bytes(parts[item])
    if mark == "$float" and item in ("nan", "inf", "-inf"):
        return float(item)
    if mark == "$object" and isinstance(item, dict):
        _refuse_nul(item)
        return {key: _attach(inner, parts, depth + 1) for key, inner in item.items()}
    raise InvalidInput("an object of one key that starts with $ must be wrapped as $object")


def _read_table(part: memoryview) -> pa.Table:
    import pyarrow as pa

    try:
        with pa.ipc.open_stream(pa.py_buffer(part)) as reader:
            table = reader.read_all()
        # Offsets inside a foreign stream may point anywhere; reading them unchecked is a crash.
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise InvalidInput(f"an attached table is no Arrow stream: {error}") from None
    return table


def _convert(value: Any, hint: Any) -> Any:
    return msgspec.convert(value, hint, dec_hook=_as_is)


def _as_is(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise msgspec.ValidationError(f"expected {kind.__name__}, got {type(value).__name__}")
    return value
