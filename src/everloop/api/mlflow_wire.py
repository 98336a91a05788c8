"""What MLflow's wire looks like: requests as typed structs, answers as plain dictionaries, errors.

Its rules: absent and empty fields are left out, enums are names, int64 are numbers, times are
milliseconds since 1970, NaN is the text ``"NaN"`` and an infinity the largest double.
"""

from __future__ import annotations

import math
import re
import typing
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qsl

import msgspec

from everloop.core.time import from_micros, to_micros
from everloop.errors import (
    BackendError,
    Conflict,
    EverloopError,
    GateRefused,
    InvalidInput,
    MissingExtra,
    NotAllowed,
    NotFound,
    StateError,
    TooLarge,
    UserCodeError,
)

__all__ = [
    "Int64",
    "KeyValue",
    "Page",
    "Text",
    "bare",
    "decode_body",
    "decode_query",
    "error_answer",
    "from_ms",
    "missing",
    "number",
    "pairs",
    "tags_of",
    "to_ms",
]

_Request = TypeVar("_Request")

#: A text that must be there: MLflow takes the empty one for a missing one.
Text = Annotated[str, msgspec.Meta(min_length=1)]
Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]

_LARGEST = 1.7976931348623157e308
_FIRST_MS, _LAST_MS = -62_135_596_800_000, 253_402_300_799_999


class KeyValue(msgspec.Struct):
    """A tag or a parameter."""

    key: Text
    value: str | None = ""


class Page(msgspec.Struct, kw_only=True):
    """What every search asks for."""

    filter: str | None = ""
    order_by: list[str] | None = None
    max_results: Int64 | None = None
    page_token: str | None = ""


# --- requests ---------------------------------------------------------------------------------


