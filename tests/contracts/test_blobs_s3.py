"""S3Blobs keeps the contract, and what only a store in a bucket can be asked."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from everloop.backends.blobs.s3 import S3Blobs
from everloop.errors import BackendError, InvalidInput, NotFound, StateError
from everloop.ports.blobs import BlobStore
from everloop.testing.blobs import BlobStoreContract
from tests.fault_proxy import Asked, FaultProxy, proxy_before

LARGE = bytes(range(256)) * 66_000  # 17 MB: comes and goes in three pieces


class TestS3Blobs(BlobStoreContract):
    @pytest.fixture(autouse=True)
    def _place(self, s3: str, s3_endpoint: str) -> None:
        self.url, self.endpoint = f"{s3}/some/where", s3_endpoint

    def make(self, folder: Path) -> BlobStore:
        return S3Blobs(self.url, folder / "cache", endpoint=self.endpoint)


@pytest.fixture(scope="module")
def one_proxy(s3_endpoint: str) -> Iterator[FaultProxy]:
    with proxy_before(s3_endpoint) as proxy:
        yield proxy


@pytest.fixture
def proxy(one_proxy: FaultProxy) -> Iterator[FaultProxy]:
    one_proxy.harm = lambda asked: None
    one_proxy.counted()
    yield one_proxy
    one_proxy.harm = lambda asked: None


@pytest.fixture
def store(s3: str, proxy: FaultProxy, tmp_path: Path) -> S3Blobs:
    """A store behind the proxy, that was written to before."""
    made = S3Blobs(f"{s3}/w", tmp_path / "cache", endpoint=proxy.url, retries=2, timeout_s=20)
    made.put(b"it is ours")
    proxy.counted()
    return made


def another(store: S3Blobs, tmp_path: Path, name: str = "other", **options: Any) -> S3Blobs:
    """The same place seen from another machine."""
    endpoint = store._bucket.place.rpartition(" at ")[2]
    given = {"endpoint": endpoint, "retries": 2, "timeout_s": 20, **options}
    return S3Blobs(store._bucket.url, tmp_path / name, **given)


def keys(store: S3Blobs, folder: str) -> list[str]:
    return [entry.key for entry in store._bucket.list(folder)]


def items(count: int, size: int = 100) -> list[bytes]:
    return [random.Random(n).randbytes(size) for n in range(count)]


# Requests


def test_a_thousand_small_objects_are_a_handful_of_requests(
    store: S3Blobs, proxy: FaultProxy, tmp_path: Path
) -> None:
    data = items(1000)
    digests = [digest for digest, _ in store.put_many(data)]
    assert proxy.counted() <= 5
    assert store.put_many(data)[0][0] == digests[0]  # there already
    assert proxy.counted() <= 5
    assert store.keep_many(digests) == []
    assert proxy.counted() <= 5
    other = another(store, tmp_path)
    assert other.get_many(digests) == data
    assert proxy.counted() <= 6
    assert other.get_many(digests) == data
    assert proxy.counted() == 0  # from the cache
    limit = time.time() + 100
    assert set(store.remove_old_many(digests[:900], limit)) == set(digests[:900])
    # By the first digits: 256 lists look for copies that are by themselves.
    assert proxy.counted() <= 256 + 15


def test_a_few_of_many_come_without_the_rest(
    store: S3Blobs, proxy: FaultProxy, tmp_path: Path
) -> None:
    data = items(40, 200_000)
    digests = [digest for digest, _ in store.put_many(data)]
    other = another(store, tmp_path)
    proxy.counted()
    assert other.get_many([digests[0], digests[39]]) == [data[0], data[39]]
    ranges = [asked.headers["range"] for asked in proxy.asked if "range" in asked.headers]
    got = sum(int(r.partition("-")[2]) - int(r.removeprefix("bytes=").partition("-")[0]) + 1
              for r in ranges if not r.startswith("bytes=-"))  # fmt: skip
    assert got == 400_000


def test_a_large_object_comes_and_goes_in_pieces(
    store: S3Blobs, proxy: FaultProxy, tmp_path: Path
) -> None:
    proxy.counted()
    store.put([LARGE[:1000], b"", memoryview(LARGE)[1000:2000]])
    assert [asked.method for asked in proxy.asked] == ["GET", "PUT"]  # is it there, and here it is
    digest, _ = store.put([LARGE[:1000], b"", memoryview(LARGE)[1000:]])
    other = another(store, tmp_path)
    proxy.counted()
    assert b"".join(other.stream(digest, 1 << 16)) == LARGE
    assert [asked.method for asked in proxy.asked].count("GET") == 1 + 3
    assert other.path(digest).read_bytes() == LARGE
    assert other.put(iter([LARGE])) == (digest, len(LARGE))
    assert len(keys(store, "objects")) == 3  # with the one of the fixture: not stored again


# Faults of the line and of the server


@pytest.mark.parametrize("kind", ["refuse", "drop", "lose"])
def test_short_troubles_are_outlasted(store: S3Blobs, proxy: FaultProxy, kind: str) -> None:
    proxy.first(2, kind, lambda asked: asked.method == "PUT")
    digest, _ = store.put(b"in the end")
    assert store.get(digest) == b"in the end"
    for _ in range(2):  # one mark is made, one is replaced: conditional puts both
        proxy.first(1, kind, lambda asked: asked.method == "PUT" and "marks/" in asked.key)
        assert store.keep(digest)
    assert sorted(store.digests()) == sorted([digest, blake3(b"it is ours").hexdigest()])
    proxy.first(1, kind, lambda asked: asked.method == "PUT" and "marks/" in asked.key)
    assert store.remove_old(digest, time.time() + 100)
    assert len(keys(store, "objects")) == 1
    assert keys(store, "marks") == []


def test_a_body_that_breaks_off_is_asked_for_again(
    store: S3Blobs, proxy: FaultProxy, tmp_path: Path
) -> None:
    digest, _ = store.put(LARGE)
    other = another(store, tmp_path)
    proxy.first(2, "half", lambda asked: "range" in asked.headers)
    assert other.get(digest) == LARGE


@pytest.mark.parametrize("kind", ["refuse", "drop", "hang"])
def test_lasting_trouble_is_said_in_time_and_nothing_is_half_done(
    store: S3Blobs, proxy: FaultProxy, tmp_path: Path, kind: str
) -> None:
    digest, _ = store.put(b"before")
    hasty = another(store, tmp_path, retries=1, timeout_s=1)
    hasty.put(b"ready")
    proxy.harm = lambda asked: kind
    calls = {
        "put": lambda: hasty.put(b"x" * 300_000),
        "pieces": lambda: hasty.put(iter([b"y"])),
        "many": lambda: hasty.put_many([b"1", b"2"]),
        "get": lambda: hasty.get(digest),
        "keep": lambda: hasty.keep(digest),
        "remove": lambda: hasty.remove_old(digest, time.time() + 99),
    }
    began = time.monotonic()
    for call in list(calls.values())[: 2 if kind == "hang" else None]:
        with pytest.raises(BackendError) as error:
            call()
        said = str(error.value)
        assert f"{store._bucket.url} at {proxy.url}" in said
        assert "check the network" in said
        assert "key-of-tests" not in said
        assert "secret-of-tests" not in said
    assert time.monotonic() - began < 60
    proxy.harm = lambda asked: None
    assert hasty.get(digest) == b"before"
    assert len(list(hasty.digests())) == 3
    assert not list((tmp_path / "other" / "objects" / "tmp").iterdir())


def test_half_a_large_upload_is_no_object(store: S3Blobs, proxy: FaultProxy) -> None:
    proxy.harm = lambda asked: "drop" if "partNumber=3" in asked.query else None
    with pytest.raises(BackendError):
        store.put(LARGE)
    with pytest.raises(BackendError):
        store.put(iter([LARGE]))
    proxy.harm = lambda asked: None
    assert len(list(store.digests())) == 1
    assert store.put(LARGE)[1] == len(LARGE)


def test_flipped_bits_on_the_way_are_read_again_and_on_the_disk_are_named(
    store: S3Blobs, proxy: FaultProxy, tmp_path: Path
) -> None:
    own, _ = store.put(b"o" * 300_000)
    packed = store.put_many([b"packed", b"too"])[0][0]
    for digest in (own, packed):
        proxy.first(1, "flip", lambda asked: "range" in asked.headers)
        assert len(another(store, tmp_path, digest[:8]).get(digest)) in (300_000, 6)
    proxy.harm = lambda asked: (
        "flip" if asked.headers.get("range", "").startswith("bytes=0") else None
    )
    for number, digest in enumerate((own, packed)):
        for turn, read in enumerate(("get", "path", "stream", "get_many")):
            other = another(store, tmp_path, f"{number}-{turn}")
            call = {"get_many": lambda: other.get_many([digest]),  # noqa: B023 (called at once)
                    "stream": lambda: list(other.stream(digest))}  # fmt: skip  # noqa: B023
            with pytest.raises(BackendError, match="damaged") as error:
                call.get(read, lambda: getattr(other, read)(digest))()  # noqa: B023
            assert digest in str(error.value)
            assert not list((tmp_path / f"{number}-{turn}" / "objects" / digest[:2]).glob("*"))


def test_a_pack_whose_list_is_damaged_hides_its_objects_alone(
    store: S3Blobs, tmp_path: Path
) -> None:
    first = store.put_many([b"a", b"b"])
    second = store.put_many([b"c", b"d"])
    [damaged] = {pack.key for pack in store._packs.holding(first[0][0])}
    data, _ = store._bucket.get(damaged)
    store._bucket.put(damaged, data[:-1])
    other = another(store, tmp_path)
    assert other.get_many([digest for digest, _ in second]) == [b"c", b"d"]
    with pytest.raises(NotFound):
        other.get(first[0][0])
    assert other.remove_leftovers(time.time() + 99) == (0, 0)
    assert damaged in keys(store, "packs")  # whoever has a copy may restore it
    assert other.put_many([b"a", b"b"]) == first
    assert other.get(first[0][0]) == b"a"


# Who may, and where


def test_wrong_credentials_are_said_without_showing_them(
    s3: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    store = S3Blobs(s3, tmp_path, endpoint=proxy.url)
    proxy.harm = lambda asked: "forbid"
    for call in (lambda: store.put(b"x"), lambda: store.get("0" * 64)):
        with pytest.raises(BackendError, match="SignatureDoesNotMatch") as error:
            call()
        assert "AWS_ACCESS_KEY_ID" in str(error.value)
        assert "an-id" not in str(error.value)


def test_a_bucket_that_is_not_there(s3: str, s3_endpoint: str, tmp_path: Path) -> None:
    store = S3Blobs("s3://no-such-bucket/x", tmp_path, endpoint=s3_endpoint)
    for call in (lambda: store.put(b"x"), lambda: store.get("0" * 64), lambda: list(store.ages())):
        with pytest.raises(BackendError, match="no such bucket") as error:
            call()
        assert "no-such-bucket" in str(error.value)
        assert s3_endpoint in str(error.value)


@pytest.mark.parametrize(
    "url",
    ["s3://", "s3://B/x", "s3://key:secret@bucket/x", "s3://bucket/a/../b", "s3://bucket/a//b",
     "s3://bucket/?x=1", "gs://bucket", "s3://bucket/ü"],
)  # fmt: skip
def test_urls_that_are_no_place(url: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as error:
        S3Blobs(url, tmp_path)
    assert "secret" not in str(error.value)


def test_a_server_that_takes_conditional_puts_for_plain_ones_is_refused(
    s3: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    proxy.harm = lambda asked: "blind"
    store = S3Blobs(s3, tmp_path, endpoint=proxy.url)
    with pytest.raises(BackendError, match="does not do conditional puts"):
        store.put(b"x")
    assert store._bucket.list("") == []


def test_a_prefix_has_one_owner(s3: str, s3_endpoint: str, tmp_path: Path) -> None:
    mine = S3Blobs(s3, tmp_path / "a", endpoint=s3_endpoint, owner="mine")
    mine.put(b"x")
    yours = S3Blobs(s3, tmp_path / "b", endpoint=s3_endpoint, owner="yours")
    for call in (lambda: yours.put(b"y"), lambda: yours.remove_old("0" * 64, 1.0)):
        with pytest.raises(StateError, match="another workspace"):
            call()
    S3Blobs(f"{s3}/deeper", tmp_path / "b", endpoint=s3_endpoint, owner="yours").put(b"y")
    assert len(list(mine.digests())) == 1


# The cache


def test_a_damaged_or_lost_copy_is_fetched_again(store: S3Blobs, tmp_path: Path) -> None:
    digest, _ = store.put(b"m" * 300_000)
    other = another(store, tmp_path)
    file = other.path(digest)
    for spoil in (lambda: file.write_bytes(b"short"), lambda: file.unlink()):
        spoil()
        fresh = another(store, tmp_path)
        assert fresh.path(digest).read_bytes() == b"m" * 300_000
        spoil()
        assert fresh.get(digest) == b"m" * 300_000
        spoil()
        assert b"".join(fresh.stream(digest)) == b"m" * 300_000
    file.write_bytes(b"n" * 300_000)  # of the same size, so it is seen when it is read
    with pytest.raises(BackendError, match="damaged"):
        list(fresh.stream(digest))
    assert b"".join(fresh.stream(digest)) == b"m" * 300_000


def test_a_disk_that_is_full_is_said_and_does_not_stop_what_needs_none(
    store: S3Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, packed = store.put(b"o" * 300_000)[0], store.put_many([b"a", b"b"])[0][0]
    other = another(store, tmp_path)
    real, write = open, Path.write_bytes

    def full(file: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
        if "tmp" in Path(str(file)).parts and "r" not in mode:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, mode, *rest, **options)

    monkeypatch.setattr("builtins.open", full)
    monkeypatch.setattr(
        Path, "write_bytes", lambda file, data: full(file, "x") if "tmp" in file.parts else
        write(file, data),
    )  # fmt: skip
    for digest, size in ((own, 300_000), (packed, 1)):
        assert len(other.get(digest)) == size
        with pytest.raises(BackendError, match="No space left"):
            other.path(digest)
    with pytest.raises(BackendError, match="No space left"):
        other.put(iter([b"from a file"]))
    assert other.put(b"from memory")[1] == 11


def test_the_cache_is_bounded_and_lets_go_of_what_was_not_used(
    store: S3Blobs, tmp_path: Path
) -> None:
    data = items(12, 300_000)
    digests = [store.put(item)[0] for item in data]
    other = another(store, tmp_path, cache_bytes=1_500_000)
    mapped = open(other.path(digests[0]), "rb")  # noqa: SIM115 (closed below)
    for digest in digests:
        past = time.time() - 3600
        os.utime(other.path(digest), (past, past))
    size = sum(f.stat().st_size for f in (tmp_path / "other/objects").glob("??/*"))
    assert size <= 1_800_000
    assert [other.get(digest) for digest in digests] == data
    with mapped:
        assert mapped.read() == data[0]  # what is open stays readable


# Several writers, and collectors beside them


@pytest.mark.parametrize("turn", [1, 2, 3])
@pytest.mark.parametrize("kind", ["own", "packed"])
def test_whoever_is_first_wins_between_keeping_and_removing(
    store: S3Blobs, proxy: FaultProxy, tmp_path: Path, kind: str, turn: int
) -> None:
    """Between two requests of one machine the other one does all of its own."""
    other = another(store, tmp_path)
    data = [b"wanted" * 60_000] if kind == "own" else [b"wanted", b"beside it", b"as well"]

    def put() -> str:
        return store.put(data[0])[0] if kind == "own" else store.put_many(data)[0][0]

    digest, count = put(), 0
    removed: list[tuple[str, bool]] = []

    def harm(asked: Asked) -> None:
        nonlocal count
        if (asked.method == "PUT" and "marks/" in asked.key) or asked.method == "HEAD":
            count += 1
            if count == turn:
                proxy.harm = lambda asked: None
                removed.append((asked.method, other.remove_old(digest, time.time() + 1000)))

    proxy.harm = harm
    kept = store.keep(digest)
    proxy.harm = lambda asked: None
    for method, done in removed:
        assert done  # a limit in the future spares nothing, also not what was just kept
        assert method == "HEAD" or not kept, "it was removed first, and was said to be kept"
    assert store.exists(digest) is other.exists(digest) is (not removed)
    put()
    assert another(store, tmp_path, "third").get(digest) == data[0]


def test_what_is_renewed_while_it_is_being_removed_stays(
    store: S3Blobs, proxy: FaultProxy, tmp_path: Path
) -> None:
    own, packed = store.put(b"own" * 100_000)[0], store.put_many([b"a", b"b"])[0][0]
    assert store.keep_many([own, packed]) == []  # so both have a mark
    limit = max(age.put_at for age in store.ages()) + 1
    while time.time() < limit + 0.05:
        time.sleep(0.05)
    other = another(store, tmp_path)
    for digest in (own, packed):
        for renewed in (True, False):  # between reading the mark and replacing it

            def harm(asked: Asked, digest: str = digest) -> None:
                if asked.method == "PUT" and "marks/" in asked.key:
                    proxy.harm = lambda asked: None
                    assert other.keep(digest)

            proxy.harm = harm if renewed else (lambda asked: None)
            assert not store.remove_old(digest, limit)
        assert store.exists(digest)


def test_putting_and_removing_at_once_ends_in_one_state_and_leaks_nothing(
    store: S3Blobs, tmp_path: Path
) -> None:
    data = [b"%d" % n * 50 for n in range(30)] + [b"%d" % n * 100_000 for n in range(3)]
    digests = [blake3(item).hexdigest() for item in data]
    limit = time.time() + 1000  # so that nothing is too young
    failures: list[BaseException] = []

    def act(seed: int) -> None:
        mine, draw = another(store, tmp_path, f"m{seed}"), random.Random(seed)
        try:
            for _ in range(3):
                some = draw.sample(range(len(data)), 12)
                if seed % 2:
                    mine.remove_old_many([digests[n] for n in some], limit)
                    mine.remove_leftovers(limit)
                    continue
                mine.put_many([data[n] for n in some])
                mine.put(data[some[0]])
                mine.keep_many([digests[n] for n in some])
                for n in some:
                    with contextlib.suppress(NotFound):
                        assert mine.get(digests[n]) == data[n]
        except BaseException as error:  # noqa: BLE001 - the main thread asserts on it
            failures.append(error)

    threads = [threading.Thread(target=act, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    after = another(store, tmp_path, "after")
    gone = set(after.missing(digests))
    assert set(after.keep_many(digests)) == gone
    assert set(after.digests()) & set(digests) == set(digests) - gone
    for digest, item in zip(digests, data, strict=True):
        if digest not in gone:
            assert after.get(digest) == item
    after.put_many(data)
    assert another(store, tmp_path, "last").get_many(digests) == data
    after.remove_old_many([age.digest for age in after.ages()], limit)
    after.remove_leftovers(limit)
    assert [e.key for e in after._bucket.list("") if e.key != "store"] == []


_WRITER = """
import random, sys, time
from pathlib import Path
from blake3 import blake3
from everloop.backends.blobs.s3 import S3Blobs
url, endpoint, folder, seed, acts = sys.argv[1:]
store = S3Blobs(url, Path(folder), endpoint=endpoint)
draw = random.Random(int(seed))
rubbish = [b"rubbish %d" % n * 30 for n in range(40)]
while True:
    if acts == "w":
        # What is named and what is not lie in the same packs.
        data = [b"%d" % draw.randrange(60) * 40 for _ in range(4)]
        store.put_many(data + draw.sample(rubbish, 8))
        digests = [blake3(item).hexdigest() for item in data]
        digests.append(store.put(b"%d" % draw.randrange(5) * 200_000)[0])
        print("lost" if store.keep_many(digests) else " ".join(digests), flush=True)
    else:
        some = [blake3(item).hexdigest() for item in draw.sample(rubbish, 30)]
        removed = store.remove_old_many(some, time.time() + 1000)
        store.remove_leftovers(time.time())
        print(f"removed {len(removed)}", flush=True)
