"""ObjectService on each database, called directly and through the wire."""

from __future__ import annotations

import pytest
from blake3 import blake3
from sqlalchemy import func, select

from everloop.catalog.engine import Catalog
from everloop.catalog.tables import objects as table
from everloop.data.objects import ObjectService
from everloop.errors import InvalidInput, NotFound


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 5000])
def test_put_then_get(objects: ObjectService, data: bytes) -> None:
    digest = objects.put(data)
    assert digest == blake3(data).hexdigest()
    assert objects.get(digest) == data


def test_equal_bytes_are_recorded_once(objects: ObjectService, catalog: Catalog) -> None:
    assert objects.put(b"same") == objects.put(b"same")
    with catalog.read() as tx:
        assert tx.scalar(select(func.count()).select_from(table)) == 1


def test_absent_and_malformed_digests(objects: ObjectService) -> None:
    with pytest.raises(NotFound):
        objects.get("0" * 64)
    with pytest.raises(InvalidInput):
        objects.get("../catalog.sqlite")
