"""Catalog on each database: transactions, events, migration, and what users are told."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import func, insert, select, text
from sqlalchemy.event import listen
from sqlalchemy.exc import IntegrityError

from everloop.catalog import migrate, tables
from everloop.catalog.engine import Catalog
from everloop.core.context import acting
from everloop.core.time import ManualClock
from everloop.errors import BackendError, InvalidInput


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def children(code: str, count: int) -> list[tuple[int, str]]:
    """Run `code` in `count` processes at once; the exit status and all output of each."""
    command = [sys.executable, "-c", code]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(count)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in running]
    return [(p.returncode, out) for p, out in zip(running, outputs, strict=True)]


# Transactions


def test_change_and_event_commit_together(catalog: Catalog, clock: ManualClock) -> None:
    with catalog.write() as tx:
        tx.execute(insert(tables.cursors).values(name="c", seq=1))
        event = tx.append("a.Happened", "a:1", {"n": 1})
    assert catalog.events() == [event]
    assert event.at == clock.now()
    assert event.actor == "tester"
    with catalog.read() as tx:
        assert tx.scalar(select(tables.cursors.c.seq)) == 1


def test_error_takes_change_and_event_back(catalog: Catalog) -> None:
    def change() -> None:
        with catalog.write() as tx:
            tx.execute(insert(tables.cursors).values(name="c", seq=1))
            tx.append("a.Happened", "a:1")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        change()
    assert catalog.events() == []
    with catalog.read() as tx:
        assert tx.first(select(tables.cursors)) is None


def test_events_carry_who_and_why(catalog: Catalog) -> None:
    with catalog.write() as tx:
        first = tx.append("a.Happened", "a:1")
    with acting(actor="loop:delay", cause=first.id), catalog.write() as tx:
        second = tx.append("b.Happened", "b:1")
    assert (second.actor, second.cause) == ("loop:delay", first.id)
    assert catalog.events(after=first.seq) == [second]


def test_event_body_keeps_odd_values(catalog: Catalog) -> None:
    body = {
        "text": "ä\n'\"\\",
        "nan": float("nan"),
        "deep": {"list": [1, None, True]},
        "big": 2**53,
    }
    with catalog.write() as tx:
        tx.append("a.Happened", "a:1", body)
    assert catalog.events()[0].body == {**body, "nan": None}


def test_times_survive_to_the_microsecond(catalog: Catalog, clock: ManualClock) -> None:
    for at in (datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999999, UTC)):
        clock.set(at)
        with catalog.write() as tx:
            tx.append("a.Happened", "a:1")
        assert catalog.events(newest=True)[0].at == at


def test_insert_new_tells_who_was_first(catalog: Catalog) -> None:
    with catalog.write() as tx:
        assert tx.insert_new(tables.cursors, {"name": "c", "seq": 1})
        assert not tx.insert_new(tables.cursors, {"name": "c", "seq": 2})
        assert tx.scalar(select(tables.cursors.c.seq)) == 1


def test_upsert_updates_what_is_there(catalog: Catalog) -> None:
    with catalog.write() as tx:
        tx.upsert(tables.cursors, {"name": "a", "seq": 1}, ["name"])
        tx.upsert(tables.cursors, [{"name": "a", "seq": 5}, {"name": "b", "seq": 7}], ["name"])
        tx.upsert(tables.cursors, [], ["name"])
        found = tx.all(select(tables.cursors).order_by(tables.cursors.c.name))
    assert [tuple(row) for row in found] == [("a", 5), ("b", 7)]


def test_taken_key_is_an_integrity_error(catalog: Catalog) -> None:
    with catalog.write() as tx:
        tx.execute(insert(tables.cursors).values(name="c", seq=1))
    with pytest.raises(IntegrityError), catalog.write() as tx:
        tx.execute(insert(tables.cursors).values(name="c", seq=1))


def test_reader_sees_one_state(catalog: Catalog) -> None:
    count = select(func.count()).select_from(tables.cursors)
    with catalog.read() as reader:
        before = reader.scalar(count)
        with catalog.write() as tx:
            tx.upsert(tables.cursors, {"name": "c", "seq": 1}, ["name"])
        assert reader.scalar(count) == before == 0
    with catalog.read() as reader:
        assert reader.scalar(count) == 1


def test_event_numbers_are_in_order_of_commit(catalog: Catalog) -> None:
    # A reader that follows with a cursor must never be overtaken by a lower number.
    seen: list[int] = []
    done = threading.Event()

    def follow() -> None:
        while True:
            last = done.is_set()
            seen.extend(e.seq for e in catalog.events(after=seen[-1] if seen else 0))
            if last:
                return

    def write() -> None:
        for _ in range(10):
            with catalog.write() as tx:
                tx.append("a.Happened", "a:1")

    reader = threading.Thread(target=follow)
    writers = [threading.Thread(target=write) for _ in range(4)]
    reader.start()
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    done.set()
    reader.join()
    assert seen == [event.seq for event in catalog.events()]
    assert len(seen) == 40


def test_counters_lose_no_update(catalog: Catalog) -> None:
    table = tables.cursors
    with catalog.write() as tx:
        tx.upsert(table, {"name": "c", "seq": 0}, ["name"])

    def count() -> None:
        for _ in range(10):
            with catalog.write() as tx:
                now = tx.scalar(select(table.c.seq))
                tx.execute(table.update().values(seq=now + 1))

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with catalog.read() as tx:
        assert tx.scalar(select(table.c.seq)) == 40


def test_killed_writer_leaves_nothing_and_no_lock(catalog_url: str, catalog: Catalog) -> None:
    code = f"""
