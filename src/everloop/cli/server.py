"""``everloop server`` and ``everloop up``, and the commands that their processes are."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from everloop import settings
from everloop.cli.main import common, open_workspace
from everloop.cli.output import say
from everloop.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from everloop.workspace import Workspace

__all__ = [
    "scheduler_process",
    "serve_worker_process",
    "server",
    "server_process",
    "up",
    "work_process",
]

_HOST = click.option("--host", default=None, help="Address to listen on (default: 127.0.0.1).")
_PARTING_S = 2.0
#: Firings that are worked on at the same time.
_WORKERS = 4
_ANONYMOUS = click.option(
    "--allow-anonymous",
    is_flag=True,
    help="Listen on any address without users: a proxy before it asks who is there.",
)
_PACKAGES = click.option(
    "--package",
    "packages",
    multiple=True,
    metavar="NAME@ENVIRONMENT",
    help="Run the loops of a package, and move with its environment; a digest stays.",
)
_ALLOW = click.option(
    "--allow-differences", is_flag=True, help="Deploy a package although it does not fit here."
)
_REASON = click.option("--reason", default="", help="Why differences are allowed; kept.")
_PORT = click.option("--port", type=click.IntRange(0, 65535), default=None, help="0: any free one.")


@click.command()
@_HOST
@_PORT
@_ANONYMOUS
@click.option("--prefix", default="", help="Path to serve below, behind a proxy: /everloop.")
@common
def server(
    host: str | None,
    port: int | None,
    allow_anonymous: bool,
    prefix: str,
    location: str | None,
    as_json: bool,
) -> None:
    """Run the API and the pages alone."""
    from everloop.api.prefix import check_prefix
    from everloop.serving.supervisor import bind

    prefix = check_prefix(prefix)
    address, number = _address(host, port)
    if not (_is_loopback(address) or allow_anonymous):
        _need_users(location, address)
    listening = bind(address, number)
    say("http://{}:{}{}".format(*listening.getsockname()[:2], prefix))
    _serve(location or settings.load().location, listening, prefix)


@click.command()
@click.argument("loops", nargs=-1, metavar="[LOOP_FILE]...")
@_HOST
@_PORT
@click.option(
    "--serving-port",
    type=click.IntRange(0, 65535),
    default=None,
    help="Where models answer (default: the port after --port).",
)
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True)
@_PACKAGES
@_ALLOW
@_REASON
@_ANONYMOUS
@common
def up(
    loops: tuple[str, ...],
    packages: tuple[str, ...],
    allow_differences: bool,
    reason: str,
    host: str | None,
    port: int | None,
    serving_port: int | None,
    workers: int,
    allow_anonymous: bool,
    location: str | None,
    as_json: bool,
) -> None:
    """Run everything: server, pages, scheduler, serving.

    The loops declared in each LOOP_FILE are taken over (./loop.py if neither a file nor a package
    is given and it exists).
    """
    from everloop.automation.deploying import Deployer
    from everloop.cli import processes

    address, number = _address(host, port)
    where = processes.absolute(location or settings.load().location)
    files = loops or (("loop.py",) if Path("loop.py").exists() and not packages else ())
    missing = [file for file in files if not Path(file).is_file()]
    if missing:
        raise NotFound(
            f"there is no file {', '.join(missing)}", hint="give the paths of files with loops"
        )
    if not (_is_loopback(address) or allow_anonymous):
        _need_users(where, address)
    with open_workspace(where, must_exist=False) as workspace:
        # Said here, in a sentence, if it cannot be opened, or a package does not fit.
        deployer = Deployer(workspace, packages, allow_differences=allow_differences, reason=reason)
        for package in deployer.deploy():
            say(f"{package.ref} is deployed")
        if not files and not packages and not workspace.automation.loops():
            say("there is no loop yet: everloop init makes a first loop.py, everloop up runs it")
    if serving_port is None:
        serving_port = number + 1 if number else 0
    supervised = [*files]
    for ref in packages:
        supervised += ["--package", ref]
    if allow_differences:
        supervised += ["--allow-differences", "--reason", reason]
    sys.exit(
        processes.run_tree(
            where,
            tuple(supervised),
            host=address,
            port=number,
            serving_port=serving_port,
            workers=workers,
        )
    )


@click.command(hidden=True)
@click.option("--fd", type=int, required=True)
@common
def server_process(fd: int, location: str | None, as_json: bool) -> None:
    """The server, on a socket of its parent."""
    from everloop.core.process import watch_lifeline

    watch_lifeline()
    _serve(location or "", socket.socket(fileno=fd))


@click.command(hidden=True)
@click.argument("loops", nargs=-1)
@_PACKAGES
@_ALLOW
@_REASON
@common
def scheduler_process(
    loops: tuple[str, ...],
    packages: tuple[str, ...],
    allow_differences: bool,
    reason: str,
    location: str | None,
    as_json: bool,
) -> None:
    """Triggers, retraining, gates, rollouts."""
    from everloop.automation.deploying import Deployer, following
    from everloop.cli import processes
    from everloop.core.process import watch_lifeline

    watch_lifeline()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with open_workspace(location) as workspace:
        runner = workspace.loop_runner()
        for file in loops:
            for spec in runner.load(file):
                say(f"{spec.name}: {', '.join(t.on for t in spec.triggers) or 'by hand'}")
        deployer = Deployer(workspace, packages, allow_differences=allow_differences, reason=reason)
        with _handing_on(workspace, stop), following(deployer, stop):
            where = location or settings.load().location
            workers = processes.command("_work", where)
            runner.run_forever(stop, interval_s=2.0, workers=workers, size=_WORKERS)


@click.command(hidden=True)
@click.option("--fd", type=int, required=True)
@common
def work_process(fd: int, location: str | None, as_json: bool) -> None:
    """One firing of a loop or an automation, told by the scheduler."""
    from everloop.automation.dispatch import serve_one
    from everloop.core.process import watch_lifeline

    watch_lifeline()
    with open_workspace(location) as workspace:
        serve_one(fd, workspace.loop_runner().run)


@click.command(hidden=True)
@click.option("--fd", type=int, required=True)
@click.option("--worker", required=True)
@common
def serve_worker_process(fd: int, worker: str, location: str | None, as_json: bool) -> None:
    """One serving worker, on a socket of its parent."""
    from everloop.api.serving import WorkerInference
    from everloop.serving.worker import run_worker

    workspace = open_workspace(location)
    names = settings.load().allowed_hosts
    make_app = functools.partial(WorkerInference, names=names, login=workspace.login)
    sys.exit(run_worker(fd, workspace.serving_services(), make_app, worker=worker))


@contextlib.contextmanager
def _handing_on(workspace: Workspace, stop: threading.Event) -> Iterator[None]:
    """Within the block the event log goes to ``EVERLOOP_OPENLINEAGE``, where that is set."""
    target = settings.load().openlineage
    if not target:
        yield
        return
    exporter = workspace.lineage_exporter(target)
    thread = threading.Thread(target=exporter.run_forever, args=(stop,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        # A receiver that does not answer must not hold up the end; what it lacks is sent next time.
        thread.join(_PARTING_S)


def _serve(location: str, listening: socket.socket, prefix: str = "") -> None:
    import uvicorn

    from everloop.api.prefix import Prefixed
    from everloop.server import make_app

    workspace = open_workspace(location, must_exist=False)
    host = str(listening.getsockname()[0])
    app = make_app(workspace, host=host, names=settings.load().allowed_hosts)
    config = uvicorn.Config(
        Prefixed(app, prefix) if prefix else app,
        http="httptools",
        ws="none",
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    uvicorn.Server(config).run(sockets=[listening])


def _address(host: str | None, port: int | None) -> tuple[str, int]:
    found = settings.load()
    address = host or found.host
    try:
        if address != "localhost":
            ipaddress.ip_address(address)
    except ValueError:
        raise InvalidInput(f"{address!r} is no address", hint="use 127.0.0.1") from None
    return ("127.0.0.1" if address == "localhost" else address), (
        found.port if port is None else port
    )


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def _need_users(location: str | None, address: str) -> None:
    """Refuse to be reached from other machines by people whom nobody asks who they are."""
    try:
        with open_workspace(location) as workspace:
            has_users = bool(workspace.access.users())
    except NotFound:  # it would be made now, without users: a refusal makes nothing
        has_users = False
    if not has_users:
        raise InvalidInput(
            f"{address} can be reached from other machines, and this workspace has no users",
            hint="make one: everloop user add NAME --role admin   (or, behind a proxy that asks "
            "who is there: --allow-anonymous)",
        )
