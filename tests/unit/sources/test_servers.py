"""Files from HTTP and buckets, queries of SQLite: only what changed, whole, from where one may."""

from __future__ import annotations

import gzip
import io
import sqlite3
import sys
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest

import everloop as ev
from everloop import settings
from everloop.backends.sources import buckets
from everloop.backends.sources.http import HttpFiles
from everloop.errors import (
    BackendError,
    EverloopError,
    InvalidInput,
    NotAllowed,
    NotFound,
    TooLarge,
)
from everloop.workspace import Workspace
from tests.unit.sources.conftest import rows


class Site:
    """What a web server has, and what it was asked."""

    def __init__(self) -> None:
        self.url = ""
        self.pages: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.asked: list[dict[str, str]] = []

    def put(self, path: str, body: bytes, status: int = 200, **headers: str) -> str:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.pages[path] = (status, named, body)
        return self.url + path


@contextmanager
def serving() -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.asked.append({k.lower(): v for k, v in self.headers.items()} | {":": self.path})
            status, headers, body = site.pages.get(self.path, (404, {}, b""))
            if headers.get("ETag") and headers["ETag"] == self.headers.get("If-None-Match"):
                status, body = 304, b""
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        site.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield site
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def web() -> Iterator[Site]:
    with serving() as site:
        yield site


@pytest.fixture
def site(web: Site, home: Workspace) -> Site:
    web.pages.clear()
    web.asked.clear()
    return web


def test_a_file_is_fetched_again_only_if_it_changed(site: Site, home: Workspace) -> None:
    url = site.put("/a.csv", b"id\n1\n", ETag='"1"')
    source = ev.data_source("d", url, key="id")
    made = ev.pull(source)
    assert (made.files[0].etag, made.files[0].size) == ('"1"', 5)
    assert not ev.pull(source).is_new
    assert site.asked[-1]["if-none-match"] == '"1"'
    site.put("/a.csv", b"id\n1\n2\n", ETag='"2"')
    assert ev.pull(source).rows == 2
    assert home.lineage.upstream("dataset:d@2", depth=1).of_kind("external") == (f"external:{url}",)


def test_without_an_etag_the_time_or_the_bytes_tell(site: Site) -> None:
    when = "Mon, 01 Jan 2024 00:00:00 GMT"
    source = ev.data_source("d", site.put("/a.csv", b"id\n1\n", Last_Modified=when), key="id")
    ev.pull(source)
    assert not ev.pull(source).is_new
    assert site.asked[-1]["if-modified-since"] == when
    plain = ev.data_source("e", site.put("/b.csv", b"id\n1\n"), key="id")
    ev.pull(plain)
    assert ev.pull(plain).read == 0
    site.put("/b.csv", b"id\n2\n")
    assert ev.pull(plain).rows == 2


def test_packed_answers_are_unpacked_and_packed_files_are_not_twice(site: Site) -> None:
    data = gzip.compress(b"id\n1\n2\n")
    ev.pull(ev.data_source("d", site.put("/a.csv", data, Content_Encoding="gzip")))
    ev.pull(ev.data_source("e", site.put("/a.csv.gz", data)))
    assert rows("d") == rows("e") == [{"id": 1}, {"id": 2}]
    assert site.asked[-1]["accept-encoding"] == "identity"


def test_redirects_are_followed_a_few_times_without_the_password(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "tops3cret")
    with serving() as other:
        there = other.put("/b.csv", b"id\n1\n")
        url = site.put("/a.csv", b"", 302, Location="/c.csv")
        site.put("/c.csv", b"", 307, Location=there)
        ev.pull(ev.data_source("d", url, credentials="env:TOKEN"))
        assert [asked.get("authorization") for asked in site.asked] == ["Bearer tops3cret"] * 2
        assert "authorization" not in other.asked[0]
    site.put("/a.csv", b"", 301, Location="/a.csv")
    with pytest.raises(BackendError, match="more than 5 redirects") as got:
        ev.pull(ev.data_source("e", url, credentials="env:TOKEN"))
    assert "tops3cret" not in str(got.value)
    site.put("/a.csv", b"", 301, Location="file:///etc/passwd")
    with pytest.raises(BackendError, match="no address"):
        ev.pull(ev.data_source("e", url))


