"""Which signature may take the place of which, and why not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everloop.core.compat import compatible
from everloop.core.model import Signature
from everloop.core.schema import FIELD_TYPES, Field, Schema
from everloop.serving.fields import FieldRules, Wrong

OUT = Schema((Field("p", "float64", nullable=False),))


def signature(*fields: Field, outputs: Schema = OUT, extra: str = "refuse") -> Signature:
    return Signature(Schema(fields, extra=extra), outputs)  # type: ignore[arg-type]


BASE = Field("x", "float64", nullable=False)


@pytest.mark.parametrize(
    ("new", "kind", "backward", "forward"),
    [
        ((BASE,), "backward", (), ()),
        ((BASE, Field("y", "int8")), "backward", (), ("inputs.y: is not known",)),
        (
            (BASE, Field("y", "int8", nullable=False)),
            "breaking",
            ("inputs.y: is required",),
            ("inputs.y: is not known",),
        ),
        ((), "breaking", ("inputs.x: is not known",), ("inputs.x: is required",)),
        ((Field("x", "float64"),), "backward", (), ("inputs.x: takes no null",)),
        (
            (Field("x", "float32", nullable=False),),
            "forward",
            ("inputs.x: takes float32, not float64",),
            (),
        ),
        (
            (Field("x", "string", nullable=False),),
            "breaking",
            ("inputs.x: takes string, not float64",),
            ("inputs.x: takes float64, not string",),
        ),
        (
            (Field("x", "float64", nullable=False, ge=0, le=1),),
            "forward",
            ("inputs.x: takes nothing below 0", "inputs.x: takes nothing above 1"),
            (),
        ),
    ],
)
def test_a_change_of_the_inputs_is_told_with_its_reasons(
    new: tuple[Field, ...], kind: str, backward: tuple[str, ...], forward: tuple[str, ...]
) -> None:
    found = compatible(signature(BASE), signature(*new))
    assert (found.kind, found.backward, found.forward) == (kind, backward, forward)


def test_another_unit_breaks_both_ways() -> None:
    mile = signature(Field("d", "float64", unit="mile"))
    found = compatible(mile, signature(Field("d", "float64", unit="km")))
    assert found.kind == "breaking"
    assert found.backward == ("inputs.d: is in km, not in mile",)
    assert compatible(mile, signature(Field("d", "float64"))).kind == "backward"


def test_text_rules_are_compared() -> None:
    free, tight = Field("c", "string"), Field("c", "string", regex="[A-Z]+", max_length=3)
    found = compatible(signature(free), signature(tight))
    assert found.kind == "forward"
    assert [reason.split(": ")[1].split(" ")[1] for reason in found.backward] == ["only", "nothing"]
    few = signature(Field("c", "string", among=("a", "b")))
    more = signature(Field("c", "string", among=("a", "b", "c")))
    assert compatible(few, more).kind == "backward"
    assert compatible(more, few).backward == ("inputs.c: takes only 'a', 'b'",)


def test_more_outputs_disturb_nobody_and_fewer_do() -> None:
    more = Schema((*OUT.fields, Field("why", "string")))
    assert compatible(signature(BASE), signature(BASE, outputs=more)).kind == "backward"
    needed = Schema((*OUT.fields, Field("why", "string", nullable=False)))
    lost = compatible(signature(BASE, outputs=needed), signature(BASE))
    assert lost.backward == ("outputs.why: is required",)
    assert compatible(signature(BASE, outputs=OUT), signature(BASE, outputs=Schema(()))).backward


def test_open_inputs_take_what_they_do_not_know() -> None:
    found = compatible(signature(BASE, extra="allow"), signature(extra="allow"))
    assert found.backward == ()
    assert found.forward == ("inputs.x: is required",)


fields = st.builds(
    Field,
    st.just("x"),
    st.sampled_from([t for t in FIELD_TYPES if "int" in t or t in ("float64", "bool", "string")]),
    nullable=st.booleans(),
)
values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False),
    st.text(),
)


def takes(field: Field, value: object) -> bool:
    try:
        FieldRules(field).item(value)
    except Wrong:
        return False
    return True


@given(fields, fields, values)
def test_no_request_of_a_compatible_old_signature_is_refused(
    old: Field, new: Field, value: object
) -> None:
    if compatible(signature(old), signature(new)).kind == "backward" and takes(old, value):
        assert takes(new, value)
