"""The outside services that tests need: PostgreSQL, Redis, S3 and Chromium.

Each is found in this order: the one that an environment variable names, the one that runs on this
machine's loopback, a private one started in a temporary folder from installed programs, and
programs installed now by apt-get where we are root. S3 is what an environment variable names, or a
private server of moto's. There is no skip: where all of that fails the
test fails and says what to install.

Of PostgreSQL a private one comes before the one on loopback: without durability, in memory, a test
has its database after 20 ms instead of half a second, and gives it back as fast.

A private server belongs to the pytest worker that started it and ends with it, even when that
worker is killed (`tests/keeper.py`). Each test gets a database or a key prefix of its own, so
workers may share a server.

`python -m tests.services` installs what is missing and does nothing else. `make test` runs it
first, so that no test's time limit pays for an installation.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import pytest

from tests.keeper import ENDED
from tests.memory import in_memory

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Error, Page

S3_SERVER = Path(__file__).with_name("s3_server.py")
KEEPER = Path(__file__).with_name("keeper.py")
START_TIMEOUT_S = 60
POSTGRES_ENV = "EVERLOOP_TEST_POSTGRES"
REDIS_ENV = "EVERLOOP_TEST_REDIS"
S3_ENV = "EVERLOOP_TEST_S3"
CHROMIUM_ENV = "EVERLOOP_TEST_CHROMIUM"
POSTGRES_FOLDERS = "/usr/lib/postgresql/*/bin"
POSTGRES_LOOPBACK = "postgresql://postgres@127.0.0.1:5432/postgres"
REDIS_LOOPBACK = "redis://127.0.0.1:6379/0"
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "Google Chrome")
CHROMIUM_ARGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class ServiceMissingError(Exception):
    """A service is neither running nor startable nor installable here."""


class Server(NamedTuple):
    """A private server: where it is, and how to end it."""

    url: str
    keeper: subprocess.Popen[bytes]

    def stop(self) -> None:
        """End the server and remove its folder."""
        assert self.keeper.stdin is not None
        self.keeper.stdin.close()
        self.keeper.wait(30)


# Finding programs


def find_program(*names: str, folders: str = "") -> str | None:
    """Return the path of the first program among `names`, on PATH or in the newest of `folders`."""
    for name in names:
        if path := shutil.which(name):
            return path
        for folder in sorted(glob.glob(folders), key=_numeric, reverse=True) if folders else ():
            if path := shutil.which(name, path=folder):
                return path
    return None


def _numeric(path: str) -> list[int]:
    return [int(part) for part in path.split("/") if part.isdigit()]


def need_program(*names: str, package: str, folders: str = "") -> str:
    """Return the path of a program; install `package` by apt-get if that is what it takes."""
    if path := find_program(*names, folders=folders):
        return path
    reason = _apt_install(package, lambda: find_program(*names, folders=folders) is not None)
    if path := find_program(*names, folders=folders):
        return path
    raise ServiceMissingError(
        f"none of {', '.join(names)} is installed, and {reason}."
        f" Install your system's package for it (Debian: {package})."
    )


def _apt_install(package: str, is_there: Callable[[], bool]) -> str:
    """Install `package`, one worker at a time; return what happened, for an error message."""
    if os.geteuid() != 0:
        return "it cannot be installed now because we are not root"
    if shutil.which("apt-get") is None:
        return "there is no apt-get to install it with"
    # RUNLEVEL=1 keeps the package from starting a server of the system's own.
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    with open(Path(tempfile.gettempdir()) / "everloop-tests-apt.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_there():  # the other worker was first
            return "another worker installed it"
        install = "apt-get install -q -y --no-install-recommends -o DPkg::Lock::Timeout=120"
        for line in ("apt-get update -q", f"{install} {package}"):
            done = subprocess.run(
                line.split(), env=env, capture_output=True, text=True, check=False
            )
            if done.returncode:
                tail = (done.stderr or done.stdout).strip().splitlines()[-3:]
                return f"`{line}` failed: {' '.join(tail)}"
    return "apt-get installed the package without it"


# Private servers


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _folder(owner: str | None) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="everloop-tests-", dir=in_memory()))
    if owner is not None:
        account = pwd.getpwnam(owner)
        os.chown(folder, account.pw_uid, account.pw_gid)
    return folder


def _unprivileged(*names: str) -> str | None:
    """Return the account that a server runs as: ours, unless we are root."""
    if os.geteuid() != 0:
        return None
    for name in names:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise ServiceMissingError(f"we are root, and there is no account among {', '.join(names)}")


def _start(
    url: str, folder: Path, stop_signal: str, command: list[str], probe: Callable[[str], str | None]
) -> Server:
    """Start `command` under a keeper and wait until `probe` finds nothing wrong."""
    keeper = subprocess.Popen(
        [sys.executable, "-S", "-E", str(KEEPER), str(folder), stop_signal, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    server = Server(url, keeper)
    deadline = time.monotonic() + START_TIMEOUT_S
    while (fault := probe(url)) is not None:
        log = folder / "server.log"
        said = log.read_text(errors="replace")[-2000:] if log.exists() else ""
        if time.monotonic() > deadline or ENDED in said:
            server.stop()
            raise ServiceMissingError(f"{command[0]} did not start: {fault}\n{said}")
        time.sleep(0.05)
    return server


def postgres_programs() -> tuple[str, str]:
    """Return the paths of initdb and postgres."""
    return (
        need_program("initdb", package="postgresql", folders=POSTGRES_FOLDERS),
        need_program("postgres", package="postgresql", folders=POSTGRES_FOLDERS),
    )


def redis_program() -> str:
    """Return the path of redis-server or its successor."""
    return need_program("redis-server", "valkey-server", package="redis-server")


def chromium_program() -> str:
    """Return the path of a Chromium or Chrome."""
    if path := os.environ.get(CHROMIUM_ENV):
        if not os.access(path, os.X_OK):
            raise ServiceMissingError(f"{CHROMIUM_ENV} names {path}, which is not a program")
        return path
    folders = "/Applications/*.app/Contents/MacOS"
    return need_program(*CHROMIUM_NAMES, package="chromium", folders=folders)


def start_postgres() -> Server:
    """Start a private PostgreSQL; its durability is off, as it lives for one run."""
    initdb, postgres = postgres_programs()
    owner = _unprivileged("postgres", "nobody")
    folder = _folder(owner)
    try:
        subprocess.run(
            [initdb, "-D", folder / "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "-N"],
            check=True,
            capture_output=True,
            text=True,
            cwd=folder,
            env={**os.environ, "LC_ALL": "C"},
            user=owner,
            group=pwd.getpwnam(owner).pw_gid if owner else None,
            extra_groups=[] if owner else None,
        )
    except subprocess.CalledProcessError as fault:
        shutil.rmtree(folder, ignore_errors=True)
        raise ServiceMissingError(f"{initdb} failed: {fault.stderr.strip()}") from fault
    port = _free_port()
    settings = {
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": str(folder),
        "port": str(port),
        "max_connections": "200",
        "fsync": "off",
        "full_page_writes": "off",
        "synchronous_commit": "off",
    }
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
    command = [postgres, "-D", str(folder / "data"), *options]
    return _start(url, folder, "SIGINT", command, _postgres_fault)


def start_redis() -> Server:
    """Start a private Redis that keeps nothing on disk."""
    port = _free_port()
    command = [redis_program(), "--bind", "127.0.0.1", "--port", str(port), "--save", ""]
    folder = _folder(_unprivileged("redis", "nobody"))
    return _start(f"redis://127.0.0.1:{port}/0", folder, "SIGTERM", command, _redis_fault)


def start_s3() -> Server:
    """Start a private S3 server that keeps everything in memory."""
    port = _free_port()
    command = [sys.executable, str(S3_SERVER), str(port)]
    return _start(f"http://127.0.0.1:{port}", _folder(None), "SIGTERM", command, _s3_fault)


def _s3_fault(url: str) -> str | None:
    try:
        with urllib.request.urlopen(url, timeout=3):
            return None
    except urllib.error.HTTPError:
        return None  # it answers
    except OSError as fault:
        return str(fault)


def _postgres_fault(url: str) -> str | None:
    import psycopg

    try:
        psycopg.connect(url, connect_timeout=3).close()
    except psycopg.OperationalError as fault:
        return str(fault).strip()
    return None


def _redis_fault(url: str) -> str | None:
    import redis

    try:
        with redis.Redis.from_url(url, socket_connect_timeout=3) as client:
            client.ping()
    except redis.RedisError as fault:
        return str(fault)
    return None


@contextlib.contextmanager
def provide(
    env: str,
    loopback: str,
    fault: Callable[[str], str | None],
    start: Callable[[], Server],
    *,
    own: bool = False,
) -> Iterator[str]:
    """Yield the URL of the service that `env` names, else that runs here, else that we start.

    With `own` the one that runs here is passed over.
    """
    if url := os.environ.get(env):
        if reason := fault(url):
            raise ServiceMissingError(f"{env} names {url}, which does not answer: {reason}")
        yield url
    elif not own and fault(loopback) is None:
        yield loopback
    else:
        server = start()
        try:
            yield server.url
        finally:
            server.stop()


# Fixtures


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """URL of a PostgreSQL whose user may create databases; tests want `postgres_database`."""
    programs = (find_program(name, folders=POSTGRES_FOLDERS) for name in ("initdb", "postgres"))
    with provide(
        POSTGRES_ENV, POSTGRES_LOOPBACK, _postgres_fault, start_postgres, own=all(programs)
    ) as url:
        yield url


@contextlib.contextmanager
def _database(server: str, template: str) -> Iterator[str]:
    """The URL of a copy of the database `template`, dropped at the end of the block."""
    import psycopg
    from psycopg import sql

    name = f"everloop_test_{secrets.token_hex(6)}"
    make = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(make.format(sql.Identifier(name), sql.Identifier(template)))
    try:
        yield urlunsplit(urlsplit(server)._replace(path=f"/{name}"))
    finally:
        # A test of the loss of its database may have dropped it already.
        with psycopg.connect(server, autocommit=True) as admin:
            drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
            admin.execute(drop)


@pytest.fixture(scope="session")
def postgres_template(postgres_url: str) -> Iterator[str]:
    """Name of a database with an empty catalog, to be copied: that is quicker than to make one."""
    from everloop.catalog.engine import Catalog

    with _database(postgres_url, "template0") as url:
        Catalog(url).close()
        yield url.rsplit("/", 1)[1]


@pytest.fixture
def postgres_database(postgres_url: str, postgres_template: str) -> Iterator[str]:
    """URL (`postgresql://...`) of a database of this test's own, with an empty catalog in it."""
    with _database(postgres_url, postgres_template) as url:
        yield url


