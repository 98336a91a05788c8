"""WebhookNotifier: messages by HTTP POST, to the public internet and to nowhere else.

Whoever may make a webhook names an address that this server then calls from inside the network: it
must not become a way to reach what only the server can reach. So only HTTPS to public addresses is
allowed, the name is resolved anew for each message, every address that it has must be public, and
the connection is made to the very address that was checked. Redirects are not followed, proxies of
the environment are not used. Hosts named in ``EVERLOOP_WEBHOOK_HOSTS`` are exempt.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import urlsplit

from everloop.core.addresses import is_public
from everloop.errors import BackendError, InvalidInput
from everloop.ports.notifier import Receipt

__all__ = ["WebhookNotifier"]

_MAX_URL, _MAX_ANSWER, _MAX_WAIT_S = 2048, 4096, 3600.0
_HOST = re.compile(r"[a-z0-9]([a-z0-9._-]{0,251}[a-z0-9])?\.?|[0-9a-f:.]{2,45}", re.ASCII)
_TEXT = re.compile(r"[!-~]+")


class _Target(NamedTuple):
    scheme: str
    host: str
    port: int
    path: str
    allowed: bool

    @property
    def shown(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        standard = {"http": 80, "https": 443}[self.scheme]
        return host if self.port == standard else f"{host}:{self.port}"


class WebhookNotifier:
    """Posts to webhooks.

    Args:
        hosts: Hosts (``name`` or ``name:port``) that may have any address and take plain HTTP.
        timeout_s: For a whole delivery, from the connection to the end of the answer.
    """

    def __init__(self, hosts: Iterable[str] = (), *, timeout_s: float = 10.0) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)
        self._timeout = timeout_s

    def check(self, url: str) -> None:
        """Return if `url` may be sent to: its form, its host, its addresses."""
        try:
            self._addresses(self._target(url))
        except BackendError as error:
            raise InvalidInput(error.message, hint=error.hint) from None

    def send(self, url: str, body: bytes, headers: dict[str, str]) -> Receipt:
        """Post `body`; the receiver's status is the caller's to judge."""
        target = self._target(url)
        until = time.monotonic() + self._timeout
        addresses = self._addresses(target)
        try:
            with contextlib.closing(self._connect(target, addresses, until)) as sock:
                return self._exchange(sock, target, body, headers, until)
        except (OSError, http.client.HTTPException, ValueError) as error:
            # ValueError: what ssl raises on a socket that was cut while it shook hands.
            said = str(error) or type(error).__name__
            raise BackendError(f"{target.shown} did not answer: {said[:200]}") from error

    def _target(self, url: str) -> _Target:
        if len(url) > _MAX_URL or not _TEXT.fullmatch(url):
            raise InvalidInput(
                "Invalid webhook URL: it must be ASCII without spaces, at most 2048 characters"
            )
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise InvalidInput("Invalid webhook URL: host or port is malformed") from None
        host = (parts.hostname or "").lower()
        if parts.scheme not in ("http", "https"):
            raise InvalidInput(f"Invalid webhook URL scheme: {parts.scheme[:20]!r}, wanted https")
        if not _HOST.fullmatch(host) or parts.username is not None or parts.password is not None:
            raise InvalidInput("Invalid webhook URL: it needs a host, and no user or password")
        port = port or {"http": 80, "https": 443}[parts.scheme]
        allowed = host in self._hosts or f"{host}:{port}" in self._hosts
        if parts.scheme == "http" and not allowed:
            raise InvalidInput(
                "Invalid webhook URL scheme: 'http', wanted https",
                hint="the administrator can name the host in EVERLOOP_WEBHOOK_HOSTS",
            )
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return _Target(parts.scheme, host, port, path, allowed)

    def _addresses(self, target: _Target) -> list[str]:
        try:
            found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise BackendError(
                f"Cannot resolve webhook hostname {target.host!r}", hint="check its spelling"
            ) from None
        addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
        if not target.allowed and not all(is_public(address) for address in addresses):
            # Which address it is would tell the asker what the server's resolver knows.
            raise InvalidInput(
                f"Webhook URL must not resolve to a private or reserved address: {target.host!r}",
                hint="the administrator can name the host in EVERLOOP_WEBHOOK_HOSTS",
            )
        return addresses

    def _connect(self, target: _Target, addresses: list[str], until: float) -> socket.socket:
        """A connection to the first of the checked addresses that takes it."""
        trouble: OSError = ConnectionError("it has no address")
        for address in addresses:
            left = until - time.monotonic()
            if left <= 0:
                break
            try:
                return socket.create_connection((address, target.port), timeout=left)
            except OSError as error:
                trouble = error
        raise trouble

    def _exchange(
        self,
        sock: socket.socket,
        target: _Target,
        body: bytes,
        headers: dict[str, str],
        until: float,
    ) -> Receipt:
        if target.scheme == "https":
            sock = ssl.create_default_context().wrap_socket(
                sock, server_hostname=target.host.rstrip("."), do_handshake_on_connect=False
            )
        # A timeout of the socket is one for each read: a receiver that drips would never end.
        watch = threading.Timer(max(0.0, until - time.monotonic()), _cut, (sock,))
        watch.daemon = True
        watch.start()
        connection = http.client.HTTPConnection(target.host, target.port)
        connection.sock = sock
        try:
            if isinstance(sock, ssl.SSLSocket):
                sock.do_handshake()
            sent = {"Host": target.shown, "Connection": "close", **headers}
            connection.request("POST", target.path, body, sent)
            answer = connection.getresponse()
            text = answer.read(_MAX_ANSWER).decode(errors="replace")
            return Receipt(answer.status, text, _wait(answer.getheader("Retry-After")))
        finally:
            watch.cancel()
            connection.close()


def _cut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it is closed already
        sock.shutdown(socket.SHUT_RDWR)


def _wait(header: str | None) -> float:
    """Seconds of a ``Retry-After``; a date is not understood and counts as none."""
    if header is None or not (header.isascii() and header.isdigit()):
        return 0.0
    return min(float(header[:9]), _MAX_WAIT_S)
