"""A catalog on each database, and services over it: called directly and through the wire."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from everloop.access.policy import EmbeddedAuthorizer
from everloop.access.remote import remote
from everloop.access.service import Service
from everloop.access.wire import decode_call, encode_result
from everloop.backends.blobs.local import LocalBlobs
from everloop.catalog.engine import Catalog
from everloop.core.time import ManualClock
from everloop.data.objects import ObjectService
from everloop.data.service import DataService
from everloop.errors import EverloopError, error_from_wire, to_wire
from everloop.lineage.service import LineageService

START = datetime(2013, 1, 1, tzinfo=UTC)


@pytest.fixture(params=["sqlite", "postgres", "wire"])
def place(request: pytest.FixtureRequest) -> str:
    """The database; ``wire`` is SQLite, and calls go through the bytes that a server would see."""
    return str(request.param)


@pytest.fixture
def catalog_url(place: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a fresh catalog."""
    if place == "postgres":
        return str(request.getfixturevalue("postgres_database"))
    return f"sqlite:///{tmp_path}/catalog.sqlite"


@pytest.fixture
def empty_url(place: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a database in which no catalog was made yet."""
    if place == "postgres":
        return str(request.getfixturevalue("empty_postgres_database"))
    return f"sqlite:///{tmp_path}/catalog.sqlite"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START)


@pytest.fixture
def catalog(catalog_url: str, clock: ManualClock) -> Iterator[Catalog]:
    opened = Catalog(catalog_url, clock=clock, actor="tester")
    yield opened
    opened.close()


@pytest.fixture
def blobs(tmp_path: Path) -> LocalBlobs:
    return LocalBlobs(tmp_path / "objects")


class WireTransport:
    """A server without a socket: each call goes through the bytes that a server would see."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def call(self, path: str, body: bytes, head_length: int) -> tuple[bytes, int]:
        method = getattr(self._service, path.rsplit("/", 1)[1])
        try:
            return encode_result(method(**decode_call(method, body, head_length)))
        except EverloopError as error:
            raise error_from_wire(to_wire(error)) from None


@pytest.fixture
def reach(place: str) -> Any:
    """Turn a service into what callers hold: itself, or its stand-in."""
    if place != "wire":
        return lambda service: service
    return lambda service: remote(type(service), WireTransport(service))  # type: ignore[arg-type]


@pytest.fixture
def data(catalog: Catalog, blobs: LocalBlobs, reach: Any) -> DataService:
    return reach(DataService(catalog, blobs, EmbeddedAuthorizer()))  # type: ignore[no-any-return]


@pytest.fixture
def objects(catalog: Catalog, blobs: LocalBlobs, reach: Any) -> ObjectService:
    return reach(ObjectService(catalog, blobs, EmbeddedAuthorizer()))  # type: ignore[no-any-return]


@pytest.fixture
def lineage(catalog: Catalog, reach: Any) -> LineageService:
    return reach(LineageService(catalog, EmbeddedAuthorizer()))  # type: ignore[no-any-return]
