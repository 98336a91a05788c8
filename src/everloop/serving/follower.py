"""Follower: keeps the routes of a process up to date with the catalog."""

from __future__ import annotations

import logging
import threading
import time

from everloop.errors import EverloopError
from everloop.serving.loader import Router

__all__ = ["Follower"]

_logger = logging.getLogger(__name__)

#: How often a process says that it lives, seconds.
_HEARTBEAT_S = 5.0


class Follower:
    """Follows the catalog in a thread of its own, for loading a model takes time.

    Args:
        router: Whose routes are kept up to date.
        poll_s: How often the catalog is asked for new revisions.
    """

    def __init__(self, router: Router, poll_s: float) -> None:
        self._router = router
        self._poll_s = poll_s
        self._beat_s = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="routes", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(10)

    def update(self) -> None:
        """Refresh once; a catalog that does not answer leaves the routes as they are."""
        try:
            changed = self._router.refresh()
            now_s = time.monotonic()
            if changed or now_s - self._beat_s >= _HEARTBEAT_S:
                self._router.acknowledge()
                self._beat_s = now_s
        except EverloopError as error:
            _logger.warning("routes stay as they are: %s", error.message)

    def _run(self) -> None:
        while not self._stopping.wait(self._poll_s):
            try:
                self.update()
            except Exception:  # the thread must live on, or routes get old
                _logger.exception("the routes could not be refreshed")
