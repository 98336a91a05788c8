"""The services for tests keep their word: each test its own, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psycopg
import pytest
import redis
from playwright.sync_api import Page

from tests import services

pytest_plugins = ["pytester"]

PAGE = b"""<!doctype html><title>Loop</title><h1>waiting</h1>
<script>document.querySelector("h1").textContent = "alive"</script>"""


@pytest.fixture
def page_url() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(PAGE)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def wait_until_gone(folder: Path) -> None:
    deadline = time.monotonic() + 20
    while folder.exists():
        assert time.monotonic() < deadline, f"{folder} is still there"
        time.sleep(0.05)


def test_databases_are_writable_with_a_catalog_and_without(
    postgres_database: str, empty_postgres_database: str
) -> None:
    for url, is_made in ((postgres_database, True), (empty_postgres_database, False)):
        with psycopg.connect(url) as connection:
            found = connection.execute("select to_regclass('public.events')").fetchone()
            assert (found != (None,)) is is_made
            tables = connection.execute("select * from pg_tables where schemaname = 'public'")
            assert (tables.fetchall() != []) is is_made
            connection.execute("create table t (i int)")


def test_database_is_dropped_even_while_a_client_holds_it(
    postgres_url: str, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(services.POSTGRES_ENV, postgres_url)
    pytester.makepyfile(
        """
        import contextlib
        import psycopg
        import pytest
        from tests.services import *

        @pytest.fixture
        def held():
            with contextlib.ExitStack() as closed_after_the_drop:
                yield closed_after_the_drop

        def test_hold(held, postgres_database):
            held.enter_context(contextlib.closing(psycopg.connect(postgres_database)))
            print("made", postgres_database.rsplit("/", 1)[1])
        """
    )
    result = pytester.runpytest_inprocess("-s", "-p", "no:xdist")
    result.assert_outcomes(passed=1)
    name = next(line.split("made ")[1] for line in result.outlines if "made " in line)
    with psycopg.connect(postgres_url) as admin:
        left = admin.execute("select 1 from pg_database where datname = %s", [name.strip()])
        assert left.fetchone() is None


def test_private_postgres_starts_and_leaves_nothing() -> None:
    server = services.start_postgres()
    with psycopg.connect(server.url) as connection:
        row = connection.execute("show data_directory").fetchone()
        assert row is not None
        folder = Path(row[0]).parent
    assert folder.is_dir()
    server.stop()
    assert not folder.exists()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(server.url, connect_timeout=3)


def test_private_redis_starts_and_leaves_nothing() -> None:
    server = services.start_redis()
    with redis.Redis.from_url(server.url) as client:
        folder = Path(client.config_get("dir")["dir"])
    assert folder.is_dir()
    server.stop()
    assert not folder.exists()


def test_private_server_ends_when_its_worker_is_killed() -> None:
    code = (
        "import time, redis; from tests import services\n"
        "server = services.start_redis()\n"
        "print(redis.Redis.from_url(server.url).config_get('dir')['dir'], flush=True)\n"
        "time.sleep(60)"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root
    ) as worker:
        assert worker.stdout is not None
        folder = Path(worker.stdout.readline().strip())
        assert folder.is_dir()
        os.kill(worker.pid, signal.SIGKILL)
    wait_until_gone(folder)


def test_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no such option')"]
    with pytest.raises(services.ServiceMissingError, match="no such option"):
        services._start("redis://", tmp_path, "SIGTERM", command, lambda url: "no answer")
    assert not tmp_path.exists()


def test_named_service_that_is_down_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(services.REDIS_ENV, "redis://127.0.0.1:1/0")
    provided = services.provide(
        services.REDIS_ENV, services.REDIS_LOOPBACK, services._redis_fault, services.start_redis
    )
    with pytest.raises(services.ServiceMissingError, match=services.REDIS_ENV), provided:
        pass


def test_missing_program_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services.os, "geteuid", lambda: 1000)
    with pytest.raises(services.ServiceMissingError, match=r"not root.*Debian: no-such-package"):
        services.need_program("no-such-program", package="no-such-package")


def test_redis_prefix_is_free(redis_url: str, redis_prefix: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert list(client.scan_iter(match=f"{redis_prefix}*")) == []
        client.set(f"{redis_prefix}key", 1)


def test_browser_runs_the_page(browser_page: Page, page_url: str, tmp_path: Path) -> None:
    browser_page.goto(page_url)
    assert browser_page.title() == "Loop"
    assert browser_page.inner_text("h1") == "alive"
    shot = browser_page.screenshot(path=tmp_path / "page.png")
    assert shot.startswith(b"\x89PNG")
