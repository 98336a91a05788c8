"""What MLflow's wire looks like: requests as typed structs, answers as plain dictionaries, errors.

Its rules: absent and empty fields are left out, enums are names, int64 are numbers, times are
milliseconds since 1970, NaN is the text ``"NaN"`` and an infinity the largest double.
"""

from __future__ import annotations

import json
import math
import re
import typing
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qsl

import msgspec

from everloop.api.mlflow_names import with_plain_names
from everloop.core.time import from_micros, to_micros
from everloop.errors import (
    BackendError,
    Conflict,
    EverloopError,
    GateRefused,
    InvalidInput,
    MissingExtra,
    NotAllowed,
    NotAuthenticated,
    NotFound,
    StateError,
    Throttled,
    TooLarge,
    UserCodeError,
)

__all__ = [
    "Int64",
    "KeyValue",
    "NotServed",
    "Page",
    "Text",
    "bare",
    "choice",
    "decode_body",
    "decode_query",
    "error_answer",
    "experiment_key",
    "from_ms",
    "invalid",
    "missing",
    "number",
    "of_one",
    "pairs",
    "query_pairs",
    "tags_of",
    "to_ms",
]

_Request = TypeVar("_Request")

#: A text that must be there: MLflow takes the empty one for a missing one.
Text = Annotated[str, msgspec.Meta(min_length=1)]
Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]

#: Most letters of a client's value that an error repeats.
_SHOWN = 260
#: What clients compare with the whole message.
_BAD_PATH = "Invalid path"
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
    body = with_plain_names(body, kind)
    # The search is slow; the plain test before it is not.
    if b"\\u0000" in body and _NUL.search(body):
        raise InvalidInput("Invalid value supplied: a text holds a NUL character")
    try:
        if given:
            fields = msgspec.json.decode(body or b"{}", type=dict[str, Any])
            return msgspec.convert({**fields, **given}, kind, strict=False)
        return msgspec.json.decode(body or b"{}", type=kind, strict=False)
    except msgspec.ValidationError as error:
        sent = _loose(body, given)
        if isinstance(sent, str) and sent.startswith("{"):
            return decode_body(sent.encode(), kind, given)  # old clients encode a body twice
        raise _explained(str(error), sent, kind) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        if kind_of := _with_bare_numbers(body):
            return decode_body(kind_of, kind, given)
        raise _unreadable(kind, "The body of the request is no valid JSON") from None
    except RecursionError:
        raise _unreadable(kind, "The body of the request is nested too deeply") from None


def decode_query(query: bytes, kind: type[_Request], given: dict[str, str]) -> _Request:
    """The query of a GET as `kind`; a repeated field is a list, or its first value counts.

    Raises:
        InvalidInput: Naming the field that is missing or wrong.
    """
    lists = _list_fields(kind)
    fields: dict[str, Any] = {}
    for key, value in query_pairs(query):
        if key in lists:
            fields.setdefault(key, []).append(value)
        else:
            fields.setdefault(key, value)
    try:
        return msgspec.convert({**fields, **given}, kind, strict=False)
    except msgspec.ValidationError as error:
        raise _explained(str(error), {**fields, **given}, kind) from None


def query_pairs(query: bytes) -> list[tuple[str, str]]:
    """The fields of a query in their order.

    Raises:
        InvalidInput: If it is no UTF-8, has too many fields, or holds a NUL.
    """
    try:
        found = parse_qsl(
            query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=1000
        )
    except ValueError:
        raise InvalidInput("The query of the request is no valid UTF-8, or too long") from None
    for key, value in found:
        if "\0" in value:
            raise InvalidInput(f"Invalid value for parameter '{key}' supplied: it holds a NUL")
    return found


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


def invalid(name: str, value: Any, why: str) -> InvalidInput:
    """The error for a field with a wrong value."""
    return InvalidInput(f"Invalid value {_shown(value)} for parameter '{name}' supplied: {why}")


