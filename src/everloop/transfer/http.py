"""Asks a server of MLflow's: JSON calls and streamed bytes on kept connections, with retries."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, unquote, urlencode, urlsplit

from everloop.errors import BackendError, InvalidInput, NotAllowed, NotFound
from everloop.settings import MlflowLogin

__all__ = ["MlflowServer"]

_RETRIED = {408, 425, 429, 500, 502, 503, 504}
_TRIES = 4
_FIRST_WAIT_S = 0.5
_TIMEOUT_S = 120


class MlflowServer:
    """The REST interface of the server at `url`; any number of threads may ask."""

    def __init__(self, url: str, login: MlflowLogin) -> None:
        parts = urlsplit(url)
        if not parts.hostname:
            raise InvalidInput(f"{url!r} is no address of a server", hint="http://host:port")
        self._host = parts.netloc.rpartition("@")[2]
        self._prefix = parts.path.rstrip("/")
        self.label = f"{parts.scheme}://{self._host}{self._prefix}"
        self._tls = _tls(login) if parts.scheme == "https" else None
        self._headers = {"User-Agent": "everloop", "Accept": "application/json"}
        name = unquote(parts.username or "") or login.username
        if login.token and not parts.username:
            self._headers["Authorization"] = f"Bearer {login.token}"
        elif name:
            secret = f"{name}:{unquote(parts.password or '') or login.password}"
            self._headers["Authorization"] = f"Basic {base64.b64encode(secret.encode()).decode()}"
        if login.workspace:
            self._headers["X-MLFLOW-WORKSPACE"] = login.workspace
        self._local = threading.local()
        self._open: list[http.client.HTTPConnection] = []

    def get(self, path: str, /, **query: Any) -> dict[str, Any]:
        """The answer to a GET; lists become repeated fields, empty fields are left out."""
        given = {key: value for key, value in query.items() if value not in (None, "")}
        return self._json("GET", f"{path}?{urlencode(given, doseq=True)}", None)

    def post(self, path: str, /, **fields: Any) -> dict[str, Any]:
        """The answer to a POST of a JSON object; empty fields are left out."""
        given = {key: value for key, value in fields.items() if value not in (None, "")}
        return self._json("POST", path, json.dumps(given).encode())

    def stream(self, path: str, /, **query: Any) -> Iterator[bytes]:
        """The bytes of an answer, in pieces.

        Raises:
            BackendError: If fewer come than were announced.
        """
        answer = self._ask("GET", f"{path}?{urlencode(query)}" if query else path, None)
        try:
            while piece := answer.read(1 << 20):
                yield piece
        except (OSError, http.client.HTTPException) as error:
            self._drop()
            raise BackendError(f"{self.label} broke off within {path}: {error}") from error
        if answer.length:
            self._drop()
            raise BackendError(f"{self.label} broke off within {path}")

    def quoted(self, path: str) -> str:
        """A path as part of an address."""
        return quote(path, safe="/")

    def close(self) -> None:
        """Close all connections."""
        while self._open:
            self._open.pop().close()

    def _json(self, method: str, path: str, body: bytes | None) -> dict[str, Any]:
        data = self._ask(method, path, body).read()
        try:
            found = json.loads(data)  # unlike others it reads a bare NaN, which old servers write
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise BackendError(
                f"{self.label} does not answer as a server of MLflow's",
                hint="check the address; it is what MLFLOW_TRACKING_URI holds",
            )
        return found

    def _ask(self, method: str, path: str, body: bytes | None) -> http.client.HTTPResponse:
        for left in range(_TRIES - 1, -1, -1):
            try:
                answer = self._send(method, path, body)
            except (OSError, http.client.HTTPException) as error:
                self._drop()
                if not left:
                    raise BackendError(
                        f"{self.label} does not answer: {error}",
                        hint="when it does, import again: what is here is not fetched twice",
                        details={"unreachable": True},
                    ) from error
            else:
                if answer.status < 300:
                    return answer
                data = answer.read()
                if answer.status not in _RETRIED or not left:
                    raise self._refusal(answer.status, path, data)
            time.sleep(_FIRST_WAIT_S * 2 ** (_TRIES - 1 - left))
        raise AssertionError("the last try returns or raises")

    def _send(self, method: str, path: str, body: bytes | None) -> http.client.HTTPResponse:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            if self._tls is not None:
                connection = http.client.HTTPSConnection(
                    self._host, timeout=_TIMEOUT_S, context=self._tls
                )
            else:
                connection = http.client.HTTPConnection(self._host, timeout=_TIMEOUT_S)
            self._local.connection = connection
            self._open.append(connection)
        headers = dict(self._headers)
        if body is not None:
            headers["Content-Type"] = "application/json"
        connection.request(method, self._prefix + path, body, headers)
        found: http.client.HTTPResponse = connection.getresponse()
        return found

    def _drop(self) -> None:
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()  # it opens again at the next request

    def _refusal(self, status: int, path: str, data: bytes) -> Exception:
        try:
            said = str(json.loads(data)["message"])
        except (ValueError, KeyError, TypeError):
            said = data[:200].decode(errors="replace")
        if status in (401, 403):
            return NotAllowed(
                f"{self.label} refuses: {said or status}",
                hint="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
                "MLFLOW_TRACKING_TOKEN",
            )
        if status == 404:
            return NotFound(f"{self.label} has no {path.partition('?')[0]}: {said}")
        return BackendError(f"{self.label} answered {status} to {path.partition('?')[0]}: {said}")


def _tls(login: MlflowLogin) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=login.certificate or None)
    if login.insecure_tls:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
