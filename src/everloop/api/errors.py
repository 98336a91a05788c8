"""Errors as native JSON answers. The MLflow and OIP doors have shapes of their own."""

from __future__ import annotations

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from everloop.errors import BackendError, EverloopError, NotFound, http_status, to_wire

__all__ = ["native_error", "on_everloop_error", "on_http_exception", "on_unknown_error"]


def native_error(error: EverloopError) -> Response:
    """The answer for `error`."""
    return Response(
        msgspec.json.encode(to_wire(error)),
        status_code=http_status(error),
        media_type="application/json",
    )


async def on_everloop_error(request: Request, error: Exception) -> Response:
    """Handler for errors raised on purpose."""
    assert isinstance(error, EverloopError)
    return native_error(error)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Handler for what the framework refuses: an unknown path, a wrong method."""
    assert isinstance(error, HTTPException)
    answer = native_error(
        NotFound(
            f"there is nothing here ({error.detail.lower()})",
            hint="GET /api/openapi.json lists the native API",
        )
    )
    answer.status_code = error.status_code
    answer.headers.update(error.headers or {})
    return answer


async def on_unknown_error(request: Request, error: Exception) -> Response:
    """Handler for our own faults: no traceback and no echo of the input goes out."""
    return native_error(
        BackendError("the server failed", hint="its log has the traceback; please report it")
    )
