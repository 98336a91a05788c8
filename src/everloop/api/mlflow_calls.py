"""The table of calls: which handler answers which method and path, and what it is to be asked.

And what every answer of this door has in common.
"""

from __future__ import annotations

import typing
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from everloop.api.mlflow_wire import error_answer
from everloop.errors import EverloopError
from everloop.workspace import Workspace

__all__ = ["Answering", "Call", "Calls", "answer_json", "told"]

#: A handler gets the workspace and its request, and returns the fields of the answer.
Handler = Callable[[Workspace, Any], dict[str, Any]]

#: What answers requests that are no calls: files, uploads.
Answering = Callable[[Request], Awaitable[Response]]

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Vary": "Origin",
}
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


def answer_json(
    value: object, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """`value` as a JSON answer."""
    return Response(
        msgspec.json.encode(value),
        status,
        media_type="application/json",
        headers={**_HEADERS, **(headers or {})},
    )


def told(handler: Answering) -> Answering:
    """`handler` with deliberate errors told in MLflow's shape."""

    async def answering(request: Request) -> Response:
        try:
            return await handler(request)
        except EverloopError as error:
            status, body = error_answer(error)
            return answer_json(body, status)

    return answering
