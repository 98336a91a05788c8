"""A page of another site can neither reach the loopback server by rebinding nor forge a request."""

from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from everloop.api.guard import Guard
from tests.servers import ask


def guarded(host: str = "127.0.0.1") -> ASGIApp:
    async def answer(request: Request) -> PlainTextResponse:
        return PlainTextResponse("here")

    app = Starlette(routes=[Route("/", answer, methods=["GET", "POST", "DELETE"])])
    return Guard(app, host=host)


@pytest.mark.parametrize(
    "host", ["127.0.0.1:7410", "localhost", "LOCALHOST:7410", "[::1]:7410", "[::1]"]
)
def test_loopback_names_are_answered(host: str) -> None:
    assert ask(guarded(), "GET", "/", host=host).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:7410",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "10.0.0.7:7410",
        "127.0.0.1:7410:80",
        "127.0.0.1:",
        "",
        "user@127.0.0.1",
        "[::1",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_foreign_host_is_refused(host: str, method: str) -> None:
    answer = ask(guarded(), method, "/", host=host)
    assert answer.status == 403
    assert answer.json()["error_code"] == "not_allowed"
    assert "evil" not in answer.text


def test_two_hosts_are_refused() -> None:
    assert ask(guarded(), "GET", "/", headers={"Host": "evil.example"}).status == 403


def test_the_bound_host_is_answered() -> None:
    assert ask(guarded("mlops.example"), "GET", "/", host="mlops.example:80").status == 200
    assert ask(guarded("10.0.0.7"), "GET", "/", host="10.0.0.7:7410").status == 200
    assert ask(guarded("::1"), "GET", "/", host="[::1]:7410").status == 200


def test_bound_to_all_any_address_but_no_name_is_answered() -> None:
    app = guarded("0.0.0.0")
    assert ask(app, "GET", "/", host="10.0.0.7:7410").status == 200
    assert ask(app, "GET", "/", host="[fe80::1]:7410").status == 200
    assert ask(app, "GET", "/", host="rebound.example").status == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:3000"},
        {"Origin": "https://127.0.0.1:7410"},
        {"Origin": "http://127.0.0.1:7410", "Sec-Fetch-Site": "cross-site"},
    ],
)
@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_other_sites_may_change_nothing(headers: dict[str, str], method: str) -> None:
    assert ask(guarded(), method, "/", headers=headers).status == 403


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "http://127.0.0.1:7410", "Sec-Fetch-Site": "same-origin"},
    ],
)
def test_own_pages_and_programs_may(headers: dict[str, str]) -> None:
    assert ask(guarded(), "POST", "/", headers=headers).status == 200


def test_a_link_from_another_site_may_be_followed() -> None:
    answer = ask(guarded(), "GET", "/", headers={"Sec-Fetch-Site": "cross-site"})
    assert answer.status == 200
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