@pytest.mark.parametrize(
    ("status", "headers", "body", "error", "words"),
    [
        (404, {}, b"", NotFound, "nothing at"),
        (401, {}, b"", BackendError, "answered 401"),
        (500, {}, b"", BackendError, "answered 500"),
        (200, {"Content-Length": "99"}, b"id\n1\n", BackendError, "broke off"),
        (
            200,
            {"Content-Encoding": "gzip"},
            gzip.compress(b"id\n1\n", mtime=0)[:-9],
            BackendError,
            "broke",
        ),
        (200, {"Content-Encoding": "gzip"}, b"id\n1\n", BackendError, "damaged"),
        (200, {"Content-Encoding": "br"}, b"id\n1\n", BackendError, "packed as br"),
        (200, {}, b"id\n" + b"1\n" * 600, TooLarge, "more than 1000 bytes"),
        (
            200,
            {"Content-Encoding": "gzip"},
            gzip.compress(b"\0" * 10**7, mtime=0),
            TooLarge,
            "1000 bytes",
        ),
    ],
)
def test_half_a_file_is_no_file(
    site: Site, status: int, headers: Any, body: bytes, error: type[EverloopError], words: str
) -> None:
    site.pages["/a.csv"] = (status, headers, body)
    with pytest.raises(error, match=words):
        ev.pull(ev.data_source("d", f"{site.url}/a.csv", most_bytes=1000))
    with pytest.raises(NotFound):
        ev.read("d")


def test_what_was_declared_through_a_server_keeps_to_the_public_internet(
    site: Site, home: Workspace
) -> None:
    site.put("/a.csv", b"id\n1\n")
    for url in (f"{site.url}/a.csv", "https://127.0.0.1/a.csv", "https://169.254.169.254/latest"):
        with pytest.raises(NotAllowed):
            HttpFiles(guarded=True).fetch(HttpFiles().find(url)[0], "", io.BytesIO())
    assert site.asked == []
    host = site.url.removeprefix("http://")
    files = HttpFiles(guarded=True, hosts=[host])
    assert files.fetch(files.find(f"{site.url}/a.csv")[0], "", io.BytesIO())
    # The same through a declaration.
    Path("../outside.csv").write_text("id\n1\n")
    for location in ("../outside.csv", "sqlite:///../x.db", f"{site.url}/a.csv"):
        query = "SELECT 1 AS a" if location.startswith("sqlite") else ""
        Path("../x.db").touch()
        source = msgspec.structs.replace(ev.data_source("d", location, query=query), guarded=True)
        assert home.catalog is not None
        with home.catalog.write() as tx:
            from everloop.catalog.sources import put_source

            put_source(tx, source, "somebody")
        with pytest.raises(NotAllowed):
            ev.pull("d")


def test_a_bucket(home: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    import obstore
    from obstore.store import MemoryStore

    store = MemoryStore()
    for key in ("in/1.csv", "in/2.csv", "in/deep/3.csv", "out/4.csv"):
        obstore.put(store, key, f"id\n{key[-5]}\n".encode())
    monkeypatch.setattr(buckets.BucketFiles, "_store", lambda *_: store)
    flat = ev.data_source("flat", "s3://lake/in/*.csv", key="id")
    assert [f.path for f in ev.pull(flat).files] == ["s3://lake/in/1.csv", "s3://lake/in/2.csv"]
    assert ev.pull(ev.data_source("deep", "s3://lake/**/*.csv")).rows == 4
    obstore.put(store, "in/2.csv", b"id\n2\n9\n")
    made = ev.pull(flat)
    assert ([f.path for f in made.files], made.rows) == (["s3://lake/in/2.csv"], 3)
    with pytest.raises(NotFound, match="no file is at"):
        ev.pull(ev.data_source("none", "s3://lake/none.csv"))
    assert ev.pull(ev.data_source("one", "s3://lake/out/4.csv")).rows == 1


def test_a_bucket_that_cannot_be_reached_tells_no_secret(
    home: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAKE", "id:tops3cret")
    source = ev.data_source("d", "gs://lake/a.csv", credentials="env:LAKE")
    with pytest.raises(InvalidInput, match="none of S3") as got:
        ev.pull(source)
    assert "tops3cret" not in str(got.value)


# --- SQLite --------------------------------------------------------------------------------------


@pytest.fixture
def shop(home: Workspace) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect("shop.db", isolation_level=None)
    connection.execute("CREATE TABLE orders (id INTEGER, x, at TEXT)")
    yield connection
    connection.close()


def from_sqlite(**more: Any) -> Any:
    given = {"query": "SELECT * FROM orders", "watermark": "at", "key": "id"} | more
    return ev.data_source("orders", "sqlite:///shop.db", **given)


def test_sqlite_by_watermark(shop: sqlite3.Connection) -> None:
    shop.executemany(
        "INSERT INTO orders VALUES (?, ?, ?)",
        [(1, 1, "2024-01-01T10:00:00.5Z"), (2, 2.5, "2024-01-01T10:00:01.0Z")],
    )
    made = ev.pull(from_sqlite(lookback="1s"))
    assert rows("orders")[0] == {"id": 1, "x": 1.0, "at": "2024-01-01T10:00:00.5Z"}
    shop.execute("INSERT INTO orders VALUES (3, 1, '2024-01-01T10:00:00.5Z')")
    shop.execute("UPDATE orders SET x = 9, at = '2024-01-01T11:00:00.0Z' WHERE id = 1")
    made = ev.pull("orders")
    assert made.since == "2024-01-01T10:00:00.0Z"
    assert [(r["id"], r["x"]) for r in rows("orders")] == [(1, 9.0), (2, 2.5), (3, 1.0)]


@pytest.mark.parametrize("kind", ["string", "timestamp"])
def test_sqlite_without_a_key(shop: sqlite3.Connection, kind: Any) -> None:
    day = ["2024-01-01 10:00:00", "2024-01-02 10:00:00", "2024-01-02 10:05:00"]
    shop.executemany("INSERT INTO orders VALUES (?, 1, ?)", [(1, day[0]), (2, day[1]), (2, day[1])])
    schema = ev.Schema([ev.Field("at", kind)], extra="allow")
    source = from_sqlite(key=(), schema=schema)
    assert ev.pull(source).rows == 3
    shop.executemany("INSERT INTO orders VALUES (?, 1, ?)", [(2, day[1]), (3, day[2])])
    made = ev.pull(source)
    assert (made.read, made.rows, made.since) == (4, 5, "2024-01-02 09:50:00")
    assert ev.pull(source).rows == 5


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([(1, 1, "2024-01-01"), (2, "x", "2024-01-01")], "x: holds integer and text"),
        ([(1, None, "2024-01-01")], "x: has no value"),
        ([(1, 1, "2024-01-01T00:00:00Z"), (2, 1, "2024-01-01T00:00:00+02:00")], "several forms"),
        ([(1, 1, "yesterday")], "no time"),
        ([(1, 1, b"\xff")], "watermark at is binary"),
    ],
)
def test_sqlite_values_of_no_one_type(
    shop: sqlite3.Connection, values: list[Any], words: str
) -> None:
    shop.executemany("INSERT INTO orders VALUES (?, ?, ?)", values)
    with pytest.raises(InvalidInput, match=words):
        ev.pull(from_sqlite())


