"""Which adapter reads a source, by the scheme of its location."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import unquote

from everloop.core.source import DataSource
from everloop.errors import InvalidInput, NotAllowed
from everloop.ports.source import FileServer, QueryServer

__all__ = ["file_server", "query_server"]

Secret = Callable[[str], str]


def file_server(
    source: DataSource, scheme: str, secret: Secret, *, guarded: bool, hosts: Iterable[str] = ()
) -> FileServer:
    """What serves the files of a source.

    Args:
        source: With a reference to its credentials.
        scheme: Of the location.
        secret: Gives what a reference stands for.
        guarded: Keep to public addresses, and to `hosts`.
        hosts: See ``HttpFiles``.
    """
    found = secret(source.credentials) if source.credentials else ""
    if scheme in ("http", "https"):
        from everloop.backends.sources.http import HttpFiles

        return HttpFiles(
            found,
            guarded=guarded,
            hosts=hosts,
            most_bytes=source.most_bytes,
            timeout_s=source.timeout_s,
        )
    from everloop.backends.sources.buckets import BucketFiles

    return BucketFiles(found, most_bytes=source.most_bytes)


def query_server(source: DataSource, secret: Secret, *, guarded: bool) -> QueryServer:
    """The database of a source; as :func:`file_server`."""
    url = source.locations[0]
    if url.startswith("sqlite://"):
        from everloop.backends.sources.sqlite import SqliteServer

        path = unquote(url.removeprefix("sqlite://"))
        # As SQLAlchemy writes it: three strokes and a relative path, or four and an absolute one.
        path = path[1:] if path.startswith("/") else path
        if not path:
            raise InvalidInput("the location names no file", hint="sqlite:///orders.db")
        if guarded and not Path(path).resolve().is_relative_to(Path(os.getcwd()).resolve()):
            raise NotAllowed(f"{path} lies outside the folder that this process works in")
        return SqliteServer(path, timeout_s=source.timeout_s)
    from everloop.backends.sources.postgres import PostgresServer

    found = secret(source.credentials) if source.credentials else ""
    return PostgresServer(url, found, timeout_s=source.timeout_s)
