"""HttpFiles: files by HTTP GET, asked for only if they changed, whole or not at all.

For a source that somebody declared through a server (`guarded`), only HTTPS to public addresses is
allowed, after each redirect anew, and the connection is made to the very address that was checked:
a source must not become a way to reach what only this process can reach. Hosts that are named in
``EVERLOOP_SOURCE_HOSTS`` are exempt. Proxies of the environment are not used.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import socket
import ssl
import time
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

from everloop.core.addresses import is_public
from everloop.errors import (
    BackendError,
    EverloopError,
    InvalidInput,
    NotAllowed,
    NotFound,
    TooLarge,
)
from everloop.ports.source import RemoteFile

__all__ = ["HttpFiles"]

_REDIRECTS = 5
_STEP_S = 60.0
_PIECE = 1 << 20


class _Target(NamedTuple):
    url: str
    scheme: str
    host: str
    port: int
    path: str


class HttpFiles:
    """Files on web servers.

    Args:
        secret: ``user:password``, or a token; empty sends neither. Only sent to the first host.
        guarded: Whether to keep to the public internet.
        hosts: Hosts (``name`` or ``name:port``) that a guarded source may ask whatever they are.
        most_bytes: Largest file, as it is when it is unpacked.
        timeout_s: For one file as a whole.
    """

    def __init__(
        self,
        secret: str = "",
        *,
        guarded: bool = False,
        hosts: Iterable[str] = (),
        most_bytes: int = 10 << 30,
        timeout_s: float = 1800.0,
    ) -> None:
        self._authorization = _authorization(secret)
        self._guarded = guarded
        self._hosts = frozenset(host.lower() for host in hosts)
        self._most = most_bytes
        self._timeout = timeout_s

    def find(self, location: str) -> list[RemoteFile]:
        """The file itself: HTTP lists nothing."""
        return [RemoteFile(location, -1, "")]

    def fetch(self, file: RemoteFile, known: str, to: BinaryIO) -> RemoteFile | None:
        """Write a file to `to`; None if it did not change."""
        target = _target(file.path)
        first, until = target, time.monotonic() + self._timeout
        for _ in range(_REDIRECTS + 1):
            with self._answer(target, first, known, until) as answer:
                if answer.status in (301, 302, 303, 307, 308):
                    target = _redirected(target, answer.getheader("Location") or "")
                    continue
                if answer.status == 304 and known:
                    return None
                _refuse(answer, target)
                size = self._copy(answer, target, to, until)
                etag = answer.getheader("ETag") or answer.getheader("Last-Modified") or ""
                return RemoteFile(file.path, size, etag)
        raise BackendError(f"{first.url} leads on and on: more than {_REDIRECTS} redirects")

    @contextlib.contextmanager
    def _answer(
        self, target: _Target, first: _Target, known: str, until: float
    ) -> Iterator[http.client.HTTPResponse]:
        # A file that is packed itself must not be unpacked on its way.
        packed = "identity" if target.path.partition("?")[0].endswith(".gz") else "gzip, identity"
        headers = {"Accept-Encoding": packed, "Connection": "close", "User-Agent": "everloop"}
        if known:
            is_tag = known.startswith(('"', "W/"))
            headers["If-None-Match" if is_tag else "If-Modified-Since"] = known
        if self._authorization and (target.scheme, target.host, target.port) == first[1:4]:
            headers["Authorization"] = self._authorization
        try:
            connection = http.client.HTTPConnection(target.host, target.port)
            connection.sock = self._connect(target, until)
            with contextlib.closing(connection):
                connection.request("GET", target.path, headers=headers)
                with contextlib.closing(connection.getresponse()) as answer:
                    yield answer
        except EverloopError:  # one of them is an OSError, too
            raise
        except (OSError, http.client.HTTPException) as error:
            said = str(error) or type(error).__name__
            raise BackendError(
                f"{target.url} cannot be had: {said[:200]}",
                hint="nothing was kept; it can be pulled again",
            ) from error

    def _connect(self, target: _Target, until: float) -> socket.socket:
        addresses = self._addresses(target)
        trouble: OSError = ConnectionError("it has no address")
        for address in addresses:
            left = min(_STEP_S, until - time.monotonic())
            if left <= 0:
                break
            try:
                plain = socket.create_connection((address, target.port), timeout=left)
            except OSError as error:
                trouble = error
                continue
            if target.scheme == "http":
                return plain
            context = ssl.create_default_context()
            return context.wrap_socket(plain, server_hostname=target.host.rstrip("."))
        raise trouble

    def _addresses(self, target: _Target) -> list[str]:
        allowed = not self._guarded or self._hosts & {target.host, f"{target.host}:{target.port}"}
        hint = "the administrator can name the host in EVERLOOP_SOURCE_HOSTS"
        if not allowed and target.scheme != "https":
            raise NotAllowed(f"{target.url} is not asked: wanted https", hint=hint)
        try:
            found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise BackendError(
                f"there is no host {target.host!r}", hint="check its spelling"
            ) from None
        addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
        if not allowed and not all(is_public(address) for address in addresses):
            raise NotAllowed(f"{target.host} has a private or reserved address", hint=hint)
        return addresses

    def _copy(
        self, answer: http.client.HTTPResponse, target: _Target, to: BinaryIO, until: float
    ) -> int:
        length = answer.getheader("Content-Length")
        if length and length.isdecimal() and int(length) > self._most:
            raise _too_large(target, self._most)
        encoding = (answer.getheader("Content-Encoding") or "identity").lower()
        if encoding not in ("identity", "gzip", "x-gzip"):
            raise BackendError(f"{target.url} came packed as {encoding}, which was not asked for")
        unpack = zlib.decompressobj(wbits=31) if encoding != "identity" else None
        size = 0
        while data := answer.read(_PIECE):
            if time.monotonic() > until:
                raise BackendError(f"{target.url} took longer than {self._timeout:g} s")
            for piece in _unpacked(unpack, data, target):
                size += len(piece)
                if size > self._most:
                    raise _too_large(target, self._most)
                to.write(piece)
        # Before Python 3.12 a short answer that is read in pieces raises nothing.
        if answer.length or (unpack is not None and not unpack.eof):
            raise BackendError(
                f"{target.url} broke off after {size} bytes", hint="nothing was kept; pull again"
            )
        return size


def _unpacked(unpack: Any, data: bytes, target: _Target) -> Iterator[bytes]:
    """At most some megabytes at a time, however much a small answer unpacks to."""
    if unpack is None:
        yield data
        return
    try:
        while data:
            piece = unpack.decompress(data, _PIECE)
            data = unpack.unconsumed_tail
            if piece:
                yield piece
    except zlib.error as error:
        raise BackendError(f"{target.url} is damaged: {error}") from error


def _too_large(target: _Target, most: int) -> TooLarge:
    return TooLarge(
        f"{target.url} has more than {most} bytes", hint="give the source a larger most_bytes"
    )


def _target(url: str) -> _Target:
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~") + (
        f"?{quote(parts.query, safe='/%:@!$&()*+,;=~?')}" if parts.query else ""
    )
    port = parts.port or {"http": 80, "https": 443}[scheme]
    shown = urlunsplit((scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    return _Target(shown, scheme, (parts.hostname or "").lower(), port, path)


def _redirected(target: _Target, location: str) -> _Target:
    base = f"{target.scheme}://{target.host}:{target.port}{target.path}"
    try:
        url = urljoin(base, location)
        if not location or urlsplit(url).scheme not in ("http", "https"):
            raise ValueError
        to = _target(url)
    except ValueError:
        raise BackendError(f"{target.url} leads to what is no address") from None
    if target.scheme == "https" and to.scheme == "http":
        raise InvalidInput(f"{target.url} leads from https to http, which is not followed")
    return to


def _refuse(answer: http.client.HTTPResponse, target: _Target) -> None:
    if answer.status == 200:
        return
    if answer.status in (404, 410):
        raise NotFound(f"there is nothing at {target.url} ({answer.status})")
    hints = {
        401: "credentials= says where the password or token is",
        403: "it is not for this user",
    }
    raise BackendError(f"{target.url} answered {answer.status}", hint=hints.get(answer.status, ""))


def _authorization(secret: str) -> str:
    if not secret:
        return ""
    if not (secret.isprintable() and secret.isascii()):
        raise InvalidInput("the credentials hold signs that no header can have")
    if ":" in secret:
        return f"Basic {base64.b64encode(secret.encode()).decode()}"
    return f"Bearer {secret}"
