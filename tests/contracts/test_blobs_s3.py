"""S3Blobs keeps the contract, and what only a store in a bucket can be asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from everloop.backends.blobs.s3 import S3Blobs
from everloop.ports.blobs import BlobStore
from everloop.testing.blobs import BlobStoreContract


class TestS3Blobs(BlobStoreContract):
    @pytest.fixture(autouse=True)
    def _place(self, s3: str, s3_endpoint: str) -> None:
        self.url, self.endpoint = f"{s3}/some/where", s3_endpoint

    def make(self, folder: Path) -> BlobStore:
        return S3Blobs(self.url, folder / "cache", endpoint=self.endpoint)
