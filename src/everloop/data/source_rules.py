"""What a source may say: addresses without secrets, formats, watermarks, keys."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from urllib.parse import parse_qsl, urlsplit

from everloop.core.source import FORMATS, DataSource
from everloop.core.time import duration_micros
from everloop.errors import Fault, InvalidInput

__all__ = ["BUCKETS", "DATABASES", "format_of", "lookback_of", "scheme_of", "source_faults"]

DATABASES = ("postgresql", "postgres", "sqlite")
BUCKETS = ("s3", "gs", "az")
_SCHEMES = ("", "file", "http", "https", *BUCKETS, *DATABASES)
_SUFFIXES = {
    "parquet": "parquet", "pq": "parquet", "csv": "csv", "tsv": "csv", "jsonl": "jsonl",
    "ndjson": "jsonl", "xlsx": "excel", "xls": "excel",
}  # fmt: skip
#: Parameters of an address that hold a secret; part of their name is enough.
_SECRET = ("password", "passwd", "secret", "token", "signature", "access_key")


def scheme_of(location: str) -> str:
    """``http``, ``s3``, ``postgresql``...; empty for a path."""
    scheme, mark, _ = location.partition("://")
    return scheme.lower() if mark else ""


def format_of(location: str) -> str:
    """The format that a location is in by its scheme or name; empty if they do not tell."""
    scheme = scheme_of(location)
    if scheme in DATABASES:
        return "sql"
    try:
        path = urlsplit(location).path if scheme else location
    except ValueError:
        return ""
    parts = path.lower().rsplit(".", 2)
    if len(parts) > 1 and parts[-1] == "gz":
        parts.pop()
    return _SUFFIXES.get(parts[-1], "") if len(parts) > 1 else ""


def lookback_of(text: str) -> int | None:
    """A lookback in microseconds, or None where it is a plain number.

    Raises:
        InvalidInput: If it is neither.
    """
    return None if text.isdecimal() else duration_micros(text)


def source_faults(source: DataSource) -> list[Fault]:
    """What is wrong with a source; no fault shows what may be a secret."""
    faults = []
    if not source.locations:
        faults.append(Fault("location", "must not be empty"))
    for location in source.locations:
        faults += _location_faults(location)
    if source.format not in FORMATS:
        faults.append(
            Fault("format", f"must be one of {', '.join(FORMATS)}: its name does not tell")
        )
    is_sql = {scheme_of(location) in DATABASES for location in source.locations}
    if True in is_sql and len(source.locations) > 1:
        faults.append(Fault("location", "of a database there is one"))
    faults += _query_faults(source) if True in is_sql else _file_faults(source)
    if source.mode == "upsert" and not source.key:
        faults.append(Fault("key", "is needed to update rows"))
    if source.schema is not None and tuple(source.schema.key) != tuple(source.key):
        faults.append(Fault("key", "is not the key of the schema"))
    if source.credentials and source.credentials.partition(":")[0] not in (
        "env",
        "file",
        "keyring",
    ):
        told = "must say where it is: env:NAME, file:/path or keyring:SERVICE/USER, not what it is"
        faults.append(Fault("credentials", told))
    if source.most_bytes <= 0 or not 0 < source.timeout_s <= 86_400:
        faults.append(Fault("limits", "must be above zero, and a timeout a day at most"))
    return faults


def _location_faults(location: str) -> Iterator[Fault]:
    scheme = scheme_of(location)
    if not location.strip() or "\0" in location:
        yield Fault("location", "is empty or holds a zero character")
        return
    if scheme not in _SCHEMES:
        yield Fault("location", f"{scheme[:20]!r} is none of {', '.join(filter(None, _SCHEMES))}")
        return
    if not scheme:
        return
    try:
        parts = urlsplit(location)
        _ = parts.port
    except ValueError:
        yield Fault("location", "host or port is malformed")
        return
    if parts.password is not None or _holds_secret(parts.query):
        yield Fault(
            "location",
            "holds a password or token, which would be stored; take it out, and say where it is: "
            'credentials="env:NAME"',
        )
    elif parts.username is not None and scheme in ("http", "https"):
        yield Fault("location", 'holds a user; give "user:password" by credentials= instead')
    if scheme not in ("file", "sqlite") and not parts.hostname:
        yield Fault("location", f"{scheme} needs a host")


def _holds_secret(query: str) -> bool:
    names = [name.lower().replace("-", "_") for name, _ in parse_qsl(query, keep_blank_values=True)]
    return any(word in name or name == "sig" for name in names for word in _SECRET)


def _query_faults(source: DataSource) -> Iterator[Fault]:
    query = source.query.strip().rstrip(";")
    if not query:
        yield Fault("query", 'a database needs one, such as query="SELECT * FROM orders"')
    elif query.split(None, 1)[0].lower() not in ("select", "with", "table", "values"):
        yield Fault("query", "must be one SELECT")
    if "\0" in query:
        yield Fault("query", "holds a zero character")
    if source.mode != "replace" and not source.watermark:
        yield Fault("watermark", f"is needed for mode={source.mode!r}; without one use replace")
    if source.mode == "replace" and source.watermark:
        yield Fault(
            "watermark", "tells of no deletes, so mode='replace' reads everything: leave it"
        )
    if source.lookback:
        try:
            lookback_of(source.lookback)
        except InvalidInput as error:
            yield Fault("lookback", error.summary)


def _file_faults(source: DataSource) -> Iterator[Fault]:
    for name in ("query", "watermark", "lookback"):
        if getattr(source, name):
            yield Fault(name, "is of databases; of files the new and changed ones are read")
    try:
        codecs.lookup(source.encoding)
    except LookupError:
        yield Fault("encoding", f"{source.encoding!r} is unknown")
    if len(source.delimiter) != 1 or source.delimiter in '"\r\n' or ord(source.delimiter) > 127:
        yield Fault("delimiter", "must be one ASCII sign, and no quote or line end")
