"""The one place that reads the environment.

``EVERLOOP_DIR`` is the workspace (a folder, a catalog URL or a server's URL), ``EVERLOOP_ACTOR``
the name that events carry, ``EVERLOOP_PORT`` and ``EVERLOOP_HOST`` where the server listens.
``EVERLOOP_OPENLINEAGE`` is a file or a URL that takes our events as OpenLineage, with the key in
``EVERLOOP_OPENLINEAGE_KEY`` and our namespace there in ``EVERLOOP_OPENLINEAGE_NAMESPACE``.
"""

from __future__ import annotations

import getpass
import os

import msgspec

__all__ = ["DEFAULT_DIR", "Settings", "load"]

DEFAULT_DIR = ".everloop"
DEFAULT_PORT = 7410


class Settings(msgspec.Struct, frozen=True):
    """What the surroundings say, before arguments override it."""

    location: str = DEFAULT_DIR
    actor: str = "unknown"
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    objects: str = ""
    openlineage: str = ""
    openlineage_key: str = ""
    openlineage_namespace: str = "everloop"


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container may run under a uid without a name
        return f"uid-{os.getuid()}" if hasattr(os, "getuid") else "unknown"


def load() -> Settings:
    """Read the environment.

    Raises:
        InvalidInput: If ``EVERLOOP_PORT`` is not a port number.
    """
    from everloop.errors import InvalidInput

    port = os.environ.get("EVERLOOP_PORT", str(DEFAULT_PORT))
    if not port.isdigit() or not 0 <= int(port) <= 65535:
        raise InvalidInput("EVERLOOP_PORT must be a number from 0 to 65535", [("", repr(port))])
    return Settings(
        location=os.environ.get("EVERLOOP_DIR", DEFAULT_DIR),
        actor=os.environ.get("EVERLOOP_ACTOR") or _user(),
        host=os.environ.get("EVERLOOP_HOST", "127.0.0.1"),
        port=int(port),
        objects=os.environ.get("EVERLOOP_OBJECTS", ""),
        openlineage=os.environ.get("EVERLOOP_OPENLINEAGE", ""),
        openlineage_key=os.environ.get("EVERLOOP_OPENLINEAGE_KEY", ""),
        openlineage_namespace=os.environ.get("EVERLOOP_OPENLINEAGE_NAMESPACE") or "everloop",
    )