def _shown(value: Any) -> str:
    """`value` as JSON, cut: what is told to a client is never longer than what it needs."""
    try:
        text = json.dumps(value)
    except RecursionError:
        return "..."
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _loose(body: bytes, given: dict[str, str]) -> Any:
    """What was sent, only to tell what is wrong with it."""
    try:
        fields = msgspec.json.decode(body or b"{}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return "..."  # the fault came before its end was read
    return {**fields, **given} if isinstance(fields, dict) else fields


_PATH = re.compile(r" - at `\$\.?(?P<path>[^`]*)`$")
_ABSENT = re.compile(r"Object missing required field `(?P<name>\w+)`")


def _explained(text: str, fields: Any, kind: type) -> InvalidInput:
    at = _PATH.search(text)
    path = at["path"] if at else ""
    said = text[: at.start()] if at else text
    if absent := _ABSENT.match(said):
        # Of several that are missing, clients look for the id first.
        if not path and "run_uuid" in typing.get_type_hints(kind) and not _run_of(fields):
            return missing("run_id")
        return missing(f"{path}.{absent['name']}" if path else absent["name"])
    if not path:
        return _unreadable(kind, f"Invalid request: {said}")
    value = _value_at(fields, path)
    if value is None or value == "":
        return missing(path)
    return invalid(path, value, said)


def _run_of(fields: Any) -> Any:
    return isinstance(fields, dict) and (fields.get("run_id") or fields.get("run_uuid"))


def _value_at(fields: Any, path: str) -> Any:
    for step in re.findall(r"\w+", path):
        if isinstance(fields, list):
            fields = fields[int(step)]
        elif isinstance(fields, dict):
            fields = fields.get(step)
    return fields


def _unreadable(kind: type, why: str) -> InvalidInput:
    """The error for a body that is none: what it lacks, as MLflow takes it for an empty one."""
    hints = typing.get_type_hints(kind)
    required = ["run_id"] if "run_uuid" in hints else []
    required += [field.encode_name for field in msgspec.structs.fields(kind) if field.required]
    if not required:
        return InvalidInput(why)
    return InvalidInput(f"Missing value for required parameter '{required[0]}'. ({why})")


def choice(value: str | int | None, names: Sequence[str], field: str) -> str:
    """The name of a value of an enumeration, which clients send by name or by number.

    Args:
        value: As sent; empty for none.
        names: By number, beginning with 1.
        field: To name in the error.

    Raises:
        InvalidInput: If there is no such value.
    """
    if value in names or not value:
        return str(value or "")
    text = str(value)
    if text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= len(names):
        return names[int(text) - 1]
    raise invalid(field, value, f"one of {', '.join(names)} is known")


def experiment_key(id_: str) -> str:
    """`id_`, which must be a whole number of 64 bits.

    Raises:
        InvalidInput: If it is not.
    """
    if not re.fullmatch(r"-?[0-9]{1,19}", id_) or not -(2**63) <= int(id_) < 2**63:
        raise InvalidInput(
            f"Invalid experiment ID {id_[:_SHOWN]!r}. Experiment ID must be a valid integer."
        )
    return id_


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


class NotServed(EverloopError):
    """A call that MLflow has and this server has not; clients do without or take another way."""

    code = "not_served"
    status = 501


#: Our error -> MLflow's code and the status. Refusals get a status that clients do not retry.
_CODES: dict[type[EverloopError], tuple[str, int]] = {
    TooLarge: ("BAD_REQUEST", 413),
    InvalidInput: ("INVALID_PARAMETER_VALUE", 400),
    NotFound: ("RESOURCE_DOES_NOT_EXIST", 404),
    Conflict: ("RESOURCE_ALREADY_EXISTS", 400),
    StateError: ("INVALID_PARAMETER_VALUE", 400),
    NotAuthenticated: ("UNAUTHENTICATED", 401),
    Throttled: ("REQUEST_LIMIT_EXCEEDED", 429),
    NotAllowed: ("PERMISSION_DENIED", 403),
    GateRefused: ("PERMISSION_DENIED", 403),
    MissingExtra: ("NOT_IMPLEMENTED", 501),
    UserCodeError: ("BAD_REQUEST", 400),
    BackendError: ("TEMPORARILY_UNAVAILABLE", 503),
    NotServed: ("NOT_IMPLEMENTED", 501),
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
        return _faults(error)
    if error.hint:
        return f"{error.message} ({error.hint})"
    return error.message


def _faults(error: InvalidInput) -> str:
    """All faults, the first one in the words that clients match."""
    if error.summary == _BAD_PATH:
        return error.summary
    first = error.faults[0]
    lines = "; ".join(str(fault) for fault in error.faults[: InvalidInput.SHOWN])
    if longest := error.details.get("longest"):
        return f"'{first.path}' exceeds the maximum length of {longest} characters. {lines}"
    if first.message.startswith("Missing value"):
        return f"Missing value for required parameter '{first.path}'. {lines}"
    if "value" in error.details and first.path:
        value = _shown(error.details["value"])
        return f"Invalid value {value} for parameter '{first.path}' supplied: {lines}"
    return f"{error.summary}: {lines}"


@contextmanager
def of_one(kind: str) -> Iterator[None]:
    """Within the block faults of the only item of a batch are told without its index.

    Args:
        kind: ``metrics``, ``params`` or ``tags``.
    """
    try:
        yield
    except InvalidInput as error:
        head = f"{kind}[0]."
        faults = [(f.path.removeprefix(head), f.message) for f in error.faults]
        raise InvalidInput(error.summary, faults, details=error.details) from None


def _not_found(error: NotFound) -> str:
    kind, name = error.details.get("kind"), str(error.details.get("name", ""))
    if kind == "model":
        return f"Registered Model with name={name} not found"
    if kind == "model version":
        model, _, version = name.rpartition("/")
        return f"Model Version (name={model}, version={version}) not found"
    if kind == "artifact":
        return f"No such artifact: '{name[:_SHOWN]}'"
    if kind == "experiment":
        return f"No Experiment with id={name} exists"
    return error.message