import os, signal
from everloop.catalog.engine import Catalog
with Catalog({catalog_url!r}).write() as tx:
    tx.append("a.Happened", "a:1")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    [(status, _)] = children(code, 1)
    assert status == -9
    assert catalog.events() == []
    with catalog.write() as tx:
        tx.append("b.Happened", "b:1")
    assert [event.kind for event in catalog.events()] == ["b.Happened"]


def test_catalog_works_on_both_sides_of_a_fork(catalog: Catalog) -> None:
    with catalog.write() as tx:
        tx.append("a.Happened", "a:1")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with catalog.write() as tx:
                tx.append("b.Happened", "b:1")
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert [event.kind for event in catalog.events()] == ["a.Happened", "b.Happened"]


# Opening and migrating


def test_many_processes_open_a_fresh_catalog(empty_url: str) -> None:
    code = f"""
from everloop.catalog.engine import Catalog
with Catalog({empty_url!r}).write() as tx:
    tx.append("a.Happened", "a:1")
"""
    for status, output in children(code, 8):
        assert status == 0, output
    catalog = Catalog(empty_url)
    assert len(catalog.events()) == 8
    with catalog.read() as tx:
        found = tx.all(text("SELECT version_num FROM alembic_version"))
    assert [row[0] for row in found] == [migrate.HEAD]
    catalog.close()


def test_reopened_catalog_is_the_same(catalog_url: str) -> None:
    first = Catalog(catalog_url)
    with first.write() as tx:
        event = tx.append("a.Happened", "a:1")
    first.close()
    second = Catalog(catalog_url)
    assert second.events() == [event]
    second.close()
    second.close()


def test_newer_catalog_is_refused_with_a_sentence(catalog_url: str, catalog: Catalog) -> None:
    with catalog.write() as tx:
        tx.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(BackendError, match="revision 9999, newer than this Everloop") as got:
        Catalog(catalog_url)
    assert "upgrade" in got.value.hint
    with catalog.read() as tx:
        assert tx.scalar(text("SELECT version_num FROM alembic_version")) == "9999"


