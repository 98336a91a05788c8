"""The table of calls: which handler answers which method and path, and what it is to be asked."""

from __future__ import annotations

import typing
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from everloop.workspace import Workspace

__all__ = ["Call", "Calls"]

#: A handler gets the workspace and its request, and returns the fields of the answer.
Handler = Callable[[Workspace, Any], dict[str, Any]]

_H = TypeVar("_H", bound=Callable[..., Any])


class Call(NamedTuple):
    """One call of the API: the struct that its request is decoded to, and its handler."""

    asked: type
    handler: Handler


class Calls(dict[tuple[str, str], Call]):
    """Calls by method and path; a path may hold ``{name}`` for a segment."""

    def on(self, method: str, path: str) -> Callable[[_H], _H]:
        """Put the decorated handler into the table; its annotation says what it is asked."""

        def put(handler: _H) -> _H:
            self[method, path] = Call(typing.get_type_hints(handler)["asked"], handler)
            return handler

        return put
