"""Posting outside: to public addresses alone, to the one that was checked, in bounded time."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import pytest

from everloop.backends.notify import webhook
from everloop.backends.notify.webhook import WebhookNotifier
from everloop.core.addresses import is_public
from everloop.errors import BackendError, InvalidInput
from tests.receivers import Receiver, receiving


@pytest.fixture
def receiver() -> Any:
    with receiving() as opened:
        yield opened


def resolve(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[str]:
    """Make every name resolve to `addresses`; returns the names that were asked for."""
    asked: list[str] = []

    def found(host: str, port: int, **options: object) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (item, port)) for item in addresses]

    monkeypatch.setattr(webhook.socket, "getaddrinfo", found)
    return asked


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.9.9.9",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "239.1.1.1",
        "255.255.255.255",
        "240.0.0.1",
        "::1",
        "::",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fd00:ec2::254",
        "fec0::1",
        "::8.8.8.8",
        "ff02::1",
        "2001:db8::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::a00:1",
        "2002:7f00:1::",
        "2001:0:7f00:1::1",
        "nonsense",
        "",
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "64:ff9b::808:808"])
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/x",
        "ftp://example.org/x",
        "file:///etc/passwd",
        "gopher://example.org",
        "example.org",
        "",
        "https://",
        "https:///path",
        "https://user:secret@example.org/",
        "https://user@example.org/",
        "https://example.org:99999/",
        "https://example.org:x/",
        "https://exa mple.org/",
        "https://example.org/\r\nX-Evil: 1",
        "https://example.org/\n",
        "https://ex\u0430mple.org/",
        "https://[::1",
        "https://example.org\\@127.0.0.1/",
        "https://" + "a" * 3000,
    ],
)
def test_urls_that_are_none_for_a_webhook(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = resolve(monkeypatch, "8.8.8.8")
    with pytest.raises(InvalidInput, match="webhook URL"):
        WebhookNotifier().check(url)
    assert asked == []


@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["::1"], ["169.254.169.254"]],
)
def test_name_with_any_address_inside_is_refused(
    addresses: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve(monkeypatch, *addresses)
    with pytest.raises(InvalidInput, match="private or reserved") as caught:
        WebhookNotifier().check("https://example.org/x")
    assert not any(address in str(caught.value) for address in addresses)
    with pytest.raises(InvalidInput, match="private or reserved"):
        WebhookNotifier().send("https://example.org/x", b"", {})


@pytest.mark.parametrize("url", ["https://2130706433/", "https://0x7f.1/", "https://localhost/"])
def test_other_spellings_of_loopback_are_refused(url: str) -> None:
    with pytest.raises(InvalidInput):
        WebhookNotifier().check(url)


def test_name_that_does_not_resolve_is_refused_at_once_and_tried_again_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*args: object, **options: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(webhook.socket, "getaddrinfo", fails)
    with pytest.raises(InvalidInput, match="Cannot resolve"):
        WebhookNotifier().check("https://example.org/")
    with pytest.raises(BackendError, match="Cannot resolve"):
        WebhookNotifier().send("https://example.org/", b"", {})


def test_name_that_moved_inside_after_the_check_is_not_called(
    monkeypatch: pytest.MonkeyPatch, receiver: Receiver
) -> None:
    notifier = WebhookNotifier()
    resolve(monkeypatch, "8.8.8.8")
    url = f"https://example.org:{receiver.url.rsplit(':', 1)[1]}/"
    notifier.check(url)
    resolve(monkeypatch, "127.0.0.1")
    with pytest.raises(InvalidInput):
        notifier.send(url, b"{}", {})
    assert receiver.came == []


def test_connection_goes_to_the_address_that_was_checked(
    monkeypatch: pytest.MonkeyPatch, receiver: Receiver
) -> None:
    port = receiver.url.rsplit(":", 1)[1]
    asked = resolve(monkeypatch, "127.0.0.1")
    called: list[Any] = []
    connect = socket.create_connection

    def noted(address: Any, **options: Any) -> socket.socket:
        called.append(address)
        monkeypatch.undo()  # connecting by number asks the resolver too
        return connect(address, **options)

    monkeypatch.setattr(webhook.socket, "create_connection", noted)
    notifier = WebhookNotifier([f"hooks.internal:{port}"])
    receipt = notifier.send(f"http://hooks.internal:{port}/a?b=c", b"{}", {"X-Test": "1"})
    assert (receipt.status, receipt.body) == (200, "taken")
    assert asked == ["hooks.internal"]
    assert called == [("127.0.0.1", int(port))]
    [came] = receiver.came
    assert (came.path, came.body) == ("/a?b=c", b"{}")
    assert came.headers["host"] == f"hooks.internal:{port}"
    assert came.headers["x-test"] == "1"


def test_allowed_host_is_that_host_and_port_alone(receiver: Receiver) -> None:
    notifier = WebhookNotifier([receiver.host])
    notifier.check(f"{receiver.url}/x")
    with pytest.raises(InvalidInput):
        notifier.check("http://127.0.0.1:1/x")
    with pytest.raises(InvalidInput):
        notifier.check(f"http://127.0.0.1.example.org:{receiver.host.rsplit(':')[-1]}/x")


def test_redirects_are_not_followed(receiver: Receiver) -> None:
    receiver.answers = [(302, {"Location": f"{receiver.url}/inside"})]
    receipt = WebhookNotifier([receiver.host]).send(f"{receiver.url}/x", b"{}", {})
    assert receipt.status == 302
    assert [item.path for item in receiver.came] == ["/x"]


@pytest.mark.parametrize(
    ("header", "seconds"), [("7", 7.0), ("99999999999", 3600.0), ("Wed, 21 Oct", 0.0), ("-1", 0.0)]
)
def test_retry_after(receiver: Receiver, header: str, seconds: float) -> None:
    receiver.answers = [(429, {"Retry-After": header})]
    receipt = WebhookNotifier([receiver.host]).send(receiver.url, b"{}", {})
    assert (receipt.status, receipt.retry_after_s) == (429, seconds)


def test_receiver_that_drips_is_cut_off(receiver: Receiver) -> None:
    gone = threading.Event()

    def drip(handler: Any) -> None:
        deadline = time.monotonic() + 30
        handler.wfile.write(b"HTTP/1.0 2")
        try:
            while time.monotonic() < deadline:
                handler.wfile.write(b"x")
                gone.wait(0.02)
        except OSError:
            gone.set()

    receiver.act = drip
    with pytest.raises(BackendError, match="did not answer"):
        WebhookNotifier([receiver.host], timeout_s=0.3).send(receiver.url, b"{}", {})
    assert gone.wait(20), "the connection was kept open"


def test_port_that_nobody_listens_on_is_a_backend_error() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(BackendError, match="did not answer"):
            WebhookNotifier([host]).send(f"http://{host}/", b"", {})


def test_receiver_without_a_certificate_is_a_backend_error(receiver: Receiver) -> None:
    with pytest.raises(BackendError, match="did not answer"):
        WebhookNotifier([receiver.host]).send(f"https://{receiver.host}/", b"", {})
    assert receiver.came == []


def test_long_answer_is_cut(receiver: Receiver) -> None:
    def talk(handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(b"x" * 10_000)

    receiver.act = talk
    assert WebhookNotifier([receiver.host]).send(receiver.url, b"", {}).body == "x" * 4096
