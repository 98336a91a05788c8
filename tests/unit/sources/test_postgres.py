"""Pulling from a real PostgreSQL: types, increments, one state, and everything that goes wrong."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pyarrow as pa
import pytest
from psycopg import sql

import everloop as ev
from everloop.backends.sources.postgres import PostgresServer
from everloop.core.source import DataSource
from everloop.errors import BackendError, Conflict, EverloopError, InvalidInput, NotFound
from everloop.workspace import Workspace
from tests.services import _database
from tests.unit.sources.conftest import rows


@pytest.fixture(scope="module")
def database(postgres_url: str) -> Iterator[str]:
    with _database(postgres_url, "template0") as url:
        yield url


class Shop:
    """A schema of its own in the database, emptied by nobody else."""

    def __init__(self, url: str, connection: Any, name: str) -> None:
        self.url, self.connection, self.name = url, connection, name

    def __call__(self, text: str, *values: Any) -> Any:
        return self.connection.execute(text, values)

    def orders(self, **more: Any) -> DataSource:
        query = more.pop("query", f"SELECT * FROM {self.name}.orders")
        given = {"watermark": "updated_at", "key": "id"} | more
        return ev.data_source("orders", self.url, query=query, **given)


@pytest.fixture
def shop(database: str, home: Workspace) -> Iterator[Shop]:
    name = f"s{secrets.token_hex(4)}"
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {name}")
        connection.execute(f"SET search_path = {name}")
        yield Shop(database, connection, name)
        connection.execute(f"DROP SCHEMA {name} CASCADE")


ORDERS = "CREATE TABLE orders (id bigint PRIMARY KEY, state text, updated_at timestamptz)"


def filled(shop: Shop, *ids: int, minute: int = 0) -> None:
    for number in ids:
        moment = datetime(2024, 1, 1, 0, minute, tzinfo=UTC)
        shop("INSERT INTO orders VALUES (%s, 'new', %s)", number, moment)


def test_every_type_is_what_it_was(shop: Shop, home: Workspace) -> None:
    shop("CREATE TYPE mood AS ENUM ('sad', 'ok')")
    shop(
        "CREATE TABLE kinds (b bool, i2 smallint, i4 int, i8 bigint, f4 real, f8 float8,"
        " n numeric(12,2),"
        " n0 numeric(18,0), t text, v varchar(9), c char(3), u uuid, j json, jb jsonb, d date,"
        " tz timestamptz, ts timestamp, by bytea, e mood, a int[], ta text[], ti time, iv interval,"
        " ip inet)"
    )
    shop(
        "INSERT INTO kinds VALUES (true, -32768, 2147483647, 9223372036854775807, 1.1, 0.1,"
        " 1234567890.12, 999999999999999999, E'a\"b,\\nc', '', 'x',"
        " '6f9619ff-8b86-d011-b42d-00cf4fc964ff', '{\"k\": [1]}', '{\"k\": null}', '2024-02-29',"
        " '2024-01-01 01:00+02', '2024-01-01 01:00:00.123456', E'\\\\x00ff', 'ok', '{1,NULL}',"
        " '{\"a,b\"}', '12:00', '1 day', '10.0.0.1')"
    )
    shop("INSERT INTO kinds (i8) VALUES (NULL)")
    made = ev.pull(ev.data_source("kinds", shop.url, query=f"SELECT * FROM {shop.name}.kinds"))
    first, empty = rows("kinds")
    assert set(empty.values()) == {None}
    assert first == {
        "b": True, "i2": -32768, "i4": 2147483647, "i8": 2**63 - 1,
        "f4": pytest.approx(1.1, rel=1e-7), "f8": 0.1, "n": 1234567890.12, "n0": 10**18 - 1,
        "t": 'a"b,\nc', "v": "", "c": "x  ", "u": "6f9619ff-8b86-d011-b42d-00cf4fc964ff",
        "j": '{"k": [1]}', "jb": '{"k": null}', "d": date(2024, 2, 29),
        "tz": datetime(2023, 12, 31, 23, tzinfo=UTC),
        "ts": datetime(2024, 1, 1, 1, 0, 0, 123456, tzinfo=UTC), "by": b"\x00\xff", "e": "ok",
        "a": "[1,null]", "ta": '["a,b"]', "ti": "12:00:00", "iv": "P1D", "ip": "10.0.0.1/32",
    }  # fmt: skip
    kinds = {field.name: field.type for field in home.data.version("kinds").schema.fields}
    assert [kinds[name] for name in ("b", "i2", "i4", "i8", "f4", "d", "tz", "by")] == [
        "bool", "int16", "int32", "int64", "float32", "date", "timestamp", "binary",
    ]  # fmt: skip
    told = " ".join(made.notes)
    assert "n (numeric(12,2)) is kept as float64" in told
    assert "times without a zone are taken as UTC: ts" in told


def test_every_cent_of_a_numeric_comes_back(shop: Shop) -> None:
    shop(
        "CREATE TABLE cents AS SELECT (i * 7919 / 100.0)::numeric(15,2) AS n"
        " FROM generate_series(1, 20000) i"
    )
    ev.pull(ev.data_source("cents", shop.url, query=f"SELECT * FROM {shop.name}.cents"))
    there = {f"{row[0]}" for row in shop("SELECT n FROM cents").fetchall()}
    assert {f"{row['n']:.2f}" for row in rows("cents")} == there


def test_decimals_that_no_column_holds_are_all_refused_until_somebody_says_how(shop: Shop) -> None:
    shop("CREATE TABLE big (a numeric, b numeric(38,10), c money)")
    shop("INSERT INTO big VALUES (1.00000000000000000001, 12345678901234567890.5, 1)")
    query = f"SELECT * FROM {shop.name}.big"
    with pytest.raises(InvalidInput, match="decimals") as got:
        ev.pull(ev.data_source("big", shop.url, query=query))
    assert [fault.path for fault in got.value.faults] == ["a", "b", "c"]
    schema = ev.Schema([ev.Field("a", "string"), ev.Field("b", "string"), ev.Field("c", "float64")])
    ev.pull(ev.data_source("big", shop.url, query=query, schema=schema))
    assert rows("big") == [
        {"a": "1.00000000000000000001", "b": "12345678901234567890.5000000000", "c": 1.0}
    ]


def test_nulls_empty_texts_and_one_column(shop: Shop) -> None:
    shop("CREATE TABLE one (t text)")
    shop("INSERT INTO one VALUES (NULL), (''), (E'\\\\.'), ('\"'), (E'a\\r\\nb'), ('NULL'), (NULL)")
    ev.pull(ev.data_source("one", shop.url, query=f"SELECT * FROM {shop.name}.one"))
    assert [r["t"] for r in rows("one")] == [None, "", "\\.", '"', "a\r\nb", "NULL", None]


def test_only_what_is_new_is_read_and_ties_are_not_lost(shop: Shop, home: Workspace) -> None:
    shop(ORDERS)
    filled(shop, 1, 2)
    first = ev.pull(shop.orders(lookback="0"))
    assert (first.read, first.rows, first.watermark) == (2, 2, "2024-01-01T00:00:00.000000+00:00")
    again = ev.pull("orders")
    assert (again.read, again.is_new, again.number) == (2, False, 1)
    filled(shop, 3)  # at the very watermark
    filled(shop, 4, minute=5)
    shop("UPDATE orders SET state = 'paid', updated_at = '2024-01-01 00:06+00' WHERE id = 1")
    second = ev.pull("orders")
    assert (second.read, second.rows, second.since) == (4, 4, first.watermark)
    assert [(r["id"], r["state"]) for r in rows("orders")] == [
        (1, "paid"), (2, "new"), (3, "new"), (4, "new"),
    ]  # fmt: skip
    assert len(home.data.version("orders").blocks) == 2, "only rows that changed are stored"
    third = ev.pull("orders")
    assert (third.read, third.is_new) == (1, False)


def test_rows_that_come_late_are_found_within_the_lookback(shop: Shop) -> None:
    shop(ORDERS)
    filled(shop, 1, minute=30)
    ev.pull(shop.orders(lookback="10m"))
    filled(shop, 2, minute=25)
    filled(shop, 3, minute=19)
    assert ev.pull("orders").rows == 2, "of the two late ones the one within ten minutes"


def test_without_a_key_rows_are_added_once_each(shop: Shop) -> None:
    shop("CREATE TABLE orders (item text, n bigint)")
    shop("INSERT INTO orders VALUES ('a', 1), ('b', 2), ('b', 2), ('c', NULL)")
    source = shop.orders(watermark="n", key=())
    first = ev.pull(source)
    assert first.notes == ("1 rows have no n: they are read each time",)
    assert ev.pull(source).rows == 4
    shop("INSERT INTO orders VALUES ('b', 2), ('d', 2), ('e', 3), ('f', NULL)")
    assert ev.pull("orders").rows == 8
    assert ev.pull("orders", full=True).rows == 8
    there = sorted(map(str, shop("SELECT item, n FROM orders").fetchall()))
    assert sorted(str((r["item"], r["n"])) for r in rows("orders")) == there


def test_a_watermark_tells_of_no_deletes(shop: Shop, home: Workspace) -> None:
    shop(ORDERS)
    filled(shop, 1, 2, 3)
    ev.pull(shop.orders())
    shop("DELETE FROM orders WHERE id = 2")
    assert ev.pull("orders").rows == 3
    with pytest.raises(InvalidInput, match="tells of no deletes"):
        shop.orders(mode="replace")


def test_a_whole_query_is_compared_by_key(shop: Shop, home: Workspace) -> None:
    shop(ORDERS)
    filled(shop, 1, 2, 3)
    source = shop.orders(watermark="")
    ev.pull(source)
    shop("DELETE FROM orders WHERE id = 2")
    shop("UPDATE orders SET state = 'paid' WHERE id = 3")
    made = ev.pull(source)
    found = home.data.diff("orders", 1, made.number)
    assert (found.added, found.removed, found.changed) == (0, 1, 1)
    assert not ev.pull(source).is_new


@pytest.mark.parametrize("moment", ["2999-01-01 00:00+00", "2999-01-01"])
def test_a_row_of_the_future_does_not_hide_those_to_come(shop: Shop, moment: str) -> None:
    shop(ORDERS)
    shop("INSERT INTO orders VALUES (1, 'odd', %s::timestamptz)", moment)
    first = ev.pull(shop.orders())
    assert "lies in the future" in first.notes[0]
    shop("INSERT INTO orders VALUES (2, 'new', now())")
    assert ev.pull("orders").rows == 2


def test_a_source_that_was_set_back_is_told_of(shop: Shop) -> None:
    shop(ORDERS)
    filled(shop, 1, minute=30)
    before = ev.pull(shop.orders())
    shop("TRUNCATE orders")
    filled(shop, 2, minute=1)
    made = ev.pull("orders")
    assert made.watermark == before.watermark
    assert "are gone" in made.notes[0]
    made = ev.pull("orders", full=True)
    assert made.watermark == "2024-01-01T00:01:00.000000+00:00"
    assert made.rows == 2


def test_one_state_is_read_whatever_is_committed_meanwhile(shop: Shop) -> None:
    shop(
        "CREATE TABLE pairs AS SELECT repeat('x', 250) AS id, 0 AS n"
        " FROM generate_series(1, 90000) i"
    )
    server = PostgresServer(shop.url)
    query = f"SELECT * FROM {shop.name}.pairs"
    with server.read(query, watermark="", since="", wanted={}) as result:
        batches = iter(result.batches)
        seen = [next(batches)]
        shop("UPDATE pairs SET n = 1")
        seen += batches
    assert len(seen) > 1, "it comes in parts"
    table = pa.Table.from_batches(seen)
    assert table.num_rows == 90000
    assert set(table["n"].to_pylist()) == {0}


def test_a_server_that_dies_in_the_middle_leaves_nothing(shop: Shop, home: Workspace) -> None:
    shop(
        "CREATE TABLE orders AS SELECT i::bigint AS id, 'x' AS state, now() AS updated_at"
        " FROM generate_series(1, 9) i"
    )
    ev.pull(shop.orders())
    # It ends its own connection after some rows.
    slow = (
        f"SELECT id, state, CASE WHEN id = 8 AND pg_terminate_backend(pg_backend_pid())"
        f" THEN NULL ELSE updated_at END AS updated_at FROM {shop.name}.orders"
    )
    with pytest.raises(BackendError, match=r"terminat|closed|lost"):
        ev.pull(shop.orders(query=slow))
    assert [v.number for v in home.data.versions("orders")] == [1]
    ev.pull(shop.orders())
    assert home.data.version("orders").rows == 9


@pytest.mark.parametrize(
    ("query", "error", "words"),
    [
        ("SELECT pg_sleep(9), 1 AS id", BackendError, "ended the query"),
        ("SELECT * FROM nowhere", InvalidInput, "nowhere"),
        ("SELECT 1 AS id, 2 AS id", InvalidInput, "columns of one name"),
        ("SELECT 1/0 AS id", InvalidInput, "division by zero"),
        ("SELECT FROM pg_class", InvalidInput, "no columns"),
        ("SELECT 'infinity'::timestamptz AS id", InvalidInput, "id"),
        ("SELECT 1 AS id) AS x; DROP SCHEMA s; --", InvalidInput, "cannot be run"),
        ("WITH gone AS (DELETE FROM orders RETURNING *) SELECT * FROM gone", InvalidInput, "run"),
        ("SELECT nextval('counter') AS id", InvalidInput, "read-only"),
    ],
)
def test_a_query_that_fails_says_why(
    shop: Shop, query: str, error: type[EverloopError], words: str
) -> None:
    shop(ORDERS)
    shop("CREATE SEQUENCE counter")
    url = f"{shop.url}?options=-csearch_path%3D{shop.name}"
    source = ev.data_source("wrong", url, query=query, timeout_s=0.3)
    with pytest.raises(error, match=words):
        ev.pull(source)
    with pytest.raises(NotFound):
        ev.read("wrong")


def test_what_one_may_not_read_is_refused(shop: Shop, postgres_url: str) -> None:
    role = f"r{secrets.token_hex(4)}"
    shop(ORDERS)
    make = sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'tops3cret'").format(sql.Identifier(role))
    shop.connection.execute(make)
    parts = urlsplit(shop.url)
    url = urlunsplit(parts._replace(netloc=f"{role}@{parts.hostname}:{parts.port}"))
    try:
        shop(f"GRANT USAGE ON SCHEMA {shop.name} TO {role}")
        with pytest.raises(BackendError, match="permission denied") as got:
            ev.pull(ev.data_source("orders", url, query=f"SELECT * FROM {shop.name}.orders"))
        assert "GRANT" in got.value.hint
    finally:
        shop(f"DROP OWNED BY {role}")
        shop(f"DROP ROLE {role}")


def test_a_password_is_where_it_is_said_to_be_and_nowhere_else(
    shop: Shop, home: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop(ORDERS)
    filled(shop, 1)
    with pytest.raises(InvalidInput, match="is no secret at env:SHOP_PASSWORD"):
        ev.pull(shop.orders(credentials="env:SHOP_PASSWORD"))
    monkeypatch.setenv("SHOP_PASSWORD", "tops3cret")
    given: list[Any] = []
    real = psycopg.connect
    monkeypatch.setattr(psycopg, "connect", lambda *a, **k: given.append(k) or real(*a, **k))
    ev.pull(shop.orders(credentials="env:SHOP_PASSWORD"))
    assert given[0]["password"] == "tops3cret"
    parts = urlsplit(shop.url)
    nowhere = urlunsplit(parts._replace(netloc="postgres@127.0.0.1:1"))
    with pytest.raises(BackendError) as got:
        ev.pull(
            ev.data_source("x", nowhere, query="SELECT 1 AS a", credentials="env:SHOP_PASSWORD")
        )
    assert "tops3cret" not in f"{got.value} {got.value.__cause__} {got.value.__context__!r}"
    assert home.catalog is not None
    told = repr([event.body for event in home.catalog.events()]) + repr(home.data.sources())
    assert "tops3cret" not in told
    assert "env:SHOP_PASSWORD" in told
    for file in (home.folder).rglob("*"):
        assert not file.is_file() or b"tops3cret" not in file.read_bytes()


def test_two_pulls_at_once_count_once(shop: Shop, home: Workspace) -> None:
    shop(ORDERS)
    filled(shop, *range(1, 6))
    source = home.data.declare_source(shop.orders(key=(), watermark="id"))
    assert source.mode == "append"
    start = threading.Barrier(3)
    outcomes: list[str] = []

    def work() -> None:
        from everloop.core.context import using

        with using(home):
            start.wait()
            try:
                outcomes.append(f"rows {ev.pull('orders').rows}")
            except Conflict as error:
                outcomes.append(error.message.partition(" of")[0])

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "rows 5" in outcomes
    assert set(outcomes) <= {"rows 5", "another pull"}
    assert home.data.version("orders").rows == 5


def test_lineage_names_the_tables_as_openlineage_does(shop: Shop, home: Workspace) -> None:
    shop(ORDERS)
    shop("CREATE TABLE people (id bigint, name text)")
    filled(shop, 1)
    query = (
        f"SELECT o.* FROM {shop.name}.orders o LEFT JOIN {shop.name}.people p ON p.id = o.id"
        " WHERE p.name IS NULL"
    )
    made = ev.pull(shop.orders(query=query))
    above = home.lineage.upstream(f"dataset:{made.ref}", depth=1)
    parts = urlsplit(shop.url)
    place = f"external:postgres://{parts.hostname}:{parts.port}/{parts.path[1:]}.{shop.name}"
    assert set(above.of_kind("external")) == {f"{place}.orders", f"{place}.people"}
    [kept] = home.data.pulls("orders")
    assert kept.query == query
    assert (kept.actor, kept.read) == ("tester", 1)


@pytest.mark.parametrize("kind", ["float8", "text", "uuid"])
def test_a_watermark_needs_an_order(shop: Shop, kind: str) -> None:
    shop(f"CREATE TABLE orders (id int, updated_at {kind})")
    value = "6f9619ff-8b86-d011-b42d-00cf4fc964ff" if kind == "uuid" else "1"
    shop(f"INSERT INTO orders VALUES (1, '{value}')")
    with pytest.raises(InvalidInput, match="watermark"):
        ev.pull(shop.orders())
    with pytest.raises(NotFound, match="updated"):
        ev.pull(shop.orders(watermark="updated"))


def test_types_stay_those_of_the_first_pull(shop: Shop) -> None:
    shop(ORDERS)
    filled(shop, 1)
    ev.pull(shop.orders())
    shop("ALTER TABLE orders ALTER COLUMN state TYPE int USING 7")
    with pytest.raises(InvalidInput, match="state: wanted string, got int32"):
        ev.pull("orders")
    shop("ALTER TABLE orders ALTER COLUMN state TYPE text USING 'x'")
    shop("ALTER TABLE orders ADD COLUMN more text")
    with pytest.raises(InvalidInput, match="more: the schema has no such column"):
        ev.pull("orders")
    shop("ALTER TABLE orders DROP COLUMN more, DROP COLUMN state")
    with pytest.raises(InvalidInput, match="state: the column is missing"):
        ev.pull("orders")


def test_names_are_quoted(shop: Shop) -> None:
    shop('CREATE TABLE "od""d; --" ("a b" int, "sel""ect" text, "é" int, "W" timestamptz)')
    shop('INSERT INTO "od""d; --" VALUES (1, %s, 3, now())', "x")
    query = f'SELECT * FROM {shop.name}."od""d; --" -- and a comment'
    source = ev.data_source("odd", shop.url, query=query, watermark="W")
    ev.pull(source)
    assert ev.pull(source).rows == 1
    assert list(rows("odd")[0]) == ["a b", 'sel"ect', "é", "W"]


def test_rules_judge_what_is_pulled(shop: Shop, home: Workspace) -> None:
    shop(ORDERS)
    filled(shop, 1, 2)
    shop("INSERT INTO orders VALUES (3, 'lost', now())")
    schema = ev.Schema(
        [
            ev.Field("id", "int64"),
            ev.Field("state", "string", among=("new", "paid"), on_fail="drop"),
            ev.Field("updated_at", "timestamp"),
        ],
        key=["id"],
    )
    made = ev.pull(shop.orders(schema=schema))
    assert made.rows == 2
    [change] = home.data.changes(dataset="orders")
    assert (change.rows, change.action) == (1, "dropped")
