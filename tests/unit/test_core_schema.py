"""Schema: identity, what is wrong with a definition, what may follow it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everloop.core.schema import FIELD_TYPES, Check, Field, Schema, canonical_json
from everloop.errors import InvalidInput, NotFound


def schema(**options: Any) -> Schema:
    return Schema((Field("a", "int64"), Field("b", "string")), **options)


def faults_of(*fields: Field, **options: Any) -> list[str]:
    with pytest.raises(InvalidInput) as got:
        Schema(fields, **options)
    return [str(fault) for fault in got.value.faults]


@given(
    st.builds(
        Field,
        st.text(min_size=1, max_size=3),
        st.sampled_from(["int64", "float64"]),
        nullable=st.booleans(),
        ge=st.none() | st.integers(-9, 0) | st.floats(-9, 0),
        le=st.none() | st.integers(1, 9) | st.floats(1, 9),
        among=st.lists(st.integers(0, 9), max_size=3),
        unique=st.booleans(),
        unit=st.text(max_size=3),
    )
)
def test_schema_is_the_same_after_a_journey(field: Field) -> None:
    made = Schema([field], [Check("c", "a > 0")])  # type: ignore[arg-type]
    again = msgspec.json.decode(msgspec.json.encode(made), type=Schema)
    assert again == made
    assert again.digest == made.digest


def test_digest_tells_every_difference() -> None:
    made = [
        schema(),
        schema(key=("a",)),
        schema(time="b"),
        schema(extra="allow"),
        schema(checks=(Check("c", "a > 0"),)),
        schema(checks=(Check("c", "a > 1"),)),
        Schema((Field("b", "string"), Field("a", "int64"))),
        Schema((Field("a", "int64", unit="mile"), Field("b", "string"))),
    ]
    assert len({one.digest for one in made}) == len(made)


def test_every_fault_of_a_definition_is_named() -> None:
    found = faults_of(
        Field("", "int64"),
        Field("t", "text"),  # type: ignore[arg-type]
        Field("s", "string", ge=1),
        Field("n", "int64", ge=2, le=1, regex="x", max_length=3),
        Field("n", "int64"),
        key=("z",),
        time="y",
    )
    assert found == [
        "fields: a field needs a name",
        "fields.t: unknown type 'text'",
        "fields.s: bounds need a number, not string",
        "fields.n: ge 2.0 is above le 1.0",
        "fields.n: regex and max_length need text, not int64",
        "fields: 'n' stands twice",
        "key: no field 'z'",
        "time: no field 'y'",
    ]


@pytest.mark.parametrize(
    "regex",
    [
        "(",
        "[a",
        "*",
        "(?=a)",
        "(?!a)x",
        "(?<=a)b",
        r"(a)\1",
        "(?P<n>a)(?P=n)",
        "a++a",
        "a{2}+",
        "(?>a)b",
        "(?#c)a",
        r"a\Z",
        "a{,3}",
        "(?x)a # b",
        "(?a)b",
        "(?i-x:a)",
        "[[a]]",
        "[a&&b]",
        "[a--b]",
        "[^a||b]",
        "[a~~b]",
    ],
)
def test_regex_that_engines_read_differently_is_refused(regex: str) -> None:
    [fault] = faults_of(Field("s", "string", regex=regex))
    assert fault.startswith("fields.s: regex")


@pytest.mark.parametrize(
    "regex",
    [
        "[A-Z]{2}",
        r"\d+",
        r"\\1",
        r"\(=",
        "(?i)ab",
        "(?:a|b)+",
        r"\(\?=a",
        "[*+]+",
        r"\++",
        "[(?=]",
        r"[\[&\&]",
        "(?i-s:a)",
        r"\{,3",
    ],
)
def test_plain_regex_is_taken(regex: str) -> None:
    assert list(Field("s", "string", regex=regex).faults()) == []


@pytest.mark.parametrize(
    ("kind", "among"),
    [
        ("int8", (1, 300)),
        ("uint8", (1, -1)),
        ("int64", (1, 2**63)),
        ("int64", (1.5,)),
        ("int64", (True,)),
        ("float64", ("1",)),
        ("float64", (float("nan"),)),
        ("string", (1,)),
        ("bool", (1,)),
        ("date", ("2013-01-01",)),
    ],
)
def test_allowed_value_of_another_type_is_refused(kind: Any, among: tuple[Any, ...]) -> None:
    assert faults_of(Field("x", kind, among=among))[0].startswith("fields.x: among holds")


@pytest.mark.parametrize("bound", [float("nan"), float("inf")])
def test_bound_must_be_finite(bound: float) -> None:
    assert "finite" in faults_of(Field("x", "float64", le=bound))[0]


def test_checks_have_names_of_their_own() -> None:
    checks = (Check("c", "a > 0"), Check("c", "a > 1"), Check("", "a > 2"))
    assert faults_of(Field("a", "int64"), checks=checks) == [
        "checks: a check needs a name",
        "checks: 'c' stands twice",
    ]


def test_unknown_field_offers_near_ones() -> None:
    made = Schema((Field("distance", "float64"),))
    assert made.field("distance").type == "float64"
    with pytest.raises(NotFound, match="did you mean 'distance'"):
        made.field("distanse")
    with pytest.raises(NotFound):
        made.select(["x"])


def test_select_orders_fields_and_leaves_rules_out() -> None:
    made = schema(key=("a",), checks=(Check("c", "a > 0"),)).select(["b", "a"])
    assert made == Schema((Field("b", "string"), Field("a", "int64")))


def test_numeric_fields_are_known() -> None:
    numeric = {kind for kind in FIELD_TYPES if Field("x", kind).is_numeric}  # type: ignore[arg-type]
    assert numeric == {k for k in FIELD_TYPES if k.lstrip("u").startswith(("int", "float"))}


def test_canonical_json_sorts_and_refuses_nan() -> None:
    assert canonical_json({"b": 1, "a": ["ä", None]}) == '{"a":["ä",null],"b":1}'.encode()
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(float("nan"))