def test_revisions_name_every_file() -> None:
    folder = Path(migrate.__file__).parent / "migrations" / "versions"
    files = sorted(file.name[:4] for file in folder.glob("[0-9]*.py"))
    assert list(migrate.REVISIONS) == files


# Closing


def is_closed(raw: Any) -> bool:
    try:
        raw.execute("SELECT 1")
    except (sqlite3.ProgrammingError, psycopg.OperationalError) as error:
        return "closed" in str(error)
    return False


@pytest.mark.parametrize("write", [False, True])
def test_connection_in_use_when_the_catalog_is_closed_is_closed_after_use(
    catalog: Catalog, write: bool
) -> None:
    with catalog.write() if write else catalog.read() as tx:
        raw = tx.connection.connection.driver_connection
        catalog.close()
        assert tx.scalar(select(func.count()).select_from(tables.events)) == 0
        assert not is_closed(raw)
    assert is_closed(raw)


@pytest.mark.parametrize("write", [False, True])
def test_driver_cursor_in_use_when_the_catalog_is_closed_is_closed_after_use(
    catalog: Catalog, write: bool
) -> None:
    with catalog.direct(write=write) as tx:
        catalog.close()
        raw = tx.run("SELECT 1").connection
    assert is_closed(raw)


def test_catalog_closed_while_a_connection_goes_back_leaves_none_open(catalog: Catalog) -> None:
    # The narrowest case: it is closed by another thread after this one looked, and before the
    # connection lies in the pool again.
    listen(catalog._reader, "checkin", lambda _raw, _record: catalog.close())
    with catalog.read() as tx:
        raw = tx.connection.connection.driver_connection
    assert is_closed(raw)


def test_connection_opened_after_closing_is_closed_after_use(catalog: Catalog) -> None:
    catalog.close()
    with catalog.read() as tx:
        raw = tx.connection.connection.driver_connection
    assert is_closed(raw)


# What goes wrong outside (SQLite)


def test_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BackendError, match="cannot make the folder"):
        Catalog(f"sqlite:///{tmp_path}/file/sub/catalog.sqlite")


def test_file_that_is_no_catalog_is_said(tmp_path: Path) -> None:
    (tmp_path / "catalog.sqlite").write_bytes(b"something else altogether" * 100)
    with pytest.raises(BackendError, match="not a database") as got:
        Catalog(f"sqlite:///{tmp_path}/catalog.sqlite")
    assert "not an Everloop catalog" in got.value.hint


def test_read_only_catalog_is_said(tmp_path: Path) -> None:
    # As a user without rights: root may write everywhere.
    url = f"sqlite:///{tmp_path}/catalog.sqlite"
    Catalog(url).close()
    for file in tmp_path.iterdir():
        file.chmod(0o444)
    tmp_path.chmod(0o555)
    code = f"""
import os, sqlite3
from sqlalchemy.dialects.sqlite import pysqlite
from everloop.catalog.engine import Catalog
from everloop.errors import BackendError
if os.getuid() == 0:
    os.setuid(65534)
try:
    with Catalog({url!r}).write() as tx:
        tx.append("a.Happened", "a:1")
except BackendError as error:
    print(error)
"""
    reach = [tmp_path, *tmp_path.parents][:-2]
    modes = [(folder, folder.stat().st_mode) for folder in reach[1:]]
    try:
        for folder, mode in modes:
            folder.chmod(mode | 0o011)
        [(status, output)] = children(code, 1)
    finally:
        for folder, mode in modes:
            folder.chmod(mode)
        tmp_path.chmod(0o755)
    assert status == 0, output
    assert "read-only" in output
    assert "--dir" in output


def test_full_database_is_said_and_nothing_is_half_written(tmp_path: Path) -> None:
    catalog = Catalog(f"sqlite:///{tmp_path}/catalog.sqlite")

    def fill() -> None:
        with catalog.write() as tx:
            pages = int(tx.scalar(text("PRAGMA page_count")))
            tx.execute(text(f"PRAGMA max_page_count = {pages + 3}"))
            tx.append("a.Happened", "a:1", {"text": "x" * 100_000})

    with pytest.raises(BackendError, match="full") as got:
        fill()
    assert "free space" in got.value.hint
    assert catalog.events() == []
    catalog.close()


