"""The remote proxy: the same services over HTTP, by one generic class.

A call is ``POST /api/v1/<area>/<method>``. An error on the other side is raised here as the same
class with the same message.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import inspect
import os
import weakref
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import msgspec

from everloop.access.service import Service, actions_of
from everloop.access.wire import HEAD_LENGTH, decode_result, encode_call
from everloop.core.context import current_actor, current_cause
from everloop.errors import BackendError, InvalidInput, error_from_wire

__all__ = ["Transport", "remote"]

_S = TypeVar("_S", bound=Service)


class Transport:
    """Keep-alive connections to one server; any thread takes an idle one, or opens another.

    Args:
        url: ``http://host:port``.
        actor: The name that calls are made under; a server that knows who asks does not heed it.
        authorization: The ``Authorization`` header of every call; empty sends none.
        timeout_s: Longest wait for an answer, seconds.
    """

    def __init__(
        self, url: str, *, actor: str = "", authorization: str = "", timeout_s: float = 120
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidInput(f"{url!r} is no address of a server", hint="http://host:port")
        self.url = url.rstrip("/")
        self._host = parts.netloc
        self._prefix = parts.path.rstrip("/")
        self._class = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        self._timeout = timeout_s
        self._actor = actor
        self._login = {"Authorization": authorization} if authorization else {}
        self._idle: list[http.client.HTTPConnection] = []
        self._closed = False
        _transports.add(self)

    def call(self, path: str, body: bytes, head_length: int) -> tuple[bytes, int]:
        """Post `body` and return the answer's body and the length of its head.

        Raises:
            EverloopError: As raised on the other side.
            BackendError: If the server cannot be reached or answers something else.
        """
        headers = {
            "Content-Type": "application/octet-stream",
            HEAD_LENGTH: str(head_length),
            # A header holds ASCII only, a name does not.
            "Everloop-Actor": quote(current_actor() or self._actor),
            "Everloop-Cause": current_cause(),
            **self._login,
        }
        try:
            status, answer_head, data = self._exchange(self._prefix + path, body, headers)
        except (OSError, http.client.HTTPException) as error:
            raise BackendError(
                f"the server {self.url} does not answer: {error}",
                hint="start one with: everloop server",
            ) from error
        if status != 200:
            raise self._refusal(status, data)
        return data, int(answer_head or len(data))

    def _exchange(
        self, path: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, str | None, bytes]:
        try:
            connection = self._idle.pop()
        except IndexError:
            return self._send(self._open(), path, body, headers)
        try:
            return self._send(connection, path, body, headers)
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            # A kept connection may have been closed meanwhile; on a fresh one it is a real failure.
            return self._send(self._open(), path, body, headers)

    def _send(
        self,
        connection: http.client.HTTPConnection,
        path: str,
        body: bytes,
        headers: dict[str, str],
    ) -> tuple[int, str | None, bytes]:
        try:
            connection.request("POST", path, body, headers)
            answer = connection.getresponse()
            data = answer.read()
        except BaseException:  # also Ctrl-C: what is left of the answer must not meet the next call
            connection.close()
            raise
        self._idle.append(connection)
        if self._closed:  # meanwhile, by another thread: nobody would close this one any more
            self.close()
        return answer.status, answer.headers.get(HEAD_LENGTH), data

    def _open(self) -> http.client.HTTPConnection:
        return self._class(self._host, timeout=self._timeout)

    def _refusal(self, status: int, data: bytes) -> Exception:
        try:
            error = error_from_wire(msgspec.json.decode(data, type=dict[str, Any]))
            if status == 401 and not self._login:
                error.hint = "set EVERLOOP_TOKEN, or write http://user:password@host:port"
            return error
        except msgspec.DecodeError:
            return BackendError(
                f"the server {self.url} answered {status}, and not as Everloop does"
            )

    def close(self) -> None:
        """Close the connections that are idle, and those in use when their call ends.

        Safe to call twice; a call made afterwards opens a connection for itself alone.
        """
        self._closed = True
        with contextlib.suppress(IndexError):  # two threads may close at once
            while True:
                self._idle.pop().close()


_transports: weakref.WeakSet[Transport] = weakref.WeakSet()


def _drop_connections_in_child() -> None:
    # Answers to both sides of a fork would mix on one connection.
    for transport in list(_transports):
        transport._idle = []


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_connections_in_child)


def remote(service: type[_S], transport: Transport) -> _S:
    """A stand-in for `service` whose methods are executed by the server behind `transport`."""
    methods = {
        name: _remote_method(service, name, getattr(service, name)) for name in actions_of(service)
    }
    cls = type(f"Remote{service.__name__}", (), {"_transport": transport, **methods})
    return cls()  # type: ignore[no-any-return]


def _remote_method(service: type[Service], name: str, method: Any) -> Any:
    signature = inspect.signature(method)
    path = f"/api/v1/{service.area}/{name}"

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(self, *args, **kwargs)
        arguments = {key: value for key, value in bound.arguments.items() if key != "self"}
        body, head = encode_call(arguments)
        data, answer_head = self._transport.call(path, body, head)
        return decode_result(method, data, answer_head)

    return call
