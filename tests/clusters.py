"""A Ray cluster of two nodes for the tests of one module, with ports and folders of its own.

Each node hangs on a keeper, so that nothing is left of it even if the test worker is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.e2e.trees import descendants
from tests.services import KEEPER

RAY_NODE = Path(__file__).with_name("ray_node.py")
START_TIMEOUT_S = 120
# One address each: Ray tells nodes apart by it, and would replace 127.0.0.1 by the host's own.
HEAD, SECOND = "127.0.0.2", "127.0.0.3"
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Else the server of a client dies now and then as it is forked off, among the threads of gRPC,
    # and the proxy waits half a minute for it.
    "GRPC_ENABLE_FORK_SUPPORT": "0",
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "4",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
PARAMETERS = {
    "num_cpus": 1,
    "object_store_memory": 80_000_000,
    "min_worker_port": 0,
    "max_worker_port": 0,
}


class Node:
    """One node under its keeper.

    Args:
        ip: A loopback address.
        **parameters: Of Ray, for `tests/ray_node.py`.
    """

    def __init__(self, ip: str, **parameters: Any) -> None:
        # Short, as the name of a socket in it must not be long.
        self.folder = Path(tempfile.mkdtemp(prefix="ev-ray-", dir="/tmp"))
        given = {**PARAMETERS, **parameters, "node_ip_address": ip}
        given["runtime_env_agent_port"] = _free_port(ip)
        if "gcs_server_port" in given:
            given["temp_dir"] = str(self.folder)
        command = [sys.executable, str(RAY_NODE), json.dumps(given)]
        own = {"RAY_TMPDIR": str(self.folder), "TMPDIR": str(self.folder)}
        self.keeper = subprocess.Popen(
            [sys.executable, "-S", "-E", str(KEEPER), str(self.folder), "SIGTERM", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, **SETTINGS, **own},
        )

    def log(self) -> str:
        file = self.folder / "server.log"
        return file.read_text(errors="replace")[-3000:] if file.exists() else ""

    def kill(self) -> None:
        """End everything that runs on the node by SIGKILL, as a machine that loses its power."""
        for pid in descendants(self.keeper.pid):  # also what is in groups of its own
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        self.kill()  # sooner than Ray would end by itself, and nothing of it is needed any more
        assert self.keeper.stdin is not None
        self.keeper.stdin.close()
        self.keeper.wait(30)
        shutil.rmtree(self.folder, ignore_errors=True)


class RayCluster:
    """Two nodes with a processor each.

    Attributes:
        address: Of the head; for a driver on this machine.
        client: Of its client server, ``ray://...``.
    """

    def __init__(self) -> None:
        port, client = _free_port(HEAD), _free_port(HEAD)
        self.address = f"{HEAD}:{port}"
        self.client = f"ray://{HEAD}:{client}"
        self.head = Node(HEAD, gcs_server_port=port, ray_client_server_port=client)
        self.nodes = [self.head]
        try:
            self.second = Node(SECOND, gcs_address=self.address)
            self.nodes.append(self.second)
            _wait_for_port(HEAD, port, self.head)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        for node in reversed(self.nodes):
            node.stop()


@contextlib.contextmanager
def ray_cluster() -> Iterator[RayCluster]:
    """A running cluster; this process is connected to it within the block."""
    import ray

    cluster = RayCluster()
    try:
        ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
        deadline = time.monotonic() + START_TIMEOUT_S
        while sum(node["Alive"] for node in ray.nodes()) < 2:
            assert time.monotonic() < deadline, cluster.second.log()
            time.sleep(0.1)
        yield cluster
    finally:
        ray.shutdown()
        cluster.stop()


def _free_port(ip: str) -> int:
    with socket.socket() as probe:
        probe.bind((ip, 0))
        return int(probe.getsockname()[1])


def _wait_for_port(ip: str, port: int, node: Node) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        with contextlib.suppress(OSError):
            socket.create_connection((ip, port), 1).close()
            return
        assert time.monotonic() < deadline, node.log()
        time.sleep(0.1)
