"""Claims: one holder at a time, over threads and processes, and none after the holder's end."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from everloop.catalog.engine import Catalog

A, B, C = ("a" * 64, "b" * 64, "c" * 64)

HOLDER = """
import sys
from everloop.catalog.engine import Catalog
catalog = Catalog(sys.argv[1])
print(*sorted(catalog.claims.take(sys.argv[2:])), flush=True)
sys.stdin.read()
"""


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def holder(url: str, *keys: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, url, *keys],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def told(process: subprocess.Popen[str]) -> set[str]:
    assert process.stdout is not None
    return set(process.stdout.readline().split())


def test_a_claim_is_taken_once_and_again_when_released(catalog: Catalog) -> None:
    assert catalog.claims.take([A, B]) == {A, B}
    assert catalog.claims.take([A, C]) == {C}
    catalog.claims.release([A, "d" * 64])
    assert catalog.claims.take([A, B]) == {A}


def test_nothing_is_taken_of_nothing(catalog: Catalog) -> None:
    assert catalog.claims.take([]) == set()
    catalog.claims.release([])


def test_another_process_sees_it_and_its_death_ends_it(catalog: Catalog, catalog_url: str) -> None:
    assert catalog.claims.take([A]) == {A}
    with holder(catalog_url, A, B) as process:
        assert told(process) == {B}
        assert catalog.claims.take([B, C]) == {C}
        process.kill()
        process.communicate()
    for _ in range(200):  # a database needs a moment to notice
        if catalog.claims.take([B]):
            return
    pytest.fail("the claim outlived its holder")


def test_a_closed_catalog_gives_up_what_another_one_then_takes(
    place: str, catalog: Catalog, catalog_url: str
) -> None:
    other = Catalog(catalog_url)
    assert other.claims.take([A]) == {A}
    assert catalog.claims.take([A]) == set()
    other.claims.release([A])
    other.close()
    assert catalog.claims.take([A]) == {A}


def test_of_many_threads_one_gets_it(catalog: Catalog) -> None:
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda _: len(catalog.claims.take([A])), range(64)))
    assert sum(got) == 1


def test_a_session_that_the_server_dropped_ends_its_claims_and_nothing_else(
    empty_postgres_database: str,
) -> None:
    def drop() -> None:
        with psycopg.connect(empty_postgres_database, autocommit=True) as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )

    catalog = Catalog(empty_postgres_database)
    assert catalog.claims.take([A]) == {A}
    drop()
    catalog.claims.release([A])
    assert catalog.claims.take([A]) == {A}
    drop()
    assert catalog.claims.take([B]) == {B}
    catalog.close()
