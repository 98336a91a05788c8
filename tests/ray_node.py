"""One node of a Ray cluster, until it is told to end: `python -m tests.ray_node PARAMETERS`.

PARAMETERS are those of Ray, as JSON; with a `gcs_server_port` it is the head. In a third of the
time of `ray start`, which loads all of Ray's commands, and without dashboard, autoscaler and
collection of logs, which the tests do not look at.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import sys
import time
from typing import Any

from ray._private.node import Node
from ray._private.parameter import RayParams


class BareNode(Node):  # type: ignore[misc]
    """A node whose head has no dashboard."""

    def start_api_server(self, **_: Any) -> None:
        """Start none."""


def main(parameters: dict[str, Any]) -> None:
    is_head = "gcs_server_port" in parameters
    if not is_head:
        _wait_for(parameters["gcs_address"])
    params = RayParams(**parameters, no_monitor=True, include_log_monitor=False)
    node = BareNode(params, head=is_head, shutdown_at_exit=False, spawn_reaper=False)
    signal.sigwait({signal.SIGTERM})
    node.kill_all_processes(check_alive=False, allow_graceful=False)


def _wait_for(address: str) -> None:
    host, _, port = address.rpartition(":")
    while True:
        with contextlib.suppress(OSError):
            socket.create_connection((host, int(port)), 1).close()
            return
        time.sleep(0.05)


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    main(json.loads(sys.argv[1]))
