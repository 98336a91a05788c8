"""The one place that reads the environment.

``EVERLOOP_DIR`` is the workspace (a folder, a catalog URL or a server's URL), ``EVERLOOP_ACTOR``
the name that events carry, ``EVERLOOP_PORT`` and ``EVERLOOP_HOST`` where the server listens.
``EVERLOOP_WEBHOOK_HOSTS`` names hosts (``name`` or ``name:port``, with commas between) that
webhooks may have although their addresses are private or their scheme is http, and
``EVERLOOP_SECRET_KEY`` is the key of the webhooks' secrets, instead of a file in the workspace.
``EVERLOOP_UNDO`` is how long a delete can be undone, and ``EVERLOOP_SIGNING_KEY`` signs model
versions. The variables of MLflow's own clients say who asks when runs are imported from a server
of MLflow's.
"""

from __future__ import annotations

import getpass
import os

import msgspec

__all__ = ["DEFAULT_DIR", "MlflowLogin", "Settings", "load", "mlflow_login"]

DEFAULT_DIR = ".everloop"
DEFAULT_PORT = 7410
DEFAULT_UNDO = "30d"


class Settings(msgspec.Struct, frozen=True):
    """What the surroundings say, before arguments override it."""

    location: str = DEFAULT_DIR
    actor: str = "unknown"
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    objects: str = ""
    undo: str = DEFAULT_UNDO
    signing_key: str = ""
    webhook_hosts: tuple[str, ...] = ()
    secret_key: str = ""


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
    hosts = os.environ.get("EVERLOOP_WEBHOOK_HOSTS", "")
    return Settings(
        location=os.environ.get("EVERLOOP_DIR", DEFAULT_DIR),
        actor=os.environ.get("EVERLOOP_ACTOR") or _user(),
        host=os.environ.get("EVERLOOP_HOST", "127.0.0.1"),
        port=int(port),
        objects=os.environ.get("EVERLOOP_OBJECTS", ""),
        undo=os.environ.get("EVERLOOP_UNDO", DEFAULT_UNDO),
        signing_key=os.environ.get("EVERLOOP_SIGNING_KEY", ""),
        webhook_hosts=tuple(host.strip() for host in hosts.split(",") if host.strip()),
        secret_key=os.environ.get("EVERLOOP_SECRET_KEY", ""),
    )


class MlflowLogin(msgspec.Struct, frozen=True):
    """Who asks a server of MLflow's, as its own clients are told. A token goes before a name."""

    username: str = ""
    password: str = ""
    token: str = ""
    workspace: str = ""
    insecure_tls: bool = False
    certificate: str = ""

    def __repr__(self) -> str:
        return "MlflowLogin(...)"  # a password must not reach a log


def mlflow_login() -> MlflowLogin:
    """Read the variables that MLflow's clients read."""
    given = {
        name: os.environ.get(f"MLFLOW_TRACKING_{name.upper()}", "")
        for name in ("username", "password", "token")
    }
    return MlflowLogin(
        **given,
        workspace=os.environ.get("MLFLOW_WORKSPACE", ""),
        insecure_tls=os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"),
        certificate=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH", ""),
    )