"""


def test_killed_writers_and_collectors_lose_nothing(
    store: S3Blobs, s3_endpoint: str, tmp_path: Path
) -> None:
    script = tmp_path / "writer.py"
    script.write_text(_WRITER)
    running = [
        subprocess.Popen(
            [sys.executable, str(script), store._bucket.url, s3_endpoint, str(tmp_path / acts),
             str(number), acts],
            stdout=subprocess.PIPE, text=True,
        )
        for number, acts in enumerate("wwcc")
    ]  # fmt: skip
    said = []
    for process in running:
        assert process.stdout is not None
        while (line := process.stdout.readline()) in ("", "removed 0\n"):
            assert process.poll() is None, "it ended by itself"
        said.append(line)
    time.sleep(0.3 + random.random() / 3)
    for process in running:
        process.send_signal(signal.SIGKILL)
    said += [process.communicate()[0] for process in running]
    # A line that was cut off promised nothing.
    lines = [line for text in said for line in text.splitlines(keepends=True)]
    whole = [line.strip() for line in lines if line.endswith("\n")]
    assert "lost" not in whole
    promised = {d for line in whole if not line.startswith("removed") for d in line.split()}
    assert promised
    after = another(store, tmp_path, "after")
    assert after.missing(sorted(promised)) == []
    for digest, data in zip(sorted(promised), after.get_many(sorted(promised)), strict=True):
        assert blake3(data).hexdigest() == digest
    limit = time.time() + 100
    everything = [age.digest for age in after.ages()]
    assert set(after.remove_old_many(everything, limit)) == set(everything)
    after.remove_leftovers(limit)
    assert [e.key for e in after._bucket.list("") if e.key != "store"] == []


def test_a_remover_that_died_half_way_is_finished_by_the_next(
    store: S3Blobs, proxy: FaultProxy, tmp_path: Path
) -> None:
    own = store.put(b"o" * 300_000)[0]
    packed = [digest for digest, _ in store.put_many([b"1" * 50, b"2" * 50, b"3" * 50])]
    limit = time.time() + 100
    # It marks what goes, and then dies before it deletes.
    proxy.harm = lambda asked: "forbid" if asked.method in ("POST", "DELETE") else None
    for digests in ([own], packed):
        with pytest.raises(BackendError):
            store.remove_old_many(digests, limit)
    proxy.harm = lambda asked: None
    other = another(store, tmp_path)
    assert other.missing([own, *packed]) == [own, *packed]
    assert not any(other.exists(digest) for digest in (own, *packed))
    assert other.keep_many([own, *packed]) == [own, *packed]
    other.remove_leftovers(limit)
    assert len(keys(other, "objects")) == 1  # the fixture's
    assert keys(other, "packs") == keys(other, "marks") == []
    assert store.put(b"o" * 300_000)[0] == own
    assert store.exists(own)


def test_a_pack_of_which_little_is_left_moves_and_readers_follow(
    store: S3Blobs, tmp_path: Path
) -> None:
    data = items(10, 1000)
    digests = [digest for digest, _ in store.put_many(data)]
    reader = another(store, tmp_path)
    reader.get(digests[0])
    [old] = keys(store, "packs")
    assert len(store.remove_old_many(digests[3:], time.time() + 100)) == 7
    assert keys(store, "packs") != [old]
    assert reader.get_many(digests[:3]) == data[:3]
    assert reader.keep_many(digests) == digests[3:]
    assert sum(age.size for age in reader.ages()) == 3000 + len(b"it is ours")
    assert len(reader.remove_old_many(digests[:3], time.time() + 100)) == 3
    assert len(list(store.digests())) == len(list(reader.digests())) == 1
    fresh = [digest for digest, _ in store.put_many(data)]
    assert len(reader.remove_old_many(fresh, time.time() + 100)) == 10
    assert len(list(store.digests())) == 1


def test_what_is_erased_is_in_no_key_and_in_no_copy(store: S3Blobs, tmp_path: Path) -> None:
    data = items(6, 1000)
    digests = [digest for digest, _ in store.put_many(data)]
    store.put(data[0])
    own = store.put(b"subject" * 50_000)[0]
    assert store.remove_old(digests[1], time.time() + 100)  # its bytes lie in the pack still
    reader = another(store, tmp_path)
    assert reader.get_many([digests[0], *digests[2:]]) == [data[0], *data[2:]]
    for _ in range(2):
        store.erase([digests[0], digests[1], own])
        rest = b"".join(store._bucket.get(entry.key)[0] for entry in store._bucket.list(""))
        assert data[0] not in rest
        assert data[1] not in rest
        assert b"subject" not in rest
    copies = b"".join(f.read_bytes() for f in (tmp_path / "cache").rglob("*") if f.is_file())
    assert data[0] not in copies
    assert b"subject" not in copies
    assert reader.missing([*digests, own]) == [digests[0], digests[1], own]
    fresh = another(store, tmp_path, "fresh")
    assert fresh.get_many(digests[2:]) == data[2:]
    assert fresh.keep_many(digests[2:]) == []
    assert keys(store, "marks/objects") == []


@pytest.mark.parametrize("act", ["remove", "keep"])
def test_a_pack_that_is_changed_while_it_moves_stays(
    store: S3Blobs, proxy: FaultProxy, tmp_path: Path, act: str
) -> None:
    digests = [digest for digest, _ in store.put_many(items(10, 1000))]
    other, limit = another(store, tmp_path), time.time() + 1000
    [old] = keys(store, "packs")

    def harm(asked: Asked) -> None:
        if asked.method == "PUT" and "packs/" in asked.key and "marks/" not in asked.key:
            proxy.harm = lambda asked: None
            assert other.keep(digests[9]) if act == "keep" else other.remove_old(digests[9], limit)

    proxy.harm = harm
    assert len(store.remove_old_many(digests[:7], limit)) == 7
    for one in (store, other, another(store, tmp_path, "third")):
        assert one.missing(digests) == digests[:7] + (digests[9:] if act == "remove" else [])
    assert keys(store, "packs") == [old] or act == "remove"
    store.remove_leftovers(limit)
    assert len(keys(store, "packs")) == 1
    assert keys(store, "packs") != [old]
    left = another(store, tmp_path, "fourth")
    assert left.missing(digests) == digests[:7] + (digests[9:] if act == "remove" else [])


def test_a_forked_child_is_refused_and_does_not_hang(s3: str, s3_endpoint: str) -> None:
    code = f"""
import os, sys
from pathlib import Path
from everloop.backends.blobs.s3 import S3Blobs
store = S3Blobs({s3!r}, Path("cache"), endpoint={s3_endpoint!r})
digest = store.put(b"x" * 300_000)[0]
if os.fork() == 0:
    assert len(store.get(digest)) == 300_000  # it is in the cache
    try:
        store.put(b"y")
    except Exception as error:
        print(error, flush=True)
    os._exit(0)
os.wait()
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60,
        check=True, cwd="/tmp",
    )  # fmt: skip
    assert "spawn" in done.stdout
