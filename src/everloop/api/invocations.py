"""The MLflow scoring protocol: bodies of ``POST /invocations`` into columns, and its answers.

Four forms of JSON (``dataframe_split``, ``dataframe_records``, ``instances``, ``inputs``) and CSV.
Values are checked by the route's validator, so a lossy cast or a null that MLflow lets pass is an
error here, with the place of each.

Source: MLflow's documentation of its scoring server.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeGuard

import orjson

from everloop.api.oip_body import BadRequest, parse_json
from everloop.core.schema import Field, Schema
from everloop.errors import EverloopError, Fault, InvalidInput
from everloop.serving.route import Answers
from everloop.serving.signature import Where, where_in

__all__ = ["Frame", "decode_frame", "encode_predictions", "error_body"]

FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")


@dataclass(slots=True)
class Frame:
    """Columns of a request, and how to name a place in it."""

    columns: dict[str, list[Any]]
    rows: int
    where: Where


def decode_frame(body: bytes, content_type: str, schema: Schema) -> Frame:
    """Read the body of an invocation.

    Args:
        body: Inflated.
        content_type: The header.
        schema: Of the request; gives the order of unnamed columns and the types of CSV.

    Raises:
        BadRequest: 415 for a content type that is not of the protocol.
        InvalidInput: With every fault of the form.
    """
    kind, _, rest = content_type.partition(";")
    charset = rest.strip().lower()
    if charset and charset not in ("charset=utf-8", 'charset="utf-8"'):
        raise BadRequest(415, "the content type may only name charset=utf-8")
    if kind.strip().lower() == "text/csv":
        return _from_csv(body, schema)
    if kind.strip().lower() != "application/json":
        raise BadRequest(415, "the content type must be application/json or text/csv")
    document = parse_json(body)
    forms = [form for form in FORMS if form in document]
    if len(forms) != 1:
        raise InvalidInput(f"the body must have exactly one of {', '.join(FORMS)}")
    return _READERS[forms[0]](document[forms[0]], forms[0], schema)


def encode_predictions(answers: Answers) -> bytes:
    """``{"predictions": [...], "prediction_ids": [...]}``, one of each per row."""
    return orjson.dumps(
        {"predictions": answers.values, "prediction_ids": answers.ids},
        option=orjson.OPT_SERIALIZE_NUMPY,
    )


def error_body(error: EverloopError) -> bytes:
    """The protocol's form of an error: a code and a message, without the input or a trace."""
    code = "BAD_REQUEST"
    if isinstance(error, InvalidInput) and error.faults:
        code = "INVALID_PARAMETER_VALUE"
    elif error.status == 404:
        code = "RESOURCE_DOES_NOT_EXIST"
    elif error.status >= 500:
        code = "INTERNAL_ERROR"
    return orjson.dumps({"error_code": code, "message": str(error)})


def _split(value: Any, form: str, _schema: Schema) -> Frame:
    names = value.get("columns") if isinstance(value, dict) else None
    data = value.get("data") if isinstance(value, dict) else None
    if not isinstance(data, list) or not _are_names(names):
        raise InvalidInput("the frame is wrong", [(form, "expected columns and data")])
    return _positional(data, names, f"{form}.data")


def _are_names(names: Any) -> TypeGuard[list[str]]:
    return (
        isinstance(names, list)
        and all(isinstance(name, str) for name in names)
        and len(set(names)) == len(names)
    )


def _positional(data: list[Any], names: list[str], path: str) -> Frame:
    width = len(names)
    faults = []
    for row, values in enumerate(data):
        if not isinstance(values, list):
            faults.append(Fault(f"{path}[{row}]", "expected a list of values"))
        elif len(values) != width:
            faults.append(Fault(f"{path}[{row}]", f"has {len(values)} values, expected {width}"))
        if len(faults) >= 1_000:
            break
    if faults:
        raise InvalidInput("the frame is wrong", faults)
    turned = zip(*data, strict=True) if data else ([] for _ in names)
    columns = {name: list(values) for name, values in zip(names, turned, strict=True)}
    return Frame(columns, len(data), _row_first(path))


def _row_first(path: str) -> Where:
    def where(name: str, row: int | None) -> str:
        return f"{path}.{name[:64]}" if row is None else f"{path}[{row}].{name[:64]}"

    return where


def _records(value: Any, form: str, _schema: Schema) -> Frame:
    if not isinstance(value, list) or not value:
        raise InvalidInput("the frame is wrong", [(form, "expected a list of at least one record")])
    wrong = [row for row, one in enumerate(value) if not isinstance(one, dict)]
    if wrong:
        faults = [Fault(f"{form}[{row}]", "expected an object") for row in wrong[:1_000]]
        raise InvalidInput("the frame is wrong", faults)
    names = dict.fromkeys(name for one in value for name in one)
    columns = {name: [one.get(name) for one in value] for name in names}
    return Frame(columns, len(value), _row_first(form))


def _instances(value: Any, form: str, schema: Schema) -> Frame:
    if isinstance(value, dict):
        return _tensors(value, form, schema)
    if isinstance(value, list) and value and not isinstance(value[0], dict):
        rows = value if isinstance(value[0], list) else [[one] for one in value]
        return _positional(rows, list(schema.names), form)
    return _records(value, form, schema)


def _tensors(value: Any, form: str, schema: Schema) -> Frame:
    if not isinstance(value, dict):
        return _instances(value, form, schema)
    columns = {}
    for name, data in value.items():
        values = data if isinstance(data, list) else [data]
        if values and all(isinstance(one, list) and len(one) == 1 for one in values):
            values = [one[0] for one in values]
        columns[name] = values
    return Frame(columns, max(map(len, columns.values()), default=0), where_in(form))


_READERS: dict[str, Callable[[Any, str, Schema], Frame]] = {
    "dataframe_split": _split,
    "dataframe_records": _records,
    "instances": _instances,
    "inputs": _tensors,
}


def _from_csv(body: bytes, schema: Schema) -> Frame:
    try:
        lines = list(csv.reader(io.StringIO(body.decode(), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error):
        raise InvalidInput("the body is no CSV text in UTF-8") from None
    lines = [line for line in lines if line]
    if not lines or not _are_names(lines[0]):
        raise InvalidInput("the CSV needs a first line of column names, each once")
    frame = _positional(lines[1:], lines[0], "csv")
    fields = {field.name: field for field in schema.fields}
    for name, values in frame.columns.items():
        if name in fields:
            frame.columns[name] = [_typed(text, fields[name]) for text in values]
    return frame


_BOOLS = {"True": True, "true": True, "False": False, "false": False}


def _typed(text: str, field: Field) -> Any:
    """The value that a cell stands for; a cell that is no such value stays text, and is refused."""
    if not text:
        return None
    if field.type == "bool":
        return _BOOLS.get(text, text)
    if not field.is_numeric and field.type != "timestamp":
        return text
    try:
        return int(text)
    except ValueError:
        pass
    if field.type == "timestamp":
        return text
    try:
        return float(text)
    except ValueError:
        return text
