"""What a browser may be tricked into: DNS rebinding and requests forged by other sites.

The server of one person listens on loopback and asks for no login, so any page in that person's
browser could reach it. Two checks stop this before any door sees the request: the ``Host`` must be
a name of ours (a rebound name is the attacker's), and what changes state must not come from
another site's page (``Sec-Fetch-Site``, ``Origin``). Clients that are no browsers send neither
header and pass.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from everloop.api.errors import native_error
from everloop.errors import NotAllowed

__all__ = ["Guard"]

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
_WILDCARDS = frozenset({"", "0.0.0.0", "::", "[::]"})
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_OWN_SITE = frozenset({b"same-origin", b"none"})
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class Guard:
    """Passes requests on to `app` unless a browser may have been tricked into sending them.

    Args:
        app: The application behind.
        host: The address that the server is bound to. Bound to all addresses, any literal IP
            address is a good ``Host`` too: rebinding needs a name.
        names: Further names that are ours, as a proxy or a name server has them.
    """

    def __init__(self, app: ASGIApp, *, host: str = "127.0.0.1", names: Iterable[str] = ()) -> None:
        self._app = app
        bound = host.lower()
        self._hosts = _LOOPBACK | {bound, f"[{bound}]"} | {name.lower() for name in names}
        self._any_address = bound in _WILDCARDS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if refusal := self._refusal(scope):
            await refusal(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message.setdefault("headers", [])
                there = {name for name, _ in headers}
                message["headers"] = [*headers, *(h for h in _HEADERS if h[0] not in there)]
            await send(message)

        await self._app(scope, receive, with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        hosts: list[bytes] = []
        origin = site = b""
        for name, value in scope["headers"]:
            if name == b"host":
                hosts.append(value)
            elif name == b"origin":
                origin = value
            elif name == b"sec-fetch-site":
                site = value
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            return native_error(
                NotAllowed(
                    "this server does not answer under that Host",
                    hint="use its address; EVERLOOP_ALLOWED_HOSTS names others that it has",
                )
            )
        if scope["method"] in _SAFE_METHODS:
            return None
        own = f"{scope['scheme']}://".encode() + hosts[0]
        if (site and site not in _OWN_SITE) or (origin and origin.lower() != own.lower()):
            return native_error(NotAllowed("pages of other sites may not change anything here"))
        return None

    def _is_ours(self, host: bytes) -> bool:
        name = host.decode("latin-1").lower()
        head, colon, port = name.rpartition(":")
        if colon and port.isdigit():
            name = head
        return name in self._hosts or (self._any_address and _is_address(name))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
