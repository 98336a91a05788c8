"""A queue of metric points with a thread behind it that commits them in groups.

The caller appends to a queue and goes on. A thread wakes at the first point, waits a few
milliseconds for others to join, and sends the group in one transaction. ``flush`` sends in the
caller's own thread, so that a durable write costs no change of threads.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence

from everloop.core.run import Metric
from everloop.errors import BackendError

__all__ = ["PointWriter"]

_logger = logging.getLogger(__name__)

#: How long a group gathers, seconds: what a killed process may lose besides what is under way.
GATHER_S = 0.005
#: Points of one transaction.
GROUP = 10_000
#: Points held in memory; whoever adds to a full queue sends it himself.
CAPACITY = 100_000
#: Between two tries while the catalog is away, seconds.
RETRY_S = 1.0


class PointWriter:
    """Queues points, sends them in groups, and tells the next caller what went wrong.

    While the catalog is away (``BackendError``) points stay queued and are tried again; the next
    call is told once. Any other error is final: every call from then on raises it.

    Args:
        send: Commits a group; it may be called again with points that it committed already.
        beat: Called about every `beat_s` seconds by the thread.
        beat_s: 0 means never.
    """

    def __init__(
        self,
        send: Callable[[Sequence[Metric]], None],
        *,
        beat: Callable[[], None] | None = None,
        beat_s: float = 0,
    ) -> None:
        self._send = send
        self._beat = beat
        self._beat_s = beat_s
        self._queue: deque[Metric] = deque()
        self._home = os.getpid()
        self._begin()
        _writers.add(self)

    def _begin(self) -> None:
        self._sending = threading.Lock()
        self._starting = threading.Lock()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._passing: BackendError | None = None
        self._final: BaseException | None = None

    def start(self) -> None:
        """Start the thread; ``add`` does so where it is needed."""
        with self._starting:
            if self._thread is None and not self._stop.is_set():
                thread = threading.Thread(target=self._work, name="everloop-points", daemon=True)
                self._thread = thread
                thread.start()

    def add(self, points: Sequence[Metric]) -> None:
        """Queue points.

        Raises:
            EverloopError: What the thread met since the last call; `points` are not queued then.
        """
        if self._passing is not None or self._final is not None:
            self.check()
        queue = self._queue
        queue.extend(points)
        if not self._wake.is_set():
            self._wake.set()
            if self._thread is None:
                self.start()
        if len(queue) >= CAPACITY:
            self.flush()

    def check(self) -> None:
        """Raise what the thread met since the last call.

        Raises:
            EverloopError: That.
        """
        if self._final is not None:
            raise self._final.with_traceback(None)
        passing, self._passing = self._passing, None
        if passing is not None:
            raise passing

    def flush(self, points: Sequence[Metric] = ()) -> None:
        """Queue `points`; all that is queued is durable on return.

        Raises:
            EverloopError: If it could not be sent; if the catalog is away it stays queued.
        """
        if self._final is not None:
            self.check()
        self._queue.extend(points)
        self._passing = None  # whatever it was, we shall see for ourselves
        self._drain()
        if self._final is not None:  # the thread had taken some of them
            self.check()

    def close(self) -> None:
        """End the thread and send what is queued; safe to call twice.

        Raises:
            EverloopError: As ``flush``.
        """
        self._stop.set()
        self._wake.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        self.flush()

    def abandon(self) -> None:
        """In the child of a fork: what is queued is the parent's, and so is the thread."""
        self._queue.clear()
        self._begin()

    def _drain(self) -> None:
        # Only what was there at the beginning: others may add faster than we can send.
        with self._sending:
            left = len(self._queue)
            while left > 0:
                group = [self._queue.popleft() for _ in range(min(left, GROUP))]
                left -= len(group)
                try:
                    self._send(group)
                except BackendError:
                    self._queue.extendleft(reversed(group))
                    raise
                except Exception as error:  # final: kept for the program's next call, and raised
                    self._final = error
                    self._queue.clear()
                    raise
                except BaseException:  # Ctrl-C: perhaps committed; twice does no harm
                    self._queue.extendleft(reversed(group))
                    raise

    def _work(self) -> None:
        beat_at = time.monotonic() + self._beat_s
        pause_s = GATHER_S
        while not self._stop.is_set():
            self._wake.wait(max(0.0, beat_at - time.monotonic()) if self._beats() else None)
            if self._wake.is_set():
                if self._stop.wait(pause_s):
                    return  # `close` sends the rest
                self._wake.clear()
            try:
                if self._beats() and time.monotonic() >= beat_at:
                    beat_at = time.monotonic() + self._beat_s
                    self._beat()  # type: ignore[misc]
                self._drain()
                pause_s, self._passing = GATHER_S, None
            except BackendError as error:
                if self._passing is None:
                    _logger.warning("metric points wait: %s", error.message)
                pause_s, self._passing = RETRY_S, error
                self._wake.set()
            except Exception as error:  # noqa: BLE001 - no one above; the next call raises it
                self._final = error
                return

    def _beats(self) -> bool:
        return self._beat_s > 0 and self._home == os.getpid()


_writers: weakref.WeakSet[PointWriter] = weakref.WeakSet()


def _abandon_in_child() -> None:
    for writer in list(_writers):
        writer.abandon()
    # A child of multiprocessing ends without atexit.
    multiprocessing = sys.modules.get("multiprocessing.util")
    if multiprocessing is not None:
        multiprocessing.register_after_fork(_writers, _flush_at_end)


def _flush_at_end(writers: weakref.WeakSet[PointWriter]) -> None:
    from multiprocessing.util import Finalize

    for writer in list(writers):
        Finalize(writer, writer.close, exitpriority=10)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_in_child)
