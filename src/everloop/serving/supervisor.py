"""ProcessTree: starts named commands, restarts those that die, and stops them all in order.

It loads no model and no framework, so that it has little to die of. ``everloop up`` runs its
children in one: the serving workers, which share a socket that is bound here once, the API, the
scheduler. A worker that dies takes only its own connections along: the socket stays open, and what
waits in its queue goes to the next worker.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Literal

import msgspec

from everloop.core.process import ChildProcess
from everloop.errors import BackendError, InvalidInput

__all__ = ["ChildSpec", "ChildStatus", "ProcessTree", "bind", "restart_delay_s", "worker_children"]

_logger = logging.getLogger(__name__)

_BACKLOG = 2048
_LONGEST_DELAY_S = 10.0

#: A child that lived so long has recovered: its next death counts as the first.
_WELL_AFTER_S = 10.0

#: A worker may take this long to stop: its requests end, then the log of predictions is stored,
#: which waits up to 30 s for a catalog that is away.
_WORKER_GRACE_S = 40.0


class ChildSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A command to keep running.

    Attributes:
        name: Unique within the tree.
        arguments: The command.
        environment: Added to ours.
        pass_fds: Descriptors that it inherits.
        order: Higher ones are stopped first; those of one order together.
        grace_s: How long it may take to stop before it is killed.
        restart: Whether it is started again when it ends.
        max_failures: So many quick deaths in a row stop the whole tree; 0 means never.
    """

    name: str
    arguments: tuple[str, ...]
    environment: dict[str, str] = {}
    pass_fds: tuple[int, ...] = ()
    order: int = 0
    grace_s: float = 10.0
    restart: bool = True
    max_failures: int = 0


class ChildStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How a child stands; `exit_status` is of its last end, negative for a signal."""

    name: str
    state: Literal["running", "waiting", "ended"]
    pid: int
    restarts: int
    exit_status: int | None


def restart_delay_s(failures: int) -> float:
    """Pause before the next start, after so many quick deaths in a row; the first is free."""
    return 0.0 if failures <= 0 else float(min(0.1 * 2 ** (failures - 1), _LONGEST_DELAY_S))


class _Child:
    def __init__(self, spec: ChildSpec) -> None:
        self.spec = spec
        self.process: ChildProcess | None = None
        self.started_s = 0.0
        self.due_s = 0.0
        self.starts = 0
        self.failures = 0
        self.exit_status: int | None = None

    @property
    def has_ended_for_good(self) -> bool:
        return self.process is None and self.starts > 0 and not self.spec.restart

    def start(self, now_s: float) -> None:
        self.started_s = now_s
        self.starts += 1
        try:
            self.process = ChildProcess(
                self.spec.arguments,
                environment=self.spec.environment,
                pass_fds=self.spec.pass_fds,
            )
        except OSError as error:
            _logger.error("%s does not start: %s", self.spec.name, error.strerror)
            self._ended(127, now_s)

    def check(self, now_s: float) -> None:
        """Notice its end."""
        status = self.process.poll() if self.process else None
        if status is not None:
            _logger.warning("%s (pid %d) ended: %d", self.spec.name, self.pid, status)
            self._ended(status, now_s)

    @property
    def pid(self) -> int:
        return self.process.pid if self.process else 0

    def _ended(self, status: int, now_s: float) -> None:
        self.process = None
        self.exit_status = status
        lived_s = now_s - self.started_s
        # One that was well is back at once; one that was not waits, longer each time.
        self.failures = 0 if lived_s >= _WELL_AFTER_S else self.failures + 1
        self.due_s = now_s + restart_delay_s(self.failures)


class ProcessTree:
    """Keeps children running until it is told to stop.

    Args:
        children: In the order of starting.

    Raises:
        InvalidInput: If two have one name.
    """

    def __init__(self, children: Sequence[ChildSpec]) -> None:
        names = [child.name for child in children]
        if len(set(names)) != len(names):
            raise InvalidInput("the children of a process tree need names of their own")
        self._children = [_Child(spec) for spec in children]
        self._stop_asked = 0
        self._failed = False

    @property
    def status(self) -> list[ChildStatus]:
        """How each child stands, in order."""
        return [
            ChildStatus(
                name=child.spec.name,
                state="running"
                if child.process
                else ("ended" if child.has_ended_for_good else "waiting"),
                pid=child.pid,
                restarts=max(child.starts - 1, 0),
                exit_status=child.exit_status,
            )
            for child in self._children
        ]

    def run(self) -> int:
        """Start all, and keep them until SIGTERM or SIGINT; in the main thread only.

        Returns:
            0 after a stop that was asked for, 1 when a child failed for good.
        """
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        os.set_blocking(reader, False)
        before_wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        before = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
        }
        try:
            while not self._stop_asked and not self._failed:
                wait_s = self.tick(time.monotonic())
                if not self._stop_asked:
                    select.select([reader], [], [], wait_s)
                    _drain(reader)
            return 1 if self._failed else 0
        finally:
            self.stop()
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(before_wakeup)
            os.close(reader)
            os.close(writer)

    def tick(self, now_s: float) -> float:
        """Notice deaths and start what is due; returns the seconds until the next start.

        Args:
            now_s: A monotonic time.
        """
        wait_s = 1.0
        for child in self._children:
            child.check(now_s)
            if child.process is not None or child.has_ended_for_good:
                continue
            limit = child.spec.max_failures
            if limit and child.failures >= limit:
                _logger.error("%s failed %d times in a row", child.spec.name, child.failures)
                self._failed = True
            elif now_s >= child.due_s:
                child.start(now_s)
            else:
                wait_s = min(wait_s, child.due_s - now_s)
        return wait_s

    def stop(self) -> None:
        """Stop all: the highest order first, each politely, then by force. Safe to call twice."""
        for order in sorted({child.spec.order for child in self._children}, reverse=True):
            stage = [child for child in self._children if child.spec.order == order]
            _stop_together([child for child in stage if child.process], self._is_impatient)

    def _is_impatient(self) -> bool:
        return self._stop_asked > 1

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number != signal.SIGCHLD:
            self._stop_asked += 1


def _stop_together(children: list[_Child], is_impatient: Callable[[], bool]) -> None:
    start_s = time.monotonic()
    for child in children:
        if child.process is not None:
            child.process.terminate()
    for child in children:
        process = child.process
        if process is None:
            continue
        deadline_s = start_s + child.spec.grace_s
        while process.poll() is None:
            if time.monotonic() >= deadline_s or is_impatient():
                _logger.warning("%s does not stop and is killed", child.spec.name)
                process.kill()
                process.wait(5.0)
                break
            time.sleep(0.01)
        child.exit_status = process.poll()
        child.process = None


def _drain(descriptor: int) -> None:
    try:
        while os.read(descriptor, 512):
            pass
    except BlockingIOError:
        return


def bind(host: str, port: int) -> socket.socket:
    """A listening socket for workers to inherit; port 0 takes any free one.

    Raises:
        BackendError: If the address is taken or not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted sockets take this over; the servers set it only on sockets they bound themselves,
        # and without it a keep-alive answer may wait 40 ms for an acknowledgement.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listening.bind((host, port))
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise BackendError(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            hint="another process has the port; choose one with --port",
        ) from error
    listening.set_inheritable(True)
    return listening


def worker_children(
    command: Sequence[str],
    listening: socket.socket,
    workers: int,
    *,
    metrics_folder: str,
    order: int = 0,
) -> list[ChildSpec]:
    """The specs of `workers` serving workers on one socket.

    Args:
        command: What starts a worker; ``--fd N`` and ``--worker NAME`` are added.
        listening: Of :func:`bind`; must stay open as long as the tree runs.
        workers: At least 1.
        metrics_folder: An empty folder where the workers keep their counts together.
        order: As in :class:`ChildSpec`.
    """
    if workers < 1:
        raise InvalidInput("serving needs at least one worker")
    fd = listening.fileno()
    # One thread each: the workers are the parallelism.
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return [
        ChildSpec(
            name=f"worker-{number}",
            arguments=(*command, "--fd", str(fd), "--worker", f"worker-{number}"),
            environment={"PROMETHEUS_MULTIPROC_DIR": metrics_folder, **threads},
            pass_fds=(fd,),
            order=order,
            grace_s=_WORKER_GRACE_S,
        )
        for number in range(workers)
    ]
