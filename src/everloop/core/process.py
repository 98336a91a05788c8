"""Child processes that never outlive their parent, and end with everything they started.

A child gets a session of its own, so that a signal reaches its whole group, and a lifeline: the
read end of a pipe whose write end only the parent holds. However the parent dies, the pipe closes,
and :func:`watch_lifeline` ends the child.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence

__all__ = ["ChildProcess", "usable_cores", "watch_lifeline"]

_LIFELINE = "EVERLOOP_LIFELINE"


class ChildProcess:
    """A running child.

    Args:
        arguments: The command.
        environment: Added to our own.
        pass_fds: File descriptors that the child inherits under the same numbers.

    Raises:
        OSError: If it could not be started.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        reader, self._lifeline = os.pipe()
        try:
            self._process = subprocess.Popen(
                list(arguments),
                env={**os.environ, **(environment or {}), _LIFELINE: str(reader)},
                pass_fds=(*pass_fds, reader),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError:
            os.close(self._lifeline)
            raise
        finally:
            os.close(reader)
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """The exit status, or None while it runs; what it left behind is killed when it ended."""
        if self._process.returncode is None and self._has_ended():
            # Before it is reaped its number cannot be given to another process.
            self._signal(signal.SIGKILL)
            self._process.wait()
            os.close(self._lifeline)
        return self._process.returncode

    def wait(self, timeout_s: float) -> bool:
        """Whether it ended within `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while self.poll() is None:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.01)
        return True

    def terminate(self) -> None:
        """Ask the child, and it alone, to end: how its own children end is its business."""
        if self._process.returncode is None:
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End it and all it started, at once."""
        if self._process.returncode is None:
            self._signal(signal.SIGKILL)

    def _has_ended(self) -> bool:
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self.pid, options) is not None

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)


def usable_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def watch_lifeline(grace_s: float = 15.0) -> None:
    """End this process when its parent dies: SIGTERM to itself, and an exit after `grace_s`.

    Does nothing in a process that no Everloop process started. Call it once, early.
    """
    descriptor = os.environ.pop(_LIFELINE, "")
    if descriptor:
        watch = threading.Thread(target=_watch, args=(int(descriptor), grace_s), daemon=True)
        watch.start()


def _watch(descriptor: int, grace_s: float) -> None:
    with contextlib.suppress(OSError):
        while os.read(descriptor, 1):
            pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace_s)
    os._exit(1)
