"""Refusals on real connections: odd requests, many at once, and credentials that end under load."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

import everloop as ev
from everloop.access import secrets
from everloop.workspace import Workspace
from tests.servers import serve


class Place(NamedTuple):
    workspace: Workspace
    url: str
    token: str


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setattr(secrets, "_LOG_N", 4)
    with ev.open(tmp_path / ".everloop") as workspace:
        workspace.access.create_user("ann", "admin", password="correct horse battery")
        workspace.access.create_user("bob", "contributor", password="correct horse battery")
        token = workspace.access.create_token("ann").secret
        with serve(workspace) as url:
            yield Place(workspace, url, token)


def statuses(url: str, data: bytes, *, answers: int = 1) -> list[int]:
    """The status of each answer to what is sent on one connection, as it is."""
    port, told, found = int(url.rpartition(":")[2]), b"", []
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(data)
        while len(found) < answers and (piece := connection.recv(65536)):
            told += piece
            found = re.findall(rb"HTTP/1\.\d (\d{3}) ", told)
    return [int(status) for status in found]


HOST = b"Host: 127.0.0.1\r\n"


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /version HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /version HTTP/1.0\r\n" + HOST + b"\r\n",
        b"GET http://127.0.0.1/version HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /version?/health HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /version#/health HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /health/../version HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /%2e%2e/health HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /version HTTP/1.1\r\n" + HOST + b"Authorization : Bearer TOKEN\r\n\r\n",
        b"GET /version HTTP/1.1\r\n" + HOST + b"Authorization: Bearer\r\n TOKEN\r\n\r\n",
        b"GET /version HTTP/1.1\r\n" + HOST + b"Proxy-Authorization: Bearer TOKEN\r\n\r\n",
        b"GET /version HTTP/1.1\r\n" + HOST + b"Cookie: token=TOKEN\r\n\r\n",
        b"GET /version?token=TOKEN HTTP/1.1\r\n" + HOST + b"\r\n",
    ],
)
def test_odd_requests_are_refused(place: Place, request_: bytes) -> None:
    answers = statuses(place.url, request_.replace(b"TOKEN", place.token.encode()))
    assert answers in ([400], [401])


def test_on_one_connection_each_request_is_asked(place: Place) -> None:
    login = b"Authorization: Bearer " + place.token.encode() + b"\r\n"
    first = b"GET /version HTTP/1.1\r\n" + HOST + login + b"\r\n"
    second = b"GET /version HTTP/1.1\r\n" + HOST + b"\r\n"
    assert statuses(place.url, first + second + first, answers=3) == [200, 401, 200]


def test_what_is_hidden_in_a_body_is_no_request(place: Place) -> None:
    inner = b"GET /version HTTP/1.1\r\n" + HOST + b"\r\n"
    head = b"POST /health HTTP/1.1\r\n" + HOST
    both = head + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + inner
    assert statuses(place.url, both, answers=2) == [400]


def test_requests_of_two_users_at_once_are_not_mixed(place: Place) -> None:
    def author(number: int) -> tuple[str, str]:
        who = ("ann", "bob")[number % 2]
        answer = httpx.post(
            f"{place.url}/api/v1/tracking/create_run",
            json={"experiment": "e"},
            auth=(who, "correct horse battery"),
            timeout=60,
        )
        assert answer.status_code == 200, answer.text
        return who, answer.json()["value"]["actor"]

    with ThreadPoolExecutor(8) as pool:
        for who, actor in pool.map(author, range(40)):
            assert actor == who


def test_a_revocation_under_load_lets_nothing_through_after_five_seconds(place: Place) -> None:
    made = place.workspace.access.create_token("bob")
    login = {"Authorization": f"Bearer {made.secret}"}
    revoked_at: list[float] = []
    late: list[float] = []
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=place.url, headers=login, timeout=60) as client:
            while not stop.is_set():
                began = time.monotonic()
                status = client.get("/version").status_code
                if status == 200 and revoked_at and began > revoked_at[0] + 5:
                    late.append(began)

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        with ev.open(place.workspace.location) as other:  # as another process would
            other.access.revoke_token(made.token.id)
        revoked_at.append(time.monotonic())
        with httpx.Client(base_url=place.url, headers=login, timeout=60) as client:
            while client.get("/version").status_code == 200:
                assert time.monotonic() < revoked_at[0] + 5
        assert client.is_closed
        stop.set()
        for one in asking:
            one.result()
    assert late == []
