"""Where the rows of a dataset come from, what was read there so far, and what each pull read.

A :class:`DataSource` is a declaration; it holds no secret, only where one is. How it is read lives
in ``everloop.data.pulling`` and in the back ends of ``everloop.ports.source``.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from everloop.core.schema import Schema

__all__ = [
    "FORMATS",
    "DataSource",
    "Pull",
    "PullDraft",
    "SourceFile",
    "SourceFormat",
    "SourceMode",
    "SourceState",
]

SourceFormat = Literal["parquet", "csv", "jsonl", "excel", "sql"]
FORMATS: tuple[str, ...] = SourceFormat.__args__  # type: ignore[attr-defined]
SourceMode = Literal["append", "upsert", "replace"]


class DataSource(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a dataset comes from.

    Attributes:
        dataset: The dataset that it fills, and its own name.
        locations: Paths, patterns of paths or URLs; of a database one URL without a password.
        mode: ``append`` adds rows, ``upsert`` also replaces those of equal key, ``replace`` makes
            the dataset what the source has now.
        query: Of a database, one SELECT.
        watermark: Column of it that only grows: a pull reads rows from the last one's on.
        lookback: How far before the last watermark a pull reads again: a length of time
            (``"10m"``), or a number where the watermark is one.
        credentials: Where the password or token is: ``env:``, ``file:`` or ``keyring:``.
        schema: What must hold; by default the dataset's own, which is the first pull's.
        encoding, delimiter, nulls: Of CSV: its text, what stands between values, and which texts
            that are not quoted mean null.
        sheet: Of Excel; the first one if empty.
        most_bytes: Largest file that is fetched over a network.
        timeout_s: For a query as a whole, and for each step of a download.
        guarded: Whether it was declared by somebody through a server. A process that holds the
            catalog itself then reads nothing for it from outside its folder or a private address.
    """

    dataset: str
    locations: tuple[str, ...]
    format: SourceFormat
    mode: SourceMode = "append"
    key: tuple[str, ...] = ()
    query: str = ""
    watermark: str = ""
    lookback: str = ""
    credentials: str = ""
    schema: Schema | None = None
    encoding: str = "utf-8"
    delimiter: str = ","
    nulls: tuple[str, ...] = ("",)
    sheet: str = ""
    owner: str = ""
    most_bytes: int = 10 << 30
    timeout_s: float = 1800.0
    guarded: bool = False


class SourceFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A file of a source as it was when it was last read.

    Attributes:
        path: As the source names it.
        size: In bytes.
        mtime_ns: Of a local file; 0 for others.
        etag: What a server said of its content; its ``Last-Modified`` where there is no ETag.
        digest: blake3 of the first `read` bytes.
        read: Bytes whose rows are in the dataset; less than `size` where a line was not finished.
        rows: How many rows they had.
        seen_ns: When it was looked at, by the clock of the machine that did.
    """

    path: str
    size: int
    mtime_ns: int = 0
    etag: str = ""
    digest: str = ""
    read: int = 0
    rows: int = 0
    seen_ns: int = 0


class SourceState(msgspec.Struct, frozen=True, kw_only=True):
    """How far a source was read.

    Attributes:
        generation: Counts the pulls that changed anything.
        watermark: The greatest one read, as text; empty before the first pull.
        files: By path.
    """

    generation: int = 0
    watermark: str = ""
    files: tuple[SourceFile, ...] = ()


class PullDraft(msgspec.Struct, frozen=True, kw_only=True):
    """What a pull found, on its way into the catalog.

    Attributes:
        generation: Of the state that it started from; another one is a Conflict.
        since: The watermark from which on rows were read; empty means all.
        watermark: The new one.
        files: Those that were read.
        touched: Those that have another time or name, and the bytes that they had.
        gone: Paths of files that are forgotten.
        read: Rows that were read.
        sources: URIs for the lineage.
        notes: What whoever pulls should know.
        full: Whether everything was read, whatever was known.
    """

    generation: int
    since: str = ""
    watermark: str = ""
    files: tuple[SourceFile, ...] = ()
    touched: tuple[SourceFile, ...] = ()
    gone: tuple[str, ...] = ()
    read: int = 0
    sources: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    full: bool = False
    run_id: str = ""
    note: str = ""


class Pull(msgspec.Struct, frozen=True, kw_only=True):
    """One pull and the version that it led to.

    Attributes:
        number: Of the dataset's version: a new one, or the one that has all of it already.
        is_new: Whether it made that version.
        source: The locations, and of a database the query.
        read: Rows that were read.
        since, watermark: From which watermark on rows were read, and the greatest among them.
        files: What was read of files: sizes, ETags, digests.
        notes: What whoever pulls should know, such as files that went.
    """

    dataset: str
    number: int
    is_new: bool
    source: tuple[str, ...]
    query: str = ""
    mode: SourceMode = "append"
    read: int = 0
    rows: int = 0
    since: str = ""
    watermark: str = ""
    files: tuple[SourceFile, ...] = ()
    notes: tuple[str, ...] = ()
    full: bool = False
    run_id: str = ""
    actor: str = ""
    at: datetime

    @property
    def ref(self) -> str:
        """``name@number`` of the version."""
        return f"{self.dataset}@{self.number}"
