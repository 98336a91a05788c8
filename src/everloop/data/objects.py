"""ObjectService: bytes by content, recorded in the catalog."""

from __future__ import annotations

import re
from datetime import timedelta

from sqlalchemy import select

from everloop import settings
from everloop.access.policy import Authorizer
from everloop.access.service import Service, action
from everloop.catalog.datasets import add_objects
from everloop.catalog.engine import Catalog
from everloop.catalog.tables import objects
from everloop.core.collect import Collected
from everloop.core.time import duration_micros
from everloop.data.collect import collect
from everloop.errors import InvalidInput
from everloop.ports.blobs import BlobStore

__all__ = ["GRACE", "ObjectService"]

#: How long an object that nothing names stays at least.
GRACE = "24h"


class ObjectService(Service):
    """Keeps bytes under the blake3 digest of their content."""

    area = "objects"

    def __init__(self, catalog: Catalog, blobs: BlobStore, authorizer: Authorizer) -> None:
        self._catalog = catalog
        self._blobs = blobs
        self._authorizer = authorizer

    @action("object:write")
    def put(self, data: bytes) -> str:
        """Store `data` and return its digest, 64 hex digits; what is there is not stored again.

        Raises:
            BackendError: If it could not be stored; nothing is left behind.
        """
        digest, size = self._blobs.put(data)
        with self._catalog.read() as tx:
            known = tx.first(select(objects.c.size).where(objects.c.digest == digest))
        if known is None:
            with self._catalog.write(ordered=False) as tx:
                add_objects(tx, [(digest, size)])
        return digest

    @action("object:write")
    def put_many(self, data: list[bytes]) -> list[str]:
        """Store several objects, which takes far less time than one by one; as `put` for each."""
        stored = self._blobs.put_many(data)
        with self._catalog.write(ordered=False) as tx:
            add_objects(tx, stored)
        return [digest for digest, _ in stored]

    @action("object:read", on="digest")
    def get(self, digest: str) -> bytes:
        """The bytes of an object, checked against the digest.

        Raises:
            NotFound: If there is no such object.
            BackendError: If the stored bytes are damaged.
        """
        return self._blobs.get(digest)

    @action("object:read")
    def get_many(self, digests: list[str]) -> list[bytes]:
        """Several objects, as `get` for each; all of them are in memory at once."""
        return self._blobs.get_many(digests)

    @action("object:write", on="digest")
    def keep(self, digest: str) -> bool:
        """Say that an object is wanted: it is not removed soon. False if it is not there."""
        return self._blobs.keep(digest)

    @action("object:write")
    def keep_many(self, digests: list[str]) -> list[str]:
        """As `keep` for each; those that are not there."""
        return self._blobs.keep_many(digests)

    @action("workspace:collect")
    def collect(
        self, *, older_than: str = "", grace: str = GRACE, dry_run: bool = False
    ) -> Collected:
        """Purge what was deleted long ago and remove objects that nothing refers to any more.

        What a row of the catalog names, directly or through a code snapshot or a stored value,
        stays. Safe beside writers, and safe to kill and run again.

        Args:
            older_than: What was deleted so long ago is purged, such as ``30d``; the setting
                ``EVERLOOP_UNDO`` if empty. ``0d`` purges all that is deleted.
            grace: Objects put so lately stay: a writer may be about to name them. Longer than any
                step of a pipeline takes from storing its result to its end.
            dry_run: Only count; writers wait while it does.

        Raises:
            InvalidInput: If a length of time is none.
            StateError: If the object store does not know the age of its objects.
        """
        faults = []
        lengths = {"older_than": older_than or settings.load().undo, "grace": grace}
        micros = {}
        for name, text in lengths.items():
            try:
                micros[name] = _length(text)
            except InvalidInput as error:
                faults.append((name, error.summary))
        if faults:
            raise InvalidInput("the collection is wrong", faults, hint='write "30d" or "12h"')
        before = self._catalog.clock.now() - timedelta(microseconds=micros["older_than"])
        return collect(
            self._catalog,
            self._blobs,
            before=before,
            grace_s=micros["grace"] / 1e6,
            dry_run=dry_run,
        )


def _length(text: str) -> int:
    is_zero = re.fullmatch(r"0+(us|ms|min|[smhdw])?", text.strip()) is not None
    return 0 if is_zero else duration_micros(text)
