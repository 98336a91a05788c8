"""Calls and answers as bytes: JSON for what is small, attachments for tables and bytes.

A message is a JSON head, then its attachments; the head's length travels in a header
(``HEAD_LENGTH``). In the head an attachment stands as ``{"$bytes": n}`` or ``{"$table": n}`` (an
Arrow IPC stream). Values are decoded by the annotations of the method, so both sides see the same
types; nothing is ever unpickled.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

import msgspec
import pyarrow as pa

from everloop.errors import InvalidInput

__all__ = ["HEAD_LENGTH", "decode_call", "decode_result", "encode_call", "encode_result"]

HEAD_LENGTH = "Everloop-Head-Length"


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


@functools.cache
def _signature(method: Callable[..., Any]) -> tuple[dict[str, Any], dict[str, inspect.Parameter]]:
    parameters = dict(inspect.signature(method).parameters)
    parameters.pop("self", None)
    return typing.get_type_hints(inspect.unwrap(method)), parameters


def _encode(value: Any) -> tuple[bytes, int]:
    parts: list[bytes] = []
    head = msgspec.json.encode({"value": _detach(value, parts), "sizes": [len(p) for p in parts]})
    return head + b"".join(parts), len(head)


def _detach(value: Any, parts: list[bytes]) -> Any:
    if isinstance(value, pa.Table):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, value.schema) as writer:
            writer.write_table(value)
        parts.append(sink.getvalue().to_pybytes())
        return {"$table": len(parts) - 1}
    if isinstance(value, bytes | bytearray | memoryview):
        parts.append(bytes(value))
        return {"$bytes": len(parts) - 1}
    if isinstance(value, dict):
        return {key: _detach(item, parts) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_detach(item, parts) for item in value]
    try:
        return msgspec.to_builtins(value)
    except TypeError:
        raise InvalidInput(
            f"a value of type {type(value).__name__} cannot be sent to a server"
        ) from None


def _decode(body: bytes, head_length: int) -> Any:
    if not 0 <= head_length <= len(body):
        raise InvalidInput(f"{HEAD_LENGTH} {head_length} does not fit a body of {len(body)} bytes")
    try:
        head = msgspec.json.decode(body[:head_length] or b"{}")
        sizes = [int(size) for size in head.get("sizes", [])]
        value = head.get("value", {})
    except (msgspec.DecodeError, AttributeError, TypeError, ValueError) as error:
        raise InvalidInput(f"the head of the message is no JSON of ours: {error}") from None
    view, offset, parts = memoryview(body), head_length, []
    for size in sizes:
        parts.append(view[offset : offset + size])
        offset += size
    if offset != len(body) or any(size < 0 for size in sizes):
        raise InvalidInput(f"the attachments do not fill the body: {offset} of {len(body)} bytes")
    return _attach(value, parts)


def _attach(value: Any, parts: list[memoryview]) -> Any:
    if isinstance(value, dict):
        if len(value) == 1:
            [(kind, index)] = value.items()
            if kind in ("$table", "$bytes"):
                if not isinstance(index, int) or not 0 <= index < len(parts):
                    raise InvalidInput(f"there is no attachment {index!r}")
                return _read_table(parts[index]) if kind == "$table" else bytes(parts[index])
        return {key: _attach(item, parts) for key, item in value.items()}
    if isinstance(value, list):
        return [_attach(item, parts) for item in value]
    return value


def _read_table(part: memoryview) -> pa.Table:
    try:
        with pa.ipc.open_stream(pa.py_buffer(part)) as reader:
            return reader.read_all()
    except pa.ArrowInvalid as error:
        raise InvalidInput(f"an attached table is no Arrow stream: {error}") from None


def _convert(value: Any, hint: Any) -> Any:
    return msgspec.convert(value, hint, dec_hook=_as_is)


def _as_is(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise msgspec.ValidationError(f"expected {kind.__name__}, got {type(value).__name__}")
    return value
