"""The worker processes of one run: started when first needed, killed when a call takes too long.

A worker that dies takes only its call with it: the others go on, and the next call gets a new one.
"""

from __future__ import annotations

import pickle
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from multiprocessing.connection import Connection

from everloop.core.process import ChildProcess
from everloop.pipelines.bindings import values_of
from everloop.pipelines.worker import Outcome, Raised, Setup, Task

__all__ = ["Pool"]

# The path comes first: Everloop itself may be on it only because the driver put it there.
_START = (
    "import sys; sys.path[:] = sys.argv[2:]; from everloop.pipelines.worker import main; main()"
)
_END_S = 2.0


class _Lost(Exception):
    """The worker cannot answer any more; says why."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class _Worker:
    def __init__(self, setup: bytes, path: list[str]) -> None:
        ours, theirs = socket.socketpair()
        try:
            command = [sys.executable, "-c", _START, str(theirs.fileno()), *path]
            self._process = ChildProcess(command, pass_fds=(theirs.fileno(),))
        except BaseException:  # whatever it is, Ctrl-C too, no descriptor may stay open
            ours.close()
            raise
        finally:
            theirs.close()
        self._connection = Connection(ours.detach())
        self._send(setup)

    def _send(self, data: bytes) -> None:
        try:
            self._connection.send_bytes(data)
        except OSError as error:
            raise self._lost() from error

    def start(self, task: Task) -> None:
        """Send a task; returns when its first call begins."""
        self._send(pickle.dumps(task))
        while places := self._answer():
            self._send(values_of(pickle.loads(places)))

    def _answer(self) -> bytes:
        try:
            return self._connection.recv_bytes()
        except (EOFError, OSError) as error:
            raise self._lost() from error

    def outcome(self, timeout_s: float | None) -> Outcome:
        try:
            # `poll` costs more than the answer of a small step does: only where it is needed.
            if timeout_s is not None and not self._connection.poll(timeout_s):
                self.kill()
                raise _Lost("TimeoutError", f"it took longer than {timeout_s:g} s and was stopped")
        except (EOFError, OSError) as error:
            raise self._lost() from error
        return pickle.loads(self._answer())  # type: ignore[no-any-return]

    def _lost(self) -> _Lost:
        self._process.wait(_END_S)
        code = self._process.poll()
        self.kill()
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            return _Lost("ChildProcessError", f"the process that executed it died of {name}")
        return _Lost("ChildProcessError", f"the process that executed it ended with status {code}")

    def interrupt(self) -> None:
        """End it and all it started; whoever waits for its answer meets the end."""
        self._process.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(_END_S)
        self._connection.close()

    def end(self) -> None:
        self._connection.close()  # it ends when the connection does
        if not self._process.wait(_END_S):
            self.kill()


class Pool:
    """At most `size` workers, each executing one task at a time; safe to use from many threads.

    Args:
        size: Of them at most.
        setup: What each is told first.
        path: Where they import from; as this process does if None.
    """

    def __init__(self, size: int, setup: Setup, *, path: list[str] | None = None) -> None:
        self.size = size
        self._setup = pickle.dumps(setup)
        self._path = list(sys.path) if path is None else path
        self._free = threading.BoundedSemaphore(size)
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._closed = threading.Event()

    def run(self, task: Task, timeout_s: float | None = None) -> Iterator[Outcome]:
        """Execute the calls of `task` in turn; one outcome for each.

        A call that takes longer than `timeout_s`, or whose process dies, has an outcome that says
        so, and those after it are executed by another worker.
        """
        done = 0
        while done < len(task.calls):
            worker: _Worker | None = None
            self._free.acquire()
            try:
                worker = self._take()
                worker.start(task._replace(calls=task.calls[done:]))
                while done < len(task.calls):
                    outcome = worker.outcome(timeout_s)
                    done += 1
                    yield outcome
                self._give_back(worker)
                worker = None
            except _Lost as lost:
                now = datetime.now(UTC)
                done += 1
                yield Outcome(now, now, raised=Raised(b"", lost.kind, str(lost), ""))
            finally:
                if worker is not None:  # lost, or nobody wants its answer any more
                    with self._lock:
                        self._busy.discard(worker)
                    worker.kill()
                self._free.release()

    def _take(self) -> _Worker:
        with self._lock:
            if self._closed.is_set():
                raise _Lost("ChildProcessError", "the run ended")
            worker = self._idle.pop() if self._idle else None
            if worker is not None:
                self._busy.add(worker)
                return worker
        worker = _Worker(self._setup, self._path)
        with self._lock:
            self._busy.add(worker)
            closed = self._closed.is_set()
        if closed:
            worker.kill()
        return worker

    def _give_back(self, worker: _Worker) -> None:
        with self._lock:
            self._busy.discard(worker)
            self._idle.append(worker)
            closed = self._closed.is_set()
        if closed:
            self.close()

    def close(self, *, kill: bool = False) -> None:
        """End the workers; with `kill` also those that execute something. Safe to call twice."""
        with self._lock:
            self._closed.set()
            idle, self._idle = self._idle, []
            busy = list(self._busy) if kill else []
        for worker in busy:
            worker.interrupt()
        for worker in idle:
            worker.end()
