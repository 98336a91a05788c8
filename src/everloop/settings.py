"""The one place that reads the environment.

``EVERLOOP_DIR`` is the workspace (a folder, a catalog URL or a server's URL), ``EVERLOOP_ACTOR``
the name that events carry, ``EVERLOOP_PORT`` and ``EVERLOOP_HOST`` where the server listens.
``EVERLOOP_TOKEN`` is shown to a server that asks who is there; without it, and without a password
in the URL, ``.netrc`` is read (``NETRC`` says where it is). ``EVERLOOP_ALLOWED_HOSTS`` are names,
with commas between, that the server answers under besides its address.
``EVERLOOP_WEBHOOK_HOSTS`` names hosts (``name`` or ``name:port``, with commas between) that
webhooks may have although their addresses are private or their scheme is http, and
``EVERLOOP_SOURCE_HOSTS`` names hosts in the same way,
for sources of data that somebody declared through a server. ``EVERLOOP_SECRET_KEY`` is the key of
the webhooks' secrets, instead of a file in the workspace.
``EVERLOOP_OBJECTS`` is where objects are kept: a folder, or ``s3://bucket/prefix``. The way there
is in the variables of Amazon's own tools: ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``,
``AWS_SESSION_TOKEN``, ``AWS_REGION``, and ``AWS_ENDPOINT_URL_S3`` or ``AWS_ENDPOINT_URL`` for
another server; all but the last two are read by obstore alone. ``EVERLOOP_OBJECT_CACHE`` bounds the
copies of such objects on this machine (``10GB``).
``EVERLOOP_UNDO`` is how long a delete can be undone, and ``EVERLOOP_SIGNING_KEY`` signs model
versions. The variables of MLflow's own clients say who asks when runs are imported from a server
of MLflow's.
``EVERLOOP_SMTP`` is the server that mail goes through, ``smtp://user:password@host:587``, and
``EVERLOOP_MAIL_FROM`` who it is from. Secrets of automations are where their references say:
``env:VARIABLE`` or ``file:/path``.
``EVERLOOP_OPENLINEAGE`` is a file or a URL that takes our events as OpenLineage, with the key in
``EVERLOOP_OPENLINEAGE_KEY`` and our namespace there in ``EVERLOOP_OPENLINEAGE_NAMESPACE``.
``EVERLOOP_ENVIRONMENTS`` are the environments that packages come to, the first one first, with
commas between; ``dev,staging,production`` if it is not set.
``RAY_ADDRESS`` is Ray's own: the cluster that ``--on ray`` means. ``everloop ci`` reads what GitHub
and GitLab say of the branch, and writes to GitHub's ``GITHUB_STEP_SUMMARY``.
"""

from __future__ import annotations

import base64
import getpass
import os
import re

import msgspec

__all__ = [
    "DEFAULT_DIR",
    "CiPlace",
    "MlflowLogin",
    "Settings",
    "ci_place",
    "forget_objects",
    "load",
    "login_of",
    "mlflow_login",
    "secret",
    "server_login",
    "use_objects",
    "without_password",
]

DEFAULT_DIR = ".everloop"
DEFAULT_PORT = 7410
DEFAULT_UNDO = "30d"
_S3_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_ENVIRONMENTS = ("dev", "staging", "production")


