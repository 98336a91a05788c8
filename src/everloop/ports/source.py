"""Where data comes from outside: files on a server, and queries of a database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, BinaryIO, NamedTuple, Protocol

__all__ = ["FileServer", "QueryResult", "QueryServer", "RemoteFile"]


class RemoteFile(NamedTuple):
    """A file on a server.

    Attributes:
        path: Its URL, without credentials.
        size: In bytes; -1 if the server does not say.
        etag: What tells one content from another; empty if the server says nothing of the kind.
    """

    path: str
    size: int
    etag: str


class FileServer(Protocol):
    """Serves files. Methods may be called by many threads at once."""

    def find(self, location: str) -> list[RemoteFile]:
        """The files that `location` names, by path; of a server that cannot list them it alone.

        Raises:
            BackendError: If the server cannot be reached or refuses.
        """
        ...

    def fetch(self, file: RemoteFile, known: str, to: BinaryIO) -> RemoteFile | None:
        """Write a file to `to`, whole; None if it is still the one of the ETag `known`.

        Raises:
            NotFound: If there is no such file.
            BackendError: If it cannot be had, or not all of it.
            InvalidInput: If it is too large, or its address must not be asked.
        """
        ...


class QueryResult(NamedTuple):
    """What a query gives, read in one state of the database.

    Attributes:
        batches: Arrow record batches, each read when it is asked for.
        schema: Of all batches; an Arrow schema.
        sources: URIs of the tables that it reads, as OpenLineage names them.
        now: The time by the database's clock when that state was.
        notes: What was made of types that no column here has.
    """

    batches: Iterator[Any]
    schema: Any
    sources: tuple[str, ...]
    now: Any
    notes: tuple[str, ...]


class QueryServer(Protocol):
    """A database."""

    def read(
        self, query: str, *, watermark: str, since: str, wanted: dict[str, str]
    ) -> AbstractContextManager[QueryResult]:
        """Run a query; what it gives is read within the block, in bounded memory.

        Args:
            query: One SELECT.
            watermark: A column of it; empty for none.
            since: Only rows whose watermark is this or greater, or null; empty for all.
            wanted: Field types by column, where they are known.

        Raises:
            InvalidInput: If the query is wrong, or a column has a type that no field holds.
            BackendError: If the database cannot be reached, refuses, or is lost while it reads.
            MissingExtra: Without its driver.
        """
        ...
