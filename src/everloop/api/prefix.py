"""Serving below a path, for a proxy that hands on more than this server."""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Receive, Scope, Send

from everloop.errors import InvalidInput

__all__ = ["Prefixed", "check_prefix"]

#: Where pages find what their links begin with.
_KEY = "everloop.prefix"


def check_prefix(prefix: str) -> str:
    """The path to serve below, without a slash at its end; empty for none.

    Raises:
        InvalidInput: If it is no plain absolute path.
    """
    plain = prefix.rstrip("/")
    if (plain and not re.fullmatch(r"(/[A-Za-z0-9_.~-]+)+", plain)) or "/.." in plain:
        raise InvalidInput(
            f"{prefix[:80]!r} is no path to serve below", hint="give one such as /everloop"
        )
    return plain


class Prefixed:
    """Takes the prefix off paths; a path without it is served as it is.

    Some proxies take it off themselves, and clients on the inside need not know of it.
    """

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path, raw = scope["path"], scope.get("raw_path") or b""
            scope = {**scope, _KEY: self._prefix}
            if path == self._prefix or path.startswith(f"{self._prefix}/"):
                size = len(self._prefix)  # plain letters: as long in bytes
                scope |= {"path": path[size:] or "/", "raw_path": raw[size:] or b"/"}
        await self._app(scope, receive, send)
