"""HttpSink: events posted to a server that speaks OpenLineage, such as Marquez or DataHub."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.parse
import urllib.request

from everloop.errors import BackendError, InvalidInput

__all__ = ["HttpSink"]

_PATH = "/api/v1/lineage"
#: What a server answers to an event that it will never take; the rest can be tried again.
_FINAL = frozenset({400, 404, 405, 409, 410, 413, 415, 422})


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object, **__: object) -> None:
        """Follow nothing: the key is for the server that was named."""


class HttpSink:
    """Posts each event.

    Args:
        url: Of the server; with the path, if it is not OpenLineage's ``/api/v1/lineage``.
        key: Sent as a bearer token, if given.
        timeout_s: For connecting, and for each wait for an answer.
    """

    def __init__(self, url: str, *, key: str = "", timeout_s: float = 10.0) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidInput(f"{url!r} is no address of a server", hint="http://host:port")
        path = parts.path if parts.path.strip("/") else _PATH
        self._url = urllib.parse.urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))
        self._where = f"{parts.hostname}{f':{parts.port}' if parts.port else ''}"
        self._headers = {"Content-Type": "application/json", "User-Agent": "everloop"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._timeout = timeout_s
        self._opener = urllib.request.build_opener(_NoRedirects)

    def send(self, event: bytes) -> None:
        """Post one event."""
        request = urllib.request.Request(
            self._url, data=event, headers=self._headers, method="POST"
        )
        try:
            with self._opener.open(request, timeout=self._timeout) as answer:
                answer.read(1)
        except urllib.error.HTTPError as error:
            with error:
                said = error.read(500).decode(errors="replace")
            message = f"{self._where} answered {error.code}: {said}"
            if error.code in _FINAL:
                raise InvalidInput(message) from None
            raise BackendError(message) from None
        except (OSError, http.client.HTTPException) as error:
            raise BackendError(f"{self._where} did not answer: {error}") from error

    def flush(self) -> None:
        """Nothing waits: each event was answered."""