class Settings(msgspec.Struct, frozen=True):
    """What the surroundings say, before arguments override it."""

    location: str = DEFAULT_DIR
    actor: str = "unknown"
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    objects: str = ""
    object_cache: int = 10_000_000_000
    s3_endpoint: str = ""
    undo: str = DEFAULT_UNDO
    signing_key: str = ""
    webhook_hosts: tuple[str, ...] = ()
    source_hosts: tuple[str, ...] = ()
    secret_key: str = ""
    smtp: str = ""
    mail_from: str = "everloop@localhost"
    openlineage: str = ""
    openlineage_key: str = ""
    openlineage_namespace: str = "everloop"
    allowed_hosts: tuple[str, ...] = ()
    ray_address: str = ""
    package_environments: tuple[str, ...] = _ENVIRONMENTS


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
        object_cache=_bytes("EVERLOOP_OBJECT_CACHE", "10GB"),
        s3_endpoint=next(filter(None, map(os.environ.get, _S3_ENDPOINTS)), ""),
        undo=os.environ.get("EVERLOOP_UNDO", DEFAULT_UNDO),
        signing_key=os.environ.get("EVERLOOP_SIGNING_KEY", ""),
        webhook_hosts=_names("EVERLOOP_WEBHOOK_HOSTS"),
        source_hosts=_names("EVERLOOP_SOURCE_HOSTS"),
        secret_key=os.environ.get("EVERLOOP_SECRET_KEY", ""),
        smtp=os.environ.get("EVERLOOP_SMTP", ""),
        mail_from=os.environ.get("EVERLOOP_MAIL_FROM") or "everloop@localhost",
        openlineage=os.environ.get("EVERLOOP_OPENLINEAGE", ""),
        openlineage_key=os.environ.get("EVERLOOP_OPENLINEAGE_KEY", ""),
        openlineage_namespace=os.environ.get("EVERLOOP_OPENLINEAGE_NAMESPACE") or "everloop",
        allowed_hosts=_names("EVERLOOP_ALLOWED_HOSTS"),
        ray_address=os.environ.get("RAY_ADDRESS", ""),
        package_environments=_names("EVERLOOP_ENVIRONMENTS") or _ENVIRONMENTS,
    )


def _bytes(variable: str, default: str) -> int:
    from everloop.errors import InvalidInput

    text = os.environ.get(variable) or default
    found = re.fullmatch(r"\s*(\d{1,15})\s*([kMGT]?)B?\s*", text)
    if found is None:
        raise InvalidInput(f"{variable} must be a number of bytes", [("", f"{text!r}, as in 10GB")])
    unit: int = 1000 ** " kMGT".index(found[2] or " ")
    return int(found[1]) * unit


def _names(variable: str) -> tuple[str, ...]:
    given = os.environ.get(variable, "")
    return tuple(name.strip() for name in given.split(",") if name.strip())


def secret(reference: str) -> str:
    """What ``env:VARIABLE``, ``file:/path`` or ``keyring:SERVICE/USER`` stands for, without blanks.

    Raises:
        InvalidInput: If it is neither, or there is nothing; says where, never what.
    """
    from everloop.errors import InvalidInput

    kind, _, place = reference.partition(":")
    found = ""
    if kind == "env":
        found = os.environ.get(place, "")
    elif kind == "file":
        try:
            with open(place, encoding="utf-8") as file:
                found = file.read(65_536)
        except (OSError, UnicodeError) as error:
            raise InvalidInput(f"the secret in {place} cannot be read: {error}") from None
    elif kind == "keyring":
        found = _from_keyring(place)
    if not found.strip():
        raise InvalidInput(f"there is no secret at {kind}:{place}", hint="set it where this runs")
    return found.strip()


def _from_keyring(place: str) -> str:
    from everloop.errors import InvalidInput, MissingExtra

    try:
        import keyring  # type: ignore[import-not-found, unused-ignore] # an extra
    except ModuleNotFoundError as error:
        raise MissingExtra.of("keyring", f"the secret at keyring:{place}") from error
    service, _, user = place.rpartition("/")
    try:
        return str(keyring.get_password(service, user) or "")
    except Exception as error:  # noqa: BLE001 (each of its back ends raises its own)
        told = f"the keyring does not give {place}: {type(error).__name__}"
        raise InvalidInput(told, hint="unlock it where this runs") from None


