"""One prefix of a bucket: the requests that the object store makes, and their errors in words.

Requests are retried by obstore, a few times and for a bounded time. What is signed with the
environment's credentials stays there: no message quotes an answer of the server as a whole.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from everloop.errors import BackendError, InvalidInput, MissingExtra, StateError

__all__ = ["PIECE", "Absent", "Bucket", "Entry", "Refused", "side_by_side"]

#: The most that one request carries: what is larger goes, and comes, in several.
PIECE = 8 << 20
#: Requests under way at once.
_AT_ONCE = 16
#: Pieces of one object that are fetched ahead of the reader.
_AHEAD = 4
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9]")
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_STATUS = re.compile(r"status code: (\d{3})")
#: The process that uses obstore: its threads are not there in a forked child, which would wait.
_process = 0

_T = TypeVar("_T")
_R = TypeVar("_R")


class Absent(Exception):
    """There is nothing under that key."""


class Refused(Exception):
    """A conditional put found another state than it named."""


class Entry(NamedTuple):
    """A key as it is listed; `at` is when it was written: whole seconds by the server's clock."""

    key: str
    size: int
    at: float
    e_tag: str


def side_by_side(call: Callable[[_T], _R], items: Sequence[_T]) -> list[_R]:
    """The results of `call` for each item, in order, with several requests under way at once."""
    if len(items) < 2:
        return [call(item) for item in items]
    # A pool for each call: threads do not survive a fork, and a pool that lost them would hang.
    with ThreadPoolExecutor(min(_AT_ONCE, len(items))) as threads:
        return list(threads.map(call, items))


class Bucket:
    """What lies below ``s3://bucket/prefix``; keys are given and returned without the prefix."""

    def __init__(
        self, url: str, *, endpoint: str = "", retries: int = 4, timeout_s: float = 60
    ) -> None:
        name, self._prefix = _parsed(url)
        self.url = url
        self._bucket = name
        try:
            import obstore
            from obstore import exceptions
            from obstore.store import S3Store
        except ImportError as error:
            raise MissingExtra(
                f"objects at {url} need obstore", hint="pip install 'everloop[s3]'"
            ) from error
        self._obstore: Any = obstore
        self._errors: Any = exceptions
        options: Any = {"endpoint": endpoint.rstrip("/")} if endpoint else {}
        try:
            self._store: Any = S3Store(
                name,
                **options,
                client_options={
                    "allow_http": endpoint.startswith("http://"),
                    "connect_timeout": "5s",
                    "timeout": timedelta(seconds=timeout_s),
                },
                retry_config={
                    "max_retries": retries,
                    "retry_timeout": timedelta(seconds=timeout_s),
                    "backoff": {
                        "init_backoff": timedelta(milliseconds=100),
                        "max_backoff": timedelta(seconds=5),
                        "base": 2,
                    },
                },
            )
        except (exceptions.BaseError, ValueError) as error:
            raise InvalidInput(
                f"the settings of S3 in the environment (AWS_...) are wrong: {_reason(error)}"
            ) from None
        self.place = f"{url} at {_shown(endpoint)}" if endpoint else url

    # Writing

    def put(self, key: str, data: Any) -> None:
        """Write a key as a whole: bytes, or a file by its path; over what is there."""
        size = data.stat().st_size if isinstance(data, Path) else len(data)
        self._call(
            "write",
            lambda: self._obstore.put(
                self._store,
                self._prefix + key,
                data,
                use_multipart=size > PIECE,
                chunk_size=PIECE,
                max_concurrency=_AHEAD,
            ),
        )

    def put_pieces(self, key: str, pieces: Iterable[Any]) -> None:
        """Write a key as a whole, from pieces."""
        self._call(
            "write",
            lambda: self._obstore.put(
                self._store,
                self._prefix + key,
                _views(pieces),
                use_multipart=True,
                chunk_size=PIECE,
                max_concurrency=_AHEAD,
            ),
        )

    def swap(self, key: str, data: bytes, e_tag: str) -> None:
        """Write a small key if it is still the one with this ETag; empty: if it is not there.

        Raises:
            Refused: If not. Also if it was written and the answer was lost: look what is there.
        """
        mode: Any = {"e_tag": e_tag} if e_tag else "create"
        self._call(
            "write",
            lambda: self._obstore.put(
                self._store, self._prefix + key, data, mode=mode, use_multipart=False
            ),
        )

    def delete(self, keys: Sequence[str]) -> None:
        """Remove keys; those that are not there do not matter."""
        if keys:
            paths = [self._prefix + key for key in keys]
            with contextlib.suppress(Absent):
                self._call("delete", lambda: self._obstore.delete(self._store, paths))

    # Reading

    def get(self, key: str) -> tuple[bytes, Entry]:
        """A small key as a whole; raises Absent."""

        def read() -> tuple[bytes, Entry]:
            found = self._obstore.get(self._store, self._prefix + key)
            data = bytes(found.bytes())
            return data, self._entry(found.meta)

        return self._call("read", read)

    def tail(self, key: str, size: int) -> bytes:
        """The last bytes of a key, or all of it if it is shorter; raises Absent."""

        def read() -> bytes:
            options = {"range": {"suffix": size}}
            found = self._obstore.get(self._store, self._prefix + key, options=options)
            return bytes(found.bytes())

        return self._call("read", read)

    def span(self, key: str, start: int, size: int) -> bytes:
        """Some bytes of a key; raises Absent."""
        if not size:
            return b""

        def read() -> bytes:
            path = self._prefix + key
            return bytes(self._obstore.get_range(self._store, path, start=start, length=size))

        return self._call("read", read)

    def pieces(self, key: str, start: int, size: int) -> Iterator[bytes]:
        """Bytes of a key in pieces, a few of which are fetched ahead; raises Absent."""
        if size <= PIECE:
            yield self.span(key, start, size)
            return
        spans = [(at, min(PIECE, start + size - at)) for at in range(start, start + size, PIECE)]
        with ThreadPoolExecutor(_AHEAD) as threads:
            begun = [threads.submit(self.span, key, *span) for span in spans[:_AHEAD]]
            waiting = iter(spans[_AHEAD:])
            try:
                while begun:
                    piece = begun.pop(0).result()
                    if (span := next(waiting, None)) is not None:
                        begun.append(threads.submit(self.span, key, *span))
                    yield piece
            finally:
                for rest in begun:
                    rest.cancel()

    def head(self, key: str) -> Entry | None:
        """A key without its bytes; None if it is not there."""
        try:
            return self._entry(
                self._call("read", lambda: self._obstore.head(self._store, self._prefix + key))
            )
        except Absent:
            return None

    def list(self, folder: str, *, most: int | None = None) -> list[Entry]:
        """The keys below ``folder/``: all, or the first so many."""

        def read() -> list[Entry]:
            pages = self._obstore.list(self._store, prefix=self._prefix + folder, chunk_size=1000)
            return [self._entry(item) for item in islice(chain.from_iterable(pages), most)]

        try:
            return self._call("read", read)
        except Absent:
            return []

    def _entry(self, meta: Any) -> Entry:
        key = str(meta["path"])[len(self._prefix) :]
        return Entry(key, meta["size"], meta["last_modified"].timestamp(), meta["e_tag"] or "")

    # Errors

    def _call(self, verb: str, call: Callable[[], _T]) -> _T:
        global _process
        errors = self._errors
        _process = _process or os.getpid()
        if _process != os.getpid():
            raise StateError(
                f"could not {verb} objects in {self.place}: this process was forked from one that"
                " spoke to S3, whose connections it cannot use",
                hint='start it anew: multiprocessing.get_context("spawn" or "forkserver")',
            )
        try:
            return call()
        except FileNotFoundError as error:
            if _code(error) != "NoSuchBucket":
                raise Absent from None
            raise self._failed(verb, error) from None
        except (errors.AlreadyExistsError, errors.PreconditionError):
            raise Refused from None
        except errors.BaseError as error:
            if _code(error) in ("ConditionalRequestConflict", "OperationAborted"):
                raise Refused from None  # another conditional put of this key was under way
            raise self._failed(verb, error) from None

    def _failed(self, verb: str, error: Exception) -> BackendError:
        code, reason = _code(error), _reason(error)
        status = _STATUS.search(str(error))
        said, hint = code or reason, "check the network and that the server is up, then do it again"
        if code == "NoSuchBucket":
            said = "there is no such bucket"
            hint = "make the bucket first, or correct its name and AWS_ENDPOINT_URL"
        elif "169.254.169.254" in str(error):  # obstore asks for the role of the machine last
            said = "there are no credentials"
            hint = (
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; those of a profile by:"
                " eval $(aws configure export-credentials --format env)"
            )
        elif status is not None and status[1] in ("401", "403"):
            hint = (
                "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, and that"
                " they may list, read, write and delete there"
            )
        return BackendError(
            f"could not {verb} objects in {self.place}: {said}",
            hint=hint,
            details={"bucket": self._bucket, "code": code},
        )


