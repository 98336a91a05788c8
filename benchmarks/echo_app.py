"""The least that an ASGI server does: read the body, answer `{}` (`python -m ... PORT`)."""

from __future__ import annotations

import sys
from typing import Any

import uvicorn

from everloop.serving.supervisor import bind

_START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/json"), (b"content-length", b"2")],
}
_BODY = {"type": "http.response.body", "body": b"{}"}


async def echo(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer `{}` once the whole body is here."""
    if scope["type"] != "http":
        return
    more = True
    while more:
        more = (await receive()).get("more_body", False)
    await send(dict(_START))
    await send(_BODY)


if __name__ == "__main__":
    listening = bind("127.0.0.1", int(sys.argv[1]))
    config = uvicorn.Config(
        echo, http="httptools", ws="none", lifespan="off", access_log=False, log_level="warning"
    )
    uvicorn.Server(config).run(sockets=[listening])
