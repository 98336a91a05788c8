"""The native door: every method of every service, the same values and errors on both sides."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.types import ASGIApp

from everloop.access.policy import EmbeddedAuthorizer
from everloop.access.remote import remote
from everloop.access.service import Service, action
from everloop.access.wire import (
    HEAD_LENGTH,
    decode_call,
    decode_result,
    encode_call,
    encode_result,
)
from everloop.api import errors, native
from everloop.core.context import acting, current_actor, current_cause
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
from tests.servers import Answer, ask


class Point(msgspec.Struct, frozen=True):
    value: float
    at: datetime
    files: dict[str, bytes] = {}


class EchoService(Service):
    """Gives back what it gets."""

    area = "echo"

    def __init__(self) -> None:
        self._authorizer = EmbeddedAuthorizer()

    @action("echo:read", on="text")
    def text(self, text: str, *, times: int = 1) -> str:
        return text * times

    @action("echo:read")
    def anything(self, value: Any) -> Any:
        return value

    @action("echo:read")
    def table(self, rows: pa.Table, *, note: str | None = None) -> pa.Table:
        return rows

    @action("echo:read")
    def points(self, points: list[Point]) -> dict[str, Point]:
        return {str(index): point for index, point in enumerate(points)}

    @action("echo:read")
    def blob(self, data: bytes) -> tuple[bytes, bytes]:
        return data, data[::-1]

    @action("echo:read")
    def context(self) -> list[str]:
        return [current_actor(), current_cause()]

    @action("echo:fail", on="code")
    def fail(self, code: str) -> None:
        raise ERRORS[code]


ERRORS: dict[str, EverloopError] = {
    error.code: error
    for error in (
        InvalidInput("the rows are wrong", [("rows[3].distance", "is below 0"), ("", "x")]),
        TooLarge("too much"),
        NotFound.named("dataset", "flight", ["flights", "planes"]),
        Conflict("somebody was first", hint="read again", details={"winner": 3}),
        StateError("it is live"),
        NotAllowed("you may not"),
        GateRefused("worse than the champion", details={"verdict": "01J"}),
        MissingExtra.of("s3", "an S3 store"),
        BackendError("the disk is full", hint="free space"),
        UserCodeError("Traceback ..."),
    )
}


class FakeWorkspace:
    """What the door asks of a workspace."""

    actor = "server"

    def authorize(self, action: str) -> None:
        assert action.startswith("echo:")

    def service(self, area: str) -> Service:
        return EchoService()


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> ASGIApp:
    monkeypatch.setattr(native, "AREAS", ("echo",))
    return Starlette(
        routes=native.routes(FakeWorkspace()),  # type: ignore[arg-type]
        exception_handlers={EverloopError: errors.on_everloop_error},
    )


class InProcess:
    """A transport of the remote proxy that asks an application of this process."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    def call(self, path: str, body: bytes, head_length: int) -> tuple[bytes, int]:
        from everloop.errors import error_from_wire

        headers = {
            HEAD_LENGTH: str(head_length),
            "Everloop-Actor": quote(current_actor()),
            "Everloop-Cause": current_cause(),
        }
        answer = ask(self.app, "POST", path, body, headers=headers)
        if answer.status != 200:
            raise error_from_wire(answer.json())
        return answer.body, int(answer.headers[HEAD_LENGTH.lower()])


@pytest.fixture
def echo(door: ASGIApp) -> EchoService:
    return remote(EchoService, InProcess(door))  # type: ignore[arg-type]


def call(door: ASGIApp, method: str, body: bytes, **headers: str) -> Answer:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return ask(door, "POST", f"/api/v1/echo/{method}", body, headers=given)


# --- both sides see the same ------------------------------------------------------------------


def test_arguments_by_position_and_name(echo: EchoService) -> None:
    assert echo.text("ab", times=2) == "abab"
    assert echo.text("ab") == "ab"
    with pytest.raises(TypeError, match="missing a required argument"):
        echo.text()  # type: ignore[call-arg]


def test_table_comes_back_equal_with_its_schema(echo: EchoService) -> None:
    rows = pa.table(
        {
            "at": pa.array([1, None], pa.timestamp("us", "UTC")),
            "name": pa.array(["å", None]).dictionary_encode(),
        }
    ).replace_schema_metadata({"unit": "min"})
    back = echo.table(rows, note="x")
    assert back.equals(rows, check_metadata=True)


def test_structs_with_nan_and_bytes_inside(echo: EchoService) -> None:
    at = datetime(2013, 4, 1, 6, 30, 0, 123456, tzinfo=UTC)
    back = echo.points([Point(math.nan, at, {"model.txt": b"\x00\xff"}), Point(-math.inf, at)])
    assert math.isnan(back["0"].value)
    assert back["0"].files == {"model.txt": b"\x00\xff"}
    assert back["1"] == Point(-math.inf, at)


def test_bytes_and_tuples(echo: EchoService) -> None:
    assert echo.blob(b"abc") == (b"abc", b"cba")
    assert echo.blob(b"") == (b"", b"")


def test_actor_and_cause_travel(echo: EchoService) -> None:
    with acting(actor="loop:flights", cause="01J"):
        assert echo.context() == ["loop:flights", "01J"]
    with acting(actor="Łukasz & Zoë\n%41"):
        assert echo.context() == ["Łukasz & Zoë\n%41", ""]
    assert echo.context() == ["server", ""]