def _views(pieces: Iterable[Any]) -> Iterator[memoryview]:
    """The pieces as obstore takes them: plain bytes, none of them empty."""
    for piece in pieces:
        view = memoryview(piece)
        if view.nbytes:
            yield view.cast("B")


def _parsed(url: str) -> tuple[str, str]:
    """The bucket, and the prefix with a slash at its end unless it is empty."""
    parts = urlsplit(url)
    prefix = parts.path.strip("/")
    faults = []
    if not _BUCKET.fullmatch(parts.netloc):
        faults.append(("bucket", "3 to 63 small letters, digits, dots and hyphens, nothing else"))
    if parts.query or parts.fragment:
        faults.append(("", "no '?' and no '#': options are set by AWS_... in the environment"))
    if "" in prefix.split("/")[1:] or {".", ".."} & set(prefix.split("/")):
        faults.append(("prefix", "no empty part, no '.' and no '..'"))
    if not prefix.isascii() or not prefix.isprintable():
        faults.append(("prefix", "plain ASCII"))
    if parts.scheme != "s3" or faults:
        # A netloc with '@' may hold a secret.
        raise InvalidInput("objects cannot be kept there", faults, hint="as in s3://bucket/prefix")
    return parts.netloc, f"{prefix}/" if prefix else ""


def _code(error: Exception) -> str:
    found = _CODE.search(str(error)) or _STATUS.search(str(error))
    return found[1] if found else ""


def _reason(error: Exception) -> str:
    """What went wrong, without what the server answered and where in obstore it was."""
    first = str(error).partition("\n")[0].partition("<?xml")[0].partition("<Error")[0]
    return first.removeprefix("Generic S3 error: ")[:300].strip()


def _shown(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()
