"""Request bodies: read, inflate and parse within limits, for the doors of inference.

Limits are checked while reading, so that nothing a client sends can fill the memory.
"""

from __future__ import annotations

import asyncio
import json
import re
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import numpy as np
import orjson

from everloop.errors import EverloopError, InvalidInput

__all__ = [
    "BODY_TIMEOUT_S",
    "MAX_BODY",
    "MAX_DEPTH",
    "BadRequest",
    "ClientGone",
    "inflate",
    "parse_json",
    "read_body",
]

#: Longest body, in bytes, as sent and as inflated.
MAX_BODY = 16 << 20

#: Deepest nesting of JSON.
MAX_DEPTH = 64

#: Time for a body to arrive, seconds.
BODY_TIMEOUT_S = 30.0

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

_KEY_END = re.compile(rb'"\s*:')
_OPEN = np.zeros(256, dtype=np.int8)
_OPEN[[ord("["), ord("{")]] = 1
_OPEN[[ord("]"), ord("}")]] = -1


class BadRequest(EverloopError):
    """A request that is refused with a status of HTTP's own, such as 413."""

    code = "bad_request"

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ClientGone(Exception):
    """The client closed the connection before its request was complete."""


async def read_body(
    receive: Receive, length: bytes | None, *, limit: int = MAX_BODY, timeout_s: float | None = None
) -> bytes:
    """The whole body.

    Args:
        receive: Of ASGI.
        length: The Content-Length header, if any.
        limit: In bytes.
        timeout_s: For all of it to arrive.

    Raises:
        BadRequest: 413 above the limit, 408 when it came too slowly.
        ClientGone: If the connection was closed.
    """
    if length is not None and length.isdigit() and int(length) > limit:
        raise BadRequest(413, f"the body is over the limit of {limit} bytes")
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S if timeout_s is None else timeout_s):
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            body: bytes = message.get("body", b"")
            if not message.get("more_body") and len(body) <= limit:
                return body
            return await _read_rest(receive, body, limit, bool(message.get("more_body")))
    except TimeoutError:
        raise BadRequest(408, "the body did not arrive in time") from None


async def _read_rest(receive: Receive, first: bytes, limit: int, more: bool) -> bytes:
    parts, size = [first], len(first)
    while more and size <= limit:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message.get("more_body", False)
    if size > limit:
        raise BadRequest(413, f"the body is over the limit of {limit} bytes")
    return b"".join(parts)


def inflate(body: bytes, encoding: str, *, limit: int = MAX_BODY) -> bytes:
    """Undo a Content-Encoding of gzip or deflate.

    Raises:
        BadRequest: 415 for another encoding, 413 when the result is over the limit.
        InvalidInput: If the bytes are not of that encoding, or end early.
    """
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise BadRequest(415, "Content-Encoding must be gzip, deflate or identity")
    # 47 takes gzip and zlib; some clients send deflate without the zlib frame.
    windows = [47] if encoding != "deflate" else [47, -15]
    for window in windows:
        unpack = zlib.decompressobj(window)
        try:
            plain = unpack.decompress(body, limit + 1)
        except zlib.error:
            continue
        if len(plain) > limit:
            raise BadRequest(413, f"the inflated body is over the limit of {limit} bytes")
        if unpack.eof and not unpack.unused_data:
            return plain
    raise InvalidInput(f"the body is no valid {encoding}")


def parse_json(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`.

    Raises:
        InvalidInput: If it is no JSON (NaN and Infinity are none), no object, nested deeper than
            ``MAX_DEPTH``, or names a key twice.
    """
    if _maybe_deep(body):
        raise InvalidInput(f"the JSON is nested deeper than {MAX_DEPTH}")
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"the body is no JSON: {error.msg.split(':')[0]}") from None
    if not isinstance(document, dict):
        raise InvalidInput("the body must be a JSON object")
    # Every key of the text ends with this mark, so equal counts prove that no key stands twice.
    marks = _KEY_END.findall(body)
    if len(marks) != _keys(document):
        json.loads(body, object_pairs_hook=_refuse_twins)
    return document


def _maybe_deep(body: bytes) -> bool:
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return False
    # Brackets within texts count too; a text of 64 unclosed brackets has no place in a request.
    steps = _OPEN[np.frombuffer(body, dtype=np.uint8)]
    return int(np.cumsum(steps[steps != 0], dtype=np.int64).max(initial=0)) > MAX_DEPTH


def _keys(value: Any) -> int:
    if isinstance(value, dict):
        found = len(value)
        for inner in value.values():
            if isinstance(inner, dict | list):
                found += _keys(inner)
        return found
    if value and isinstance(value[0], dict):
        return sum(_keys(inner) for inner in value if isinstance(inner, dict))
    return 0


def _refuse_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twin = next(name for name in names if names.count(name) > 1)
        raise InvalidInput("a key of the JSON stands twice", [(twin[:64], "given more than once")])
    return found
