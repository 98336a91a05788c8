"""ObjectService: bytes by content, recorded in the catalog."""

from __future__ import annotations

from sqlalchemy import select

from everloop.access.policy import Authorizer
from everloop.access.service import Service, action
from everloop.catalog.datasets import add_objects
from everloop.catalog.engine import Catalog
from everloop.catalog.tables import objects
from everloop.ports.blobs import BlobStore

__all__ = ["ObjectService"]


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

    @action("object:read", on="digest")
    def get(self, digest: str) -> bytes:
        """The bytes of an object, checked against the digest.

        Raises:
            NotFound: If there is no such object.
            BackendError: If the stored bytes are damaged.
        """
        return self._blobs.get(digest)
