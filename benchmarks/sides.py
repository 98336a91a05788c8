"""The sides of a comparison that run as processes of their own: servers, and a peer's Python.

A peer's Python (`Peer`) keeps one process for a whole benchmark and does one turn of work at a
time, so that it takes its turns between ours and a noisy moment of the machine falls on all sides.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from benchmarks.harness import Missing, PeerEnv

HERE = Path(__file__).parent
START_S = 180


class Peer:
    """A peer's script that answers one JSON line for each line it is asked.

    After a fault it is asked nothing more; `fault` says what was wrong.
    """

    def __init__(self, env: PeerEnv, script: str, *args: str) -> None:
        self.fault = env.fault
        self._process: subprocess.Popen[str] | None = None
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        if self.fault is None:
            self._process = subprocess.Popen(
                [str(env.python), str(HERE / script), *args],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                text=True,
                process_group=0,
                env={**os.environ, "PYTHONWARNINGS": "ignore"},
            )

    def ask(self, work: str, **given: Any) -> dict[str, Any]:
        """The answer to one piece of work; empty once there was a fault."""
        if self._process is None or self.fault is not None:
            return {}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"work": work, **given}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        if not line:
            self._said.seek(0)
            said = self._said.read().decode(errors="replace").strip().splitlines()
            self.fault = f"{work} failed: {said[-1] if said else 'it ended'}"
            return {}
        answer: dict[str, Any] = json.loads(line)
        if "fault" in answer:
            self.fault = f"{work} failed: {answer['fault']}"
            return {}
        return answer

    def seconds(self, work: str, **given: Any) -> float:
        """The seconds that the peer took for `work`, by its own clock; NaN without an answer."""
        return float(self.ask(work, **given).get("seconds", math.nan))

    def figure(self, measured: float) -> float | Missing:
        """`measured`, or why there is no figure."""
        return Missing(self.fault) if self.fault is not None else measured

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process is not None:
            end_group(self._process)
        self._said.close()


# Servers


class Server:
    """A running server: where it answers, and its process."""

    def __init__(self, url: str, pid: int) -> None:
        self.url = url
        self.pid = pid
        self.host = urlsplit(url).netloc
        self._kept: http.client.HTTPConnection | None = None

    def post(self, path: str, body: bytes) -> bytes:
        """Post JSON on a connection that is kept; raises for any answer but 200."""
        try:
            answer, content = self._exchange(path, body)
        except (ConnectionError, http.client.RemoteDisconnected):
            # The server closed it while other sides had their turns.
            self.close()
            answer, content = self._exchange(path, body)
        if answer.status != 200:
            raise RuntimeError(f"{path} answered {answer.status}: {content[:300]!r}")
        return content

    def _exchange(self, path: str, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        if self._kept is None:
            self._kept = http.client.HTTPConnection(self.host, timeout=120)
        self._kept.request("POST", path, body, {"Content-Type": "application/json"})
        answer = self._kept.getresponse()
        return answer, answer.read()

    def call(self, path: str, **fields: Any) -> Any:
        """Post `fields` and decode the answer."""
        return json.loads(self.post(f"/api/2.0/mlflow/{path}", json.dumps(fields).encode()))

    def close(self) -> None:
        if self._kept is not None:
            self._kept.close()
        self._kept = None


@contextlib.contextmanager
def everloop_server(folder: Path, url: str = "") -> Iterator[Server]:
    """`everloop server` on a workspace in `folder`, or with its catalog at `url`."""
    port = free_port()
    options = ["server", "--port", str(port), "--dir", url or str(folder)]
    command = [sys.executable, "-m", "everloop", *options]
    objects = {"EVERLOOP_OBJECTS": str(folder / "objects")}
    with _running(command, port, folder, objects) as server:
        yield server


@contextlib.contextmanager
def echo_server(folder: Path) -> Iterator[Server]:
    """A bare ASGI application on the same server software that answers `{}` to any body."""
    port = free_port()
    with _running([sys.executable, "-m", "benchmarks.echo_app", str(port)], port, folder) as server:
        yield server


@contextlib.contextmanager
def mlflow_server(
    env: PeerEnv, folder: Path, store: str, *options: str
) -> Iterator[Server | Missing]:
    """`mlflow server` on this store and local artifacts, with its default options and these."""
    if env.fault is not None:
        yield Missing(env.fault)
        return
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [str(env.python), "-m", "mlflow", "server", "--port", str(port)]
    command += ["--backend-store-uri", store]
    command += ["--artifacts-destination", str(folder / "artifacts"), *options]
    running = _running(command, port, folder)
    try:
        server = running.__enter__()
    except RuntimeError as error:
        yield Missing(str(error))
        return
    try:
        yield server
    finally:
        running.__exit__(None, None, None)


@contextlib.contextmanager
def _running(
    command: Sequence[str], port: int, folder: Path, settings: Mapping[str, str] | None = None
) -> Iterator[Server]:
    log = folder / f"server-{port}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            cwd=HERE.parent,
            process_group=0,
            env={**os.environ, **(settings or {})},
        )
    server = Server(f"http://127.0.0.1:{port}", process.pid)
    try:
        _await_health(process, port, log)
        yield server
    finally:
        server.close()
        end_group(process)


def _await_health(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while not healthy(port):
        if process.poll() is not None or time.monotonic() > deadline:
            said = log.read_text(errors="replace").strip().splitlines() or ["nothing was printed"]
            raise RuntimeError(f"the server did not start: {said[-1]}")
        time.sleep(0.002)


def healthy(port: int) -> bool:
    """Whether a server on `port` answers `/health`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def end_group(process: subprocess.Popen[Any]) -> None:
    """End a process that leads a group, with all that it started."""
    for number, patience in ((signal.SIGTERM, 15), (signal.SIGKILL, 15)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()
