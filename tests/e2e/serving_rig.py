"""A supervisor with workers in a folder, and keep-alive clients that account for every request."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from everloop.core.deploy import Deployment
from tests.e2e.serving_child import put
from tests.unit.serving_fakes import deployment

ROOT = Path(__file__).parents[2]


def wait_for(claim: Callable[[], object], what: str, timeout_s: float = 180) -> None:
    deadline = time.monotonic() + timeout_s
    while not claim():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


class Rig:
    """The process tree under test."""

    def __init__(self, folder: Path, workers: int = 2) -> None:
        self.folder = folder
        self.workers = workers
        (folder / "log").mkdir()
        put(folder, deployment())
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.serving_child", "supervise", str(folder),
             "--workers", str(workers)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"},
        )  # fmt: skip
        try:
            wait_for(lambda: len(self.pids) == workers, "all workers are ready")
        except BaseException:
            self.stop()
            raise

    @property
    def port(self) -> int:
        return int((self.folder / "port").read_text())

    def acknowledged(self) -> dict[str, tuple[int, int]]:
        """Worker -> (pid, revision)."""
        return {
            path.name[4:]: tuple(map(int, path.read_text().split()))  # type: ignore[misc]
            for path in self.folder.glob("ack-*")
        }

    @property
    def pids(self) -> list[int]:
        return [pid for pid, _ in self.acknowledged().values()]

    def swap(self, new: Deployment) -> None:
        put(self.folder, new)
        wait_for(
            lambda: all(r == new.revision for _, r in self.acknowledged().values()), "the swap"
        )

    def predictions_counted(self) -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=60) as answer:
            lines = answer.read().decode().splitlines()
        return int(
            sum(float(x.split()[-1]) for x in lines if x.startswith("everloop_predictions_total"))
        )

    def logged(self) -> set[str]:
        files = (self.folder / "log").glob("[!.]*")
        return {line for path in files for line in path.read_text().splitlines()}

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(120)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


@dataclass
class Sender:
    """A keep-alive client in a thread; it opens a new connection after a failure."""

    port: int
    name: str
    ids: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    mixed: int = 0
    answered_4xx_5xx: int = 0
    broken: int = 0
    refused: int = 0

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def finish(self) -> None:
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        while not self._stop.is_set():
            try:
                self._ask(connection)
            except ConnectionRefusedError:
                self.refused += 1
                connection.close()
                time.sleep(0.01)
            except (OSError, http.client.HTTPException):
                self.broken += 1
                connection.close()  # the next request opens another
        connection.close()

    def _ask(self, connection: http.client.HTTPConnection) -> None:
        rows = [float(i) for i in range(4)]
        tensors = [
            {"name": name, "shape": [4], "datatype": "FP64", "data": rows} for name in ("x", "y")
        ]
        body = orjson.dumps({"id": f"{self.name}-{len(self.ids)}", "inputs": tensors})
        connection.request("POST", "/v2/models/delay/infer", body)
        answer = connection.getresponse()
        document = orjson.loads(answer.read())
        if answer.status != 200:
            self.answered_4xx_5xx += 1
            return
        values, ids, versions = (one["data"] for one in document["outputs"])
        revision = int(answer.headers["x-everloop-revision"])
        wanted = [1000.0 * revision + 11 * i for i in range(4)]
        self.mixed += values != wanted or set(versions) != {revision}
        self.ids += ids
        self.times.append(time.time())
