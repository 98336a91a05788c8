"""The wire: what a method was given and gave back is the same on the other side."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everloop.access.wire import decode_call, decode_result, encode_call, encode_result
from everloop.core.schema import Field, Schema
from everloop.errors import (
    Conflict,
    EverloopError,
    InvalidInput,
    NotFound,
    UserCodeError,
    error_from_wire,
    to_wire,
)

# A NUL cannot be stored by every catalog, so the wire refuses it: tests/api/test_native.py.
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)))
SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | TEXTS
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=10
)


class Example:
    def call(
        self,
        name: str,
        rows: pa.Table,
        *,
        schema: Schema | None = None,
        at: datetime | None = None,
        mode: Literal["append", "replace"] = "append",
        blob: bytes = b"",
        parts: dict[str, bytes] | None = None,
        extra: Any = None,
    ) -> None:
        """Take one of each."""

    def rows(self) -> tuple[int, pa.Table]:
        return 1, pa.table({"x": [1]})

    def tree(self) -> Any:
        return None


def through(**arguments: Any) -> dict[str, Any]:
    return decode_call(Example.call, *encode_call(arguments))


def test_every_kind_of_argument_arrives() -> None:
    given_: dict[str, Any] = {
        "name": "flights",
        "rows": pa.table({"x": [1, None], "s": ["ä", ""]}),
        "schema": Schema((Field("x", "int64", ge=0, among=(1, 2)),), key=("x",)),
        "at": datetime(2013, 4, 1, 6, 30, 0, 1, UTC),
        "mode": "replace",
        "blob": bytes(range(256)),
        "parts": {"a": b"", "b": b"xyz"},
        "extra": {"deep": [1, 2.5, None]},
    }
    assert through(**given_) == given_


def test_result_with_a_table_arrives() -> None:
    number, table = decode_result(Example.rows, *encode_result(Example().rows()))
    assert (number, table.to_pylist()) == (1, [{"x": 1}])


@given(TREES.filter(lambda tree: not _looks_attached(tree)))
def test_any_tree_arrives(tree: Any) -> None:
    assert decode_result(Example.tree, *encode_result(tree)) == tree


def _looks_attached(tree: Any) -> bool:
    if isinstance(tree, dict):
        return bool({"$bytes", "$table"} & tree.keys()) or any(map(_looks_attached, tree.values()))
    return isinstance(tree, list) and any(map(_looks_attached, tree))


def test_every_wrong_argument_is_named() -> None:
    with pytest.raises(InvalidInput) as got:
        through(rows=b"no table", mode="x", at="yesterday", nonsense=1)
    assert {fault.path for fault in got.value.faults} == {"name", "rows", "mode", "at", "nonsense"}


@given(st.binary(max_size=60), st.integers(-5, 70))
def test_garbage_is_refused_not_raised(body: bytes, head: int) -> None:
    with pytest.raises(InvalidInput):
        decode_call(Example.call, body, head)


@pytest.mark.parametrize(
    "head",
    [
        b'{"value":{"rows":{"$table":0}},"sizes":[]}',
        b'{"value":{"rows":{"$table":"0"}},"sizes":[]}',
        b'{"value":{"rows":{"$table":-1}},"sizes":[0]}',
        b'{"value":[],"sizes":[]}',
        b'{"value":{},"sizes":[-1]}',
        b'{"value":{},"sizes":[5]}',
        b'{"value":{},"sizes":"x"}',
        b"[]",
        b"\xff",
    ],
)
def test_forged_head_is_refused(head: bytes) -> None:
    with pytest.raises(InvalidInput):
        decode_call(Example.call, head, len(head))


def test_attached_bytes_that_are_no_table_are_refused() -> None:
    head = b'{"value":{"name":"d","rows":{"$table":0}},"sizes":[4]}'
    with pytest.raises(InvalidInput, match="no Arrow stream"):
        decode_call(Example.call, head + b"junk", len(head))


def test_value_that_cannot_travel_is_refused() -> None:
    with pytest.raises(InvalidInput, match="object cannot be sent"):
        encode_call({"x": object()})


@pytest.mark.parametrize(
    "error",
    [
        EverloopError("e", hint="h"),
        InvalidInput("bad", [("rows[1].x", "is null")], hint="h", details={"total": 1}),
        NotFound.named("model", "dely", ["delay"]),
        Conflict("taken", details={"winner": 3}),
        UserCodeError("Traceback..."),
    ],
)
def test_error_is_the_same_on_the_other_side(error: EverloopError) -> None:
    again = error_from_wire(to_wire(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert again.details == error.details
    assert getattr(again, "faults", None) == getattr(error, "faults", None)


def test_unknown_error_of_a_newer_server_is_still_an_error() -> None:
    again = error_from_wire({"error_code": "from_the_future", "message": "m"})
    assert type(again) is EverloopError
    assert again.message == "m"
