"""Dispatcher: takes firings from the queue and has child processes work on them.

One child is always warm: it has imported everything and waits to be told a firing. A child works on
one firing and ends, so that the next one imports the project's files as they are then. It closes
its firing itself; where it dies before, the firing goes back into the queue and its run goes on.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Protocol

import msgspec

from everloop.core.owner import this_process
from everloop.core.policy import Firing, FiringAction
from everloop.core.process import ChildProcess
from everloop.core.time import monotonic_ns
from everloop.errors import StateError

if TYPE_CHECKING:
    from everloop.automation.service import AutomationService
    from everloop.tracking.service import TrackingService

__all__ = ["Dispatcher", "serve_one"]

_log = logging.getLogger("everloop.automation")

_LEASE_S = 30.0
_RENEW_S = 8.0
#: Between two looks at the event log and the queue, seconds.
_LOOK_S = 0.15
_AFTER_TROUBLE_S = 2.0
#: A child that does not come up is not started again at once, seconds.
_START_AGAIN_S = 5.0
_END_S = 5.0
_ACTIONS: list[FiringAction] = ["train", "run", "resume", "notify"]


class Workplace(Protocol):
    """What a dispatcher needs of a workspace."""

    @property
    def automation(self) -> AutomationService: ...
    @property
    def tracking(self) -> TrackingService: ...


class _Child:
    """A process that works on one firing."""

    def __init__(self, command: Sequence[str]) -> None:
        ours, theirs = socket.socketpair()
        try:
            arguments = [*command, "--fd", str(theirs.fileno())]
            self.process = ChildProcess(arguments, pass_fds=(theirs.fileno(),))
        except BaseException:  # whatever it is, Ctrl-C too, no descriptor may stay open
            ours.close()
            raise
        finally:
            theirs.close()
        self.connection = Connection(ours.detach())
        self.firing: Firing | None = None
        self.is_warm = False

    def told(self) -> bool:
        """Read that it is warm; False if it ended."""
        try:
            self.connection.recv_bytes()
        except (EOFError, OSError):
            return False
        self.is_warm = True
        return True

    def begin(self, firing: Firing) -> None:
        self.firing = firing
        with contextlib.suppress(OSError):  # it died: it will be noticed as any that dies
            self.connection.send_bytes(msgspec.json.encode(firing))

    def end(self) -> int | None:
        """End it with all it started; the status that it had ended with before, or None."""
        status = self.process.poll()
        self.connection.close()
        self.process.kill()
        self.process.wait(_END_S)
        return status


class Dispatcher:
    """Works off the queue with child processes, while `leads` says that this supervisor may.

    Args:
        workspace: Whose queue.
        command: What starts a child, to which ``--fd N`` is added; it calls :func:`serve_one`.
        size: Children that work at the same time.
        leads: Whether this supervisor is the one that acts.
    """

    def __init__(
        self,
        workspace: Workplace,
        command: Sequence[str],
        *,
        size: int = 4,
        leads: Callable[[], bool] = lambda: True,
    ) -> None:
        self._ws = workspace
        self._command = tuple(command)
        self._size = size
        self._leads = leads
        self._holder = this_process()
        self._busy: list[_Child] = []
        self._warm: _Child | None = None
        self._start_at = 0.0
        self._renewed_at = 0.0

    def run_forever(self, stop: threading.Event) -> None:
        """Decide and dispatch until `stop` is set; what is being worked on then is cut off.

        It goes back into the queue, and the next supervisor has the same runs go on.
        """
        try:
            while not stop.is_set():
                try:
                    self.step()
                    self._wait(_LOOK_S)
                except Exception:  # noqa: BLE001 (a dead thread would be noticed by nobody)
                    # Most likely the catalog is away for a while; a supervisor outlives that.
                    _log.exception("the queue could not be looked after; it is tried again")
                    stop.wait(_AFTER_TROUBLE_S)
        finally:
            self.close()

    def step(self) -> None:
        """Decide what fires, have free children take firings up, notice those that ended."""
        self._reap()
        if not self._leads():
            return
        service = self._ws.automation
        service.decide()
        self._renew()
        while len(self._busy) < self._size and (child := self._ready()) is not None:
            firing = service.claim(_ACTIONS, self._holder, _LEASE_S)
            if firing is None:
                return
            self._warm = None
            self._busy.append(child)
            child.begin(firing)

    @property
    def is_idle(self) -> bool:
        """Whether no child works on anything."""
        return not self._busy

    @property
    def is_ready(self) -> bool:
        """Whether a child is warm and waits."""
        return self._warm is not None and self._warm.is_warm

    def close(self) -> None:
        """End the children; what they worked on goes back into the queue."""
        busy, self._busy = self._busy, []
        for child in busy:
            child.end()
        if busy:
            self._settle(busy, "its supervisor was stopped", counts=False)
        if self._warm is not None:
            self._warm.end()
            self._warm = None

    def _ready(self) -> _Child | None:
        """The warm child, if it is warm already."""
        if self._warm is None:
            if time.monotonic() < self._start_at:
                return None
            self._warm = _Child(self._command)
        if not self._warm.is_warm and self._warm.connection.poll() and not self._warm.told():
            status = self._warm.end()
            _log.error("a child of the supervisor ended with status %s as it started", status)
            self._warm = None
            self._start_at = time.monotonic() + _START_AGAIN_S
            return None
        return self._warm if self._warm.is_warm else None

    def _wait(self, seconds: float) -> None:
        """Wait until a child ends or gets warm, or the time is over."""
        watched = [child.connection for child in self._busy]
        if self._warm is not None and not self._warm.is_warm:
            watched.append(self._warm.connection)
        if not watched:
            time.sleep(seconds)
            return
        wait(watched, seconds)

    def _reap(self) -> None:
        ended = [child for child in self._busy if child.connection.poll()]
        if not ended:
            return
        self._busy = [child for child in self._busy if child not in ended]
        # It may close the connection an instant before it ends.
        told = ""
        for child in ended:
            child.process.wait(_END_S)
            status = child.end()
            if status:
                told = f"the process that worked on it ended with status {status}"
        self._settle(ended, told or "the process that worked on it ended without a word")

    def _settle(self, children: list[_Child], reason: str, *, counts: bool = True) -> None:
        """Put firings of children that are gone back into the queue, unless they closed them."""
        try:
            self._ws.tracking.reap()  # their runs are lost, and can go on elsewhere
        finally:
            for child in children:
                assert child.firing is not None
                with contextlib.suppress(StateError):
                    self._ws.automation.give_back(
                        child.firing.id, child.firing.fence, reason, counts=counts
                    )
                    _log.warning("firing %s of %s: %s", child.firing.id, child.firing.loop, reason)

    def _renew(self) -> None:
        now = monotonic_ns() / 1e9
        if not self._busy or now - self._renewed_at < _RENEW_S:
            return
        self._renewed_at = now
        working = [child.firing.id for child in self._busy if child.firing is not None]
        held = set(self._ws.automation.renew(working, self._holder, _LEASE_S))
        for child in self._busy:
            # Somebody else works on it now, who took this supervisor for dead.
            if (
                child.firing is not None
                and child.firing.id not in held
                and not child.connection.poll()
            ):
                _log.warning("firing %s was taken over", child.firing.id)
                child.process.kill()


def serve_one(descriptor: int, work: Callable[[Firing], object]) -> None:
    """Be a child: say that it is warm, work on the one firing that it is told, and end.

    Args:
        descriptor: Of the connection to the dispatcher.
        work: Works a firing off and closes it.
    """
    with Connection(descriptor) as connection:
        connection.send_bytes(b"warm")
        try:
            told = connection.recv_bytes()
        except (EOFError, OSError):  # it is not needed any more
            return
        work(msgspec.json.decode(told, type=Firing))