@pytest.fixture
def empty_postgres_database(postgres_url: str) -> Iterator[str]:
    """URL of a database of this test's own without anything, for tests of how a catalog is made."""
    with _database(postgres_url, "template0") as url:
        yield url


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """URL of a Redis that others use too: keep to the keys under `redis_prefix`."""
    with provide(REDIS_ENV, REDIS_LOOPBACK, _redis_fault, start_redis) as url:
        yield url


@pytest.fixture
def redis_prefix(redis_url: str) -> Iterator[str]:
    """A key prefix of this test's own; every key under it is removed at the end."""
    import redis

    prefix = f"everloop-test-{secrets.token_hex(6)}:"
    yield prefix
    with redis.Redis.from_url(redis_url) as client:
        for key in client.scan_iter(match=f"{prefix}*", count=1000):
            client.unlink(key)


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """URL of an S3 server that others use too; tests want `s3`."""
    if url := os.environ.get(S3_ENV):
        if reason := _s3_fault(url):
            raise ServiceMissingError(f"{S3_ENV} names {url}, which does not answer: {reason}")
        yield url
    else:
        server = start_s3()
        try:
            yield server.url
        finally:
            server.stop()


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """``s3://bucket`` of this test's own; the environment says how to get there."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": os.environ.get("AWS_ACCESS_KEY_ID", "key-of-tests"),
        "AWS_SECRET_ACCESS_KEY": os.environ.get("AWS_SECRET_ACCESS_KEY", "secret-of-tests"),
        "AWS_REGION": os.environ.get("AWS_REGION", "us-east-1"),
    }.items():
        monkeypatch.setenv(name, value)
    name = f"everloop-test-{secrets.token_hex(6)}"
    # The server of the tests asks for no signature; one that does needs the bucket made before.
    bucket = os.environ.get("EVERLOOP_TEST_S3_BUCKET")
    if bucket:
        return f"s3://{bucket}/{name}"
    request = urllib.request.Request(f"{s3_endpoint}/{name}", method="PUT")
    with urllib.request.urlopen(request, timeout=30):
        pass
    return f"s3://{name}"


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a Chromium or Chrome."""
    return chromium_program()


# Per module, as Playwright's loop occupies the thread while it lives: an `asyncio.run` of another
# module's test would be refused.
@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    """A running Chromium, for tests that need several pages; most want `browser_page`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=list(CHROMIUM_ARGS))
        yield running
        running.close()


@pytest.fixture
def browser_page(browser: Browser) -> Iterator[Page]:
    """A page in a fresh profile, 1280 x 800; a script error that nobody caught fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    errors: list[Error] = []
    page.on("pageerror", lambda error: errors.append(error))  # Playwright marks the handler
    yield page
    context.close()
    assert not errors, f"uncaught errors in the page: {[error.message for error in errors]}"


def install() -> None:
    """Install the programs that are not there.

    Raises:
        SystemExit: If something is missing still. All of it is listed.
    """
    faults = []
    for need in (postgres_programs, redis_program, chromium_program):
        try:
            need()
        except ServiceMissingError as fault:
            faults.append(str(fault))
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    install()