@pytest.mark.parametrize("code", ERRORS)
def test_an_error_is_raised_as_the_same_class(echo: EchoService, code: str) -> None:
    with pytest.raises(type(ERRORS[code])) as caught:
        echo.fail(code)
    raised, original = caught.value, ERRORS[code]
    assert type(raised) is type(original)
    assert (raised.message, raised.hint, raised.details) == (
        original.message,
        original.hint,
        original.details,
    )
    if isinstance(original, InvalidInput):
        assert isinstance(raised, InvalidInput)
        assert raised.faults == original.faults


_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.binary()
    | _TEXT,
    lambda inner: (
        st.lists(inner) | st.dictionaries(_TEXT | st.sampled_from(["$bytes", "$object"]), inner)
    ),
    max_leaves=20,
)


@given(_VALUES)
def test_any_value_survives_call_and_answer(value: Any) -> None:
    sent = decode_call(EchoService.anything, *encode_call({"value": value}))
    assert sent == {"value": value}
    assert decode_result(EchoService.anything, *encode_result(value)) == value


# --- plain JSON, as curl sends it ---------------------------------------------------------------


def test_plain_json_will_do(door: ASGIApp) -> None:
    answer = call(door, "text", b'{"text": "ab", "times": 3}')
    assert (answer.status, answer.json()["value"]) == (200, "ababab")
    assert call(door, "context", b"").json()["value"] == ["server", ""]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{}", "missing"),
        (b'{"text": 5}', "Expected `str`"),
        (b'{"text": null}', "Expected `str`"),
        (b'{"text": "a", "times": "3"}', "Expected `int`"),
        (b'{"text": "a", "times": 1.5}', "Expected `int`"),
        (b'{"text": "a", "time": 1}', "unknown argument"),
        (b"[1]", "object"),
        (b'"text"', "object"),
        (b"{", "JSON"),
        (b"\xff\xfe", "JSON"),
        (b'{"text": "\\ud800"}', "JSON"),
        (b'{"text": "a\\u0000b"}', "NUL"),
        (b'{"text": "a", "times": 9223372036854775808}', "64 bits"),
        (b'{"text": ' + b"[" * 70 + b"]" * 70 + b"}", "nested"),
        (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "JSON"),
        (b'{"text": NaN}', "JSON"),
        (b'{"text": {"$bytes": 0}}', "attachment"),
        (b'{"text": {"$bytes": -1}}', "attachment"),
        (b'{"text": {"$table": "x"}}', "attachment"),
        (b'{"text": {"$float": "1e400"}}', "$object"),
        (b'{"text": {"$where": 1}}', "$object"),
    ],
)
def test_wrong_arguments_are_400_with_the_fault(door: ASGIApp, body: bytes, said: str) -> None:
    answer = call(door, "text", body)
    assert answer.status == 400, answer.text
    assert answer.json()["error_code"] == "invalid_input"
    assert said in answer.text


def test_all_faults_of_a_call_are_told_together(door: ASGIApp) -> None:
    answer = call(door, "text", b'{"times": "x", "tiems": 1}')
    assert {fault["path"] for fault in answer.json()["faults"]} == {"text", "times", "tiems"}


@pytest.mark.parametrize("length", ["-1", "x", "", "1e3", "9" * 30, "٣", "1000"])
def test_a_false_head_length_is_400(door: ASGIApp, length: str) -> None:
    answer = call(door, "context", b'{"value": {}}', Everloop_Head_Length=length)
    assert answer.status == 400


@pytest.mark.parametrize(
    "sizes", ["[-1, 1]", "[1, -1, 2]", "[5]", "[0]", '["a"]', "[1e9]", "[99999999999]", "{}", "5"]
)
def test_false_sizes_of_attachments_are_400(door: ASGIApp, sizes: str) -> None:
    head = f'{{"value": {{}}, "sizes": {sizes}}}'.encode()
    answer = call(door, "context", head + b"xx", Everloop_Head_Length=str(len(head)))
    assert answer.status == 400


@pytest.mark.parametrize("damage", ["cut", "garbage", "offsets"])
def test_a_damaged_table_is_400(door: ASGIApp, damage: str) -> None:
    body, head = encode_call({"rows": pa.table({"name": ["one", "two", "three"] * 50})})
    if damage == "cut":
        stream = body[head : head + 40]
    elif damage == "garbage":
        stream = b"\xff" * 200
    else:  # offsets that point far outside of the text
        stream = body[head:].replace((6).to_bytes(4, "little"), b"\xff\xff\xff\x6f")
    told = json.loads(body[:head])
    told["sizes"] = [len(stream)]
    new_head = json.dumps(told).encode()
    answer = call(door, "table", new_head + stream, Everloop_Head_Length=str(len(new_head)))
    assert answer.status == 400, answer.text


def test_a_body_above_the_limit_is_413(door: ASGIApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "MAX_BODY", 100)
    answer = ask(door, "POST", "/api/v1/echo/context", [b"x" * 60, b"x" * 60])
    assert answer.status == 413
    assert "100 bytes" in answer.json()["message"]


def test_unknown_names_offer_the_nearest(door: ASGIApp) -> None:
    answer = ask(door, "POST", "/api/v1/ecko/text", b"{}")
    assert answer.status == 404
    assert "echo" in answer.json()["hint"]
    answer = call(door, "texts", b"{}")
    assert answer.status == 404
    assert "echo.text" in answer.json()["hint"]


@pytest.mark.parametrize("name", ["_authorizer", "__init__", "area", "__class__"])
def test_what_declares_no_action_cannot_be_called(door: ASGIApp, name: str) -> None:
    assert call(door, name, b"{}").status == 404


def test_a_value_that_cannot_travel_is_said(echo: EchoService) -> None:
    with pytest.raises(InvalidInput, match="object cannot be sent"):
        echo.anything(object())
    with pytest.raises(InvalidInput, match="surrogate"):
        echo.text("\ud800")