def server_login(url: str, token: str | None = None) -> tuple[str, str]:
    """The address of a server without credentials, and the ``Authorization`` header to send it.

    The first that is there counts: `token`, name and password in `url`, ``EVERLOOP_TOKEN``, the
    entry of the host in ``.netrc``. The header is empty if none is.

    Raises:
        InvalidInput: If the address, the token or ``.netrc`` cannot be read.
    """
    from urllib.parse import unquote, urlsplit, urlunsplit

    from everloop.errors import InvalidInput

    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:  # not quoted: there may be a password in it
        raise InvalidInput("the address of the server cannot be read") from None
    address = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    if not token and parts.username:
        return address, _basic(unquote(parts.username), unquote(parts.password or ""))
    shown = token or os.environ.get("EVERLOOP_TOKEN", "").strip()
    if shown:
        if not (shown.isascii() and shown.isprintable() and " " not in shown):
            raise InvalidInput("the token is none of ours: it holds signs that no token has")
        return address, f"Bearer {shown}"
    name, password = _netrc(host)
    return address, _basic(name, password) if name else ""


def login_of(address: str, authorization: str) -> tuple[str, str]:
    """The address with name and password in it, or the token: what `server_login` was told."""
    from urllib.parse import quote, urlsplit, urlunsplit

    kind, _, shown = authorization.partition(" ")
    if kind != "Basic":
        return address, shown
    name, _, password = base64.b64decode(shown).decode().partition(":")
    parts = urlsplit(address)
    login = f"{quote(name, safe='')}:{quote(password, safe='')}@{parts.netloc}"
    return urlunsplit(parts._replace(netloc=login)), ""


def without_password(location: str) -> str:
    """The location of a workspace as it may be shown."""
    if "://" not in location:
        return location
    from urllib.parse import quote, urlsplit, urlunsplit

    try:
        parts = urlsplit(location)
        named = parts.netloc.rpartition("@")
        shown = f"{quote(parts.username or '')}@{named[2]}" if named[1] else parts.netloc
        # libpq takes a password in the query, too.
        return urlunsplit(parts._replace(netloc=shown, query=""))
    except ValueError:
        return f"{location.partition('://')[0]}://..."


def _basic(name: str, password: str) -> str:
    return f"Basic {base64.b64encode(f'{name}:{password}'.encode()).decode()}"


def _netrc(host: str) -> tuple[str, str]:
    import netrc

    from everloop.errors import InvalidInput

    path = os.environ.get("NETRC") or os.path.expanduser("~/.netrc")
    try:
        found = netrc.netrc(path).authenticators(host)
    except OSError:  # there is none, or it is not ours to read
        return "", ""
    except netrc.NetrcParseError as error:
        raise InvalidInput(
            f"{path} cannot be used: {error.msg}", hint="correct it, or set EVERLOOP_TOKEN"
        ) from None
    return (found[0] or "", found[2] or "") if found else ("", "")


class CiPlace(msgspec.Struct, frozen=True):
    """What the CI that this runs in says.

    Attributes:
        branch: That is built; of a pull request the one that it comes from.
        summary: File whose Markdown is shown beside the run, or empty.
    """

    branch: str = ""
    summary: str = ""


def ci_place() -> CiPlace:
    """Read the variables of GitHub's and GitLab's CI."""
    names = ("GITHUB_HEAD_REF", "GITHUB_REF_NAME", "CI_COMMIT_REF_NAME")
    branch = next((found for name in names if (found := os.environ.get(name))), "")
    return CiPlace(branch=branch, summary=os.environ.get("GITHUB_STEP_SUMMARY", ""))


def forget_objects() -> None:
    """From now on workspaces of this process and its children keep objects where they are.

    For what works beside a live workspace: ``EVERLOOP_OBJECTS`` is the store of that one.
    """
    os.environ.pop("EVERLOOP_OBJECTS", None)


def use_objects(where: str) -> None:
    """As if ``EVERLOOP_OBJECTS`` said so, for this process and its children."""
    os.environ["EVERLOOP_OBJECTS"] = where


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