def decode_body(body: bytes, kind: type[_Request], given: dict[str, str]) -> _Request:
    """A JSON body as `kind`; parameters of the path win over fields of the body.

    Raises:
        InvalidInput: Naming the field that is missing or wrong.
    """
    # The search is slow; the plain test before it is not.
    if b"\\u0000" in body and _NUL.search(body):
        raise InvalidInput("Invalid value supplied: a text holds a NUL character")
    try:
        if given:
            fields = msgspec.json.decode(body or b"{}", type=dict[str, Any])
            return msgspec.convert({**fields, **given}, kind, strict=False)
        return msgspec.json.decode(body or b"{}", type=kind, strict=False)
    except msgspec.ValidationError as error:
        raise _explained(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        if kind_of := _with_bare_numbers(body):
            return decode_body(kind_of, kind, given)
        raise InvalidInput("The body of the request is no valid JSON") from None
    except RecursionError:
        raise InvalidInput("The body of the request is nested too deeply") from None


def decode_query(query: bytes, kind: type[_Request], given: dict[str, str]) -> _Request:
    """The query of a GET as `kind`; a repeated field is a list.

    Raises:
        InvalidInput: Naming the field that is missing or wrong.
    """
    lists = _list_fields(kind)
    fields: dict[str, Any] = {}
    try:
        found = parse_qsl(
            query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=1000
        )
    except ValueError:
        raise InvalidInput("The query of the request is no valid UTF-8, or too long") from None
    for key, value in found:
        if "\0" in value:
            raise InvalidInput(f"Invalid value for parameter '{key}' supplied: it holds a NUL")
        if key in lists:
            fields.setdefault(key, []).append(value)
        else:
            fields[key] = value
    try:
        return msgspec.convert({**fields, **given}, kind, strict=False)
    except msgspec.ValidationError as error:
        raise _explained(str(error)) from None


_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
# A text that never ends is one match to the end, or a hostile body would take quadratic time.
_BARE = re.compile(rb'(?s)("(?:[^"\\]|\\.)*+(?:"|\\?\Z))|(-?\bInfinity\b|\bNaN\b)')


def _with_bare_numbers(body: bytes) -> bytes:
    """`body` with NaN and Infinity in quotes, as Python's json writes them bare; empty if none."""
    if b"NaN" not in body and b"Infinity" not in body:
        return b""
    quoted = _BARE.sub(lambda m: m[1] or b'"' + m[2] + b'"', body)
    return quoted if quoted != body else b""


def _list_fields(kind: type) -> set[str]:
    hints = typing.get_type_hints(kind)
    return {name for name, hint in hints.items() if "list[" in str(hint)}


def missing(name: str) -> InvalidInput:
    """The error for a required field that is not there."""
    return InvalidInput(f"Missing value for required parameter '{name}'.")


_PATH = re.compile(r" - at `\$\.?(?P<path>[^`]*)`$")
_ABSENT = re.compile(r"Object missing required field `(?P<name>\w+)`")


def _explained(text: str) -> InvalidInput:
    at = _PATH.search(text)
    path = at["path"] if at else ""
    said = text[: at.start()] if at else text
    if absent := _ABSENT.match(said):
        return missing(f"{path}.{absent['name']}" if path else absent["name"])
    if said == "Expected `str` of length >= 1":
        return missing(path)
    if not path:
        return InvalidInput(f"Invalid request: {said}")
    return InvalidInput(f"Invalid value for parameter '{path}' supplied: {said}")


def tags_of(items: Iterable[KeyValue] | None) -> dict[str, str]:
    """Tags as a dictionary; the last of equal keys counts."""
    return {item.key: item.value or "" for item in items or ()}


def from_ms(ms: int, name: str) -> datetime:
    """The instant of `ms` since 1970.

    Raises:
        InvalidInput: If it is beyond the years 1 to 9999.
    """
    if not _FIRST_MS <= ms <= _LAST_MS:
        raise InvalidInput(f"Invalid value {ms} for parameter '{name}' supplied: no time")
    return from_micros(ms * 1000)


# --- answers ----------------------------------------------------------------------------------


def to_ms(at: datetime | None) -> int | None:
    """Milliseconds since 1970."""
    return None if at is None else to_micros(at.astimezone(UTC)) // 1000


def bare(**fields: Any) -> dict[str, Any]:
    """`fields` without what is empty: None, empty texts, lists and objects."""
    return {key: value for key, value in fields.items() if value not in (None, "", [], {}, ())}


def pairs(values: dict[str, str]) -> list[dict[str, str]]:
    """Tags or parameters as MLflow lists them."""
    return [{"key": key, "value": value} for key, value in values.items()]


def number(value: float) -> float | str:
    """A double as MLflow answers it."""
    if math.isnan(value):
        return "NaN"
    return max(-_LARGEST, min(_LARGEST, value))


# --- errors -----------------------------------------------------------------------------------

#: Our error -> MLflow's code and the status. Refusals get a status that clients do not retry.
_CODES: dict[type[EverloopError], tuple[str, int]] = {
    TooLarge: ("BAD_REQUEST", 413),
    InvalidInput: ("INVALID_PARAMETER_VALUE", 400),
    NotFound: ("RESOURCE_DOES_NOT_EXIST", 404),
    Conflict: ("RESOURCE_ALREADY_EXISTS", 400),
    StateError: ("INVALID_PARAMETER_VALUE", 400),
    NotAllowed: ("PERMISSION_DENIED", 403),
    GateRefused: ("PERMISSION_DENIED", 403),
    MissingExtra: ("NOT_IMPLEMENTED", 501),
    UserCodeError: ("BAD_REQUEST", 400),
    BackendError: ("TEMPORARILY_UNAVAILABLE", 503),
}


def error_answer(error: EverloopError) -> tuple[int, dict[str, str]]:
    """Status and body for `error`."""
    code, status = next(
        (_CODES[cls] for cls in type(error).__mro__ if cls in _CODES), ("INTERNAL_ERROR", 500)
    )
    return status, {"error_code": code, "message": _message(error)}


def _message(error: EverloopError) -> str:
    if isinstance(error, NotFound):
        return _not_found(error)
    if isinstance(error, InvalidInput) and error.faults:
        lines = "; ".join(str(fault) for fault in error.faults[: InvalidInput.SHOWN])
        return f"{error.summary}: {lines}"
    if error.hint:
        return f"{error.message} ({error.hint})"
    return error.message


def _not_found(error: NotFound) -> str:
    kind, name = error.details.get("kind"), str(error.details.get("name", ""))
    if kind == "model":
        return f"Registered Model with name={name} not found"
    if kind == "model version":
        model, _, version = name.rpartition("/")
        return f"Model Version (name={model}, version={version}) not found"
    if kind == "experiment":
        return f"No Experiment with id={name} exists"
    return error.message
