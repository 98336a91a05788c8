"""The processes of a workspace: serving workers, the server, the scheduler, in one tree."""

from __future__ import annotations

import contextlib
import http.client
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from everloop.cli.output import say
from everloop.errors import BackendError
from everloop.serving.supervisor import ChildSpec, ProcessTree, bind, worker_children

__all__ = ["command", "run_tree", "serving_process", "tree_of"]

_START_S = 60.0


def command(name: str, location: str, *more: str) -> tuple[str, ...]:
    """The command line of one of our own processes."""
    return (sys.executable, "-m", "everloop", name, "--dir", location, *more)


@contextlib.contextmanager
def serving_process(
    location: str, workers: int = 1, *, held: tuple[int, ...] = ()
) -> Iterator[str]:
    """Serving workers within the block; yields ``host:port``, ready to answer.

    Args:
        location: Of the workspace.
        workers: How many.
        held: Descriptors that each of them keeps open as long as it lives, such as a lock's.
    """
    with tempfile.TemporaryDirectory(prefix="everloop-metrics-") as metrics:
        listening = bind("127.0.0.1", 0)
        children = [
            msgspec.structs.replace(child, pass_fds=(*child.pass_fds, *held))
            for child in _workers(location, listening, workers, metrics)
        ]
        tree = ProcessTree(children)
        stop = threading.Event()

        def keep() -> None:
            while not stop.is_set():
                stop.wait(min(tree.tick(time.monotonic()), 0.2))

        keeper = threading.Thread(target=keep, name="everloop-tree", daemon=True)
        keeper.start()
        address = "{}:{}".format(*listening.getsockname()[:2])
        try:
            _wait_ready(address)
            yield address
        finally:
            stop.set()
            keeper.join()
            tree.stop()
            listening.close()


def _workers(
    location: str, listening: socket.socket, workers: int, metrics: str
) -> list[ChildSpec]:
    return worker_children(
        command("_serve-worker", location), listening, workers, metrics_folder=metrics, order=2
    )


def tree_of(
    location: str,
    loops: tuple[str, ...] | None,
    server: socket.socket,
    serving: socket.socket,
    workers: int,
    metrics: str,
) -> ProcessTree:
    """Serving workers, the server, the scheduler if there is one. Stopped in that order."""
    fd = str(server.fileno())
    children = [
        *_workers(location, serving, workers, metrics),
        ChildSpec(
            name="server",
            arguments=command("_server", location, "--fd", fd),
            pass_fds=(server.fileno(),),
            order=1,
        ),
    ]
    if loops is not None:
        children.append(
            ChildSpec(name="scheduler", arguments=command("_scheduler", location, *loops))
        )
    return ProcessTree(children)


def run_tree(
    location: str,
    loops: tuple[str, ...] | None,
    *,
    host: str,
    port: int,
    serving_port: int,
    workers: int,
) -> int:
    """Run everything until SIGTERM or Ctrl-C; returns the exit status.

    Args:
        location: Of the workspace.
        loops: Files whose loops are declared, and options of the scheduler; None leaves it out, so
            that no loop acts.
        host: Where to listen.
        port: Of the pages and the API.
        serving_port: Of the models.
        workers: How many serving workers.
    """
    with tempfile.TemporaryDirectory(prefix="everloop-metrics-") as metrics:
        server, serving = bind(host, port), bind(host, serving_port)
        say(f"pages and API  http://{_shown(server)}")
        say(f"serving        http://{_shown(serving)}  (Open Inference Protocol v2, /invocations)")
        say("stop with Ctrl-C")
        try:
            return tree_of(location, loops, server, serving, workers, metrics).run()
        finally:
            server.close()
            serving.close()


def _shown(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"{host}:{port}"


def _wait_ready(address: str) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection(address, timeout=5)
        with (
            contextlib.closing(connection),
            contextlib.suppress(OSError, http.client.HTTPException),
        ):
            connection.request("GET", "/v2/health/ready")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.05)
    raise BackendError(
        f"the serving workers are not ready after {_START_S:.0f} s", hint="see what they printed"
    )


def absolute(location: str) -> str:
    """A folder as an absolute path, for a process that runs elsewhere; URLs stay as they are."""
    return location if "://" in location else str(Path(location).expanduser().absolute())
