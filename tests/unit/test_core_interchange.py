"""Signatures in the words of MLflow, the Open Inference Protocol and JSON Schema, and back."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everloop.core import interchange
from everloop.core.model import Signature
from everloop.core.schema import FIELD_TYPES, Field, Schema
from everloop.errors import InvalidInput
from everloop.serving.fields import FieldRules, Wrong


@st.composite
def some_fields(draw: st.DrawFn) -> Field:
    kind: Any = draw(st.sampled_from(FIELD_TYPES))
    rules: dict[str, Any] = {
        "nullable": draw(st.booleans()),
        "unit": draw(st.sampled_from(["", "km"])),
    }
    if "int" in kind or "float" in kind:
        low, high = sorted(draw(st.tuples(st.integers(0, 60), st.integers(0, 60))))
        rules |= draw(st.sampled_from([{}, {"ge": low}, {"le": high}, {"ge": low, "le": high}]))
    if kind == "string":
        text: list[dict[str, Any]] = [
            {}, {"regex": "[a-c]+"}, {"max_length": 3}, {"among": ("a", "bb")},
        ]  # fmt: skip
        rules |= draw(st.sampled_from(text))
    return Field("", kind, **rules)


def named(fields: list[Field]) -> Schema:
    from msgspec.structs import replace

    return Schema(tuple(replace(field, name=f"f{n}") for n, field in enumerate(fields)))


_KINDS: dict[str, Any] = {"null": type(None), "boolean": bool, "integer": int, "string": str}
_KINDS["number"] = (int, float)


def is_valid(rules: dict[str, Any], value: Any) -> bool:
    """What the words that we use mean by the specification of JSON Schema."""
    kinds = rules["type"] if isinstance(rules["type"], list) else [rules["type"]]
    if not any(
        isinstance(value, _KINDS[kind]) and (kind == "boolean" or not isinstance(value, bool))
        for kind in kinds
    ):
        return False
    if "enum" in rules and value not in rules["enum"]:
        return False
    if isinstance(value, str):
        fits = len(value) <= rules.get("maxLength", len(value))
        return fits and re.search(rules.get("pattern", ""), value) is not None
    if value is None or isinstance(value, bool):
        return True
    return bool(rules.get("minimum", value) <= value <= rules.get("maximum", value))


@given(st.lists(some_fields(), max_size=5))
def test_json_schema_and_back_is_the_same(fields: list[Field]) -> None:
    schema = named(fields)
    document = interchange.to_json_schema(schema)
    expected = named([without_own_bounds(field) for field in fields])
    assert interchange.from_json_schema(json.loads(json.dumps(document))) == expected


def without_own_bounds(field: Field) -> Field:
    """A bound that the type has anyway says nothing, so it need not come back."""
    if "int" not in field.type:
        return field
    own = np.iinfo(field.type)
    ge = None if field.ge == own.min else field.ge
    le = None if field.le == own.max else field.le
    return msgspec.structs.replace(field, ge=ge, le=le)


@given(
    some_fields(),
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**64), 2**65), st.text("abcd", max_size=5),
        st.floats(-1e3, 1e3),
    ),
)  # fmt: skip
def test_json_schema_refuses_what_we_refuse(field: Field, value: object) -> None:
    if field.type in ("binary", "timestamp", "date") or isinstance(value, float):
        return  # formats are annotations to JSON Schema, and 1.0 is a whole number to it
    document = interchange.to_json_schema(named([field]))
    theirs = is_valid(document["properties"]["f0"], value)
    try:
        FieldRules(field).item(value)
    except Wrong:
        assert not theirs
    else:
        assert theirs


@pytest.mark.parametrize(
    ("rules", "kind", "nullable"),
    [
        ({"type": "number"}, "float64", False),
        ({"type": "integer"}, "int64", False),
        ({"type": ["string", "null"]}, "string", True),
        ({"type": "integer", "format": "int32"}, "int32", False),
        ({"type": "string", "format": "date"}, "date", False),
    ],
)
def test_json_schemas_of_others_are_read(rules: dict[str, Any], kind: str, nullable: bool) -> None:
    document = {"type": "object", "properties": {"x": rules}, "required": ["x"]}
    field = interchange.from_json_schema(document).field("x")
    assert (field.type, field.nullable) == (kind, nullable)


def test_a_pattern_of_others_may_match_anywhere() -> None:
    document = {"type": "object", "properties": {"x": {"type": "string", "pattern": "b"}}}
    rules = FieldRules(interchange.from_json_schema(document).field("x"))
    assert rules.item("abc") == "abc"
    with pytest.raises(Wrong):
        rules.item("ac")


def test_every_property_that_no_field_can_hold_is_named() -> None:
    document = {
        "type": "object",
        "properties": {"a": {"type": "array"}, "b": {"type": "string"}, "c": {"anyOf": []}},
    }
    with pytest.raises(InvalidInput) as refused:
        interchange.from_json_schema(document)
    assert [fault.path for fault in refused.value.faults] == ["properties[0]", "properties[2]"]
    with pytest.raises(InvalidInput):
        interchange.from_json_schema({"type": "array"})


def test_mlflow_signatures_go_there_and_back() -> None:
    schema = Schema(
        (
            Field("a", "int64", nullable=False),
            Field("b", "float64"),
            Field("c", "string"),
            Field("d", "timestamp"),
            Field("e", "bool", nullable=False),
            Field("f", "float32"),
            Field("g", "int32"),
            Field("h", "binary"),
        )
    )
    found = Signature(schema, Schema((Field("p", "float64", nullable=False),)))
    there = interchange.to_mlflow(found)
    assert json.loads(there["inputs"])[0] == {"type": "long", "name": "a", "required": True}
    assert interchange.from_mlflow(there) == found


def test_mlflow_reads_what_we_write() -> None:
    from mlflow.models import ModelSignature

    found = Signature(
        Schema((Field("a", "uint64", nullable=False), Field("b", "date"))),
        Schema((Field("p", "float64"),)),
    )
    theirs = ModelSignature.from_dict(interchange.to_mlflow(found))
    assert theirs.inputs.input_names() == ["a", "b"]
    assert [str(kind) for kind in theirs.inputs.input_types()] == [
        "DataType.long", "DataType.datetime",
    ]  # fmt: skip
    back = interchange.from_mlflow(theirs.to_dict())
    assert [field.type for field in back.inputs.fields] == ["int64", "timestamp"]


def test_mlflow_tensors_of_one_value_a_row_are_columns() -> None:
    column = {"type": "tensor", "tensor-spec": {"dtype": "float64", "shape": [-1]}}
    found = interchange.from_mlflow({"inputs": json.dumps([column]), "outputs": None})
    assert found.inputs.fields == (Field("0", "float64", nullable=False),)
    image = {"type": "tensor", "tensor-spec": {"dtype": "float64", "shape": [-1, 28, 28]}}
    nested = {"type": "array", "items": {"type": "string"}, "name": "tags"}
    with pytest.raises(InvalidInput) as refused:
        interchange.from_mlflow({"inputs": json.dumps([column, image, nested])})
    assert [fault.path for fault in refused.value.faults] == ["inputs[1]", "inputs[2]"]


def test_tensor_metadata_goes_there_and_back() -> None:
    kinds = [kind for kind in FIELD_TYPES if kind not in ("binary", "timestamp", "date")]
    schema = Schema(tuple(Field(kind, kind, nullable=False) for kind in kinds))  # type: ignore[arg-type]
    tensors = interchange.to_oip(schema)
    assert {"name": "float32", "datatype": "FP32", "shape": [-1]} in tensors
    assert interchange.from_oip(tensors) == schema
    with pytest.raises(InvalidInput) as refused:
        interchange.from_oip(
            [{"name": "a", "datatype": "X"}, {"name": "b", "datatype": "FP32", "shape": [3, 3]}]
        )
    assert len(refused.value.faults) == 2


def test_a_stated_bound_that_the_type_has_anyway_does_not_come_back() -> None:
    document = interchange.to_json_schema(Schema((Field("n", "uint8", ge=0, le=9),)))
    assert interchange.from_json_schema(document).fields == (Field("n", "uint8", le=9),)