def test_file_limit_is_said_and_the_catalog_lives_on(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/catalog.sqlite"
    first = Catalog(url)
    with first.write() as tx:
        tx.append("a.Happened", "a:1")
    first.close()
    size = max(file.stat().st_size for file in tmp_path.iterdir())
    code = f"""
import resource, signal
from everloop.catalog.engine import Catalog
from everloop.errors import BackendError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({size + 65536}, {size + 65536}))
catalog = Catalog({url!r})
try:
    for n in range(200):
        with catalog.write() as tx:
            tx.append("b.Happened", f"b:{{n}}", {{"text": "x" * 5000}})
        print(n)
except BackendError as error:
    print(error)
"""
    [(status, output)] = children(code, 1)
    assert status == 0, output
    acknowledged = sum(line.isdigit() for line in output.splitlines())
    assert "the catalog" in output
    assert "disk is full, over its quota" in output
    again = Catalog(url)
    assert len(again.events()) == 1 + acknowledged
    again.close()


def test_unreachable_server_is_said() -> None:
    with pytest.raises(BackendError, match=r"127\.0\.0\.1"):
        Catalog("postgresql://postgres@127.0.0.1:1/none")


def test_password_is_not_shown() -> None:
    with pytest.raises(BackendError) as got:
        Catalog("postgresql://postgres:secret@127.0.0.1:1/none")
    assert "secret" not in str(got.value)


def test_unknown_kind_of_catalog_is_refused() -> None:
    with pytest.raises(InvalidInput, match="unknown kind of catalog"):
        Catalog("oracle+x://somewhere/db")


def _count(catalog: Catalog) -> int:
    with catalog.direct(write=False) as tx:
        return int(tx.run("SELECT count(*) FROM metric_keys").fetchone()[0])


def _add(catalog: Catalog, name: str) -> None:
    def work(cursor: Any, dialect: str) -> None:
        mark = "?" if dialect == "sqlite" else "%s"
        cursor.execute(f"INSERT INTO metric_keys (name) VALUES ({mark})", (name,))

    catalog.hot(work)


def test_hot_write_keeps_its_connection_and_rolls_back_on_any_error(catalog: Catalog) -> None:
    _add(catalog, "a")
    [kept] = catalog._kept
    _add(catalog, "b")
    assert catalog._kept == [kept]
    with pytest.raises(BackendError, match=r"(?i)unique"):
        _add(catalog, "a")
    assert catalog._kept == []

    def interrupted(cursor: Any, dialect: str) -> None:
        cursor.execute("INSERT INTO metric_keys (name) VALUES ('c')")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        catalog.hot(interrupted)
    assert _count(catalog) == 2
    _add(catalog, "c")
    catalog.close()
    assert catalog._kept == []


def test_hot_write_goes_on_when_the_server_dropped_its_connection(catalog: Catalog) -> None:
    _add(catalog, "a")
    if catalog._sqlite:  # it has no server: closed is closed
        catalog._kept[0].close()
    else:
        pid = catalog._kept[0].info.backend_pid
        with catalog.direct(write=False) as tx:
            tx.run("SELECT pg_terminate_backend(?)", (pid,))
    _add(catalog, "b")
    assert _count(catalog) == 2


def test_all_connections_in_use_is_told_in_our_words(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog._reader.pool, "_timeout", 0.01)
    monkeypatch.setattr(catalog._reader.pool, "_max_overflow", 0)
    with ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(catalog.read())
        with pytest.raises(BackendError, match="all its connections are in use") as told:
            stack.enter_context(catalog.read())
        assert "tried again" in told.value.hint
    with catalog.read():
        pass
