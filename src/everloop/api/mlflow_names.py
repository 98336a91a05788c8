"""The other spelling of fields: protobuf's JSON reads ``runId`` as well as ``run_id``."""

from __future__ import annotations

import functools
import re
import typing
from typing import Any

import msgspec

__all__ = ["with_plain_names"]

_CAMEL = re.compile(rb'"[a-z]+[A-Z][A-Za-z]*"\s*:')
_UPPER = re.compile("([A-Z])")


def with_plain_names(body: bytes, kind: type) -> bytes:
    """`body` with the fields of `kind` under their own names; as it is if it has them already.

    Names within a mapping are a client's own and stay as they are.
    """
    if not _CAMEL.search(body):
        return body
    try:
        fields = msgspec.json.decode(body)
        return msgspec.json.encode(_renamed(fields, kind))
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return body  # whoever reads it next says what is wrong with it


def _renamed(value: Any, kind: Any) -> Any:
    if isinstance(value, list):
        inner = next(iter(_lists(kind)), None)
        return value if inner is None else [_renamed(item, inner) for item in value]
    hints = _fields(kind)
    if not isinstance(value, dict) or not hints:
        return value
    found: dict[str, Any] = {}
    for name, item in value.items():
        plain = name if name in hints else _UPPER.sub(r"_\1", name).lower()
        if plain not in hints:
            found[name] = item
        elif plain == name or plain not in value:
            found[plain] = _renamed(item, hints[plain])
    return found


@functools.cache
def _fields(kind: Any) -> dict[str, Any]:
    """The fields of the struct that a hint names, also as one of several."""
    for part in (kind, *typing.get_args(kind)):
        if isinstance(part, type) and issubclass(part, msgspec.Struct):
            return typing.get_type_hints(part)
    return {}


@functools.cache
def _lists(kind: Any) -> tuple[Any, ...]:
    """What the list holds that a hint names, also as one of several."""
    for part in (kind, *typing.get_args(kind)):
        if typing.get_origin(part) is list:
            return typing.get_args(part)
    return ()
