"""BucketFiles: files in an object store (S3, Google Cloud Storage, Azure), by obstore."""

from __future__ import annotations

import re
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from everloop.errors import BackendError, InvalidInput, MissingExtra, NotFound, TooLarge
from everloop.ports.source import RemoteFile

__all__ = ["BucketFiles"]

_PATTERN = re.compile(r"[*?\[]")


class BucketFiles:
    """Files in buckets.

    Args:
        secret: ``KEY_ID:SECRET`` or ``KEY_ID:SECRET:TOKEN`` of S3; empty leaves it to the
            environment, as the store's own tools do.
        most_bytes: Largest file.
        opened: An obstore store to be used for every bucket, instead of that of the URL.
    """

    def __init__(self, secret: str = "", *, most_bytes: int = 10 << 30, opened: Any = None) -> None:
        self._secret = secret
        self._most = most_bytes
        self._opened = opened

    def find(self, location: str) -> list[RemoteFile]:
        """The objects that a key or a pattern of keys names."""
        scheme, bucket, key = _parts(location)
        found = _PATTERN.search(key)
        # Stores list by whole folders.
        prefix = key[: found.start()].rpartition("/")[0] if found else key
        store = self._store(scheme, bucket)
        import obstore

        try:
            if found is None:
                heads = [obstore.head(store, key)]
            else:
                matches = re.compile(_regex(key)).fullmatch
                pages = obstore.list(store, prefix=prefix or None)
                heads = [head for page in pages for head in page if matches(head["path"])]
        except FileNotFoundError:
            return []
        except Exception as error:  # noqa: BLE001 (its errors have a base of its own, in Rust)
            raise _told(location, error, self._secret) from None
        files = [
            RemoteFile(f"{scheme}://{bucket}/{head['path']}", head["size"], head["e_tag"] or "")
            for head in heads
        ]
        return sorted(files)

    def fetch(self, file: RemoteFile, known: str, to: BinaryIO) -> RemoteFile | None:
        """Write an object to `to`; the very one that was listed."""
        scheme, bucket, key = _parts(file.path)
        if file.size > self._most:
            raise TooLarge(
                f"{file.path} has more than {self._most} bytes",
                hint="give the source a larger most_bytes",
            )
        import obstore

        size = 0
        options: Any = {"if_match": file.etag} if file.etag else {}
        try:
            answer = obstore.get(self._store(scheme, bucket), key, options=options)
            for piece in answer.stream():
                size += len(piece)
                to.write(piece)
        except FileNotFoundError:
            raise NotFound(f"there is nothing at {file.path}") from None
        except Exception as error:  # noqa: BLE001 (its errors have a base of its own, in Rust)
            raise _told(file.path, error, self._secret) from None
        if file.size >= 0 and size != file.size:
            raise BackendError(
                f"{file.path} broke off after {size} of {file.size} bytes",
                hint="nothing was kept; pull again",
            )
        return file if file.etag != known or not known else None

    def _store(self, scheme: str, bucket: str) -> Any:
        if self._opened is not None:
            return self._opened
        try:
            from obstore.store import from_url
        except ModuleNotFoundError as error:
            raise MissingExtra.of("s3", f"reading {scheme}://{bucket}") from error
        more: dict[str, Any] = {}
        if self._secret:
            parts = self._secret.split(":")
            if scheme != "s3" or len(parts) not in (2, 3):
                raise InvalidInput(
                    "the credentials are none of S3",
                    hint="KEY_ID:SECRET or KEY_ID:SECRET:TOKEN; others go by their environment",
                )
            more = dict(
                zip(("access_key_id", "secret_access_key", "session_token"), parts, strict=False)
            )
        try:
            return from_url(f"{scheme}://{bucket}", **more)
        except Exception as error:  # noqa: BLE001 (its errors have a base of its own, in Rust)
            raise _told(f"{scheme}://{bucket}", error, self._secret) from None


def _parts(location: str) -> tuple[str, str, str]:
    parts = urlsplit(location.replace("?", "%3F").replace("#", "%23"))
    key = parts.path.lstrip("/").replace("%3F", "?").replace("%23", "#")
    return parts.scheme, parts.netloc, key


def _regex(pattern: str) -> str:
    """As of paths: ``*`` stays within a folder, ``**/`` is any number of them."""
    text = ""
    at = 0
    while at < len(pattern):
        if pattern.startswith("**/", at):
            text, at = text + "(?:.*/)?", at + 3
        elif pattern[at] == "*":
            text, at = text + "[^/]*", at + 1
        elif pattern[at] == "?":
            text, at = text + "[^/]", at + 1
        elif pattern[at] == "[" and "]" in pattern[at:]:
            end = pattern.index("]", at)
            inner = pattern[at + 1 : end].replace("\\", "\\\\")
            text, at = text + f"[{'^' + inner[1:] if inner.startswith('!') else inner}]", end + 1
        else:
            text, at = text + re.escape(pattern[at]), at + 1
    return text


def _told(where: str, error: Exception, secret: str) -> BackendError:
    said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    for part in secret.split(":")[1:]:
        said = said.replace(part, "***") if part else said
    return BackendError(
        f"{where} cannot be read: {said}", hint="nothing was kept; it can be pulled again"
    )
