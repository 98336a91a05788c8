"""Signatures in the words of others: MLflow's JSON, Open Inference Protocol tensors, JSON Schema.

Arrow schemas are translated in ``everloop.data.arrow``. Each page of functions says what does not
survive the journey; what another form cannot say is left out on the way there, and what ours
cannot say is refused on the way back, with every fault.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import msgspec

from everloop.core.model import Signature
from everloop.core.schema import FIELD_TYPES, Field, FieldType, Schema
from everloop.errors import Fault, InvalidInput

__all__ = [
    "OIP_DATATYPES",
    "from_json_schema",
    "from_mlflow",
    "from_oip",
    "to_json_schema",
    "to_mlflow",
    "to_oip",
]

# --- the Open Inference Protocol ------------------------------------------------------------------

#: Field type -> datatype of the protocol. Times travel as INT64 microseconds or BYTES text.
OIP_DATATYPES: dict[str, str] = {
    "bool": "BOOL", "float32": "FP32", "float64": "FP64", "string": "BYTES", "binary": "BYTES",
    "timestamp": "INT64", "date": "BYTES",
} | {f"{s}int{b}": f"{s.upper()}INT{b}" for s in ("", "u") for b in (8, 16, 32, 64)}  # fmt: skip

_FROM_OIP = {
    datatype: kind
    for kind, datatype in OIP_DATATYPES.items()
    if kind not in ("binary", "timestamp", "date")
} | {"FP16": "float32"}


def to_oip(schema: Schema) -> list[dict[str, Any]]:
    """Tensor metadata of a schema's fields, one row of any number for each.

    Lost: nullability, rules, and that bytes are a date or binary and whole numbers an instant.
    """
    return [
        {"name": field.name, "datatype": OIP_DATATYPES[field.type], "shape": [-1]}
        for field in schema.fields
    ]


def from_oip(tensors: Iterable[Mapping[str, Any]]) -> Schema:
    """The schema of tensor metadata; nothing in it may be null.

    Raises:
        InvalidInput: With every tensor that is no column of a type we know.
    """

    def field(tensor: Mapping[str, Any]) -> Field:
        kind = _FROM_OIP.get(str(tensor.get("datatype")))
        if kind is None:
            raise InvalidInput(f"datatype {tensor.get('datatype')!r} is no field type")
        _check_shape(tensor.get("shape", [-1]))
        return Field(str(tensor.get("name", "")), cast(FieldType, kind), nullable=False)

    return _schema(tensors, field, "tensors")


# --- MLflow ---------------------------------------------------------------------------------------

_TO_MLFLOW = {
    "bool": "boolean", "int8": "integer", "int16": "integer", "int32": "integer", "int64": "long",
    "uint8": "integer", "uint16": "integer", "uint32": "long", "uint64": "long",
    "float32": "float", "float64": "double", "string": "string", "binary": "binary",
    "timestamp": "datetime", "date": "datetime",
}  # fmt: skip
_FROM_MLFLOW = {
    "boolean": "bool", "integer": "int32", "long": "int64", "float": "float32",
    "double": "float64", "string": "string", "binary": "binary", "datetime": "timestamp",
}  # fmt: skip


def to_mlflow(signature: Signature) -> dict[str, Any]:
    """A signature as MLflow's ``MLmodel`` files hold it: columns as JSON text.

    Lost: rules and units, the width of whole numbers (the next wider type is taken, ``long`` for
    ``uint64``), and that an instant is a date.
    """

    def columns(schema: Schema) -> str | None:
        listed = [
            {"type": _TO_MLFLOW[field.type], "name": field.name, "required": not field.nullable}
            for field in schema.fields
        ]
        return msgspec.json.encode(listed).decode() if listed else None

    return {
        "inputs": columns(signature.inputs),
        "outputs": columns(signature.outputs),
        "params": None,
    }


def from_mlflow(signature: Mapping[str, Any]) -> Signature:
    """The signature that MLflow's JSON tells of; a column without a name is called by its position.

    Raises:
        InvalidInput: With every column whose type no field has (nested ones, tensors of several
            dimensions); `params` are left out.
    """

    def field(column: Mapping[str, Any], position: int) -> Field:
        kind, given = str(column.get("type")), column.get("type")
        if given == "tensor":
            spec = column.get("tensor-spec") or {}
            _check_shape(spec.get("shape", []))
            found = _from_dtype(str(spec.get("dtype")))
        else:
            found = _FROM_MLFLOW.get(kind)
        if found is None:
            raise InvalidInput(f"{given!r} is no field type")
        required = bool(column.get("required", True))
        name = str(column.get("name") or position)
        return Field(name, cast(FieldType, found), nullable=not required)

    def columns(part: str) -> Schema:
        text = signature.get(part)
        if not text:
            return Schema(())
        try:
            listed = msgspec.json.decode(text, type=list[dict[str, Any]])
        except msgspec.DecodeError as error:
            raise InvalidInput(f"{part}: no list of columns: {error}") from None
        numbered = {id(column): position for position, column in enumerate(listed)}
        return _schema(listed, lambda column: field(column, numbered[id(column)]), part)

    return Signature(columns("inputs"), columns("outputs"))


def _from_dtype(dtype: str) -> str | None:
    named = {"str": "string", "object": "string", "bytes": "binary", "float16": "float32"}
    found = named.get(dtype, dtype)
    if found.startswith("datetime64"):
        return "timestamp"
    return found if found in FIELD_TYPES else None


# --- JSON Schema ----------------------------------------------------------------------------------

_PLAIN: dict[str, dict[str, Any]] = {
    "bool": {"type": "boolean"},
    "float32": {"type": "number", "format": "float"},
    "float64": {"type": "number", "format": "double"},
    "string": {"type": "string"},
    "binary": {"type": "string", "contentEncoding": "base64"},
    "timestamp": {"type": "string", "format": "date-time"},
    "date": {"type": "string", "format": "date"},
} | {
    f"{s}int{b}": {"type": "integer", "format": f"{s}int{b}"}
    for s in ("", "u")
    for b in (8, 16, 32, 64)
}


def to_json_schema(schema: Schema) -> dict[str, Any]:
    """JSON Schema (2020-12) of one row as an object.

    Whole numbers get the bounds of their type. Lost: rules over rows, keys, ``unique``, owners,
    and that a bound was stated where it is the type's own.
    """
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {field.name: _property(field) for field in schema.fields},
        "required": [field.name for field in schema.fields if not field.nullable],
        "additionalProperties": schema.extra == "allow",
    }


def _property(field: Field) -> dict[str, Any]:
    found = dict(_PLAIN[field.type])
    low, high = _range(field.type)
    bounds = {"minimum": (field.ge, low), "maximum": (field.le, high)}
    for word, (stated, own) in bounds.items():
        bound = own if stated is None else stated
        if bound is not None:
            found[word] = bound
    if field.nullable:
        found["type"] = [found["type"], "null"]
    if field.among:
        found["enum"] = [*field.among, *([None] if field.nullable else [])]
    if field.regex:
        found["pattern"] = f"^(?:{field.regex})$"
    texts = {"maxLength": field.max_length, "description": field.description, "x-unit": field.unit}
    return found | {word: value for word, value in texts.items() if value}


def from_json_schema(document: Mapping[str, Any]) -> Schema:
    """The schema of a JSON Schema of flat objects.

    A number without a format is a ``float64``, a whole one an ``int64``. A property that may be
    null, or need not be there, is nullable.

    Raises:
        InvalidInput: With every property that no field can hold: objects, arrays, unions.
    """
    if document.get("type") != "object":
        raise InvalidInput("the schema is wrong", [("type", "must be object: one row")])
    required = set(document.get("required", ()))

    def field(item: tuple[str, Mapping[str, Any]]) -> Field:
        name, rules = item
        kinds = rules.get("type")
        listed = list(kinds) if isinstance(kinds, list) else [kinds]
        nullable = "null" in listed or name not in required
        plain = [kind for kind in listed if kind != "null"]
        kind = _field_type(plain[0], rules) if len(plain) == 1 else None
        if kind is None:
            raise InvalidInput(f"type {kinds!r} is no field type")
        low, high = _range(kind)
        pattern = str(rules.get("pattern", ""))
        return Field(
            name,
            cast(FieldType, kind),
            nullable=nullable,
            ge=_stated(rules.get("minimum"), low),
            le=_stated(rules.get("maximum"), high),
            among=tuple(value for value in rules.get("enum", ()) if value is not None),
            regex=_whole(pattern) if pattern else "",
            max_length=int(rules.get("maxLength", 0)),
            description=str(rules.get("description", "")),
            unit=str(rules.get("x-unit", "")),
        )

    found = _schema(dict(document.get("properties", {})).items(), field, "properties")
    extra = document.get("additionalProperties", True) is not False
    return msgspec.structs.replace(found, extra="allow" if extra else "refuse")


def _field_type(kind: Any, rules: Mapping[str, Any]) -> str | None:
    form = rules.get("format", "")
    if kind == "integer":
        return form if form in FIELD_TYPES and "int" in form else "int64"
    if kind == "number":
        return "float32" if form == "float" else "float64"
    if kind == "string":
        if rules.get("contentEncoding") == "base64":
            return "binary"
        return {"date-time": "timestamp", "date": "date"}.get(form, "string")
    return "bool" if kind == "boolean" else None


def _range(kind: str) -> tuple[int | None, int | None]:
    sign, found, bits = kind.partition("int")
    if not found or sign not in ("", "u"):
        return None, None
    if sign:
        return 0, (1 << int(bits)) - 1
    return -(1 << int(bits) - 1), (1 << int(bits) - 1) - 1


def _stated(bound: float | None, own: int | None) -> float | None:
    return None if bound is None or bound == own else bound


def _whole(pattern: str) -> str:
    """A pattern as the whole text must match it; one of JSON Schema may match anywhere."""
    if pattern.startswith("^(?:") and pattern.endswith(")$"):
        return pattern[4:-2]
    begin = pattern[1:] if pattern.startswith("^") else f"(?s:.*){pattern}"
    ends = begin.endswith("$") and not begin.endswith("\\$")
    return begin[:-1] if ends else f"{begin}(?s:.*)"


# --- shared ---------------------------------------------------------------------------------------


def _check_shape(shape: Any) -> None:
    if list(shape) not in ([-1], [-1, 1]):
        raise InvalidInput(f"shape {list(shape)} is no column: one value for each row is")


def _schema(items: Iterable[Any], make: Callable[[Any], Field], where: str) -> Schema:
    fields, faults = [], []
    for position, item in enumerate(items):
        try:
            fields.append(make(item))
        except InvalidInput as error:
            faults.append(Fault(f"{where}[{position}]", error.summary))
    if faults:
        raise InvalidInput("the signature is wrong", faults)
    return Schema(tuple(fields))