@pytest.mark.parametrize(
    "query", ["SELECT * FROM nowhere", "SELECT", "WITH x AS (SELECT 1) DELETE"]
)
def test_sqlite_refuses_what_is_no_select(shop: sqlite3.Connection, query: str) -> None:
    with pytest.raises(InvalidInput, match="cannot be run"):
        ev.pull(from_sqlite(query=query, watermark=""))


def test_sqlite_that_is_none(home: Workspace) -> None:
    with pytest.raises(NotFound, match="no database"):
        ev.pull(from_sqlite())
    Path("shop.db").write_bytes(b"no database at all" * 99)
    with pytest.raises(BackendError, match="cannot be read"):
        ev.pull(from_sqlite())


# --- what a source may say -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "more", "words"),
    [
        ("postgresql://u:tops3cret@db/x", {"query": "SELECT 1"}, "holds a password"),
        ("postgresql://db/x?password=tops3cret", {"query": "SELECT 1"}, "holds a password"),
        ("https://x/a.csv?X-Amz-Signature=tops3cret", {}, "holds a password or token"),
        ("https://tops3cret@x/a.csv", {}, "holds a user"),
        ("a.csv", {"credentials": "tops3cret"}, "must say where it is"),
        ("ftp://x/a.csv", {}, "none of file, http"),
        ("a.unknown", {}, "must be one of parquet"),
        ("postgresql://db/x", {}, "a database needs one"),
        ("postgresql://db/x", {"query": "DELETE FROM x"}, "must be one SELECT"),
        ("postgresql://db/x", {"query": "SELECT 1", "mode": "append"}, "watermark: is needed"),
        ("a.csv", {"watermark": "x"}, "is of databases"),
        ("a.csv", {"mode": "upsert"}, "key: is needed"),
        ("a.csv", {"encoding": "klingon"}, "unknown"),
        ("a.csv", {"delimiter": "\n"}, "one ASCII sign"),
        (
            "postgresql://db/x",
            {"query": "SELECT 1", "watermark": "a", "lookback": "soon"},
            "length",
        ),
        ((), {}, "must not be empty"),
        ("https://[x/a.csv", {}, "malformed"),
    ],
)
def test_a_wrong_source_is_refused_without_showing_secrets(
    location: Any, more: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidInput, match=words) as got:
        ev.data_source("d", location, **more)
    assert "tops3cret" not in str(got.value)


def test_a_secret_of_the_keyring(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = types.ModuleType("keyring")
    ring.get_password = lambda service, user: f"{service} {user}"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "keyring", ring)
    assert settings.secret("keyring:shop/reader") == "shop reader"
    monkeypatch.setitem(sys.modules, "keyring", None)
    with pytest.raises(EverloopError, match="optional library"):
        settings.secret("keyring:shop/reader")
